"""The comparison shows each run's numbers side by side and says what differs."""

import importlib
import json

import pytest

from memdef_jax.checks import InputError
from memdef_jax.evaluation.reports import compare
from tests.evaluation import pages


@pytest.fixture
def write(tmp_path):
    """write(name, summary): a run's folder with its report."""

    def make(name, summary):
        folder = tmp_path / name
        folder.mkdir(parents=True)
        (folder / "report.json").write_text(json.dumps(summary))
        return folder

    return make


@pytest.fixture
def undrawn(monkeypatch):
    pages.leave_undrawn(monkeypatch)


@pytest.fixture
def pair():
    """Two runs on the same data; the second has one selector, and one attack more."""
    first, second = pages.summary(0), pages.summary(1)
    second["records"] = pages.records(("in_loop",), seed=1)
    second["records"].append(pages.record("in_loop", "adaptive", "fmn", None, 17))
    second["provenance"] = {"command": "eval.demo", "versions": {"jax": "0.10.2"}, "seed": 1234567}
    return [compare.Run("first", first), compare.Run("second", second)]


def shown(runs):
    read = pages.Page(compare.render(runs))
    tree = {"runs": [{"name": run.name, "summary": run.summary} for run in runs]}
    pages.check_numbers(read, tree)
    return read, tree


@pytest.mark.usefixtures("undrawn")
def test_each_cell_is_the_accuracy_of_its_run_and_selector(pair):
    read, tree = shown(pair)
    header, *rows = read.tables[0]
    assert [cell[2] for cell in header] == [
        *("Threat model", "Attack", "Norm", "eps"),
        *("first, benign", "first, in_loop", "second, in_loop"),
    ]
    seen = 0
    for row in rows:
        threat, attack, norm, eps, *cells = (cell[2] for cell in row)
        for (run, selector), text in zip([(0, "benign"), (0, "in_loop"), (1, "in_loop")], cells):
            wanted = [
                r
                for r in tree["runs"][run]["summary"]["records"]
                if (r["selector"], r["threat"], r["attack"], r["norm"] or "-")
                == (selector, threat, attack, norm)
                and pages_eps(r["eps"]) == eps
            ]
            if not wanted:
                assert text == ""
                continue
            seen += 1
            (record,) = wanted
            low, high = record["interval"]
            assert text == (
                f"{100 * record['robust_accuracy']:.1f} ({100 * low:.1f} to {100 * high:.1f})"
            )
    assert seen == sum(len(run.summary["records"]) for run in pair)
    last = {row[1][2]: [cell[2] for cell in row[4:]] for row in rows}["fmn"]
    assert last[:2] == ["", ""]
    assert last[2].startswith("3.4 ")


def pages_eps(eps):
    """A budget as the page writes it: in 1/255 where it is a whole number of these."""
    return {None: "-", 9 / 255: "9/255", 0.1234567: "0.123457"}[eps]


@pytest.mark.usefixtures("undrawn")
def test_what_was_measured_twice_is_shown_as_last_recorded(pair):
    again = {**pair[0].summary["records"][3], "seed": 1, "robust_accuracy": 0.123}
    pair[0].summary["records"].append(again)
    read, _ = shown(pair)
    position = len(pair[0].summary["records"]) - 1
    assert f"/runs/0/summary/records/{position}/robust_accuracy" in read.numbers
    assert "/runs/0/summary/records/3/robust_accuracy" not in read.numbers


@pytest.mark.usefixtures("undrawn")
def test_runs_on_the_same_data_and_counts_are_not_faulted(pair):
    assert compare.differences(pair) == []
    assert "same data and count the same number" in compare.render(pair)


