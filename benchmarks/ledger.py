"""Results that survive a killed run: a JSON file and its Markdown table, written after each row."""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
import os
import pathlib
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

import memdef_jax
from memdef_jax.checks import InputError
from memdef_jax.files import write_atomic

Record = dict[str, Any]
PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "numpy",
    "torch",
    "torchattacks",
    "foolbox",
    "adversarial-robustness-toolbox",
)


def versions() -> dict[str, str]:
    """Versions of what takes part, of those that are installed."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def code_digest() -> str:
    """A short digest of the library's attacks and modules: rows of other code are measured anew."""
    root = pathlib.Path(memdef_jax.__file__).parent
    digest = hashlib.sha256()
    for path in sorted([*root.glob("attacks/**/*.py"), *root.glob("nn/*.py")]):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def environment(threads: int | None = None, **more: Any) -> dict[str, Any]:
    """Device, versions and command of this run."""
    device = jax.devices()[0]
    kind = device.device_kind if device.platform != "cpu" else platform.machine()
    used = threads or len(os.sched_getaffinity(0))
    where = f"{device.platform} ({kind})" + (
        f", {used} threads" if device.platform == "cpu" else ""
    )
    command = " ".join(["python -m", _module(), *sys.argv[1:]])
    return {"device": where, "versions": versions(), "command": command, **more}


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name if spec else pathlib.Path(sys.argv[0]).name


class Ledger:
    """Rows of a benchmark.

    A row is finished when the file holds one with the same key and settings; what was measured
    with other settings, or by other code, is replaced.
    """

    def __init__(
        self,
        out: pathlib.Path,
        environment: Mapping[str, Any],
        render: Callable[[Sequence[Record]], str],
    ) -> None:
        """Open or start it.

        Args:
          out: the Markdown file; the JSON lies beside it.
          environment: stored with the rows and shown above the table.
          render: all rows as Markdown.

        Raises:
          InputError: when the JSON that is there cannot be read.
        """
        self._markdown, self._json = out.with_suffix(".md"), out.with_suffix(".json")
        self._environment, self._render = dict(environment), render
        self.rows: list[Record] = []
        if self._json.exists():
            try:
                self.rows = list(json.loads(self._json.read_text(encoding="utf-8"))["rows"])
            except (ValueError, KeyError, TypeError) as error:
                raise InputError(f"{self._json} is damaged; delete it.") from error

    def find(self, key: Sequence[str], settings: Mapping[str, Any]) -> Record | None:
        """The finished row of a key, None where it has to be measured."""
        wanted = json.loads(json.dumps([list(key), dict(settings)]))
        for row in self.rows:
            if [row["key"], row["settings"]] == wanted:
                return row
        return None

    def add(self, key: Sequence[str], settings: Mapping[str, Any], row: Record) -> Record:
        """Store a row in place of any other of its key, and write both files."""
        row = {"key": list(key), "settings": dict(settings), **row}
        places = [i for i, old in enumerate(self.rows) if old["key"] == row["key"]]
        self.rows = [old for old in self.rows if old["key"] != row["key"]]
        self.rows.insert(places[0] if places else len(self.rows), row)
        content = {"environment": self._environment, "rows": self.rows}
        write_atomic(self._json, json.dumps(content, indent=1) + "\n")
        write_atomic(self._markdown, self._render(self.rows))
        return row


def preamble(environment: Mapping[str, Any]) -> str:
    """Command, device and versions as Markdown."""
    packages = ", ".join(f"{name} {version}" for name, version in environment["versions"].items())
    rest = {
        k: v for k, v in environment.items() if k not in ("versions", "command", "device", "notes")
    }
    words = [f"    {environment['command']}\n", f"{environment['device']}; {packages}."]
    words += [f"{name.capitalize()}: {value}." for name, value in rest.items()]
    return "\n".join(words) + "\n"


def page(title: str, environment: Mapping[str, Any], *paragraphs: str) -> str:
    """A whole page of Markdown: title, `preamble`, paragraphs and tables."""
    parts = [f"# {title}", preamble(environment), *paragraphs]
    return "\n\n".join(part.strip("\n") for part in parts) + "\n"


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
