"""The pipeline of the denoisers: what is deployed, what can be attacked, what is stored."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.checks import InputError
from memdef_jax.defenses import DenoiserDefense, DenoiserSpec, load, save

SHAPE = (28, 28, 1)


@pytest.fixture(scope="module", params=["feature_denoiser", "hgd"])
def defense(request):
    width = 1 / 64 if request.param == "hgd" else 1.0
    spec = DenoiserSpec(
        image_shape=SHAPE, classes=10, classifier="e", width=width, kind=request.param
    )
    rng = np.random.default_rng(0)
    like = jax.eval_shape(spec.init, jax.random.key(0))
    drawn = jax.tree.map(lambda a: jnp.float32(rng.uniform(-0.2, 0.3, a.shape)), like)
    statistics = drawn["denoiser"]["batch_stats"]
    drawn["denoiser"]["batch_stats"] = jax.tree.map(lambda a: jnp.abs(a) + 0.5, statistics)
    if request.param == "hgd":
        drawn["denoiser"]["params"]["noise"]["bias"] += 1.0  # more than there is to take away
    return DenoiserDefense(spec, drawn)


def test_the_pipeline_is_the_classifier_on_the_denoised_image(defense, images, tmp_path):
    x, y = images

    @jax.jit
    def look(defense, x):
        surfaces = defense.surfaces(x, y)
        return {
            "shown": defense.spec.denoiser().apply(defense.variables["denoiser"], x),
            "pictured": defense.reconstruct(x),
            "score": defense.score(x),
            "select": defense.select(x),
            "deployed": surfaces["deployed"](x),
            "answer": defense(x),
            "undefended": surfaces["selector"](x),
        }

    found = look(defense, x)
    reader = defense.spec.target()
    expected = reader.apply(defense.variables["classifier"], found["shown"])
    np.testing.assert_allclose(found["answer"], expected, atol=1e-5)
    np.testing.assert_array_equal(found["deployed"], found["answer"])
    np.testing.assert_allclose(
        found["undefended"], reader.apply(defense.variables["classifier"], x), atol=1e-5
    )
    np.testing.assert_array_equal(found["select"], found["undefended"].argmax(-1))
    np.testing.assert_array_equal(found["pictured"], np.clip(found["shown"], 0, 1))
    outside = (np.asarray(found["shown"]) < 0).any()
    assert outside == (defense.kind == "hgd")
    error = ((np.asarray(x) - np.asarray(found["shown"])) ** 2).mean(axis=(1, 2, 3))
    np.testing.assert_allclose(found["score"], error, atol=1e-6)

    save(defense, tmp_path / "stored")
    again = load(tmp_path / "stored")
    assert (again.kind, again.spec) == (defense.kind, defense.spec)
    np.testing.assert_array_equal(look(again, x)["answer"], found["answer"])


@pytest.mark.parametrize("defense", ["feature_denoiser"], indirect=True)
def test_the_whole_pipeline_has_a_gradient(defense, images):
    x, y = images
    gradient = jax.jit(jax.grad(lambda x: defense.surfaces(x, y)["deployed"](x).sum()))(x)
    assert (np.abs(gradient).max(axis=(1, 2, 3)) > 0).all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"image_shape": (32, 32, 3)}, "32x32x3 do not fit the denoising autoencoder"),
        ({"image_shape": (30, 30, 1), "kind": "hgd"}, "30x30 cannot be halved twice"),
        ({"classes": 1}, "1 classes cannot be told apart"),
        ({"classifier": "f"}, "classifier 'f' is unknown"),
        ({"kind": "dae"}, "kind 'dae' is unknown; use one of feature_denoiser, hgd"),
        ({"width": 0.0}, "width"),
    ],
)
def test_networks_that_cannot_be_are_refused(change, sentence):
    with pytest.raises(InputError, match=sentence):
        DenoiserSpec(**{"image_shape": SHAPE, "classes": 10, **change})


def test_an_hgd_is_for_colours_too():
    spec = DenoiserSpec(image_shape=(32, 32, 3), classes=10, kind="hgd")
    like = jax.eval_shape(spec.init, jax.random.key(0))
    assert like["denoiser"]["params"]["noise"]["kernel"].shape == (1, 1, 64, 3)
    assert dataclasses.replace(spec, width=0.5).denoiser().width == 0.5


def test_only_an_autoencoder_has_codes_and_they_are_what_it_decodes(images):
    spec = DenoiserSpec(image_shape=(28, 28, 1), classes=10)
    defense = DenoiserDefense(spec, spec.init(jax.random.key(0)))
    z = jax.jit(lambda d, x: d.embed(x))(defense, images[0])
    assert z.shape == (6, 32)
    decoded, whole = jax.jit(lambda d, z, x: (d.decode(z), d.denoise(x)))(defense, z, images[0])
    np.testing.assert_allclose(decoded, whole, rtol=1e-5, atol=1e-6)
    assert defense.has_codes
    assert not DenoiserDefense(dataclasses.replace(spec, kind="hgd"), {}).has_codes
