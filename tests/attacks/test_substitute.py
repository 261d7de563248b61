"""The black-box substitute: augmentation by hand, the procedure's accounts, and what it is for."""

import operator
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.attacks import FGSM, eot
from memdef_jax.attacks.substitute import jacobian_augmentation, train_substitute
from memdef_jax.attacks.transfer import Transfer
from memdef_jax.checks import InputError

pytestmark = pytest.mark.usefixtures("quick_compile")
KEY = jax.random.key(0)
SHAPE = (4, 3, 2)


def apply(params, x):
    hidden = jax.nn.relu(x.reshape(len(x), -1) @ params["in"])
    return hidden @ params["out"] * params["scale"]


def initial(seed=1, classes=3):
    a, b = jax.random.split(jax.random.key(seed))
    return {
        "in": jax.random.normal(a, (24, 32)) * 0.3,
        "out": jax.random.normal(b, (32, classes)) * 0.3,
        "scale": 1,  # no array: a fixed part of the model
    }


def points(count, seed=2):
    return jax.random.uniform(jax.random.key(seed), (count, *SHAPE))


@pytest.fixture
def oracle(linear):
    w = jax.random.normal(KEY, (24, 3))
    return linear(w, -0.5 * w.sum(0))


def train(oracle, seeds=30, **settings):
    small = {"rounds": 3, "epochs": 5, "batch_size": 16, "learning_rate": 5e-3, "key": KEY}
    return train_substitute(oracle, apply, initial(), points(seeds), **(small | settings))


def test_augmentation_steps_along_the_labels_own_gradient(oracle):
    x, y = points(3), jnp.array([2, 0, 1])
    moved = jacobian_augmentation(oracle, x, y, 0.1)
    step = 0.1 * np.sign(np.asarray(oracle.w).T[np.asarray(y)]).reshape(x.shape)
    np.testing.assert_allclose(moved, np.clip(x + step, 0, 1), atol=1e-6)
    inside = jax.jit(jacobian_augmentation)(oracle, x, y, -0.1)
    np.testing.assert_allclose(inside, np.clip(x - step, 0, 1), atol=1e-6)
    assert jacobian_augmentation(oracle, x[:0], y[:0], 0.1).shape == (0, *SHAPE)


def test_a_substitute_learns_the_oracle_and_transfers(oracle):
    x = points(200, seed=9)
    y = jnp.argmax(oracle(x), -1)
    learned = train(oracle, seeds=120, rounds=4, epochs=15)
    before = jnp.mean(jnp.argmax(apply(initial(), x), -1) == y)
    after = jnp.mean(jnp.argmax(learned.logits_fn(x), -1) == y)
    assert learned.queries == 120 * 2**3
    assert learned.agreement > 0.9
    assert after > max(0.65, before + 0.2)
    result = Transfer(attack=FGSM(eps=0.3), source=learned.logits_fn).run(oracle, x, y)
    assert result.success.mean() > 0.7
    noise = jnp.clip(x + 0.3 * jnp.sign(jax.random.normal(KEY, x.shape)), 0, 1)
    assert jnp.mean(jnp.argmax(oracle(noise), -1) != y) < 0.4


def test_only_labels_are_asked_for_in_batches_of_one_size(oracle):
    asked = []

    def answers(x):
        asked.append(np.asarray(x))
        return np.float32(np.eye(3)[np.argmax(oracle(x), -1)])

    def remote(x):
        shape = jax.ShapeDtypeStruct((len(x), 3), jnp.float32)
        return jax.pure_callback(answers, shape, x)

    learned = train(remote)
    direct = train(oracle)
    assert {len(x) for x in asked} == {16}
    # 30, 30 and 60 new images, each in batches of 16.
    assert len(asked) == 2 + 2 + 4
    assert learned.queries == direct.queries == 120
    assert learned.agreement == direct.agreement
    np.testing.assert_array_equal(learned.logits_fn(points(5)), direct.logits_fn(points(5)))


def test_a_key_decides_everything(oracle):
    first, again, other = train(oracle), train(oracle), train(oracle, key=jax.random.key(7))
    np.testing.assert_array_equal(first.logits_fn(points(5)), again.logits_fn(points(5)))
    assert (first.logits_fn(points(5)) != other.logits_fn(points(5))).any()


