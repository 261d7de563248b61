import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memdef_jax.checks import InputError
from memdef_jax.nn import memory as mem

CLASSES, SLOTS, SIZE = 3, 4, 5
ROWS = CLASSES * SLOTS
ORDERS = ["shrink_mask", "mask_shrink"]


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def softmax(logits):
    e = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def addressed(weights, mask, threshold, order):
    """Equation 10 in its two orders, then sum one: what the threshold does not exceed is gone."""
    if order == "shrink_mask":
        weights = np.where(weights > threshold, weights, 0) * mask
    else:
        weights = weights * mask
        weights = np.where(weights > threshold, weights, 0)
    total = weights.sum(axis=-1, keepdims=True)
    return np.divide(weights, total, out=np.zeros_like(weights), where=total > 0)


# --- Equations 8 and 9 ---------------------------------------------------------------------------


def test_cosine_logits_are_inner_products_over_products_of_norms(rng):
    z, memory = rng.normal(size=(2, SIZE)), rng.normal(size=(ROWS, SIZE))
    norms = np.linalg.norm(z, axis=1)[:, None] * np.linalg.norm(memory, axis=1)
    expected = z @ memory.T / norms
    actual = mem.cosine_logits(jnp.float32(z), jnp.float32(memory))
    np.testing.assert_allclose(actual, expected, atol=1e-6)


