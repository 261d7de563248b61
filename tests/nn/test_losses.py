import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.checks import InputError
from memdef_jax.nn import losses

X = jnp.asarray([[[[1.0], [2.0]], [[0.0], [0.0]]], [[[0.0], [0.5]], [[0.0], [0.0]]]])


@pytest.mark.parametrize(("reduction", "expected"), [("mean", [1.25, 0.0625]), ("sum", [5, 0.25])])
def test_reconstruction_error_is_the_squared_error_of_each_image(reduction, expected):
    error = losses.reconstruction_error(X, jnp.zeros_like(X), reduction)
    np.testing.assert_array_equal(error, expected)


def test_reconstruction_error_is_the_mean_by_default_and_counts_channels_as_pixels():
    x = jnp.ones((1, 2, 2, 3))
    np.testing.assert_array_equal(losses.reconstruction_error(x, jnp.zeros_like(x)), [1])
    np.testing.assert_array_equal(losses.reconstruction_error(x, jnp.zeros_like(x), "sum"), [12])


def test_another_reduction_is_refused():
    with pytest.raises(InputError, match="MSE reduction 'median' is unknown; use 'mean' or 'sum'"):
        losses.reconstruction_error(X, X, "median")


@pytest.mark.parametrize("rows", [2, 10, 500])
def test_the_entropy_of_equal_weights_is_the_logarithm_of_their_number(rows):
    entropy = losses.entropy(jnp.full((3, rows), 1 / rows))
    np.testing.assert_allclose(entropy, np.full(3, np.log(rows)), rtol=1e-5)


def test_the_entropy_of_one_row_alone_is_zero():
    np.testing.assert_array_equal(losses.entropy(jnp.eye(4)), np.zeros(4))


def test_the_entropy_of_known_weights():
    # 1/2 ln 2 + 2 (1/4) ln 4 = 3/2 ln 2, whatever rows of zero weight stand beside.
    entropy = losses.entropy(jnp.asarray([[0.5, 0.25, 0.25], [0.5, 0.25, 0.25]]))
    padded = losses.entropy(jnp.asarray([[0.5, 0.0, 0.25, 0.25, 0.0]]))
    np.testing.assert_allclose(entropy, [1.5 * np.log(2)] * 2, rtol=1e-6)
    np.testing.assert_allclose(padded, [1.5 * np.log(2)], rtol=1e-6)


def test_the_gradient_of_entropy_is_minus_log_minus_one_and_finite_at_zero():
    gradient = jax.grad(lambda w: losses.entropy(w))(jnp.asarray([0.0, 0.25, 0.75]))
    np.testing.assert_allclose(gradient[1:], -np.log([0.25, 0.75]) - 1, rtol=1e-5)
    assert np.isfinite(gradient[0])


def test_entropy_has_a_finite_gradient_where_every_weight_is_zero():
    value, gradient = jax.value_and_grad(losses.entropy)(jnp.zeros(4))
    assert value == 0
    assert np.isfinite(gradient).all()


def test_the_bounded_penalty_of_known_errors():
    errors = jnp.asarray([0.0, 9 * np.log(3.0)])
    np.testing.assert_allclose(
        losses.bounded_penalty(errors, 10, 1e-4), [0.5e-4, 0.75e-4], rtol=1e-6
    )


def test_the_bounded_penalty_grows_from_half_of_beta_and_stays_below_it():
    penalty = losses.bounded_penalty(jnp.linspace(0.0, 50.0, 40), 10, 0.25)
    assert penalty[0] == 0.125
    assert (np.diff(penalty) > 0).all()
    assert penalty[-1] < 0.25


def test_the_gradient_of_the_bounded_penalty_is_largest_at_zero_error():
    # sigmoid'(0) = 1/4, so beta / (4 (K - 1)).
    gradient = jax.grad(lambda e: losses.bounded_penalty(e, 5, 2.0))
    np.testing.assert_allclose(gradient(0.0), 2 / 16, rtol=1e-6)
    assert gradient(1.0) < gradient(0.0)


def test_cross_entropy_of_known_logits():
    logits = jnp.log(jnp.asarray([[1.0, 3.0], [1.0, 3.0], [2.0, 2.0]])) + 7.0
    expected = [np.log(4), np.log(4 / 3), np.log(2)]
    labels = jnp.asarray([0, 1, 1])
    np.testing.assert_allclose(losses.cross_entropy(logits, labels), expected, rtol=1e-5)


def test_cross_entropy_stays_finite_for_extreme_logits():
    logits = jnp.asarray([[1e4, -1e4], [1e4, -1e4]])
    labels = jnp.asarray([0, 1])
    value, pullback = jax.vjp(lambda z: losses.cross_entropy(z, labels), logits)
    np.testing.assert_array_equal(value, [0, 2e4])
    np.testing.assert_array_equal(pullback(jnp.ones(2))[0], [[0, 0], [1, -1]])
