"""DDN and FMN against known distances, and their honesty."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.attacks.minimum_norm import DDN, FMN
from memdef_jax.checks import InputError

pytestmark = pytest.mark.usefixtures("quick_compile")

ATTACKS = {"ddn": DDN(), "fmn-l2": FMN(norm="l2"), "fmn-linf": FMN(norm="linf")}
EACH = pytest.mark.parametrize("name", ATTACKS)
SHORT = {"ddn": DDN(steps=20), "fmn-l2": FMN(norm="l2", steps=20), "fmn-linf": FMN(steps=20)}


def distances(model, x, y, norm):
    """From each image to the hyperplane of each class, [B, K]; the label's own is infinite."""
    logits, w = np.asarray(model(x), np.float64), np.asarray(model.w, np.float64)
    normals = w.T[np.asarray(y)][:, None] - w.T[None]
    dual = np.abs(normals).sum(-1) if norm == "linf" else np.linalg.norm(normals, axis=-1)
    gaps = logits[np.arange(len(y)), y][:, None] - logits
    return np.where(dual > 0, gaps / np.where(dual > 0, dual, 1), np.inf)


@EACH
@pytest.mark.parametrize(
    ("batch", "classes", "shape"), [(1, 2, (5, 4, 3)), (3, 3, (7, 3, 1)), (8, 10, (1, 9, 2))]
)
def test_within_five_percent_of_the_distance_to_the_hyperplane(
    linear_problem, name, batch, classes, shape
):
    model, x, y = linear_problem(batch, classes, shape, seed=classes)
    attack = ATTACKS[name]
    result = attack.run(model, x, y)
    optimum = distances(model, x, y, attack.norm).min(1)
    assert result.success.all()
    assert (np.argmax(model(result.images), -1) != y).all()
    ratio = np.asarray(result.norm) / optimum
    assert ratio.max() < 1.05
    assert ratio.min() > 0.999
    np.testing.assert_array_equal(result.forward, 107)
    np.testing.assert_array_equal(result.backward, 100)


@EACH
def test_targeted(linear_problem, name):
    model, x, y = linear_problem(8, 3, (7, 3, 1), seed=3)
    attack = replace(ATTACKS[name], targeted=True)
    logits = np.asarray(model(x))
    target = jnp.argsort(jnp.asarray(logits), axis=-1)[:, 1].astype(jnp.int32)  # the runner-up
    result = attack.run(model, x, target)
    # With three classes the third can be in the way, so the hyperplane is only a lower bound.
    lower = distances(model, x, y, attack.norm)[np.arange(8), target]
    assert result.success.all()
    np.testing.assert_array_equal(np.argmax(model(result.images), -1), target)
    assert (np.asarray(result.norm) > 0.999 * lower).all()
    assert np.median(np.asarray(result.norm) / lower) < 1.05


@EACH
def test_with_pixels_on_the_edge_of_the_box(linear, name):
    rng = np.random.default_rng(0)
    x = np.round(rng.uniform(size=(4, 5, 4, 1))).astype(np.float32)
    weights = rng.normal(size=20).astype(np.float32)
    w = jnp.stack([jnp.zeros(20), jnp.asarray(weights)], axis=1)
    # Class 1 needs a rise of the weighted sum; only half of the pixels can give any.
    logits = x.reshape(4, -1) @ weights
    up = (weights > 0) != (x.reshape(4, -1) > 0.5)
    useful = np.where(up, np.abs(weights), 0)
    rise = 0.3 * useful.sum(1)
    attack = ATTACKS[name]
    if attack.norm == "linf":
        optimum = np.full(4, 0.3)
    else:
        optimum = rise / np.linalg.norm(useful, axis=1)
        assert (optimum * useful.max(1) / np.linalg.norm(useful, axis=1) < 1).all()

    model = jax.tree_util.Partial(
        lambda w, b, x: x.reshape(x.shape[0], -1) @ w - jnp.pad(b[:, None], ((0, 0), (1, 0))),
        w,
        jnp.asarray(logits + rise),
    )
    y = jnp.zeros(4, jnp.int32)
    result = jax.jit(lambda x, y: attack.run(model, x, y))(jnp.asarray(x), y)
    assert result.success.all()
    assert (np.asarray(result.norm) / optimum).max() < 1.05
    assert (np.asarray(result.norm) / optimum).min() > 0.999
    assert result.images.min() >= 0
    assert result.images.max() <= 1