def test_signs_alternate_and_growth_can_be_bounded(oracle, monkeypatch):
    from memdef_jax.attacks import substitute

    steps = []
    plain = substitute._augment_compiled

    def watch(fn, x, y, step):
        steps.append(float(step))
        return plain(fn, x, y, step)

    monkeypatch.setattr(substitute, "_augment_compiled", watch)
    bounded = train(oracle, rounds=6, epochs=1, batch_size=30, period=2, most_new=30, step=0.2)
    assert bounded.queries == 30 + 5 * 30
    np.testing.assert_allclose(steps, np.array([1, 1, -1, -1, 1]) * 0.2)


def test_what_is_random_in_training_gets_a_key_of_its_own_for_every_image_and_step(oracle):
    seen = []
    note = lambda words: seen.extend(map(tuple, np.asarray(words).tolist()))  # noqa: E731

    def noisy(params, x, keys):
        jax.debug.callback(note, jax.random.key_data(keys))
        return apply(params, x)

    same, plain = train(oracle, apply_in_training=noisy), train(oracle)
    jax.effects_barrier()
    # Two batches of 16 an epoch in the first round, then 4 and 8, five epochs each.
    assert len(seen) == len(set(seen)) == 16 * 5 * (2 + 4 + 8)
    np.testing.assert_allclose(
        same.logits_fn(points(5)), plain.logits_fn(points(5)), rtol=1e-5, atol=1e-6
    )


def test_the_parameters_are_fitted_by_what_is_given_for_training(oracle):
    def frozen(params, x, keys):
        return apply({**params, "in": jax.lax.stop_gradient(params["in"])}, x)

    learned = train(oracle, apply_in_training=frozen).logits_fn.args[0]
    np.testing.assert_array_equal(learned["in"], initial()["in"])
    assert (learned["out"] != initial()["out"]).any()


def test_a_module_that_is_called_and_a_random_oracle(oracle):
    @jax.tree_util.register_dataclass
    @dataclass(frozen=True)
    class Module:
        w: jax.Array
        calls: jax.Array  # an integer leaf, which is not trained

        def __call__(self, x):
            return x.reshape(len(x), -1) @ self.w

    def noisy(x, key):
        return oracle(x) + 0.1 * jax.random.normal(key, (len(x), 3))

    module = Module(jnp.zeros((24, 3)), jnp.int32(7))
    random = eot(noisy, 1, KEY, votes=5)
    settings = {"key": KEY, "rounds": 2, "epochs": 20, "batch_size": 16, "learning_rate": 0.02}
    learned = train_substitute(random, operator.call, module, points(30), **settings)
    trained = learned.logits_fn.args[0]
    assert trained.calls == 7
    assert (trained.w != 0).all()
    assert learned.agreement > 0.8


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rounds": 0}, "rounds 0 cannot be used"),
        ({"period": 0}, "period 0 cannot be used"),
        ({"most_new": -1}, "most_new -1 cannot be used"),
        ({"learning_rate": 0.0}, "learning_rate 0 cannot be used"),
        ({"step": float("nan")}, "step nan cannot be used"),
        ({"key": None}, "key is no single typed key"),
    ],
)
def test_bad_settings_are_refused(oracle, settings, message):
    with pytest.raises(InputError, match=message):
        train(oracle, **settings)


def test_bad_inputs_are_refused(oracle):
    start = lambda *args: train_substitute(*args, key=KEY)  # noqa: E731
    with pytest.raises(InputError, match="no seeds"):
        start(oracle, apply, initial(), points(0))
    with pytest.raises(InputError, match="substitute gives 5 classes and the oracle 3"):
        start(oracle, apply, initial(classes=5), points(3))
    with pytest.raises(InputError, match="no floating array"):
        start(oracle, lambda p, x: x, {"w": 3}, points(3))
    with pytest.raises(InputError, match="cannot run inside jit"):
        jax.jit(lambda x: start(oracle, apply, initial(), x))(points(3))
    with pytest.raises(InputError, match="label 3 is outside"):
        jacobian_augmentation(oracle, points(2), jnp.array([0, 3]), 0.1)
