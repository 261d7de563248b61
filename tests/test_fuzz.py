"""What comes from an untrusted place is read or refused in one sentence: 14,000 malformed inputs.

Each begins as a whole file and is harmed a few times: bytes, or the values of its JSON. The seed is
fixed, so that a failure can be looked at; MEMDEF_JAX_FUZZ=7 is another seed, for another 14,000.
"""

import copy
import gzip
import hashlib
import io
import json
import os
import random
import tarfile
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from memdef_jax.checks import InputError
from memdef_jax.data import Split, official, raw
from memdef_jax.defenses import examples, load, load_run, store
from memdef_jax.evaluation.sweeps.records import (
    IDENTITY,
    append_record,
    read_outcomes,
    read_records,
)
from memdef_jax.training import checkpoints
from memdef_jax.training.run import open_run, read_run

SEED = int(os.environ.get("MEMDEF_JAX_FUZZ", "0"))
VALUES = [
    None, True, 0, -1, 7, 10**12, -(2**31), 2**63, 10**400, 0.5, float("nan"), float("inf"), -0.0,
    "", "..", "../../x", "/etc/passwd", "\x00", "\x1b[31m", "ä" * 300, "C:\\x", "a/b", ".",
    "benign", [], {}, [[]], [1, 2, 3], [28, 28, 1], [10**9] * 3, ["x"] * 50, {"version": 2},
    {"a": {"b": []}},
]  # fmt: skip
TOKENS = [
    b"null", b"1e999", b"-1", b"9" * 25, b"9" * 5000, b"NaN", b"Infinity", b'"../.."', b"{", b"]",
    b"[" * 3000, b'{"a":' * 3000, b"\xff\xfe", b"\x00", b"\n", b"\xed\xa0\x80", b'"\\ud800"', b",",
]  # fmt: skip
RUN = {"kind": "memory_defense", "dataset": "digits", "fingerprint": "ab", "defenses": ["benign"]}
RUN["config"] = {"selector": {"eps": 0.1, "shape": [28, 28]}, "stack": {"epochs": 3}, "seed": 0}
SPECS = {
    "memory_defense": {"image_shape": [28, 28, 1], "classes": 10, "memory_rows": 20},
    "mad_vae": {"image_shape": [28, 28, 1], "classes": 10, "kind": "mad_vae", "latent_size": 8},
}


def harmed_bytes(draw, data):
    """A copy of some bytes, harmed one to three times."""
    found = bytearray(data)
    for _ in range(draw.randint(1, 3)):
        place = draw.randrange(len(found) + 1)
        way = draw.randrange(5)
        if way == 0 and found:
            found[place - 1] ^= 1 << draw.randrange(8)
        elif way == 1:
            del found[place:]
        elif way == 2:
            found[place:place] = draw.choice(TOKENS)
        elif way == 3:
            found[place : place + draw.randrange(1, 9)] = draw.choice(TOKENS)
        else:
            found[place:place] = found[: draw.randrange(len(found) + 1)]
    return bytes(found)


def harmed_values(draw, content):
    """A copy of JSON-able content in which one to three values or names are others."""
    found = json.loads(json.dumps(content))
    for _ in range(draw.randint(1, 3)):
        parent, name = None, None
        inner = found
        while isinstance(inner, (dict, list)) and inner and (parent is None or draw.random() < 0.8):
            parent = inner
            name = draw.choice(list(inner) if isinstance(inner, dict) else range(len(inner)))
            inner = inner[name]
        if parent is None:
            break
        if isinstance(parent, dict) and draw.random() < 0.2:
            parent[draw.choice([v for v in VALUES if isinstance(v, str)])] = parent.pop(name)
        else:
            parent[name] = copy.deepcopy(draw.choice(VALUES))
    return json.dumps(found).encode()


def harmed(draw, content):
    if draw.random() < 0.5:
        return harmed_values(draw, content)
    return harmed_bytes(draw, json.dumps(content).encode())


def attempt(read):
    """What a reader gives, None where it refuses in one sentence; anything else is a failure."""
    try:
        return read()
    except InputError as error:
        sentence = str(error)
        assert 20 < len(sentence) < 1500, sentence[:3000]
        assert sentence.endswith("."), sentence
        return None


