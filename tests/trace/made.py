"""Traces made by hand for the tests of the readers: small, exact, and broken where a test wants them broken."""

from __future__ import annotations

from pathlib import Path

import msgspec

from minitrainer.trace import events
from minitrainer.trace.events import Record
from minitrainer.trace.rows import sample_trace, write_canonical, write_rows

HOSTILE = (
    "\x1b[31mred\x1b[0m",
    "\x1b]0;title\x07",
    "[bold red]markup[/]",
    "<script>alert(1)</script>",
    "| a | b |",
    "```\nfence",
    "``` fence",
    "[link](javascript:alert(1))",
    "**bold** _italic_ `code`",
    "line\nbreak\r\ttab",
    "\x9b31mC1",
    "abc\u202edcba",
    "zero\u200bwidth",
    "half \udcff surrogate".encode("utf-16", "surrogatepass").decode("utf-16", "replace"),
    ":smile: {{ 7*7 }} ${x} {% raw %}",
    "x" * 10_000,
)
"""Texts that must come out as text, whatever shows them."""


def write(records: list[Record], folder: Path, name: str = "rank0.rows") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_rows(records, folder / name)
    return folder / name


def canonical(records: list[Record], folder: Path, name: str = "rank0.jsonl", level: str = "canonical") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    write_canonical(records, folder / name, level=level)
    return folder / name


def replaced(records: list[Record], kind: type[Record], position: int = 0, **fields) -> list[Record]:
    """Copy `records` with some fields of the `position`-th record of `kind` replaced."""
    where = [i for i, record in enumerate(records) if type(record) is kind][position]
    return [*records[:where], msgspec.structs.replace(records[where], **fields), *records[where + 1 :]]


def without_end(records: list[Record], kept: int) -> list[Record]:
    """The first `kept` records: a run that was cut short."""
    return [record for record in records[:kept] if type(record) is not events.End]


def with_end(records: list[Record]) -> list[Record]:
    """Correct the count in `End` after records were added or taken away."""
    body = [record for record in records if type(record) is not events.End]
    return [*body, events.End(rows=len(body), at=body[-1].at)]


def two_ranks(steps: int = 4, with_evaluation: bool = True) -> list[list[Record]]:
    """The records of two ranks that trained together: rank 1's losses are twice those of rank 0, and its last
    evaluation batch holds one sample more than counts."""
    ranks: list[list[Record]] = []
    for rank in (0, 1):
        records = sample_trace(steps=steps, rank=rank)
        made: list[Record] = []
        total = 0.0
        for record in records:
            if isinstance(record, events.Head):
                record = msgspec.structs.replace(record, world_size=2)
            elif isinstance(record, events.Loss):
                own = float(record.rank_sum or 0)
                gathered = [own, 2 * own]
                mean = 1.5 * own
                micro = [float(value or 0) * (1 + rank) for value in record.micro]
                logged = round(mean / record.steps, 4)
                record = msgspec.structs.replace(
                    record,
                    losses=[value * 2 for value in micro],
                    micro=micro,
                    rank_sum=gathered[rank],
                    gathered=gathered,
                    mean=mean,
                    quotient=mean / record.steps,
                    logged=logged,
                    total_before=total,
                )
                total += mean
            elif isinstance(record, events.Log) and "loss" in record.logs:
                last = next(one for one in reversed(made) if isinstance(one, events.Loss))
                record = msgspec.structs.replace(record, logs={**record.logs, "loss": last.logged})
            elif isinstance(record, events.TrainLoss):
                record = msgspec.structs.replace(record, total=total, logged=(total + 0.0) / record.steps)
            if isinstance(record, events.TrainLoss) and with_evaluation:
                made += _evaluation(rank, record.at)
            made.append(record)
        ranks.append(with_end(made))
    return ranks


def _evaluation(rank: int, at: int | None) -> list[Record]:
    """Three batches of two on each rank, eleven of the twelve gathered losses kept."""
    losses = [[0.5, 0.25, 1.0], [1.5, 0.75, 2.0]]
    vector = [loss for pair in zip(*losses, strict=True) for loss in pair for _ in range(2)][:11]
    import numpy

    mean = float(numpy.array(vector, dtype="float32").mean())
    loss = events.EvalLoss(
        key="eval_loss",
        losses=list(losses[rank]),
        rows=[2, 2, 2],
        gathered=12,
        kept=11,
        mean=None,
        logged=mean,
        verified=None,
        at=at,
    )
    return [loss, events.Log(step=4, logs={"eval_loss": mean, "epoch": 1.0}, at=at)]


# Read next: test_verify_arithmetic.py.
