"""The page shows what the summary says, all of it and nothing else, and asks for nothing."""

import itertools
import math
import re

import pytest

from memdef_jax.checks import InputError
from memdef_jax.evaluation.reports import page
from tests.evaluation import pages

SECTIONS = {  # what a section is made of
    "results": ["records"],
    "curves": ["curves"],
    "checks": ["checks"],
    "attacked": [],
    "confusion": ["confusion"],
    "memory": ["diagnostics"],
    "detection": ["detection"],
    "latent": ["latent"],
    "transfer": ["transfer"],
    "provenance": ["provenance"],
}


@pytest.fixture(scope="module")
def summary():
    return pages.summary()


@pytest.fixture(scope="module")
def text(summary):
    return page.render(summary, [pages.picture()])


@pytest.fixture(scope="module")
def read(text):
    return pages.Page(text)


@pytest.fixture
def undrawn(monkeypatch):
    pages.leave_undrawn(monkeypatch)


def leaves(tree, pointer=""):
    """Pointers to all numbers of a tree."""
    if isinstance(tree, dict):
        for name, value in tree.items():
            yield from leaves(value, f"{pointer}/{name.replace('~', '~0').replace('/', '~1')}")
    elif isinstance(tree, list):
        for index, value in enumerate(tree):
            yield from leaves(value, f"{pointer}/{index}")
    elif isinstance(tree, (int, float)):
        yield pointer


# --- numbers ------------------------------------------------------------------------------------


def test_every_number_shown_is_the_one_in_the_summary(read, summary):
    assert len(read.numbers) > 500
    pages.check_numbers(read, summary)
    pages.check_numbers(read, pages.embedded(read))


def test_every_number_of_the_summary_is_shown(read, summary):
    # Scores and points are drawn, variants stand behind the chosen one, provenance is shown as it
    # is; a success rate and a norm say something only where the smallest change was searched for.
    drawn = re.compile(r"^/(latent|provenance)|_scores/|/variants/|/clean_accuracy$")
    searched = re.compile(r"^/records/(\d+)/(median_norm|success_rate)$")
    for pointer in leaves(summary):
        match = searched.match(pointer)
        record = summary["records"][int(match[1])] if match else None
        shown = not drawn.search(pointer)
        if record is not None:
            shown = record["attack"] == "cw" and record["threat"] != "worst_case"
        assert (pointer in read.numbers) == shown, pointer


def test_a_row_holds_the_numbers_of_one_record(read, summary):
    header, *rows = read.tables[0]
    assert len(rows) == len(summary["records"])
    for row in rows:
        cells = dict(zip([cell[2] for cell in header], [cell[2] for cell in row], strict=True))
        key = (cells["Defense"], cells["Threat model"].split(" ")[0], cells["Attack"])
        (record,) = [
            r
            for r in summary["records"]
            if (r["selector"], r["threat"], r["attack"]) == key
            and f"{r['robust_accuracy']:.1%}" == cells["Accuracy %"] + "%"
            and (r["eps"] is None) == (cells["eps"] == "-")
        ]
        low, high = cells["95% interval"].split(" to ")
        assert [float(low), float(high)] == [round(100 * v, 1) for v in record["interval"]]
        assert ("(joint)" in cells["Threat model"]) == (record["threat"] == "adaptive")
        assert (cells["Paper %"] == "90.0") == (record["threat"] == "frozen_mask")


@pytest.mark.parametrize("nothing", [None, math.nan, math.inf])
def test_what_is_no_number_is_a_dash(nothing):
    record = pages.record("benign", "grey_box", "cw", None, 250)
    record |= dict.fromkeys(("agreement", "median_norm", "paper", "seconds"), nothing)
    found = {"records": [record], "checks": {"benign": [check(number=nothing)]}}
    read = pages.Page(page.render(found))
    header, row = read.tables[0]
    cells = dict(zip([cell[2] for cell in header], [cell[2] for cell in row], strict=True))
    for name in ("eps", "Same answer %", "Paper %", "Median norm", "Seconds"):
        assert cells[name] == "-"
    assert read.tables[1][1][2][2] == "-"
    assert pages.embedded(read)["records"][0]["median_norm"] is None
    written = {cell[2] for table in read.tables for row in table for cell in row}
    assert not written & {"NaN", "nan", "inf", "None"}


