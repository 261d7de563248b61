"""In Chromium, without a window, the page sorts and filters, fits, and asks for nothing."""

import html
import json
import re
import shutil
import subprocess

import pytest

from memdef_jax.evaluation.reports import compare, page
from tests.evaluation import pages


@pytest.fixture(scope="module")
def summary():
    return pages.summary()


@pytest.fixture(scope="module")
def text(summary):
    return page.render(summary, [pages.picture()])


LISTEN = """<script>
const violations = [];
document.addEventListener("securitypolicyviolation", (e) => violations.push(e.blockedURI));
</script>"""
LOOK = """<script>
window.addEventListener("load", () => {
  const table = document.getElementById("results-table");
  const headers = table ? [...table.tHead.rows[0].cells] : [];
  const values = (column) => [...table.tBodies[0].rows].map((row) => {
    const exact = row.cells[column].querySelector("[data-value]");
    return exact ? Number(exact.dataset.value) : row.cells[column].textContent.trim();
  });
  const sorted = headers.map((header, column) => [1, 2].map(() => {
    header.querySelector("button").click();
    return [headers.map((h) => h.getAttribute("aria-sort")), values(column)];
  }));
  const filter = document.getElementById("filter");
  const count = (words) => {
    filter.value = words;
    filter.dispatchEvent(new Event("input"));
    return [...table.tBodies[0].rows].filter((row) => row.checkVisibility()).length;
  };
  const found = {
    sorted,
    counts: filter ? [count("in_loop pgd"), count("nothing like it"), count("")] : [],
    images: [...document.images].map((i) => [i.complete, i.naturalWidth]),
    widths: [document.documentElement.scrollWidth, window.innerWidth],
    requests: performance.getEntriesByType("resource").map((e) => e.name),
    violations,
  };
  window.parent.postMessage(JSON.stringify(found), "*");
});
</script>"""
# A window of Chromium is at least 500 pixels wide, a frame in it may be as narrow as a phone.
FRAME = """<!doctype html><pre id="found"></pre><script>
addEventListener("message", (e) => document.getElementById("found").append(e.data));
</script><iframe src="page.html" style="width: WIDTHpx; height: 800px; border: 0"></iframe>"""


@pytest.fixture(scope="module")
def look(tmp_path_factory):
    """look(text, width): what Chromium makes of a page."""
    names = ("chromium", "chromium-browser", "google-chrome")
    browser = next(filter(None, map(shutil.which, names)), None)
    if browser is None:
        pytest.skip("no Chromium to open the page in (Debian: apt-get install chromium)")

    def see(text, width=1400):
        folder = tmp_path_factory.mktemp("page")
        text = text.replace("</title>", "</title>" + LISTEN).replace("</body>", LOOK + "</body>")
        (folder / "page.html").write_text(text)
        outer = folder / "outer.html"
        outer.write_text(FRAME.replace("WIDTH", str(width)))
        arguments = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
        arguments += [f"--user-data-dir={folder / 'profile'}", "--window-size=1500,900"]
        arguments += ["--virtual-time-budget=5000", outer.as_uri()]
        done = subprocess.run(arguments, capture_output=True, text=True, timeout=120, check=True)
        return json.loads(html.unescape(re.search(r'<pre id="found">(.+?)</pre>', done.stdout)[1]))

    return see


def check_quiet_and_fitting(found, text, width):
    assert found["violations"] == []
    assert [name for name in found["requests"] if not name.startswith("data:")] == []
    assert all(complete and size > 0 for complete, size in found["images"])
    assert len(found["images"]) == text.count("<img ")
    scroll, inner = found["widths"]
    assert inner == width
    assert scroll <= inner


def check_sorted(found):
    """Each column after one press of its button and after two; what has no value comes last."""
    for column, orders in enumerate(found["sorted"]):
        for name, (states, values) in zip(("ascending", "descending"), orders, strict=True):
            assert states == ["none"] * column + [name] + ["none"] * (len(states) - column - 1)
            known = [value for value in values if value not in ("", "-")]
            assert values[: len(known)] == known
            key = str.lower if isinstance(known[0], str) else None
            assert known == sorted(known, key=key, reverse=name == "descending")


@pytest.mark.parametrize("width", [360, 800, 1400])
def test_the_page_fits_and_sorts_and_asks_for_nothing(look, text, summary, width):
    found = look(text, width)
    check_quiet_and_fitting(found, text, width)
    assert len(found["sorted"]) == 15
    check_sorted(found)
    pgd = [r for r in summary["records"] if (r["selector"], r["attack"]) == ("in_loop", "pgd")]
    assert found["counts"] == [len(pgd), 0, len(summary["records"])]


def test_a_comparison_fits_a_phone_and_sorts(look, summary):
    other = {**summary, "records": pages.records(("in_loop",), seed=1)}
    text = compare.render([compare.Run("first", summary), compare.Run("a" * 60, other)])
    found = look(text, 360)
    check_quiet_and_fitting(found, text, 360)
    assert len(found["sorted"]) == 7
    check_sorted(found)


def test_the_policy_stops_a_request(look):
    text = page.render({}).replace("<main", '<img src="http://127.0.0.1:9/x.png" alt=""><main')
    assert look(text)["violations"] == ["http://127.0.0.1:9/x.png"]