@pytest.mark.usefixtures("undrawn")
def test_other_data_and_other_counts_are_pointed_out(pair):
    pair[1].summary["data"]["name"] = "digits"
    for record in pair[1].summary["records"]:
        if record["attack"] == "cw":
            record["n"] = 100
    data, counts = compare.differences(pair)
    assert data.startswith("The data sets differ: fashion_mnist in first, digits in second;")
    assert counts == "The numbers of images under cw differ: 500 in first, 100 in second."
    text = compare.render(pair)
    assert data in text
    assert counts in text


def test_another_fingerprint_is_pointed_out(pair):
    pair[1].summary["data"]["fingerprint"] = "0" * 64
    (sentence,) = compare.differences(pair)
    assert "3f5cd29d3f5c in first, 000000000000 in second" in sentence


def test_checks_curves_and_provenance_stand_side_by_side(pair):
    pair[1].summary["checks"]["in_loop"][0]["verdict"] = "fail"
    read, _ = shown(pair)
    _, checks, provenance = read.tables
    assert [cell[2] for cell in checks[1]] == [
        "check number 0 holds",
        "",
        "✓ pass 0.01235",
        "✗ fail 0.01235",
    ]
    assert [[cell[2] for cell in row] for row in provenance[1:]] == [
        ["command", "eval.robustness", "eval.demo"],
        ["seed", "0", "1234567"],
    ]
    names = {curve["name"] for run in pair for curve in run.summary["curves"]}
    pictures = read.all("img")
    assert len(pictures) == len(names) == 2
    assert all("first, second" in attrs["alt"] for attrs in pictures)


def test_runs_without_optional_sections_are_compared(pair):
    bare = [compare.Run(r.name, {"records": r.summary["records"]}) for r in pair]
    read, _ = shown(bare)
    assert [attrs["id"] for attrs in read.all("section")] == ["results"]


@pytest.mark.usefixtures("undrawn")
def test_names_that_look_like_markup_are_shown_as_they_are(pair):
    nasty = "<b>x</b></script>"
    read, tree = shown([compare.Run(nasty, pair[0].summary), pair[1]])
    assert not read.all("b")
    assert pages.embedded(read) == tree
    assert f"{nasty}, benign" in [cell[2] for cell in read.tables[0][0]]


@pytest.mark.usefixtures("undrawn")
def test_the_program_writes_the_page_and_says_where(write, tmp_path, pair, capsys):
    pair[1].summary["data"]["name"] = "digits"
    folders = [write(run.name, run.summary) for run in pair]
    out = tmp_path / "new" / "page.html"
    importlib.import_module("eval.compare").main(tuple(folders), out)
    read = pages.Page(out.read_text())
    assert pages.embedded(read)["runs"][1] == {"name": "second", "summary": pair[1].summary}
    note, last = capsys.readouterr().out.splitlines()
    assert note.startswith("note: The data sets differ")
    assert last == f"comparison: {out}"


def test_runs_in_folders_of_the_same_name_are_called_by_their_paths(write, pair):
    folders = [write("a/run", pair[0].summary), write("b/run", pair[1].summary)]
    assert [run.name for run in compare.read_runs(folders)] == [str(folder) for folder in folders]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (None, r"report.json is not there; python -m eval"),
        ("{", "report.json is damaged; python -m eval.robustness --run .+ writes it anew"),
        ("[]", "is damaged"),
        ("{}", "is damaged"),
        ('{"records": [{"selector": "benign"}]}', "is damaged"),
        ('{"records": 3}', "is damaged"),
        (b"\xff\xfe", "is damaged"),
    ],
)
def test_a_report_that_cannot_be_read_is_refused(write, tmp_path, content, words):
    good = write("good", pages.summary())
    bad = write("bad", {})
    if content is None:
        (bad / "report.json").unlink()
    else:
        data = content.encode() if isinstance(content, str) else content
        (bad / "report.json").write_bytes(data)
    with pytest.raises(InputError, match=words):
        compare.read_runs([good, bad])


def test_one_run_is_not_compared(write):
    with pytest.raises(InputError, match="1 run was given and two are needed"):
        compare.read_runs([write("good", pages.summary())])
