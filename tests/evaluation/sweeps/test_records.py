"""What a killed or damaged file may lose, and what not."""

import json

import numpy as np
import pytest

from memdef_jax.checks import InputError
from memdef_jax.evaluation.sweeps import records
from memdef_jax.evaluation.sweeps.records import (
    IDENTITY,
    RECORDS,
    append_record,
    cell_id,
    read_outcomes,
    read_records,
    select,
)


def record(name="grey_box", **fields):
    return {**dict.fromkeys(IDENTITY), "threat": name, "eps": 9 / 255, **fields}


def outcomes(seed=0):
    draw = np.random.default_rng(seed)
    return {
        "correct": draw.random(9) < 0.5,
        "norm": draw.random(9).astype(np.float32),
        "shown": draw.random((2, 4, 4, 1)).astype(np.float32),
    }


def test_what_is_appended_is_read_back_exactly(tmp_path):
    first = append_record(tmp_path, record("a", robust_accuracy=0.1 + 0.2), outcomes())
    second = append_record(tmp_path, record("b", settings={"steps": 40}))
    assert list(read_records(tmp_path).values()) == [first, second]
    stored = read_outcomes(tmp_path, first)
    assert stored.keys() == outcomes().keys()
    for name, values in outcomes().items():
        assert stored[name].dtype == values.dtype
        np.testing.assert_array_equal(stored[name], values)
    assert read_outcomes(tmp_path, second) is None


def test_a_folder_without_records_has_none(tmp_path):
    assert read_records(tmp_path) == {}
    assert read_records(tmp_path / "nowhere") == {}


@pytest.mark.parametrize("name", IDENTITY)
def test_a_cell_is_its_whole_identity_and_nothing_else(name):
    cell = record(robust_accuracy=1.0)
    assert cell_id(cell) == cell_id({**cell, "robust_accuracy": 0.5, "seconds": 3})
    assert cell_id(cell) != cell_id({**cell, name: "other"})


def test_the_last_line_of_a_cell_wins(tmp_path):
    append_record(tmp_path, record(robust_accuracy=0.1), outcomes(1))
    append_record(tmp_path, record("other"))
    last = append_record(tmp_path, record(robust_accuracy=0.2), outcomes(2))
    found = read_records(tmp_path)
    assert len(found) == 2
    assert found[cell_id(last)] == last
    np.testing.assert_array_equal(read_outcomes(tmp_path, last)["norm"], outcomes(2)["norm"])


def test_a_last_line_cut_at_any_byte_is_passed_over_and_then_cut_off(tmp_path):
    first, second = (append_record(tmp_path, record(name)) for name in "ab")
    whole = (tmp_path / RECORDS).read_bytes()
    keep = whole.index(b"\n") + 1
    for size in range(keep, len(whole)):
        (tmp_path / RECORDS).write_bytes(whole[:size])
        assert list(read_records(tmp_path).values()) == [first]
        third = append_record(tmp_path, record("c"))
        assert list(read_records(tmp_path).values()) == [first, third]
        assert (tmp_path / RECORDS).read_bytes().startswith(whole[:keep])
    (tmp_path / RECORDS).write_bytes(whole)
    assert list(read_records(tmp_path).values()) == [first, second]


def test_a_first_line_cut_at_any_byte_leaves_nothing(tmp_path):
    append_record(tmp_path, record("a"))
    whole = (tmp_path / RECORDS).read_bytes()
    for size in range(len(whole)):
        (tmp_path / RECORDS).write_bytes(whole[:size])
        assert read_records(tmp_path) == {}


@pytest.mark.parametrize(
    "line", [b'{"threat": "a"', b"\xff\xfe\x00", b"\0" * 30, b"[]", b"3", b'"x"', b"null", b"{}"]
)
def test_a_damaged_line_in_the_middle_is_an_error_that_names_it(tmp_path, line):
    append_record(tmp_path, record("a"))
    with (tmp_path / RECORDS).open("ab") as file:
        file.write(line + b"\n")
    append_record(tmp_path, record("b"))
    with pytest.raises(InputError, match=rf"{RECORDS}, line 2 is damaged; delete that line"):
        read_records(tmp_path)


def test_an_emptied_line_is_no_damage(tmp_path):
    append_record(tmp_path, record("a"))
    with (tmp_path / RECORDS).open("a") as file:
        file.write("\n  \n")
    append_record(tmp_path, record("b"))
    assert [r["threat"] for r in read_records(tmp_path).values()] == ["a", "b"]


def test_outcomes_that_need_pickle_are_never_read(tmp_path):
    evil = {"correct": np.array([{"a": 1}], dtype=object)}
    stored = append_record(tmp_path, record(), evil)
    with pytest.raises(ValueError, match="allow_pickle"):
        read_outcomes(tmp_path, stored)


def test_outcomes_altered_in_any_byte_or_cut_anywhere_are_not_used(tmp_path):
    stored = append_record(tmp_path, record(), outcomes())
    (path,) = (tmp_path / "cells").iterdir()
    whole = path.read_bytes()
    for place in range(0, len(whole), 7):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 0x10]) + whole[place + 1 :])
        assert read_outcomes(tmp_path, stored) is None
        path.write_bytes(whole[:place])
        assert read_outcomes(tmp_path, stored) is None
    path.write_bytes(whole)
    assert read_outcomes(tmp_path, stored) is not None
    path.unlink()
    assert read_outcomes(tmp_path, stored) is None


def test_outcomes_of_another_measurement_of_the_cell_are_not_used(tmp_path):
    old = append_record(tmp_path, record(), outcomes(1))
    line = (tmp_path / RECORDS).read_bytes()
    append_record(tmp_path, record(), outcomes(2))
    (tmp_path / RECORDS).write_bytes(line)  # as if killed between the outcomes and the line
    assert read_outcomes(tmp_path, read_records(tmp_path)[cell_id(old)]) is None


def test_a_file_in_the_way_is_one_sentence(tmp_path):
    (tmp_path / "cells").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        append_record(tmp_path, record(), outcomes())
    (tmp_path / RECORDS).mkdir()
    with pytest.raises(InputError, match=rf"{RECORDS} cannot be written"):
        append_record(tmp_path, record())


def test_every_line_is_json_of_its_own(tmp_path):
    append_record(tmp_path, record("ä\n|"), outcomes())
    lines = (tmp_path / RECORDS).read_text(encoding="ascii").splitlines()
    assert [json.loads(line)["threat"] for line in lines] == ["ä\n|"]


def test_records_are_selected_by_all_their_given_values():
    found = [record("a", n=1), record("a", n=2), record("b", n=1)]
    assert select(found, threat="a", n=1) == [found[0]]
    assert select(found, unknown=1) == []


def test_outcomes_that_unpack_to_more_than_any_are_refused_before_it(tmp_path, monkeypatch):
    stored = append_record(tmp_path, record(), {"correct": np.zeros(1_000_000, bool)})
    assert read_outcomes(tmp_path, stored) is not None
    monkeypatch.setattr(records, "MOST_BYTES", 500_000)
    with pytest.raises(InputError, match=r"npz holds no outcomes .*500000 bytes.*; delete it"):
        read_outcomes(tmp_path, stored)
