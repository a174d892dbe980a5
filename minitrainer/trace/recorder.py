"""The crash-proof sink: a recording that is whole up to its last row whatever happens to the process.

Every row is encoded the moment it happens and copied into a file that is mapped into memory and shared with the
kernel (`MAP_SHARED`). From that moment the row belongs to the kernel: SIGKILL, SIGTERM, an exception, `os._exit` or an
interpreter that crashes lose nothing. Only a machine that loses power can.

Why not a buffer and `write`: a buffer is what a kill loses, and one `write` a row costs ten times as much as the copy.
Why the space is allocated ahead (`posix_fallocate`): a mapped page without a block on the disk behind it would kill the
process (SIGBUS) on a full disk. Allocation says so beforehand, and then recording stops with one warning; training
never does.

What happens many times a step is written by the pen (pen.py) without an encoder: whoever writes such a row asks the pen
first, and calls `put` where it has no room or can't hold the value. The layout of the rows is in rows.py.
"""

from __future__ import annotations

import math
import mmap
import os
import re
import statistics
import struct
import sys
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, thread_time
from typing import Any

import msgspec

from minitrainer.trace import events
from minitrainer.trace.pen import Pen
from minitrainer.trace.rows import (
    CODES,
    DEFINITION,
    FIELDS,
    NEW_TIME,
    ORIGIN,
    STATE,
    STATE_OF_FLOATS,
    STATE_OF_INTEGERS,
    TICKS_A_SECOND,
    WORD_BYTES,
    Names,
    RowSplitter,
    filled_up,
    plain_row,
)

FIRST_SEGMENT_BYTES = 1 << 20
LARGEST_SEGMENT_BYTES = 1 << 26

RESERVE_BYTES = 512
"""Kept free at the end of the mapped file, so that the last line still fits after the disk has become full."""

LONGEST_TIME_TICKS = 1 << 39
"""Half of what a cell can hold, six days: after it times are counted anew."""

COST_SAMPLE = 32
"""The recorder times itself on one micro-batch in so many; the clock on every row would double what it measures."""

SAMPLE_BYTES = 1 << 16
"""How much of a recording is read back at its end, to estimate the number of rows."""

_open_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()


class Cost:
    """What a recorder takes, measured while it runs, in seconds of this thread's processor time.

    Waiting for other programs is not part of it. Hooks that run seldom are timed each time. One micro-batch in
    `COST_SAMPLE` is timed, and at that moment also an empty call that is hooked like any other, as cold as the others;
    the medians, times how often, stand for the rest.

    Attributes:
        rare_s: all that was timed each time.
        micro_batch_s: what recording the samples of a micro-batch took, each time.
        call: the empty call; call_s: what its two rows took, each time.
    """

    __slots__ = ("call", "call_s", "micro_batch_s", "rare_s")

    def __init__(self) -> None:
        self.rare_s = 0.0
        self.micro_batch_s: list[float] = []
        self.call: Callable[[], Any] = _nothing
        self.call_s: list[float] = []

    def time_a_call(self) -> None:
        begin = thread_time()
        _nothing()
        middle = thread_time()
        self.call()
        self.call_s.append(thread_time() - middle - (middle - begin))

    def total_us(self, rows: int) -> int:
        if not self.call_s:  # a short run
            self.time_a_call()
        call_s = statistics.median(self.call_s)
        micro_batch_s = statistics.median(self.micro_batch_s) if self.micro_batch_s else 0.0
        micro_batches = COST_SAMPLE * len(self.micro_batch_s)
        return int(1e6 * (self.rare_s + call_s * rows / 2 + micro_batch_s * micro_batches))


def _nothing() -> None:
    """What an empty call takes without a hook."""


