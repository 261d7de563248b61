"""The latent search against a closed form, a loop in numpy, and what it promises of its record."""

from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.attacks import Overpowered, driver, overpowered
from memdef_jax.attacks.latent_codes import Decoded
from memdef_jax.attacks.logits import LogitsFunction
from memdef_jax.attacks.state import rows
from memdef_jax.checks import InputError

pytestmark = pytest.mark.usefixtures("quick_compile")
KEY = jax.random.key(4)
SHAPE = (6, 5, 1)
PIXELS = 30
SCALE = 0.15
BUDGET = 8e-4  # with which some samples succeed and some do not


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Decoder:
    """0.5 + SCALE * z a^T, with orthonormal columns in a."""

    a: jax.Array

    def __call__(self, z):
        return (0.5 + SCALE * z @ self.a.T).reshape(-1, *SHAPE)


@pytest.fixture
def latent_problem(linear):
    """A factory: (linear classifier, linear decoder, codes, their images, predictions)."""

    def make(batch=6, classes=2, codes=5, seed=0):
        rng = np.random.default_rng(seed)
        a, _ = np.linalg.qr(rng.normal(size=(PIXELS, codes)))
        w = 3.0 * rng.normal(size=(PIXELS, classes))
        model = linear(jnp.asarray(w, jnp.float32), jnp.asarray(-0.5 * w.sum(0), jnp.float32))
        decode = Decoder(jnp.asarray(a, jnp.float32))
        z = jnp.asarray(rng.normal(size=(batch, codes)), jnp.float32)
        x = decode(z)
        assert x.min() > 0.05
        assert x.max() < 0.95
        return model, decode, z, x, jnp.argmax(model(x), -1).astype(jnp.int32)

    return make


def least_distance(model, decode, x, y, confidence):
    """The smallest d at which two classes differ by the confidence, the wrong way round, [B]."""
    w, b = np.asarray(model.w, np.float64), np.asarray(model.b, np.float64)
    logits = np.asarray(x, np.float64).reshape(len(x), -1) @ w + b
    sign = np.where(np.asarray(y) == 0, 1, -1)
    slope = np.asarray(decode.a, np.float64).T @ (w[:, 0] - w[:, 1])
    length = (sign * (logits[:, 0] - logits[:, 1]) + confidence) / np.linalg.norm(slope)
    return length**2 / PIXELS


@pytest.mark.parametrize(("free", "factor"), [(0.8, 1.3), (0.5, 2.6)])
def test_succeeds_just_above_the_least_distance_and_never_below(latent_problem, free, factor):
    model, decode, z, x, y = latent_problem(seed=2)
    confidence = np.array([0.5, 1.0] * 3, np.float32)
    least = least_distance(model, decode, x, y, confidence).astype(np.float32)
    # Beside each sample with a budget it can meet, the same with one that it cannot.
    twice = lambda array: jnp.concatenate([array, array])  # noqa: E731
    budget = np.concatenate([factor * least, 0.8 * least])
    numbers = {"budget": budget, "confidence": twice(confidence), "free": free}
    attack = Overpowered(**numbers, rho=0.0, draws=1, steps=200)
    both = attack.run(model, decode, *map(twice, (z, x, y)), key=KEY)
    found, missed = rows(both, slice(0, 6)), rows(both, slice(6, 12))
    assert found.success.all()
    assert (np.argmax(model(found.images), -1) != y).all()
    assert (found.distance <= factor * least * (1 + 1e-5)).all()
    assert (found.distance >= least * (1 - 1e-4)).all()
    assert (found.margin <= -confidence + 1e-5).all()
    assert (found.steps < 200).all()

    assert not missed.success.any()
    np.testing.assert_array_equal(missed.z, z)
    np.testing.assert_allclose(missed.images, x, atol=1e-6)
    np.testing.assert_allclose(missed.distance, 0, atol=1e-12)
    assert (missed.margin > 0).all()
    np.testing.assert_array_equal(missed.steps, 200)


