"""What a new run takes over from another: what would be trained alike, and nothing else."""

import dataclasses
import json

import pytest

from memdef_jax.checks import InputError
from memdef_jax.defenses import (
    ClassifierConfig,
    DefenseVAEConfig,
    MemoryDefenseConfig,
    Mixture,
    StackConfig,
    VAEConfig,
)
from memdef_jax.defenses.sharing import take_over
from memdef_jax.defenses.store import run_description
from memdef_jax.training import Silent
from memdef_jax.training.run import read_run

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


def copied(run, folder, config, digits):
    notes = Notes()
    take_over(run, folder, config, digits, notes)
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
    config = dataclasses.replace(VAE, variants=("vae", "rec"), **changes)
    found, (said,) = copied(trained(), tmp_path / "new", config, digits)
    assert found == parts
    assert said.endswith(", ".join(parts) or "nothing, the settings differ")
    described = read_run(tmp_path / "new")
    assert described == json.loads(
        json.dumps(run_description("defense_vae", digits, config, config.variants))
    )
    assert copied(tmp_path / "trained", tmp_path / "new", config, digits)[0] == parts


def test_another_stack_takes_the_classifiers_a_and_their_examples(trained, digits, tmp_path):
    folders = ("selector_benign", "selector_offline", "stack", "examples/part_00000")
    run = trained("memory_defense", MemoryDefenseConfig(), folders)
    other = MemoryDefenseConfig(stack=StackConfig(beta=0.0))
    found, _ = copied(run, tmp_path / "new", other, digits)
    assert found == ["examples/part_00000", "selector_benign", "selector_offline"]
    other = dataclasses.replace(other, seed=1)
    assert copied(run, tmp_path / "newer", other, digits)[0] == []


def test_what_is_there_already_stays(trained, digits, tmp_path):
    run, new = trained(), tmp_path / "new"
    copied(run, new, VAE, digits)
    (new / "classifier" / "content").write_text("trained on")
    take_over(run, new, VAE, digits, Silent())
    assert (new / "classifier" / "content").read_text() == "trained on"


def test_what_fits_nothing_is_refused_before_a_folder_is_made(trained, digits, tmp_path):
    run, new = trained(), tmp_path / "new"
    with pytest.raises(InputError, match="run of 'defense_vae', of which nothing can be taken"):
        take_over(run, new, MemoryDefenseConfig(), digits, Silent())
    info = dataclasses.replace(digits.info, name="letters", fingerprint="0")
    with pytest.raises(InputError, match="other images than those of letters"):
        take_over(run, new, VAE, dataclasses.replace(digits, info=info), Silent())
    with pytest.raises(InputError, match="holds no run"):
        take_over(tmp_path / "absent", new, VAE, digits, Silent())
    assert not new.exists()
