"""The Overpowered attack on defenses whose every answer is known, and what is counted of it.

Images lie on a line, t steps from grey; a code is t. The classifier names class 0 where t is
positive, 20 logits a step, and a success needs one logit: an image must be moved by |t| + 0.05, and
by the published budget it can be moved by 0.78.
"""

import importlib
import io
import json
import re
from dataclasses import dataclass, replace
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from PIL import Image

from memdef_jax.checks import InputError
from memdef_jax.data import Split
from memdef_jax.data.dataset import make_dataset
from memdef_jax.defenses import (
    DenoiserDefense,
    DenoiserSpec,
    MemoryDefense,
    MemoryDefenseSpec,
    VAEDefense,
    VAEDefenseSpec,
)
from memdef_jax.evaluation.beyond import latent_attack, latent_report
from memdef_jax.evaluation.beyond.latent_attack import LatentAttackConfig
from tests.evaluation import handmade
from tests.evaluation.toys import Linear

SHAPE, PIXELS = (6, 5, 1), 30
LINE = (np.resize([1, -1, -1], PIXELS) / PIXELS**0.5).astype(np.float32)
#                     out of reach       wrong already
T = np.array([0.2, 1.5, -0.4, -0.2, -1.5, 0.3])
LABELS = np.array([0, 0, 1, 1, 1, 1], np.int32)
RIGHT = [False, True, False, False, True, False]
FOUND = [True, False, True, True, False, True]
CONFIG = LatentAttackConfig(rhos=(0.0, 1.0), count=None, draws=1, steps=30, batch_size=4)


def along(slope, shift=0.0):
    """The classifier that names class 0 where t is above -shift."""
    w = slope / 2 * np.stack([LINE, -LINE], axis=1)
    return Linear(
        jnp.asarray(w), jnp.asarray(-0.5 * w.sum(0) + slope / 2 * shift * np.array([1, -1]))
    )


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Toy:
    """Purifies by moving an image onto the line, and by `shift` along it."""

    reader: Linear
    shift: jax.Array
    kind: ClassVar[str] = "toy"

    def embed(self, x):
        return ((x.reshape(len(x), -1) - 0.5) @ LINE)[:, None] + self.shift

    def decode(self, z):
        return (0.5 + z * LINE).reshape(-1, *SHAPE)

    def __call__(self, x):
        return self.reader(self.decode(self.embed(x)))


def toy(shift=0.0):
    return Toy(along(20.0), jnp.float32(shift))


def line_images(t):
    pixels = 0.5 + np.asarray(t)[:, None] * LINE
    return np.rint(255 * pixels).astype(np.uint8).reshape(-1, *SHAPE)


@pytest.fixture(scope="module")
def lines():
    split = Split(line_images(T), LABELS)
    return make_dataset("lines", ("plus", "minus"), split, split, "handmade")


@pytest.fixture(autouse=True)
def proxy(monkeypatch):
    """A proxy that names class 0 where t is above -0.35; where it was asked to be stored."""
    asked = []

    def fit(dataset, folder, **settings):
        asked.append(folder)
        return along(1.0, 0.35)

    monkeypatch.setattr(latent_attack, "fit_proxy", fit)
    return asked


