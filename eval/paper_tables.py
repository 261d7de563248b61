"""Print the tables of a paper beside what was measured.

    python -m eval.paper_tables --run DIR --table 1 5 --ablation runs/ablation
    python -m eval.paper_tables --paper defense_vae --run DIR

For all papers but Memory Defense's, DIR holds one run a row of the paper, each in a folder of its
own. Takes a second: it measures nothing, and says which command measures what is blank. The same
stands in DIR/paper_tables.md and DIR/paper_tables.json, for other papers than Memory Defense's in
DIR/paper_tables_<paper>.md.
"""

from __future__ import annotations

import json
import pathlib
from collections.abc import Sequence
from typing import Literal

import tyro

from memdef_jax import console
from memdef_jax.checks import InputError
from memdef_jax.evaluation.papers import table_report, tables, vae_table_report
from memdef_jax.evaluation.papers.vae_table_report import Sheet
from memdef_jax.evaluation.reports.layout import as_text
from memdef_jax.files import write_atomic


def main(
    run: pathlib.Path,
    paper: Literal["memory_defense", "defense_vae", "mad_vae", "feature_denoiser"] = (
        "memory_defense"
    ),
    table: tuple[int, ...] | None = None,
    ablation: pathlib.Path | None = None,
) -> None:
    """Compare runs with a paper.

    Args:
      run: folder that a training program filled and eval.robustness measured; for all papers but
        Memory Defense's also a folder of such folders.
      paper: whose tables.
      table: which of them; all by default.
      ablation: folder of eval.ablation, for two rows of Memory Defense's Table 5.
    """
    if paper == "memory_defense":
        sources = tables.read_sources(run, ablation)
        compared = tables.compare(sources, tables.TABLES if table is None else table)
        said = tables.notes(sources, compared)
        document = table_report.as_document(compared, said)
        numbers = table_report.as_json(compared, said)
        groups = table_report.headings(compared).items()
        shown: Sequence[Sheet] = [
            Sheet(name, table_report.HEADER, table_report.table_rows(c)) for name, c in groups
        ]
    else:
        if ablation is not None:
            raise InputError(f"ablation {ablation} has nothing of {paper}; leave it out.")
        whole = vae_table_report.report(run, paper, table)
        shown, said = whole.sheets, whole.said
        document, numbers = whole.document, whole.numbers
    words = table_report.WORDS if paper == "memory_defense" else vae_table_report.WORDS
    stem = "paper_tables" if paper == "memory_defense" else f"paper_tables_{paper}"
    write_atomic(run / f"{stem}.md", document)
    write_atomic(run / f"{stem}.json", json.dumps(numbers, indent=1))
    for sheet in shown:
        print(as_text(sheet.heading, sheet.header, sheet.rows, words=words))
    print("\n".join(said))
    print(f"tables: {run / f'{stem}.md'}")


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main))
