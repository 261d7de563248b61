import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, spatial, stats

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


# --- Defense-VAE ---------------------------------------------------------------------------------


def test_bernoulli_nll_is_the_cross_entropy_summed_over_pixels_and_channels():
    rng = np.random.default_rng(0)
    x, logits = rng.uniform(size=(3, 4, 5, 2)), rng.normal(size=(3, 4, 5, 2))
    p = 1 / (1 + np.exp(-logits))
    expected = -(x * np.log(p) + (1 - x) * np.log(1 - p)).sum(axis=(1, 2, 3))
    actual = losses.bernoulli_nll(jnp.float32(x), jnp.float32(logits))
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_bernoulli_nll_and_its_gradient_are_exact_for_extreme_logits():
    # One pixel an image: right and wrong with certainty, and a grey one. The gradient is p - x.
    x = jnp.asarray([1.0, 0.0, 1.0, 0.25]).reshape(4, 1, 1, 1)
    logits = jnp.asarray([1e4, 1e4, -1e4, 1e4]).reshape(4, 1, 1, 1)
    value, pullback = jax.vjp(lambda a: losses.bernoulli_nll(x, a), logits)
    np.testing.assert_array_equal(value, [0, 1e4, 1e4, 7.5e3])
    np.testing.assert_array_equal(pullback(jnp.ones(4))[0].ravel(), [0, 1, -1, 0.75])


def test_bernoulli_nll_keeps_the_small_error_of_a_confident_pixel():
    nll = losses.bernoulli_nll(jnp.ones((1, 1, 1, 1)), jnp.full((1, 1, 1, 1), 20.0))
    np.testing.assert_allclose(nll, [np.log1p(np.exp(-20))], rtol=1e-5)


@pytest.mark.parametrize(("mean", "variance"), [(0.0, 1.0), (1.5, 0.2), (-0.7, 3.0), (0.0, 1e-2)])
def test_the_divergence_from_a_standard_normal_is_that_of_numerical_integration(mean, variance):
    own, standard = stats.norm(mean, variance**0.5), stats.norm()

    def integrand(z):
        return own.pdf(z) * (own.logpdf(z) - standard.logpdf(z))

    expected, _ = integrate.quad(integrand, *own.interval(1 - 1e-14), points=[mean])
    actual = losses.kl_divergence(jnp.asarray([[mean]]), jnp.log(jnp.asarray([[variance]])))
    np.testing.assert_allclose(actual, [expected], rtol=1e-4, atol=1e-6)


def test_the_divergence_is_summed_over_the_latent_dimensions_of_each_example():
    rng = np.random.default_rng(0)
    mean, log_variance = jnp.float32(rng.normal(size=(2, 3, 4)))
    together = losses.kl_divergence(mean, log_variance)
    single = losses.kl_divergence(mean.reshape(-1, 1), log_variance.reshape(-1, 1))
    np.testing.assert_allclose(together, single.reshape(3, 4).sum(axis=1), rtol=1e-5)


def test_the_divergence_and_its_gradient_vanish_at_the_standard_normal_and_stay_accurate_near_it():
    zero = jnp.zeros((2, 5))
    value, pullback = jax.vjp(losses.kl_divergence, zero, zero)
    np.testing.assert_array_equal(value, 0)
    for gradient in pullback(jnp.ones(2)):
        np.testing.assert_array_equal(gradient, 0)
    # (e^s - 1 - s) / 2 is s^2 / 4 to first order; float32 resolves the terms to about 1e-9.
    near = losses.kl_divergence(jnp.zeros((1, 1)), jnp.full((1, 1), 1e-2))
    np.testing.assert_allclose(near, [0.25e-4], rtol=5e-3)


# --- MAD-VAE -------------------------------------------------------------------------------------


@pytest.fixture
def clusters():
    """Latent vectors, labels and centres of 4 classes in 3 dimensions."""
    rng = np.random.default_rng(0)
    z, centres = rng.normal(size=(6, 3)), rng.normal(size=(4, 3))
    return z, np.asarray([0, 3, 1, 1, 2, 0]), centres


