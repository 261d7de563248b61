"""Tables as text and as Markdown."""

from __future__ import annotations

import io
import shutil
from collections.abc import Sequence

from rich import box
from rich.console import Console
from rich.table import Table

_WIDTH = 200  # where there is no terminal; a table cut to 80 columns cannot be read


def as_text(
    title: str,
    header: Sequence[str],
    rows: Sequence[Sequence[str]],
    words: Sequence[str] = (),
    width: int | None = None,
) -> str:
    """A table for the screen.

    Args:
      title: above it.
      header: names of the columns.
      rows: cells as text, shown as they are, even where they look like markup.
      words: columns of words, to the left as the first one is; the others are numbers.
      width: in characters, by default the terminal's.
    """
    width = width or shutil.get_terminal_size((_WIDTH, 24)).columns
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD)
    for index, name in enumerate(header):
        table.add_column(name, justify="left" if index == 0 or name in words else "right")
    for row in rows:
        table.add_row(*row)
    text = io.StringIO()
    Console(file=text, width=width, markup=False, emoji=False, highlight=False).print(table)
    return text.getvalue()


def as_markdown(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, without a newline at its end."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
    )
