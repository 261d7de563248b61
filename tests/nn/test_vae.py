import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.checks import InputError
from memdef_jax.nn import VAE
from memdef_jax.nn.layers import Conv, ConvTranspose
from memdef_jax.nn.vae import architecture, sample

FASHION, CIFAR = (28, 28, 1), (32, 32, 3)

# Table 6 as (in, out, kernel, stride, padding) of each layer; one level deeper for 32x32. The image
# stands for its channels. Every layer but the last of the decoder has BatchNorm and ReLU.
TABLE_6 = {
    FASHION: (
        [(1, 64, 5, 1, 2), (64, 64, 4, 2, 3), (64, 128, 4, 2, 1), (128, 256, 4, 2, 1)],
        [(256, 128, 4, 2, 1), (128, 64, 4, 2, 1), (64, 64, 4, 2, 3), (64, 1, 5, 1, 2)],
    ),
    CIFAR: (
        [
            (3, 64, 5, 1, 2),
            (64, 64, 4, 2, 1),
            (64, 128, 4, 2, 1),
            (128, 256, 4, 2, 1),
            (256, 512, 4, 2, 1),
        ],
        [
            (512, 256, 4, 2, 1),
            (256, 128, 4, 2, 1),
            (128, 64, 4, 2, 1),
            (64, 64, 4, 2, 1),
            (64, 3, 5, 1, 2),
        ],
    ),
}
SIZES = {
    FASHION: ([28, 16, 8, 4], [8, 16, 28, 28]),
    CIFAR: ([32, 16, 8, 4, 2], [4, 8, 16, 32, 32]),
}
FLAT = {FASHION: 4096, CIFAR: 2048}


def shapes(module):
    """Shapes of the variables, without computing them."""
    return jax.eval_shape(module.init, jax.random.key(0), jnp.zeros((2, *module.image_shape)))


def count(tree):
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


@pytest.fixture(scope="module")
def trained():
    """A model with a small latent space whose running statistics are not the initial ones."""
    module = VAE(FASHION, latent_size=5)
    rng = np.random.default_rng(0)

    def draw(path, leaf):
        name = path[-1].key
        values = rng.normal(size=leaf.shape)
        if name in ("var", "scale"):
            values = np.exp(0.3 * values)
        elif name == "kernel":
            values *= np.prod(leaf.shape[:-1]) ** -0.5
        return jnp.float32(values)

    variables = jax.tree_util.tree_map_with_path(draw, shapes(module))
    return module, variables, jnp.float32(rng.uniform(size=(3, *FASHION)))


def dense(x, layer):
    return x @ np.asarray(layer["kernel"], np.float64) + layer["bias"]


def relu(x):
    return np.maximum(x, 0)


def encoded(x, variables, reference):
    params, stats = variables["params"]["encoder"], variables["batch_stats"]["encoder"]
    for i, (*_, stride, padding) in enumerate(TABLE_6[FASHION][0]):
        layer = params[f"Conv_{i}"]
        x = reference.conv2d(x, np.asarray(layer["kernel"]), stride, padding) + layer["bias"]
        x = relu(reference.batch_norm(x, params[f"BatchNorm_{i}"], stats[f"BatchNorm_{i}"]))
    x = x.reshape(len(x), -1)
    return dense(x, params["mean"]), dense(x, params["log_variance"])


def decoded(z, variables, reference):
    params, stats = variables["params"]["decoder"], variables["batch_stats"]["decoder"]
    x = relu(dense(z, params["Dense_0"])).reshape(len(z), 4, 4, 256)
    for i, (*_, stride, padding) in enumerate(TABLE_6[FASHION][1]):
        layer = params[f"ConvTranspose_{i}"]
        weight = np.asarray(layer["kernel"]).transpose(3, 2, 0, 1)
        x = reference.conv_transpose2d(x, weight, stride, padding) + layer["bias"]
        if i < 3:
            x = relu(reference.batch_norm(x, params[f"BatchNorm_{i}"], stats[f"BatchNorm_{i}"]))
    return x


# --- sizes ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("image_shape", [FASHION, CIFAR])
def test_the_layers_have_the_sizes_of_table_6(image_shape):
    module, x = VAE(image_shape), jnp.zeros((2, *image_shape))

    def run(variables):
        return module.apply(
            variables, x, capture_intermediates=lambda m, _: isinstance(m, (Conv, ConvTranspose))
        )

    output, state = jax.eval_shape(run, shapes(module))
    parts = zip(("encoder", "decoder"), TABLE_6[image_shape], SIZES[image_shape], strict=True)
    for part, layers, sizes in parts:
        actual = [layer["__call__"][0].shape for layer in state["intermediates"][part].values()]
        features = [out for _, out, *_ in layers]
        assert actual == [(2, n, n, c) for n, c in zip(sizes, features, strict=True)]
    assert output.shape == x.shape