def test_failed_attacks_are_named():
    why = "PGD on the selector found 3 images more"
    found = [pages.record("benign", "adaptive", "pgd", 0.1, 30, failed=why)]
    found += [pages.record("benign", "adaptive", "bim", 0.1, 30, failed=None)]
    text = page.render({"records": found})
    assert text.count(why) == 2  # once more in the JSON
    assert "whose images" not in page.render({"records": found[1:]})


def check(**more):
    verdict = {"name": "a", "title": "a holds", "verdict": "skipped", "limit": 0.5, "unit": "share"}
    return {**verdict, "number": 0.25, "advice": "Look again.", **more}


# --- what is on the page ------------------------------------------------------------------------


def test_all_sections_stand_in_order_and_the_navigation_leads_to_them(read):
    assert [attrs["id"] for attrs in read.all("section")] == list(SECTIONS)
    inside = [attrs["href"] for attrs in read.all("a")]
    assert inside == ["#main", *(f"#{name}" for name in SECTIONS)]
    assert read.all("main", id="main")


@pytest.mark.usefixtures("undrawn")
@pytest.mark.parametrize("section", SECTIONS)
def test_a_section_without_content_is_left_out(summary, section):
    pictures = [] if section == "attacked" else [pages.picture(side=20)]
    for empty in ("absent", None, [], {}):
        found = {k: v for k, v in summary.items() if k not in SECTIONS[section]}
        if empty != "absent":
            found |= dict.fromkeys(SECTIONS[section], empty)
        read = pages.Page(page.render(found, pictures))
        wanted = [name for name in SECTIONS if name != section]
        assert [attrs["id"] for attrs in read.all("section")] == wanted


@pytest.mark.usefixtures("undrawn")
def test_an_empty_summary_gives_a_page(summary):
    read = pages.Page(page.render({}))
    assert not read.all("section")
    assert not read.numbers
    assert len(read.all("h1")) == 1


def test_headings_tables_and_pictures_can_be_read_aloud(read):
    levels = [int(tag[1]) for tag, _ in read.tags if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))
    assert all(attrs.get("scope") in ("col", "row") for attrs in read.all("th"))
    assert len(read.all("caption")) == len(read.all("table")) == len(read.tables)
    assert all(attrs["alt"] for attrs in read.all("img"))
    names = [attrs["id"] for _, attrs in read.tags if "id" in attrs]
    assert len(set(names)) == len(names)
    for attrs in read.all("section"):
        assert attrs["aria-labelledby"] in names
    assert read.tags[1] == ("html", {"lang": "en"}) or read.all("html", lang="en")


def test_a_verdict_is_told_by_words(text):
    for verdict, sign in page.SIGNS.items():
        assert f'<span aria-hidden="true">{sign}</span> {verdict}</span>' in text


def test_colours_can_be_told_apart_in_light_and_dark(text):
    # At least 4.5 to 1, the contrast that WCAG 2.1 asks of text (success criterion 1.4.3).
    themes = re.findall(r":root \{(.+?)\}", text, re.S)
    assert len(themes) == 2
    for theme in themes:
        colours = dict(re.findall(r"--(\w+): #(\w{6});", theme))
        pairs = [(name, "ground") for name in ("text", "quiet", "link", "pass", "warn", "fail")]
        pairs += [(name, "raised") for name in ("text", "quiet", "pass", "warn", "fail")]
        for name, behind in [*pairs, ("text", "bar")]:
            dark, light = sorted(luminance(colours[key]) for key in (name, behind))
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (name, behind)


