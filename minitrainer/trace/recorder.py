"""The crash-proof sink: a recording that is whole up to its last row whatever happens to the process.

Every row is encoded the moment it happens and copied into a file that is mapped into memory and shared with the
kernel (`MAP_SHARED`). From that moment the row belongs to the kernel: SIGKILL, SIGTERM, an exception, `os._exit` or an
interpreter that crashes lose nothing. Only a machine that loses power can.

Why not a buffer and `write`: a buffer is what a kill loses, and one `write` a row costs ten times as much as the copy.
Why the space is allocated ahead (`posix_fallocate`): a mapped page without a block on the disk behind it would kill the
process (SIGBUS) on a full disk. Allocation says so beforehand, and then recording stops with one warning; training
never does.

The layout of the rows is in rows.py.
"""

from __future__ import annotations

import errno
import math
import mmap
import os
import sys
import warnings
import weakref
from collections.abc import Callable
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import msgspec

from minitrainer.trace import events
from minitrainer.trace.rows import CODES, FIELDS, Names, plain_row

FIRST_SEGMENT_BYTES = 1 << 20
LARGEST_SEGMENT_BYTES = 1 << 26
RESERVE_BYTES = 512
"""Kept free at the end of the mapped file, so that the last line still fits after the disk has become full."""

COST_SAMPLE_ROWS = 64
"""The recorder times itself on one row in so many; twice the clock on every row would double what it measures."""

_open_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()


