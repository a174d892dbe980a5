"""Compares two runs: what an observer of the one saw that an observer of the other did not.

    python -m minitrainer.trace compare A B
    python -m minitrainer.trace compare run_glue --trainers transformers==4.31.0 transformers==5.24.0
    python -m minitrainer.trace compare --trainers transformers minitrainer one-epoch --logging_steps 1

How it works. Each rank of A is compared with the same rank of B, in the portable form, block by block (`blocks.py`).
Blocks of equal bytes are equal. Of two that differ, the numbers are taken out: what is left is their *shape*. The rows
of two shapes are aligned once (`aligning.py`) and the result is kept, so that ten thousand steps that differ in the
same way cost one alignment. Then only values are compared, and only rows whose values differ are read as records
(`findings.py`). Time and memory grow linearly with the rows, plus O(n · d) once for each pair of shapes with n rows
and d differing ones.

What it can't see: what leaves no row in a trace (see events.py), and in what order things happened on different ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from minitrainer.trace import defaults, events
from minitrainer.trace.aligning import CLOSERS, OPENERS, Alignment, align
from minitrainer.trace.blocks import Blocks, Key, depths_among, read_line, split, values_by_line
from minitrainer.trace.command_words import own_options_out_of
from minitrainer.trace.errors import UsageError
from minitrainer.trace.findings import (
    KINDS,
    RENAMED_ARGUMENTS,
    RENAMED_METHODS,
    Finding,
    Findings,
    compare_rows,
    encode,
    lone_row,
    recognise,
)
from minitrainer.trace.ranks import Run, open_run

EQUAL, DIFFERENT = 0, 1
"""Exit statuses; the third is 2, for what can't be used."""

ROWS_BEFORE = 3

# -- the result --------------------------------------------------------------------------------


@dataclass
class Divergence:
    """The first place where two runs differ.

    Attributes:
        rank, step: where it is; `step` is that of the block, the number of steps done before it.
        before_a, before_b: up to three rows before it, as recorded.
        row_a, row_b: the rows themselves; None where a side has none.
    """

    rank: int
    step: int
    before_a: list[str]
    before_b: list[str]
    row_a: str | None
    row_b: str | None


@dataclass
class Comparison:
    """What `compare_runs` found.

    Attributes:
        name_a, name_b: what the sides are called: their versions.
        findings: everything that differs, in the order of a report.
        renamed: what has another name and is otherwise the same. It does not make the runs different.
        first: where the runs differ first, None if they don't.
        rows: rows looked at, of both sides together.
        blocks, equal_blocks: how many places were compared, and how many of them were equal as a whole.
        versions: the distributions whose versions differ: name to (A's, B's). Which of them moved is not in a trace.
        ignored: kinds that were left out.
        timing: seconds of the two recordings, only on request.
    """

    name_a: str
    name_b: str
    findings: list[Finding] = field(default_factory=list)
    renamed: list[Finding] = field(default_factory=list)
    first: Divergence | None = None
    rows: int = 0
    blocks: int = 0
    equal_blocks: int = 0
    versions: dict[str, tuple[str, str]] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    timing: tuple[float, float] | None = None

    @property
    def equal(self) -> bool:
        return not self.findings


# -- comparing -----------------------------------------------------------------------------------


