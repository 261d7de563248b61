"""Training of classifier-A: which samples are attacked, what the loss is, what is refused."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.attacks import PGD
from memdef_jax.checks import InputError
from memdef_jax.defenses import PRESETS, SelectorConfig, preset
from memdef_jax.defenses.adversarial_training import adversarial_places, check_places
from memdef_jax.defenses.selector import adam, selector_loss
from memdef_jax.nn import SmallCNN
from memdef_jax.training import AXIS


@pytest.mark.parametrize("clean_share", [0.0, 0.1, 0.25, 0.3, 0.5, 0.75, 0.9, 1.0])
@pytest.mark.parametrize("size", [1, 7, 16, 100])
def test_attacked_samples_are_evenly_spread_in_the_asked_share(size, clean_share):
    places = adversarial_places(size, clean_share)
    assert len(places) == int(size * (1 - clean_share) + 1e-9)
    assert (np.diff(places) > 0).all()
    assert ((places >= 0) & (places < size)).all()
    gaps = np.diff(places)
    assert not gaps.size or gaps.max() - gaps.min() <= 1
    # Every beginning of the batch holds its share, up to one sample.
    counts = np.cumsum(np.isin(np.arange(size), places))
    assert (np.abs(counts - (1 - clean_share) * np.arange(1, size + 1)) <= 1 + 1e-6).all()


@pytest.mark.parametrize("clean_share", [0.0, 0.25, 0.5, 0.75, 1.0])
@pytest.mark.parametrize("devices", [2, 4, 8])
def test_attacked_samples_do_not_depend_on_the_cut_over_devices(clean_share, devices):
    size, share = 32, 32 // devices
    check_places(size, clean_share, devices)
    local = adversarial_places(share, clean_share)
    joined = np.concatenate([device * share + local for device in range(devices)])
    np.testing.assert_array_equal(joined, adversarial_places(size, clean_share))


def test_a_share_that_eight_devices_cannot_cut_alike_is_refused():
    check_places(8, 0.5, 1)
    with pytest.raises(InputError, match=r"clean share 0\.5 of batch size 8 has 0\.5 images"):
        check_places(8, 0.5, 8)


def run(config, params, batch, keys, in_loop):
    loss_fn = selector_loss(SmallCNN(10), config, in_loop)
    mapped = jax.vmap(loss_fn, (None, None, 0, 0), axis_name=AXIS)
    batch, keys = jax.tree.map(lambda a: a[None], (batch, keys))
    loss, (stats, metrics) = mapped(params, {}, batch, keys)
    return float(loss[0]), stats, {name: float(value[0]) for name, value in metrics.items()}


def cross_entropy(logits, labels):
    logits = np.asarray(logits, np.float64)
    return (np.log(np.exp(logits).sum(1)) - logits[np.arange(len(labels)), labels]).mean()


def test_the_benign_loss_is_the_mean_cross_entropy_of_bytes_and_of_floats_alike(
    defense, digits, images
):
    x, y = images
    params = defense.variables["selector"]["params"]
    logits = SmallCNN(10).apply({"params": params}, x)
    keys = jax.random.split(jax.random.key(0), len(x))
    expected = cross_entropy(logits, np.asarray(y))
    as_bytes = {"image": jnp.asarray(digits.test.images[0:360:60]), "label": y}
    for batch in (as_bytes, {"image": x, "label": y}):
        loss, _, metrics = run(SelectorConfig(), params, batch, keys, in_loop=False)
        np.testing.assert_allclose(loss, expected, rtol=1e-5)
        np.testing.assert_allclose(metrics["cross_entropy"], expected, rtol=1e-5)
        assert metrics["accuracy"] == pytest.approx(
            (np.asarray(logits).argmax(1) == np.asarray(y)).mean()
        )


def test_the_in_loop_loss_is_that_of_a_batch_attacked_at_its_places(defense, images):
    x, y = images
    params = defense.variables["selector"]["params"]
    config = SelectorConfig(eps=0.2, step_size=0.1, attack_steps=2, clean_share=0.5)
    keys = jax.random.split(jax.random.key(0), len(x))
    loss, _, _ = run(config, params, {"image": x, "label": y}, keys, in_loop=True)

    attack = PGD(eps=0.2, step_size=0.1, steps=2, random_start=True, early_stop=False)
    places = np.array([1, 3, 5])
    drawn = jax.vmap(jax.random.fold_in, (0, None))(keys, 1)[places]
    model = defense.selector
    attacked = x.at[places].set(attack(model, x[places], y[places], key=drawn))
    assert (np.asarray(attacked != x).any((1, 2, 3)) == [0, 1, 0, 1, 0, 1]).all()
    np.testing.assert_allclose(loss, cross_entropy(model(attacked), np.asarray(y)), rtol=1e-5)
    clean = cross_entropy(model(x), np.asarray(y))
    assert loss > clean  # it was attacked, not helped


@pytest.mark.parametrize("cosine", [True, False])
def test_adam_is_that_of_its_paper_with_decay_in_the_gradient(cosine):
    rate, steps, decay = 0.1, 4, 0.01
    optimizer = adam(rate, steps, decay, cosine)
    rng = np.random.default_rng(0)
    w = rng.normal(size=3)
    params = jnp.float32(w)
    state = optimizer.init(params)
    m = v = np.zeros(3)
    for t in range(1, steps + 1):
        raw = rng.normal(size=3)
        updates, state = optimizer.update(jnp.float32(raw), state, params)
        params = params + updates
        g = raw + decay * w
        m, v = 0.9 * m + 0.1 * g, 0.999 * v + 0.001 * g * g
        now = rate * (1 + np.cos(np.pi * (t - 1) / steps)) / 2 if cosine else rate
        w = w - now * (m / (1 - 0.9**t)) / (np.sqrt(v / (1 - 0.999**t)) + 1e-8)
        np.testing.assert_allclose(params, w, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"recipe": "madry"}, "selector recipe 'madry' is unknown"),
        ({"eps": -0.1}, r"eps -0\.1 is outside"),
        ({"eps": 1.5}, r"eps 1\.5 is outside"),
        ({"eps": float("nan")}, "eps nan is outside"),
        ({"step_size": -0.1}, r"step_size -0\.1"),
        ({"clean_share": 1.1}, r"clean share 1\.1 is outside"),
        ({"clean_share": float("nan")}, "clean share nan is outside"),
        ({"epochs": 0}, "epochs 0 is below 1"),
        ({"benign_epochs": 0}, "benign_epochs 0 is below 1"),
        ({"attack_steps": 0}, "attack_steps 0 is below 1"),
        ({"learning_rate": float("nan")}, "learning_rate nan"),
        ({"weight_decay": -1.0}, "weight_decay -1"),
        ({"recipe": "offline", "batch_size": 15}, "batch size 15 cannot be half adversarial"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_any_work(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        SelectorConfig(**changes)


def test_an_unknown_preset_is_refused_by_name():
    with pytest.raises(InputError, match="preset 'fast' is unknown; use one of quick, paper, rob"):
        preset("fast", (28, 28, 1))


@pytest.mark.parametrize("name", PRESETS["memory_defense"])
@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3)])
def test_every_preset_describes_networks_for_both_shapes(name, shape):
    config = preset(name, shape)
    assert config.spec(shape, 10).image_shape == shape
    assert dataclasses.replace(config, seed=1) != config


def test_the_paper_preset_has_the_papers_settings():
    config = preset("paper", (28, 28, 1))
    assert (config.selector.architecture, config.selector.recipe) == ("resnet50", "offline")
    assert (config.selector.attack_steps, config.selector.step_size) == (40, 0.0075)
    stack = config.stack
    assert (stack.memory_rows, stack.softmax_scale, stack.shrink_order) == (500, 1.0, "shrink_mask")
    assert (stack.beta, stack.noise, stack.learning_rate, stack.cosine) == (1e-4, 1e-4, 1e-4, False)
    assert (stack.entropy_reduction, stack.mse_reduction) == ("sum", "mean")
