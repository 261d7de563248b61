"""Files with weights: what is written is what is read, and nothing else is."""

import json
import random

import jax
import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from memdef_jax.checks import InputError
from memdef_jax.defenses import load_run
from memdef_jax.defenses.weights import import_run, read_weights, write_weights
from memdef_jax.evaluation.program import Where, load_dataset
from memdef_jax.training.run import read_run
from tests.defenses.kinds import KINDS, SIZE, made
from tests.test_fuzz import attempt, harmed_bytes


@pytest.fixture(scope="module")
def run(digits):
    return {"dataset": "digits", "fingerprint": digits.info.fingerprint}


@pytest.fixture(scope="module")
def whole(run, tmp_path_factory):
    """(a classifier, the file of its weights)."""
    path = tmp_path_factory.mktemp("weights") / "linear.safetensors"
    defense = made("classifier")
    write_weights(path, defense, "linear", run)
    return defense, path


@pytest.fixture
def altered(whole, tmp_path):
    """altered(said, **arrays): the file with other metadata and arrays; None leaves one out."""

    def make(said=None, **changes):
        path, old = tmp_path / "altered.safetensors", whole[1]
        with safe_open(old, framework="numpy") as stored:
            meta = {**stored.metadata(), **(said or {})}
        arrays = {**load_file(old), **changes}
        kept = {name: array for name, array in arrays.items() if array is not None}
        save_file(kept, path, {name: text for name, text in meta.items() if text is not None})
        return path

    return make


def assert_same(found, expected):
    assert found.spec == expected.spec
    assert found.kind == expected.kind
    jax.tree.map(np.testing.assert_array_equal, found.variables, expected.variables)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_what_is_read(kind, digits, run, tmp_path):
    defense, path = made(kind), tmp_path / "a.safetensors"
    write_weights(path, defense, "a", run)
    assert_same(read_weights(path, digits.info), defense)
    # As a state_dict of torch, which says nothing of itself and counts batches.
    count = {"some.num_batches_tracked": np.array(3, np.int64)}
    save_file({**load_file(path), **count}, path)
    spec = {name: value for name, value in KINDS[kind].items() if name != "kind"}
    assert_same(read_weights(path, digits.info, kind, spec), defense)
    np.savez(tmp_path / "a.npz", **load_file(path))
    assert_same(read_weights(tmp_path / "a.npz", digits.info, kind, spec), defense)


def test_a_file_says_what_it_holds(whole, digits):
    with safe_open(whole[1], framework="numpy") as stored:
        said = stored.metadata()
    assert said["kind"] == "classifier"
    assert json.loads(said["spec"])["architecture"] == "b"
    assert (said["defense"], said["dataset"]) == ("linear", "digits")
    assert said["fingerprint"] == digits.info.fingerprint
    assert (said["layout"], said["version"]) == ("torch", "1")
    assert json.loads(said["flattened"]) == {"MemoryHead_0.memory": [1, 128]}
    assert load_file(whole[1])["Conv_0.weight"].shape == (64, 1, 8, 8)


def test_files_become_a_run_that_is_evaluated_as_any_other(whole, digits, run, tmp_path):
    folder, paths = (
        tmp_path / "run",
        [tmp_path / f"{name}.safetensors" for name in ("mine", "your")],
    )
    other = made("classifier", seed=1)
    paths[0].write_bytes(whole[1].read_bytes())
    write_weights(paths[1], other, "your", run)
    import_run(folder, paths, digits)
    found = load_run(folder)
    assert list(found) == ["mine", "your"]
    assert_same(found["mine"], whole[0])
    assert_same(found["your"], other)
    assert load_dataset(folder, found, Where()).info.fingerprint == digits.info.fingerprint
    assert read_run(folder)["kind"] == "classifier"
    import_run(folder, paths, digits)  # the same again
    write_weights(paths[1], whole[0], "your", run)
    with pytest.raises(InputError, match=r"holds another run: config\.imported\.your was '"):
        import_run(folder, paths, digits)


def test_files_that_are_no_run_leave_nothing(whole, digits, run, tmp_path):
    folder, path = tmp_path / "run", tmp_path / "vae.safetensors"
    write_weights(path, made("mad_vae"), "vae", run)
    for paths, sentence in (
        ([], r"the files \(none\) give no defenses"),
        ([whole[1], whole[1]], "give no defenses of different names"),
        ([whole[1], path], "a run is of one kind and these are classifier and mad_vae"),
        ([tmp_path / "none.safetensors"], "there is no file"),
    ):
        with pytest.raises(InputError, match=sentence):
            import_run(folder, paths, digits)
    assert not folder.exists()


@pytest.mark.parametrize(
    ("said", "sentence"),
    [
        ({"kind": None}, "does not say what it is weights of; say what it holds with kind and"),
        ({"layout": "flax"}, "is in layout 'flax'; bring its arrays into torch's"),
        ({"spec": "{"}, "is damaged; get it anew"),
        ({"spec": "[" * 9000}, "is damaged; get it anew"),
        ({"spec": "[]"}, "is damaged; get it anew"),
        ({"version": "9"}, r"version 9 and this program reads .* update memdef_jax"),
        ({"kind": "hologram"}, "is a 'hologram' of version 1"),
        ({"fingerprint": "0" * 64}, "was trained on digits with fingerprint 000000000000 and"),
        ({"spec": json.dumps({**SIZE, "classes": 9})}, "is for 9 classes of 28x28x1 images and"),
        ({"spec": json.dumps(SIZE)}, r"Conv_0\.bias of .* is \[64\] and \[16\] here"),
    ],
)
def test_a_file_that_says_something_else_is_refused(altered, digits, said, sentence):
    with pytest.raises(InputError, match=sentence):
        read_weights(altered(said), digits.info)


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"Conv_1.weight": None}, r"has no array Conv_1\.weight, which is \[128, 64, 6, 6\] here"),
        ({"Conv_0.bias": np.zeros(3, np.float32)}, r"Conv_0\.bias of .* is \[3\] and \[64\] here"),
        ({"Conv_9.bias": np.zeros(3, np.float32)}, "has an array Conv_9.bias, and such a classif"),
        ({"Conv_0.bias": np.full(64, np.nan, np.float32)}, r"Conv_0\.bias of .* holds NaN"),
        ({"Conv_0.bias": np.full(64, 1e300)}, r"Conv_0\.bias of .* holds NaN or infinite"),
        ({"Conv_0.bias": np.zeros(64, np.int32)}, r"Conv_0\.bias of .* can be read, so convert"),
    ],
)
def test_arrays_that_do_not_fit_are_named(altered, digits, arrays, sentence):
    with pytest.raises(InputError, match=sentence):
        read_weights(altered(**arrays), digits.info)


def test_a_harmed_file_is_read_or_refused_in_one_sentence(digits, run, tmp_path):
    path, draw, refused = tmp_path / "a.safetensors", random.Random(0), 0
    write_weights(path, made("feature_denoiser"), "a", run)
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")  # of the names, shapes and metadata
    for _ in range(300):
        path.write_bytes(harmed_bytes(draw, whole[:end]) + whole[end:])
        refused += attempt(lambda: read_weights(path, digits.info)) is None
    assert refused > 200