def compare_runs(
    a: Run | str | os.PathLike[str],
    b: Run | str | os.PathLike[str],
    ignore: tuple[str, ...] | list[str] = (),
    tolerance: float = 0.0,
    timing: bool = False,
) -> Comparison:
    """Compare two runs.

    Args:
        a, b: trace files, folders of runs, or runs that are open already.
        ignore: kinds of findings to leave out.
        tolerance: relative difference up to which numbers count as equal; 0 asks for the same bits.
        timing: also compare how long the recordings took.

    Returns:
        What differs.

    Raises:
        UsageError: a trace can't be read, or `ignore` names no kind.
    """
    for kind in ignore:
        if kind not in KINDS:
            raise UsageError(f"there is no kind {kind!r} of findings; there are {', '.join(KINDS)}")
    run_a = a if isinstance(a, Run) else open_run(a)
    run_b = b if isinstance(b, Run) else open_run(b)
    comparison = Comparison(_name(run_a), _name(run_b), ignored=list(ignore))
    comparison.versions = _versions_that_differ(run_a, run_b)
    findings = Findings(tolerance, set(ignore))
    arguments: dict[str, Any] = {}
    _compare_ranks_present(findings, run_a, run_b)
    for rank in run_a.readings:
        if rank in run_b.readings:
            with Blocks(run_a.readings[rank]) as blocks_a, Blocks(run_b.readings[rank]) as blocks_b:
                _Walk(comparison, findings, rank, blocks_a, blocks_b, arguments, set(ignore)).walk()
    _compare_defaults(findings, run_a, run_b)
    counts = _counts(arguments, run_a, run_b)
    for finding in findings.finish():
        if finding.kind == "number":
            finding.note = recognise(finding, counts)
        if finding.kind == "sample" and finding.subject.endswith("order"):
            finding.note = _shuffled_by(comparison.versions)
        if finding.kind == "call" and finding.change == "removed":
            finding.note = RENAMED_METHODS.get(finding.subject, "")
        if finding.kind not in ignore:
            (comparison.renamed if finding.change == "renamed" else comparison.findings).append(finding)
    if not comparison.findings:
        comparison.first = None
    if timing:
        comparison.timing = (_seconds(run_a), _seconds(run_b))
    return comparison


def _name(run: Run) -> str:
    """The library whose Trainer was watched, with its version."""
    versions = run.first.head.versions
    library = "transformers"
    if "minitrainer" in versions:  # it is there whenever it records: only the first Trainer's classes tell
        for record in islice(run.first, 400):
            if isinstance(record, events.TrainerBegin):
                if any(name.startswith("minitrainer.") for name in record.classes):
                    library = "minitrainer"
                break
    return f"{library} {versions[library]}" if library in versions else run.path.name


def _versions_that_differ(run_a: Run, run_b: Run) -> dict[str, tuple[str, str]]:
    left, right = run_a.first.head.versions, run_b.first.head.versions
    return {
        name: (left[name], right[name])
        for name in left
        if name in right and left[name] != right[name] and name != "python"
    }


def _shuffled_by(versions: dict[str, tuple[str, str]]) -> str:
    """What is known of a shuffle order that changed: not the Trainer but accelerate decides it from 0.24 on."""
    sides = [tuple(map(int, version.split(".")[:2])) >= (0, 24) for version in versions.get("accelerate", ())]
    return "accelerate shuffles in its own way from 0.24 on" if len(set(sides)) > 1 else ""


def _compare_ranks_present(findings: Findings, run_a: Run, run_b: Run) -> None:
    if run_a.world_size != run_b.world_size:
        findings.note("run", "changed", "number of ranks", 0, 0, run_a.first.head, run_b.first.head,
                      (run_a.world_size, run_b.world_size))  # fmt: skip
    for rank in sorted({*run_a.readings, *run_b.readings}):
        if rank not in run_b.readings:
            findings.note("run", "removed", f"trace of rank {rank}", 0, rank, run_a.readings[rank].head, None)
        elif rank not in run_a.readings:
            findings.note("run", "added", f"trace of rank {rank}", 0, rank, None, run_b.readings[rank].head)


def _counts(arguments: dict[str, Any], run_a: Run, run_b: Run) -> dict[str, float]:
    """What a constant factor between two numbers may be equal to."""
    counts: dict[str, float] = {}
    accumulation = arguments.get("gradient_accumulation_steps")
    if isinstance(accumulation, int):
        counts["accumulation steps"] = accumulation
    if run_a.world_size == run_b.world_size:
        counts["ranks"] = run_a.world_size
    for name, argument in (
        ("steps between logs", "logging_steps"),
        ("samples per device", "per_device_train_batch_size"),
    ):
        value = arguments.get(argument)
        if isinstance(value, int):
            counts[name] = value
    return counts


def _seconds(run: Run) -> float:
    last = 0
    for record in run.first:
        last = record.at or last
    if not last:
        raise UsageError(f"{run.path} holds no times: --timing takes recordings (rank0.rows), not canonical files")
    return last / 1e6


# -- one rank ------------------------------------------------------------------------------------------


