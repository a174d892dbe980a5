"""The pen: puts words into a mapped file, so that a row is whole or absent whatever happens to the process.

A recording consists of words of eight bytes (rows.py). The pen knows the map and the position, and writes what happens
many times a step:

- a **cell**, one float: the clock plus a constant that says what happened;
- a packed row: a first word, composed by who writes the row; values, a word each; and a cell that gives the time. They
  are **floats**, or **integers**, or the step and the epoch of an **event**;
- the **rates** of parameter groups, that is floats again, and the **samples** of a micro-batch, whose positions take
  half a word each;
- a **line**, that is anything else, encoded already.

Each method returns whether it has written. What it can't hold it leaves alone (no room, no map, a number too large,
a value of another type): then whoever called encodes a line instead. Nothing is ever raised for what a Trainer did.

There are two pens that write the same words. `PythonPen`, below, is the one to read; `_native.c` does the same in a
fraction of the time, and is used where it could be compiled when minitrainer was installed. What that comes to in a step
stands in chapters/costs.md.
"""

from __future__ import annotations

import math
import mmap
import struct
from _thread import get_ident
from time import perf_counter
from typing import Any

from minitrainer.trace.rows import RATES, SAMPLES_ROWS, WORD_BYTES, cell_head

MOST_VALUES = max(RATES)
"""Of one row: as many as the rates of an optimizer step that is packed."""

_FLOATS, _INTEGERS = ([struct.Struct(f"<q{count}{code}d") for count in range(MOST_VALUES + 1)] for code in ("d", "q"))
_EVENT = struct.Struct("<qI4xdd")


class PythonPen:
    """Writes words into a map.

    Only the thread that made the pen writes cells, rows and samples.

    Args:
        zero: what is added to the clock, in seconds, for a cell with the number 0.

    Attributes:
        position: words written so far.
        zero: as given; it changes when times are counted anew.
    """

    __slots__ = ("_map", "_thread", "_words", "position", "zero")

    def __init__(self, zero: float):
        self.zero = zero
        self.position = 0
        self._thread = get_ident()
        self._map: mmap.mmap | bytearray | None = None
        self._words = memoryview(b"").cast("d")

    def move(self, map: mmap.mmap | bytearray | None) -> None:
        """Write into this map from now on, at the position reached; None for no map. The old one is let go."""
        self._words.release()
        self._map = map
        self._words = memoryview(b"" if map is None else map).cast("d")

    def cell(self, number: int | None) -> bool:
        """Write that something happened now; None is for what has no number yet."""
        if type(number) is not int or number < 0 or self.is_elsewhere() or self.position >= len(self._words):
            return False
        head = cell_head(number, self.zero)
        if head is None:
            return False
        self._words[self.position] = perf_counter() + head
        self.position += 1
        return True

    def floats(self, first: int, *values: float) -> bool:
        """Write a first word, at most `MOST_VALUES` values, and the time."""
        if len(values) > MOST_VALUES or {*map(type, values)} != {float}:
            return False
        return self._pack(_FLOATS[len(values)], first, *values)

    def integers(self, first: int, *values: int) -> bool:
        """The same for whole numbers."""
        if len(values) > MOST_VALUES or {*map(type, values)} != {int}:
            return False
        return self._pack(_INTEGERS[len(values)], first, *values)

    def event(self, first: int, step: int, epoch: float | None) -> bool:
        """Write a first word, the step, the epoch, which may be unknown, and the time."""
        if type(step) is not int or not (epoch is None or type(epoch) is float):
            return False
        return self._pack(_EVENT, first, step, math.nan if epoch is None else epoch)

    def rates(self, kind: int, groups: list[dict[str, Any]], skipped: bool) -> bool:
        """Write a step of the optimizer or the scheduler, with the rate of each parameter group."""
        if type(groups) is not list or {*map(type, groups)} != {dict} or type(skipped) is not bool:
            return False
        if type(kind) is not int or not 0 <= kind < 1 << 8:
            return False
        rates: list[Any] = [group.get("lr") for group in groups]
        return self.floats(kind | len(groups) << 8 | skipped << 16, *rates)

    def samples(
        self, kind: int, rows: int | None, labels: int | None, is_eval: bool, digest: int | None, positions: object
    ) -> bool:
        """Write the samples of a micro-batch, as `rows.SAMPLES_ROWS` lays them out."""
        if type(positions) is not list or len(positions) >= len(SAMPLES_ROWS):
            return False
        if {*map(type, (rows, labels, digest, *positions))} != {int}:
            return False
        row = SAMPLES_ROWS[len(positions)]
        return self._pack(row, kind, len(positions), rows, labels, is_eval, digest, *positions)

    def line(self, line: bytes) -> bool:
        """Write whole words that were encoded elsewhere.

        Raises:
            ValueError: they are not whole.
        """
        if len(line) % WORD_BYTES:
            raise ValueError("a line is bytes, and fills whole words")
        begin = self.position * WORD_BYTES
        if self._map is None or begin + len(line) > len(self._map):
            return False
        self._map[begin : begin + len(line)] = line
        self.position += len(line) // WORD_BYTES
        return True

    def is_elsewhere(self) -> bool:
        """Whether this is another thread than the pen's."""
        return get_ident() != self._thread

    def _pack(self, row: struct.Struct, first: int, *others: float | None) -> bool:
        """Encode first: what can't be encoded leaves no trace in the map."""
        if type(first) is not int or first < 0 or self.is_elsewhere():
            return False
        try:
            return self.line(row.pack(first, *others, perf_counter() + self.zero))
        except struct.error:
            return False


try:
    from minitrainer.trace._native import Pen
except ImportError:  # there was no compiler
    Pen = PythonPen  # type: ignore[assignment, misc]


# Read next: _native.c, the same in C.
