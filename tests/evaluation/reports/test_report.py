"""The report says what the records say, whatever the names in it."""

import dataclasses
import io
import json
import re
import shutil

import numpy as np
import pytest
from PIL import Image

from memdef_jax.defenses import MemoryDefense
from memdef_jax.evaluation import THREATS, WORST, sweep, template_diagnostics
from memdef_jax.evaluation.reports import illustrate, report
from memdef_jax.evaluation.scrutiny import diagnostics

SHORT = ("grey_box", "frozen_mask")  # of which pictures are drawn here
# Attacks on the whole pipeline take most of a sweep's time, and a report shows them as any other.
MEASURED = tuple(name for name in THREATS if name != "adaptive")


def tables(text):
    """Every Markdown table as rows of cells, split at bars that no backslash escapes."""
    found, current = [], []
    for line in [*text.splitlines(), ""]:
        if line.startswith("| ") and line.endswith(" |"):
            current.append([c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]])
        elif current:
            found.append(current)
            current = []
    return found


@pytest.fixture(scope="module")
def swept(pair, digits, config, tmp_path_factory):
    """(folder, records) of a sweep under all threat models but one."""
    folder = tmp_path_factory.mktemp("swept")
    return folder, sweep(pair, digits, dataclasses.replace(config, threats=MEASURED), folder)


@pytest.fixture
def cell(swept):
    """cell(**wanted): the one record that has these values."""

    def find(**wanted):
        (found,) = [r for r in swept[1] if all(r[k] == v for k, v in wanted.items())]
        return found

    return find


@pytest.fixture(scope="module")
def measured(pair, digits):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(diagnostics, "_BATCH", 8)
        return {
            name: template_diagnostics(defense, digits.train, digits.test[:21])
            for name, defense in pair.items()
        }


@pytest.fixture(scope="module")
def folder(swept, tmp_path_factory):
    copy = tmp_path_factory.mktemp("report") / "run"
    shutil.copytree(swept[0], copy)
    return copy


@pytest.fixture(scope="module")
def written(folder, swept, digits, pair, config, measured):
    """(text of report.md, the records in it)."""
    some = [r for r in swept[1] if r["threat"] in ("none", WORST, *SHORT)]
    heading = report.title("memory_defense", digits)
    pictured = illustrate.draw(folder, digits, pair, config, some)
    path = report.write_report(folder, digits, some, measured, pictured, heading)
    return path.read_text(), some


def test_the_table_has_a_row_a_record_with_its_numbers(written):
    text, found = written
    header, rule, *rows = tables(text)[0]
    assert tuple(header) == report.HEADER
    assert set(rule) == {"---"}
    assert len(rows) == len(found)
    left = list(found)
    for row in rows:
        cell = dict(zip(header, row, strict=True))
        eps = None if cell["eps"] == "-" else int(cell["eps"].removesuffix("/255")) / 255
        threat = cell["threat"].split(" ")[0]
        wanted = (cell["defense"], threat, cell["attack"], eps, int(cell["n"]))
        names = ("selector", "threat", "attack", "eps", "n")
        (record,) = [r for r in left if tuple(r[n] for n in names) == wanted]
        left.remove(record)

        def same(shown, value):
            if value is None:
                return shown == "-"
            return float(shown) == pytest.approx(100 * value, abs=0.0501)

        assert same(cell["pipeline %"], record["robust_accuracy"])
        assert same(cell["undefended %"], record["selector_accuracy"])
        assert same(cell["same answer %"], record["agreement"])
        assert same(cell["paper %"], record["paper"])
        for end, value in zip(cell["95% interval"].split("-"), record["interval"], strict=True):
            assert same(end, value)
        if record["attack"] == "cw" and threat != WORST:
            assert same(cell["success %"], record["success_rate"])
            if record["median_norm"] is not None:
                assert float(cell["median L2"]) == pytest.approx(record["median_norm"], abs=0.0051)
        else:
            assert cell["success %"] == cell["median L2"] == "-"