@dataclass
class _Plan:
    """How to compare two blocks of two shapes; made once for each pair of shapes.

    Attributes:
        alignment: which rows belong together.
        pick_a, pick_b: take the values to compare out of a block's values: those in rows whose text is equal.
        lines: for each value so picked, the positions of its row in A and in B.
        unlike: pairs of rows with other text: they are always read.
        lone: findings of the rows that only one side has, once the first block was looked at.
        first_lone: where the first of these rows stands: position in A, in B, whether A has it, whether B has it.
    """

    alignment: Alignment
    pick_a: Any
    pick_b: Any
    lines: list[tuple[int, int]]
    unlike: list[tuple[int, int]]
    lone: list[Finding] | None = None
    first_lone: tuple[int, int, bool, bool] | None = None


MOST_PLANS = 512


class _Walk:
    """One pass over the same rank of two runs."""

    def __init__(
        self,
        comparison: Comparison,
        findings: Findings,
        rank: int,
        blocks_a: Blocks,
        blocks_b: Blocks,
        arguments: dict[str, Any],
        ignore: set[str],
    ):
        self.comparison = comparison
        self.findings = findings
        self.rank = rank
        self.a, self.b = blocks_a, blocks_b
        self.path_a, self.path_b = Path(_name_of(blocks_a)), Path(_name_of(blocks_b))
        self.arguments = arguments
        self.ignore = ignore
        self.plans: dict[tuple[bytes, bytes], _Plan] = {}

    def walk(self) -> None:
        keys_a, keys_b = self.a.keys, self.b.keys
        self._remember_arguments()
        if keys_a == keys_b:
            matches: Iterator[Places] = (([i], [i]) for i in range(len(keys_a)))
        else:
            matches = _matched(keys_a, keys_b)
        block_a, block_b = self.a.block, self.b.block
        equal = 0
        for here_a, here_b in matches:
            if not here_a or not here_b:
                self._lone_block(here_a, here_b)
                continue
            if len(here_a) == len(here_b) == 1:
                left, right = block_a(here_a[0]), block_b(here_b[0])
            else:
                left, right = b"".join(map(block_a, here_a)), b"".join(map(block_b, here_b))
            if left == right:
                equal += 1
            else:
                self._differing(here_a[0], here_b[0], left, right)
        self.comparison.blocks += max(len(keys_a), len(keys_b))
        self.comparison.equal_blocks += equal

    # -- blocks that differ ---------------------------------------------------------------

    def _differing(self, i: int, j: int, left: bytes, right: bytes) -> None:
        lines_a, lines_b = left.split(b"\n"), right.split(b"\n")
        # What both begin and end with is equal; of a step that differs somewhere only a few rows are left.
        shortest = min(len(lines_a), len(lines_b))
        begin = 0
        while begin < shortest and lines_a[begin] == lines_b[begin]:
            begin += 1
        end = 0
        while end < shortest - begin and lines_a[-1 - end] == lines_b[-1 - end]:
            end += 1
        rows_a, rows_b = lines_a[begin : len(lines_a) - end], lines_b[begin : len(lines_b) - end]
        shape_a, values_a = split(b"\n".join(rows_a))
        shape_b, values_b = split(b"\n".join(rows_b))
        plan = self.plans.get((shape_a, shape_b))
        if plan is None:
            if len(self.plans) >= MOST_PLANS:
                self.plans.clear()
            plan = self.plans[shape_a, shape_b] = self._plan(shape_a, shape_b, rows_a, rows_b)
        picked_a, picked_b = plan.pick_a(values_a), plan.pick_b(values_b)
        step = self.a.keys[i].step
        pairs = list(plan.unlike)
        if picked_a != picked_b:
            together = zip(plan.lines, picked_a, picked_b, strict=True)
            pairs += dict.fromkeys(pair for pair, x, y in together if x != y)
            pairs.sort()
        noted_before = self.findings.noted
        first: tuple[int, int, bool, bool] | None = None
        for position_a, position_b in pairs:
            row_a, row_b = read_line(rows_a[position_a], self.path_a), read_line(rows_b[position_b], self.path_b)
            before = self.findings.noted
            compare_rows(self.findings, row_a, row_b, step, self.rank)
            if first is None and before != self.findings.noted:
                first = (position_a, position_b, True, True)
        lone = self._lone_rows(plan, rows_a, rows_b, lines_a[:begin], step)
        if self.comparison.first is None and noted_before != self.findings.noted:
            position_a, position_b, in_a, in_b = min(place for place in (first, lone) if place is not None)
            self._diverge(i, j, lines_a, lines_b, (begin + position_a, begin + position_b, in_a, in_b))

    def _plan(self, shape_a: bytes, shape_b: bytes, lines_a: list[bytes], lines_b: list[bytes]) -> _Plan:
        text_a, text_b = shape_a.split(b"\n"), shape_b.split(b"\n")
        if shape_a == shape_b:
            # The same rows, with other numbers: nothing to align.
            alignment = Alignment([(i, i) for i in range(len(lines_a))], [], [], {})
        else:
            rows_a = [read_line(line, self.path_a) for line in lines_a]
            rows_b = [read_line(line, self.path_b) for line in lines_b]
            alignment = align(rows_a, rows_b)
        ranges_a, ranges_b = values_by_line(shape_a), values_by_line(shape_b)
        depths = depths_among(shape_a)
        take_a: list[int] = []
        take_b: list[int] = []
        lines: list[tuple[int, int]] = []
        unlike: list[tuple[int, int]] = []
        for i, j in alignment.pairs:
            if text_a[i] != text_b[j]:
                unlike.append((i, j))
                continue
            for x, y in zip(ranges_a[i], ranges_b[j], strict=True):
                if x not in depths:
                    take_a.append(x)
                    take_b.append(y)
                    lines.append((i, j))
        return _Plan(alignment, _picker(take_a), _picker(take_b), lines, unlike)

    def _lone_rows(
        self, plan: _Plan, lines_a: list[bytes], lines_b: list[bytes], before: list[bytes], step: int
    ) -> tuple[int, int, bool, bool] | None:
        """Note the rows of a block that only one side has; return where the first of them stands.

        What a row is about is a matter of its shape: for a second block of these shapes it is known already.
        """
        if plan.lone is not None:
            for finding in plan.lone:
                self.findings.again(finding, step, self.rank)
            return plan.first_lone
        plan.lone = []
        first = None
        for side, positions in (("A", plan.alignment.removed), ("B", plan.alignment.added)):
            in_a = side == "A"
            lines, path = (lines_a, self.path_a) if in_a else (lines_b, self.path_b)
            paired = dict(plan.alignment.pairs) if in_a else {j: i for i, j in plan.alignment.pairs}
            for position in positions:
                row = read_line(lines[position], path)
                kind, subject, echo_of = lone_row(row)
                inside = plan.alignment.inside.get((side, position), 0)
                finding = self.findings.note(
                    kind,
                    "removed" if in_a else "added",
                    subject,
                    step,
                    self.rank,
                    row_a=row if in_a else None,
                    row_b=None if in_a else row,
                    place=_place(before + lines[:position], path),
                    inside=inside,
                    echo_of=echo_of,
                )
                plan.lone.append(finding)
                if kind not in self.ignore:
                    other = next((paired[after] for after in range(position + 1, len(lines)) if after in paired), None)
                    if in_a:
                        here = (position, len(lines_b) if other is None else other, True, False)
                    else:
                        here = (len(lines_a) if other is None else other, position, False, True)
                    first = here if first is None else min(first, here)
        plan.first_lone = first
        return first

    # -- blocks of one side ----------------------------------------------------------------------

    def _lone_block(self, here_a: list[int], here_b: list[int]) -> None:
        """A place of the run that only one side came to."""
        only_in_a = bool(here_a)
        blocks, path = (self.a, self.path_a) if only_in_a else (self.b, self.path_b)
        index = (here_a or here_b)[0]
        lines = blocks.block(index).split(b"\n")
        row = read_line(lines[0], path)
        kind, subject, echo_of = lone_row(row)
        change = "removed" if only_in_a else "added"
        step = blocks.keys[index].step
        self.findings.note(
            kind,
            change,
            subject,
            step,
            self.rank,
            row_a=row if only_in_a else None,
            row_b=None if only_in_a else row,
            place="with all that follows it",
            inside=len(lines) - 2,
            echo_of=echo_of,
        )
        if self.comparison.first is None and kind not in self.ignore:
            before = self._tail(blocks, index - 1)
            encoded = encode(row)
            row_a, row_b = (encoded, None) if only_in_a else (None, encoded)
            self.comparison.first = Divergence(self.rank, step, before, before, row_a, row_b)

    # -- the first divergence -----------------------------------------------------------------------

    def _diverge(
        self, i: int, j: int, lines_a: list[bytes], lines_b: list[bytes], at: tuple[int, int, bool, bool]
    ) -> None:
        position_a, position_b, in_a, in_b = at
        self.comparison.first = Divergence(
            self.rank,
            self.a.keys[i].step,
            self._before(self.a, i, lines_a, position_a),
            self._before(self.b, j, lines_b, position_b),
            lines_a[position_a].decode("utf-8", "replace") if in_a else None,
            lines_b[position_b].decode("utf-8", "replace") if in_b else None,
        )

    def _before(self, blocks: Blocks, index: int, lines: list[bytes], position: int) -> list[str]:
        rows = [line.decode("utf-8", "replace") for line in lines[max(0, position - ROWS_BEFORE) : position] if line]
        if len(rows) < ROWS_BEFORE:
            rows = [*self._tail(blocks, index - 1), *rows][-ROWS_BEFORE:]
        return rows

    def _tail(self, blocks: Blocks, index: int) -> list[str]:
        if index < 0:
            return []
        return [line.decode("utf-8", "replace") for line in blocks.block(index).split(b"\n")[:-1][-ROWS_BEFORE:]]

    def _remember_arguments(self) -> None:
        """Keep the arguments of the first Trainer: a constant factor may equal one of them."""
        if self.arguments:
            return
        for blocks, path in ((self.b, self.path_b), (self.a, self.path_a)):
            for line in blocks.block(0).split(b"\n"):
                if line.startswith(b'{"kind":"trainer"'):
                    record: Any = read_line(line, path)
                    self.arguments.update(record.arguments)
                    break


