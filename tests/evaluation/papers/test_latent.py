"""The latent space: which vectors are shown, how they are projected, and the figure."""

import dataclasses
import importlib
import io
import json
import sys
import types
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from PIL import Image
from sklearn.manifold import TSNE
from threadpoolctl import threadpool_limits

from memdef_jax import attacks, data
from memdef_jax.checks import InputError
from memdef_jax.defenses import MemoryDefense, VAEDefense, VAEDefenseSpec
from memdef_jax.evaluation.papers import latent
from memdef_jax.nn import Encoder
from memdef_jax.nn.autoencoder import architecture
from tests.evaluation import handmade

COUNT, EPS = 9, 0.1


@pytest.fixture(scope="module")
def defense(pair):
    return pair["in_loop"]


@pytest.fixture(scope="module")
def vae():
    spec = VAEDefenseSpec(image_shape=(28, 28, 1), classes=10, classifier="e", latent_size=6)
    return VAEDefense(spec, spec.init(jax.random.key(0)))


@pytest.fixture(scope="module")
def split(digits):
    return digits.test[:COUNT]


@pytest.fixture(scope="module")
def latents(defense, split):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latent, "BATCH", 8)  # 18 vectors then need padding
        return latent.collect(defense, split, attacks.FGSM(eps=EPS))


def images(split, defense):
    """Clean and attacked images, the latter made by the attack itself."""
    x = data.to_float(jnp.asarray(split.images))
    attack = attacks.FGSM(eps=EPS, early_stop=False)
    return x, attack(defense.selector, x, jnp.asarray(split.labels))


def test_the_bottleneck_is_the_encoders_own_output(latents, defense, split):
    stack = defense.variables["stack"]
    own = {kind: stack[kind]["autoencoder"]["encoder"] for kind in ("params", "batch_stats")}
    x = jnp.concatenate(images(split, defense))
    expected = Encoder(architecture((28, 28, 1))).apply(own, x)
    assert latents.vectors["without"].shape == (2 * COUNT, 1024)
    np.testing.assert_allclose(latents.vectors["without"], expected, atol=1e-5)


def test_with_memory_it_is_the_mean_of_the_slots_rows_by_their_likeness(latents, defense, split):
    memory = np.asarray(defense.variables["stack"]["params"]["autoencoder"]["memory"], np.float64)
    z = latents.vectors["without"].astype(np.float64)
    slots = np.asarray(defense.select(jnp.concatenate(images(split, defense))))
    for vector, slot, found in zip(z, slots, latents.vectors["with"], strict=True):
        rows = memory[50 * slot : 50 * slot + 50]
        weights = np.exp(rows @ vector / np.linalg.norm(rows, axis=1) / np.linalg.norm(vector))
        np.testing.assert_allclose(found, weights / weights.sum() @ rows, atol=1e-4)


def test_labels_are_the_true_ones_and_attacked_images_come_last(latents, split):
    for labels in latents.labels.values():
        np.testing.assert_array_equal(labels, np.tile(split.labels, 2))
    np.testing.assert_array_equal(latents.adversarial, np.repeat([False, True], COUNT))


def test_a_defense_without_memory_is_refused(defense, split):
    spec = dataclasses.replace(defense.spec, memory_rows=0)
    plain = MemoryDefense(spec, defense.variables)
    with pytest.raises(InputError, match="this memory_defense has no latent space"):
        latent.collect(plain, split, attacks.FGSM(eps=EPS))


