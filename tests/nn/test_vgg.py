"""VGG-16: torchvision's layout, its feature maps, and what it makes of an image."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.checks import InputError
from memdef_jax.nn import torch_layout, vgg
from memdef_jax.nn.vgg import VGG16, VGG16Features

# torchvision's vgg16: place in `features`, and [out, in] of each 3x3 convolution.
TORCHVISION = {
    0: (64, 3),
    2: (64, 64),
    5: (128, 64),
    7: (128, 128),
    10: (256, 128),
    12: (256, 256),
    14: (256, 256),
    17: (512, 256),
    19: (512, 512),
    21: (512, 512),
    24: (512, 512),
    26: (512, 512),
    28: (512, 512),
}
# Of every map the place of its convolution, None for a pooling.
PLACES = (0, 2, None, 5, 7, None, 10, 12, 14, None, 17, 19, 21, None, 24, 26, 28, None)


def shapes(module, *args, image=(2, 32, 32, 3)):
    """Shapes of variables and outputs, without computing them."""
    x = jnp.zeros(image)
    variables = jax.eval_shape(module.init, jax.random.key(0), x)
    return variables, jax.eval_shape(lambda v: module.apply(v, x, *args), variables)


@pytest.fixture(scope="module")
def narrow():
    """(network of width 1/16, its variables with biases that are not zero)."""
    module = VGG16Features(1 / 16)
    variables = jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return module, jax.tree.map(lambda a: a + 0.01, variables)


def test_names_and_shapes_are_torchvisions():
    variables, _ = shapes(VGG16(classes=10))
    wanted = {}
    for place, (out, given) in TORCHVISION.items():
        wanted[f"features.{place}.weight"] = (out, given, 3, 3)
        wanted[f"features.{place}.bias"] = (out,)
    own = {"head.weight": (10, 512), "head.bias": (10,)}
    assert torch_layout.names(variables) == {**wanted, **own}
    convolutions = variables["params"]["features"]
    assert sum(leaf.size for leaf in jax.tree.leaves(convolutions)) == 14_714_688


def test_the_maps_have_the_printed_sizes():
    _, maps = shapes(VGG16Features(), vgg.LAYERS)
    found = {name: maps[name].shape[1:] for name in ("relu5_3", "pool3", "pool2")}
    assert found == {"relu5_3": (2, 2, 512), "pool3": (4, 4, 256), "pool2": (8, 8, 128)}
    assert list(vgg.LAYERS[:6]) == ["relu1_1", "relu1_2", "pool1", "relu2_1", "relu2_2", "pool2"]
    assert len(vgg.LAYERS) == 13 + 5
    assert maps["pool5"].shape == (2, 1, 1, 512)
    variables, _ = shapes(VGG16Features(0.125), ("pool2", "relu1_1"))
    assert variables["params"]["28"]["kernel"].shape == (3, 3, 64, 64)


def test_every_map_is_that_of_padded_convolutions_and_poolings(narrow, reference):
    module, variables = narrow
    x = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))
    found = jax.jit(lambda v, x: module.apply(v, x, vgg.LAYERS))(variables, x)
    y = (np.asarray(x) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    for name, place in zip(vgg.LAYERS, PLACES, strict=True):
        if place is None:
            y = reference.max_pool2d(y, 2)
        else:
            layer = variables["params"][str(place)]
            y = reference.conv2d(y, layer["kernel"], 1, 1) + np.asarray(layer["bias"])
            y = np.maximum(y, 0)
        np.testing.assert_allclose(found[name], y, rtol=1e-4, atol=1e-4, err_msg=name)


def test_gray_images_of_other_sizes_are_resized_and_repeated():
    x = jnp.full((1, 28, 28, 1), 0.25).at[0, :14].set(0.75)
    y = np.asarray(vgg.normalised(x)) * [0.229, 0.224, 0.225] + [0.485, 0.456, 0.406]
    assert y.shape == (1, 32, 32, 3)
    np.testing.assert_allclose(y[..., 0], y[..., 2], atol=1e-6)
    # The edge lies between rows 13 and 14, the middle of 28 and so of 32.
    np.testing.assert_allclose(y[0, :15], 0.75, atol=1e-6)
    np.testing.assert_allclose(y[0, 17:], 0.25, atol=1e-6)
    # Row 15 is read at (15 + .5) 28/32 - .5 = 13.0625 there.
    np.testing.assert_allclose(y[0, 15], 0.75 - 0.0625 * 0.5, atol=1e-6)


def test_the_classifier_reads_the_mean_of_the_last_maps(narrow):
    _, variables = narrow
    whole = VGG16(classes=3, width=1 / 16)
    head = {"kernel": jax.random.normal(jax.random.key(2), (32, 3)), "bias": jnp.arange(3.0)}
    x = jax.random.uniform(jax.random.key(1), (2, 32, 32, 3))
    both = {"params": {"features": variables["params"], "head": head}}
    logits, seen = jax.jit(lambda v, x: whole.apply(v, x, capture_intermediates=True))(both, x)
    last = seen["intermediates"]["features"]["__call__"][0]["relu5_3"]
    assert last.shape == (2, 2, 2, 32)
    expected = np.asarray(last).mean(axis=(1, 2)) @ np.asarray(head["kernel"]) + np.arange(3)
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-2)


@pytest.mark.parametrize("layers", [(), ("relu5_4",), ("pool2", "conv1")])
def test_unknown_maps_are_refused(layers):
    with pytest.raises(InputError, match=r"VGG-16 has no feature map .* use some of relu1_1"):
        vgg.check_layers(layers)


def test_other_channels_are_refused():
    with pytest.raises(InputError, match="2 channels cannot be read by VGG-16"):
        vgg.normalised(jnp.zeros((1, 32, 32, 2)))
