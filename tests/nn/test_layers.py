import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from memdef_jax.nn import layers
from memdef_jax.nn.layers import Conv, ConvTranspose, convolve, max_pool, transposed_convolve


@pytest.fixture
def integers():
    """Small integers as float32: their sums of products are exact, so tolerances can be tiny."""
    rng = np.random.default_rng(0)
    return lambda *shape: rng.integers(-3, 4, shape).astype(np.float32)


def take_path(monkeypatch, path):
    """Send every convolution down one implementation."""
    if path == "accelerator":
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    else:
        monkeypatch.setattr(layers, "_PATCH_LIMIT", 10**9 if path == "patches" else 0)


def value_and_gradients(function, x, kernel, g):
    """Value at (x, kernel) and the gradients of its inner product with g."""

    @jax.jit
    def run(x, kernel, g):
        value, pullback = jax.vjp(function, x, kernel)
        return value, *pullback(g)

    return run(x, kernel, g)


@pytest.mark.parametrize("path", ["patches", "custom gradient", "accelerator"])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize(
    ("kernel_size", "padding"),
    # Not 5x2 with padding 1: at stride 2 XLA's CPU compiler aborts on the plain input gradient.
    [((3, 3), 0), ((3, 3), 1), ((3, 3), 2), ((1, 1), 0), ((1, 1), 1), ((5, 2), 0)],
)
def test_a_convolution_and_its_gradients_equal_the_definition(
    path, stride, kernel_size, padding, integers, reference, monkeypatch
):
    take_path(monkeypatch, path)
    x, kernel = integers(2, 7, 10, 3), integers(*kernel_size, 3, 4)
    expected = reference.conv2d(x, kernel, stride, padding)
    g = integers(*expected.shape)

    value, dx, dk = value_and_gradients(
        lambda x, k: convolve(x, k, stride=stride, padding=padding), x, kernel, g
    )

    expected_dx, expected_dk = reference.conv2d_gradients(x, kernel, stride, padding, g)
    np.testing.assert_allclose(value, expected, atol=1e-4)
    np.testing.assert_allclose(dx, expected_dx, atol=1e-4)
    np.testing.assert_allclose(dk, expected_dk, atol=1e-4)


@pytest.mark.parametrize("padding", [0, 1])
@pytest.mark.parametrize(("kernel_size", "stride"), [((3, 3), 2), ((1, 1), 2), ((1, 1), 3)])
def test_a_wide_convolution_takes_the_custom_gradient_by_itself_and_is_right(
    kernel_size, stride, padding, integers, reference
):
    channels = layers._PATCH_LIMIT // (kernel_size[0] * kernel_size[1]) + 1
    x, kernel = integers(1, 5, 6, channels), integers(*kernel_size, channels, 2)
    expected = reference.conv2d(x, kernel, stride, padding)
    g = integers(*expected.shape)

    def function(x, k):
        return convolve(x, k, stride=stride, padding=padding)

    value, dx, dk = value_and_gradients(function, x, kernel, g)

    expected_dx, expected_dk = reference.conv2d_gradients(x, kernel, stride, padding, g)
    assert "custom_vjp" in str(jax.make_jaxpr(function)(x, kernel))
    np.testing.assert_allclose(value, expected, atol=1e-4)
    np.testing.assert_allclose(dx, expected_dx, atol=1e-4)
    np.testing.assert_allclose(dk, expected_dk, atol=1e-4)


@pytest.mark.parametrize("path", ["cpu", "accelerator"])
@pytest.mark.parametrize(("stride", "output_padding"), [(1, 0), (2, 0), (2, 1), (3, 1)])
@pytest.mark.parametrize(
    ("kernel_size", "padding"), [((3, 3), 0), ((3, 3), 1), ((1, 1), 0), ((4, 2), 2)]
)
def test_a_transposed_convolution_and_its_gradients_equal_the_definition(
    path, stride, output_padding, kernel_size, padding, integers, reference, monkeypatch
):
    if path == "accelerator":
        monkeypatch.setattr(jax, "default_backend", lambda: "gpu")
    x, weight = integers(2, 4, 5, 3), integers(3, 2, *kernel_size)
    expected = reference.conv_transpose2d(x, weight, stride, padding, output_padding)
    g = integers(*expected.shape)

    value, dx, dk = value_and_gradients(
        lambda x, k: transposed_convolve(x, k, stride, padding, output_padding),
        x,
        weight.transpose(2, 3, 1, 0),
        g,
    )

    expected_dx, expected_dw = reference.conv_transpose2d_gradients(x, weight, stride, padding, g)
    np.testing.assert_allclose(value, expected, atol=1e-4)
    np.testing.assert_allclose(dx, expected_dx, atol=1e-4)
    np.testing.assert_allclose(dk, expected_dw.transpose(2, 3, 1, 0), atol=1e-4)


