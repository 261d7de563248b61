"""The attack with a substitute, on linear classifiers whose every number can be counted by hand."""

import dataclasses
import importlib
import json
import operator
from functools import partial
from typing import ClassVar
from unittest import mock

import flax.linen
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tyro
from scipy.stats import binomtest

from memdef_jax import nn
from memdef_jax.attacks import train_substitute
from memdef_jax.checks import InputError
from memdef_jax.data import Split
from memdef_jax.data.dataset import make_dataset
from memdef_jax.defenses import MemoryDefense, MemoryDefenseSpec, VAEDefense, VAEDefenseSpec, save
from memdef_jax.evaluation.beyond import black_box
from memdef_jax.evaluation.beyond.black_box import BlackBoxConfig
from memdef_jax.training.run import VERSION
from tests.evaluation.toys import Linear

CLASSES, COUNT, SEEDS, EPS = 3, 40, 150, 0.15
BASIC = BlackBoxConfig(substitutes=("tiny",), count=COUNT, eps=EPS)


class Tiny(flax.linen.Module):
    """A linear substitute, whose gradient has a closed form."""

    classes: int
    axis_name: str | None = None

    @flax.linen.compact
    def __call__(self, x, train=False, dropout_keys=None):
        return flax.linen.Dense(self.classes)(x.reshape(len(x), -1))


class Normalised(Tiny):
    @flax.linen.compact
    def __call__(self, x, train=False, dropout_keys=None):
        return Tiny(self.classes)(flax.linen.BatchNorm(use_running_average=True)(x))


@dataclasses.dataclass(frozen=True)
class Spec:
    classes: int = CLASSES
    classifier: str = "linear"


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class Guarded:
    undefended: Linear | None
    pipeline: Linear
    spec: ClassVar[Spec] = Spec()
    kind: ClassVar[str] = "toy"

    def __call__(self, x):
        return self.pipeline(x)


def linear(seed):
    w = np.random.default_rng(seed).normal(size=(9, CLASSES))
    return Linear(jnp.asarray(w, jnp.float32), jnp.asarray(-0.5 * w.sum(0), jnp.float32))


def named(model, x):
    """The classes that a linear model names, in numpy."""
    return (np.float64(x).reshape(len(x), -1) @ np.float64(model.w) + np.float64(model.b)).argmax(
        -1
    )


@pytest.fixture(scope="module")
def defenses():
    base = linear(0)
    bent = Linear(base.w + 0.5 * linear(1).w, base.b + 0.5 * linear(1).b)
    return {"one": Guarded(base, bent), "two": Guarded(base, linear(2))}


@pytest.fixture(scope="module")
def dataset():
    """200 test images of 3x3 pixels, which the undefended classifier mostly names rightly."""
    draw = np.random.default_rng(5)
    images = draw.integers(0, 256, (200, 3, 3, 1), dtype=np.uint8)
    labels = named(linear(0), images / 255).astype(np.int32)
    labels[::7] = (labels[::7] + 1) % CLASSES
    test = Split(images, labels)
    return make_dataset("toys", ("a", "b", "c"), test[:9], test, "made here")


@pytest.fixture(scope="module")
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(nn.CLASSIFIERS, "tiny", Tiny)
        patch.setitem(nn.CLASSIFIERS, "normalised", Normalised)
        yield


@dataclasses.dataclass
class Seen:
    """What training and crafting were given and gave back, in turn."""

    trained: list = dataclasses.field(default_factory=list)
    crafted: list = dataclasses.field(default_factory=list)


