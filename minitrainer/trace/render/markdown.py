"""Writes a run as one Markdown page: what ran, what happened, who changed which flag, where each loss comes from.

The page depends on the trace alone, so that the same trace gives the same bytes.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence

from minitrainer.trace import events
from minitrainer.trace.events import as_float
from minitrainer.trace.ranks import Run, derivations_of_logs, ending, open_run
from minitrainer.trace.render import words
from minitrainer.trace.render.escape import code, markdown, printable
from minitrainer.trace.render.side_by_side import RankSummary, flow_differences, rank_rows
from minitrainer.trace.render.terminal import tree_lines, wrapped
from minitrainer.trace.render.tree import TreeBuilder
from minitrainer.trace.render.verdict import Verdict
from minitrainer.trace.render.words import counted, exact, numbers
from minitrainer.trace.rows import RECORDING, canonical

PAGE_WIDTH = 100
"""Characters in a line of the tree."""

MOST_ROWS = 200
"""Rows of a table; a longer one says how many it leaves out."""


def page(path: str | os.PathLike[str]) -> str:
    """Return the page of a trace file or of a run's folder."""
    return page_of(open_run(path))


def page_of(run: Run) -> str:
    """Return the page of a run; see `page`."""
    builder = TreeBuilder(rank=run.first.head.rank, world_size=run.world_size)
    collected = _Collected()
    summaries = []
    for rank, reading in run.readings.items():
        summary = RankSummary(rank)
        summaries.append(summary)
        # A recording's times and clock values would make every page of the same run another one.
        for record in canonical(reading) if reading.head.form == RECORDING else reading:
            summary.add(record)
            if reading is run.first:
                builder.add(record)
                collected.add(record)
    root = builder.finish()
    lines = _what_ran(run, collected)
    if run.world_size > 1 or run.findings:
        lines += _ranks(run, summaries)
    lines += ["## What happened", ""]
    if run.world_size > 1:
        lines += [f"The rows of rank {run.first.head.rank}. Neighbours of one shape are folded.", ""]
    lines += _fenced(_tree_text(root))
    lines += _flags(collected)
    lines += _losses(run)
    lines += _files(collected)
    return "\n".join(lines).rstrip() + "\n"


class _Collected:
    """What the tables need of the first rank."""

    def __init__(self) -> None:
        self.trainers: list[events.TrainerBegin] = []
        self.changes: dict[tuple[str, bool, str, str, int, str], list[int]] = {}
        self.files: list[tuple[int, events.File | events.Rng]] = []
        self.step = 0

    def add(self, record: events.Record) -> None:
        kind = type(record)
        if kind is events.Event:
            self.step = record.step  # type: ignore[attr-defined]
        elif kind is events.State:
            if record.field == "global_step" and type(record.new) is int:  # type: ignore[attr-defined]
                self.step = record.new  # type: ignore[attr-defined]
        elif kind is events.Flag:
            key = tuple(getattr(record, name) for name in ("flag", "new", "by", "file", "line", "how"))
            self.changes.setdefault(key, []).append(self.step)  # type: ignore[arg-type]
        elif kind is events.TrainerBegin:
            self.trainers.append(record)  # type: ignore[arg-type]
        elif kind is events.File or kind is events.Rng:
            self.files.append((self.step, record))  # type: ignore[arg-type]


def _what_ran(run: Run, collected: _Collected) -> list[str]:
    head = run.first.head
    lines = [f"# {markdown(head.scenario or 'A trace')}", ""]
    versions = ", ".join(map(markdown, words.versions(head))) or "an unknown version"
    lines += [f"A recorded run with {versions}, on {counted(run.world_size, 'rank')}.", ""]
    for line in words.unhooked(head):
        lines += [f"{markdown(line)}.", ""]
    for line in [line for reading in run.readings.values() for line in ending(reading)]:
        lines += [f"**{markdown(line)}**", ""]
    for trainer in collected.trainers:
        rows = [["class", " ← ".join(code(name) for name in trainer.classes)]]
        if trainer.model:
            rows.append(["model", f"{code(trainer.model)} on {markdown(trainer.device)}"])
        rows += [[f"argument {code(name)}", code(value)] for name, value in trainer.arguments.items()]
        for name, overridden in trainer.callbacks:
            rows.append([f"callback {code(name)}", ", ".join(map(code, overridden)) or "no event"])
        lines += [*_table([f"Trainer {trainer.trainer}", ""], rows), ""]
    return lines