def test_a_convolution_equals_one_computed_by_hand():
    x = jnp.asarray([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0], [7.0, 8.0, 9.0]]).reshape(1, 3, 3, 1)
    kernel = jnp.asarray([[1.0, 0.0], [0.0, -1.0]]).reshape(2, 2, 1, 1)
    np.testing.assert_array_equal(convolve(x, kernel)[0, :, :, 0], [[-4, -4], [-4, -4]])
    np.testing.assert_array_equal(convolve(x, kernel, 2, 1)[0, :, :, 0], [[-1, -3], [-7, -4]])


def test_a_transposed_convolution_equals_one_computed_by_hand():
    x = jnp.asarray([[1.0, 2.0], [3.0, 4.0]]).reshape(1, 2, 2, 1)
    kernel = jnp.asarray([[1.0, 10.0], [100.0, 1000.0]]).reshape(2, 2, 1, 1)
    expected = [[1, 12, 20], [103, 1234, 2040], [300, 3400, 4000]]
    np.testing.assert_array_equal(transposed_convolve(x, kernel, 1, 0)[0, :, :, 0], expected)
    np.testing.assert_array_equal(
        transposed_convolve(x, kernel, 2, 1, 1)[0, :, :, 0],
        [[1000, 200, 2000], [30, 4, 40], [3000, 400, 4000]],
    )


@pytest.mark.parametrize("path", ["patches", "custom gradient", "accelerator"])
def test_descent_inside_a_compiled_loop_follows_the_same_path_as_numpy(
    path, reference, monkeypatch
):
    # The body is a convolution up and back down, so both kinds are differentiated in the loop.
    take_path(monkeypatch, path)
    rng = np.random.default_rng(1)
    x = rng.normal(size=(2, 5, 6, 3))
    kernel = rng.normal(size=(3, 3, 3, 4)) / 5
    weight = rng.normal(size=(4, 2, 3, 3)) / 5

    def loss(x, kernel, tap):
        y = convolve(x, kernel, stride=2, padding=1)
        return 0.5 * jnp.sum(jnp.square(transposed_convolve(y, tap, 2, 1, 1)))

    @jax.jit
    def descend(x, kernel, tap):
        return jax.lax.fori_loop(0, 3, lambda _, x: x - 0.1 * jax.grad(loss)(x, kernel, tap), x)

    expected = x
    for _ in range(3):
        y = reference.conv2d(expected, kernel, 2, 1)
        out = reference.conv_transpose2d(y, weight, 2, 1, 1)
        dy, _ = reference.conv_transpose2d_gradients(y, weight, 2, 1, out)
        expected = expected - 0.1 * reference.conv2d_gradients(expected, kernel, 2, 1, dy)[0]

    actual = descend(*map(jnp.float32, (x, kernel, weight.transpose(2, 3, 1, 0))))
    assert np.abs(expected - x).max() > 0.1
    np.testing.assert_allclose(actual, expected, atol=1e-5)


@pytest.mark.parametrize("path", ["patches", "custom gradient"])
def test_gradients_can_be_differentiated_again(path, monkeypatch):
    # Gradient penalties need it. Finite differences in float32 allow no more than two digits.
    take_path(monkeypatch, path)
    rng = np.random.default_rng(2)
    x, kernel, tap = (
        jnp.float32(rng.normal(size=shape)) / 3
        for shape in [(1, 4, 4, 2), (3, 3, 2, 3), (3, 3, 2, 3)]
    )

    @jax.jit
    def function(x, kernel, tap):
        y = jnp.tanh(convolve(x, kernel, stride=2, padding=1))
        return jnp.sum(jnp.square(transposed_convolve(y, tap, 2, 1, 1)))

    check_grads(function, (x, kernel, tap), 2, modes=("rev",), atol=0.02, rtol=0.02, eps=1e-2)


@pytest.mark.parametrize("path", ["patches", "custom gradient"])
def test_the_layers_map_over_a_batch_of_batches(path, integers, reference, monkeypatch):
    take_path(monkeypatch, path)
    x, kernel = integers(2, 3, 5, 5, 2), integers(3, 3, 2, 2)
    down = jax.vmap(lambda x: convolve(x, kernel, 2, 1))(x)
    up = jax.vmap(lambda x: transposed_convolve(x, kernel, 2, 1, 1))(x)
    weight = kernel.transpose(3, 2, 0, 1)
    for i in range(2):
        np.testing.assert_allclose(down[i], reference.conv2d(x[i], kernel, 2, 1), atol=1e-4)
        expected = reference.conv_transpose2d(x[i], weight, 2, 1, 1)
        np.testing.assert_allclose(up[i], expected, atol=1e-4)