def _name_of(blocks: Blocks) -> str:
    return f"trace of rank {blocks.head.rank}"


def _picker(positions: list[int]) -> Any:
    if not positions:
        return lambda values: ()
    if len(positions) == 1:
        only = positions[0]
        return lambda values: (values[only],)
    return itemgetter(*positions)


Places = tuple[list[int], list[int]]
"""Blocks of A and blocks of B that are compared as one: one of each, nearly always."""


def _matched(keys_a: list[Key], keys_b: list[Key]) -> Iterator[Places]:
    """Match the blocks of two sides by key, in the order of both.

    Where both have the same keys in another order, the smallest stretch that holds the same keys on both sides is
    handed out as one, so that what moved is seen to have moved. A block that only one side has comes alone.
    """
    places_b = {key: j for j, key in enumerate(keys_b)}
    in_a = set(keys_a)
    common_b = [j for j, key in enumerate(keys_b) if key in in_a]
    order_b = {j: order for order, j in enumerate(common_b)}
    next_b = 0  # first block of B that was not handed out
    common = 0  # common blocks of A so far
    stretch: list[int] = []
    furthest = -1
    for i, key in enumerate(keys_a):
        j = places_b.get(key)
        if j is None:
            if not stretch:
                yield [i], []
            else:
                stretch.append(i)
            continue
        stretch.append(i)
        furthest = max(furthest, order_b[j])
        common += 1
        if furthest + 1 > common:
            continue
        last_b = common_b[furthest]
        first_b = common_b[common - sum(1 for one in stretch if keys_a[one] in places_b)]
        for lone in range(next_b, first_b):
            yield [], [lone]
        next_b = last_b + 1
        yield stretch, list(range(first_b, last_b + 1))
        stretch = []
    for lone in range(next_b, len(keys_b)):
        yield [], [lone]