@pytest.fixture(scope="module")
def seen(tiny):
    seen = Seen()
    train, craft = black_box.train_substitute, black_box.craft

    def watched_training(oracle, apply, params, seeds, **settings):
        learned = train(oracle, apply, params, seeds, **settings)
        seen.trained.append((oracle, np.asarray(seeds), settings, learned))
        return learned

    def watched_crafting(*arguments):
        seen.crafted.append(craft(*arguments))
        return seen.crafted[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(black_box, "train_substitute", watched_training)
        patch.setattr(black_box, "craft", watched_crafting)
        yield seen


@pytest.fixture(scope="module")
def measured(seen, defenses, dataset, tmp_path_factory):
    """(folder, content, what was seen) of both oracles."""
    folder = tmp_path_factory.mktemp("measured")
    content = black_box.measure(defenses, dataset, BASIC, folder)
    return folder, content, Seen(seen.trained[:], seen.crafted[:])


def test_there_is_a_row_for_each_oracle_and_it_is_what_the_file_holds(measured, dataset):
    folder, content, _ = measured
    assert json.loads((folder / "black_box.json").read_text()) == content
    head = {name: content[name] for name in ("dataset", "fingerprint", "classifier", "kind")}
    print_ = dataset.info.fingerprint
    assert head == {
        "dataset": "toys", "fingerprint": print_, "classifier": "linear", "kind": "toy",
    }  # fmt: skip
    rows = content["rows"]
    assert [row["oracle"] for row in rows] == ["undefended", "one", "two"]
    assert [list(row["variants"]) for row in rows] == [["one", "two"], ["one"], ["two"]]
    for row in rows:
        identity = [row[name] for name in ("substitute", "eps", "n", "seed", "queries")]
        assert identity == ["tiny", EPS, COUNT, 0, SEEDS * 2**5]


def test_the_attacker_begins_with_the_first_images_and_asks_the_oracle(measured, defenses, dataset):
    seen = measured[2]
    asked = [oracle for oracle, *_ in seen.trained]
    assert asked[0] is defenses["one"].undefended
    assert asked[1:] == list(defenses.values())
    for _, seeds, settings, _ in seen.trained:
        np.testing.assert_allclose(seeds, dataset.test.images[:SEEDS] / 255, atol=1e-7)
        assert set(settings) == {"key", "apply_in_training"}, (
            "Defense-VAE's settings are the defaults"
        )


def test_what_is_attacked_comes_after_and_stays_within_eps(measured, dataset):
    clean = dataset.test.images[SEEDS : SEEDS + COUNT] / 255
    assert len(measured[2].crafted) == 3
    for images in measured[2].crafted:
        assert images.shape == clean.shape
        assert images.min() >= 0
        assert images.max() <= 1
        change = np.abs(images - clean)
        assert change.max() <= EPS + 1e-6
        assert change.max() > EPS - 1e-6


def test_the_numbers_are_those_counted_by_hand(measured, defenses, dataset):
    part = dataset.test[SEEDS : SEEDS + COUNT]
    x, y = part.images / 255, part.labels
    for row, (_, _, _, learned) in zip(measured[1]["rows"], measured[2].trained, strict=True):
        (bound,) = learned.logits_fn.args
        dense = jax.tree.map(np.float64, bound.variables["params"]["Dense_0"])
        logits = x.reshape(COUNT, -1) @ dense["kernel"] + dense["bias"]
        shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
        gradient = (shares - np.eye(CLASSES)[y]) @ dense["kernel"].T
        attacked = np.clip(x + EPS * np.sign(gradient).reshape(x.shape), 0, 1)
        undefended = defenses["one"].undefended
        assert row["clean_undefended"] == np.mean(named(undefended, x) == y)
        assert row["undefended"] == np.mean(named(undefended, attacked) == y)
        for name, found in row["variants"].items():
            right = int((named(defenses[name].pipeline, attacked) == y).sum())
            interval = binomtest(right, COUNT).proportion_ci(method="wilson")
            assert found["clean"] == np.mean(named(defenses[name].pipeline, x) == y)
            assert found["robust"] == right / COUNT
            assert found["interval"] == pytest.approx([interval.low, interval.high])


def test_the_attack_works_best_on_who_answered(measured):
    published, _, own = measured[1]["rows"]
    assert published["agreement"] > 0.9
    assert published["undefended"] < published["clean_undefended"] - 0.3
    stranger = published["variants"]["two"]  # another model than the one that answered
    assert own["variants"]["two"]["robust"] < stranger["robust"] - 0.2
    assert own["undefended"] > published["undefended"] + 0.2


def test_true_labels_of_the_attackers_images_are_not_looked_at(
    measured, defenses, dataset, tmp_path
):
    labels = dataset.test.labels.copy()
    labels[:SEEDS] = np.arange(SEEDS) % CLASSES
    other = dataclasses.replace(dataset, test=Split(dataset.test.images, labels))
    config = dataclasses.replace(BASIC, oracle="undefended")
    rows = black_box.measure(defenses, other, config, tmp_path)["rows"]
    assert rows == measured[1]["rows"][:1]


def test_a_substitute_with_dropout_is_trained_with_it(oracle_of_digits, digits):
    """Classifiers D and E of the papers differ in nothing else."""
    seeds = digits.test.take(20)
    images = jnp.asarray(seeds.images, jnp.float32) / 255
    found = {}
    with mock.patch.object(
        black_box, "train_substitute", partial(train_substitute, rounds=1, epochs=2)
    ):
        for name in ("d", "e"):
            learned = black_box.learn(name, oracle_of_digits, seeds, 10, 0)
            found[name] = np.asarray(learned.logits_fn(images))
    start = learned.logits_fn.args[0].module
    keys = jax.random.split(jax.random.key(0))
    bound = nn.Bound(start, jax.jit(start.init)(keys[0], images[:1]))
    plain = train_substitute(
        oracle_of_digits, operator.call, bound, images, key=keys[1], rounds=1, epochs=2
    )
    np.testing.assert_allclose(found["e"], plain.logits_fn(images), rtol=1e-4, atol=1e-5)
    assert np.abs(found["d"] - found["e"]).max() > 1e-2


@pytest.fixture
def oracle_of_digits(digits):
    """The class whose mean image is nearest."""
    plain = digits.train.images.reshape(len(digits.train), -1) / np.float32(255)
    means = np.stack([plain[digits.train.labels == k].mean(0) for k in range(10)])
    return lambda x: -jnp.square(x.reshape(len(x), 1, -1) - means).sum(-1)


def test_images_that_come_class_by_class_are_mixed_and_none_is_on_both_sides():
    images = np.arange(200, dtype=np.uint8).reshape(-1, 1, 1, 1)
    split = Split(images, np.repeat(np.arange(4, dtype=np.int32), 50))
    seeds, rest = black_box.divide(split, None)
    some, few = black_box.divide(split, 20)
    assert set(seeds.labels) == set(rest.labels) == {0, 1, 2, 3}
    both = np.concatenate([seeds.images, rest.images]).ravel()
    assert sorted(both) == list(range(200))
    np.testing.assert_array_equal(some.images, seeds.images)
    np.testing.assert_array_equal(few.images, rest.images[:20])


def test_what_was_stopped_goes_on_and_ends_the_same(
    measured, seen, defenses, dataset, notes, tmp_path
):
    stopped, again = notes(fail_at=2), notes()
    with pytest.raises(ConnectionResetError):
        black_box.measure(defenses, dataset, BASIC, tmp_path, stopped)
    kept = json.loads((tmp_path / "black_box.json").read_text())
    assert kept["rows"] == measured[1]["rows"][:2]
    before = len(seen.trained)
    content = black_box.measure(defenses, dataset, BASIC, tmp_path, again)
    assert len(seen.trained) == before + 1
    assert (again.started, again.updates) == ([("black box", 2, 3, 1)], [3])
    assert content == measured[1]
    whole = (measured[0] / "black_box.json").read_bytes()
    assert (tmp_path / "black_box.json").read_bytes() == whole

    done = notes()
    assert black_box.measure(defenses, dataset, BASIC, tmp_path, done) == content
    assert len(seen.trained) == before + 1
    assert (done.started, done.updates) == ([("black box", 3, 3, 1)], [])
    assert (tmp_path / "black_box.json").read_bytes() == whole


def test_other_settings_are_other_rows_of_the_same_file(measured, defenses, dataset, tmp_path):
    (tmp_path / "black_box.json").write_bytes((measured[0] / "black_box.json").read_bytes())
    changes = {"oracle": "undefended", "count": None, "eps": 0.0, "seed": 1}
    config = dataclasses.replace(BASIC, **changes)
    content = black_box.measure(defenses, dataset, config, tmp_path)
    assert content["rows"][:3] == measured[1]["rows"]
    (row,) = content["rows"][3:]
    assert (row["n"], row["eps"], row["seed"]) == (200 - SEEDS, 0.0, 1)
    assert row["undefended"] == row["clean_undefended"]
    assert all(v["robust"] == v["clean"] for v in row["variants"].values())

    header, lines = black_box.as_table(content)
    assert {len(line) for line in lines} == {len(header)}
    assert [line[0] for line in lines] == ["none", "tiny", "tiny", "tiny", "none", "tiny"]
    by_hand = content["rows"][1]["variants"]["one"]
    low, high = (100 * bound for bound in by_hand["interval"])
    assert dict(zip(header, lines[2])) == {
        "substitute": "tiny", "oracle": "one", "eps": "0.15", "images": str(COUNT), "seed": "0",
        "agreement %": f"{100 * content['rows'][1]['agreement']:.1f}",
        "undefended %": f"{100 * content['rows'][1]['undefended']:.1f}",
        "one %": f"{100 * by_hand['robust']:.1f} ({low:.1f}-{high:.1f})", "two %": "-",
    }  # fmt: skip
    text = black_box.as_document(content)
    assert text.startswith("# FGSM from a substitute: toy of classifier linear on toys\n")
    for line in lines:
        assert "| " + " | ".join(line) + " |" in text


@pytest.mark.parametrize("stored", ["{", '{"rows": 1}', "another's", "without dropout"])
def test_a_file_that_is_damaged_or_anothers_is_measured_anew(
    measured, defenses, dataset, tmp_path, stored
):
    config = dataclasses.replace(BASIC, oracle="undefended")
    content = {**measured[1], "rows": [{**row, "queries": 0} for row in measured[1]["rows"]]}
    if stored == "another's":
        stored = json.dumps({**content, "fingerprint": "0"})
    elif stored == "without dropout":  # as they were trained before it was drawn
        del content["dropout"]
        stored = json.dumps(content)
    (tmp_path / "black_box.json").write_text(stored)
    content = black_box.measure(defenses, dataset, config, tmp_path)
    assert content["rows"] == measured[1]["rows"][:1]


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"substitutes": ()}, "no substitute was given"),
        ({"substitutes": ("tiny", "f")}, "classifier 'f' is unknown; use one of small_cnn"),
        ({"substitutes": ("normalised",)}, "substitute 'normalised' has BatchNorm"),
        ({"substitutes": ("b",)}, "images of 3x3 are too small"),
        ({"oracle": "labels"}, "oracle 'labels' is unknown; use one of undefended, deployed, both"),
        ({"count": 0}, "count 0 is below 1"),
        ({"count": 51}, "51 images cannot be attacked: of 200 test images .* 50 are left"),
        ({"eps": 25}, r"eps 25 is outside \[0, 1\]"),
        ({"seed": -1}, "seed -1 is negative"),
    ],
)
@pytest.mark.usefixtures("tiny")
def test_settings_that_cannot_be_are_refused_before_any_work(
    defenses, dataset, tmp_path, change, sentence
):
    folder = tmp_path / "run"
    with pytest.raises(InputError, match=sentence):
        black_box.measure(defenses, dataset, dataclasses.replace(BASIC, **change), folder)
    assert not folder.exists()


