"""APGD against a reference in numpy, the optimum of linear models, and its own rules."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.attacks import balls
from memdef_jax.attacks.apgd import APGD

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(5)
whole = jax.jit(lambda attack, model, x, y, key: attack.run(model, x, y, key=key))


def loss_and_gradient(w1, w2, z, y, loss):
    """Cross-entropy or DLR of a one-hidden-layer network, differentiated by hand."""
    hidden = z @ w1
    logits = np.maximum(hidden, 0) @ w2
    if loss == "cross_entropy":
        p = np.exp(logits - logits.max())
        p /= p.sum()
        value, upstream = -np.log(p[y]), p.copy()
        upstream[y] -= 1
    else:
        order = np.argsort(-logits)
        other = order[0] if order[0] != y else order[1]
        top, third = logits[order[0]], logits[order[2]]
        scale, gap = top - third, logits[other] - logits[y]
        value, upstream = gap / scale, np.zeros_like(logits)
        upstream[other] += 1 / scale
        upstream[y] -= 1 / scale
        upstream[order[0]] -= gap / scale**2
        upstream[order[2]] += gap / scale**2
    return value, (upstream @ w2.T * (hidden > 0)) @ w1.T


def reference(w1, w2, x, y, eps, norm, steps, loss):
    """Algorithm 1 of arXiv 2003.01690 for one flat image, from the image itself, in float64."""

    def project(z):
        delta = z - x
        if norm == "linf":
            delta = np.clip(delta, -eps, eps)
        else:
            delta *= min(1.0, eps / max(np.linalg.norm(delta), 1e-30))
        return np.clip(x + delta, 0, 1)

    windows, width = [], int(0.22 * steps)
    while sum(windows) < steps:
        windows.append(width)
        width = max(width - int(0.03 * steps), int(0.06 * steps))
    checkpoints = set(np.cumsum(windows))
    f, g = loss_and_gradient(w1, w2, x, y, loss)
    z, before = x.copy(), x.copy()
    best, best_f, best_g, checked = x.copy(), f, g, f
    losses, size, halved, last = [f], 2 * eps, True, 0
    for k in range(1, steps + 1):
        direction = np.sign(g) if norm == "linf" else g / max(np.linalg.norm(g), 1e-30)
        a = 1.0 if k == 1 else 0.75
        moved = project(z + size * direction)
        z, before = project(z + a * (moved - z) + (1 - a) * (z - before)), z
        f, g = loss_and_gradient(w1, w2, z, y, loss)
        losses.append(f)
        if f > best_f:
            best, best_f, best_g = z.copy(), f, g
        if k in checkpoints:
            rises = sum(losses[i] > losses[i - 1] for i in range(last + 1, k + 1))
            halve = rises <= 0.75 * (k - last) or (not halved and checked >= best_f)
            checked, halved, last = best_f, halve, k
            if halve:
                size, z, g = size / 2, best.copy(), best_g
    return best, best_f


@pytest.mark.parametrize("loss", ["cross_entropy", "dlr"])
@pytest.mark.parametrize(("norm", "eps"), [("linf", 0.04), ("l2", 0.12)])
def test_equals_the_reference(mlp_problem, norm, eps, loss):
    model, x, y = mlp_problem(batch=8)
    attack = APGD(eps=eps, norm=norm, steps=100, random_start=False, loss=loss, early_stop=False)
    images = np.asarray(attack(model, x, y)).reshape(8, -1)
    w1, w2 = (np.asarray(w, np.float64) for w in (model.w1, model.w2))
    close = 0
    for i in range(8):
        clean = np.asarray(x[i], np.float64).ravel()
        image, best = reference(w1, w2, clean, int(y[i]), eps, norm, 100, loss)
        got = loss_and_gradient(w1, w2, images[i].astype(np.float64), int(y[i]), loss)[0]
        np.testing.assert_allclose(got, best, rtol=5e-3)
        close += np.abs(image - images[i]).max() < 1e-4
    assert close >= 7  # rounding may turn one path at a kink of the network


@pytest.mark.parametrize(
    ("classes", "settings", "enough"),
    [
        (2, {}, 1.02),
        (10, {"loss": "dlr"}, 1.2),  # follows the runner-up, which need not be the nearest class
        (10, {"loss": "dlr", "targets": 9}, 1.02),
    ],
)
@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_fools_a_linear_model_just_beyond_the_optimum_and_never_before(
    linear_problem, norm, classes, settings, enough
):
    model, x, y = linear_problem(batch=8, classes=classes, low=0.45, high=0.55)
    w, logits = np.asarray(model.w, np.float64), np.asarray(model(x), np.float64)
    distance = np.full(8, np.inf)
    for i in range(8):
        for k in set(range(classes)) - {int(y[i])}:
            slope = w[:, k] - w[:, int(y[i])]
            dual = np.abs(slope).sum() if norm == "linf" else np.linalg.norm(slope)
            distance[i] = min(distance[i], (logits[i, int(y[i])] - logits[i, k]) / dual)
    distance = distance.astype(np.float32)
    beyond = APGD(eps=distance * enough, norm=norm, **settings)
    assert beyond.run(model, x, y, key=KEY).success.all()
    below = APGD(eps=distance * 0.99, norm=norm, steps=10, **settings)
    assert not below.run(model, x, y, key=KEY).success.any()


@pytest.mark.parametrize("early_stop", [True, False])
def test_eager_equals_whole_loop(mlp_problem, early_stop):
    model, x, y = mlp_problem(batch=20)
    attack = APGD(eps=0.05, steps=20, loss="dlr", targets=3, early_stop=early_stop)
    eager, jitted = attack.run(model, x, y, key=KEY), whole(attack, model, x, y, KEY)
    assert 0 < eager.success.mean() < 1
    for name in ("images", "success", "norm", "run", "steps", "forward", "backward"):
        np.testing.assert_allclose(getattr(eager, name), getattr(jitted, name), atol=1e-5)


def test_starts_touch_the_surface():
    x = jnp.full((16, 5, 4, 3), 0.5)
    keys = jax.random.split(KEY, 16)
    for norm in ("linf", "l2"):
        delta = balls.surface_start(x, jnp.full(16, 0.1), norm, keys) - x
        np.testing.assert_allclose(balls.length(delta, norm), 0.1, rtol=1e-5)
        assert np.unique(np.asarray(delta).reshape(16, -1), axis=0).shape[0] == 16


def test_each_target_is_another_run_and_few_classes_are_noted(linear_problem):
    model, x, y = linear_problem(batch=8, classes=3)
    attack = APGD(eps=0.001, steps=3, loss="dlr", targets=9)
    record = attack.run(model, x, y, key=KEY)
    assert (record.steps == 2 * 3).all()  # two other classes
    assert (record.backward == 2 * 4).all()
    assert len(record.notes) == 2
    assert "'margin' was used" in record.notes[0]


def test_a_target_is_reached(linear_problem):
    model, x, y = linear_problem(batch=8, classes=5)
    target = (y + 2) % 5
    for loss in ("cross_entropy", "dlr", "margin"):
        record = APGD(eps=0.4, steps=30, loss=loss, targeted=True).run(model, x, target, key=KEY)
        assert record.success.all()
        np.testing.assert_array_equal(jnp.argmax(model(record.images), -1), target)
