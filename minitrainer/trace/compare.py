"""Compares two runs: what an observer of the one saw that an observer of the other did not.

    python -m minitrainer.trace compare A B
    python -m minitrainer.trace compare run_glue --trainers transformers==4.31.0 transformers==5.24.0
    python -m minitrainer.trace compare --trainers transformers minitrainer one-epoch --logging_steps 1

How it works. Each rank of A is compared with the same rank of B, in the portable form, block by block (`blocks.py`).
Blocks of equal bytes are equal. Of two that differ, the numbers are taken out: what is left is their *shape*. Blocks of
recordings are not even decoded: they are read by their *layout* (`layouts.py`), which is a shape with its values. The
rows of two shapes are aligned once (`aligning.py`) and the result is kept, so that ten thousand steps that differ in
the same way cost one alignment. Then only values are compared, and only rows whose values differ are read as records
(`findings.py`). Time and memory grow linearly with the rows, plus O(n · d) once for each pair of shapes with n rows
and d differing ones.

What it can't see: what leaves no row in a trace (see events.py), and in what order things happened on different ranks.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

from minitrainer.trace import defaults, events
from minitrainer.trace.aligning import CLOSERS, OPENERS, Alignment, align
from minitrainer.trace.audit import compare_audits
from minitrainer.trace.blocks import Blocks, Key, by_epoch, depths_among, read_line, split, values_by_line
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
    recognise_what_follows,
)
from minitrainer.trace.layouts import Layout, RecordedBlocks, Values, open_blocks
from minitrainer.trace.ranks import Run, open_run
from minitrainer.trace.render.escape import printable

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
        headlines: what audits of both say differs, a sentence for each factor.
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
    headlines: list[str] = field(default_factory=list)
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
    if "number" not in ignore:
        comparison.headlines = compare_audits(findings, run_a, run_b)
    for rank in run_a.readings:
        if rank in run_b.readings:
            opened = open_blocks(run_a.readings[rank], run_b.readings[rank])
            with opened[0] as blocks_a, opened[1] as blocks_b:
                _Walk(comparison, findings, rank, blocks_a, blocks_b, arguments, set(ignore)).walk()
    _compare_defaults(findings, run_a, run_b)
    counts = _counts(arguments, run_a, run_b)
    found = findings.finish()
    for finding in found:
        if finding.kind == "number":
            finding.note = finding.note or recognise(finding, counts)
        if finding.kind == "sample" and finding.subject.endswith("order"):
            finding.note = _shuffled_by(comparison.versions)
        if finding.kind == "call" and finding.change == "removed":
            finding.note = RENAMED_METHODS.get(finding.subject, "")
        if finding.kind not in ignore:
            (comparison.renamed if finding.change == "renamed" else comparison.findings).append(finding)
    recognise_what_follows(found)
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
    """How to compare two blocks of two shapes (or layouts); made once for each pair of them.

    Attributes:
        alignment: which rows belong together.
        pick_a, pick_b: take the values to compare out of a block's values: those in rows that are about the same.
        lines: for each value so picked, the positions of its row in A and in B.
        unlike: pairs of other rows: they are always read.
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

MOST_LONE_BLOCKS = 200
"""So many places that only one side came to are read row by row; later ones hold nothing new."""


class _Lines:
    """Rows of one side that stand as lines; `begin` lines that both sides share stand before them."""

    def __init__(self, lines: list[bytes], path: Path, begin: int = 0, end: int = 0):
        self.block, self.path, self.begin = lines, path, begin
        self.rows = lines[begin : len(lines) - end]

    def __len__(self) -> int:
        return len(self.rows)

    def row(self, position: int) -> Any:
        """The record at a position; -1 is the one before the first."""
        return read_line(self.block[self.begin + position], self.path)

    def lines(self) -> list[bytes]:
        """All lines of the block."""
        return self.block


class _LaidOut:
    """Rows of one side that are known by their layout and its values."""

    begin = 0

    def __init__(self, layout: Layout, values: Values):
        self.layout, self.values = layout, values

    def __len__(self) -> int:
        return len(self.layout.rows)

    def row(self, position: int) -> Any:
        return self.layout.row(position, self.values)

    def lines(self) -> list[bytes]:
        return self.layout.lines(self.values)