def test_follows_the_formula_step_by_step(latent_problem):
    model, decode, z, x, y = latent_problem(seed=10)
    least = least_distance(model, decode, x, y, 1.0)
    budget = 1.3 * least
    found = Overpowered(
        budget=budget.astype(np.float32), rho=0.0, draws=1, steps=150, lambda_rate=2e3
    ).run(model, decode, z, x, y, key=KEY)
    a, w = np.asarray(decode.a, np.float64), np.asarray(model.w, np.float64)
    for i in np.flatnonzero(found.success):
        own, other = int(y[i]), 1 - int(y[i])
        slope = a.T @ (w[:, own] - w[:, other]) * SCALE
        start = np.asarray(z[i], np.float64)
        logits = np.asarray(model(x))[i]
        code, m, v, weight = start.copy(), 0.0, 0.0, 1000.0
        for t in range(1, 151):
            d = SCALE**2 * np.sum((code - start) ** 2) / PIXELS
            margin = logits[own] - logits[other] + slope @ (code - start)
            if d <= budget[i] and margin <= -1:
                break
            far = d > budget[i] / 2
            gradient = slope + far * weight * 2 * SCALE**2 * (code - start) / PIXELS
            weight = max(weight + 2e3 * (d if far else -1.0), 0.0)
            m = 0.9 * m + 0.1 * gradient
            v = 0.999 * v + 0.001 * gradient**2
            step = m / (1 - 0.9**t) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
            code = code - 0.05 * step
        assert found.steps[i] == t
        np.testing.assert_allclose(found.z[i], code, atol=2e-4)
        np.testing.assert_allclose(found.distance[i], d, rtol=1e-3)
        np.testing.assert_allclose(found.margin[i], margin, atol=2e-3)
    assert found.success.sum() >= 4


def test_lambda_is_never_negative(latent_problem):
    model, decode, z, x, y = latent_problem()
    each = lambda value: jnp.full(6, value, jnp.float32)  # noqa: E731
    settings = jax.tree.map(each, Overpowered(budget=0.002, draws=2, confidence=1e6))
    search = overpowered._LatentSearch(settings=settings)
    fn = LogitsFunction.of(Decoded(model, decode, x))
    keys = driver.sample_keys(KEY, 6)
    state = search.init(fn, z[:, None, None, :], y, keys, jnp.int32(0))
    step, seen = jax.jit(lambda state: search.step(fn, state)), []
    for _ in range(80):
        state = step(state)
        seen.append(state.own.multiplier)
    assert np.min(seen) == 0
    assert np.max(seen) > 0


def test_eager_jitted_and_grouped_agree(latent_problem):
    model, decode, z, x, y = latent_problem(classes=3)
    attack = Overpowered(budget=BUDGET, rho=0.5, draws=10, steps=60, restarts=2)
    eager = attack.run(model, decode, z, x, y, key=KEY)
    grouped = replace(attack, group=5)
    jitted = jax.jit(lambda m, z: grouped.run(m, decode, z, x, y, key=KEY))(model, z)
    np.testing.assert_array_equal(eager.success, jitted.success)
    np.testing.assert_array_equal(eager.steps, jitted.steps)
    np.testing.assert_allclose(eager.z, jitted.z, atol=1e-4)
    np.testing.assert_allclose(eager.margin, jitted.margin, atol=1e-3)
    won = eager.success
    assert 0 < won.sum() < 6
    assert (eager.margin[won] <= -1 + 1e-5).all()
    assert (eager.distance[won] <= BUDGET * (1 + 1e-5)).all()
    assert (np.argmax(model(eager.images), -1) != y)[won].all()


def test_noise_levels_may_be_an_axis_of_vmap(latent_problem):
    model, decode, z, x, y = latent_problem()
    levels = jnp.array([0.0, 2.0])

    def steps(rho):
        attack = Overpowered(budget=0.01, rho=rho, draws=4, steps=30)
        return attack.run(model, decode, z, x, y, key=KEY).steps

    both = jax.jit(jax.vmap(steps))(levels)
    np.testing.assert_array_equal(both, [steps(0.0), steps(2.0)])


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class PerSample:
    """A model with a bias for each image, and a vote that may never be fooled."""

    model: object
    bias: jax.Array
    stubborn: bool = field(default=False, metadata={"static": True})

    def __call__(self, x):
        return self.model(x) + self.bias

    def take(self, indices):
        return replace(self, bias=self.bias[indices])

    def judge(self):
        return (lambda x: -self.model(x)) if self.stubborn else None


def test_a_sample_does_not_depend_on_its_batch(latent_problem):
    model, decode, z, x, _ = latent_problem(batch=12)
    fn = PerSample(model, jax.random.normal(jax.random.key(8), (12, 2)))
    y = jnp.argmax(fn(x), -1).astype(jnp.int32)
    keys = driver.sample_keys(KEY, 12)
    attack = Overpowered(budget=BUDGET, rho=0.5, draws=3, steps=30, restarts=2)
    whole = attack.run(fn, decode, z, x, y, key=keys)
    some = np.array([11, 2, 7])
    part = attack.run(fn.take(some), decode, z[some], x[some], y[some], key=keys[some])
    assert 0 < whole.success.sum() < 12
    np.testing.assert_array_equal(part.success, whole.success[some])
    np.testing.assert_array_equal(part.steps, whole.steps[some])
    np.testing.assert_allclose(part.z, whole.z[some], atol=1e-5)
    np.testing.assert_allclose(part.margin, whole.margin[some], atol=1e-4)


