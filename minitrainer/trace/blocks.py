"""Cuts a trace into blocks that can be compared one by one, and a block into what is said and what is measured.

A block begins at an event that marks a place in the run (`on_step_begin` of step 12, say) and ends before the next of
them. Its *key* names that place, so the block of one trace finds its counterpart in the other without any search, and
one step more or less does not shift all the steps after it. Two blocks of equal bytes are equal: most of them are done
with then, at the speed of comparing memory.

Blocks are made of the lines of the portable form. A file in another form is brought to it first, in a temporary file.
"""

from __future__ import annotations

import mmap
import os
import re
import tempfile
from collections import Counter
from pathlib import Path
from typing import NamedTuple

from minitrainer.trace import events
from minitrainer.trace.errors import UsageError
from minitrainer.trace.rows import Reading, portable

# -- where a block begins --------------------------------------------------------------

MARKS = (
    b"on_train_begin",
    b"on_epoch_begin",
    b"on_step_begin",
    b"on_epoch_end",
    b"on_train_end",
    b"on_prediction_step",
    b"on_evaluate",
    b"on_predict",
)
"""Events at which a block begins."""

_MARK = re.compile(rb'\n\{"kind":"event","event":"(' + b"|".join(MARKS) + rb')","step":(\d+)')

START = b"start"
"""Event of the key of the first block: all that happens before the first mark."""


class Key(NamedTuple):
    """Names the place in a run where a block begins.

    Attributes:
        run: how many times `on_train_begin` was seen, this one included: a resumed or second training has its own.
        event: the event at the mark.
        step: `global_step` there.
        occurrence: 0 for the first block with the three above, 1 for the second (an evaluation has many batches at
            one step).
    """

    run: int
    event: bytes
    step: int
    occurrence: int


class Cutter:
    """Names the blocks of a file, one after the other.

    Attributes:
        keys: key of each block so far.
    """

    def __init__(self) -> None:
        self.keys: list[Key] = []
        self._run = 0
        self._seen: dict[tuple[int, bytes, int], int] = {}

    def add(self, event: bytes, step: int) -> None:
        """A block begins here."""
        self._run += event == b"on_train_begin"
        place = (self._run, event, step)
        occurrence = self._seen.get(place, 0)
        self._seen[place] = occurrence + 1
        self.keys.append(Key(*place, occurrence))


def by_epoch(keys_a: list[Key], keys_b: list[Key]) -> tuple[list[Key], list[Key]]:
    """Name blocks by their place in the epoch instead of by the steps done, where the two runs need it.

    Where one side does one step more in an epoch, every later step has another number on the two sides. Then the n-th
    step of an epoch belongs to the n-th step of the same epoch. A run that begins elsewhere (a resumed one beside an
    unbroken one) keeps its steps.
    """
    epochs_a, epochs_b = _steps_at_epochs(keys_a), _steps_at_epochs(keys_b)
    for run in epochs_a.keys() & epochs_b.keys():
        left, right = epochs_a[run], epochs_b[run]
        both = min(len(left), len(right))
        if left[0] == right[0] and left[:both] != right[:both]:
            return _within_epochs(keys_a), _within_epochs(keys_b)
    return keys_a, keys_b


def _steps_at_epochs(keys: list[Key]) -> dict[int, list[int]]:
    """For each run, the steps at which its epochs begin."""
    steps: dict[int, list[int]] = {}
    for key in keys:
        if key.event == b"on_epoch_begin":
            steps.setdefault(key.run, []).append(key.step)
    return steps


def _within_epochs(keys: list[Key]) -> list[Key]:
    """The same keys with the number of the epoch in the place of the step; counted within it."""
    named = []
    epoch, seen = 0, Counter[tuple[int, bytes, int]]()
    for key in keys:
        if key.event == b"on_train_begin":
            epoch = 0
        epoch += key.event == b"on_epoch_begin"
        place = (key.run, key.event, epoch)
        named.append(Key(*place, seen[place]))
        seen[place] += 1
    return named


