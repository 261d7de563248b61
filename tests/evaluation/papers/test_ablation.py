"""The ablation: variants differ in one setting, share a classifier-A, and are measured alike."""

import dataclasses
import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro

from memdef_jax import attacks, data
from memdef_jax.checks import InputError
from memdef_jax.defenses import StackConfig, fit, load_run
from memdef_jax.evaluation import read_records
from memdef_jax.evaluation.papers import ablation, stacks
from memdef_jax.evaluation.papers.ablation import BASE, FACTORS, variants
from memdef_jax.training import TrainingDiverged
from tests.evaluation import compiled, handmade

COUNT, EPS = 16, 0.1


# --- what is varied -----------------------------------------------------------------------------


def test_every_variant_changes_exactly_one_field():
    base = StackConfig(entropy_reduction="mean", epochs=7, learning_rate=3e-3)
    found = variants(base, tuple(FACTORS))
    assert next(iter(found)) == BASE
    assert found.pop(BASE) == base
    here = dataclasses.asdict(base)
    for name, stack in found.items():
        there = dataclasses.asdict(stack)
        changed = [field for field in here if here[field] != there[field]]
        assert changed == [name.partition("=")[0]]
    assert {name.partition("=")[0] for name in found} == set(FACTORS)


def test_every_value_is_tried_once_and_the_bases_own_left_out():
    found = variants(StackConfig(), tuple(FACTORS))
    assert len(found) == 1 + sum(len(values) - 1 for values in FACTORS.values())
    assert len(set(found.values())) == len(found)
    assert {"beta=0", "cross_entropy_weight=0", "memory_rows=0", "alpha=0"} <= set(found)
    assert {"mse_reduction=sum", "noise_is_variance=True", "random_mask_share=0.5"} <= set(found)


def test_thresholds_are_multiples_of_one_over_the_rows():
    found = variants(StackConfig(memory_rows=200), ("shrink_threshold",))
    values = [stack.shrink_threshold for stack in found.values()]
    assert values == [1e-12, 1 / 200, 2 / 200, 3 / 200]  # the base shrinks nothing
    above = variants(StackConfig(shrink_threshold=0.3), ("shrink_threshold",))
    assert [stack.shrink_threshold for stack in above.values()][:2] == [0.3, 1e-12]
    assert list(variants(StackConfig(memory_rows=0), ("shrink_threshold",))) == [BASE]


def test_an_unknown_factor_is_refused(digits, tmp_path):
    with pytest.raises(InputError, match="factor 'gamma' is unknown; use some of shrink_order, "):
        variants(StackConfig(), ("beta", "gamma"))


@pytest.mark.parametrize(("size", "epochs"), [(None, None), (200, None), (None, 4), (128, 1)])
def test_the_study_begins_at_the_quick_preset(digits, size, epochs):
    config = stacks.study_config(digits, "offline", size, epochs)
    whole = stacks.preset("quick", (28, 28, 1), size or 1437)
    assert config.selector.recipe == "offline"
    assert config.train_size == size
    for stage in (config.stack, config.selector):
        assert stage.epochs == (epochs or getattr(whole, type(stage).__name__[:-6].lower()).epochs)
    changed = {"epochs", "benign_epochs", "recipe"}
    for part in ("stack", "selector"):
        here, there = (dataclasses.asdict(getattr(c, part)) for c in (config, whole))
        assert {k for k in here if here[k] != there[k]} <= changed
    with pytest.raises(InputError, match="train_size 0 is below 1"):
        stacks.study_config(digits, "benign", 0)


# --- what is trained ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def start(tmp_path_factory):
    """start(*arguments): the program, on a base that is quick to compile, with alpha 2e-4 and 0."""
    program = importlib.import_module("eval.ablation")

    def tiny(*arguments):
        config = stacks.study_config(*arguments)
        return dataclasses.replace(config, stack=dataclasses.replace(config.stack, beta=0.0))

    def run(*arguments):
        tyro.cli(program.main, args=[str(a) for a in arguments])

    with (
        pytest.MonkeyPatch.context() as patch,
        compiled.quickly(tmp_path_factory.mktemp("compiled")),
    ):
        patch.setattr(program, "study_config", tiny)
        patch.setitem(FACTORS, "alpha", (0.0, 2e-4))
        yield run


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ablation")
    return [
        "--run", folder, "--dataset", "digits", "--factors", "alpha", "--train-size", "128",
        "--epochs", "1", "--eps", EPS, "--count", COUNT,
    ]  # fmt: skip


@pytest.fixture(scope="module")
def trained(start, arguments):
    """The folder after the program has run."""
    start(*arguments)
    return arguments[1]


@pytest.fixture(scope="module")
def rows(trained):
    return {row["variant"]: row for row in json.loads((trained / "ablation.json").read_text())}


def test_variants_share_classifier_a_and_each_is_a_run(trained):
    names = (BASE, "alpha=0")
    one, other = (load_run(trained / name)["benign"] for name in names)
    same = jax.tree.map(np.array_equal, one.variables["selector"], other.variables["selector"])
    assert all(jax.tree.leaves(same))
    one, other = (defense.variables["stack"]["params"]["autoencoder"] for defense in (one, other))
    assert not np.array_equal(one["memory"], other["memory"])
    configs = [json.loads((trained / n / "run.json").read_text())["run"]["config"] for n in names]
    assert [config["stack"]["alpha"] for config in configs] == [2e-4, 0.0]