def files(folder):
    return {p.relative_to(folder): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_every_outcome_is_the_known_one(lines, tmp_path, proxy):
    result, path = latent_attack.evaluate(tmp_path, {"plain": toy()}, lines, CONFIG)
    assert path == tmp_path / "overpowered.json"
    assert json.loads(path.read_text()) == result
    assert proxy == [tmp_path / "proxy"]
    assert list(result["cells"]) == ["plain 0.0", "plain 1.0"]
    for cell in result["cells"].values():
        assert cell["clean"] == [True] * 5 + [False]
        assert cell["right"] == RIGHT
        assert cell["found"] == FOUND
        # The fourth image is not of its class to the proxy from the start, nor is the last.
        assert cell["changed"] == [False, False, True, False, False, False]
    # Adam's first steps are 0.05 long, as far as the gradient does not change.
    moved = np.sqrt(PIXELS * np.array(result["cells"]["plain 0.0"]["distance"]))
    least = np.where([True, False, True, True, False, False], np.abs(T) + 0.05, 0.0)
    assert (moved >= least - 0.02).all()
    assert (moved <= least + 0.07).all()
    assert result["rhos"] == [0.0, 1.0]
    assert (result["n"], result["kind"], result["target"]) == (6, "toy", "deployed")
    assert (result["dataset"], result["fingerprint"]) == ("lines", lines.info.fingerprint)
    assert result["settings"]["budget"] == 0.0204
    assert result["proxy"] == {"architecture": "c", "accuracy": 4 / 6}
    found = result["variants"]["plain"]
    assert found["accuracy"] == found["original_accuracy"] == pytest.approx(2 / 6)
    assert found["found"] == pytest.approx(4 / 6)
    assert found["changed"] == pytest.approx(1 / 4)
    assert found["accuracy_kept"] == pytest.approx(3 / 6)
    assert found["clean"] == pytest.approx(5 / 6)


def test_what_fools_the_classifier_alone_is_judged_on_the_pipeline(lines, tmp_path):
    # Purifying moves by 0.2: class 0 to safety where the search did not know of it.
    shifted = {"shifted": toy(0.2)}
    one = replace(CONFIG, rhos=(0.0,), count=1)
    deployed, path = latent_attack.evaluate(tmp_path, shifted, lines, one)
    alone, other = latent_attack.evaluate(
        tmp_path, shifted, lines, replace(one, target="classifier")
    )
    assert (path.name, other.name) == ("overpowered.json", "overpowered-classifier.json")
    assert json.loads(path.read_text()) == deployed
    cells = [result["cells"]["shifted 0.0"] for result in (deployed, alone)]
    assert [cell["right"] for cell in cells] == [[False], [True]]
    assert [cell["found"] for cell in cells] == [[True], [False]]
    moved = [np.sqrt(PIXELS * cell["distance"][0]) for cell in cells]
    np.testing.assert_allclose(moved, [0.2 + 0.05 + 0.2, 0.2 + 0.05], atol=0.07)


def test_counting_by_hand():
    rng = np.random.default_rng(3)
    n, rhos = 7, 3
    cells = [
        {name: rng.random(n) < 0.5 for name in ("clean", "right", "found", "changed")}
        for _ in range(rhos)
    ]
    for cell in cells:
        cell["found"] &= ~cell["right"]
        cell["clean"] = cells[0]["clean"]
    found = latent_attack.summarise(cells)
    every = [(cell, i) for cell in cells for i in range(n)]
    right = sum(bool(cell["right"][i]) for cell, i in every)
    hits = [(cell, i) for cell, i in every if cell["found"][i]]
    changed = sum(bool(cell["changed"][i]) for cell, i in hits)
    assert hits
    assert 0 < changed < len(hits)
    assert found["accuracy"] == pytest.approx(right / (n * rhos))
    always = sum(all(cell["right"][i] for cell in cells) for i in range(n))
    assert found["original_accuracy"] == pytest.approx(always / n)
    assert found["found"] == pytest.approx(len(hits) / (n * rhos))
    assert found["changed"] == pytest.approx(changed / len(hits))
    assert found["accuracy_kept"] == pytest.approx((right + changed) / (n * rhos))
    assert found["clean"] == pytest.approx(sum(cells[0]["clean"]) / n)
    # Where |p - x| = 1.96 sqrt(x (1 - x) / n), with n the images, lie Wilson's bounds.
    p = right / (n * rhos)
    for bound in found["interval"]:
        assert abs(p - bound) == pytest.approx(
            1.959964 * np.sqrt(bound * (1 - bound) / n), rel=1e-5
        )
    assert found["interval"][0] < p < found["interval"][1]


def test_nothing_found_leaves_no_share_of_it():
    cell = {
        name: [name in ("clean", "right")] * 4 for name in ("clean", "right", "found", "changed")
    }
    found = latent_attack.summarise([cell])
    assert found["changed"] is None
    assert (found["accuracy"], found["accuracy_kept"]) == (1.0, 1.0)


def test_a_killed_program_goes_on_and_gives_the_same(lines, tmp_path, notes, monkeypatch):
    variants = {"plain": toy(), "shifted": toy(0.2)}
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    latent_attack.evaluate(whole, variants, lines, CONFIG)
    with pytest.raises(ConnectionResetError):
        latent_attack.evaluate(killed, variants, lines, CONFIG, notes(fail_at=3))
    assert list(json.loads((killed / "overpowered.json").read_text())["variants"]) == ["plain"]
    searched = []
    run = latent_attack.Overpowered.run

    def counted(self, *inputs, **key):
        searched.append(self.rho)
        return run(self, *inputs, **key)

    monkeypatch.setattr(latent_attack.Overpowered, "run", counted)
    reporter = notes()
    latent_attack.evaluate(killed, variants, lines, CONFIG, reporter)
    assert reporter.started == [("overpowered", 3, 4, 1)]
    assert searched == [1.0, 1.0]  # two batches of the last cell
    assert files(killed) == files(whole)

    # Once more measures nothing; another rho is added to what is there.
    latent_attack.evaluate(killed, variants, lines, CONFIG)
    assert len(searched) == 2
    more = replace(CONFIG, rhos=(0.0, 0.5))
    result, _ = latent_attack.evaluate(killed, {"plain": toy()}, lines, more)
    assert searched[2:] == [0.5, 0.5]
    assert set(result["cells"]) == {f"{name} {rho}" for name in variants for rho in (0.0, 1.0)} | {
        "plain 0.5"
    }
    assert list(result["variants"]) == ["plain"]


def test_pictures_show_what_was_found_first(lines, tmp_path):
    variants = {"plain": toy(), "solid": Toy(along(20.0, 5.0), jnp.float32(0.0))}
    only = replace(lines, test=lines.test[:2])  # solid names class 0, whatever happens
    latent_attack.evaluate(tmp_path, variants, only, CONFIG)
    names = [p.name for p in (tmp_path / "pictures").iterdir()]
    assert names == ["overpowered-plain.png"]
    picture = Image.open(io.BytesIO((tmp_path / "pictures" / names[0]).read_bytes()))
    assert picture.size == (4 * 175, 175 + 70)


def test_the_picture_shows_original_start_attacked_and_purified(lines, monkeypatch):
    drawn = []

    def draw(columns, title):
        drawn.extend(columns)
        return b""

    monkeypatch.setattr(latent_report.pictures, "draw_grid", draw)
    split = lines.test[np.array([0, 4])]
    attacked = (line_images([-0.1, 0.1]) / 255).astype(np.float32)
    latent_report.found_grid(toy(0.2), along(1.0, 0.35), split, attacked, ("plus", "minus"), "")
    shown = [((c[1].reshape(2, -1) - 0.5) @ LINE).astype(float).round(1).tolist() for c in drawn]
    assert shown == [[0.2, -1.5], [0.4, -1.3], [-0.1, 0.1], [0.1, 0.3]]
    assert [c[2] for c in drawn] == [
        ["plus", "minus"],
        ["answer: plus", "answer: minus"],
        ["proxy: plus", "proxy: plus"],
        ["answer: plus", "answer: plus"],
    ]
    assert [c[3].tolist() for c in drawn] == [[True, True]] * 2 + [[True, False]] * 2


def test_the_table_says_what_was_measured(lines, tmp_path):
    result, path = latent_attack.evaluate(tmp_path, {"plain": toy()}, lines, CONFIG)
    header, rows = latent_report.as_table(result)
    assert dict(zip(header, rows[0], strict=True)) == {
        "variant": "plain",
        "clean": "83.3",
        "accuracy": "33.3",
        "95% interval": "9.7 to 70.0",  # of 2 in 6, by the usual tables
        "original": "33.3",
        "found": "66.7",
        "changed": "25.0",
        "kept": "50.0",
    }
    text = path.with_suffix(".md").read_text()
    assert "| plain | 83.3 | 33.3 |" in text
    assert "its interval is that of 6 images" in text
    assert "right on 66.7% of the clean test images" in text
    assert "rho 0, 1 pooled" in text
    assert "searched and judged on the deployed pipeline." in text
    blank = {**result, "variants": {"plain": {**result["variants"]["plain"], "changed": None}}}
    assert latent_report.as_table(blank)[1][0][6] == ""


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"rhos": (1.0, -0.5)}, "rho -0.5 cannot be used; give a finite zero or positive number"),
        ({"rhos": ()}, "no rho was given"),
        ({"draws": 0}, "draws 0 cannot be used"),
        ({"steps": 0}, "steps 0 cannot be used"),
        ({"draws": 10, "group": 4}, "group 4 does not divide draws 10"),
        ({"count": 0}, "count 0 is below 1"),
        ({"batch_size": 0}, "batch_size 0 is below 1"),
        ({"seed": -1}, "seed -1 is negative"),
        ({"target": "both"}, "target 'both' is unknown; use deployed or classifier"),
    ],
)
def test_settings_that_cannot_be_are_refused(change, sentence):
    with pytest.raises(InputError, match=re.escape(sentence)):
        LatentAttackConfig(**change)


