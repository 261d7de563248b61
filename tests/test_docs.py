"""Every Python block of the how-to pages runs and says what the page says."""

import doctest
import pathlib

import jax
import pytest

_ALL = sorted((pathlib.Path(__file__).parents[1] / "docs").glob("*.md"))
PAGES = [page for page in _ALL if ">>> " in page.read_text(encoding="utf-8")]


@pytest.fixture
def quick_compile():
    """The blocks run for an instant each; optimising their programs would take most of the time."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.usefixtures("quick_compile")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run_as_shown(page):
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE)
    text = page.read_text(encoding="utf-8")
    test = doctest.DocTestParser().get_doctest(text, {}, page.name, str(page), 0)
    said: list[str] = []
    runner.run(test, out=said.append)
    assert runner.tries > 0
    assert runner.failures == 0, "".join(said)


def test_there_are_pages():
    assert PAGES