@pytest.mark.parametrize(
    ("shape", "size"), [((2, 6, 4, 3), 2), ((1, 7, 5, 2), 2), ((2, 7, 9, 1), 3)]
)
def test_max_pooling_takes_the_largest_of_each_whole_window(shape, size, reference):
    x = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    np.testing.assert_array_equal(max_pool(x, size), reference.max_pool2d(x, size))


@pytest.mark.parametrize(
    ("size", "stride", "padding"), [(3, 2, 1), (3, 2, 0), (2, 1, 0), (3, 3, 1)]
)
def test_overlapping_and_padded_max_pooling_matches_the_definition(size, stride, padding):
    x = np.random.default_rng(4).normal(size=(2, 7, 8, 3)).astype(np.float32)
    pads = ((0, 0), (padding, padding), (padding, padding), (0, 0))
    padded = np.pad(x, pads, constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (size, size), axis=(1, 2))
    expected = windows[:, ::stride, ::stride].max(axis=(-2, -1))
    np.testing.assert_array_equal(max_pool(x, size, stride, padding), expected)
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x, size, stride, padding)))(x)
    # Without ties each output sends exactly one to the pixel it came from.
    counts = np.zeros_like(x)
    for b, i, j, c in np.ndindex(*expected.shape):
        counts[b, :, :, c] += x[b, :, :, c] == expected[b, i, j, c]
    np.testing.assert_allclose(gradient, counts)


def test_the_gradient_of_max_pooling_goes_to_the_largest_and_is_shared_on_a_tie():
    x = jnp.asarray([[1.0, 4.0, 5.0, 5.0, 9.0], [2.0, 3.0, 5.0, 5.0, 9.0]]).reshape(1, 2, 5, 1)
    gradient = jax.grad(lambda x: jnp.sum(max_pool(x)))(x)
    expected = [[0, 1, 0.25, 0.25, 0], [0, 0, 0.25, 0.25, 0]]
    np.testing.assert_array_equal(gradient[0, :, :, 0], expected)


def test_a_conv_layer_is_a_convolution_plus_a_bias(integers, reference):
    x, kernel, bias = integers(2, 5, 6, 3), integers(3, 3, 3, 4), integers(4)
    layer = Conv(4, 3, stride=2, padding=1)
    value = layer.apply({"params": {"kernel": kernel, "bias": bias}}, x)
    np.testing.assert_allclose(value, reference.conv2d(x, kernel, 2, 1) + bias, atol=1e-4)


def test_a_conv_transpose_layer_is_a_transposed_convolution_plus_a_bias(integers, reference):
    x, weight, bias = integers(2, 4, 5, 3), integers(3, 2, 3, 3), integers(2)
    variables = {"params": {"kernel": weight.transpose(2, 3, 1, 0), "bias": bias}}
    value = ConvTranspose(2, output_padding=1).apply(variables, x)
    expected = reference.conv_transpose2d(x, weight, 2, 1, 1) + bias
    np.testing.assert_allclose(value, expected, atol=1e-4)


def test_a_conv_layer_without_bias_has_only_a_kernel():
    params = Conv(4, 3, use_bias=False).init(jax.random.key(0), jnp.zeros((1, 5, 5, 2)))["params"]
    assert {name: p.shape for name, p in params.items()} == {"kernel": (3, 3, 2, 4)}


@pytest.mark.parametrize(
    ("layer", "fan_in"),
    # torch: a convolution counts its input channels, a transposed one its output channels.
    [(Conv(50, 3), 9 * 20), (ConvTranspose(50), 9 * 50)],
)
def test_kernels_start_uniform_within_one_over_the_root_of_the_fan_in(layer, fan_in):
    params = layer.init(jax.random.key(0), jnp.zeros((1, 5, 5, 20)))["params"]
    kernel, bound = np.asarray(params["kernel"]), fan_in**-0.5
    assert np.abs(kernel).max() <= bound
    # 9000 draws: the standard error of the standard deviation is below one percent.
    np.testing.assert_allclose(kernel.std(), bound / 3**0.5, rtol=0.03)
    np.testing.assert_array_equal(params["bias"], 0)