def test_defenses_without_codes_and_unknown_variants_are_refused():
    spec = MemoryDefenseSpec(image_shape=(28, 28, 1), classes=10, memory_rows=20)
    memory = {"benign": MemoryDefense(spec, {})}
    assert list(latent_attack.choose(memory)) == ["benign"]
    hgd = DenoiserDefense(DenoiserSpec(image_shape=(28, 28, 1), classes=10, kind="hgd"), {})
    with pytest.raises(InputError, match="logits is a hgd, which has no decoder of latent codes"):
        latent_attack.choose(memory | {"logits": hgd})
    both = {"plain": toy(), "shifted": toy(0.2)}
    with pytest.raises(InputError, match="variant 'e2e' is unknown; use some of plain, shifted"):
        latent_attack.choose(both, ("plain", "e2e"))
    assert list(latent_attack.choose(both)) == ["plain", "shifted"]
    assert list(latent_attack.choose(both, ("shifted",))) == ["shifted"]


def test_another_measurement_in_the_folder_is_refused_before_any_work(lines, tmp_path, proxy):
    variants = {"plain": toy()}
    one = replace(CONFIG, rhos=(0.0,))
    _, path = latent_attack.evaluate(tmp_path, variants, lines, one)
    before = files(tmp_path)
    proxy.clear()
    for change, sentence in (
        ({"count": 3}, "holds another measurement: n was 6 there and is 3 now; move it away"),
        ({"steps": 31}, "steps was 30 there and is 31 now"),
        ({"seed": 1}, "seed was 0 there and is 1 now"),
        ({"count": 7}, "7 samples asked of a split of 6"),
    ):
        with pytest.raises(InputError, match=sentence):
            latent_attack.evaluate(tmp_path, variants, lines, replace(one, **change))
    for damaged in ("{", "[]", '{"cells": 3}'):
        path.write_text(damaged)
        with pytest.raises(InputError, match=r"overpowered.json is damaged; delete it to measure"):
            latent_attack.evaluate(tmp_path, variants, lines, one)
        path.write_bytes(before[path.relative_to(tmp_path)])
    assert files(tmp_path) == before
    assert proxy == []