def test_the_noise_has_length_rho_and_no_direction():
    z, y = jnp.zeros((2, 3)), jnp.zeros(2, jnp.int32)
    reference = jnp.full((2, *SHAPE), 0.5)
    decode = lambda z: reference + 0 * z[:, :1, None, None]  # noqa: E731
    v = jax.random.normal(jax.random.key(9), SHAPE)
    length = lambda x: jnp.sqrt(jnp.sum((x - 0.5) ** 2, (1, 2, 3)))  # noqa: E731
    logits = lambda value: lambda x: jnp.stack([value(x), 0 * value(x)], -1)  # noqa: E731
    attack = Overpowered(rho=np.array([1.0, 2.5], np.float32), draws=1, steps=1)
    found = attack.run(logits(length), decode, z, reference, y, key=KEY)
    np.testing.assert_allclose(found.margin, [1.0, 2.5], rtol=1e-5)

    # Along v, the square of noise without direction is rho^2 ||v||^2 / pixels on average.
    squares = logits(lambda x: jnp.sum((x - 0.5) * v, (1, 2, 3)) ** 2)
    attack = replace(attack, draws=1000)
    found = attack.run(squares, decode, z, reference, y, key=KEY)
    expected = np.array([1.0, 2.5]) ** 2 * np.sum(v**2) / PIXELS
    np.testing.assert_allclose(found.margin, expected, rtol=5 * np.sqrt(2 / 1000))


def test_a_restart_leaves_a_start_without_gradient():
    reference = jnp.full((4, *SHAPE), 0.5)
    z, y = jnp.zeros((4, 2)), jnp.zeros(4, jnp.int32)
    decode = lambda z: reference + 0.1 * z[:, :1, None, None]  # noqa: E731
    # The way out is a square, flat where the search starts.
    margin = lambda x: 1.0 - 100.0 * (x.mean((1, 2, 3)) - 0.5) ** 2  # noqa: E731
    logits_fn = lambda x: jnp.stack([margin(x), 0 * margin(x)], -1)  # noqa: E731
    attack = Overpowered(budget=0.05, rho=0.0, draws=1, steps=50)
    once = attack.run(logits_fn, decode, z, reference, y, key=KEY)
    assert not once.success.any()
    again = replace(attack, restarts=3)
    twice = again.run(logits_fn, decode, z, reference, y, key=KEY)
    assert twice.success.all()
    assert (twice.steps > 50).all()
    still = replace(again, jitter=0.0).run(logits_fn, decode, z, reference, y, key=KEY)
    assert not still.success.any()
    np.testing.assert_array_equal(still.steps, 150)


def test_restarts_keep_every_success(latent_problem):
    model, decode, z, x, y = latent_problem(classes=3)
    attack = Overpowered(budget=BUDGET, rho=0.5, draws=3, steps=30, jitter=0.5)
    once = attack.run(model, decode, z, x, y, key=KEY)
    more = replace(attack, restarts=3).run(model, decode, z, x, y, key=KEY)
    assert 0 < once.success.sum() < 6
    assert more.success[once.success].all()
    np.testing.assert_array_equal(more.z[once.success], once.z[once.success])


def test_images_are_clipped_before_they_are_judged(latent_problem):
    model, _, z, _, y = latent_problem()
    decode = lambda z: jnp.concatenate([z, -z] * 3, -1).reshape(-1, *SHAPE) + 0.5  # noqa: E731
    reference = jnp.clip(decode(z), 0, 1)
    y = jnp.argmax(model(reference), -1).astype(jnp.int32)
    attack = Overpowered(budget=0.05, rho=0.0, draws=1, steps=60)
    found = attack.run(model, decode, z, reference, y, key=KEY)
    assert found.success.any()
    np.testing.assert_allclose(found.images, jnp.clip(decode(found.z), 0, 1), atol=1e-6)
    distance = np.mean((found.images - reference) ** 2, (1, 2, 3))
    np.testing.assert_allclose(found.distance, distance, rtol=1e-4, atol=1e-9)


def test_a_vote_decides_over_a_random_model(latent_problem):
    model, decode, z, x, y = latent_problem()
    attack = Overpowered(budget=0.05, rho=0.0, draws=1, steps=80)
    bias = jnp.zeros((6, 2))
    assert attack.run(PerSample(model, bias), decode, z, x, y, key=KEY).success.all()
    # This vote names the label exactly where the model does not.
    voted = attack.run(PerSample(model, bias, True), decode, z, x, y, key=KEY)
    assert not voted.success.any()


