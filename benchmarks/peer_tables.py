"""The tables of `benchmarks.peers`."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks import ledger
from benchmarks.ledger import Record
from benchmarks.work import OURS

LIBRARIES = ("torchattacks", "foolbox", "art", "foolbox-jax")


def said(records: dict[str, Record]) -> str:
    """A row as one line."""
    words = []
    for name, one in records.items():
        numbers = one.get("error")
        if not numbers:
            numbers = f"{one['images_per_second']:.3g}/s, {one['seconds']:.3g} s"
        words.append(f"{name} {numbers}")
    return "; ".join(words)


# A peer is compared with only if it fools at least this share of what ours fools.
_COMPARABLE = 0.9


def best_peer(records: dict[str, Record], field: str) -> float | None:
    """The best of the peers that did the work: most images a second, or fewest seconds."""
    enough = _COMPARABLE * (1 - records[OURS]["robust"])
    peers = [r for n, r in records.items() if n != OURS and "error" not in r]
    values = [r[field] for r in peers if 1 - r["robust"] >= enough]
    if not values:
        return None
    return min(values) if field == "seconds" else max(values)


def tables(environment: Record, rows: Sequence[Record]) -> str:
    """All tables as Markdown."""
    attacked = [row for row in rows if row["key"][1] != "share"]
    shares = [row for row in rows if row["key"][1] == "share"]
    parts = []
    for field, title in (
        ("images_per_second", "Images a second, warm"),
        ("seconds", "Seconds to the final robust accuracy (and, beside them, of compilation)"),
        ("outcome", "What was reached: robust accuracy, for CW and DeepFool the median L2 norm"),
    ):
        parts += [f"## {title}", _table(attacked, field)]
    parts += [
        "Scaled marks a peer measured on fewer images, because it goes image by image or takes "
        "hours; `no search`: torchattacks' CW has one c for all images and runs all iterations "
        "with it. The best peer is the best of those that fool at least nine tenths of the images "
        "that ours fools.",
        "## The model's own share of PGD's time",
        ledger.markdown_table(
            ("model", "work", "gradients alone", "PGD, called eagerly", "PGD, jitted", "share"),
            [_share(row) for row in shares],
        ),
    ]
    return ledger.page("Speed of the attacks beside other libraries", environment, *parts)


def _table(rows: Sequence[Record], field: str) -> str:
    ratio = () if field == "outcome" else ("ours / best peer",)
    header = ("model", "attack", "images", OURS, *LIBRARIES, *ratio)
    lines = []
    for row in rows:
        records = row["records"]
        cells = [_cell(records.get(name), row, field) for name in (OURS, *LIBRARIES)]
        line = [row["key"][0], row["title"], str(row["settings"]["images"]), *cells]
        if ratio:
            best = best_peer(records, field)
            line.append("-" if best is None else f"{records[OURS][field] / best:.2f}")
        lines.append(line)
    return ledger.markdown_table(header, lines)


def _cell(record: Record | None, row: Record, field: str) -> str:
    if record is None:
        return "-"
    if "error" in record:
        return "fails"
    scaled = record["images"] < row["settings"]["images"]
    extra = f" (scaled from {record['images']})" if scaled else ""
    if field == "outcome":
        robust = f"{100 * record['robust']:.1f}%"
        if row["key"][1] in ("cw", "deepfool") and record["median"] is not None:
            robust = f"{record['median']:.3f}, {100 - 100 * record['robust']:.1f}% fooled"
        note = f" ({record['note']})" if record["note"] else ""
        return robust + note
    if field == "seconds" and record["compile"] is not None:
        extra = f" (+{record['compile']:.1f}){extra}"
    return f"{record[field]:.3g}{extra}"


def _share(row: Record) -> tuple[str, ...]:
    seconds = row["seconds"]
    share = seconds["gradients"] / min(seconds["eager"], seconds["jitted"])
    cells = [f"{seconds[name]:.3f} s" for name in ("gradients", "eager", "jitted")]
    return (row["key"][0], f"{row['steps']} x {row['batch']}", *cells, f"{100 * share:.0f}%")