def _place(lines_before: list[bytes], path: Path) -> str:
    """Say where a row stands: after which row of its own side."""
    from minitrainer.trace.render.words import describe, text_of

    if not lines_before:
        return "at the very beginning"
    row: Any = read_line(lines_before[-1], path)
    if isinstance(row, CLOSERS):
        name = getattr(row, "method", None) or getattr(row, "event", None) or getattr(row, "callback", "")
        return f"after {name}"
    if isinstance(row, OPENERS):
        return f"first in {text_of(describe(row)).split(' ')[0]}"
    return f"after {text_of(describe(row)).strip()}"


# -- defaults ------------------------------------------------------------------------------------------------


def _compare_defaults(findings: Findings, run_a: Run, run_b: Run) -> None:
    left, right = (defaults.read(run.path if run.path.is_dir() else run.path.parent) for run in (run_a, run_b))
    if left is None or right is None:
        return
    by_name_a = {RENAMED_ARGUMENTS.get(name, name): (name, value) for name, value in left.items()}
    by_name_b = {RENAMED_ARGUMENTS.get(name, name): (name, value) for name, value in right.items()}
    for name in [*by_name_a, *(name for name in by_name_b if name not in by_name_a)]:
        (old, value_a), (new, value_b) = by_name_a.get(name, ("", None)), by_name_b.get(name, ("", None))
        values = (value_a, value_b)
        if name not in by_name_b:
            note = findings.note("argument", "removed", f"{old} (the argument itself)", 0, 0, values=values)
        elif name not in by_name_a:
            note = findings.note("argument", "added", f"{new} (the argument itself)", 0, 0, values=values)
        elif value_a != value_b:
            note = findings.note("argument", "changed", f"{new} (its default)", 0, 0, values=values)
        elif old != new:
            note = findings.note("argument", "renamed", f"{old} is now {new}", 0, 0, values=(old, new))
        else:
            continue
        note.row_a = json.dumps({old: value_a}) if old else None
        note.row_b = json.dumps({new: value_b}) if new else None


