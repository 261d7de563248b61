"""Stored adversarial examples: reused where whole, made again where not."""

import hashlib
import json
import os
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from memdef_jax import data
from memdef_jax.attacks import PGD
from memdef_jax.checks import InputError
from memdef_jax.defenses import examples
from memdef_jax.training import Silent

ATTACK = PGD(eps=0.3, step_size=0.2, steps=2, early_stop=False)


class Counting(Silent):
    def __init__(self):
        self.started, self.made = [], 0

    def start(self, stage, done, total, items_per_step):
        self.started.append((done, total))

    def update(self, step, metrics):
        self.made += 1


@pytest.fixture(autouse=True)
def parts_of_four(monkeypatch):
    monkeypatch.setattr(examples, "PART", 4)


@pytest.fixture
def split():
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (10, 3, 3, 1), dtype=np.uint8)
    return data.Split(images, rng.integers(0, 3, 10).astype(np.int32))


@pytest.fixture
def model():
    weights = jnp.float32(np.random.default_rng(1).normal(size=(9, 3)))
    return jax.tree_util.Partial(lambda w, x: x.reshape(len(x), -1) @ w, weights)


def make(model, split, folder, reporter=None, key=0):
    return examples.adversarial_examples(
        lambda index: ATTACK, model, split, jax.random.key(key), folder, reporter or Silent()
    )


def test_the_parts_together_are_one_attack_on_the_whole_split(model, split, tmp_path):
    images, success = make(model, split, tmp_path)
    x, y = jnp.asarray(data.to_float(split.images)), jnp.asarray(split.labels)
    whole = ATTACK.run(model, x, y, key=jax.random.key(0))
    np.testing.assert_allclose(np.asarray(images), whole.images, atol=1e-6)
    wrong = np.asarray(model(np.asarray(images))).argmax(1) != split.labels
    np.testing.assert_array_equal(success, wrong)
    assert images.dtype == np.float32
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"part_{i:05d}" for i in range(3)]


def test_stored_parts_are_reused_and_only_missing_or_damaged_ones_made(model, split, tmp_path):
    first = make(model, split, tmp_path)
    parts = sorted(tmp_path.iterdir())
    shutil.rmtree(parts[0])
    victim = parts[2] / "images.npy"
    torn = victim.with_name("torn")  # of a name of its own: the first result maps the whole one
    torn.write_bytes(victim.read_bytes()[:-1])
    torn.replace(victim)
    untouched = os.stat(parts[1]).st_mtime_ns
    reporter = Counting()
    second = make(model, split, tmp_path, reporter)
    assert (reporter.started, reporter.made) == ([(1, 3)], 2)
    assert os.stat(parts[1]).st_mtime_ns == untouched
    for a, b in zip(first, second):
        assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
    reporter = Counting()
    make(model, split, tmp_path, reporter)
    assert (reporter.started, reporter.made) == ([(3, 3)], 0)


@pytest.mark.parametrize(
    "about",
    [
        {"success": [True]},
        {"success": ["yes"] * 4},
        {"success": 4},
        {"success": [1, 0, 1, 1]},
        {"sha256": None},
        {"sha256": "0" * 64},
    ],
)
def test_a_part_that_says_odd_things_is_made_again(model, split, tmp_path, about):
    make(model, split, tmp_path)
    path = tmp_path / "part_00000" / "part.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | about))
    reporter = Counting()
    make(model, split, tmp_path, reporter)
    assert (reporter.started, reporter.made) == ([(2, 3)], 1)


@pytest.mark.parametrize("dtype", [np.float64, ">f4", np.object_])
def test_a_part_of_other_numbers_is_made_again(model, split, tmp_path, dtype):
    images, _ = make(model, split, tmp_path)
    part = tmp_path / "part_00000"
    np.save(part / "images.npy", np.asarray(images)[:4].astype(dtype))
    about = json.loads((part / "part.json").read_text())
    about["sha256"] = hashlib.sha256((part / "images.npy").read_bytes()).hexdigest()
    (part / "part.json").write_text(json.dumps(about))
    reporter = Counting()
    make(model, split, tmp_path, reporter)
    assert (reporter.started, reporter.made) == ([(2, 3)], 1)


def test_the_images_stay_in_their_files(model, split, tmp_path):
    for _ in range(2):  # just made, and found
        images, _ = make(model, split, tmp_path)
        assert all(isinstance(part.base, np.memmap) for part in images.parts)
        assert not any(part.flags.writeable for part in images.parts)


def test_parts_of_another_split_are_made_again(model, split, tmp_path):
    make(model, split, tmp_path)
    shorter = split[:9]
    reporter = Counting()
    images, _ = make(model, shorter, tmp_path, reporter)
    assert (reporter.started, reporter.made) == ([(2, 3)], 1)
    assert len(images) == 9


def test_a_folder_that_cannot_be_written_is_one_sentence(model, split, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        make(model, split, tmp_path / "file")


def test_mixed_batches_alternate_benign_and_adversarial_samples_in_one_scale(split):
    shades = np.arange(10, dtype=np.float32) / 16
    found = data.Joined((shades[:, None, None, None] * np.ones((3, 3, 1), np.float32),))
    chosen = np.array([2, 5, 9])
    batches = examples.mixed_batches(split, found, chosen, 6, seeds=(1, 2))
    for step in range(3):
        batch = batches(step)
        assert batch["image"].dtype == np.float32
        shown = batch["image"][:, 0, 0, 0]
        attacked = np.int32(shown[1::2] * 16)
        np.testing.assert_array_equal(np.sort(attacked), chosen)
        np.testing.assert_array_equal(batch["label"][1::2], split.labels[attacked])
        index = data.batch_indices(10, step, 3, seed=1)
        np.testing.assert_array_equal(batch["image"][::2], data.to_float(split.images[index]))
        np.testing.assert_array_equal(batch["label"][::2], split.labels[index])
        for rows in (slice(0, 3), slice(3, 4), slice(1, 2)):  # what some process would make
            part = examples.mixed_batches(split, found, chosen, 6, (1, 2), rows)(step)
            np.testing.assert_array_equal(part["image"], batch["image"][rows])
            np.testing.assert_array_equal(part["label"], batch["label"][rows])