def test_a_variant_is_what_fit_alone_would_have_made_of_it(trained, digits, tmp_path):
    config = stacks.study_config(digits, "benign", 128, 1)
    stack = dataclasses.replace(config.stack, beta=0.0, alpha=0.0)
    config = dataclasses.replace(config, stack=stack)
    alone = fit(config, digits, tmp_path / "run")["benign"]
    variant = load_run(trained / "alpha=0")["benign"]
    assert alone.spec == variant.spec
    for ours, theirs in zip(
        jax.tree.leaves(variant.variables), jax.tree.leaves(alone.variables), strict=True
    ):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)
    files = [
        json.loads((f / "run.json").read_text()) for f in (trained / "alpha=0", tmp_path / "run")
    ]
    assert files[0] == files[1]


def test_numbers_are_those_of_the_variants_own_defense(trained, rows, digits):
    answers = jax.jit(lambda defense, x: jnp.argmax(defense(x), axis=-1))
    split = digits.test[:COUNT]
    x, y = data.to_float(jnp.asarray(split.images)), jnp.asarray(split.labels)
    for name in (BASE, "alpha=0"):
        defense, row = load_run(trained / name)["benign"], rows[name]
        assert row["clean"] == np.mean(answers(defense, x) == split.labels)
        assert (row["n"], row["stopped"]) == (COUNT, None)
        attack = attacks.FGSM(eps=EPS, early_stop=False)
        attacked = attack(defense.surfaces(x, y)["frozen_mask"], x, y)
        right = answers(defense, attacked) == split.labels
        assert row["robust"] == {"fgsm 0.1": right.mean()}
        rebuilt = np.asarray(handmade.rebuild(defense, x, y))
        mse = np.square(np.asarray(x) - rebuilt).mean()
        assert row["diagnostics"]["mse"] == pytest.approx(mse, rel=1e-4)


def test_the_target_classifier_is_classifier_b_on_plain_images(trained, rows, digits):
    records = read_records(trained / "target_classifier").values()
    assert {(r["threat"], r["attack"]) for r in records} >= {("grey_box", "fgsm")}
    assert {r["selector"] for r in records} == {"target_classifier"}
    row = rows["target_classifier"]
    assert row["diagnostics"] == {}
    assert row["clean"] == next(r["robust_accuracy"] for r in records if r["threat"] == "none")
    config = stacks.study_config(digits, "benign", 128, 1)
    config = dataclasses.replace(config, stack=dataclasses.replace(config.stack, beta=0.0))
    again = stacks.fit_target(config, digits, trained / "target_classifier")
    part = digits.test[:COUNT]
    x = data.to_float(jnp.asarray(part.images))
    assert row["clean"] == np.mean(np.argmax(again(x), axis=-1) == part.labels)


def test_the_same_command_makes_nothing_anew(trained, start, arguments, rows, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "250")
    kept = [*trained.glob("*/robustness.jsonl"), *trained.glob("*/*/metrics.jsonl")]
    before = {path: path.read_bytes() for path in kept}
    assert len(before) == 3 + 5
    start(*arguments)
    out = capsys.readouterr().out
    for stage in ("selector_benign", "stack", "target_classifier", "evaluation"):
        assert f"{stage}: done before" in out
    assert {path: path.read_bytes() for path in kept} == before
    assert {r["variant"]: r for r in json.loads((trained / "ablation.json").read_text())} == rows
    document = (trained / "ablation.md").read_text()
    for line in ablation.as_table(list(rows.values()))[1]:
        assert "| " + " | ".join(line) + " |" in document
        assert line[0] in out


# --- what goes wrong ----------------------------------------------------------------------------


def test_a_training_that_has_to_stop_is_told_and_the_others_go_on(digits, tmp_path, monkeypatch):
    made, trained = [], object()

    def fitted(config, dataset, folder, reporter=None):
        made.append(folder.name)
        stage = folder / "selector_benign"
        stage.mkdir(parents=True, exist_ok=True)
        (stage / "state").write_text("A")
        (folder / "run.json").write_text(json.dumps({"version": 1, "run": {"kind": "k"}}))
        if config.stack.beta == 1.0:
            raise TrainingDiverged("stack: loss is nan at step 3.")
        return {"benign": trained}

    monkeypatch.setattr(stacks, "fit", fitted)
    config = stacks.study_config(digits, "benign", 128, 1)
    betas = {f"beta={b}": dataclasses.replace(config.stack, beta=b) for b in (0.5, 1.0, 2.0)}
    found = list(stacks.fit_variants(config, betas, digits, tmp_path))
    assert [variant.stopped for variant in found] == [None, "stack: loss is nan at step 3.", None]
    assert found[1].defenses == {}
    assert found[2].deployed is trained
    for name in made[1:]:
        assert (tmp_path / name / "selector_benign" / "state").read_text() == "A"

    row = ablation._row("beta=1", [], {}, found[1].stopped)
    header, (line,) = ablation.as_table([row])
    assert len(header) == len(line)
    assert set(line[1:]) == {"-"}


def test_variants_that_do_not_fit_are_refused_before_any_work(digits, tmp_path):
    config = stacks.study_config(digits, "benign", 128, 1)
    bad = {"a": config.stack, "b": dataclasses.replace(config.stack, memory_rows=15)}
    with pytest.raises(InputError, match="memory rows 15 are not divisible"):
        next(stacks.fit_variants(config, bad, digits, tmp_path / "runs"))
    assert not (tmp_path / "runs").exists()