# -- in a test ---------------------------------------------------------------------------------------------------


def assert_trace_matches(
    trainer_run: Run | str | os.PathLike[str],
    committed_trace: str | os.PathLike[str],
    ignore: tuple[str, ...] = (),
    tolerance: float = 0.0,
) -> None:
    """Pin the behaviour of a run in a test: it must be what a committed trace says.

        from minitrainer.trace import assert_trace_matches, trace

        with trace(trainer, tmp_path):
            trainer.train()
        assert_trace_matches(tmp_path, "tests/traces/my-run.jsonl")

    Where the committed trace does not exist yet, or `MINITRAINER_UPDATE_TRACES=1` is set, it is written (in the
    portable form: nothing in it depends on machine, clock or path) and the test passes.

    Args:
        trainer_run: file or folder of the recording.
        committed_trace: a file for a run of one process, else a folder.
        ignore: kinds of findings that may differ.
        tolerance: relative difference up to which numbers count as equal.

    Raises:
        AssertionError: the run differs; the message is the report.
        UsageError: one of the traces can't be read.
    """
    run = trainer_run if isinstance(trainer_run, Run) else open_run(trainer_run)
    committed = Path(committed_trace)
    if os.environ.get("MINITRAINER_UPDATE_TRACES") == "1" or not committed.exists():
        _commit(run, committed)
        return
    comparison = compare_runs(committed, run, ignore, tolerance)
    if not comparison.equal:
        from minitrainer.trace.render.report import text

        raise AssertionError(f"the run is not what {committed} says (A is the file, B is the run)\n{text(comparison)}")


def _commit(run: Run, to: Path) -> None:
    from minitrainer.trace.rows import write_canonical

    to.parent.mkdir(parents=True, exist_ok=True)
    if len(run.readings) == 1 and to.suffix == ".jsonl":
        write_canonical(run.first, to, level="portable")
        return
    to.mkdir(parents=True, exist_ok=True)
    for rank, reading in run.readings.items():
        write_canonical(reading, to / f"rank{rank}.jsonl", level="portable")


# -- the command ---------------------------------------------------------------------------------------------------


