"""The crash-proof sink: a recording that is whole up to its last row whatever happens to the process.

Every row is encoded the moment it happens and copied into a file that is mapped into memory and shared with the
kernel (`MAP_SHARED`). From that moment the row belongs to the kernel: SIGKILL, SIGTERM, an exception, `os._exit` or an
interpreter that crashes lose nothing. Only a machine that loses power can.

Why not a buffer and `write`: a buffer is what a kill loses, and one `write` a row costs ten times as much as the copy.
Why the space is allocated ahead (`posix_fallocate`): a mapped page without a block on the disk behind it would kill the
process (SIGBUS) on a full disk. Allocation says so beforehand, and then recording stops with one warning; training
never does. Why rows that happen many times a step are packed by `struct` straight into the map: it is one call, where
encoding, joining and copying are three.

The layout of the rows is in rows.py.
"""

from __future__ import annotations

import math
import mmap
import os
import statistics
import struct
import sys
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from time import perf_counter, perf_counter_ns, thread_time
from typing import Any

import msgspec

from minitrainer.trace import events
from minitrainer.trace.rows import (
    CODES,
    DEFINITION,
    FIELDS,
    LINE_FEED,
    PACKED,
    RATES,
    STATE,
    STATE_OF_FLOATS,
    STATE_OF_INTEGERS,
    Names,
    RowSplitter,
    plain_row,
)

FIRST_SEGMENT_BYTES = 1 << 20
LARGEST_SEGMENT_BYTES = 1 << 26

RESERVE_BYTES = 512
"""Kept free at the end of the mapped file, so that the last line still fits after the disk has become full."""

NOWHERE = 1 << 62
"""Position of a recorder that has stopped: no row fits there, so every writer ends in `overflow`."""

COST_SAMPLE = 32
"""The recorder times itself on one micro-batch in so many; the clock on every row would double what it measures."""

SAMPLE_BYTES = 1 << 16
"""How much of a recording is read back at its end, to estimate the number of rows."""

NOT_A_NUMBER = math.nan
"""How a packed row says that there is no number."""