@EACH
def test_on_a_quadratic_model(name):
    """The boundary is a sphere about a corner's neighbourhood: radius 1, from a point inside."""
    rng = np.random.default_rng(1)
    x = (0.5 + rng.uniform(0.02, 0.1, (3, 3, 3, 1))).astype(np.float32)
    radius = 1.0

    def model(z):
        square = jnp.sum((z - 0.5) ** 2, axis=(1, 2, 3))
        return jnp.stack([square * 0, square - radius**2], axis=1)

    attack = ATTACKS[name]
    offset = (x - 0.5).reshape(3, -1).astype(np.float64)
    if attack.norm == "l2":
        optimum = radius - np.linalg.norm(offset, axis=1)
    else:  # every pixel moves outward by the same t: sum (o_i + t)^2 = 1
        b, c = offset.sum(1), (offset**2).sum(1) - radius**2
        optimum = (-b + np.sqrt(b**2 - 9 * c)) / 9
    result = attack.run(model, jnp.asarray(x), jnp.zeros(3, jnp.int32))
    assert result.success.all()
    ratio = np.asarray(result.norm) / optimum
    assert ratio.max() < 1.05
    assert ratio.min() > 0.999


@EACH
def test_images_already_misclassified_are_returned_as_they_are(linear_problem, name):
    model, x, y = linear_problem(classes=3)
    result = SHORT[name].run(model, x, (y + 1) % 3)
    assert result.success.all()
    np.testing.assert_array_equal(result.images, x)
    np.testing.assert_array_equal(result.norm, 0)
    np.testing.assert_array_equal(result.steps, 0)
    np.testing.assert_array_equal(result.forward, 1)


@EACH
def test_a_constant_model_gives_the_clean_image_and_no_success(name):
    x = jax.random.uniform(jax.random.key(0), (3, 4, 4, 1))
    y = jnp.zeros(3, jnp.int32)
    result = SHORT[name].run(lambda x: jnp.eye(5)[y] + 0 * x[:, 0, 0], x, y)
    assert not result.success.any()
    np.testing.assert_array_equal(result.images, x)
    np.testing.assert_array_equal(result.norm, 0)


@EACH
def test_saturated_logits_hide_nothing(linear_problem, name):
    model, x, y = linear_problem()
    loud = replace(model, w=model.w * 1e4, b=model.b * 1e4)
    result = SHORT[name].run(loud, x, y)
    np.testing.assert_allclose(result.norm, SHORT[name].run(model, x, y).norm, rtol=0.02)
    assert result.success.all()


@EACH
def test_nan_logits_are_told_and_jitted_equals_eager(mlp_problem, name):
    model, x, y = mlp_problem(batch=12)
    jitted = jax.jit(lambda model, x, y: SHORT[name].run(model, x, y))
    whole, eager = jitted(model, x, y), SHORT[name].run(model, x, y)
    np.testing.assert_allclose(whole.images, eager.images, atol=1e-5)
    np.testing.assert_array_equal(whole.success, eager.success)

    def broken(x):
        return jnp.where(jnp.arange(x.shape[0])[:, None] == 1, jnp.nan, model(x))

    with pytest.raises(InputError, match="NaN for image 1"):
        SHORT[name].run(broken, x, y)
    result = jax.jit(lambda x, y: SHORT[name].run(broken, x, y))(x, y)
    assert not result.success[1]
    assert np.isfinite(result.images).all()


def test_bad_numbers_are_refused(linear_problem):
    model, x, y = linear_problem()
    with pytest.raises(InputError, match="init_norm 0"):
        DDN(init_norm=0.0)(model, x, y)
    with pytest.raises(InputError, match="alpha 0"):
        FMN(alpha=0.0)(model, x, y)
    with pytest.raises(InputError, match="gamma -1"):
        FMN(gamma=-1.0)(model, x, y)
    with pytest.raises(InputError, match="norm 'l1'"):
        FMN(norm="l1")
    with pytest.raises(InputError, match="steps 0"):
        DDN(steps=0)