class Recorder:
    """Writes one rank's recording.

    The functions that write are made in `_open` and hang on the object, so that a hook holds the function itself and
    a row costs no attribute look-up:

        enter(code, name)     a row of one id: a call or a callback
        leave(code)           a row without fields: a return
        put(code, fields)     any other row
        record(record)        a typed record of kind 10 or higher
        name(text) -> id      intern a name; its definition is written the first time

    Args:
        path: file to create (replaced if it is there).
        head: the first line.

    Attributes:
        rows: rows written so far, definitions not counted, `Head` counted.
        dropped: rows that came after the disk was full.
        slow_ns: time spent in hooks that do more than write a row; they add to it themselves.
        names: the interned names.
    """

    def __init__(self, path: str | os.PathLike[str], head: events.Head):
        self.path = Path(path)
        self.names = Names()
        self.slow_ns = 0
        self.closed = False
        self._bytes_written = 0
        self._pid = os.getpid()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._file = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        self._map: mmap.mmap | None = None
        self._segment_bytes = FIRST_SEGMENT_BYTES
        self._allocated_bytes = 0
        self._full = False
        self.enter: Callable[[int, int], None]
        self.leave: Callable[[int], None]
        self.put: Callable[[int, tuple[Any, ...]], None]
        self.name: Callable[[Any], int]
        self._counts: Callable[[], tuple[int, int, int, int]]
        self._stop: Callable[[], None]
        self._open(msgspec.json.encode(head))
        _open_recorders.add(self)

    # -- writing ---------------------------------------------------------------

    def _open(self, head_line: bytes) -> None:
        """Make the writing functions. They share the clock and the counters as variables of this frame."""
        encode = msgspec.json.Encoder().encode
        now = perf_counter_ns
        names, undefined = self.names, self.names.undefined
        last_us = now() // 1000
        rows = dropped = sampled_ns = samples = 0
        line_feed = b"\n"
        write: Callable[[bytes], Any] = self._start(head_line + line_feed)
        rows += 1

        def overflow(line: bytes) -> None:
            """Write a row that did not fit: enlarge the file, or begin to drop."""
            nonlocal write, dropped, rows
            write = self._grow(len(line))
            if write is _drop:
                dropped += 1
                rows -= 1
            else:
                write(line)

        def stop() -> None:
            nonlocal write
            write = _drop

        def enter(code: int, name: int) -> None:
            nonlocal last_us, rows, sampled_ns, samples
            started_ns = now()
            us = started_ns // 1000
            line = encode((code, us - last_us, name)) + line_feed
            last_us = us
            rows += 1
            try:
                write(line)
            except ValueError:
                overflow(line)
            if not rows % COST_SAMPLE_ROWS:
                sampled_ns += now() - started_ns
                samples += 1

        def leave(code: int) -> None:
            nonlocal last_us, rows
            us = now() // 1000
            line = encode((code, us - last_us)) + line_feed
            last_us = us
            rows += 1
            try:
                write(line)
            except ValueError:
                overflow(line)

        def put(code: int, fields: tuple[Any, ...]) -> None:
            nonlocal last_us, rows, sampled_ns, samples
            started_ns = now()
            us = started_ns // 1000
            line = encode((code, us - last_us, *fields)) + line_feed
            last_us = us
            rows += 1
            try:
                write(line)
            except ValueError:
                overflow(line)
            if not rows % COST_SAMPLE_ROWS:
                sampled_ns += now() - started_ns
                samples += 1

        def name(text: Any) -> int:
            number = names.ids.get(text)
            if number is None:
                number = names.id_of(text)
                line = encode(undefined.pop()) + line_feed
                try:
                    write(line)
                except ValueError:
                    nonlocal rows
                    rows += 1
                    overflow(line)
                    rows -= 1
            return number

        def drop_counter(line: bytes) -> None:
            nonlocal dropped, rows
            dropped += 1
            rows -= 1

        def counts() -> tuple[int, int, int, int]:
            return rows, dropped, sampled_ns, samples

        _drop = drop_counter
        self._drop = drop_counter
        if self._full:
            write = _drop
        self.enter, self.leave, self.put, self.name = enter, leave, put, name
        self._counts, self._stop = counts, stop

    def record(self, record: events.Record) -> None:
        """Write a typed record of kind 10 or higher (see `rows.PLAIN_RECORDS`)."""
        row = plain_row(record, 0)
        self.put(row[0], tuple(row[2:]))

    @property
    def rows(self) -> int:
        return self._counts()[0]

    @property
    def dropped(self) -> int:
        return self._counts()[1]

    # -- space on the disk -------------------------------------------------------

    def _start(self, head_line: bytes) -> Callable[[bytes], Any]:
        """Map the first segment and write the first line; return the map's `write`."""
        try:
            size = max(self._segment_bytes, len(head_line) + RESERVE_BYTES)
            os.posix_fallocate(self._file, 0, size)
            self._allocated_bytes = size
            self._map = mmap.mmap(self._file, size - RESERVE_BYTES)
        except OSError as error:
            self._give_up(error)
            return len
        self._map.write(head_line)
        return self._map.write

    def _grow(self, needed_bytes: int) -> Callable[[bytes], Any]:
        """Enlarge the file for a row of `needed_bytes`; return the function to write with from now on.

        The map is resized in place: rows that are written stay where they are.
        """
        if self._map is None or self._full:
            return self._drop
        size = self._allocated_bytes + max(self._segment_bytes, needed_bytes + RESERVE_BYTES)
        try:
            os.posix_fallocate(self._file, self._allocated_bytes, size - self._allocated_bytes)
            self._map.resize(size - RESERVE_BYTES)
            os.posix_fallocate(self._file, 0, size)
        except (OSError, SystemError, ValueError) as error:
            self._give_up(error)
            return self._drop
        self._allocated_bytes = size
        self._segment_bytes = min(2 * self._segment_bytes, LARGEST_SEGMENT_BYTES)
        return self._map.write

    def _give_up(self, error: Exception) -> None:
        """Stop recording, with one warning. Nothing here may ever reach the training."""
        self._full = True
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        text = f"the trace {self.path} stops here: {reason}. Training goes on."
        try:
            warnings.warn(text, RuntimeWarning, stacklevel=2)
        except Exception:  # a filter turned warnings into errors
            print(f"minitrainer.trace: {text}", file=sys.stderr)

    # -- the end -------------------------------------------------------------------

    def close(self) -> None:
        """Write the `End`, cut the file to its length and close it. A second call does nothing."""
        if self.closed:
            return
        self.closed = True
        _open_recorders.discard(self)
        rows, dropped, sampled_ns, samples = self._counts()
        if self._map is not None and os.getpid() == self._pid:
            if self._full:  # the reserve is allocated: the last line fits although the disk is full
                try:
                    self._map.resize(self._allocated_bytes)
                except (OSError, SystemError, ValueError):
                    pass
            cost_us = (self.slow_ns + (sampled_ns * rows // samples if samples else 0)) // 1000
            position = self._map.tell()
            end = events.End(rows=rows, dropped=dropped, cost_us=cost_us, bytes_per_row=round(position / rows, 1))
            line = msgspec.json.encode((CODES[events.End], 0, *(getattr(end, name) for name in FIELDS[events.End])))
            try:
                self._map.write(line + b"\n")
                position += len(line) + 1
            except ValueError:
                pass
            self._map.close()
            try:
                os.ftruncate(self._file, position)
            except OSError:
                pass
        elif self._map is not None:
            self._map.close()
        self._stop()
        os.close(self._file)

    def _abandon(self) -> None:
        """Stop writing in a child process that was forked while recording: the file is the parent's."""
        self.closed = True
        self._stop()


def _drop_nothing(line: bytes) -> None:
    """What `write` becomes in a closed recorder: hooks that outlive it have nowhere to write."""


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


FULL_DISK = (errno.ENOSPC, errno.EDQUOT)

# Read next: patching.py, how a function is replaced so that nobody notices.