def test_a_vae_shows_images_latent_vectors_and_what_it_makes_of_them(vae, split):
    found = latent.collect(vae, split, attacks.FGSM(eps=EPS))
    x = data.to_float(jnp.asarray(split.images))
    attack = attacks.FGSM(eps=EPS, early_stop=False)
    both = jnp.concatenate([x, attack(vae.undefended, x, jnp.asarray(split.labels))])
    assert list(found.vectors) == ["image", "latent", "output"]
    flat = (2 * COUNT, -1)
    np.testing.assert_allclose(found.vectors["image"], both.reshape(flat), atol=1e-6)
    np.testing.assert_allclose(found.vectors["latent"], vae.embed(both), atol=1e-5)
    purified = vae.reconstruct(both)
    np.testing.assert_allclose(found.vectors["output"], purified.reshape(flat), atol=1e-5)
    np.testing.assert_array_equal(found.labels["latent"], np.tile(split.labels, 2))
    np.testing.assert_array_equal(found.labels["output"], vae(both).argmax(-1))


def test_a_search_in_latent_space_leaves_decoded_images(vae, split):
    # A search that never succeeds returns where it began: the decoded codes of the clean images.
    hopeless = attacks.Overpowered(draws=1, steps=1, confidence=1e6)
    found = latent.collect(vae, split, hopeless)
    clean = data.to_float(jnp.asarray(split.images))
    started = jnp.clip(vae.decode(vae.embed(clean)), 0, 1)
    attacked = found.vectors["image"][COUNT:]
    np.testing.assert_allclose(attacked, started.reshape(COUNT, -1), atol=1e-5)
    np.testing.assert_array_equal(found.labels["latent"], np.tile(split.labels, 2))


def test_tsne_is_scikit_learns_with_a_perplexity_that_fits(latents):
    vectors = latents.vectors["without"]
    found = latent.projection("tsne", seed=3)(vectors)
    assert found.shape == (len(vectors), 2)
    model = TSNE(perplexity=(len(vectors) - 1) / 3, init="pca", random_state=3)
    with threadpool_limits(1):
        expected = model.fit_transform(vectors.astype(np.float64))
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_clean_and_attacked_images_are_projected_together(latents):
    asked = []

    def project(vectors):
        asked.append(vectors)
        return vectors[:, :2]

    found = latent.embed(latents, project)
    assert list(found) == ["without", "with"]
    for vectors, (name, part) in zip(asked, found.items(), strict=True):
        np.testing.assert_array_equal(vectors, latents.vectors[name])
        np.testing.assert_allclose(part["points"], vectors[:, :2], atol=1e-4)
        assert part["labels"] == latents.labels[name].tolist()
        assert part["adversarial"] == latents.adversarial.tolist()
        assert part["alike"] == latent.alike(latents)[name]


def test_neighbours_alike_are_those_of_a_search_by_hand(monkeypatch):
    rng = np.random.default_rng(4)
    n, asked = 14, 3
    vectors, labels = rng.normal(size=(2 * n, 2)), rng.integers(0, 3, 2 * n)
    vectors[n + 1] = vectors[1]  # an image that the attack left as it was
    attacked = np.arange(2 * n) >= n
    monkeypatch.setattr(latent, "_ASKED", asked)
    found = latent.alike(latent.Latents({"latent": vectors}, {"latent": labels}, attacked))
    groups = {"clean": (0, 0), "attacked": (n, n), "attacked among clean": (n, 0)}
    for words, (asking, among) in groups.items():
        shares = []
        for i in range(n):
            far = np.linalg.norm(vectors[among : among + n] - vectors[asking + i], axis=1)
            nearest = [j for j in np.argsort(far) if j != i][:asked]
            shares.append(np.mean(labels[among + np.array(nearest)] == labels[asking + i]))
        np.testing.assert_allclose(found["latent"][words], np.mean(shares))


def test_few_images_ask_as_many_neighbours_as_there_are():
    vectors, labels = np.arange(6.0)[:, None], np.array([0, 0, 1, 0, 0, 1])
    found = latent.alike(latent.Latents({"a": vectors}, {"a": labels}, np.arange(6) > 2))
    # Of three images two are of one class: each of these has one of two others alike.
    assert found["a"] == dict.fromkeys(("clean", "attacked", "attacked among clean"), 1 / 3)


