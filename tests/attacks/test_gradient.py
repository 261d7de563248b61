"""FGSM, BIM and PGD against known optima and a plain numpy implementation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.attacks import BIM, FGSM, MIFGSM, PGD, RFGSM, balls, presets
from memdef_jax.checks import InputError

pytestmark = pytest.mark.usefixtures("quick_compile")

KEY = jax.random.key(7)


def test_fgsm_is_optimal_on_a_linear_model(linear_problem):
    model, x, y = linear_problem(classes=2)
    adversarial = FGSM(eps=0.6, early_stop=False)(model, x, y)
    w = np.asarray(model.w)
    direction = np.sign(w[:, 1] - w[:, 0]) * np.where(np.asarray(y) == 0, 1, -1)[:, None]
    expected = np.clip(np.asarray(x) + np.float32(0.6) * direction.reshape(x.shape), 0, 1)
    np.testing.assert_allclose(adversarial, expected, atol=1e-6)


@pytest.mark.parametrize("batch", [1, 3, 8])
def test_l2_pgd_needs_the_distance_to_the_hyperplane_and_no_more(linear_problem, batch):
    model, x, y = linear_problem(batch, classes=2, shape=(7, 3, 1))
    logits, rows = np.asarray(model(x)), np.arange(batch)
    distance = (logits[rows, y] - logits[rows, 1 - y]) / np.sqrt(2)  # columns are orthonormal
    enough = PGD(norm="l2", eps=distance * 1.01, step_size=distance * 0.3, steps=20)
    less = PGD(norm="l2", eps=distance * 0.99, step_size=distance * 0.3, steps=20)
    assert enough.run(model, x, y, key=KEY).success.all()
    assert not less.run(model, x, y, key=KEY).success.any()


@pytest.mark.parametrize("norm", ["linf", "l2"])
@pytest.mark.parametrize("targeted", [False, True])
def test_agrees_with_plain_numpy(mlp_problem, norm, targeted):
    model, x, y = mlp_problem()
    labels = (y + 1) % 4 if targeted else y
    eps, rate, steps = 0.2, 0.07, 5
    attack = PGD(
        norm=norm, eps=eps, step_size=rate, steps=steps, targeted=targeted, early_stop=False
    )
    keys = jax.vmap(lambda i: jax.random.fold_in(jax.random.fold_in(KEY, i), 0))(jnp.arange(8))
    start = balls.random_start(x, jnp.full(8, eps), norm, keys)
    expected = numpy_pgd(model, x, labels, start, norm, eps, rate, steps, targeted)
    result = attack.run(model, x, labels, key=KEY)
    np.testing.assert_allclose(result.images, expected, atol=1e-5)
    hit = np.argmax(model(result.images), -1) == labels
    np.testing.assert_array_equal(result.success, hit if targeted else ~hit)


def numpy_pgd(model, x, y, start, norm, eps, rate, steps, targeted):
    """PGD on the one-hidden-layer network in float64, gradients by hand."""
    w1, w2 = np.asarray(model.w1, np.float64), np.asarray(model.w2, np.float64)
    x, z = np.asarray(x, np.float64), np.asarray(start, np.float64)
    flat = (len(x), -1)
    for _ in range(steps):
        hidden = z.reshape(flat) @ w1
        logits = np.maximum(hidden, 0) @ w2
        p = np.exp(logits - logits.max(1, keepdims=True))
        p = p / p.sum(1, keepdims=True) - np.eye(w2.shape[1])[np.asarray(y)]
        gradient = ((p @ w2.T) * (hidden > 0)) @ w1.T * (-1 if targeted else 1)
        if norm == "linf":
            delta = z - x + rate * np.sign(gradient).reshape(x.shape)
            delta = np.clip(delta, -eps, eps)
        else:
            gradient = gradient / np.linalg.norm(gradient, axis=1, keepdims=True)
            delta = z - x + rate * gradient.reshape(x.shape)
            size = np.linalg.norm(delta.reshape(flat), axis=1)[:, None, None, None]
            delta = delta * np.minimum(1, eps / size)
        z = np.clip(x + delta, 0, 1)
    return z


def softmax(z):
    z = np.exp(z - z.max(-1, keepdims=True))
    return z / z.sum(-1, keepdims=True)


def numpy_slopes(loss, logits, y, clean, targeted):
    """Gradient of what the attacker raises with respect to float64 logits, by hand."""
    rows, eye = np.arange(len(y)), np.eye(logits.shape[1])
    order = np.argsort(-logits, axis=1)
    sorted_logits = np.take_along_axis(logits, order, axis=1)
    if loss == "cross_entropy":
        slopes = softmax(logits) - eye[y]
    elif loss == "kl":
        slopes = softmax(logits) - softmax(clean)
    elif loss == "margin":
        slopes = eye[np.where(order[:, 0] == y, order[:, 1], order[:, 0])] - eye[y]
    elif targeted:  # DLR, by the quotient rule
        label = clean.argmax(1)
        top = logits[rows, y] - logits[rows, label]
        scale = sorted_logits[:, 0] - (sorted_logits[:, 2] + sorted_logits[:, 3]) / 2
        inner = eye[order[:, 0]] - (eye[order[:, 2]] + eye[order[:, 3]]) / 2
        return (eye[y] - eye[label]) / scale[:, None] - inner * (top / scale**2)[:, None]
    else:
        other = np.where(order[:, 0] == y, order[:, 1], order[:, 0])
        top = logits[rows, other] - logits[rows, y]
        scale = sorted_logits[:, 0] - sorted_logits[:, 2]
        inner = eye[order[:, 0]] - eye[order[:, 2]]
        slopes = (eye[other] - eye[y]) / scale[:, None] - inner * (top / scale**2)[:, None]
    return -slopes if targeted else slopes


def numpy_climb(model, x, y, start, eps, rate, steps, loss="cross_entropy", decay=None, aim=False):
    """Signed-gradient ascent in the Linf ball on the one-hidden-layer network, in float64."""
    w1, w2 = np.asarray(model.w1, np.float64), np.asarray(model.w2, np.float64)
    y, x, z = np.asarray(y), np.asarray(x, np.float64), np.asarray(start, np.float64)
    clean = np.maximum(x.reshape(len(x), -1) @ w1, 0) @ w2
    velocity = 0.0
    for _ in range(steps):
        hidden = z.reshape(len(x), -1) @ w1
        slopes = numpy_slopes(loss, np.maximum(hidden, 0) @ w2, y, clean, aim)
        gradient = (((slopes @ w2.T) * (hidden > 0)) @ w1.T).reshape(x.shape)
        if decay is not None:
            size = np.abs(gradient).sum((1, 2, 3), keepdims=True)
            velocity = gradient = decay * velocity + gradient / size
        z = z + rate * np.sign(gradient)
        z = np.clip(x + np.clip(z - x, -eps, eps), 0, 1)
    return z


def sample_keys(batch):
    """The key of each sample in the first run."""
    one = lambda i: jax.random.fold_in(jax.random.fold_in(KEY, i), 0)  # noqa: E731
    return jax.vmap(one)(jnp.arange(batch))


@pytest.mark.parametrize(
    ("loss", "targeted"),
    [("margin", False), ("kl", False), ("dlr", False), ("dlr", True), ("margin", True)],
)
def test_each_objective_agrees_with_plain_numpy(mlp_problem, loss, targeted):
    model, x, y = mlp_problem(classes=5)
    labels = (y + 1) % 5 if targeted else y
    attack = PGD(eps=0.1, step_size=0.03, steps=4, loss=loss, targeted=targeted, early_stop=False)
    start = balls.random_start(x, jnp.full(8, 0.1), "linf", sample_keys(8))
    expected = numpy_climb(model, x, labels, start, 0.1, 0.03, 4, loss, aim=targeted)
    result = attack.run(model, x, labels, key=KEY)
    np.testing.assert_allclose(result.images, expected, atol=1e-5)
    assert result.notes == ()


@pytest.mark.parametrize("decay", [0.0, 0.7])
def test_mifgsm_agrees_with_plain_numpy(mlp_problem, decay):
    model, x, y = mlp_problem()
    attack = MIFGSM(eps=0.2, step_size=0.03, steps=8, decay=decay, early_stop=False)
    expected = numpy_climb(model, x, y, x, 0.2, 0.03, 8, decay=decay)
    np.testing.assert_allclose(attack(model, x, y), expected, atol=1e-5)


@pytest.mark.parametrize("noise", ["sign", "gaussian"])
def test_rfgsm_agrees_with_plain_numpy(mlp_problem, noise):
    model, x, y = mlp_problem()
    draw = jax.vmap(lambda key: jax.random.normal(key, x.shape[1:]))(sample_keys(8))
    step = np.sign(draw) if noise == "sign" else np.asarray(draw)
    start = np.clip(np.asarray(x) + 0.04 * step, 0, 1)
    expected = numpy_climb(model, x, y, start, 0.1, 0.06, 1)
    attack = RFGSM(eps=0.1, alpha=0.04, noise=noise, early_stop=False)
    result = attack.run(model, x, y, key=KEY)
    np.testing.assert_allclose(result.images, expected, atol=1e-5)
    np.testing.assert_array_equal(result.success, np.argmax(model(result.images), -1) != y)


def test_dlr_gives_way_to_the_margin_below_four_classes_and_says_so(linear_problem):
    model, x, y = linear_problem(classes=3)
    result = BIM(eps=0.05, step_size=0.02, steps=4, loss="dlr").run(model, x, y)
    margin = BIM(eps=0.05, step_size=0.02, steps=4, loss="margin").run(model, x, y)
    assert len(result.notes) == 1
    assert "'dlr' is undefined for 3 classes" in result.notes[0]
    assert margin.notes == ()
    np.testing.assert_array_equal(result.images, margin.images)


def test_what_cannot_be_combined_is_refused(linear_problem):
    model, x, y = linear_problem()
    with pytest.raises(InputError, match=r"alpha 0\.2 is above eps 0\.1"):
        RFGSM(eps=0.1, alpha=0.2)(model, x, y, key=KEY)
    with pytest.raises(InputError, match="noise 'uniform' is unknown"):
        RFGSM(eps=0.1, alpha=0.05, noise="uniform")
    with pytest.raises(InputError, match="'kl' knows no target"):
        PGD(eps=0.1, step_size=0.1, loss="kl", targeted=True)


def test_bim_is_pgd_without_random_start(mlp_problem):
    model, x, y = mlp_problem()
    bim = BIM(eps=0.1, step_size=0.15, steps=6)(model, x, y)
    pgd = PGD(eps=0.1, step_size=0.15, steps=6, random_start=False)(model, x, y)
    np.testing.assert_array_equal(bim, pgd)


@pytest.mark.parametrize("attack", [FGSM(eps=0.1), PGD(eps=0.1, step_size=0.03, steps=3)])
def test_images_already_misclassified_are_returned_as_they_are(mlp_problem, attack):
    model, x, y = mlp_problem()
    result = attack.run(model, x, (y + 1) % 4, key=KEY)
    assert result.success.all()
    np.testing.assert_array_equal(result.images, x)
    np.testing.assert_array_equal(result.norm, 0)
    np.testing.assert_array_equal(result.steps, 0)


def test_a_fooled_sample_stops_at_its_first_fooling_iterate(linear_problem):
    model, x, y = linear_problem(classes=2)
    result = BIM(eps=0.3, step_size=0.02, steps=20).run(model, x, y)
    assert result.success.all()
    # One iterate earlier, the model was still right.
    shorter = balls.per_image(result.norm - 0.02)
    delta = jnp.clip(result.images - x, -shorter, shorter)
    np.testing.assert_array_equal(np.argmax(model(x + delta), -1), y)
    np.testing.assert_allclose(result.norm, 0.02 * np.asarray(result.steps), atol=1e-6)
    np.testing.assert_array_equal(result.backward, np.asarray(result.steps) + (result.steps < 20))


@pytest.mark.parametrize("norm", ["linf", "l2"])
def test_targeted_reaches_the_target(linear_problem, norm):
    model, x, y = linear_problem()
    target = (y + 3) % 10
    attack = PGD(norm=norm, eps=1.0, step_size=0.1, steps=40, targeted=True, loss="margin")
    result = attack.run(model, x, target, key=KEY)
    assert result.success.all()
    np.testing.assert_array_equal(np.argmax(model(result.images), -1), target)


def test_more_restarts_never_leave_more_samples_standing(mlp_problem):
    model, x, y = mlp_problem(batch=16)
    standing = []
    for restarts in (1, 4):
        attack = PGD(eps=0.05, step_size=0.05, steps=1, restarts=restarts)
        standing.append(int((~attack.run(model, x, y, key=KEY).success).sum()))
    assert standing[0] > standing[-1]


def test_without_early_stop_restarts_keep_the_highest_loss(mlp_problem):
    model, x, y = mlp_problem()

    def loss(restarts):
        attack = PGD(eps=0.1, step_size=0.05, steps=2, restarts=restarts, early_stop=False)
        images = attack(model, x, y, key=KEY)
        return -np.asarray(jax.nn.log_softmax(model(images))[np.arange(len(y)), y])

    assert (loss(4) >= loss(1)).all()
    assert (loss(4) > loss(1)).any()


def test_random_starts_are_uniform_in_the_ball():
    clean = jnp.full((4000, 2, 1, 1), 0.5)
    eps, keys = jnp.full(4000, 0.1), jax.random.split(KEY, 4000)
    linf = balls.random_start(clean, eps, "linf", keys) - clean
    np.testing.assert_allclose(jnp.mean(jnp.abs(linf)), 0.05, rtol=0.05)
    radius = balls.length(balls.random_start(clean, eps, "l2", keys) - clean, "l2")
    np.testing.assert_allclose(jnp.mean((radius / 0.1) ** 2), 0.5, rtol=0.05)  # U^(1/2) squared
    assert radius.max() <= 0.1 * 1.0001


def test_l2_ascent_survives_tiny_zero_and_nan_gradients():
    gradient = jnp.stack([jnp.full((2, 2, 1), v) for v in (0.0, 1e-30, jnp.nan, jnp.inf)])
    step = balls.ascent(gradient, "l2")
    np.testing.assert_allclose(balls.length(step, "l2"), [0, 1, 0, 0], rtol=1e-5)
    np.testing.assert_array_equal(balls.ascent(gradient, "linf")[:, 0, 0, 0], [0, 1, 0, 0])


def test_presets_have_the_papers_numbers():
    assert presets.named("bim", 9 / 255) == BIM(eps=9 / 255, step_size=0.05, steps=10)
    pgd = presets.named("pgd", 9 / 255)
    assert (pgd.steps, pgd.step_size, pgd.random_start) == (40, 0.0075, True)
    assert presets.named("fgsm", 0.1) == FGSM(eps=0.1)
    denoised = presets.named("pgd", 0.2, "feature_denoiser")
    assert (denoised.step_size, denoised.steps, denoised.random_start) == (0.1, 100, True)
    cw = presets.named("cw")
    assert (cw.search_steps, cw.steps, cw.learning_rate, cw.initial_const) == (5, 1000, 5e-3, 1e-2)
    vae = presets.named("cw", paper="defense_vae")
    settings = vae.search_steps, vae.steps, vae.learning_rate, vae.initial_const
    assert settings == (1, 100, 10.0, 100.0)
    assert presets.named("rfgsm", 0.3, "defense_vae") == RFGSM(eps=0.3, alpha=0.05, noise="sign")
    assert presets.named("rfgsm", 0.3, "mad_vae") == RFGSM(eps=0.3, alpha=0.05, noise="gaussian")
    for name in ("pgd", "mifgsm"):
        attack = presets.named(name, 0.3, "mad_vae")
        assert (attack.steps, attack.step_size) == (40, 0.01)
    assert presets.named("cw", paper="mad_vae").confidence == 10.0
    assert presets.named("single_pixel", paper="mad_vae").steps == 100
    with pytest.raises(InputError, match="paper 'magnet' is unknown; use one of memory_defense"):
        presets.named("fgsm", 0.1, "magnet")
