"""The denoisers' networks: sizes layer by layer, ranges, and what they do before training."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.checks import InputError
from memdef_jax.nn import torch_layout
from memdef_jax.nn.denoisers import DenoisingAutoencoder, DenoisingUNet


def draw(shape, seed=0):
    return jax.random.uniform(jax.random.key(seed), shape)


@pytest.fixture(scope="module")
def autoencoder():
    """(module, variables) with biases that are not zero."""
    module = DenoisingAutoencoder()
    variables = jax.jit(module.init)(jax.random.key(0), draw((1, 28, 28, 1)))
    return module, jax.tree.map(lambda a: a + 0.02, variables)


def test_layers_are_the_papers(autoencoder):
    _, variables = autoencoder
    # Section 4.2, as torch has them: [out, in, k, k], transposed ones [in, out, k, k].
    assert {n: s for n, s in torch_layout.names(variables).items() if "weight" in n} == {
        "encoder_0.weight": (16, 1, 3, 3),
        "encoder_1.weight": (8, 16, 3, 3),
        "decoder_0.weight": (8, 16, 3, 3),
        "decoder_1.weight": (16, 8, 5, 5),
        "decoder_2.weight": (8, 1, 2, 2),
    }


def test_the_autoencoder_is_the_papers_layer_by_layer(autoencoder, reference):
    module, variables = autoencoder
    x = draw((2, 28, 28, 1), 1)
    found = jax.jit(module.apply)(variables, x)
    arrays, y = torch_layout.to_torch(variables), 2 * np.asarray(x, np.float64) - 1
    sizes = []

    def layer(name, y, stride, padding):
        weight = arrays[f"{name}.weight"]
        if name.startswith("encoder"):
            y = reference.conv2d(y, weight.transpose(2, 3, 1, 0), stride, padding)
        else:
            y = reference.conv_transpose2d(y, weight, stride, padding)
        sizes.append(y.shape[1])
        return y + arrays[f"{name}.bias"]

    y = reference.max_pool2d(np.maximum(layer("encoder_0", y, 3, 1), 0), 2)
    y = reference.max_pool2d(np.maximum(layer("encoder_1", y, 2, 1), 0), 2, 1)
    assert y.shape == (2, 2, 2, 8)
    y = np.maximum(layer("decoder_0", y, 2, 0), 0)
    y = np.maximum(layer("decoder_1", y, 3, 1), 0)
    y = np.tanh(layer("decoder_2", y, 2, 1))
    assert sizes == [10, 3, 5, 15, 28]
    np.testing.assert_allclose(found, (y + 1) / 2, atol=1e-5)


def test_a_wider_autoencoder_has_more_features():
    variables = jax.eval_shape(
        DenoisingAutoencoder(2.5).init, jax.random.key(0), jnp.zeros((1, 28, 28, 1))
    )
    assert variables["params"]["encoder_0"]["kernel"].shape == (3, 3, 1, 40)
    assert variables["params"]["decoder_0"]["kernel"].shape == (3, 3, 40, 20)


def test_the_autoencoder_is_for_28x28x1():
    with pytest.raises(InputError, match="32x32x3 do not fit the denoising autoencoder"):
        jax.eval_shape(DenoisingAutoencoder().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))


def test_the_unet_begins_as_the_identity_and_does_not_clip():
    x = 3 * draw((2, 8, 4, 2)) - 1
    found, _ = jax.jit(DenoisingUNet(1 / 64).init_with_output)(jax.random.key(1), x)
    np.testing.assert_array_equal(found, x)


def test_the_unet_has_three_scales_and_reads_the_way_there_beside_the_way_back():
    sizes = []

    def notice(call, args, kwargs, context):
        if type(context.module).__name__ == "Conv" and context.method_name == "__call__":
            sizes.append((args[0].shape[1], args[0].shape[3], context.module.features))
        return call(*args, **kwargs)

    with nn.intercept_methods(notice):
        jax.eval_shape(DenoisingUNet().init, jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    assert sizes == [
        (32, 3, 64),
        (32, 64, 64),
        (32, 64, 128),
        (16, 128, 128),
        (16, 128, 128),
        (16, 128, 256),
        (8, 256, 256),
        (8, 256, 256),
        (16, 256 + 128, 128),
        (16, 128, 128),
        (16, 128, 128),
        (32, 128 + 64, 64),
        (32, 64, 64),
        (32, 64, 3),
    ]


def test_the_unet_needs_sizes_that_can_be_halved_twice():
    with pytest.raises(InputError, match="30x28 cannot be halved twice"):
        jax.eval_shape(DenoisingUNet().init, jax.random.key(0), jnp.zeros((1, 30, 28, 1)))