OVERFLOWS = (struct.error, ValueError, TypeError, IndexError)
"""What packing raises where there is no room, or no map any more."""

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
        position: bytes written so far.
        map: the mapped file. The wrappers of patched methods pack their two rows into it themselves (see probes.py).
        cost: what all this takes.
        dropped: rows that came after the disk was full.
        names: the interned names.
    """

    __slots__ = (
        "__weakref__",
        "_allocated_bytes",
        "_clock",
        "_clock_ns",
        "_encode",
        "_end",
        "_file",
        "_full",
        "_pid",
        "_segment_bytes",
        "closed",
        "cost",
        "dropped",
        "map",
        "names",
        "path",
        "position",
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
        self._segment_bytes = FIRST_SEGMENT_BYTES
        self._allocated_bytes = 0
        self._full = False
        self._end = 0
        self._clock_ns = perf_counter_ns()
        self._clock = self._clock_ns / 1e9
        process = None if head.process is None else {**head.process, "clock": self._clock}
        self._start(self._encode(msgspec.structs.replace(head, process=process or {"clock": self._clock})))
        _open_recorders.add(self)

    # -- rows that happen many times a step -------------------------------------------

    def state(self, field: int, site: int, old: Any, new: Any) -> None:
        """A field of the state; two integers or two floats are packed."""
        kind = type(new)
        if type(old) is kind and (kind is int or kind is float):
            row = STATE_OF_INTEGERS if kind is int else STATE_OF_FLOATS
            position = self.position
            try:
                PACKED[row].pack_into(self.map, position, row, field, site, old, new, perf_counter(), LINE_FEED)
                self.position = position + PACKED[row].size
                return
            except OVERFLOWS:
                pass
        self.put(STATE, (field, old, new, site))

    def gradient_norm(self, norm: float, limit: float) -> None:
        """The norm of a group's gradient, and the limit to which it is clipped."""
        position = self.position
        try:
            _pack_norm(self.map, position, _NORM_CODE, norm, limit, perf_counter(), LINE_FEED)
            self.position = position + _NORM_BYTES
        except OVERFLOWS:
            self.put(_NORM_CODE, (number(norm), number(limit), norm > limit))

    def rates(self, code: int, groups: list[dict[str, Any]], skipped: bool = False) -> None:
        """A step of the optimizer or the scheduler, with the rate of each parameter group."""
        if len(groups) == 2:  # as most models have: with weight decay and without
            one, two, at = groups[0]["lr"], groups[1]["lr"], self.position
            if type(one) is float and type(two) is float:
                try:
                    _pack_two_rates(self.map, at, code, 2, skipped, one, two, perf_counter(), LINE_FEED)
                    self.position = at + _TWO_RATES_BYTES
                    return
                except OVERFLOWS:
                    pass
        values = [_rate(group["lr"]) for group in groups]
        self.put(code, (values, True) if skipped else (values,))

    # -- any row ------------------------------------------------------------------------

    def put(self, code: int, fields: tuple[Any, ...]) -> None:
        """Write a row as an array."""
        line = self._encode((code, (perf_counter_ns() - self._clock_ns) // 1000, *fields)) + b"\n"
        position = self.position
        end = position + len(line)
        try:
            self.map[position:end] = line
            self.position = end
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
            self._write(self._encode((DEFINITION, number, text)) + b"\n")
            self.dropped = dropped  # a definition is not a row
        return number

    def _write(self, line: bytes) -> None:
        """Write a whole line; make room for it where there is none."""
        if self.closed:  # what was entered before the end still returns through its wrapper
            return
        if self.position + len(line) > len(self.map) and not self._grow(len(line)):
            self.dropped += 1
            return
        self.map[self.position : self.position + len(line)] = line
        self.position += len(line)

    # -- space on the disk -----------------------------------------------------------------

    def _start(self, head_line: bytes) -> None:
        """Map the first segment and write the first row."""
        try:
            size = max(self._segment_bytes, len(head_line) + RESERVE_BYTES)
            os.posix_fallocate(self._file, 0, size)
            self.map = mmap.mmap(self._file, size - RESERVE_BYTES)
            self._allocated_bytes = size
        except OSError as error:
            self._give_up(error)
        self._write(head_line + b"\n")

    def _grow(self, needed_bytes: int) -> bool:
        """Enlarge the file for a row of `needed_bytes`; False where that can't be (any more).

        The map is resized in place: rows that are written stay where they are.
        """
        if self._full or self.closed:
            return False
        size = self._allocated_bytes + max(self._segment_bytes, needed_bytes + RESERVE_BYTES)
        try:
            os.posix_fallocate(self._file, self._allocated_bytes, size - self._allocated_bytes)
            self.map.resize(size - RESERVE_BYTES)
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
        position = self._end if self._full else self.position
        if ours and self._allocated_bytes:
            if self._full:  # the reserve is allocated: the last row fits although the disk is full
                try:
                    self.map.resize(self._allocated_bytes)
                except (OSError, SystemError, ValueError):
                    pass
            end = events.End(
                dropped=self.dropped, cost_us=self.cost.total_us(self._estimated_rows(position)), bytes=position
            )
            now_us = (perf_counter_ns() - self._clock_ns) // 1000
            line = self._encode((CODES[events.End], now_us, *(getattr(end, name) for name in FIELDS[events.End])))
            if position + len(line) + 1 <= len(self.map):
                self.map[position : position + len(line) + 1] = line + b"\n"
                position += len(line) + 1
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
        begin = max(0, position - SAMPLE_BYTES)
        piece = self.map[begin:position]
        splitter = RowSplitter(self._clock)
        rows = splitter.feed(piece[piece.find(b"\n[") + 1 :])  # an array tells where a row begins
        return int(len(rows) / max(1, splitter.last_array_at) * position)

    def _abandon(self) -> None:
        """Stop writing in a child process that was forked while recording: the file is the parent's."""
        self.closed = True
        self.position = NOWHERE


_pack_two_rates, _TWO_RATES_BYTES = RATES[2].pack_into, RATES[2].size
_NORM_CODE = CODES[events.GradNorm]
_pack_norm, _NORM_BYTES = PACKED[_NORM_CODE].pack_into, PACKED[_NORM_CODE].size


def _rate(rate: Any) -> events.Number:
    """A learning rate as it stands in a record; one that lives on a GPU is not read."""
    on_device = getattr(getattr(rate, "device", None), "type", "cpu") != "cpu"
    return None if on_device else number(float(rate))


END_OF_ROW = bytes([LINE_FEED])


def begin_of_row(kind: int, name: int) -> bytes | None:
    """The first three bytes of a call or a callback: its kind and its name; None where the name does not fit."""
    return struct.pack("<BH", kind, name) if name < 1 << 16 else None


def wrapper_names(recorder: Recorder) -> dict[str, Any]:
    """What the body of a method's wrapper refers to when it packs its own rows.

    The formats give the bytes that `PACKED` says, from pieces that need no conversion but the clock.
    """
    return {
        "_t_sink": recorder,
        "_t_map": recorder.map,
        "_t_clock": perf_counter,
        "_t_pack": struct.Struct("<3sdc").pack_into,
        "_t_pack_end": struct.Struct("<cdc").pack_into,
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