def test_cosine_logits_of_known_angles():
    z = jnp.asarray([[3.0, 0.0], [0.0, 0.5]])
    memory = jnp.asarray([[2.0, 0.0], [-1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    half = 2**-0.5
    expected = [[1, -1, half, 0], [0, 0, half, 0]]
    np.testing.assert_allclose(mem.cosine_logits(z, memory), expected, atol=1e-7)


def test_cosine_logits_do_not_depend_on_lengths(rng):
    z = jnp.float32(rng.normal(size=(2, SIZE)))
    memory = jnp.float32(rng.normal(size=(ROWS, SIZE)))
    np.testing.assert_allclose(
        mem.cosine_logits(1e-6 * z, 1e6 * memory), mem.cosine_logits(z, memory), atol=1e-6
    )


def test_normalised_vectors_have_length_one_and_zero_stays_zero():
    v = jnp.asarray([[3.0, 4.0], [0.0, 0.0], [1e-8, 0.0]])
    np.testing.assert_allclose(mem.normalise(v), [[0.6, 0.8], [0, 0], [1, 0]], rtol=1e-6)


@pytest.mark.parametrize("scale", [1.0, 10.0])
def test_the_address_is_a_softmax_over_all_rows(scale, rng):
    logits = rng.uniform(-1, 1, size=(3, ROWS))
    actual = mem.address(jnp.float32(logits), scale)
    np.testing.assert_allclose(actual, softmax(scale * logits), rtol=1e-5)


def test_at_temperature_one_the_address_is_nearly_flat():
    # Cosines lie in [-1, 1]: one perfect match among opposites is the most uneven address.
    n = 500
    weights = mem.address(jnp.full((1, n), -1.0).at[0, 0].set(1.0))
    np.testing.assert_allclose(weights[0, 0], np.e**2 / (np.e**2 + n - 1), rtol=1e-5)
    np.testing.assert_allclose(weights[0, 1], 1 / (np.e**2 + n - 1), rtol=1e-5)


# --- shrinkage -----------------------------------------------------------------------------------


@pytest.mark.parametrize("identity_gradient", [False, True])
def test_shrinking_keeps_weights_above_the_threshold_and_zeroes_the_others(identity_gradient):
    weights = jnp.asarray([[0.0, 0.1, 0.25, 0.3, 0.35]])
    actual = mem.hard_shrink(weights, 0.25, identity_gradient=identity_gradient)
    np.testing.assert_allclose(actual, [[0, 0, 0, 0.3, 0.35]], atol=1e-7)


def test_a_threshold_of_zero_shrinks_nothing():
    weights = jnp.asarray([[0.0, 0.001, 0.2, 0.799]])
    np.testing.assert_allclose(mem.hard_shrink(weights, 0.0), weights, rtol=1e-6)


def test_the_gradient_of_shrinking_passes_the_kept_weights_only():
    weights = jnp.asarray([0.0, 0.1, 0.25, 0.3, 0.35])
    gradient = jax.grad(lambda w: jnp.sum(mem.hard_shrink(w, 0.25)))(weights)
    np.testing.assert_allclose(gradient, [0, 0, 0, 1, 1], atol=1e-6)


def test_the_identity_gradient_passes_every_weight():
    weights, g = jnp.asarray([0.0, 0.1, 0.25, 0.3, 0.35]), jnp.asarray([1.0, -2.0, 3.0, -4.0, 5.0])
    shrink = functools.partial(mem.hard_shrink, threshold=0.25, identity_gradient=True)
    np.testing.assert_array_equal(jax.grad(lambda w: shrink(w) @ g)(weights), g)


@pytest.mark.parametrize("order", ORDERS)
def test_the_identity_gradient_of_masked_addressing_is_that_of_renormalisation(order, rng):
    # With s = relu-shrunk weights of sum S and out = s / S, the identity surrogate ds = mask * dw
    # gives d<g, out>/dw = mask (g - <g, out>) / S.
    weights = softmax(rng.normal(size=(2, ROWS)))
    mask = np.eye(CLASSES)[[0, 2]].repeat(SLOTS, axis=1)
    g = rng.normal(size=(2, ROWS))
    threshold = float(np.median(weights))
    shrunk = np.where(weights > threshold, weights, 0) * mask
    total = shrunk.sum(axis=1, keepdims=True)
    inner = (g * shrunk / total).sum(axis=1, keepdims=True)

    def objective(w):
        out = mem.masked_address(w, mask, threshold, order=order, identity_gradient=True)
        return jnp.sum(g * out)

    assert (total > 0).all()
    assert ((mask == 1) & (shrunk == 0)).any()
    actual = jax.grad(objective)(jnp.float32(weights))
    np.testing.assert_allclose(actual, mask * (g - inner) / total, rtol=1e-4, atol=1e-5)


# --- masks ---------------------------------------------------------------------------------------


def test_a_hard_mask_marks_the_consecutive_rows_of_its_class():
    mask = mem.class_mask(jnp.asarray([2, 0]), 3, 2)
    np.testing.assert_array_equal(mask, [[0, 0, 0, 0, 1, 1], [1, 1, 0, 0, 0, 0]])


@pytest.mark.parametrize("dtype", [jnp.int32, jnp.uint8])
def test_a_hard_mask_is_the_soft_mask_of_the_one_hot_label(dtype):
    labels = jnp.asarray([1, 0, 2], dtype)
    np.testing.assert_array_equal(
        mem.class_mask(labels, CLASSES, SLOTS),
        mem.class_mask(jnp.eye(CLASSES)[labels], CLASSES, SLOTS),
    )


def test_a_soft_mask_gives_every_row_the_probability_of_its_class():
    mask = mem.class_mask(jnp.asarray([[0.5, 0.25, 0.25]]), 3, 2)
    np.testing.assert_array_equal(mask, [[0.5, 0.5, 0.25, 0.25, 0.25, 0.25]])


@pytest.mark.parametrize("order", ORDERS)
def test_a_mask_and_its_complement_share_the_rows_out_between_them(order, rng):
    weights = jnp.float32(softmax(rng.normal(size=(3, ROWS))))
    mask = mem.class_mask(jnp.asarray([0, 1, 2]), CLASSES, SLOTS)
    own = mem.masked_address(weights, mask, 1e-12, order=order)
    others = mem.masked_address(weights, 1 - mask, 1e-12, order=order)
    np.testing.assert_array_equal(own * others, 0)
    np.testing.assert_array_equal(mem.active_rows(own), SLOTS)
    np.testing.assert_array_equal(mem.active_rows(others), ROWS - SLOTS)
    share = jnp.sum(weights * mask, axis=1, keepdims=True)
    np.testing.assert_allclose(share * own + (1 - share) * others, weights, rtol=1e-5)


# --- Equation 10 ---------------------------------------------------------------------------------


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize("threshold", [0.0, 1e-12, 1 / ROWS, 0.1])
def test_masked_addressing_equals_the_published_steps(order, labels, threshold, rng):
    weights = softmax(2 * rng.normal(size=(4, ROWS)))
    probabilities = softmax(rng.normal(size=(4, CLASSES)))
    if labels == "hard":
        probabilities = np.eye(CLASSES)[[0, 2, 1, 1]]
    expected = addressed(weights, probabilities.repeat(SLOTS, axis=1), threshold, order)
    mask = mem.class_mask(jnp.float32(probabilities), CLASSES, SLOTS)
    actual = mem.masked_address(jnp.float32(weights), mask, threshold, order=order)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("threshold", [1e-12, 0.02])
def test_the_gradient_of_masked_addressing_equals_finite_differences(order, threshold, rng):
    # In float64 NumPy, with no weight near the threshold, where the step would cross it.
    weights = softmax(2 * rng.normal(size=(1, ROWS)))
    mask = softmax(rng.normal(size=(1, CLASSES))).repeat(SLOTS, axis=1)
    g, step = rng.normal(size=(1, ROWS)), 1e-6
    assert np.abs(weights - threshold).min() > 2 * step
    assert np.abs(weights * mask - threshold).min() > 2 * step
    expected = [
        np.sum(g * addressed(weights + e, mask, threshold, order))
        - np.sum(g * addressed(weights - e, mask, threshold, order))
        for e in step * np.eye(ROWS)
    ] / np.float64(2 * step)

    def objective(w):
        return jnp.sum(g * mem.masked_address(w, mask, threshold, order=order))

    actual = jax.grad(objective)(jnp.float32(weights))
    np.testing.assert_allclose(actual[0], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("order", ORDERS)
def test_masking_a_softmax_equals_the_softmax_over_the_rows_of_the_class(order, rng):
    logits = rng.uniform(-1, 1, size=(CLASSES, ROWS))
    expected = np.zeros((CLASSES, ROWS))
    for label in range(CLASSES):
        own = slice(label * SLOTS, (label + 1) * SLOTS)
        expected[label, own] = softmax(logits[label, own])
    mask = mem.class_mask(jnp.arange(CLASSES), CLASSES, SLOTS)
    actual = mem.masked_address(mem.address(jnp.float32(logits)), mask, 1e-12, order=order)
    np.testing.assert_allclose(actual, expected, rtol=1e-5)


def test_the_two_orders_differ_where_a_soft_mask_pulls_a_weight_under_the_threshold():
    weights, mask = jnp.asarray([[0.6, 0.4]]), jnp.asarray([[0.25, 0.75]])
    # 0.6 and 0.4 both pass 0.2 before the mask; after it 0.15 does not and 0.3 does.
    first = mem.masked_address(weights, mask, 0.2, order="shrink_mask")
    second = mem.masked_address(weights, mask, 0.2, order="mask_shrink")
    np.testing.assert_allclose(first, [[1 / 3, 2 / 3]], rtol=1e-6)
    np.testing.assert_allclose(second, [[0, 1]], rtol=1e-6)


@pytest.mark.parametrize("order", ORDERS)
def test_when_the_threshold_removes_every_row_the_read_out_is_zero(order, rng):
    weights = mem.address(jnp.float32(rng.normal(size=(2, ROWS))))
    mask = mem.class_mask(jnp.asarray([0, 1]), CLASSES, SLOTS)
    gone = mem.masked_address(weights, mask, 2.0, order=order)
    np.testing.assert_array_equal(gone, 0)
    np.testing.assert_array_equal(mem.active_rows(gone), 0)
    np.testing.assert_array_equal(mem.read(gone, jnp.ones((ROWS, SIZE))), 0)


@pytest.mark.parametrize("order", ORDERS)
def test_an_exactly_flat_address_is_removed_by_a_threshold_of_one_over_the_rows(order):
    rows = 8  # a power of two, so that 1/N and the softmax of equal logits are both exact
    weights = mem.address(jnp.zeros((1, rows)))
    mask = mem.class_mask(jnp.asarray([1]), 2, rows // 2)
    np.testing.assert_array_equal(mem.masked_address(weights, mask, 1 / rows, order=order), 0)


def test_an_unknown_order_is_refused():
    with pytest.raises(InputError, match="shrink order 'sideways' is unknown; use 'shrink_mask'"):
        mem.masked_address(jnp.ones((1, 2)), jnp.ones((1, 2)), 0.0, order="sideways")


# --- Equation 11 ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scale", "few", "labels"),
    [
        (1.0, 32, [1, 0, 2, 1]),
        (2.0, 32, [1, 0, 2, 1]),
        # In blocks of two: full ones, one with room, classes without any image.
        (2.0, 0, [1, 0, 2, 1]),
        (1.0, 0, [2, 2, 0, 2, 2, 2, 0]),
        (1.0, 32, [0]),
        (1.0, 0, [0]),
    ],
)
def test_reading_own_slots_only_equals_masking_the_whole_address(
    scale, few, labels, rng, monkeypatch
):
    monkeypatch.setattr(mem, "FEW", few)
    monkeypatch.setattr(mem, "BLOCK", 2)
    labels, size = np.array(labels), (len(labels), SIZE)
    z, memory, g = rng.normal(size=size), rng.normal(size=(ROWS, SIZE)), rng.normal(size=size)
    z[-1] *= len(labels) > 1  # alone, it is zero
    assert mem.shrinks_nothing(1e-12, scale, ROWS)

    def own(z, memory):
        return mem.read_own_slots(z, memory, jnp.asarray(labels), CLASSES, scale)

    def whole(z, memory):
        weights = mem.address(mem.cosine_logits(z, memory), scale)
        mask = mem.class_mask(jnp.asarray(labels), CLASSES, SLOTS)
        return mem.read(mem.masked_address(weights, mask, 1e-12), memory)

    norms = np.maximum(np.linalg.norm(z, axis=1), 1e-12)[:, None] * np.linalg.norm(memory, axis=1)
    mask = np.eye(CLASSES)[labels].repeat(SLOTS, axis=1)
    weights = addressed(softmax(scale * (z @ memory.T) / norms), mask, 1e-12, "shrink_mask")
    arguments = jnp.float32(z), jnp.float32(memory)
    np.testing.assert_allclose(jax.jit(own)(*arguments), weights @ memory, rtol=1e-5, atol=1e-6)
    if not z[-1].any():
        return  # at zero the gradient in z has the size 1e12
    gradients = [
        jax.jit(jax.grad(lambda z, m, f=f: jnp.sum(g * f(z, m)), argnums=(0, 1)))(*arguments)
        for f in (own, whole)
    ]
    for found, expected in zip(*gradients, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_shrinking_that_does_nothing_is_known_from_its_settings():
    for threshold, scale, nothing in ((1e-12, 1.0, True), (2e-3, 1.0, False), (1e-12, 8.0, False)):
        assert mem.shrinks_nothing(threshold, scale, 100) is nothing
    # The most uneven address there can be: one row along the latent vector, all others opposite.
    weights = mem.address(jnp.full((1, 100), -1.0).at[0, 0].set(1.0), 2.0)
    assert mem.shrinks_nothing(1e-5, 2.0, 100)
    np.testing.assert_allclose(mem.hard_shrink(weights, 1e-5), weights, rtol=1e-6)


def test_reading_is_the_weighted_sum_of_the_rows():
    memory = jnp.asarray([[1.0, 0.0], [0.0, 2.0], [4.0, 4.0]])
    weights = jnp.asarray([[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]])
    np.testing.assert_array_equal(mem.read(weights, memory), [[0.5, 1], [3, 3.5]])


def test_active_rows_counts_the_weights_above_zero():
    counts = mem.active_rows(jnp.asarray([[0.0, 0.2, 0.8], [0.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))
    np.testing.assert_array_equal(counts, [2, 1, 0])
    assert counts.dtype == jnp.int32


# --- zeros ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "at"),
    [
        (mem.normalise, jnp.zeros((2, SIZE))),
        (lambda z: mem.cosine_logits(z, jnp.ones((ROWS, SIZE))), jnp.zeros((2, SIZE))),
        (lambda m: mem.cosine_logits(jnp.ones((2, SIZE)), m), jnp.zeros((ROWS, SIZE))),
        (lambda m: mem.cosine_logits(jnp.zeros((2, SIZE)), m), jnp.zeros((ROWS, SIZE))),
        (mem.address, jnp.zeros((2, ROWS))),
        (lambda w: mem.hard_shrink(w, 0.0), jnp.zeros((2, ROWS))),
        (lambda w: mem.hard_shrink(w, 1e-12), jnp.zeros((2, ROWS))),
        (lambda w: mem.hard_shrink(w, 0.125), jnp.full((2, ROWS), 0.125)),
        (lambda t: mem.hard_shrink(jnp.full((2, ROWS), 0.125), t), jnp.asarray(0.125)),
        (mem.renormalise, jnp.zeros((2, ROWS))),
        (lambda w: mem.read(w, jnp.zeros((ROWS, SIZE))), jnp.zeros((2, ROWS))),
    ],
)
def test_nothing_is_nan_at_zero_forward_or_backward(function, at):
    value, pullback = jax.vjp(function, at)
    (gradient,) = pullback(jnp.ones_like(value))
    assert np.isfinite(value).all()
    assert np.isfinite(gradient).all()


@functools.partial(jax.jit, static_argnums=(4, 5))
@functools.partial(jax.value_and_grad, argnums=(0, 1, 2))
def read_out_error(z, memory, mask, threshold, order, identity_gradient):
    """The whole of the addressing, with its gradients in the vectors, the rows and the mask."""
    weights = mem.address(mem.cosine_logits(z, memory))
    weights = mem.masked_address(
        weights, mask, threshold, order=order, identity_gradient=identity_gradient
    )
    return jnp.sum(jnp.square(mem.read(weights, memory) - 1.0))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("identity_gradient", [False, True])
@pytest.mark.parametrize("threshold", [0.0, 1e-12, 1 / ROWS, 2.0])
@pytest.mark.parametrize("labels", [jnp.asarray([0, 2]), jnp.eye(CLASSES)[jnp.asarray([0, 2])]])
def test_addressing_with_zero_vectors_has_a_finite_read_out_and_gradient(
    order, identity_gradient, threshold, labels
):
    z = jnp.zeros((2, SIZE)).at[1, 0].set(1.0)
    memory = jnp.ones((ROWS, SIZE)).at[0].set(0.0).at[-1].set(0.0)
    mask = mem.class_mask(labels, CLASSES, SLOTS)
    value, gradients = read_out_error(z, memory, mask, threshold, order, identity_gradient)
    assert np.isfinite(value)
    assert all(np.isfinite(g).all() for g in gradients)


# --- rows ----------------------------------------------------------------------------------------


def test_rows_are_shared_equally_between_the_classes():
    assert mem.rows_per_class(500, 10) == 50
    assert mem.rows_per_class(10, 10) == 1


def test_rows_fewer_than_the_classes_are_refused():
    with pytest.raises(InputError, match="memory rows 9 are fewer than the 10 classes; give at"):
        mem.rows_per_class(9, 10)


def test_rows_not_divisible_by_the_classes_are_refused_with_the_nearest_that_are():
    with pytest.raises(InputError, match=r"memory rows 103 are not divisible .* give 100 or 110"):
        mem.rows_per_class(103, 10)


# --- properties ----------------------------------------------------------------------------------


@functools.partial(jax.jit, static_argnames=("order", "complement"))
def from_cosines(logits, scale, labels, threshold, order, complement):
    mask = mem.class_mask(labels, CLASSES, SLOTS)
    mask = 1.0 - mask if complement else mask
    return mem.masked_address(mem.address(logits, scale), mask, threshold, order=order)


cosines = st.lists(st.floats(-1, 1, width=32), min_size=ROWS, max_size=ROWS)


@settings(deadline=None, max_examples=60)
@given(
    logits=cosines,
    scale=st.floats(0, 8),
    label=st.integers(0, CLASSES - 1),
    threshold=st.sampled_from([0.0, 1e-12, 1 / ROWS, 3 / ROWS]) | st.floats(0, 1.5),
    order=st.sampled_from(ORDERS),
    complement=st.booleans(),
)
def test_weights_are_non_negative_and_sum_to_one_or_to_zero(
    logits, scale, label, threshold, order, complement
):
    weights = np.asarray(
        from_cosines(
            jnp.asarray([logits]), scale, jnp.asarray([label]), threshold, order, complement
        )
    )
    outside = np.arange(ROWS) // SLOTS != label
    total = weights.sum()
    assert (weights >= 0).all()
    assert total == 0 or abs(total - 1) < 1e-5
    assert (weights[0, outside != complement] == 0).all()


@settings(deadline=None, max_examples=60)
@given(
    logits=cosines,
    probabilities=st.lists(st.floats(1 / 64, 1, width=32), min_size=CLASSES, max_size=CLASSES),
    order=st.sampled_from(ORDERS),
)
def test_a_soft_mask_blends_the_classes_in_proportion_to_probability_times_weight(
    logits, probabilities, order
):
    p = np.asarray([probabilities]) / np.sum(probabilities)
    joint = softmax(np.asarray([logits])) * p.repeat(SLOTS, axis=1)
    actual = from_cosines(jnp.asarray([logits]), 1.0, jnp.float32(p), 1e-12, order, False)
    np.testing.assert_allclose(actual, joint / joint.sum(), rtol=1e-4)