@pytest.mark.parametrize("latent_size", [128, 7])
@pytest.mark.parametrize("image_shape", [FASHION, CIFAR])
def test_the_parameters_are_those_of_table_6(image_shape, latent_size):
    convolutions, transposed = TABLE_6[image_shape]
    flat = FLAT[image_shape]
    expected = sum(k * k * i * o + o for i, o, k, *_ in convolutions + transposed)
    expected += 2 * (flat + 1) * latent_size + (latent_size + 1) * flat
    channels = sum(o for _, o, *_ in convolutions + transposed[:-1])
    variables = shapes(VAE(image_shape, latent_size))
    assert count(variables["params"]) == expected + 2 * channels
    assert count(variables["batch_stats"]) == 2 * channels


def test_for_fashion_mnist_there_are_the_papers_three_million_parameters():
    assert count(shapes(VAE(FASHION))["params"]) == 3_024_513


@pytest.mark.parametrize("image_shape", [FASHION, (28, 28, 3), CIFAR, (32, 32, 1)])
def test_mean_and_log_variance_have_128_elements_and_decode_to_any_channels(image_shape):
    module, variables = VAE(image_shape), shapes(VAE(image_shape))
    x = jnp.zeros((2, *image_shape))
    z = jax.eval_shape(lambda v: module.apply(v, x, method="encode"), variables)
    assert [part.shape for part in z] == [(2, 128), (2, 128)]
    for method in ("decode", "decode_logits"):
        image = jax.eval_shape(
            lambda v, m=method: module.apply(v, jnp.zeros((2, 128)), method=m), variables
        )
        assert image.shape == x.shape


def test_another_image_shape_is_refused_with_those_that_have_an_architecture():
    with pytest.raises(InputError, match=r"images of 64x64x3 have no .* resize .* 28x28 or 32x32"):
        architecture((64, 64, 3))
    with pytest.raises(InputError, match="images of 28x32x1"):
        shapes(VAE((28, 32, 1)))


def test_a_latent_space_without_dimensions_is_refused():
    with pytest.raises(InputError, match="latent size 0 is below 1"):
        shapes(VAE(FASHION, latent_size=0))


def test_images_of_another_shape_than_the_models_are_refused(trained):
    module, variables, _ = trained
    for shape in ((2, 32, 32, 1), (2, 28, 28, 3)):
        with pytest.raises(InputError, match=r"do not fit a VAE for 28x28x1; resize them"):
            module.apply(variables, jnp.zeros(shape), method="encode")


# --- values --------------------------------------------------------------------------------------


def test_mean_and_log_variance_equal_the_encoder_of_table_6_in_numpy(trained, reference):
    module, variables, x = trained
    actual = module.apply(variables, x, method="encode")
    expected = encoded(np.asarray(x), variables, reference)
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(actual[1], expected[1], rtol=1e-4, atol=1e-4)
    assert np.abs(expected[0] - expected[1]).max() > 0.1  # the two heads can be told apart


def test_logits_and_images_equal_the_decoder_of_table_6_in_numpy(trained, reference):
    module, variables, _ = trained
    z = np.random.default_rng(1).normal(size=(2, 5)).astype(np.float32)
    expected = decoded(z, variables, reference)
    logits = module.apply(variables, z, method="decode_logits")
    np.testing.assert_allclose(logits, expected, rtol=1e-4, atol=1e-4)
    image = module.apply(variables, z, method="decode")
    np.testing.assert_allclose(image, 1 / (1 + np.exp(-expected)), atol=1e-5)


def test_deployed_the_mean_is_decoded_with_running_statistics(trained, reference):
    module, variables, x = trained
    mean, _ = encoded(np.asarray(x), variables, reference)
    expected = 1 / (1 + np.exp(-decoded(mean, variables, reference)))
    actual = module.apply(variables, x, method="reconstruct")
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    np.testing.assert_allclose(module.apply(variables, x), actual, atol=1e-6)
    alone = module.apply(variables, x[1:2], method="reconstruct")
    np.testing.assert_allclose(alone, actual[1:2], atol=1e-5)


def test_in_training_batch_norm_uses_the_batch_and_updates_the_running_mean(trained, reference):
    module, variables, x = trained
    run = jax.jit(lambda v: module.apply(v, x, train=True, mutable=["batch_stats"]))
    output, updated = run(variables)
    assert np.abs(output - module.apply(variables, x)).max() > 0.01

    layer = variables["params"]["encoder"]["Conv_0"]
    y = reference.conv2d(np.asarray(x), np.asarray(layer["kernel"]), 1, 2) + layer["bias"]
    before = variables["batch_stats"]["encoder"]["BatchNorm_0"]["mean"]
    after = updated["batch_stats"]["encoder"]["BatchNorm_0"]["mean"]
    np.testing.assert_allclose(after, 0.9 * before + 0.1 * y.mean(axis=(0, 1, 2)), atol=1e-5)

    # What the running statistics are has no part in it.
    statistics = jax.tree.map(lambda s: 1.7 * s, variables["batch_stats"])
    again, _ = run({"params": variables["params"], "batch_stats": statistics})
    np.testing.assert_array_equal(again, output)