def test_the_program_attacks_a_trained_run(digits, tmp_path, capsys, monkeypatch):
    spec = VAEDefenseSpec(image_shape=(28, 28, 1), classes=10, classifier="e", latent_size=4)
    defense = VAEDefense(spec, spec.init(jax.random.key(0)))
    handmade.write_run(tmp_path, digits, {"vae": defense})
    monkeypatch.setattr(latent_attack, "fit_proxy", lambda *_, **__: defense.undefended)
    program = importlib.import_module("eval.overpowered").main
    arguments = ["--run", str(tmp_path), "--count", "2", "--draws", "2", "--steps", "2"]
    tyro.cli(program, args=[*arguments, "--rhos", "1", "2.5"])
    said = capsys.readouterr().out
    assert f"numbers: {tmp_path / 'overpowered.json'}" in said
    result = json.loads((tmp_path / "overpowered.json").read_text())
    assert list(result["cells"]) == ["vae 1.0", "vae 2.5"]
    assert (result["n"], result["kind"]) == (2, "defense_vae")
    for words, sentence in (
        (["--variants", "combined"], "variant 'combined' is unknown; use some of vae."),
        (["--rhos", "-1"], "rho -1 cannot be used"),
    ):
        with pytest.raises(InputError, match=sentence):
            tyro.cli(program, args=[*arguments, *words])


def test_a_picture_is_a_png():
    split = Split(line_images([0.2]), LABELS[:1])
    attacked = (line_images([-0.1]) / 255).astype(np.float32)
    png = latent_report.found_grid(toy(), along(1.0), split, attacked, ("plus $", "minus"), "t")
    assert Image.open(io.BytesIO(png)).format == "PNG"
