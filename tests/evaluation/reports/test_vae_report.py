"""The evaluation of a defense without slots: the same sweep, page and words."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax import data, training
from memdef_jax.attacks import presets
from memdef_jax.defenses import VAEDefense, VAEDefenseSpec
from memdef_jax.evaluation import SUITES, SweepConfig
from memdef_jax.evaluation.program import evaluate_run

COUNT = 8


@pytest.fixture(scope="module")
def defenses():
    spec = VAEDefenseSpec(image_shape=(28, 28, 1), classes=10, classifier="e", latent_size=6)
    first = spec.init(jax.random.key(0))
    other = {**first, "classifier": spec.init_classifier(jax.random.key(1))}
    return {"vae": VAEDefense(spec, first), "rec": VAEDefense(spec, other)}


@pytest.fixture(scope="module")
def evaluated(defenses, digits, tmp_path_factory):
    """(folder, what was found)"""
    folder = tmp_path_factory.mktemp("vae") / "run"
    suite = SUITES["defense_vae"]
    config = SweepConfig(
        attacks=("fgsm", "rfgsm"),
        eps=suite.eps,
        threats=suite.threats,
        paper=suite.paper,
        count=COUNT,
        batch_size=COUNT,
    )
    return folder, evaluate_run(folder, defenses, digits, config, training.Silent())


def test_every_variant_is_measured_as_the_paper_does_and_as_a_whole(evaluated):
    records = evaluated[1].records
    cells = {(r["selector"], r["threat"], r["attack"]) for r in records}
    for name in ("vae", "rec"):
        assert (name, "none", "clean") in cells
        for attack in ("fgsm", "rfgsm"):
            assert {(name, threat, attack) for threat in ("grey_box", "adaptive")} <= cells
    assert {r["defense"] for r in records} == {"defense_vae"}
    assert {r["paper"] for r in records} == {None}


def test_beside_the_defended_answer_stands_the_undefended_one(evaluated, defenses, digits):
    part = digits.test[:COUNT]
    x, y = jnp.asarray(data.to_float(part.images)), jnp.asarray(part.labels)
    defense = defenses["rec"]
    images = presets.named("fgsm", 0.3, "defense_vae")(
        defense.undefended, x, y, key=jax.random.key(0)
    )
    (record,) = [
        r
        for r in evaluated[1].records
        if (r["selector"], r["threat"], r["attack"]) == ("rec", "grey_box", "fgsm")
    ]
    undefended = np.asarray(defense.undefended(images)).argmax(-1)
    assert record["selector_accuracy"] == (undefended == part.labels).mean()
    (adaptive,) = [
        r
        for r in evaluated[1].records
        if (r["selector"], r["threat"], r["attack"]) == ("rec", "adaptive", "fgsm")
    ]
    assert list(adaptive["variants"]) == ["deployed", "selector"]


def test_the_report_speaks_of_what_there_is(evaluated):
    folder, found = evaluated
    assert found.heading.startswith("Defense-VAE on digits")
    assert "against the undefended classifier leaves" in found.words
    page = (folder / "report.html").read_text()
    assert "Attacked images" in page
    for absent in ("slot", "Memory", "frozen", "paper prints"):
        assert absent not in found.words
    assert 'id="memory"' not in page
    text = (folder / "report.md").read_text()
    assert "class template" not in text
    assert "rec-adaptive-" in text