class Recorder:
    """Writes one rank's recording.

    Args:
        path: file to create (replaced if it is there).
        head: the first row. Its `process` gets the clock of the recording.

    Attributes:
        pen: what writes. The wrappers of patched methods write their cells with it themselves (see probes.py).
        cost: what all this takes.
        dropped: rows that came after the disk was full.
        names: the interned names.
    """

    __slots__ = (
        "__weakref__",
        "_allocated_bytes",
        "_encode",
        "_file",
        "_full",
        "_map",
        "_pid",
        "_segment_bytes",
        "closed",
        "cost",
        "dropped",
        "names",
        "path",
        "pen",
    )

    def __init__(self, path: str | os.PathLike[str], head: events.Head):
        self.path = Path(path)
        self.names = Names()
        self.dropped = 0
        self.cost = Cost()
        self.closed = False
        self._encode = msgspec.json.Encoder().encode
        self._pid = os.getpid()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # A recording that is there may still be mapped by a process that writes it: cutting it short would kill that
        # process (SIGBUS). It gets its own file, and the other one goes on without a name.
        self.path.unlink(missing_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        self._map = mmap.mmap(-1, mmap.PAGESIZE)
        self._segment_bytes = FIRST_SEGMENT_BYTES
        self._allocated_bytes = 0
        self._full = False
        clock = math.floor(perf_counter() * TICKS_A_SECOND) / TICKS_A_SECOND
        self.pen = Pen(ORIGIN - clock)
        process = None if head.process is None else {**head.process, "clock": clock}
        self._start(self._encode(msgspec.structs.replace(head, process=process or {"clock": clock})))
        _open_recorders.add(self)

    def state(self, field: int, site: int, old: Any, new: Any) -> None:
        """A field of the state; two integers or two floats are packed."""
        kind = type(new)
        if type(old) is kind and (kind is int or kind is float) and max(field, site) < 1 << 16:
            write, first = self.state_row(kind, field, site)
            if write(first, old, new):
                return
        self.put(STATE, (field, old, new, site))

    def state_row(self, kind: type, field: int, site: int) -> tuple[Callable[[int, Any, Any], bool], int]:
        """What writes a packed row about a field with values of this type (int or float), and its first word."""
        if kind is int:
            return self.pen.integers, first_word("<BHH", STATE_OF_INTEGERS, field, site)
        return self.pen.floats, first_word("<BHH", STATE_OF_FLOATS, field, site)

    # -- the time -----------------------------------------------------------------------

    def _now(self) -> int:
        """The time in ticks, rounded as a cell's is: rows of all forms stay in order."""
        return int((perf_counter() + self.pen.zero - ORIGIN) * TICKS_A_SECOND)

    def _count_anew(self, ticks: int) -> int:
        """Begin to count the time at this tick: six days have passed, and a cell can hold twelve."""
        self._write(filled_up(self._encode((NEW_TIME, ticks, ticks))))
        self.pen.zero -= ticks / TICKS_A_SECOND
        return 0

    # -- any row ------------------------------------------------------------------------

    def put(self, code: int, fields: tuple[Any, ...]) -> None:
        """Write a row as an array."""
        ticks = self._now()
        if ticks > LONGEST_TIME_TICKS:
            ticks = self._count_anew(ticks)
        self._write(filled_up(self._encode((code, ticks, *fields))))

    def record(self, record: events.Record) -> None:
        """Write a typed record of kind 10 or higher (see `rows.PLAIN_RECORDS`)."""
        row = plain_row(record, 0)
        self.put(row[0], tuple(row[2:]))

    def name(self, text: Any) -> int:
        """Intern a name; the first time its definition is written."""
        number = self.names.ids.get(text)
        if number is None:
            number = self.names.id_of(text)
            self.names.undefined.clear()
            dropped = self.dropped
            self._write(filled_up(self._encode((DEFINITION, number, text))))
            self.dropped = dropped  # a definition is not a row
        return number

    def _write(self, line: bytes) -> None:
        """Write a whole line; make room for it where there is none."""
        if self.closed:  # what was entered before the end still returns through its wrapper
            return
        if not self.pen.line(line) and not (self._grow(len(line)) and self.pen.line(line)):
            self.dropped += 1

    # -- space on the disk -----------------------------------------------------------------

    def _start(self, head_line: bytes) -> None:
        """Map the first segment and write the first row."""
        try:
            size = self._bytes_for(len(head_line))
            os.posix_fallocate(self._file, 0, size)
            self._map = mmap.mmap(self._file, size - RESERVE_BYTES)
            self.pen.move(self._map)
            self._allocated_bytes = size
        except OSError as error:
            self._give_up(error)
        self._write(filled_up(head_line))

    def _bytes_for(self, row_bytes: int) -> int:
        """How many bytes to allocate for a row and what follows: whole reserves, so that the map holds whole words."""
        return max(self._segment_bytes, row_bytes + 2 * RESERVE_BYTES & -RESERVE_BYTES)

    def _grow(self, needed_bytes: int) -> bool:
        """Enlarge the file for a row of `needed_bytes`; False where that can't be (any more).

        The map is resized in place: rows that are written stay where they are.
        """
        if self._full or self.closed:
            return False
        size = self._allocated_bytes + self._bytes_for(needed_bytes)
        try:
            os.posix_fallocate(self._file, self._allocated_bytes, size - self._allocated_bytes)
            self.pen.move(None)
            self._map.resize(size - RESERVE_BYTES)
            self.pen.move(self._map)
            os.posix_fallocate(self._file, 0, size)  # resizing has cut the file to the map: give the reserve back
        except (OSError, SystemError, ValueError) as error:
            self._give_up(error)
            return False
        self._allocated_bytes = size
        self._segment_bytes = min(2 * self._segment_bytes, LARGEST_SEGMENT_BYTES)
        return True

    def _give_up(self, error: Exception) -> None:
        """Stop recording, with one warning. Nothing here may ever reach the training."""
        self._full = True
        self.pen.move(None)
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        text = f"the trace {self.path} stops here: {reason}. Training goes on."
        try:
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        except Exception:  # a filter turned warnings into errors
            print(f"minitrainer.trace: {text}", file=sys.stderr)

    # -- the end ---------------------------------------------------------------------------

    def close(self) -> None:
        """Write the `End`, cut the file to its length and close it. A second call does nothing."""
        if self.closed:
            return
        self.closed = True
        _open_recorders.discard(self)
        ours = os.getpid() == self._pid
        position = self.pen.position * WORD_BYTES
        self.pen.move(None)  # wrappers still running write nothing more
        if ours and self._allocated_bytes:
            if self._full:  # the reserve is allocated: the last row fits although the disk is full
                try:
                    self._map.resize(self._allocated_bytes)
                except (OSError, SystemError, ValueError):
                    pass
            end = events.End(
                dropped=self.dropped, cost_us=self.cost.total_us(self._estimated_rows(position)), bytes=position
            )
            row = (CODES[events.End], self._now(), *(getattr(end, name) for name in FIELDS[events.End]))
            line = filled_up(self._encode(row))
            if position + len(line) <= len(self._map):
                self._map[position : position + len(line)] = line
                position += len(line)
        self._map.close()
        if ours:
            try:
                os.ftruncate(self._file, position)
            except OSError:
                pass
        os.close(self._file)

    def _estimated_rows(self, position: int) -> int:
        """How many rows there are, by what the last of them take. Nobody counts them while they are written."""
        piece = self._map[max(0, position - SAMPLE_BYTES) : position]
        array = re.search(rb"\n\[\d", piece)  # an array tells where a row begins
        splitter = RowSplitter()
        rows = splitter.feed(piece[array.start() + 1 :] if array else b"")
        return int(len(rows) / max(1, splitter.last_array_at) * position)

    def _abandon(self) -> None:
        """Stop writing in a child process that was forked while recording: the file is the parent's."""
        self.closed = True
        self.pen.move(None)


def first_word(layout: str, *values: int) -> int:
    """The first word of a packed row as a number, by how `struct` would pack it."""
    return int.from_bytes(struct.pack(layout, *values), "little")


def _abandon_after_fork() -> None:
    for recorder in list(_open_recorders):
        recorder._abandon()
    _open_recorders.clear()


os.register_at_fork(after_in_child=_abandon_after_fork)


def plain(value: Any, depth: int = 0) -> Any:
    """Reduce any value to what JSON holds without loss: numbers, strings, booleans, None, and lists or dicts of them.

    Numbers that are not finite become "nan", "inf" or "-inf". Anything else becomes the name of its class.
    """
    kind = type(value)
    if value is None or kind is bool or kind is str:
        return value if kind is not str or len(value) <= 300 else value[:300] + "…"
    if kind is int:
        return value if -(2**63) <= value < 2**64 else str(value)
    if kind is float:
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):  # an enumeration of strings
        return str(getattr(value, "value", value))
    if isinstance(value, dict) and depth < 3:
        return {str(key): plain(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)) and depth < 3:
        items = sorted(value, key=str) if isinstance(value, (set, frozenset)) else value
        return [plain(item, depth + 1) for item in items] if len(items) <= 32 else f"{kind.__name__} of {len(items)}"
    if hasattr(value, "value") and hasattr(value, "name") and isinstance(getattr(kind, "__members__", None), object):
        return plain(value.value, depth + 1)
    if hasattr(value, "item") and getattr(value, "size", None) is not None and _is_host_scalar(value):
        return plain(value.item(), depth + 1)
    return kind.__name__


def _is_host_scalar(value: Any) -> bool:
    """Whether `value` is a number of NumPy, or a tensor of one element that is read without waiting for a device."""
    device = getattr(value, "device", None)
    if device is not None and getattr(device, "type", "cpu") != "cpu":
        return False
    count = value.numel() if hasattr(value, "numel") else getattr(value, "size", 0)
    return count == 1


def number(value: float) -> events.Number:
    """A float as it stands in a record: itself, or "nan", "inf" or "-inf"."""
    return value if math.isfinite(value) else str(value)


# Read next: patching.py, how a function is replaced so that nobody notices.
