"""The losses that denoisers are trained by, on networks small enough to compute by hand."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.checks import InputError
from memdef_jax.nn import Bound, classifier, perceptual
from memdef_jax.nn.denoisers import DenoisingAutoencoder
from memdef_jax.nn.vgg import VGG16Features


def two_maps(x):
    return {"sum": x.sum(axis=3, keepdims=True), "square": x[:, ::2, ::2] ** 2}


def draw(seed, shape=(2, 4, 4, 3)):
    return jax.random.uniform(jax.random.key(seed), shape)


def test_equation_4_with_weights_of_one_over_the_number_of_elements():
    x, denoised = draw(0), draw(1)
    terms = perceptual.perceptual_terms(two_maps, x, denoised)
    a, b = np.asarray(x, np.float64), np.asarray(denoised, np.float64)
    expected = {
        "sum": ((a.sum(3) - b.sum(3)) ** 2).sum(axis=(1, 2)) / 16,
        "square": ((a[:, ::2, ::2] ** 2 - b[:, ::2, ::2] ** 2) ** 2).sum(axis=(1, 2, 3)) / 12,
        "pixels": ((a - b) ** 2).sum(axis=(1, 2, 3)) / 48,
    }
    assert set(terms) == set(expected)
    for name, value in expected.items():
        np.testing.assert_allclose(terms[name], value, rtol=1e-5)


def test_the_printed_weights_are_one_over_the_sizes_of_the_maps():
    maps = jax.eval_shape(
        lambda key, x: VGG16Features().init_with_output(key, x, perceptual.LAYERS)[0],
        jax.random.key(0),
        jnp.zeros((1, 28, 28, 1)),
    )
    printed = {"relu5_3": 0.00048, "pool3": 0.00024, "pool2": 0.00012}
    for name, weight in printed.items():
        assert 1 / maps[name].size == pytest.approx(weight, abs=1e-5)
    assert pytest.approx(0.0013, abs=5e-5) == 1 / 28**2


def test_pixels_alone():
    x, denoised = draw(0), draw(1)
    assert list(perceptual.perceptual_terms(perceptual.no_features, x, denoised)) == ["pixels"]


def test_the_gradient_reaches_the_autoencoder_through_the_feature_maps():
    module, network = DenoisingAutoencoder(), VGG16Features(1 / 32)
    x, attacked = draw(0, (2, 28, 28, 1)), draw(1, (2, 28, 28, 1))
    start = jax.jit(module.init)(jax.random.key(2), x)
    params = network.init(jax.random.key(3), x, ("relu1_1",))["params"]

    def loss(own, frozen, clean):
        features = perceptual.vgg_features(frozen, 1 / 32, ("relu1_1",))
        terms = perceptual.perceptual_terms(features, clean, module.apply(own, attacked))
        return terms["relu1_1"].mean()  # without the pixels

    own, clean = jax.jit(jax.grad(loss, argnums=(0, 2)))(start, params, x)
    for path, leaf in jax.tree_util.tree_leaves_with_path(own):
        assert float(jnp.abs(leaf).max()) > 0, path
    np.testing.assert_array_equal(clean, 0)  # the clean image is a target, not an input


def test_what_the_last_dense_layer_reads_gives_the_logits():
    module, x = classifier("e", 5), draw(0)
    target = Bound(module, jax.jit(module.init)(jax.random.key(0), x))

    @jax.jit
    def both(target, x):
        return target(x), perceptual.logits_and_hidden(target, x)

    plain, (logits, hidden) = both(target, x)
    np.testing.assert_array_equal(logits, plain)
    assert hidden.shape == (2, 200)
    (last,) = (leaf for leaf in jax.tree.leaves(target.variables) if leaf.shape == (200, 5))
    np.testing.assert_allclose(logits, hidden @ last, atol=1e-5)


@pytest.fixture
def linear():
    """A classifier of 4x4x3 images into two classes: hidden = x sums, logits = hidden weights."""

    class Linear(nn.Module):
        @nn.compact
        def __call__(self, x):
            return nn.Dense(2)(x.sum(axis=(1, 2)))

    kernel = jnp.array([[1.0, 0.0], [0.0, 2.0], [1.0, -1.0]])
    return Bound(Linear(), {"params": {"Dense_0": {"kernel": kernel, "bias": jnp.ones(2)}}})


def test_guidance_is_the_mean_absolute_difference(linear):
    x, denoised = draw(0), draw(1)
    difference = np.asarray(x - denoised, np.float64).sum(axis=(1, 2))
    weights = np.asarray(linear.variables["params"]["Dense_0"]["kernel"])
    wanted = {"features": difference, "logits": difference @ weights}
    for level, value in wanted.items():
        found = perceptual.guidance(linear, level, x, denoised)
        np.testing.assert_allclose(found, np.abs(value).mean(axis=1), rtol=1e-4)
    gradients = jax.grad(
        lambda x, d: perceptual.guidance(linear, "logits", x, d).sum(), argnums=(0, 1)
    )(x, denoised)
    np.testing.assert_array_equal(gradients[0], 0)
    assert float(jnp.abs(gradients[1]).max()) > 0


def test_other_guidance_is_refused(linear):
    with pytest.raises(InputError, match="guidance by 'pixels' is unknown"):
        perceptual.guidance(linear, "pixels", draw(0), draw(1))

    class Bare(nn.Module):
        @nn.compact
        def __call__(self, x):
            return x.mean(axis=(1, 2))

    with pytest.raises(InputError, match="Bare has no dense layer"):
        perceptual.guidance(Bound(Bare(), {}), "features", draw(0), draw(1))
