"""Flattened features in torch's order: networks in torch's layout, written out in NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.checks import InputError
from memdef_jax.nn import CLASSIFIERS, VAE, ClassifierB, MemoryAutoencoder, classifier, torch_layout
from memdef_jax.nn.flattened import flattened
from memdef_jax.nn.heads import HEADS
from memdef_jax.nn.memory import cosine_logits

GRAY = (28, 28, 1)


def drawn(module, image_shape, *arguments):
    """(variables drawn at random, the same arrays as in a file)."""
    x = jnp.zeros((1, *image_shape))
    like = jax.eval_shape(module.init, jax.random.key(0), x, *arguments)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(lambda a: np.float32(rng.uniform(-0.1, 0.2, a.shape)), like)
    if "batch_stats" in variables:
        variables["batch_stats"] = jax.tree.map(np.abs, variables["batch_stats"])
    return variables, torch_layout.to_torch(variables, flattened(module, image_shape))


@pytest.fixture
def x():
    return np.random.default_rng(1).random((2, *GRAY), np.float32)


def convolved(reference, arrays, name, x, stride, padding):
    kernel = arrays[f"{name}.weight"].transpose(2, 3, 1, 0)
    return reference.conv2d(x, kernel, stride, padding) + arrays[f"{name}.bias"]


def normed(arrays, name, y):
    a = {n: arrays[f"{name}.{n}"] for n in ("weight", "bias", "running_mean", "running_var")}
    return (y - a["running_mean"]) / np.sqrt(a["running_var"] + 1e-5) * a["weight"] + a["bias"]


def flat(y):
    """In torch's order: channels, rows, columns."""
    return y.transpose(0, 3, 1, 2).reshape(len(y), -1)


def dense(arrays, name, y):
    return y @ np.float64(arrays[f"{name}.weight"]).T + arrays[f"{name}.bias"]


def relu(y):
    return np.maximum(y, 0)


def test_a_dense_layer_behind_convolutions(x, reference):
    module = classifier("small_cnn", 10)
    variables, a = drawn(module, GRAY)
    y = relu(convolved(reference, a, "Conv_0", x, 2, 2))
    y = relu(convolved(reference, a, "Conv_1", y, 2, 2))
    expected = dense(a, "Dense_1", relu(dense(a, "Dense_0", flat(y))))
    np.testing.assert_allclose(jax.jit(module.apply)(variables, x), expected, rtol=1e-4)


def test_a_memory_head_behind_convolutions(x, reference):
    module = classifier("b", 10, head="memory")
    variables, a = drawn(module, GRAY)
    y = relu(convolved(reference, a, "Conv_0", x, 2, 3))
    y = relu(convolved(reference, a, "Conv_1", y, 2, 0))
    z, rows = flat(relu(convolved(reference, a, "Conv_2", y, 1, 0))), a["MemoryHead_0.memory"]
    cosine = z @ rows.T / np.linalg.norm(z, axis=1)[:, None] / np.linalg.norm(rows, axis=1)
    expected = np.log(np.exp(15 * cosine).reshape(2, 10, 5).mean(axis=2))
    np.testing.assert_allclose(jax.jit(module.apply)(variables, x), expected, rtol=1e-4)


def test_the_rows_of_a_memory(x, reference):
    module = MemoryAutoencoder(GRAY, classes=10, rows=20)
    variables, a = drawn(module, GRAY, jnp.zeros(1, jnp.int32))
    y = x
    for i, (_, _, stride, padding) in enumerate(((16, 1, 2, 1), (32, 3, 2, 1), (64, 3, 2, 1))):
        y = convolved(reference, a, f"encoder.Conv_{i}", y, stride, padding)
        y = normed(a, f"encoder.BatchNorm_{i}", y)
        y = 1 / (1 + np.exp(-y)) if i == 2 else np.where(y > 0, y, 0.25 * y)
    z, rows = flat(y), np.float64(a["memory"])
    expected = z @ rows.T / np.linalg.norm(z, axis=1)[:, None] / np.linalg.norm(rows, axis=1)
    ours = jax.jit(lambda v, x: module.apply(v, x, method="encode"))(variables, x)
    found = cosine_logits(ours, jnp.asarray(variables["params"]["memory"]))
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_the_dense_layers_of_a_vae(reference):
    module, x = VAE(GRAY, latent_size=3), np.random.default_rng(1).random((1, *GRAY), np.float32)
    variables, a = drawn(module, GRAY)
    y = x
    for i, (stride, padding) in enumerate(((1, 2), (2, 3), (2, 1), (2, 1))):
        y = convolved(reference, a, f"encoder.Conv_{i}", y, stride, padding)
        y = relu(normed(a, f"encoder.BatchNorm_{i}", y))
    mean, spread = (dense(a, f"encoder.{name}", flat(y)) for name in ("mean", "log_variance"))
    y = relu(dense(a, "decoder.Dense_0", mean)).reshape(1, 256, 4, 4).transpose(0, 2, 3, 1)
    for i, padding in enumerate((1, 1, 3)):
        weight, bias = (a[f"decoder.ConvTranspose_{i}.{name}"] for name in ("weight", "bias"))
        y = reference.conv_transpose2d(y, weight, 2, padding) + bias
        y = relu(normed(a, f"decoder.BatchNorm_{i}", y))
    weight, bias = (a[f"decoder.ConvTranspose_3.{name}"] for name in ("weight", "bias"))
    pixels = reference.conv_transpose2d(y, weight, 1, 2) + bias
    encode = jax.jit(lambda v, x: module.apply(v, x, method="encode"))
    for found, expected in zip(encode(variables, x), (mean, spread)):
        np.testing.assert_allclose(found, expected, rtol=1e-4)
    decode = jax.jit(lambda v, z: module.apply(v, z, method="decode_logits"))
    np.testing.assert_allclose(decode(variables, np.float32(mean)), pixels, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("name", CLASSIFIERS)
def test_every_classifier_is_known_and_flattens_whole_maps(name, head):
    module = classifier(name, 10, head=head)
    for shape in (GRAY, (32, 32, 3)):
        like = jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((1, *shape)))
        sizes = torch_layout.names(like)
        for array, (axis, channels) in flattened(module, shape).items():
            assert sizes[array][axis] % channels == 0


def test_a_network_that_is_not_known_is_refused():
    assert flattened(ClassifierB(10), GRAY) == {"Dense_0.weight": (1, 16)}
    assert flattened(MemoryAutoencoder(GRAY, 10, rows=0), GRAY) == {}
    with pytest.raises(InputError, match="Dense is not known"):
        flattened(nn.Dense(3), GRAY)
