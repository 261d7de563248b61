"""What `save` wrote is what `load` reads, and nothing else is accepted."""

import json
import shutil

import pytest

from memdef_jax.checks import InputError
from memdef_jax.defenses import load, load_run, save
from memdef_jax.defenses.store import VERSION


@pytest.fixture(scope="module")
def saved(defense, tmp_path_factory):
    folder = tmp_path_factory.mktemp("store") / "defense"
    save(defense, folder)
    return folder


@pytest.fixture
def folder(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "defense")
    return tmp_path / "defense"


def rewrite(folder, **changes):
    path = folder / "defense.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def respecify(folder, **changes):
    content = json.loads((folder / "defense.json").read_text())
    rewrite(folder, spec={**content["spec"], **changes})


def test_the_description_is_readable_json_and_nothing_is_pickled(folder):
    content = json.loads((folder / "defense.json").read_text())
    assert content["kind"] == "memory_defense"
    assert content["spec"]["memory_rows"] == 20
    for path in folder.rglob("*"):
        assert not path.is_file() or path.read_bytes()[:1] != b"\x80"


def test_a_folder_without_a_finished_defense_says_so(tmp_path, folder):
    with pytest.raises(InputError, match="holds no finished defense"):
        load(tmp_path / "nowhere")
    (folder / "defense.json").unlink()  # a save that was killed
    with pytest.raises(InputError, match="holds no finished defense"):
        load(folder)


@pytest.mark.parametrize(
    "content", ["", "{", "[]", "null", '{"version": 1}', '{"version": 1, "kind": 3, "spec": 4}']
)
def test_a_garbled_description_is_called_damaged(folder, content):
    (folder / "defense.json").write_text(content)
    with pytest.raises(InputError, match=r"defense\.json is damaged"):
        load(folder)


def test_a_newer_version_or_another_kind_asks_for_an_update(folder):
    rewrite(folder, version=VERSION + 1)
    with pytest.raises(InputError, match=f"of version {VERSION + 1}.*update memdef_jax"):
        load(folder)
    rewrite(folder, version=VERSION, kind="hologram")
    with pytest.raises(InputError, match=r"is a 'hologram' of version.*update memdef_jax"):
        load(folder)


def test_unknown_or_missing_fields_are_called_damage(folder):
    respecify(folder, colour="blue")
    with pytest.raises(InputError, match=r"defense\.json is damaged.*colour"):
        load(folder)
    rewrite(folder, spec={"classes": 10})
    with pytest.raises(InputError, match=r"defense\.json is damaged.*image_shape"):
        load(folder)


def test_networks_of_another_size_than_the_arrays_are_refused(folder):
    respecify(folder, memory_rows=30)
    with pytest.raises(InputError, match=r"memory is float32\[20, 1024\] there and float32\[30, "):
        load(folder)


def test_altered_arrays_are_refused_by_name(folder):
    victim = next(iter((folder / "variables" / "tree" / "d").iterdir()))
    content = bytearray(victim.read_bytes())
    content[0] ^= 1
    victim.write_bytes(content)
    with pytest.raises(InputError, match=f"is damaged: .*{victim.name}"):
        load(folder)
    shutil.rmtree(folder / "variables")
    with pytest.raises(InputError, match="is not a whole checkpoint"):
        load(folder)


def test_saving_again_replaces_the_defense(make_defense, folder):
    other = make_defense(1)
    save(other, folder)
    loaded = load(folder)
    kernel = loaded.variables["selector"]["params"]["Dense_1"]["kernel"]
    assert (kernel == other.variables["selector"]["params"]["Dense_1"]["kernel"]).all()


def test_a_folder_that_cannot_be_written_is_one_sentence(defense, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        save(defense, tmp_path / "file" / "defense")


def run_of(folder, *names, version=1):
    run = {"kind": "memory_defense", "defenses": names}
    (folder / "run.json").write_text(json.dumps({"version": version, "run": run}))


def test_a_run_is_read_by_selector_and_only_when_it_is_finished(folder, tmp_path):
    with pytest.raises(InputError, match="holds no run"):
        load_run(tmp_path)
    run_of(tmp_path, "benign", "in_loop")
    with pytest.raises(InputError, match="holds an unfinished run"):
        load_run(tmp_path)
    shutil.copytree(folder, tmp_path / "defenses" / "benign")
    with pytest.raises(InputError, match="holds an unfinished run"):
        load_run(tmp_path)
    shutil.copytree(folder, tmp_path / "defenses" / "in_loop")
    assert list(load_run(tmp_path)) == ["benign", "in_loop"]
    run_of(tmp_path, "benign")
    assert list(load_run(tmp_path)) == ["benign"]
    run_of(tmp_path, "benign", version=99)
    with pytest.raises(InputError, match="update memdef_jax"):
        load_run(tmp_path)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"memory_rows": 10**12}, "is damaged: 'memory_rows' cannot be 1000000000000"),
        ({"classes": "10"}, "is damaged: 'classes' cannot be '10'"),
        ({"image_shape": [28, 28]}, r"is damaged: 'image_shape' cannot be \[28, 28\]"),
        ({"image_shape": 28}, "is damaged: 'image_shape' cannot be 28"),
        ({"softmax_scale": float("inf")}, "is damaged: 'softmax_scale' cannot be inf"),
        ({"selector": None}, "is damaged: 'selector' cannot be None"),
        # Four terabytes of memory, never asked of the system.
        ({"memory_rows": 10**9}, r"is of a model of 4\.1e\+12 bytes and at most"),
    ],
)
def test_sizes_that_cannot_be_are_refused_before_anything_is_made(folder, change, sentence):
    respecify(folder, **change)
    with pytest.raises(InputError, match=sentence):
        load(folder)


@pytest.mark.parametrize("name", ["../outside", "/tmp", "..", "a/b", 3])
def test_a_run_cannot_name_what_is_outside_its_folder(folder, tmp_path, name):
    shutil.copytree(folder, tmp_path / "outside")
    run_of(tmp_path, name)
    with pytest.raises(InputError, match="is no name of something in"):
        load_run(tmp_path)
    (tmp_path / "defenses").mkdir()
    (tmp_path / "defenses" / "link").symlink_to(tmp_path / "outside")
    run_of(tmp_path, "link")
    with pytest.raises(InputError, match="link is a link that leads out of"):
        load_run(tmp_path)