def test_readings_of_one_attack_stand_under_each_other_and_the_worst_comes_last(swept):
    rows = report.sort_records(swept[1])
    assert [r["attack"] for r in rows if r["threat"] == "none"] == ["clean", "clean"]
    assert [r["selector"] for r in rows] == ["benign"] * 28 + ["in_loop"] * 28
    assert [r["threat"] for r in rows[1:6]] == [*MEASURED, WORST]
    assert {(r["attack"], r["eps"]) for r in rows[1:6]} == {("fgsm", 2 / 255)}


def test_the_words_carry_the_numbers_of_the_records(written, measured, cell):
    text, found = written
    paragraph = text.split("\n\n")[1]
    for selector in ("benign", "in_loop"):
        clean = cell(selector=selector, threat="none")["robust_accuracy"]
        worst = cell(selector=selector, threat=WORST, attack="all", eps=9 / 255)
        assert f"right on {100 * clean:.1f}% of clean images" in paragraph
        assert f"{100 * worst['robust_accuracy']:.1f}% at 9/255" in paragraph
        frozen = cell(selector=selector, threat="frozen_mask", attack="pgd", eps=9 / 255)
        grey = cell(selector=selector, threat="grey_box", attack="pgd", eps=9 / 255)
        assert (
            f"leaves {100 * frozen['robust_accuracy']:.1f}%; the same budget spent on "
            f"classifier-A leaves {100 * grey['robust_accuracy']:.1f}%" in paragraph
        )
    least = min(r["agreement"] for r in found if r["agreement"] is not None)
    assert f"at least {100 * least:.1f}% of images" in paragraph
    follows = measured["benign"]["follows_wrong_slot"]
    assert f"names that class on {100 * follows:.1f}%" in paragraph


def test_the_papers_number_stands_where_the_paper_has_one(swept, digits, pair, config, tmp_path):
    # On records of Fashion-MNIST: a selector trained on adversarial examples, at 9/255.
    info = dataclasses.replace(digits.info, name="fashion_mnist")
    fashion = dataclasses.replace(digits, info=info)
    few = dataclasses.replace(config, attacks=("fgsm",), threats=("frozen_mask",))
    found = sweep(pair, fashion, few, tmp_path)
    shown = {(r["selector"], r["threat"], r["eps"]): r["paper"] for r in found}
    assert shown["in_loop", "none", None] == pytest.approx(0.9236)
    assert shown["in_loop", "frozen_mask", 9 / 255] == pytest.approx(0.9002)
    assert shown["in_loop", "frozen_mask", 2 / 255] is None
    assert {paper for (selector, *_), paper in shown.items() if selector == "benign"} == {None}
    frozen = [r for r in found if r["threat"] == "frozen_mask"]
    alone = {(r["selector"], r["eps"]): r["paper_selector"] for r in frozen}
    assert alone["benign", 9 / 255] == pytest.approx(0.6283)
    assert alone["in_loop", 9 / 255] == pytest.approx(0.8908)


def test_only_templates_are_called_templates(swept):
    found = [dict(r, agreement=None if r["agreement"] is None else 0.99) for r in swept[1]]
    known = {"reconstruction_spread": 0.1, "image_spread": 0.2, "follows_wrong_slot": 0.99}
    assert "acts as a class template" in report.in_words(found, {"benign": known})
    passes = {**known, "follows_wrong_slot": 0.5}
    assert "does not simply repeat the slot" in report.in_words(found, {"benign": passes})
    everywhere = [dict(r, agreement=1.0) for r in swept[1]]
    assert "answer on all images" in report.in_words(everywhere, {"benign": known})
    found[0]["agreement"] = 0.5
    assert "does not simply repeat the slot" in report.in_words(found, {"benign": known})


def test_the_diagnostics_stand_in_a_table_of_their_own(written, measured):
    header, _, *rows = tables(written[0])[1]
    assert header == ["", "benign", "in_loop"]
    for row, key in zip(rows, measured["benign"], strict=True):
        for shown, values in zip(row[1:], measured.values(), strict=True):
            assert float(shown) == pytest.approx(values[key], rel=1e-3, abs=1e-9)


