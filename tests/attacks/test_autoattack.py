"""AutoAttack: its published parts, the cascade, random models, and its warnings."""

from dataclasses import dataclass, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.attacks import APGD, FAB, FGSM, AutoAttack, CarliniWagnerL2, Square, eot
from memdef_jax.attacks.driver import sample_keys
from memdef_jax.checks import InputError

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(2)
SHORT = (
    APGD(eps=0.0, steps=5),
    APGD(eps=0.0, steps=5, loss="dlr", targets=2),
    FAB(eps=0.0, steps=5, targets=2),
    Square(eps=0.0, steps=20),
)
whole = jax.jit(lambda attack, model, x, y, key: attack.run(model, x, y, key=key))


def short(eps, norm="linf"):
    return AutoAttack(version="custom", eps=eps, norm=norm, attacks=SHORT)


def summary(attack):
    extra = {"loss", "restarts", "targets"} & set(vars(attack))
    return type(attack).__name__, attack.num_steps, {name: getattr(attack, name) for name in extra}


def test_versions_are_the_published_ones():
    ce, dlr = {"loss": "cross_entropy", "targets": 0}, {"loss": "dlr", "targets": 0}
    apgd_t = ("APGD", 100, {"loss": "dlr", "targets": 9, "restarts": 1})
    square = ("Square", 5000, {"loss": "margin", "restarts": 1})
    standard = [
        ("APGD", 100, {**ce, "restarts": 1}),
        apgd_t,
        ("FAB", 100, {"targets": 9, "restarts": 1}),
        square,
    ]
    plus = [
        ("APGD", 100, {**ce, "restarts": 5}),
        ("APGD", 100, {**dlr, "restarts": 5}),
        ("FAB", 100, {"targets": 0, "restarts": 5}),
        square,
        apgd_t,
        ("FAB", 100, {"targets": 9, "restarts": 5}),
    ]
    rand = [("APGD", 100, {**ce, "restarts": 1}), ("APGD", 100, {**dlr, "restarts": 1})]
    for version, expected in {"standard": standard, "plus": plus, "rand": rand}.items():
        stages, notes = AutoAttack(eps=0.1, version=version).plan(10)
        assert [summary(stage) for stage in stages] == expected
        assert not notes


_L2 = pytest.param("l2", 0.12, marks=pytest.mark.exhaustive)


@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.04), _L2])
def test_a_cascade_fells_what_any_of_its_attacks_fells(mlp_problem, norm, eps):
    model, x, y = mlp_problem(batch=24)
    record = short(eps, norm).run(model, x, y, key=KEY)
    assert 0 < record.success.mean() < 1
    fallen = np.zeros(24, bool)
    keys = sample_keys(KEY, 24)
    for index, attack in enumerate(SHORT):
        own = jax.vmap(jax.random.fold_in, (0, None))(keys, index)
        alone = replace(attack, eps=eps, norm=norm).run(model, x, y, key=own)
        stage = record.stages[index]
        np.testing.assert_array_equal(stage.success, alone.success & ~fallen)
        np.testing.assert_array_equal(np.asarray(stage.steps)[fallen], 0)
        np.testing.assert_array_equal(np.asarray(stage.forward)[fallen], 0)
        won = np.asarray(stage.success)
        np.testing.assert_allclose(record.images[won], alone.images[won], atol=1e-6)
        fallen |= np.asarray(alone.success)
    np.testing.assert_array_equal(record.success, fallen)
    np.testing.assert_array_equal(record.images[~fallen], x[~fallen])
    np.testing.assert_array_equal(jnp.argmax(model(record.images), -1) != y, fallen)
    assert (record.norm <= eps * 1.0001).all()
    np.testing.assert_array_equal(record.forward, sum(s.forward for s in record.stages))
    assert (record.seconds > 0).all()


def test_eager_equals_whole_loop_and_eps_may_differ_per_sample(mlp_problem):
    model, x, y = mlp_problem(batch=24)
    attack = short(np.array([0.0, 0.02, 0.05] * 8, np.float32))
    eager, jitted = attack.run(model, x, y, key=KEY), whole(attack, model, x, y, KEY)
    assert not eager.success[::3].any()
    eager = replace(eager, seconds=None, stages=(), notes=())
    for a, b in zip(
        jax.tree.leaves(eager), jax.tree.leaves(replace(jitted, stages=())), strict=True
    ):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize("version", ["standard", "plus"])