def _ranks(run: Run, summaries: Sequence[RankSummary]) -> list[str]:
    header, *rows = rank_rows(run, summaries)
    lines = ["## Ranks", "", *_table(header, [[markdown(cell) for cell in row] for row in rows]), ""]
    for finding in [*run.findings, *flow_differences(summaries)]:
        lines.append(f"- {markdown(finding)}")
    return [*lines, ""]


def _tree_text(root) -> Iterator[str]:
    for first, rest, line in tree_lines(root, explain=False, show_times=False):
        for i, row in enumerate(wrapped(line, PAGE_WIDTH - max(len(first), len(rest)))):
            yield ((rest if i else first) + words.text_of(row)).rstrip()


def _fenced(lines: Iterable[str]) -> list[str]:
    """Put lines into a code block, behind a fence longer than any run of backticks in them."""
    lines = list(lines)
    longest = max((len(run) for line in lines for run in re.findall("`+", line)), default=0)
    fence = "`" * max(3, longest + 1)
    return [fence + "text", *lines, fence, ""]


def _flags(collected: _Collected) -> list[str]:
    if not collected.changes:
        return []
    rows = []
    for (flag, new, by, file, line, how), steps in collected.changes.items():
        where = code(f"{file}:{line}") if file else ""
        changed = "raised" if new else "lowered"
        author = code(by) + markdown(words.HOW.get(how, f", {how}"))
        rows.append([code(flag), changed, author, where, _steps(steps)])
    has_places = any(row[3] for row in rows)
    if not has_places:
        rows = [[*row[:3], row[4]] for row in rows]
    header = ["flag", "", "by", *(["where"] if has_places else []), "at step"]
    return ["## Who changed which flag", "", *_table(header, rows), ""]


def _steps(steps: Sequence[int]) -> str:
    if len(steps) <= 12:
        return ", ".join(map(str, steps))
    return ", ".join(map(str, steps[:6])) + f", … {steps[-1]} ({len(steps):,} times)"


def _losses(run: Run) -> list[str]:
    rows: list[list[str]] = []
    others: list[list[str]] = []
    left_out = 0
    verdict = Verdict()
    for joined, derived in derivations_of_logs(run):
        rank, found = next(iter(joined.items()))
        record, derivation = found.record, derived[rank]
        for one, its_derivation in derived.items():
            verdict.take(one, its_derivation)
        if len(rows) + len(others) >= MOST_ROWS:
            left_out += 1
            continue
        follows = "yes" if derivation.follows else "not derived" if derivation.lacking else "**no**"
        if isinstance(record, events.Loss):
            divisors = sorted({divisor for divisor in record.divided_by if divisor is not None})
            cells = [str(record.step), numbers(record.losses, 6), " or ".join(map(str, divisors)) or "?"]
            cells += [numbers(record.gathered, 6, 9), exact(record.mean), str(record.steps)]
            rows.append(
                [*(markdown(cell) for cell in [*cells, exact(record.quotient), exact(record.logged)]), follows]
            )
        elif not isinstance(record, events.Log):
            text = words.text_of(words.describe(record)).partition(" = ")[2]
            others.append([code(found.key), str(found.step), markdown(text), exact(as_float(record.logged)), follows])
    if not rows and not others:
        return []
    lines = ["## Where each loss comes from", ""]
    if rows:
        header = [
            "step",
            "losses of the micro-batches",
            "÷",
            "sum of each rank",
            "mean",
            "÷ steps",
            "quotient",
            "logged",
            "follows",
        ]
        lines += [*_table(header, rows), ""]
    if others:
        lines += [*_table(["metric", "step", "derivation", "logged", "follows"], others), ""]
    if left_out:
        lines += [f"{counted(left_out, 'more log')} not shown.", ""]
    verdict.close(run)
    lines += [markdown(verdict.lines()[-1]) + ".", ""]
    return lines


def _files(collected: _Collected) -> list[str]:
    if not collected.files:
        return []
    rows = []
    for step, record in collected.files:
        if isinstance(record, events.Rng):
            rows.append([str(step), "random states set from", code(record.source), ""])
        else:
            done = {"write": "written", "remove": "removed"}.get(record.action, printable(record.action))
            rows.append([str(step), markdown(done), code(record.path), words.size(record.size)])
    return ["## Files", "", *_table(["at step", "", "file", "size"], rows), ""]


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Lay out a table; the cells are escaped already."""
    lines = ["| " + " | ".join(header) + " |", "|" + " --- |" * len(header)]
    lines += ["| " + " | ".join(row) + " |" for row in rows[:MOST_ROWS]]
    if len(rows) > MOST_ROWS:
        lines.append(f"| … {len(rows) - MOST_ROWS:,} more |" + " |" * (len(header) - 1))
    return lines


# Read next: perfetto.py, which lays a run out in time.