def test_every_selector_and_threat_has_a_picture_that_is_a_png(written, folder):
    linked = re.findall(r"!\[(.+)\]\((pictures/.+\.png)\)", written[0])
    assert linked.pop() == ("memory rows decoded, by class", "pictures/memory.png")
    stems = [re.fullmatch(r"pictures/(.+)-(.+)-.+\.png", path).groups() for _, path in linked]
    assert sorted(stems) == sorted((s, t) for s in ("benign", "in_loop") for t in SHORT)
    for words, path in linked:
        assert "9/255" in words
        with Image.open(folder / path) as picture:
            picture.load()
            assert picture.format == "PNG"
            assert min(picture.size) > 500
            assert len(np.unique(np.asarray(picture.convert("L")))) > 50


def test_the_provenance_says_on_what_and_with_what(written, config):
    block = json.loads(re.search(r"```json\n(.+?)\n```", written[0], re.S)[1])
    assert set(block["versions"]) == {"memdef_jax", "jax", "python"}
    assert block["device"]
    assert block["seed"] == config.seeds[0]
    assert set(block["attacks"]) == {"fgsm", "pgd", "cw"}
    assert block["attacks"]["pgd"]["steps"] == 40


def test_the_report_names_the_data(written, digits):
    assert written[0].startswith("# Memory Defense on digits, the small data set bundled with")
    assert digits.info.fingerprint in written[0]


def test_the_title_says_why_the_data_are_only_digits(digits):
    assert report.title("memory_defense", digits, "fashion_mnist").endswith(
        "because fashion_mnist could not be had"
    )
    info = dataclasses.replace(digits.info, name="fashion_mnist")
    other = dataclasses.replace(digits, info=info)
    assert report.title("memory_defense", other) == "Memory Defense on fashion_mnist"


@pytest.mark.parametrize(
    ("eps", "name"),
    [(9 / 255, "9/255"), (0.1, "0.1"), (1.0, "255/255"), (0.0, "0/255"), (None, "-")],
)
def test_budgets_are_named_by_their_pixel_levels(eps, name):
    assert report.eps_name(eps) == name


@pytest.mark.parametrize(
    ("share", "text"), [(0.8436, "84.4"), (0.0, "0.0"), (1.0, "100.0"), (None, "-")]
)
def test_shares_are_shown_in_percent(share, text):
    assert report.percent(share) == text


def test_names_that_look_like_markup_break_neither_table_nor_picture(
    swept, digits, pair, config, measured, tmp_path
):
    nasty = ("a|b", "$x$", "`c`", "$\\frac{", "*d*", "# e", "<f>", "[g](h)", "i_j", "k\nl")
    info = dataclasses.replace(
        digits.info, name="folder:a|b`*", class_names=nasty, source="image folder /x/a|b`*\n# y"
    )
    odd = dataclasses.replace(digits, info=info)
    shutil.copytree(swept[0], tmp_path / "run")
    some = [
        r
        for r in swept[1]
        if r["threat"] == "none" or (r["threat"] == "grey_box" and r["attack"] == "pgd")
    ]
    some = [r for r in some if r["selector"] == "benign"]
    defenses: dict[str, MemoryDefense] = {"benign": pair["benign"]}
    pictured = illustrate.draw(tmp_path / "run", odd, defenses, config, some)
    path = report.write_report(
        tmp_path / "run", odd, some, measured, pictured, report.title("memory_defense", odd)
    )
    text = path.read_text()
    assert [len(row) for row in tables(text)[0]] == [len(report.HEADER)] * (2 + len(some))
    assert re.findall(r"^#+ .+", text, re.M) == [
        "# Memory Defense on folder:a\\|b\\`\\*",
        "## Is the memory a class template?",
        "## Pictures",
        "## Provenance",
    ]
    for picture in (tmp_path / "run" / "pictures").iterdir():
        with Image.open(io.BytesIO(picture.read_bytes())) as image:
            image.verify()
