"""Parameters of other programs: their axes, against sums written out in torch's order."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.checks import InputError
from memdef_jax.nn import torch_layout
from memdef_jax.nn.layers import Conv, ConvTranspose, batch_norm


class Network(nn.Module):
    """A module of every kind of layer, with a nested one."""

    @nn.compact
    def __call__(self, x):
        x = batch_norm(False, None)(Conv(4, 3, name="first")(x))
        x = ConvTranspose(2, 3, 1, 0, name="up")(x)
        return nn.Dense(5, name="last")(x.reshape(x.shape[0], -1))


FLATTENED = {"last.weight": (1, 2)}


@pytest.fixture(scope="module")
def network():
    """(module, variables drawn at random, an input)."""
    module, x = Network(), jax.random.normal(jax.random.key(1), (2, 4, 6, 3))
    like = jax.eval_shape(module.init, jax.random.key(0), x)
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda a: jnp.float32(rng.uniform(0.5, 1.5, a.shape)), like)
    return module, drawn, x


def test_names_and_shapes_are_torchs(network):
    assert torch_layout.names(network[1]) == {
        "first.weight": (4, 3, 3, 3),
        "first.bias": (4,),
        "BatchNorm_0.weight": (4,),
        "BatchNorm_0.bias": (4,),
        "BatchNorm_0.running_mean": (4,),
        "BatchNorm_0.running_var": (4,),
        "up.weight": (4, 2, 3, 3),
        "up.bias": (2,),
        "last.weight": (5, 48),
        "last.bias": (5,),
    }


def test_there_and_back(network):
    _, variables, _ = network
    for flattened in (None, FLATTENED):
        there = torch_layout.to_torch(variables, flattened)
        assert {name: a.shape for name, a in there.items()} == torch_layout.names(variables)
        back = torch_layout.from_torch(there, variables, flattened)
        jax.tree.map(np.testing.assert_array_equal, back, variables)


def test_what_torch_would_compute_is_what_we_compute(network, reference):
    module, variables, x = network
    a = {k: np.float64(v) for k, v in torch_layout.to_torch(variables, FLATTENED).items()}
    y = reference.conv2d(x, a["first.weight"].transpose(2, 3, 1, 0)) + a["first.bias"]
    scale = a["BatchNorm_0.weight"] / np.sqrt(a["BatchNorm_0.running_var"] + 1e-5)
    y = (y - a["BatchNorm_0.running_mean"]) * scale + a["BatchNorm_0.bias"]
    y = reference.conv_transpose2d(y, a["up.weight"]) + a["up.bias"]
    flat = y.transpose(0, 3, 1, 2).reshape(2, -1)  # torch's order
    expected = flat @ a["last.weight"].T + a["last.bias"]
    np.testing.assert_allclose(jax.jit(module.apply)(variables, x), expected, rtol=1e-4)


def test_the_first_array_that_does_not_fit_is_named(network):
    variables = network[1]
    found = torch_layout.names(variables)
    torch_layout.check({**found, "classifier.0.weight": (7,)}, variables, "a file")
    with pytest.raises(
        InputError, match=r"a file has no array features\..*running_mean, which is \[4\]"
    ):
        torch_layout.check({"features.up.bias": (2,)}, variables, "a file", "features.")
    found["up.weight"] = (2, 4, 3, 3)
    with pytest.raises(
        InputError, match=r"up\.weight of a file is \[2, 4, 3, 3\] and \[4, 2, 3, 3\] here"
    ):
        torch_layout.check(found, variables, "a file")