def test_published_versions_run_to_the_end_and_fell_what_can_be_felled(linear_problem, version):
    model, x, y = linear_problem(batch=8, classes=3)
    eps = np.array([0.0] * 2 + [0.4] * 6, np.float32)
    record = AutoAttack(eps=eps, version=version).run(model, x, y, key=KEY)
    np.testing.assert_array_equal(record.success, eps > 0)
    for stage, attack in zip(record.stages, AutoAttack(eps=0.1, version=version).plan(3)[0]):
        assert (stage.steps[:2] == attack.num_steps * attack.repeats).all()


@pytest.mark.parametrize("classes", [2, 3])
def test_few_classes_degrade_with_notes(linear_problem, classes):
    model, x, y = linear_problem(batch=4, classes=classes)
    attack = AutoAttack(
        eps=0.3, version="custom", attacks=(APGD(eps=0.3, loss="dlr", targets=9), *SHORT[2:])
    )
    record = attack.run(model, x, y, key=KEY)
    assert record.success.all()
    said = " ".join(record.notes)
    assert f"'dlr' is undefined for {classes} classes" in said
    assert "targets 9 are more than" in said


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Noisy:
    """A linear model on images with noise."""

    inner: object
    scale: float

    def __call__(self, x, key):
        return self.inner(x + self.scale * jax.random.normal(key, x.shape))


def test_rand_attacks_the_expectation_and_counts_votes(linear_problem):
    model, x, y = linear_problem(batch=8, classes=4)
    # So little noise that no vote contradicts the expectation, however the processor rounds.
    random = eot(Noisy(model, jnp.float32(0.02)), 5, KEY)
    attack = AutoAttack(eps=0.2, version="rand")
    stages, _ = attack.plan(4)
    record = AutoAttack(
        eps=0.2, version="custom", attacks=tuple(replace(stage, steps=5) for stage in stages)
    ).run(random, x, y, key=KEY)
    assert record.success.all()
    assert (jnp.argmax(model(record.images), -1) != y).all()
    with pytest.raises(InputError, match="eot"):
        attack.run(model, x, y, key=KEY)


def test_warnings(linear_problem):
    model, x, y = linear_problem(batch=8, classes=4)
    attack = AutoAttack(eps=0.0, version="custom", attacks=(APGD(eps=0.0, steps=1),))

    def said(logits_fn):
        return " ".join(attack.run(logits_fn, x, y, key=KEY).notes)

    assert said(model) == ""
    assert "probabilities" in said(lambda z: jax.nn.softmax(model(z)))
    assert "zero for 8 of 8" in said(lambda z: model(jnp.round(z * 8) / 8))
    assert "model is random" in said(eot(Noisy(model, jnp.float32(0.1)), 2, KEY))
    draws = np.random.default_rng(0)

    def impure(z):
        noise = jax.pure_callback(lambda: draws.normal(size=1).astype(np.float32), X1)
        return model(z) + noise * jax.lax.stop_gradient(z).mean()

    assert "different logits" in said(impure)


X1 = jax.ShapeDtypeStruct((1,), jnp.float32)


def test_a_black_box_that_wins_is_a_warning(linear_problem):
    model, x, y = linear_problem(batch=8, classes=2)
    masked = lambda z: model(jnp.round(z * 16) / 16)  # noqa: E731
    y = jnp.argmax(masked(x), -1).astype(jnp.int32)
    attack = AutoAttack(
        eps=0.3, version="custom", attacks=(FGSM(eps=0.3), Square(eps=0.3, steps=100))
    )
    record = attack.run(masked, x, y, key=KEY)
    assert record.stages[1].success.mean() > 0.5
    assert "masked gradients" in " ".join(record.notes)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: AutoAttack(eps=0.1, version="strong"), "version 'strong'"),
        (lambda: AutoAttack(eps=0.1, version="custom"), "was given 0 attacks"),
        (lambda: AutoAttack(eps=0.1, attacks=(FGSM(eps=0.1),)), "was given 1 attacks"),
        (
            lambda: AutoAttack(eps=0.1, version="custom", attacks=(CarliniWagnerL2(),)),
            "CarliniWagnerL2 cannot be part",
        ),
        (lambda: AutoAttack(eps=0.1, norm="l7"), "norm 'l7'"),
    ],
)
def test_what_cannot_be_is_refused(make, words):
    with pytest.raises(InputError, match=words):
        make()