# --- sampling ------------------------------------------------------------------------------------


def test_samples_have_the_mean_and_variance_asked_for():
    mean, log_variance = jnp.asarray([[2.0, -1.0]]), jnp.log(jnp.asarray([[0.25, 4.0]]))
    draws = 20_000
    z = sample(
        jnp.tile(mean, (draws, 1)),
        jnp.tile(log_variance, (draws, 1)),
        jax.random.split(jax.random.key(0), draws),
    )
    # Standard errors of the means: 0.0035 and 0.014; of the deviations: half a percent.
    np.testing.assert_allclose(z.mean(axis=0), [2, -1], atol=0.06)
    np.testing.assert_allclose(z.std(axis=0), [0.5, 2], rtol=0.03)
    assert abs(np.corrcoef(z.T)[0, 1]) < 0.03


def test_a_sample_depends_on_its_own_key_only():
    keys = jax.random.split(jax.random.key(0), 6)
    mean = jnp.zeros((6, 4))
    together = sample(mean, mean, keys)
    order = jnp.asarray([3, 0, 5])
    np.testing.assert_array_equal(sample(mean[order], mean[order], keys[order]), together[order])
    assert len(np.unique(together)) == 24


def test_with_a_key_latent_vectors_are_drawn_and_without_variance_they_are_the_means(trained):
    module, variables, x = trained
    plain = module.apply(variables, x)
    drawn = module.apply(variables, x, key=jax.random.key(0))
    np.testing.assert_array_equal(drawn, module.apply(variables, x, key=jax.random.key(0)))
    assert np.abs(drawn - plain).max() > 0.01
    assert np.abs(drawn - module.apply(variables, x, key=jax.random.key(1))).max() > 0.01

    heads = variables["params"]["encoder"]["log_variance"]
    certain = {"kernel": jnp.zeros_like(heads["kernel"]), "bias": jnp.full_like(heads["bias"], -60)}
    encoder = {**variables["params"]["encoder"], "log_variance": certain}
    params = {**variables["params"], "encoder": encoder}
    drawn = module.apply({**variables, "params": params}, x, key=jax.random.key(0))
    np.testing.assert_allclose(drawn, plain, atol=1e-5)


# --- initial values ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def initial():
    module = VAE(FASHION, latent_size=16)
    return jax.jit(module.init)(jax.random.key(0), jnp.zeros((1, *FASHION)))


def test_convolutions_and_scales_start_normal_with_deviation_two_hundredths(initial):
    kernels, scales, biases = [], [], []
    for part in initial["params"].values():
        for name, layer in part.items():
            if name.startswith("Conv"):
                kernels.append(np.ravel(layer["kernel"]))
            elif name.startswith("BatchNorm"):
                scales.append(np.ravel(layer["scale"]))
            biases.append(np.ravel(layer["bias"]))
    for kernel in kernels:  # the smallest has 1600 draws: a standard error of 1.8 percent
        np.testing.assert_allclose(kernel.std(), 0.02, rtol=0.08)
        assert abs(kernel.mean()) < 5 * 0.02 / len(kernel) ** 0.5
    scale = np.concatenate(scales)  # 768 draws: 2.6 percent
    np.testing.assert_allclose(scale.mean(), 1, atol=0.004)
    np.testing.assert_allclose(scale.std(), 0.02, rtol=0.1)
    np.testing.assert_array_equal(np.concatenate(biases), 0)


def test_dense_layers_start_uniform_within_one_over_the_root_of_the_fan_in(initial):
    encoder, decoder = initial["params"]["encoder"], initial["params"]["decoder"]
    layers = [(encoder["mean"], 4096), (encoder["log_variance"], 4096), (decoder["Dense_0"], 16)]
    for layer, fan_in in layers:
        kernel, bound = np.asarray(layer["kernel"]), fan_in**-0.5
        assert np.abs(kernel).max() <= bound
        np.testing.assert_allclose(kernel.std(), bound / 3**0.5, rtol=0.02)
    assert (encoder["mean"]["kernel"] != encoder["log_variance"]["kernel"]).any()


def test_the_gradient_reaches_every_parameter(initial):
    module = VAE(FASHION, latent_size=16)
    x = jnp.float32(np.random.default_rng(0).uniform(size=(2, *FASHION)))

    @jax.jit
    @jax.grad
    def gradient(params):
        variables = {**initial, "params": params}
        out, _ = module.apply(variables, x, True, jax.random.key(0), mutable=["batch_stats"])
        return jnp.square(out - x).sum()

    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient(initial["params"])):
        assert np.isfinite(leaf).all()
        if path[-1].key != "bias":  # before BatchNorm it has no effect in training
            assert np.abs(leaf).max() > 1e-4, path
