"""What a new run takes over from another: what would be trained alike, and nothing else."""

import dataclasses
import errno
import json
import os
import shutil

import pytest

from memdef_jax.checks import InputError
from memdef_jax.defenses import (
    ClassifierConfig,
    DefenseVAEConfig,
    MemoryDefenseConfig,
    Mixture,
    RobustClassifierConfig,
    SelectorConfig,
    StackConfig,
    VAEConfig,
    fit,
)
from memdef_jax.defenses.sharing import take_over
from memdef_jax.defenses.store import run_description
from memdef_jax.training import Silent
from memdef_jax.training.run import open_run

VAE = DefenseVAEConfig(mixture=Mixture(attacks=("fgsm", "rfgsm"), images=8))
FOLDERS = ("classifier", "vae", "examples/fgsm_0", "examples/rfgsm_0", "examples/rfgsm_1")


class Notes(Silent):
    def __init__(self):
        self.said = []

    def note(self, text):
        self.said.append(text)


@pytest.fixture
def trained(tmp_path, digits):
    """trained(kind, config, folders): a run with a file in each folder."""

    def trained(kind="defense_vae", config=VAE, folders=FOLDERS):
        run = tmp_path / "trained"
        for name in folders:
            (run / name).mkdir(parents=True)
            (run / name / "content").write_text(name)
        description = run_description(kind, digits, config, ("vae",))
        (run / "run.json").write_text(json.dumps({"version": 1, "run": description}))
        return run

    return trained


def begin(folder, config, dataset, kind="defense_vae"):
    open_run(folder, run_description(kind, dataset, config, ("vae",)))
    return folder


def copied(run, folder):
    notes = Notes()
    take_over(run, folder, notes)
    found = [path.parent for path in folder.glob("**/content")]
    for path in found:
        assert (path / "content").read_text() == str(path.relative_to(folder))
    return sorted(str(path.relative_to(folder)) for path in found), notes.said


@pytest.mark.parametrize(
    ("changes", "parts"),
    [
        ({"vae": VAEConfig(epochs=9), "save_every": 7}, ["classifier", *FOLDERS[2:]]),
        ({"mixture": Mixture(attacks=("cw", "fgsm"), images=8)}, ["classifier", FOLDERS[2]]),
        ({"mixture": Mixture(attacks=("fgsm",), images=9)}, ["classifier"]),
        ({"mixture": Mixture(attacks=("fgsm",), images=8, eps=(0.1,))}, ["classifier"]),
        ({"classifier": ClassifierConfig(epochs=9)}, []),
        ({"seed": 1}, []),
        ({"train_size": 9}, []),
        ({"compute_dtype": "bfloat16"}, []),
    ],
)
def test_a_purifier_takes_the_classifier_and_the_examples_of_the_same_attacks(
    trained, digits, tmp_path, changes, parts
):
    new = begin(tmp_path / "new", dataclasses.replace(VAE, variants=("rec",), **changes), digits)
    found, (said,) = copied(trained(), new)
    assert found == parts
    assert said.endswith(", ".join(parts) or "nothing, the settings differ")


def test_another_stack_takes_the_classifiers_a_and_their_examples(trained, digits, tmp_path):
    folders = ("selector_benign", "selector_offline", "stack", "examples/part_00000")
    run = trained("memory_defense", MemoryDefenseConfig(), folders)
    other = MemoryDefenseConfig(stack=StackConfig(beta=0.0))
    for config, parts in (
        (other, ["examples/part_00000", "selector_benign", "selector_offline"]),
        (dataclasses.replace(other, seed=1), []),
        (dataclasses.replace(other, selector=SelectorConfig(recipe="benign")), []),
    ):
        new = begin(tmp_path / f"{len(parts)}-{config.seed}", config, digits, "memory_defense")
        assert copied(run, new)[0] == parts


def test_what_is_there_already_stays(trained, digits, tmp_path):
    run, new = trained(), begin(tmp_path / "new", VAE, digits)
    (new / "classifier").mkdir()
    (new / "classifier" / "content").write_text("classifier")
    notes = Notes()
    take_over(run, new, notes)
    assert notes.said == [f"copied from {run}: {', '.join(FOLDERS[2:])}"]


def test_what_was_taken_over_is_not_asked_for_again(trained, digits, tmp_path):
    run, new = trained(), begin(tmp_path / "new", VAE, digits)
    copied(run, new)
    shutil.rmtree(run)
    assert copied(run, new)[1] == []


def test_what_fits_nothing_is_refused_and_can_be_left_out(trained, digits, tmp_path):
    run = trained()
    new = begin(tmp_path / "new", MemoryDefenseConfig(), digits, "memory_defense")
    with pytest.raises(InputError, match="run of 'defense_vae', of which memory_defense takes"):
        take_over(run, new, Silent())
    info = dataclasses.replace(digits.info, name="letters", fingerprint="0")
    other = begin(tmp_path / "other", VAE, dataclasses.replace(digits, info=info))
    with pytest.raises(InputError, match="other images than those of letters"):
        take_over(run, other, Silent())
    with pytest.raises(InputError, match="holds no run"):
        take_over(tmp_path / "absent", other, Silent())
    with pytest.raises(InputError, match=r"nothing can be taken over from .* by this training"):
        fit(RobustClassifierConfig(), digits, tmp_path / "third", like=run)
    assert not (tmp_path / "third").exists()


def test_a_copy_that_fails_is_one_sentence_and_leaves_nothing_behind(
    trained, digits, tmp_path, monkeypatch
):
    run, new = trained(), begin(tmp_path / "new", VAE, digits)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def copy(source, target):
        raise full

    monkeypatch.setattr(shutil, "copy2", copy)
    monkeypatch.setattr(shutil.copytree, "__defaults__", (False, None, copy, False, False))
    with pytest.raises(InputError, match=r"classifier cannot be written \(.*No space left"):
        take_over(run, new, Silent())
    assert not list(new.glob("**/.copying-*"))
    monkeypatch.undo()
    assert copied(run, new)[0] == ["classifier", *FOLDERS[2:]]
