"""The pipeline of the VAE defenses: what is deployed, what can be attacked, what is stored."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.attacks import FGSM
from memdef_jax.checks import InputError
from memdef_jax.defenses import VAEDefense, VAEDefenseSpec, load, save
from memdef_jax.defenses.vae.vae_defense import with_batch_statistics


@pytest.fixture(scope="module")
def defense(images):
    spec = VAEDefenseSpec(image_shape=(28, 28, 1), classes=10, classifier="e", latent_size=8)
    variables = spec.init(jax.random.key(0))
    variables["classifier"] = spec.init_classifier(jax.random.key(1))
    # Statistics of the features; with those of a fresh network random layers swallow every signal.
    pass_once = jax.jit(
        lambda v: spec.vae().apply(v, images[0], train=True, mutable=["batch_stats"])
    )
    for _ in range(40):
        variables["vae"] = {**variables["vae"], **pass_once(variables["vae"])[1]}
    return VAEDefense(spec, variables)


def test_the_answer_is_the_classifiers_on_the_decoded_mean(defense, images):
    x, _ = images
    vae = defense.spec.vae()
    mean, _ = vae.apply(defense.variables["vae"], x, method="encode")
    rebuilt = jax.nn.sigmoid(vae.apply(defense.variables["vae"], mean, method="decode_logits"))
    logits = defense.spec.reader().apply(defense.variables["classifier"], rebuilt)
    np.testing.assert_allclose(defense(x), logits, atol=1e-5)
    np.testing.assert_allclose(defense.embed(x), mean, atol=1e-6)
    np.testing.assert_allclose(defense.decode(mean), rebuilt, atol=1e-6)
    error = ((np.asarray(x) - np.asarray(rebuilt)) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(defense.score(x), error, atol=1e-6)


def test_the_undefended_classifier_is_another_one(defense, images):
    x, y = images
    module = defense.spec.reader()
    undefended = module.apply(defense.variables["undefended"], x)
    np.testing.assert_array_equal(defense.select(x), undefended.argmax(-1))
    surfaces = defense.surfaces(x, y)
    assert list(surfaces) == ["selector", "deployed"]
    np.testing.assert_array_equal(surfaces["selector"](x), undefended)
    np.testing.assert_array_equal(surfaces["deployed"](x), defense(x))


def test_the_whole_pipeline_has_a_gradient_and_can_be_attacked(defense, images):
    x, y = images
    surface = defense.surfaces(x, y)["deployed"]
    gradient = jax.grad(lambda x: surface(x).sum())(x)
    assert (np.abs(gradient).max(axis=(1, 2, 3)) > 0).all()
    attacked = FGSM(eps=0.1)(surface, x, y)
    assert float(jnp.abs(attacked - x).max()) <= 0.1 + 1e-6


def test_statistics_of_the_batch_make_answers_depend_on_each_other(defense, images):
    x, _ = images
    published = VAEDefense(dataclasses.replace(defense.spec, statistics="batch"), defense.variables)
    np.testing.assert_allclose(defense(x[:3]), defense(x)[:3], atol=1e-5)
    assert float(jnp.abs(published(x[:3]) - published(x)[:3]).max()) > 1e-4
    vae = defense.spec.vae()
    (mean, _), _ = vae.apply(
        defense.variables["vae"], x, method="encode", train=True, mutable=["batch_stats"]
    )
    np.testing.assert_allclose(published.embed(x), mean, atol=1e-5)


def test_the_published_mode_stands_beside_the_deployed_one(defense, make_defense):
    both = with_batch_statistics({"rec": defense})
    assert list(both) == ["rec", "rec_batch_statistics"]
    assert both["rec"] is defense
    assert both["rec_batch_statistics"].spec.statistics == "batch"
    with pytest.raises(InputError, match="'benign' is a memory_defense, which has no batch stat"):
        with_batch_statistics({"benign": make_defense()})


def test_what_is_saved_is_what_is_loaded(defense, images, tmp_path):
    x, _ = images
    mad = VAEDefense(dataclasses.replace(defense.spec, kind="mad_vae"), defense.variables)
    for one in (defense, mad):
        save(one, tmp_path / one.kind)
        again = load(tmp_path / one.kind)
        assert (again.kind, again.spec) == (one.kind, one.spec)
        np.testing.assert_array_equal(again(x), one(x))


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image_shape": (30, 30, 1)}, "30x30x1"),
        ({"classes": 1}, "1 classes cannot be told apart"),
        ({"classifier": "f"}, "classifier 'f' is unknown"),
        ({"statistics": "test"}, "statistics 'test' are unknown; use 'running' or 'batch'"),
        ({"kind": "vae"}, "kind 'vae' is unknown; use one of defense_vae, mad_vae"),
        ({"latent_size": 0}, "latent size 0 is below 1"),
    ],
)
def test_networks_that_cannot_be_are_refused(change, sentence):
    with pytest.raises(InputError, match=sentence):
        VAEDefenseSpec(**{"image_shape": (28, 28, 1), "classes": 10, **change})
