"""The board as text, Markdown, JSON and one HTML page."""

from __future__ import annotations

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from memdef_jax.evaluation.leaderboard.content import describe, headline
from memdef_jax.evaluation.leaderboard.protocol import Protocol
from memdef_jax.evaluation.leaderboard.ranking import Row
from memdef_jax.evaluation.leaderboard.significance import LEVEL
from memdef_jax.evaluation.reports import page
from memdef_jax.evaluation.reports.layout import as_markdown
from memdef_jax.evaluation.reports.report import percent
from memdef_jax.files import write_atomic

STEM = "leaderboard"
_NORMS = {"linf": "Linf", "l2": "L2"}


@dataclasses.dataclass(frozen=True)
class Board:
    """Everything that is shown.

    Attributes:
      heading: names the data.
      header: of the table.
      lines: of the table, as text.
      content: all of it, JSON-able and with every digit: "rows" (see `content.describe`),
        "headline", "words" (the protocol's), "remarks", "protocol", "dataset" and "command".
    """

    heading: str
    header: Sequence[str]
    lines: Sequence[Sequence[str]]
    content: Mapping[str, Any]


def board(
    rows: Sequence[Row],
    protocol: Protocol,
    dataset: str,
    remarks: Sequence[str] = (),
    command: str = "",
) -> Board:
    """Put ranked rows into words and numbers.

    Args:
      rows: one or more, as `ranking.rank` gives them.
      protocol: that they were measured under.
      dataset: its name.
      remarks: sentences on what is not on the board.
      command: what the user typed, for the record.
    """
    heading, told = f"Leaderboard on {dataset}", describe(rows)
    header = [
        *("rank", "run", "variant", "defense", "clean %"),
        *(f"Linf {255 * protocol.linf:.4g}/255 worst %", "95%"),
        *(f"L2 {protocol.l2:g} worst %", "95%"),
        *("n", "seeds", "checks", "beside the best"),
    ]
    content = {
        "heading": heading,
        "headline": headline(told, protocol),
        "dataset": dataset,
        "protocol": dataclasses.asdict(protocol),
        "words": protocol.words(),
        "rows": told,
        "remarks": list(remarks),
        "command": command,
    }
    return Board(heading, header, [_line(row) for row in told], content)


def _line(row: Mapping[str, Any]) -> list[str]:
    clean, linf, l2 = (_accuracy(row[name]) for name in ("clean", *_NORMS))
    return [
        str(row["rank"]),
        ", ".join(row["runs"]),
        row["variant"],
        row["defense"],
        clean[0],
        *(*linf, *l2),
        str(row["n"]),
        str(len(row["runs"])),
        row["checked"],
        row["verdict"],
    ]


def _accuracy(found: Mapping[str, Any]) -> tuple[str, str]:
    """An accuracy, with its deviation over seeds if there is one, and its interval."""
    text = percent(found["accuracy"])
    if found.get("missing") and found["accuracy"] is not None:
        text = f"<= {text}"
    if found["deviation"] is not None:
        text += f" +- {100 * found['deviation']:.1f}"
    interval = found["interval"]
    return text, "-" if interval is None else "-".join(percent(bound) for bound in interval)


def write(shown: Board, folder: pathlib.Path) -> pathlib.Path:
    """Write `leaderboard.md`, `leaderboard.json` and `leaderboard.html` into a folder.

    Returns:
      The page's path.

    Raises:
      InputError: when the folder cannot be written.
    """
    write_atomic(folder / f"{STEM}.md", as_document(shown))
    write_atomic(folder / f"{STEM}.json", json.dumps(shown.content, indent=1))
    path = folder / f"{STEM}.html"
    write_atomic(path, as_page(shown))
    return path


def as_document(shown: Board) -> str:
    """All of it in Markdown."""
    content = shown.content
    lines = [f"# {shown.heading}", "", *(f"- {text}" for text in content["headline"]), ""]
    lines += [as_markdown(shown.header, shown.lines), ""]
    lines += ["## Protocol", "", *(f"- {text}" for text in content["words"]), ""]
    for norm, names in _attacks(content).items():
        cells = [
            [row["name"], *(percent(row[norm]["attacks"].get(name)) for name in names)]
            for row in content["rows"]
        ]
        heading = f"## Accuracy under each {_NORMS[norm]} attack alone, in percent"
        lines += [heading, "", as_markdown(["defense", *names], cells), ""]
    doubted = [(row["name"], text) for row in content["rows"] for text in row["doubts"]]
    sections = {
        "Reasons to doubt a row": [f"{name}: {text}" for name, text in doubted],
        "Not on the board": content["remarks"],
        "Command": [f"`{content['command']}`"] if content["command"] else [],
    }
    for title, said in sections.items():
        if said:
            lines += [f"## {title}", "", *(f"- {text}" for text in said), ""]
    return "\n".join(lines)


def as_page(shown: Board) -> str:
    """The text of an HTML file that needs no other."""
    attacks = _attacks(shown.content)
    sections = {
        "results": "Ranking",
        "attacks": "Accuracy under each attack alone",
        "checks": "Checks of the evaluations",
        "protocol": "Protocol",
    }
    return page.fill(
        "leaderboard.html",
        shown.content,
        heading=shown.heading,
        sections={k: title for k, title in sections.items() if k != "attacks" or attacks},
        attacks=attacks,
        norms=_NORMS,
        level=LEVEL,
    )


def _attacks(content: Mapping[str, Any]) -> dict[str, list[str]]:
    """The attacks of each norm that any row has, norms without any left out."""
    found = {
        norm: list(dict.fromkeys(name for row in content["rows"] for name in row[norm]["attacks"]))
        for norm in _NORMS
    }
    return {norm: names for norm, names in found.items() if names}
