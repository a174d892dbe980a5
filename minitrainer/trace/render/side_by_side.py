"""Shows the ranks of a run beside each other: how each file ends, and the losses of each log, one column a rank."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from minitrainer.trace import events, lossmath
from minitrainer.trace.ranks import Run
from minitrainer.trace.render.escape import printable
from minitrainer.trace.render.words import counted, exact, number, numbers
from minitrainer.trace.rows import Reading

MOST_LOGS = 40
"""Logs shown in full; of more only the first and the last ones."""


def table(rows: Sequence[Sequence[str]], width: int) -> list[str]:
    """Lay out rows of cells in columns, the first row underlined. Columns shrink evenly if the whole is too wide.

    A cell that is too long for its column goes on in the next line of that column.
    """
    columns = max(map(len, rows))
    widths = [max(len(row[i]) if i < len(row) else 0 for row in rows) for i in range(columns)]
    room = width - 2 * (columns - 1)
    while sum(widths) > room and max(widths) > 8:
        widths[widths.index(max(widths))] -= 1
    lines = []
    for n, row in enumerate(rows):
        cells = [_broken(row[i] if i < len(row) else "", widths[i]) for i in range(columns)]
        for k in range(max(map(len, cells))):
            parts = [(cell[k] if k < len(cell) else "").ljust(widths[i]) for i, cell in enumerate(cells)]
            lines.append("  ".join(parts).rstrip())
        if n == 0:
            lines.append("  ".join("─" * one for one in widths))
    return lines


def _broken(text: str, width: int) -> list[str]:
    lines: list[str] = []
    line = ""
    for word in text.split(" "):
        while len(word) > width:
            lines += [line] if line else []
            line = ""
            lines.append(word[:width])
            word = word[width:]
        if line and len(line) + 1 + len(word) > width:
            lines.append(line)
            line = word
        else:
            line = f"{line} {word}" if line else word
    return [*lines, line]


class RankSummary:
    """What one rank's file holds, counted while it is read.

    Attributes:
        flow: for each event its step, and a hash over it and the flags changed since the event before: ranks that
            take the same way through the training have the same flow.
        sizes: step and number of samples of each micro-batch.
        raised: the exception that the last rows are about, and the innermost scope that it left; None where the
            training went on after it.
    """

    def __init__(self, rank: int):
        self.rank = rank
        self.steps = 0
        self.samples = 0
        self.last_event = ""
        self.flow: list[tuple[int, int]] = []
        self.sizes: list[tuple[int, int | None]] = []
        self.raised: tuple[str, str] | None = None
        self._step = 0
        self._flags: list[tuple[str, bool]] = []

    def add(self, record: events.Record) -> None:
        kind = type(record)
        if kind is events.Raise:
            self.raised = self.raised or (record.error, record.method)  # type: ignore[attr-defined]
        elif kind is not events.End:
            self.raised = None
        if kind is events.Event:
            self.last_event, self._step = record.event, record.step  # type: ignore[attr-defined]
            self.steps = max(self.steps, self._step)
            self.flow.append((self._step, hash((self.last_event, self._step, *self._flags))))
            self._flags.clear()
        elif kind is events.Samples:
            if record.split == "train":  # type: ignore[attr-defined]
                self.samples += record.rows or 0  # type: ignore[attr-defined]
                self.sizes.append((self._step + 1, record.rows))  # type: ignore[attr-defined]
        elif kind is events.Flag:
            self._flags.append((record.flag, record.new))  # type: ignore[attr-defined]

    def ending(self, reading: Reading) -> str:
        """Say how the rank ended; "yes" where its trace came to its end."""
        if not reading.complete:
            calls = [scope.name for scope in reading.open_scopes if scope.kind == "call"]
            place = f" in {printable(calls[-1])}" if calls else ""
            return f"no: cut{place} after {printable(self.last_event) or 'its header'}"
        if self.raised is not None:
            error, place = map(printable, self.raised)
            return f"by {error} in {place}"
        if reading.end is not None and reading.end.dropped:
            return f"yes, {reading.end.dropped:,} rows dropped"
        return "yes"


def how_a_run_failed(run: Run) -> str:
    """Say of each rank where it stopped, those first that stopped without a word; "" where all came to their end."""
    sentences = []
    for rank, reading in run.readings.items():
        summary = RankSummary(rank)
        for record in reading:
            summary.add(record)
        ended = summary.ending(reading)
        if not ended.startswith("yes"):
            verb = "stopped" if reading.complete else "was cut off"
            how = ended.removeprefix("no: cut ").removeprefix("no: cut")
            sentences.append((reading.complete, f"rank {rank} {verb} {how}, {counted(summary.steps, 'step')} done"))
    sentences += [(False, f"rank {rank} left no trace") for rank in run.missing]
    return "; ".join(sentence for _, sentence in sorted(sentences))


def rank_rows(run: Run, summaries: Iterable[RankSummary]) -> list[list[str]]:
    """Return a header and one row a rank: rows, steps, micro-batches, samples, and how its file ends."""
    rows = [["rank", "rows", "steps", "micro-batches", "samples", "ended"]]
    for summary in summaries:
        reading = run.readings[summary.rank]
        counts = (reading.rows, summary.steps, len(summary.sizes), summary.samples)
        rows.append([str(summary.rank), *(f"{count:,}" for count in counts), summary.ending(reading)])
    return rows + [[str(rank), "–", "–", "–", "–", "no file"] for rank in run.missing]


def flow_differences(summaries: Sequence[RankSummary]) -> list[str]:
    """Say where ranks part: in their events and flags, and in the sizes of their micro-batches."""
    sentences = []
    first = summaries[0]
    for other in summaries[1:]:
        pairs = zip(first.flow, other.flow, strict=False)
        parted = next((here[0] for here, there in pairs if here[1] != there[1]), None)
        if parted is not None:
            sentences.append(f"rank {other.rank} parts from rank {first.rank} in its events or flags at step {parted}")
        elif len(first.flow) != len(other.flow):
            counts = f"{len(other.flow):,} events, rank {first.rank} {len(first.flow):,}"
            sentences.append(f"rank {other.rank} went the same way but not as far: it fired {counts}")
    if len(summaries) > 1 and not sentences:
        sentences.append(f"all ranks fired the same {len(first.flow):,} events and changed the same flags")
    return [*sentences, *_unlike_sizes(summaries)]


def _unlike_sizes(summaries: Sequence[RankSummary]) -> list[str]:
    unlike = []
    for i, together in enumerate(zip(*(summary.sizes for summary in summaries), strict=False)):
        if len({rows for _, rows in together}) > 1:
            spoken = ", ".join(
                f"{rows} on rank {one.rank}" for one, (_, rows) in zip(summaries, together, strict=True)
            )
            unlike.append(f"micro-batch {i + 1} (step {together[0][0]}) has unlike sizes: {spoken}")
    if len(unlike) > 3:
        return [*unlike[:2], f"and so have {len(unlike) - 2:,} more micro-batches"]
    return unlike


def loss_table(run: Run, joined: Iterable[Mapping[int, lossmath.Found]], width: int) -> list[str]:
    """Return the losses of each log with one column a rank: micro-batches, the rank's sum, what all ranks logged."""
    ranks = list(run.readings)
    rows = [["step", *(f"rank {rank}" for rank in ranks), "logged"]]
    body = [row for found in joined if (row := _loss_row(found, ranks)) is not None]
    if len(body) > MOST_LOGS:
        left_out = len(body) - MOST_LOGS
        body = [*body[: MOST_LOGS // 2], ["…", *([f"{left_out} more"] * len(ranks)), "…"], *body[-MOST_LOGS // 2 :]]
    return table([*rows, *body], width) if body else []


def _loss_row(found: Mapping[int, lossmath.Found], ranks: Sequence[int]) -> list[str] | None:
    one = next(iter(found.values()))
    if isinstance(one.record, events.Log):
        return None
    cells = []
    for rank in ranks:
        record = found[rank].record if rank in found else None
        if isinstance(record, events.Loss):
            cells.append(f"{numbers(record.micro, 4)} = {number(record.rank_sum)}")
        elif isinstance(record, events.EvalLoss):
            cells.append(f"{numbers(record.losses, 4)} × {numbers(sorted(set(record.rows)), 3)} rows")
        elif isinstance(record, events.TrainLoss):
            cells.append(f"({number(record.total)} + {number(record.rest)}) ÷ {record.steps}")
        else:
            cells.append("–")
    label = str(one.step) if one.key == "loss" else f"{one.step} {one.key}"
    values = sorted({exact(found[rank].record.logged) for rank in found})  # type: ignore[union-attr]
    return [label, *cells, " ≠ ".join(values)]


# Read next: markdown.py, which writes a trace as a page.