def add_arguments(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the command to a command line."""
    kinds = "\n".join(f"  {kind:<10} {what}" for kind, what in KINDS.items())
    parser = commands.add_parser(
        "compare",
        help="tell what differs between two traces, or between two Trainers in one scenario or script",
        usage="python -m minitrainer.trace compare [options] A B\n"
        "       python -m minitrainer.trace compare [options] --trainers T1 T2 SCENARIO|SCRIPT.py [its arguments]",
        description=f"kinds of findings:\n{kinds}\n\nExit status: 0 equal, 1 different, 2 can't be compared.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[_options()],
        allow_abbrev=False,
    )
    parser.add_argument("what", nargs=argparse.REMAINDER, metavar="A B", help="two files or folders of traces")


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(
        "--trainers",
        nargs=2,
        metavar=("T1", "T2"),
        help="run what follows with both and compare: minitrainer, transformers, transformers==VERSION",
    )
    parser.add_argument("--nproc", metavar="N", help="with --trainers: number of processes of each run")
    parser.add_argument("--out", type=Path, metavar="FOLDER", help="with --trainers: where the two traces go")
    parser.add_argument(
        "--ignore", action="append", default=[], metavar="KIND", help="leave this kind out (repeatable)"
    )
    parser.add_argument("--tolerance", type=float, default=0.0, metavar="REL", help="relative difference to overlook")
    parser.add_argument("--timing", action="store_true", help="also compare how long the recordings took")
    parser.add_argument("--rows", action="store_true", help="show the two recorded rows under each finding")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="also write the report as a Markdown page")
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write the report as an HTML page")
    return parser


def main(options: argparse.Namespace) -> int:
    """Run the command that was parsed and return its exit status."""
    words = own_options_out_of(options, _options(), "compare")
    if not options.trainers:
        for word in words:
            if word.startswith("-"):
                raise UsageError(f"compare has no option {word} (see compare --help)")
    if options.trainers:
        if not words:
            raise UsageError("--trainers needs a scenario or a script to run")
        a, b = record_both(options.trainers, words[0], words[1:], options.out, options.nproc)
    else:
        if len(words) != 2:
            raise UsageError(
                f"compare takes two traces, not {len(words)}, or --trainers T1 T2 with a scenario or script"
            )
        a, b = Path(words[0]), Path(words[1])
    comparison = compare_runs(a, b, options.ignore, options.tolerance, options.timing)
    from minitrainer.trace.render import report

    if options.json:
        print(report.as_json(comparison))
    else:
        report.print_to_terminal(comparison, options.rows)
    for path, page in ((options.markdown, report.markdown), (options.html, report.html)):
        if path is not None:
            try:
                path.write_text(page(comparison), encoding="utf-8")
            except OSError as error:
                raise UsageError(f"{path} can't be written: {error.strerror or error}") from error
    return EQUAL if comparison.equal else DIFFERENT


def record_both(
    trainers: list[str], what: str, words: list[str], out: Path | None = None, nproc: str | None = None
) -> tuple[Path, Path]:
    """Run a scenario or script with two Trainers, each in a process of its own, and return the folders of the traces.

    Raises:
        UsageError: a run could not be done; its own complaint stands above.
    """
    if out is None:
        from minitrainer.trace.running import _trace_folder

        out = _trace_folder(None, f"compare-{Path(what).stem}")
    folders = []
    for side, trainer in zip("ab", trainers, strict=True):
        folder = out / f"{side}-{trainer.replace('==', '-')}"
        record(trainer, what, words, folder, nproc)
        folders.append(folder)
    return folders[0], folders[1]


def record(
    trainer: str,
    what: str,
    words: list[str],
    folder: Path,
    nproc: str | None = None,
    variables: dict[str, str] | None = None,
) -> None:
    """Run a scenario or script with one Trainer in a process of its own and leave its trace in `folder`."""
    from minitrainer.trace import scenarios

    ours = ["--trainer", trainer, "--quiet", "--out", str(folder), *(["--nproc", nproc] if nproc else [])]
    after = [what, *ours, *words] if what in scenarios.SCENARIOS else [*ours, what, *words]
    environment = {**os.environ, **(variables or {})}
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    # What the run itself prints goes to stderr: stdout is the report's, which may be JSON.
    status = subprocess.run(
        [sys.executable, "-m", "minitrainer.trace", *after], env=environment, stdout=sys.stderr, check=False
    ).returncode
    if status != 0 and not any(folder.glob("rank*.rows")):
        raise UsageError(f"{what} with {trainer} ended with status {status} and left no trace")


# Read next: render/report.py, which puts a comparison into words.