class _Walk:
    """One pass over the same rank of two runs."""

    def __init__(
        self,
        comparison: Comparison,
        findings: Findings,
        rank: int,
        blocks_a: Blocks | RecordedBlocks,
        blocks_b: Blocks | RecordedBlocks,
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
        self.plans: dict[tuple[Any, Any], _Plan] = {}
        self.lone_blocks = 0

    def walk(self) -> None:
        keys_a, keys_b = self.a.keys, self.b.keys
        self._remember_arguments()
        if keys_a == keys_b:
            matches: Iterator[Places] = (([i], [i]) for i in range(len(keys_a)))
        else:
            matches = _matched(*by_epoch(keys_a, keys_b))
        compare = self._recorded_blocks if isinstance(self.a, RecordedBlocks) else self._blocks_of_lines
        equal = 0
        for here_a, here_b in matches:
            if not here_a or not here_b:
                self._lone_block(here_a, here_b)
            elif len(here_a) == len(here_b) == 1:
                equal += compare(here_a[0], here_b[0])
            else:
                left, right = b"".join(map(self.a.block, here_a)), b"".join(map(self.b.block, here_b))
                equal += self._texts(here_a[0], here_b[0], left, right)
        self.comparison.blocks += max(len(keys_a), len(keys_b))
        self.comparison.equal_blocks += equal

    # -- two blocks -----------------------------------------------------------------------

    def _blocks_of_lines(self, i: int, j: int) -> bool:
        return self._texts(i, j, self.a.block(i), self.b.block(j))

    def _texts(self, i: int, j: int, left: bytes, right: bytes) -> bool:
        """Compare two blocks that stand as lines; return whether they are equal."""
        if left == right:
            return True
        lines_a, lines_b = left.split(b"\n"), right.split(b"\n")
        # What both begin and end with is equal; of a step that differs somewhere only a few rows are left.
        shortest = min(len(lines_a), len(lines_b))
        begin = 0
        while begin < shortest and lines_a[begin] == lines_b[begin]:
            begin += 1
        end = 0
        while end < shortest - begin and lines_a[-1 - end] == lines_b[-1 - end]:
            end += 1
        side_a = _Lines(lines_a, self.path_a, begin, end)
        side_b = _Lines(lines_b, self.path_b, begin, end)
        shape_a, values_a = split(b"\n".join(side_a.rows))
        shape_b, values_b = split(b"\n".join(side_b.rows))
        plan = self.plans.get((shape_a, shape_b))
        if plan is None:
            plan = self._kept((shape_a, shape_b), _plan_of_shapes(shape_a, shape_b, side_a, side_b))
        self._differing(i, j, plan, side_a, side_b, values_a, values_b)
        return False

    def _recorded_blocks(self, i: int, j: int) -> bool:
        """Compare two blocks of recordings; return whether they are equal."""
        assert isinstance(self.a, RecordedBlocks) and isinstance(self.b, RecordedBlocks)
        layout_a, values_a = self.a.laid_out(i)
        layout_b, values_b = self.b.laid_out(j)
        plan = self.plans.get((layout_a, layout_b))
        if plan is None:
            plan = _plan_of_layouts(layout_a, layout_b)
            if not self.a.is_alone(i) and not self.b.is_alone(j):
                self._kept((layout_a, layout_b), plan)
        return self._differing(
            i, j, plan, _LaidOut(layout_a, values_a), _LaidOut(layout_b, values_b), values_a, values_b
        )

    def _kept(self, shapes: tuple[Any, Any], plan: _Plan) -> _Plan:
        if len(self.plans) >= MOST_PLANS:
            self.plans.clear()
        self.plans[shapes] = plan
        return plan

    def _differing(
        self,
        i: int,
        j: int,
        plan: _Plan,
        side_a: _Lines | _LaidOut,
        side_b: _Lines | _LaidOut,
        values_a: Sequence[bytes],
        values_b: Sequence[bytes],
    ) -> bool:
        """Note what differs between two blocks; return whether nothing does."""
        picked_a, picked_b = plan.pick_a(values_a), plan.pick_b(values_b)
        alignment = plan.alignment
        pairs = list(plan.unlike)
        if picked_a != picked_b:
            together = zip(plan.lines, picked_a, picked_b, strict=True)
            pairs += dict.fromkeys(pair for pair, x, y in together if x != y)
            pairs.sort()
        elif not pairs and not alignment.removed and not alignment.added:
            return True
        step = self.a.keys[i].step
        noted_before = self.findings.noted
        first: tuple[int, int, bool, bool] | None = None
        for position_a, position_b in pairs:
            before = self.findings.noted
            compare_rows(self.findings, side_a.row(position_a), side_b.row(position_b), step, self.rank)
            if first is None and before != self.findings.noted:
                first = (position_a, position_b, True, True)
        lone = self._lone_rows(plan, side_a, side_b, step)
        if self.comparison.first is None and noted_before != self.findings.noted:
            position_a, position_b, in_a, in_b = min(place for place in (first, lone) if place is not None)
            at = side_a.begin + position_a, side_b.begin + position_b, in_a, in_b
            self._diverge(i, j, side_a.lines(), side_b.lines(), at)
        return noted_before == self.findings.noted

    def _lone_rows(
        self, plan: _Plan, side_a: _Lines | _LaidOut, side_b: _Lines | _LaidOut, step: int
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
        for letter, positions in (("A", plan.alignment.removed), ("B", plan.alignment.added)):
            in_a = letter == "A"
            side = side_a if in_a else side_b
            paired = dict(plan.alignment.pairs) if in_a else {j: i for i, j in plan.alignment.pairs}
            for position in positions:
                row = side.row(position)
                kind, subject, echo_of = lone_row(row)
                finding = self.findings.note(
                    kind,
                    "removed" if in_a else "added",
                    subject,
                    step,
                    self.rank,
                    row_a=row if in_a else None,
                    row_b=None if in_a else row,
                    place=_place(side.row(position - 1) if side.begin + position else None),
                    inside=plan.alignment.inside.get((letter, position), 0),
                    echo_of=echo_of,
                )
                plan.lone.append(finding)
                if kind not in self.ignore:
                    other = next((paired[after] for after in range(position + 1, len(side)) if after in paired), None)
                    if in_a:
                        here = (position, len(side_b) if other is None else other, True, False)
                    else:
                        here = (len(side_a) if other is None else other, position, False, True)
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
        if self.lone_blocks < MOST_LONE_BLOCKS:
            self.lone_blocks += 1
            for line in lines[1:-1]:
                self.findings.swallow(change, read_line(line, path))
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

    def _before(self, blocks: Blocks | RecordedBlocks, index: int, lines: list[bytes], position: int) -> list[str]:
        rows = [line.decode("utf-8", "replace") for line in lines[max(0, position - ROWS_BEFORE) : position] if line]
        if len(rows) < ROWS_BEFORE:
            rows = [*self._tail(blocks, index - 1), *rows][-ROWS_BEFORE:]
        return rows

    def _tail(self, blocks: Blocks | RecordedBlocks, index: int) -> list[str]:
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


def _plan_of_shapes(shape_a: bytes, shape_b: bytes, side_a: _Lines, side_b: _Lines) -> _Plan:
    if shape_a == shape_b:
        # The same rows, with other numbers: nothing to align.
        alignment = Alignment([(i, i) for i in range(len(side_a))], [], [], {})
    else:
        rows_a, rows_b = ([side.row(position) for position in range(len(side))] for side in (side_a, side_b))
        alignment = align(rows_a, rows_b)
    depths = depths_among(shape_a)
    slots_a = [[i for i in values if i not in depths] for values in values_by_line(shape_a)]
    slots_b = [list(values) for values in values_by_line(shape_b)]
    text_a, text_b = shape_a.split(b"\n"), shape_b.split(b"\n")
    depths_b = depths_among(shape_b)
    slots_b = [[j for j in values if j not in depths_b] for values in slots_b]
    return _plan(alignment, text_a, text_b, slots_a, slots_b)


def _plan_of_layouts(layout_a: Layout, layout_b: Layout) -> _Plan:
    slots_a, slots_b = ([[] if slot is None else [slot] for slot in layout.slots] for layout in (layout_a, layout_b))
    return _plan(align(layout_a.rows, layout_b.rows), layout_a.subjects, layout_b.subjects, slots_a, slots_b)


def _plan(
    alignment: Alignment,
    subjects_a: Sequence[Hashable],
    subjects_b: Sequence[Hashable],
    slots_a: list[list[int]],
    slots_b: list[list[int]],
) -> _Plan:
    """Make a plan out of what each row is about, and of which values are its own."""
    take_a: list[int] = []
    take_b: list[int] = []
    lines: list[tuple[int, int]] = []
    unlike: list[tuple[int, int]] = []
    for i, j in alignment.pairs:
        if subjects_a[i] == subjects_b[j]:
            take_a += slots_a[i]
            take_b += slots_b[j]
            lines += [(i, j)] * len(slots_a[i])
        else:
            unlike.append((i, j))
    return _Plan(alignment, _picker(take_a), _picker(take_b), lines, unlike)


def _name_of(blocks: Blocks | RecordedBlocks) -> str:
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


def _place(before: Any) -> str:
    """Say where a row stands: after which row of its own side."""
    from minitrainer.trace.render.words import describe, text_of

    if before is None:
        return "at the very beginning"
    if isinstance(before, CLOSERS):
        name = getattr(before, "method", None) or getattr(before, "event", None) or getattr(before, "callback", "")
        return f"after {name}"
    if isinstance(before, OPENERS):
        return f"first in {text_of(describe(before)).split(' ')[0]}"
    return f"after {text_of(describe(before)).strip()}"


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
        "--no-audit",
        action="store_true",
        help="with --trainers: do not measure what losses and gradients should be (it takes a second pass each step)",
    )
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
        alone = options.timing  # side by side they would slow each other
        a, b = record_both(
            options.trainers, words[0], words[1:], options.out, options.nproc, not options.no_audit, not alone
        )
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
    trainers: list[str],
    what: str,
    words: list[str],
    out: Path | None = None,
    nproc: str | None = None,
    audited: bool = True,
    together: bool = True,
) -> tuple[Path, Path]:
    """Run a scenario or script with two Trainers, each in a process of its own, and return the folders of the traces.

    Args:
        trainers: two words as `--trainer` takes them.
        what, words: the scenario or script, and its arguments.
        out: folder for the two; None for a new one under runs/.
        nproc: number of processes of each run.
        audited: measure beside each run what its losses and gradients should be.
        together: run both at the same time, if it is one of our scenarios.

    Raises:
        UsageError: a run could not be done.
    """
    from concurrent.futures import ThreadPoolExecutor

    from minitrainer.trace import scenarios

    if out is None:
        from minitrainer.trace.running import _trace_folder

        out = _trace_folder(None, f"compare-{Path(what).stem}")
    folders = [out / f"{side}-{trainer.replace('==', '-')}" for side, trainer in zip("ab", trainers, strict=True)]
    variables = {"MINITRAINER_AUDIT": "1"} if audited else None
    with ThreadPoolExecutor(2 if together and what in scenarios.SCENARIOS else 1) as pool:
        runs = [
            pool.submit(record, trainer, what, words, folder, nproc, variables)
            for trainer, folder in zip(trainers, folders, strict=True)
        ]
    for run in runs:
        run.result()
    return folders[0], folders[1]


