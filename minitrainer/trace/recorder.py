"""The crash-proof sink: a recording that is whole up to its last row whatever happens to the process.

Every row is encoded the moment it happens and copied into a file that is mapped into memory and shared with the
kernel (`MAP_SHARED`). From that moment the row belongs to the kernel: SIGKILL, SIGTERM, an exception, `os._exit` or an
interpreter that crashes lose nothing. Only a machine that loses power can.

Why not a buffer and `write`: a buffer is what a kill loses, and one `write` a row costs ten times as much as the copy.
Why the space is allocated ahead (`posix_fallocate`): a mapped page without a block on the disk behind it would kill the
process (SIGBUS) on a full disk. Allocation says so beforehand, and then recording stops with one warning; training
never does. Why most rows are one float, stored by an assignment: encoding, joining and copying would be three calls,
packing by `struct` is still one, and the clock gives a float anyway.

The layout of the rows is in rows.py.
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
from minitrainer.trace.rows import (
    CELL_CALLBACK_END,
    CELL_EVENT_END,
    CELL_RETURN,
    CODES,
    DEFINITION,
    FIELDS,
    NEW_TIME,
    ORIGIN,
    PACKED,
    RATES,
    SAMPLES,
    SAMPLES_ROWS,
    STATE,
    STATE_OF_FLOATS,
    STATE_OF_INTEGERS,
    TICKS_A_SECOND,
    WORD_BYTES,
    Names,
    RowSplitter,
    cell_head,
    filled_up,
    plain_row,
)

FIRST_SEGMENT_BYTES = 1 << 20
LARGEST_SEGMENT_BYTES = 1 << 26

RESERVE_BYTES = 512
"""Kept free at the end of the mapped file, so that the last line still fits after the disk has become full."""

NOWHERE = 1 << 58
"""Position of a recorder that has stopped: no row fits there, so every writer ends in one of `OVERFLOWS`."""

LONGEST_TIME_TICKS = 1 << 39
"""Half of what a cell can hold, six days: after it times are counted anew."""

MOST_POSITIONS = 4096
"""More positions than this in one micro-batch are not recorded."""

COST_SAMPLE = 32
"""The recorder times itself on one micro-batch in so many; the clock on every row would double what it measures."""

SAMPLE_BYTES = 1 << 16
"""How much of a recording is read back at its end, to estimate the number of rows."""

NOT_A_NUMBER = math.nan
"""How a packed row says that there is no number."""

OVERFLOWS = (struct.error, ValueError, TypeError, IndexError)
"""What storing a row raises where there is no room, or no map any more."""

_open_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()


class Cost:
    """What a recorder takes, measured while it runs, in seconds of this thread's processor time.

    Waiting for other programs is not part of it. Hooks that run seldom are timed each time. One micro-batch in
    `COST_SAMPLE` is timed, and at that moment also an empty call that is hooked like any other, as cold as the others;
    the medians, times how often, stand for the rest.

    Attributes:
        rare_s: all that was timed each time.
        micro_batches: how often the samples of a micro-batch were recorded; micro_batch_s: what some of these took.
        call: the empty call; call_s: what its two rows took, each time.
    """

    __slots__ = ("call", "call_s", "micro_batch_s", "micro_batches", "rare_s")

    def __init__(self) -> None:
        self.rare_s = 0.0
        self.micro_batches = 0
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
        return int(1e6 * (self.rare_s + call_s * rows / 2 + micro_batch_s * self.micro_batches))


def _nothing() -> None:
    """What an empty call takes without a hook."""


class Recorder:
    """Writes one rank's recording.

    Args:
        path: file to create (replaced if it is there).
        head: the first row. Its `process` gets the clock of the recording.

    Attributes:
        position: words written so far.
        map: the mapped file; cells: the same as floats. The wrappers of patched methods store their rows in it
            themselves (see probes.py).
        zero: what is added to the clock for a cell that only gives the time; event_ends: for the end of an event, by
            the flags that are up.
        wrapper_globals: what the wrappers share. The floats in it are heads of cells: they change when times are counted
            anew.
        cost: what all this takes.
        dropped: rows that came after the disk was full.
        names: the interned names.
    """

    __slots__ = (
        "__weakref__",
        "_allocated_bytes",
        "_encode",
        "_end",
        "_file",
        "_full",
        "_pid",
        "_segment_bytes",
        "cells",
        "closed",
        "cost",
        "dropped",
        "event_ends",
        "map",
        "names",
        "path",
        "position",
        "wrapper_globals",
        "zero",
    )

    def __init__(self, path: str | os.PathLike[str], head: events.Head):
        self.path = Path(path)
        self.names = Names()
        self.position = 0
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
        self.map: mmap.mmap = mmap.mmap(-1, mmap.PAGESIZE)
        self.cells = memoryview(self.map).cast("d")
        self._segment_bytes = FIRST_SEGMENT_BYTES
        self._allocated_bytes = 0
        self._full = False
        self._end = 0
        self.wrapper_globals: dict[str, Any] = {}
        clock = math.floor(perf_counter() * TICKS_A_SECOND) / TICKS_A_SECOND
        self.zero = ORIGIN - clock
        self.event_ends = self._event_ends()
        process = None if head.process is None else {**head.process, "clock": clock}
        self._start(self._encode(msgspec.structs.replace(head, process=process or {"clock": clock})))
        _open_recorders.add(self)

    # -- rows that happen many times a step -------------------------------------------

    def state(self, field: int, site: int, old: Any, new: Any) -> None:
        """A field of the state; two integers or two floats are packed."""
        kind = type(new)
        if type(old) is kind and (kind is int or kind is float):
            row = STATE_OF_INTEGERS if kind is int else STATE_OF_FLOATS
            at = self.position
            try:
                PACKED[row].pack_into(self.map, at << 3, row, field, site, old, new, perf_counter() + self.zero)
                self.position = at + _STATE_WORDS
                return
            except OVERFLOWS:
                pass
        self.put(STATE, (field, old, new, site))

    def gradient_norm(self, norm: float, limit: float) -> None:
        """The norm of a group's gradient, and the limit to which it is clipped."""
        at = self.position
        try:
            _pack_norm(self.map, at << 3, _NORM_CODE, norm, limit, perf_counter() + self.zero)
            self.position = at + _NORM_WORDS
        except OVERFLOWS:
            self.put(_NORM_CODE, (number(norm), number(limit), norm > limit))

    def rates(self, code: int, groups: list[dict[str, Any]], skipped: bool = False) -> None:
        """A step of the optimizer or the scheduler, with the rate of each parameter group."""
        if len(groups) == 2:  # as most models have: with weight decay and without
            one, two, at = groups[0]["lr"], groups[1]["lr"], self.position
            if type(one) is float and type(two) is float:
                try:
                    _pack_two_rates(self.map, at << 3, code, 2, skipped, one, two, perf_counter() + self.zero)
                    self.position = at + _TWO_RATES_WORDS
                    return
                except OVERFLOWS:
                    pass
        values = [_rate(group["lr"]) for group in groups]
        self.put(code, (values, True) if skipped else (values,))

    def samples(
        self, rows: int | None, labels: int | None, digest: int | None, positions: list[Any] | None, is_eval: bool
    ) -> None:
        """The samples of a micro-batch."""
        at = self.position
        try:
            count = len(positions)  # type: ignore[arg-type]
            pack_into, words = _SAMPLES_ROWS[count]
            time = perf_counter() + self.zero
            pack_into(self.map, at << 3, SAMPLES, count, rows, labels, is_eval, digest, *positions, time)  # type: ignore[misc]
            self.position = at + words
        except OVERFLOWS:
            if positions is not None and (len(positions) > MOST_POSITIONS or set(map(type, positions)) != {int}):
                positions = None
            fields = (rows, labels, None if digest is None else f"{digest:08x}", positions)
            self.put(SAMPLES, (*fields, "eval") if is_eval else fields)

    # -- cells --------------------------------------------------------------------------

    def head_of(self, number: int) -> float | None:
        """What is added to the clock for a cell; None for a number that it can't hold."""
        return cell_head(number, self.zero)

    def _event_ends(self) -> list[float]:
        return [self.zero + float(CELL_EVENT_END + flags << 20) for flags in range(1 << len(events.FLAGS))]

    def _now(self) -> int:
        """The time in ticks, rounded as a cell's is: rows of all forms stay in order."""
        return int((perf_counter() + self.zero - ORIGIN) * TICKS_A_SECOND)

    def _count_anew(self, ticks: int) -> int:
        """Begin to count the time at this tick: six days have passed, and a cell can hold twelve."""
        self._write(filled_up(self._encode((NEW_TIME, ticks, ticks))))
        seconds = ticks / TICKS_A_SECOND
        self.zero -= seconds
        self.event_ends = self._event_ends()
        for name, value in self.wrapper_globals.items():
            if type(value) is float:
                self.wrapper_globals[name] = value - seconds
        return 0

    # -- any row ------------------------------------------------------------------------

    def put(self, code: int, fields: tuple[Any, ...]) -> None:
        """Write a row as an array."""
        ticks = self._now()
        if ticks > LONGEST_TIME_TICKS:
            ticks = self._count_anew(ticks)
        line = filled_up(self._encode((code, ticks, *fields)))
        begin = self.position << 3
        end = begin + len(line)
        try:
            self.map[begin:end] = line
            self.position = end >> 3
        except OVERFLOWS:
            self._write(line)

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
        if (self.position << 3) + len(line) > len(self.map) and not self._grow(len(line)):
            self.dropped += 1
            return
        begin = self.position << 3
        self.map[begin : begin + len(line)] = line
        self.position += len(line) >> 3

    # -- space on the disk -----------------------------------------------------------------

    def _start(self, head_line: bytes) -> None:
        """Map the first segment and write the first row."""
        try:
            size = self._bytes_for(len(head_line))
            os.posix_fallocate(self._file, 0, size)
            self.map = mmap.mmap(self._file, size - RESERVE_BYTES)
            self.cells = memoryview(self.map).cast("d")
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
            self.cells.release()
            self.map.resize(size - RESERVE_BYTES)
            self.cells = memoryview(self.map).cast("d")
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
        self._end, self.position = self.position, NOWHERE
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
        position = (self._end if self._full else self.position) << 3
        self.cells.release()
        if ours and self._allocated_bytes:
            if self._full:  # the reserve is allocated: the last row fits although the disk is full
                try:
                    self.map.resize(self._allocated_bytes)
                except (OSError, SystemError, ValueError):
                    pass
            end = events.End(
                dropped=self.dropped, cost_us=self.cost.total_us(self._estimated_rows(position)), bytes=position
            )
            row = (CODES[events.End], self._now(), *(getattr(end, name) for name in FIELDS[events.End]))
            line = filled_up(self._encode(row))
            if position + len(line) <= len(self.map):
                self.map[position : position + len(line)] = line
                position += len(line)
        self.map.close()
        self.map, self.position = mmap.mmap(-1, mmap.PAGESIZE), NOWHERE  # wrappers still running find no room here
        if ours:
            try:
                os.ftruncate(self._file, position)
            except OSError:
                pass
        os.close(self._file)

    def _estimated_rows(self, position: int) -> int:
        """How many rows there are, by what the last of them take. Nobody counts them while they are written."""
        piece = self.map[max(0, position - SAMPLE_BYTES) : position]
        array = re.search(rb"\n\[\d", piece)  # an array tells where a row begins
        splitter = RowSplitter()
        rows = splitter.feed(piece[array.start() + 1 :] if array else b"")
        return int(len(rows) / max(1, splitter.last_array_at) * position)

    def _abandon(self) -> None:
        """Stop writing in a child process that was forked while recording: the file is the parent's."""
        self.closed = True
        self.position = NOWHERE


_SAMPLES_ROWS = [(row.pack_into, row.size // WORD_BYTES) for row in SAMPLES_ROWS]
_pack_two_rates, _TWO_RATES_WORDS = RATES[2].pack_into, RATES[2].size // WORD_BYTES
_NORM_CODE = CODES[events.GradNorm]
_pack_norm, _NORM_WORDS = PACKED[_NORM_CODE].pack_into, PACKED[_NORM_CODE].size // WORD_BYTES
_STATE_WORDS = PACKED[STATE_OF_INTEGERS].size // WORD_BYTES


def _rate(rate: Any) -> events.Number:
    """A learning rate as it stands in a record; one that lives on a GPU is not read."""
    on_device = getattr(getattr(rate, "device", None), "type", "cpu") != "cpu"
    return None if on_device else number(float(rate))


def wrapper_names(recorder: Recorder) -> dict[str, Any]:
    """What the bodies of all wrappers refer to when they store their own rows. The heads are the only floats in it."""
    return {
        "_t_sink": recorder,
        "_t_clock": perf_counter,
        "_t_return_head": recorder.head_of(CELL_RETURN),
        "_t_callback_end_head": recorder.head_of(CELL_CALLBACK_END),
        "_t_overflows": OVERFLOWS,
    }


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
