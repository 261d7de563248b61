"""The pipeline, its surfaces, and what its specification refuses."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.attacks import PGD
from memdef_jax.checks import InputError
from memdef_jax.defenses import MemoryDefense, MemoryDefenseSpec, load, save
from memdef_jax.nn import ClassifierB, SmallCNN
from memdef_jax.nn.autoencoder import ARCHITECTURES, Decoder, Encoder

CLOSE = {"rtol": 1e-4, "atol": 1e-5}


def by_hand(defense, x, mask):
    """Logits and reconstruction through separate modules and a NumPy memory; mask [B, K]."""
    arch = ARCHITECTURES[(28, 28, 1)]
    stack = defense.variables["stack"]
    params, stats = stack["params"]["autoencoder"], stack["batch_stats"]["autoencoder"]

    def part(name):
        return {"params": params[name], "batch_stats": stats[name]}

    z = np.asarray(Encoder(arch).apply(part("encoder"), x), np.float64)
    memory = np.asarray(params["memory"], np.float64)
    cosine = z @ memory.T / np.outer(np.linalg.norm(z, axis=1), np.linalg.norm(memory, axis=1))
    weights = np.exp(defense.spec.softmax_scale * cosine)
    weights /= weights.sum(1, keepdims=True)
    weights *= np.repeat(np.asarray(mask, np.float64), len(memory) // defense.spec.classes, axis=1)
    weights /= weights.sum(1, keepdims=True)
    read = jnp.asarray(weights @ memory, jnp.float32)
    rebuilt = Decoder(arch).apply(part("decoder"), read)
    logits = ClassifierB(10).apply({"params": stack["params"]["classifier_b"]}, rebuilt)
    return logits, rebuilt


def selector_logits(defense, x):
    return SmallCNN(10).apply({"params": defense.variables["selector"]["params"]}, x)


def test_the_pipeline_is_its_parts_composed_by_hand(defense, images):
    x, _ = images
    choice = np.asarray(selector_logits(defense, x)).argmax(1)
    logits, rebuilt = by_hand(defense, x, np.eye(10)[choice])
    np.testing.assert_array_equal(defense.select(x), choice)
    np.testing.assert_allclose(defense(x), logits, **CLOSE)
    np.testing.assert_allclose(defense.reconstruct(x), rebuilt, **CLOSE)
    error = np.square(np.asarray(x) - np.asarray(rebuilt)).mean((1, 2, 3))
    np.testing.assert_allclose(defense.score(x), error, **CLOSE)


@pytest.mark.parametrize("rows", [20, 0])
def test_codes_are_what_the_decoder_rebuilds_and_classifier_b_reads(rows, defense, images):
    if not rows:
        spec = MemoryDefenseSpec(image_shape=(28, 28, 1), classes=10, memory_rows=0)
        defense = MemoryDefense(spec, spec.init(jax.random.key(0)))

    @jax.jit
    def parts(defense, x):
        z = defense.embed(x)
        rebuilt = defense.decode(z)
        return z, rebuilt, defense.reader(rebuilt), defense.reconstruct(x), defense(x)

    z, rebuilt, read, expected, logits = parts(defense, images[0])
    assert z.shape == (6, 1024)
    np.testing.assert_allclose(rebuilt, expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(read, logits, rtol=1e-5, atol=1e-6)


def test_the_surfaces_are_what_their_names_say(defense, images):
    x, y = images
    surfaces = defense.surfaces(x, y)
    logits = selector_logits(defense, x)
    choice = np.eye(10)[np.asarray(logits).argmax(1)]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    expected = {
        "selector": logits,
        "frozen_mask": by_hand(defense, x, choice)[0],
        "frozen_mask_true": by_hand(defense, x, np.eye(10)[np.asarray(y)])[0],
        "soft_mask": by_hand(defense, x, probabilities)[0],
        "straight_through": defense(x),
        "requeried": defense(x),
        "joint": defense(x),
    }
    assert surfaces.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(surfaces[name](x), value, err_msg=name, **CLOSE)


def test_a_hard_mask_is_the_soft_mask_of_a_one_hot(defense, images):
    x, y = images
    np.testing.assert_allclose(
        defense.reconstruct(x, y), defense.reconstruct(x, jax.nn.one_hot(y, 10)), rtol=1e-6
    )


def test_frozen_masks_stay_those_of_the_clean_images(defense, images):
    x, y = images
    frozen = defense.surfaces(x, y)["frozen_mask"]
    np.testing.assert_allclose(
        frozen(1 - x), defense.classify(defense.reconstruct(1 - x, defense.select(x))), **CLOSE
    )


def selector_gradient(surface, x):
    """The largest gradient of a surface with respect to the last weights of its selector."""
    defense = surface.defense
    selector = defense.variables["selector"]

    def total(last):
        params = {**selector["params"], "Dense_1": last}
        variables = {**defense.variables, "selector": {**selector, "params": params}}
        changed = dataclasses.replace(defense, variables=variables)
        return jnp.square(dataclasses.replace(surface, defense=changed)(x)).sum()

    gradient = jax.grad(total)(selector["params"]["Dense_1"])
    return max(float(jnp.abs(leaf).max()) for leaf in jax.tree.leaves(gradient))


def test_gradients_pass_the_selector_where_the_slot_is_chosen_and_not_where_it_is_frozen(
    defense, images
):
    x, y = images
    surfaces = defense.surfaces(x, y)
    assert selector_gradient(surfaces["straight_through"], x) > 0
    assert selector_gradient(surfaces["soft_mask"], x) > 0
    assert selector_gradient(surfaces["frozen_mask"], x) == 0
    assert selector_gradient(surfaces["frozen_mask_true"], x) == 0
    assert selector_gradient(surfaces["requeried"], x) == 0


def test_the_joint_surface_adds_the_gradient_of_the_selectors_margin(defense, images):
    x, y = images
    surfaces = defense.surfaces(x, y)

    def gradient(fn, of_logits):
        return jax.grad(lambda x: of_logits(fn(x)).sum())(x)

    def margin(logits):
        own = jax.nn.one_hot(y, 10, dtype=bool)
        return jnp.where(own, -jnp.inf, logits).max(1) - (logits * own).sum(1)

    pipeline = gradient(surfaces["straight_through"], margin)
    selector = gradient(surfaces["selector"], margin)
    np.testing.assert_allclose(
        gradient(surfaces["joint"], margin), pipeline + selector, rtol=1e-3, atol=1e-5
    )
    half = jnp.array([0, 2])
    joint = surfaces["joint"].take(half)
    np.testing.assert_array_equal(joint.labels, y[half])


def test_straight_through_has_the_gradient_of_the_mask_at_the_hard_choice(defense, images):
    x, y = images
    surface = defense.surfaces(x, y)["straight_through"]

    def total(x):
        return jnp.square(surface(x)).sum()

    def by_chain_rule(x):
        hard = jax.nn.one_hot(defense.select(x), 10)
        value = lambda x, mask: jnp.square(  # noqa: E731
            defense.classify(defense.reconstruct(x, mask, True))
        ).sum()
        through_image, through_mask = jax.grad(value, (0, 1))(x, hard)
        _, pull = jax.vjp(lambda x: jax.nn.softmax(defense.selector(x)), x)
        return through_image + pull(through_mask)[0]

    np.testing.assert_allclose(jax.grad(total)(x), by_chain_rule(x), rtol=1e-3, atol=1e-7)


def test_surfaces_pass_gradients_through_rows_that_the_shrinkage_removed(make_defense, images):
    # This threshold shrinks every weight away, so all images are rebuilt alike.
    x, y = images
    spec = dataclasses.replace(make_defense().spec, shrink_threshold=0.9)
    defense = dataclasses.replace(make_defense(), spec=spec)
    np.testing.assert_allclose(np.ptp(defense.reconstruct(x), axis=0), 0, atol=1e-6)
    for name in ("frozen_mask", "straight_through"):
        surface = defense.surfaces(x, y)[name]
        gradient = jax.grad(lambda x, surface=surface: jnp.square(surface(x)).sum())(x)
        assert np.isfinite(gradient).all()
        assert (gradient != 0).any(), name


def test_a_frozen_mask_follows_a_repacked_batch(defense, images):
    x, y = images
    order = jnp.array([4, 0, 2, 5, 5, 1])
    for name in ("frozen_mask", "frozen_mask_true"):
        frozen = defense.surfaces(x, y)[name]
        np.testing.assert_allclose(
            frozen.take(order)(x[order]), frozen(x)[order], err_msg=name, **CLOSE
        )


def test_an_attack_on_a_frozen_mask_keeps_each_image_with_its_own_slot(defense, images):
    # Eagerly, fallen samples leave the batch and the rest is re-packed: slots must follow.
    x, _ = images
    y = jnp.argmax(defense(x), axis=-1).astype(jnp.int32)
    frozen = defense.surfaces(x, y)["frozen_mask"]
    attack = PGD(eps=0.3, step_size=0.1, steps=4, random_start=False)
    result = attack.run(frozen, x, y)
    fooled = np.asarray(frozen(result.images)).argmax(1) != np.asarray(y)
    np.testing.assert_array_equal(result.success, fooled)


def test_other_weights_do_not_compile_anew(make_defense, images):
    x, y = images
    traces = []

    @jax.jit
    def predict(defense, x):
        traces.append(1)
        return defense(x)

    a, b = make_defense(0), make_defense(1)
    assert not np.allclose(predict(a, x), predict(b, x))
    assert len(traces) == 1
    np.testing.assert_allclose(predict(b, x), b(x), **CLOSE)

    @jax.jit
    def attacked(surface, x):
        traces.append(1)
        return surface(x)

    for defense in (a, b):
        jax.eval_shape(attacked, defense.surfaces(x, y)["soft_mask"], x)
    assert len(traces) == 2


def test_a_defense_and_its_surfaces_can_be_handed_to_jit_as_functions(defense, images):
    x, y = images
    for fn in (defense, *defense.surfaces(x, y).values()):
        assert jax.eval_shape(jax.jit(fn), x).shape == (6, 10)  # traced, not compiled


def test_saving_and_loading_gives_the_same_arrays_and_specification(defense, tmp_path):
    save(defense, tmp_path / "d")
    loaded = load(tmp_path / "d")
    assert loaded.spec == defense.spec
    assert jax.tree.structure(loaded) == jax.tree.structure(defense)
    for a, b in zip(jax.tree.leaves(loaded), jax.tree.leaves(defense)):
        np.testing.assert_array_equal(a, b)


def test_the_plain_autoencoder_has_no_memory():
    spec = MemoryDefenseSpec(image_shape=(28, 28, 1), classes=10, memory_rows=0)
    assert (
        "memory" not in jax.eval_shape(spec.init_stack, jax.random.key(0))["params"]["autoencoder"]
    )


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"memory_rows": 25}, "memory rows 25 are not divisible by the 10 classes; give 20 or 30"),
        ({"memory_rows": 5}, "memory rows 5 are fewer than the 10 classes"),
        ({"image_shape": (64, 64, 3)}, "images of 64x64x3 have no autoencoder"),
        ({"image_shape": (28, 28)}, "images of 28x28 have no autoencoder"),
        ({"classes": 1}, "1 classes cannot be told apart"),
        ({"selector": "vgg"}, "classifier 'vgg' is unknown"),
        ({"shrink_threshold": -0.1}, r"shrink threshold -0\.1 is outside \[0, 1\)"),
        ({"shrink_threshold": 1.0}, r"shrink threshold 1 is outside \[0, 1\)"),
        ({"shrink_threshold": float("nan")}, r"shrink threshold nan is outside \[0, 1\)"),
        ({"shrink_order": "mask"}, "shrink order 'mask' is unknown"),
        ({"softmax_scale": 0.0}, r"softmax scale 0 must be above 0"),
        ({"softmax_scale": float("nan")}, r"softmax scale nan must be above 0"),
    ],
)
def test_networks_that_cannot_be_are_refused_before_any_work(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        MemoryDefenseSpec(**{"image_shape": (28, 28, 1), "classes": 10, **changes})
