"""Robust classifiers trained from end to end, and their use as classifier-A, on a few digits."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax.checks import InputError
from memdef_jax.defenses import (
    AdversarialTraining,
    ClassifierDefense,
    ClassifierSpec,
    MemoryDefenseConfig,
    RobustClassifierConfig,
    SelectorConfig,
    StackConfig,
    fit,
    load_run,
    preset,
)
from memdef_jax.defenses.classifier.robust_validation import CLEAN, ROBUST
from memdef_jax.defenses.memory import memory_training
from memdef_jax.training.metrics import read_metrics

TINY = RobustClassifierConfig(
    architecture="e",
    variants=("memory",),
    training=AdversarialTraining(eps=0.05, attack_steps=1, margin=4.5, clean_margin=1.5),
    epochs=4,
    batch_size=16,
    average_decay=0.9,
    validation_size=24,
    validation_steps=2,
    train_size=48,
    save_every=2,
)


class Interrupted(Exception):
    pass


@dataclasses.dataclass
class Stopping:
    """A reporter that ends the training after a step, and remembers notes."""

    at: int = 0
    notes: list = dataclasses.field(default_factory=list)

    def start(self, stage, done, total, items_per_step):
        pass

    def update(self, step, metrics):
        if step == self.at:
            raise Interrupted

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(scope="module")
def trained(digits, tmp_path_factory):
    """(folder, defenses) of a whole run."""
    folder = tmp_path_factory.mktemp("classifier") / "run"
    return folder, fit(TINY, digits, folder)


def same(one, other):
    return jax.tree.all(jax.tree.map(lambda a, b: bool((np.asarray(a) == b).all()), one, other))


def test_the_run_says_what_validation_found_and_keeps_the_best(trained):
    folder, _ = trained
    record = json.loads((folder / "training.json").read_text())["memory"]
    assert record["steps"] == 12
    assert [row["step"] for row in record["validation"]] == [3, 6, 9, 12]
    scores = {row["step"]: row[ROBUST] for row in record["validation"]}
    assert scores[record["kept_step"]] == max(scores.values())
    assert all(row[ROBUST] <= row[CLEAN] for row in record["validation"])
    assert record["catastrophic_overfitting"] is None
    assert len(read_metrics(folder / "memory")) == 12


def test_a_training_that_was_stopped_ends_bit_for_bit_alike(trained, digits, tmp_path):
    folder = tmp_path / "run"
    for step in (5, 9):  # between a checkpoint and a validation, and right after one
        with pytest.raises(Interrupted):
            fit(TINY, digits, folder, reporter=Stopping(step))
    found = fit(TINY, digits, folder)
    assert same(found["memory"].variables, trained[1]["memory"].variables)
    for name in ("training.json", "memory/metrics.jsonl"):
        assert (folder / name).read_bytes() == (trained[0] / name).read_bytes()


def test_the_run_is_read_as_it_was_trained(trained, images):
    x, y = images
    folder, found = trained
    (again,) = load_run(folder).values()
    defense = found["memory"]
    assert isinstance(again, ClassifierDefense)
    assert again.kind == "classifier"
    assert again.spec == defense.spec
    assert again.spec.head == "memory"
    logits = again(x)
    np.testing.assert_array_equal(logits, defense(x))
    np.testing.assert_array_equal(again.select(x), np.argmax(logits, axis=-1))
    np.testing.assert_array_equal(again.undefended(x), logits)
    surfaces = again.surfaces(x, y)
    assert surfaces == {"selector": again, "deployed": again}


def test_variants_differ_in_head_and_margins_alone():
    config = dataclasses.replace(TINY, variants=("linear", "linear_margin", "memory", "benign"))
    specs = {v: config.spec(v, (28, 28, 1), 10).head for v in config.variants}
    assert specs == {
        "linear": "linear",
        "linear_margin": "linear",
        "memory": "memory",
        "benign": "linear",
    }
    assert config.recipe("memory") == config.recipe("linear_margin") == config.training
    plain = config.recipe("linear")
    assert (plain.margin, plain.clean_margin) == (0.0, 0.0)
    assert dataclasses.replace(plain, margin=4.5, clean_margin=1.5) == config.training
    assert config.recipe("benign").recipe == "plain"


def test_a_trained_classifier_serves_as_classifier_a(trained, digits, tmp_path, monkeypatch):
    folder = trained[0] / "defenses" / "memory"
    selector = SelectorConfig(recipe="trained", trained=str(folder), batch_size=16)
    config = MemoryDefenseConfig(
        selector=selector, stack=StackConfig(batch_size=16, memory_rows=20), train_size=16
    )

    # What else is trained has its own tests.
    def zeros(init):
        shapes = jax.eval_shape(init, jax.random.key(0))
        return jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)

    training = memory_training._Training
    monkeypatch.setattr(training, "benign_selector", lambda t: zeros(t.spec.init_selector))
    monkeypatch.setattr(training, "stack", lambda t: zeros(t.spec.init_stack))
    found = fit(config, digits, tmp_path / "run")
    assert list(found) == ["benign", "trained"]
    x = jnp.full((2, 28, 28, 1), 0.5)
    spec = found["trained"].spec
    assert (spec.selector, spec.head) == ("e", "memory")
    np.testing.assert_array_equal(found["trained"].selector(x), trained[1]["memory"](x))
    assert load_run(tmp_path / "run")["trained"].spec == spec

    other = dataclasses.replace(digits, info=dataclasses.replace(digits.info, fingerprint="0" * 64))
    with pytest.raises(InputError, match=r"was trained on digits with fingerprint .* has 0000"):
        fit(config, other, tmp_path / "other")
    wrong = dataclasses.replace(selector, trained=str(tmp_path / "run" / "defenses" / "benign"))
    with pytest.raises(InputError, match="holds a memory_defense, which is no classifier"):
        fit(dataclasses.replace(config, selector=wrong), digits, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@pytest.mark.parametrize("changes", [{"recipe": "trained"}, {"trained": "runs/at"}])
def test_a_trained_selector_needs_its_folder_and_its_recipe(changes):
    with pytest.raises(InputError, match="does not go with trained="):
        SelectorConfig(**changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"variants": ("cosine",)}, "use some of linear, linear_margin, memory, benign"),
        ({"variants": ()}, "cannot be trained"),
        ({"epochs": 0}, "epochs 0 is below 1"),
        ({"validate_every": 0}, "validate_every 0 is below 1"),
        ({"validation_size": -1}, "validation_size -1 is negative"),
        ({"learning_rate": 0.0}, "learning_rate 0"),
        ({"average_decay": 1.0}, r"average_decay 1 is outside \(0, 1\)"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes, sentence):
    with pytest.raises(InputError, match=sentence):
        dataclasses.replace(TINY, **changes)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"architecture": "vgg"}, "classifier 'vgg' is unknown"),
        ({"validation_size": 1437}, "a validation split of 1437 samples cannot be cut"),
        ({"train_size": 1420}, "1420 samples asked of a split of 1413"),
        ({"batch_size": 64}, "batch_size 64 does not fit a split of 48"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_folder_is_made(
    digits, tmp_path, changes, sentence
):
    with pytest.raises(InputError, match=sentence):
        fit(dataclasses.replace(TINY, **changes), digits, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_classifier_of_one_class_is_refused():
    with pytest.raises(InputError, match="1 classes cannot be told apart"):
        ClassifierSpec(image_shape=(28, 28, 1), classes=1)


@pytest.mark.parametrize("name", ["quick", "fast", "trades", "paper"])
def test_every_preset_has_the_linear_control_and_the_budget_of_its_images(name):
    for shape, eps in (((28, 28, 1), 0.1), ((32, 32, 3), 8 / 255)):
        config = preset(name, shape, kind="classifier")
        assert {"linear_margin", "memory"} <= set(config.variants)
        assert config.training.eps == eps
        assert (config.training.margin, config.training.clean_margin) == (4.5, 1.5)
    few = preset(name, (28, 28, 1), 1437, kind="classifier")
    assert few.validation_size == 143