def luminance(colour):
    """Relative luminance of an sRGB colour in hexadecimal digits, as WCAG 2.1 defines it."""
    parts = [int(colour[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


# --- safety and size ----------------------------------------------------------------------------


def test_the_page_asks_for_nothing(text, read):
    for tag, attrs in read.tags:
        for name, value in attrs.items():
            if name in ("src", "href", "srcset", "action", "data", "poster"):
                assert value.startswith(("data:", "#")), (tag, name)
            assert not name.startswith("on"), (tag, name)
    (style,) = re.findall(r"<style>(.+?)</style>", text, re.S)
    assert "url(" not in style
    assert "@import" not in style
    assert "://" not in text
    (policy,) = read.all("meta", **{"http-equiv": "Content-Security-Policy"})
    assert "default-src 'none'" in policy["content"]


@pytest.mark.usefixtures("undrawn")
def test_names_that_look_like_markup_are_shown_as_they_are(summary):
    nasty = "<b>x</b>&\"'</script><!--<script>{{ 7 * 7 }}"
    found = {
        **summary,
        "heading": nasty,
        "words": nasty,
        "headline": [nasty],
        "class_names": [nasty] * 4,
        "records": [pages.record(nasty, nasty, nasty, 0.1, 3, norm=nasty)],
        "checks": {nasty + "/~": [check(title=nasty, advice=nasty, unit=nasty, verdict=nasty)]},
        "provenance": {nasty: nasty},
        "data": dict.fromkeys(("name", "source", "fingerprint"), nasty),
        "transfer": {"names": [nasty], "accuracy": [[0.5]]},
    }
    text = page.render(found, [pages.Picture(nasty, pages.picture(side=9).png, nasty, "attacked")])
    read = pages.Page(text)
    assert not read.all("b")
    assert len(read.scripts) == 2
    assert pages.embedded(read) == found
    pages.check_numbers(read, found)
    row = [cell[2] for cell in read.tables[0][1]]
    assert row[:3] == [nasty] * 3
    assert row[6] == nasty
    assert nasty in {attrs["alt"] for attrs in read.all("img")}


@pytest.mark.usefixtures("undrawn")
def test_the_embedded_json_is_the_summary_and_drops_scores_only_where_it_is_long(summary, read):
    assert pages.embedded(read) == summary
    many = {**summary, "curves": [], "detection": {"in_loop": {"clean_scores": [1 / 3] * 60_000}}}
    kept = pages.embedded(pages.Page(page.render(many)))
    assert kept == {**many, "detection": {"in_loop": {}}, "latent": kept["latent"]}


@pytest.mark.usefixtures("undrawn")
def test_five_hundred_records_and_twelve_pictures_stay_below_the_limit(summary):
    records = (summary["records"] * 12)[:500]
    pictures = [pages.picture(f"picture {i}", side=220, seed=i) for i in range(12)]
    text = page.render({**summary, "records": records}, pictures)
    assert len(text.encode()) < page.PAGE_LIMIT
    assert "Left out" not in text


@pytest.mark.usefixtures("undrawn")
def test_pictures_beyond_the_limit_are_left_out_and_named(summary):
    pictures = [pages.picture(f"picture {i}", side=450, seed=i) for i in range(12)]
    text = page.render(summary, pictures)
    assert 0.8 * page.PAGE_LIMIT < len(text.encode()) <= page.PAGE_LIMIT
    (names,) = re.findall(r"Left out to keep this page small: (.+?)\.</p>", text)
    gone = names.split(", ")
    shown = [attrs["alt"] for attrs in pages.Page(text).all("img")]
    for picture in pictures:
        assert (picture.name in gone) != (picture.alt in shown)


@pytest.mark.usefixtures("undrawn")
def test_a_picture_that_is_no_png_is_refused(summary):
    with pytest.raises(InputError, match="picture 'x' is no PNG file; draw it again"):
        page.render(summary, [page.Picture("x", b"GIF89a", "nothing", "attacked")])