class NoTrace(UsageError):
    """A run left no trace. `reason` is its own complaint."""

    def __init__(self, message: str, reason: str):
        super().__init__(message)
        self.reason = reason


LOG_NAME = "run.log"
"""What a run prints goes to this file beside its trace: two runs at a time can't share a screen."""


def record(
    trainer: str,
    what: str,
    words: list[str],
    folder: Path,
    nproc: str | None = None,
    variables: dict[str, str] | None = None,
) -> None:
    """Run a scenario or script with one Trainer in a process of its own and leave its trace in `folder`.

    Raises:
        NoTrace: the run left no trace.
    """
    from minitrainer.trace import scenarios
    from minitrainer.trace.running import _made, _trace_folder

    if what not in scenarios.SCENARIOS and not Path(what).is_file():
        raise UsageError(f"{what} is neither a scenario ({', '.join(scenarios.SCENARIOS)}) nor a script that is here")
    log = _made(_trace_folder(folder, "")) / LOG_NAME
    ours = ["--trainer", trainer, "--quiet", "--out", str(folder), *(["--nproc", nproc] if nproc else [])]
    after = [what, *ours, *words] if what in scenarios.SCENARIOS else [*ours, what, *words]
    environment = {**os.environ, **(variables or {})}
    root = str(Path(__file__).resolve().parents[2])
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [root, environment.get("PYTHONPATH")]))
    print(f"recording {what} with {trainer}; what it prints goes to {log}", file=sys.stderr, flush=True)
    with open(log, "wb") as file:
        command = [sys.executable, "-m", "minitrainer.trace", *after]
        status = subprocess.run(command, env=environment, stdout=file, stderr=file, check=False).returncode
    if status == 0:
        return
    reason = _complaint(log)
    said = f"{what} with {trainer} ended with status {status}: {reason}"
    if not any(folder.glob("rank*.rows")):
        raise NoTrace(said, reason)
    print(f"{said}; its trace is taken as far as it goes", file=sys.stderr, flush=True)


_COMPLAINT = re.compile(r"^(?:minitrainer\.trace: |(?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b.*:? )")


def _complaint(log: Path) -> str:
    """The line of an output that says what went wrong: our own, else the last error, else the last line."""
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    ours = [line for line in lines if line.startswith("minitrainer.trace: ")]
    errors = [line for line in lines if _COMPLAINT.match(line)]
    said = (ours or errors or lines or ["it printed nothing"])[-1].removeprefix("minitrainer.trace: ")
    return printable(said)[:400]


# Read next: render/report.py, which puts a comparison into words.