@pytest.fixture
def draw():
    return random.Random(SEED)


@pytest.fixture
def folder(tmp_path):
    """A run's folder; what lies beside it must stay as it is."""
    (tmp_path / "precious").write_text("mine")
    run = tmp_path / "run"
    run.mkdir()
    yield run
    assert sorted(path.name for path in tmp_path.iterdir()) == ["precious", "run"]
    assert (tmp_path / "precious").read_text() == "mine"


def test_the_description_of_a_run(draw, folder):
    refused = 0
    for _ in range(2500):
        (folder / "run.json").write_bytes(harmed(draw, {"version": 1, "run": RUN}))
        found = attempt(lambda: read_run(folder))
        assert found is None or isinstance(found, dict)
        refused += found is None
        attempt(lambda: open_run(folder, RUN))
    assert 500 < refused < 2400
    assert os.listdir(folder) == ["run.json"]


def test_the_names_of_a_runs_defenses(draw, folder, monkeypatch):
    asked = []
    (folder / "defenses").mkdir()
    for name in ("benign", "other"):
        (folder / "defenses" / name).mkdir()
        (folder / "defenses" / name / "defense.json").write_text("")
    (folder / "defenses" / "link").symlink_to(folder.parent)
    # Found wherever a name might lead.
    (folder / "defense.json").write_text("")
    (folder / "defenses" / "defense.json").write_text("")
    monkeypatch.setattr(store, "load", asked.append)
    strings = [value for value in VALUES if isinstance(value, str)]
    pieces = [*strings, "other", "link", "/", "..", "benign", "./", str(folder / "defenses/other")]
    for _ in range(1000):
        names = ["".join(draw.choices(pieces, k=draw.randint(1, 2))) for _ in range(2)]
        content = {"version": 1, "run": {**RUN, "defenses": [*names, *draw.choices(VALUES, k=1)]}}
        content["run"]["defenses"] = content["run"]["defenses"][draw.randrange(3) :]
        (folder / "run.json").write_text(json.dumps(content))
        attempt(lambda: load_run(folder))
    found = {path.relative_to(folder).as_posix() for path in asked}
    assert "defenses/benign" in found
    assert found <= {"defenses/benign", "defenses/other"}


@pytest.mark.parametrize("kind", SPECS)
def test_the_description_of_a_defense(draw, folder, monkeypatch, kind):
    # What is described is not built: that takes a thousand times as long.
    built = []
    fake = SimpleNamespace(eval_shape=lambda init, key: built.append(init), random=jax.random)
    monkeypatch.setattr(store, "jax", fake)
    monkeypatch.setattr(store, "read_tree", lambda folder, like: {})
    for _ in range(1000):
        content = harmed(draw, {"version": 1, "kind": kind, "spec": SPECS[kind]})
        (folder / "defense.json").write_bytes(content)
        found = attempt(lambda: load(folder))
        if found is not None:
            assert all(type(size) is int for size in found.spec.image_shape)
            assert type(found.spec.classes) is int
    assert built


def test_the_records_of_a_sweep(draw, folder):
    lines = [{**dict.fromkeys(IDENTITY, "a"), "eps": 0.1, "n": n, "outcomes": "0"} for n in (1, 2)]
    whole = "".join(json.dumps(line) + "\n" for line in lines).encode()
    for _ in range(2000):
        if draw.random() < 0.5:
            content = harmed_values(draw, lines[0]) + b"\n" + whole
        else:
            content = harmed_bytes(draw, whole)
        (folder / "robustness.jsonl").write_bytes(content)
        for record in (attempt(lambda: read_records(folder)) or {}).values():
            assert set(IDENTITY) <= set(record)


def test_the_outcomes_of_a_cell_whose_digest_was_altered_with_them(draw, folder):
    values = {"correct": np.ones(9, bool), "norm": np.arange(9, dtype=np.float32)}
    record = append_record(folder, dict.fromkeys(IDENTITY, "a"), values)
    (path,) = (folder / "cells").iterdir()
    whole, refused = path.read_bytes(), 0
    for _ in range(1000):
        content = harmed_bytes(draw, whole)
        path.write_bytes(content)
        altered = {**record, "outcomes": hashlib.sha256(content).hexdigest()}
        refused += attempt(lambda record=altered: read_outcomes(folder, record)) is None
    assert refused > 100


