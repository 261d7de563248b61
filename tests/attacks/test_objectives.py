"""Objectives against numpy, their invariances, and what they say where they are undefined."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.attacks import objectives
from memdef_jax.checks import InputError

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(6, 5)).astype(np.float32) * 3
LABELS = np.array([0, 1, 2, 3, 4, 0])
TARGETS = np.array([1, 2, 3, 4, 0, 2])


def softmax(z):
    e = np.exp(z - z.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def each(function):
    return [function(*row) for row in zip(LOGITS.astype(np.float64), LABELS, TARGETS, strict=True)]


def test_cross_entropy_and_margin():
    expected = each(lambda z, y, t: -np.log(softmax(z)[y]))
    np.testing.assert_allclose(objectives.cross_entropy(LOGITS, LABELS), expected, rtol=1e-5)
    expected = each(lambda z, y, t: max(np.delete(z, y)) - z[y])
    np.testing.assert_allclose(objectives.margin(LOGITS, LABELS), expected, rtol=1e-5)
    expected = each(lambda z, y, t: z[t] - z[y])
    np.testing.assert_allclose(
        objectives.targeted_margin(LOGITS, LABELS, TARGETS), expected, rtol=1e-5
    )


def test_dlr():
    def ratio(z, y, t):
        top = np.sort(z)[::-1]
        return (max(np.delete(z, y)) - z[y]) / (top[0] - top[2])

    def towards(z, y, t):
        top = np.sort(z)[::-1]
        return (z[t] - z[y]) / (top[0] - (top[2] + top[3]) / 2)

    np.testing.assert_allclose(objectives.dlr(LOGITS, LABELS), each(ratio), rtol=1e-4)
    got = objectives.targeted_dlr(LOGITS, LABELS, TARGETS)
    np.testing.assert_allclose(got, each(towards), rtol=1e-4)
    for change in (lambda z: 100 * z, lambda z: z + 7):
        np.testing.assert_allclose(objectives.dlr(change(LOGITS), LABELS), each(ratio), rtol=1e-3)


def test_kl():
    p, q = softmax(LOGITS[::-1]), softmax(LOGITS)
    expected = (p * np.log(p / q)).sum(-1)
    got = objectives.kl_divergence(jnp.asarray(LOGITS), jnp.asarray(LOGITS[::-1]))
    np.testing.assert_allclose(got, expected, rtol=1e-4)
    np.testing.assert_allclose(objectives.kl_divergence(LOGITS, LOGITS), 0, atol=1e-6)


@pytest.mark.parametrize("loss", objectives.LOSSES)
def test_gradients_of_constant_logits_are_finite(loss):
    flat = jnp.ones((2, 4))
    value = lambda z: objectives.gain(loss, z, jnp.array([0, 1]), False, flat).sum()  # noqa: E731
    assert np.isfinite(jax.grad(value)(flat)).all()


def test_a_targeted_gain_lowers_the_objective_of_the_target():
    reference = jnp.asarray(LOGITS)
    for loss in ("cross_entropy", "margin"):
        away = objectives.gain(loss, reference, TARGETS, False)
        np.testing.assert_allclose(objectives.gain(loss, reference, TARGETS, True), -away)
    got = objectives.gain("dlr", reference, jnp.asarray(TARGETS), True, reference)
    best = LOGITS.argmax(-1)
    np.testing.assert_allclose(got, objectives.targeted_dlr(LOGITS, best, TARGETS), rtol=1e-5)


def test_other_classes_are_ranked_without_the_label():
    order = each(lambda z, y, t: [c for c in np.argsort(-z) if c != y])
    np.testing.assert_array_equal(objectives.likeliest_others(LOGITS, LABELS), order)
    first = objectives.likeliest_others(LOGITS, LABELS, 2)
    np.testing.assert_array_equal(first, np.array(order)[:, :2])


def test_too_few_classes_are_said():
    assert objectives.for_classes("dlr", 4) == ("dlr", ())
    loss, notes = objectives.for_classes("dlr", 3)
    assert loss == "margin"
    assert "undefined for 3 classes" in notes[0]
    assert objectives.targets_for_classes(9, 10) == (9, ())
    targets, notes = objectives.targets_for_classes(9, 8)
    assert targets == 7
    assert "7 other classes" in notes[0]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: objectives.check_objective("hinge"), "'hinge' is unknown"),
        (lambda: objectives.check_objective("kl", True), "knows no target"),
        (lambda: objectives.check_targets(-1, False), "targets -1"),
        (lambda: objectives.check_targets(9, True), "use one of the two"),
    ],
)
def test_what_cannot_be_is_refused(call, words):
    with pytest.raises(InputError, match=words):
        call()
