"""Print the Memory Defense paper's Tables 1, 2, 3 and 5 beside what a run measured.

    python -m eval.paper_tables --run DIR --table 1 5 --ablation runs/ablation

Takes a second: it measures nothing, and says which command measures what is blank. The same stands
in DIR/paper_tables.md and DIR/paper_tables.json.
"""

from __future__ import annotations

import json
import pathlib

import tyro

from memdef_jax import console
from memdef_jax.evaluation import table_report, tables
from memdef_jax.evaluation.layout import as_text
from memdef_jax.files import write_atomic


def main(
    run: pathlib.Path,
    table: tuple[int, ...] = tables.TABLES,
    ablation: pathlib.Path | None = None,
) -> None:
    """Compare a run with the paper.

    Args:
      run: folder that train.memory_defense filled and eval.robustness measured.
      table: which tables of the paper.
      ablation: folder of eval.ablation, for two rows of Table 5.
    """
    sources = tables.read_sources(run, ablation)
    compared = tables.compare(sources, table)
    said = tables.notes(sources, compared)
    write_atomic(run / "paper_tables.md", table_report.as_document(compared, said))
    write_atomic(
        run / "paper_tables.json", json.dumps(table_report.as_json(compared, said), indent=1)
    )
    for heading, cells in table_report.headings(compared).items():
        rows = table_report.table_rows(cells)
        print(as_text(heading, table_report.HEADER, rows, words=table_report.WORDS))
    print("\n".join(said))
    print(f"tables: {run / 'paper_tables.md'}")


if __name__ == "__main__":
    console.run(lambda: tyro.cli(main))