class Blocks:
    """The blocks of one trace file, in the order of the file. Use it in a `with`, which closes the file.

    Attributes:
        head: the file's first record.
        keys: key of each block.
    """

    def __init__(self, reading: Reading):
        self.head = reading.head
        self._file = _portable_file(reading)
        size = os.fstat(self._file.fileno()).st_size
        self._bytes: mmap.mmap | bytes = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ) if size else b""
        cutter = Cutter()
        self.keys = cutter.keys
        self._starts: list[int] = []
        self._cut(cutter)

    def __enter__(self) -> Blocks:
        return self

    def __exit__(self, *_: object) -> None:
        if isinstance(self._bytes, mmap.mmap):
            self._bytes.close()
        self._file.close()

    def __len__(self) -> int:
        return len(self.keys)

    def block(self, index: int) -> bytes:
        """The lines of a block, each with its line feed; a line that was not finished is left out."""
        block = self._bytes[self._starts[index] : self._starts[index + 1]]
        return block if block.endswith(b"\n") else block[: block.rfind(b"\n") + 1]

    def _cut(self, cutter: Cutter) -> None:
        first_line_feed = self._bytes.find(b"\n")
        end = len(self._bytes) if first_line_feed >= 0 else 0
        cutter.add(START, 0)
        self._starts.append(first_line_feed + 1)
        # the line feed before a mark belongs to the block before it
        for mark in _MARK.finditer(self._bytes, max(first_line_feed, 0), end):
            cutter.add(mark[1], int(mark[2]))
            self._starts.append(mark.start() + 1)
        self._starts.append(end)


def _portable_file(reading: Reading):
    """Open the portable form of a trace: the file itself, or a temporary one."""
    if reading.head.form == "portable":
        return open(reading.path, "rb")
    from minitrainer.trace.rows import encode_canonical

    file = tempfile.TemporaryFile()
    try:
        lines = []
        for record in portable(reading):
            lines.append(encode_canonical(record))
            if len(lines) == 10_000:
                file.write(b"\n".join(lines) + b"\n")
                lines.clear()
        file.write(b"".join(line + b"\n" for line in lines))
        file.flush()
    except OSError as error:
        raise UsageError(f"{reading.path} can't be brought to its portable form: {error.strerror}") from error
    return file


# -- what is said and what is measured ----------------------------------------------------

_MEASURED = re.compile(rb'([:,\[]-?\d[\d.eE+-]*|igest":"[0-9a-f]*|-\d+)')


class Split(NamedTuple):
    """A block in two: `shape` is its text with a gap for every number, `values` are the numbers in their order.

    Steps of one shape differ in numbers only, so a run of a million rows has a handful of shapes.
    """

    shape: bytes
    values: list[bytes]


def split(block: bytes) -> Split:
    """Take the numbers (and digests) out of a block."""
    pieces = _MEASURED.split(block)
    return Split(b"\0".join(pieces[::2]), pieces[1::2])


def values_by_line(shape: bytes) -> list[range]:
    """For each line of a shape, which of the block's values stand in it, the depth of calls left out of none."""
    ranges = []
    begin = 0
    for line in shape.split(b"\n"):
        end = begin + line.count(b"\0")
        ranges.append(range(begin, end))
        begin = end
    return ranges


def depths_among(shape: bytes) -> frozenset[int]:
    """Positions of the values that are a call's nesting depth: one call more or less moves them all."""
    return frozenset(i for i, text in enumerate(shape.split(b"\0")[:-1]) if text.endswith(b'"depth"'))


def read_line(line: bytes, path: Path) -> events.Record:
    """The record of one line of a block."""
    import msgspec

    from minitrainer.trace.rows import _CANONICAL

    try:
        return _CANONICAL.decode(line)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: a line is not a trace record: {error}") from error


# Read next: aligning.py, which finds the rows of two blocks that belong together.