def test_methods_that_cannot_be_used_are_refused(monkeypatch):
    with pytest.raises(InputError, match="method 'pca' is unknown; use one of tsne, umap"):
        latent.projection("pca")
    with pytest.raises(InputError, match="5 points are too few to be projected; give 6 or more"):
        latent.projection("tsne")(np.zeros((5, 3)))
    monkeypatch.setitem(sys.modules, "umap", None)  # as where it is not installed
    with pytest.raises(InputError, match="needs the package umap-learn, which cannot be imported"):
        latent.projection("umap")


def test_umap_is_used_where_it_is_installed_and_its_warnings_are_not_heard(monkeypatch):
    class Model:
        def __init__(self, **settings):
            self.settings = settings

        def fit_transform(self, vectors):
            warnings.warn("graph is not fully connected", stacklevel=1)  # an error in these tests
            return np.full((len(vectors), 2), self.settings["n_neighbors"])

    asked = []

    def model(**settings):
        asked.append(settings)
        return Model(**settings)

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=model))
    project = latent.projection("umap", seed=2)
    assert project(np.ones((7, 5))).tolist() == [[6, 6]] * 7
    assert project(np.ones((40, 5)))[0, 0] == 15
    assert asked[0] == {"n_neighbors": 6, "random_state": 2, "n_jobs": 1}
    with pytest.raises(InputError, match="5 points are too few"):
        project(np.zeros((5, 3)))


def test_the_program_writes_figure_and_points(digits, pair, tmp_path, capsys):
    run = tmp_path / "run"
    handmade.write_run(run, digits, pair)
    program = importlib.import_module("eval.latent").main
    arguments = ["--run", run, "--attack", "fgsm", "--count", str(COUNT)]
    tyro.cli(program, args=[str(a) for a in arguments])
    told, figure = capsys.readouterr().out, run / "latent-in_loop-fgsm.png"
    assert str(figure) in told
    assert Image.open(io.BytesIO(figure.read_bytes())).format == "PNG"
    found = json.loads(figure.with_suffix(".json").read_text())
    for name in ("with", "without"):
        for share in found[name]["alike"].values():
            assert f"{100 * share:.1f}" in told
    assert found["selector"] == "in_loop"
    assert found["class_names"] == list(digits.info.class_names)
    for name in ("with", "without"):
        assert np.shape(found[name]["points"]) == (2 * COUNT, 2)
        assert found[name]["labels"] == np.tile(digits.test.labels[:COUNT], 2).tolist()
    for arguments, sentence in (
        (["--selector", "offline"], "selector 'offline' is not in the run; use one of benign, in"),
        (["--attack", "deepfool"], "attack 'deepfool' is unknown"),
        (["--eps", "9/255,25/255"], "2 budgets were given and one is needed"),
        (["--attack", "overpowered", "--rho", "-1"], "rho -1 cannot be used"),
        (["--seed", "-1"], "seed -1 is negative"),
        (["--count", "2"], "count 2 is too few images for a figure; use 3 or more"),
    ):
        with pytest.raises(InputError, match=sentence):
            tyro.cli(program, args=["--run", str(run), *arguments])


def test_the_program_shows_a_search_in_latent_space(vae, digits, tmp_path):
    handmade.write_run(tmp_path, digits, {"vae": vae})
    program = importlib.import_module("eval.latent").main
    search = ["--attack", "overpowered", "--rho", "2.5", "--draws", "1", "--steps", "1"]
    tyro.cli(program, args=["--run", str(tmp_path), "--count", str(COUNT), *search])
    found = json.loads((tmp_path / "latent-vae-overpowered.json").read_text())
    assert (found["attack"], found["rho"], found["steps"]) == ("overpowered", 2.5, 1)
    assert "eps" not in found
    assert [np.shape(found[name]["points"]) for name in ("image", "latent", "output")] == [
        (2 * COUNT, 2)
    ] * 3