@pytest.mark.usefixtures("tiny")
def test_defenses_and_data_that_cannot_be_attacked_are_refused(defenses, dataset, tmp_path):
    folder, one = tmp_path / "run", defenses["one"]
    memory = MemoryDefense(MemoryDefenseSpec(image_shape=(28, 28, 1), classes=10), {})
    few = dataclasses.replace(dataset, test=dataset.test[:SEEDS])
    two = make_dataset("two", ("a", "b"), dataset.train, dataset.test, "made here")
    for given, data, sentence in (
        ({"benign": memory}, dataset, r"the benign defense \(memory_defense\) has no undefended"),
        ({"bare": Guarded(None, one.pipeline)}, dataset, r"the bare defense \(toy\) has no undef"),
        ({"undefended": one}, dataset, "none of them named 'undefended'"),
        ({}, dataset, "give one or more"),
        (defenses, few, "all images cannot be attacked: of 150 test images"),
        (defenses, two, "the one defense tells 3 classes apart and two has 2"),
    ):
        config = dataclasses.replace(BASIC, count=None)
        with pytest.raises(InputError, match=sentence):
            black_box.measure(given, data, config, folder)
    assert not folder.exists()


@pytest.fixture
def stored_run(digits, tmp_path):
    """A run of two purifiers that were never trained, over one classifier of digits."""
    spec = VAEDefenseSpec(image_shape=(28, 28, 1), classes=10, classifier="e", latent_size=4)
    first = spec.init(jax.random.key(0))
    second = jax.tree.map(lambda values: 1.5 * values, first)
    variants = {"vae": first, "rec": {**second, "undefended": first["undefended"]}}
    run = {
        "kind": "defense_vae",
        "dataset": digits.info.name,
        "fingerprint": digits.info.fingerprint,
        "config": {},
        "defenses": [*variants],
    }
    (tmp_path / "run.json").write_text(json.dumps({"version": VERSION, "run": run}))
    for name, variables in variants.items():
        save(VAEDefense(spec, variables), tmp_path / "defenses" / name)
    return tmp_path


@pytest.mark.usefixtures("tiny")
def test_the_program_attacks_a_stored_run_and_writes_what_it_prints(
    stored_run, capsys, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "200")
    program = importlib.import_module("eval.black_box").main
    arguments = ["--run", stored_run, "--substitutes", "tiny", "--count", "12"]
    arguments += ["--oracle", "undefended"]
    tyro.cli(program, args=[str(a) for a in arguments])
    out = capsys.readouterr().out
    content = json.loads((stored_run / "black_box.json").read_text())
    assert [content[k] for k in ("kind", "classifier", "dataset")] == ["defense_vae", "e", "digits"]
    (row,) = content["rows"]
    assert [row[k] for k in ("substitute", "oracle", "eps", "n")] == ["tiny", "undefended", 0.3, 12]
    assert list(row["variants"]) == ["vae", "rec"]
    header, lines = black_box.as_table(content)
    assert (stored_run / "black_box.md").read_text() == black_box.as_document(content)
    for cell in {*header, *(cell for line in lines for cell in line)}:
        assert cell in out
    assert f"table: {stored_run / 'black_box.md'}" in out