def proximity(z, labels, centres):
    return np.asarray([np.linalg.norm(v - centres[y]) for v, y in zip(z, labels, strict=True)])


def distance(z, labels, centres, between_centres):
    """The printed formula, one example and one other class after the other."""
    out = []
    for vector, label in zip(z, labels, strict=True):
        total = 0.0
        for j in range(len(centres)):
            if j != label:
                total += np.linalg.norm(vector - centres[j])
                if between_centres:
                    total += np.linalg.norm(centres[label] - centres[j])
        out.append(total / (len(centres) - 1))
    return np.asarray(out)


def test_centre_distances_are_the_euclidean_ones(clusters):
    z, _, centres = clusters
    actual = losses.centre_distances(jnp.float32(z), jnp.float32(centres))
    np.testing.assert_allclose(actual, spatial.distance.cdist(z, centres), rtol=1e-5)


def test_proximity_is_the_distance_to_the_own_centre(clusters):
    z, labels, centres = clusters
    actual = losses.proximity(jnp.float32(z), jnp.asarray(labels), jnp.float32(centres))
    np.testing.assert_allclose(actual, proximity(z, labels, centres), rtol=1e-5)


@pytest.mark.parametrize("between_centres", [True, False])
def test_distance_is_the_mean_over_the_other_classes(clusters, between_centres):
    z, labels, centres = clusters
    args = jnp.float32(z), jnp.asarray(labels), jnp.float32(centres)
    expected = distance(z, labels, centres, between_centres)
    np.testing.assert_allclose(losses.distance(*args, between_centres), expected, rtol=1e-5)
    if between_centres:  # the paper's, hence the default
        np.testing.assert_allclose(losses.distance(*args), expected, rtol=1e-5)


def differences(function, at, step=1e-6):
    """Central differences of the sum of a NumPy function at every element."""
    gradient = np.zeros(at.shape)
    for index in np.ndindex(at.shape):
        moved = np.zeros(at.shape)
        moved[index] = step
        gradient[index] = (function(at + moved) - function(at - moved)).sum() / (2 * step)
    return gradient


def test_the_gradients_in_vectors_and_centres_are_those_of_finite_differences(clusters):
    z, labels, centres = clusters
    pairs = [
        (losses.proximity, proximity),
        (losses.distance, lambda z, y, c: distance(z, y, c, True)),
    ]
    for own, oracle in pairs:
        in_z, in_centres = jax.grad(
            lambda z, c, own=own: own(z, jnp.asarray(labels), c).sum(), argnums=(0, 1)
        )(jnp.float32(z), jnp.float32(centres))
        expected = differences(lambda v, f=oracle: f(v, labels, centres), z)
        np.testing.assert_allclose(in_z, expected, atol=1e-5)
        expected = differences(lambda v, f=oracle: f(z, labels, v), centres)
        np.testing.assert_allclose(in_centres, expected, atol=1e-5)


@pytest.mark.parametrize(
    "function",
    [
        lambda z, y, c: losses.centre_distances(z, c),
        losses.proximity,
        losses.distance,
        lambda z, y, c: losses.distance(z, y, c, False),
    ],
)
def test_where_everything_coincides_distances_and_gradients_are_zero_and_not_nan(function):
    z, centres, labels = jnp.ones((4, 3)), jnp.ones((2, 3)), jnp.asarray([0, 1, 0, 1])
    value, pullback = jax.vjp(lambda z, c: function(z, labels, c), z, centres)
    np.testing.assert_array_equal(value, 0)
    for gradient in pullback(jnp.ones_like(value)):
        np.testing.assert_array_equal(gradient, 0)


def test_one_class_has_no_other_to_be_far_from():
    with pytest.raises(InputError, match=r"centres 1 are too few .*; give 2 or more"):
        losses.distance(jnp.ones((2, 3)), jnp.zeros(2, jnp.int32), jnp.ones((1, 3)))
