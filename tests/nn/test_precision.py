"""bfloat16 in convolutions and dense layers; everything else, and the default, float32."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.checks import InputError
from memdef_jax.nn import VAE, MemoryAutoencoder, classifier
from memdef_jax.nn.denoisers import DenoisingAutoencoder, DenoisingUNet
from memdef_jax.nn.heads import MemoryHead
from memdef_jax.nn.layers import BatchNorm, Conv, ConvTranspose, Dense, batch_norm, max_pool
from memdef_jax.nn.losses import cross_entropy
from memdef_jax.nn.precision import check_compute_dtype, lowered
from memdef_jax.nn.vgg import VGG16

X = jax.random.uniform(jax.random.key(1), (16, 8, 8, 1))
Y = jnp.arange(16) % 5
LAYERS = {"up", "down", "dense"}


class Tiny(nn.Module):
    """One of each layer."""

    @nn.compact
    def __call__(self, x, train=False):
        x = nn.relu(batch_norm(train, None)(Conv(8, 3, padding=1, name="down")(x)))
        x = max_pool(nn.relu(ConvTranspose(4, 3, 2, 1, 1, name="up")(x)))
        x = nn.relu(Dense(24, name="dense")(x.reshape(len(x), -1)))
        return MemoryHead(5, rows=2, name="head")(x)


@pytest.fixture(scope="module")
def variables():
    return jax.jit(Tiny().init)(jax.random.key(0), X)


def paths(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path, simple=True, separator="/"): leaf for path, leaf in leaves}


def test_only_convolutions_and_dense_layers_are_cast(variables):
    found = paths(lowered(variables["params"], "bfloat16"))
    assert found.keys() == paths(variables["params"]).keys()
    low = {path for path, leaf in found.items() if leaf.dtype == jnp.bfloat16}
    assert low == {f"{layer}/{part}" for layer in LAYERS for part in ("kernel", "bias")}
    assert all(leaf.dtype == jnp.float32 for path, leaf in found.items() if path not in low)
    centres = {"vae": variables["params"], "centres": jnp.ones((2, 3))}
    assert lowered(centres, "bfloat16")["centres"].dtype == jnp.float32


def test_loss_and_gradient_are_near_those_of_float32_and_float32_themselves(variables):
    def loss(params, low):
        params = lowered(params, "bfloat16") if low else params
        logits, updated = Tiny().apply(
            {**variables, "params": params}, X, True, mutable=["batch_stats", "intermediates"],
            capture_intermediates=True,
        )  # fmt: skip
        return cross_entropy(logits, Y).mean(), (logits, updated)

    both = jax.jit(jax.value_and_grad(loss, has_aux=True), static_argnums=1)
    (found, (logits, updated)), gradient = both(variables["params"], True)
    (wanted, (exact, _)), true = both(variables["params"], False)
    whole = (found, logits, gradient, updated["batch_stats"])
    assert {leaf.dtype for leaf in jax.tree.leaves(whole)} == {jnp.dtype(jnp.float32)}
    inside = updated["intermediates"]
    for name in ("down", "up", "BatchNorm_0"):
        assert inside[name]["__call__"][-1].dtype == jnp.bfloat16
    assert inside["dense"]["__call__"][-1].dtype == jnp.float32
    # bfloat16 has 8 bits: 0.4% of each number, and the logits are 15 times a cosine.
    np.testing.assert_allclose(found, wanted, rtol=0.02)
    np.testing.assert_allclose(logits, exact, atol=0.2)
    assert not np.array_equal(logits, exact)
    for name, one in paths(gradient).items():
        other = paths(true)[name]
        if name == "down/bias":  # before a BatchNorm: zero but for rounding
            continue
        cosine = jnp.vdot(one, other) / jnp.linalg.norm(one) / jnp.linalg.norm(other)
        assert cosine > 0.99, name


def test_in_float32_the_layers_are_bit_for_bit_flaxs_own():
    x = jax.random.normal(jax.random.key(2), (6, 10))
    for own, flaxs in (
        (Dense(7), nn.Dense(7)),
        (BatchNorm(False, momentum=0.9), nn.BatchNorm(False, momentum=0.9)),
    ):
        start = flaxs.init(jax.random.key(3), x)
        assert_equal(own.init(jax.random.key(3), x), start)
        assert_equal(*(m.apply(start, x, mutable=["batch_stats"]) for m in (own, flaxs)))


def assert_equal(found, wanted):
    jax.tree.map(np.testing.assert_array_equal, found, wanted)


GRAY = (28, 28, 1)
NETWORKS = {
    **{name: classifier(name, 10) for name in ("small_cnn", "resnet18", "b", "magnet", "lenet")},
    "memory head": classifier("wide_resnet16_4", 10, head="memory"),
    "vgg": VGG16(10, 0.1),
    "autoencoder": DenoisingAutoencoder(),
    "u-net": DenoisingUNet(0.1),
    "memory": MemoryAutoencoder(GRAY, 10, 20),
    "vae": VAE(GRAY, 8),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_what_a_network_gives_is_float32_whatever_it_computes_in(name):
    module, x = NETWORKS[name], jax.ShapeDtypeStruct((2, *GRAY), jnp.float32)
    more = (jax.ShapeDtypeStruct((2,), jnp.int32),) if name == "memory" else ()

    def run(key, x, *more):
        variables = module.init(key, x, *more)
        params = lowered(variables["params"], "bfloat16")
        variables = {**variables, "params": params}
        return params, module.apply(variables, x, *more, train=True, mutable=["batch_stats"])

    params, given = jax.eval_shape(run, jax.random.key(0), x, *more)
    assert {leaf.dtype for leaf in jax.tree.leaves(given)} == {jnp.dtype(jnp.float32)}
    assert jnp.dtype(jnp.bfloat16) in {leaf.dtype for leaf in jax.tree.leaves(params)}


def test_the_latent_vectors_between_encoder_and_decoder_are_float32():
    x = jax.ShapeDtypeStruct((2, *GRAY), jnp.float32)
    for module in (VAE(GRAY, 8), MemoryAutoencoder(GRAY, 10, 0)):

        def run(key, x, module=module):
            more = (jnp.zeros(2, int),) if isinstance(module, MemoryAutoencoder) else ()
            params = lowered(module.init(key, x, *more), "bfloat16")
            return module.apply(params, x, method="encode")

        for latent in jax.tree.leaves(jax.eval_shape(run, jax.random.key(0), x)):
            assert latent.dtype == jnp.float32


@pytest.mark.parametrize("name", ["float32", "float16", "bf16", ""])
def test_another_dtype_is_refused_in_one_sentence(name):
    with pytest.raises(InputError, match=rf"^compute_dtype '{name}' is unknown; use bfloat16.*\.$"):
        check_compute_dtype(name)
    check_compute_dtype(None)
    check_compute_dtype("bfloat16")