def test_entries_without_a_finite_gradient_do_not_move(latent_problem):
    model, decode, z, _, _ = latent_problem()
    hole = jnp.zeros((6, 1, 5, 1))
    holed = lambda z: jnp.concatenate([hole, decode(z)[:, 1:]], 1)  # noqa: E731
    fn = lambda x: model(x) + jnp.sqrt(x[:, 0, 0]) * jnp.array([1.0, 0.0])  # noqa: E731
    reference = holed(z)
    y = jnp.argmax(fn(reference), -1).astype(jnp.int32)
    assert np.isinf(jax.grad(lambda x: fn(x)[:, 0].sum())(reference)).any()
    found = Overpowered(budget=0.1, rho=0.0, draws=1, steps=200).run(
        fn, holed, z, reference, y, key=KEY
    )
    assert found.success.all()
    assert np.isfinite(found.z).all()


def test_other_weights_compile_nothing(latent_problem):
    model, decode, z, x, y = latent_problem()
    traced = []

    def watched(model, x):
        traced.append(x.shape)
        return model(x)

    def drawn(decode, z):
        traced.append(z.shape)
        return decode(z)

    bind = jax.tree_util.Partial
    attack = Overpowered(budget=1e-6, draws=2, steps=2)
    attack.run(bind(watched, model), bind(drawn, decode), z, x, y, key=KEY)
    count = len(traced)
    model, decode = jax.tree.map(lambda leaf: 0.9 * leaf, (model, decode))
    other = replace(attack, rho=2.0, steps=3)
    other.run(bind(watched, model), bind(drawn, decode), z, x, y, key=jax.random.key(7))
    assert len(traced) == count


def test_an_empty_batch_gives_an_empty_record(latent_problem):
    model, decode, z, x, y = latent_problem()
    found = Overpowered().run(model, decode, z[:0], x[:0], y[:0], key=KEY)
    assert found.images.shape == (0, *SHAPE)
    assert found.z.shape == (0, 5)
    assert found.success.shape == found.steps.shape == found.margin.shape == (0,)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"z": np.zeros((5, 5), np.float32)}, r"z has shape \(5, 5\) beside 6"),
        ({"z": np.zeros((6, 5, 1), np.float32)}, r"give codes \[6, D\]"),
        ({"z": np.zeros((6, 5), np.int32)}, "z has dtype int32"),
        ({"z": np.full((6, 5), np.nan, np.float32)}, "z holds NaN"),
        ({"reference": np.full((6, *SHAPE), 2, np.float32)}, r"outside \[0, 1\]"),
        ({"reference": np.zeros((6, 5, 5, 1), np.float32)}, "decode returned shape"),
        ({"y": np.full(6, 2)}, "label 2 is outside the 2 classes"),
        ({"y": np.zeros(5, np.int32)}, "beside 6 images"),
        ({"decode": 3}, "decode is a int, which cannot be called"),
        ({"logits_fn": 3}, "logits_fn is a int"),
        ({"logits_fn": lambda x: x.reshape(len(x), -1)[:, :1]}, "at least 2 classes"),
        ({"logits_fn": lambda x: x.reshape(len(x), -1)[:, :2] * jnp.nan}, "gave NaN for image 0"),
        ({"key": None}, "pass key="),
        ({"budget": -0.1}, "budget -0.1 cannot be used"),
        ({"rho": np.inf}, "rho inf"),
        ({"jitter": -1.0}, "jitter -1"),
        ({"confidence": -1.0}, "confidence -1"),
        ({"lambda_rate": -1.0}, "lambda_rate -1"),
        ({"initial_lambda": -1.0}, "initial_lambda -1"),
        ({"learning_rate": 0.0}, "learning_rate 0"),
        ({"rho": np.ones(3)}, "a number of Overpowered has shape"),
    ],
)
def test_bad_input_is_refused(latent_problem, changes, words):
    names = ("logits_fn", "decode", "z", "reference", "y")
    inputs = dict(zip(names, latent_problem(), strict=True), key=KEY)
    numbers = {name: changes[name] for name in changes if name not in inputs}
    inputs |= {name: changes[name] for name in changes if name in inputs}
    with pytest.raises(InputError, match=words):
        Overpowered(**numbers, draws=2, steps=2).run(**inputs)


@pytest.mark.parametrize(
    ("numbers", "words"),
    [
        ({"steps": 0}, "steps 0"),
        ({"draws": 0}, "draws 0"),
        ({"restarts": 0}, "restarts 0"),
        ({"group": 0}, "group 0"),
        ({"draws": 10, "group": 4}, "group 4 does not divide draws 10"),
    ],
)
def test_bad_counts_are_refused(numbers, words):
    with pytest.raises(InputError, match=words):
        Overpowered(**numbers)