def idx(shape, content=b""):
    header = bytes([0, 0, 8, len(shape)]) + b"".join(size.to_bytes(4, "big") for size in shape)
    return header + content


def test_raw_files_of_datasets(draw):
    wholes = [idx((2, 3, 4), bytes(24)), idx((2**16,) * 4), idx((2**32 - 1,) * 4), idx((0, 9))]
    for _ in range(1500):
        attempt(lambda: raw.read_idx(harmed_bytes(draw, draw.choice(wholes)), "made"))
    for _ in range(200):
        attempt(lambda: raw.read_cifar(harmed_bytes(draw, bytes(2 * 3073)), "made"))
    packed = gzip.compress(bytes(range(256)) * 4)
    for _ in range(800):
        found = attempt(lambda: raw.gunzip(harmed_bytes(draw, packed), 1024, "made"))
        assert found is None or len(found) <= 1025


def test_archives_of_datasets(draw):
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in ("a.bin", "x/b.bin", "long" * 40 + "/c.bin"):
            member = tarfile.TarInfo(name)
            member.size = 300
            archive.addfile(member, io.BytesIO(bytes(300)))
    plain = buffer.getvalue().rstrip(b"\0") + bytes(1024)
    files = tuple(official.RawFile(f"{letter}.bin", 300, None) for letter in "abc")
    whole = set(raw.tar_members(io.BytesIO(plain), files, "made"))
    assert whole == {"a.bin", "b.bin", "c.bin"}
    for data in (plain, gzip.compress(plain)):
        for _ in range(500):
            stream = io.BytesIO(harmed_bytes(draw, data))
            found = attempt(lambda stream=stream: raw.tar_members(stream, files, "made"))
            assert set(found or ()) <= whole


def test_the_digests_and_names_of_a_checkpoint(draw, folder):
    tree = {"w": np.zeros((3, 4), np.float32), "b": {"c": np.int32(1)}}
    step = folder / "step_1"
    checkpoints.write_tree(step, tree)
    names = json.loads((step / "arrays.json").read_text())
    digests = json.loads((step / "digests.json").read_text())
    restore = checkpoints.ocp.StandardCheckpointer
    refused = 0
    with pytest.MonkeyPatch.context() as patch:
        # Whole ones are not read to the end: that takes a hundred times as long.
        patch.setattr(restore, "restore", lambda self, path, like: like)
        for _ in range(500):
            (step / "digests.json").write_bytes(harmed(draw, digests))
            refused += attempt(lambda: checkpoints.read_tree(step, tree)) is None
        for _ in range(500):
            content = harmed(draw, names)
            (step / "arrays.json").write_bytes(content)
            known = {**digests, "arrays.json": hashlib.sha256(content).hexdigest()}
            (step / "digests.json").write_text(json.dumps(known))
            refused += attempt(lambda: checkpoints.read_tree(step, tree)) is None
    assert refused > 900


def test_a_part_of_the_adversarial_examples(draw, folder):
    part = Split(np.zeros((3, 2, 2, 1), np.uint8), np.zeros(3, np.int32))
    examples.write_part(folder / "part", np.ones((3, 2, 2, 1), np.float32), np.ones(3, bool))
    images, path = (folder / "part" / "images.npy").read_bytes(), folder / "part" / "part.json"
    about = json.loads(path.read_text())
    refused = 0
    for turn in range(1000):
        content, said = images, harmed(draw, about)
        if turn % 2:  # an array whose digest was altered with it
            content = harmed_bytes(draw, images)
            said = json.dumps(about | {"sha256": hashlib.sha256(content).hexdigest()}).encode()
        (folder / "part" / "images.npy").unlink()  # a file that is mapped is never changed
        (folder / "part" / "images.npy").write_bytes(content)
        path.write_bytes(said)
        found = examples.read_part(folder / "part", part)
        refused += found is None
        if found is not None:
            assert (found[0].shape, found[0].dtype) == ((3, 2, 2, 1), np.float32)
            assert (found[1].shape, found[1].dtype) == ((3,), np.bool_)
            np.testing.assert_array_equal(found[0], np.load(folder / "part" / "images.npy"))
    assert refused > 500
