"""The two forms of a trace: how a recording is laid out, how it is read, and how the canonical form is written.

A recording is a sequence of rows, and a row is one or more *words* of eight bytes, little-endian. The first word tells
what a row is:

    a float in [2^32, 2^33)   a *cell*, the whole row: its upper three bytes say what happened, its lower five when
    {   the `Head`, a JSON object: the first row, and no other
    [   a JSON array: its first element is the kind, its second (except in a definition) the time
    1…  a kind that happens many times a step, packed (see `PACKED`); its last word is a cell that only gives the time
    0   nothing: the file was made longer than what it holds

Time is counted in ticks of 2^-20 seconds since the recording began. Twelve bits of a cell are its number (`CELL_…`),
the forty bits below them its time: `clock() + head` is a whole row, where `head` depends on the number alone. A float
is what Python's clock gives, and storing it is the cheapest thing that can be done with it. Forty bits of ticks are
twelve days; before they are used up the recorder begins to count anew, in a row of kind `NEW_TIME`.

    [0, id, text]                           definition: from here on `id` stands for `text`, a string or a list
    [1, t, method]                          call; `method` is the id of [method, cls, part, private]
    [2, t]                                  return of the innermost open call
    [3, t, error, message]                  the innermost open call, event or callback was left by an exception
    [4, t, event, step, epoch, lowered, raised]   event; the last two are sets of flags, bit i is FLAGS[i]
    [5, t, raised]                          end of the innermost open event
    [6, t, callback]                        a callback of that event was entered
    [7, t, replaced]                        and has returned; `replaced` is 1 for another control object
    [8, t, flag, new, site, how]            flag is a position in FLAGS, `site` the id of [by, file, line]
    [9, t, field, old, new, site, how]      a field of the state
    [10 …, t, fields …]                     the other records: their fields in the order of events.py
    [34, t, ticks]                          the times of the rows behind it begin so many ticks later

`t` is the time in ticks. Trailing fields that hold their default are left out. `event`, `callback`, `field`, `how` and
the error's class are ids of strings. Calls, events and callbacks close in the opposite order of their opening, so a
closing row needs no name. Any cell and any packed row may stand as its array instead, and does where a number is too
large for its bits. An array is filled up with spaces, so that its line feed is the last byte of a word.

A cell is stored at once. An array is whole when its line feed is there, a packed row when its last word is: they are
written last. A recording that was cut short ends in zero bytes; a reader stops there, or at a row that is not whole,
and says so (`Reading.complete`, `Reading.torn_bytes`, `Reading.open_scopes`).
"""

from __future__ import annotations

import functools
import math
import os
import re
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import msgspec

from minitrainer.trace import events
from minitrainer.trace.errors import UsageError
from minitrainer.trace.events import FLAGS, RECORDS, SCHEMA, Record

# -- kinds of rows ---------------------------------------------------------------

DEFINITION, CALL, RETURN, RAISE, EVENT, EVENT_END, CALLBACK, CALLBACK_END, FLAG, STATE = range(10)

PLAIN_RECORDS: tuple[type[Record], ...] = (
    events.Samples,
    events.GradNorm,
    events.OptimizerStep,
    events.SchedulerStep,
    events.Loss,
    events.TrainLoss,
    events.EvalLoss,
    events.Gather,
    events.Log,
    events.File,
    events.Rng,
    events.Note,
    events.TrainerBegin,
    events.Focus,
    events.End,
    events.Collective,
)
"""Records written field by field: kind 10 is the first, and so on. New ones are added at the end only."""

FIRST_PLAIN = 10
CODES: dict[type[Record], int] = {record: FIRST_PLAIN + i for i, record in enumerate(PLAIN_RECORDS)}
FIELDS: dict[type[Record], tuple[str, ...]] = {
    record: tuple(name for name in record.__struct_fields__ if name != "at") for record in RECORDS.values()
}
"""Class to its fields in the order of a row. `at` is in every row, as a difference, and so in none of these."""

STATE_OF_INTEGERS, STATE_OF_FLOATS = 0x20, 0x21
"""First byte of a packed STATE row, by the type of its old and new value."""

NEW_TIME = 0x22
"""Kind of the row from which on times are counted anew. It is no record: readers only add it up."""

WORD_BYTES = 8

TICKS_A_SECOND = 1 << 20

CELL_RETURN, CELL_CALLBACK_END, CELL_EVENT_END, CELL_NAMED = 1, 2, 32, 64
"""Numbers of cells. At the end of an event the flags that are up are added; a call adds twice the id of its method, a
callback twice its own and one. Number 0 is the time at the end of a packed row."""

CELL_NUMBERS = 1 << 12

CELL_EXPONENT = 0x41F
"""Sign and exponent of a float in [2^32, 2^33): the upper twelve bits of every cell."""

CELL_PATTERN = rb".{6}[\xf0-\xff]\x41"
"""The same in the bytes of a cell, for a regular expression."""

ORIGIN = 2.0**32

TIME_BITS = 40

END_OF_PACKED = struct.pack("<d", ORIGIN)[5:]
"""The last three bytes of a packed row: a cell with the number 0, without its time."""

PACKED: dict[int, struct.Struct] = {
    EVENT: struct.Struct("<BHBB3xI4xdd"),  # kind, event, lowered, raised, step, epoch (NaN for none), time
    STATE_OF_INTEGERS: struct.Struct("<BHH3xqqd"),  # kind, field, site, old, new, time
    STATE_OF_FLOATS: struct.Struct("<BHH3xddd"),  # the same
    CODES[events.GradNorm]: struct.Struct("<B7xddd"),  # kind, norm, limit, time
}
"""Kinds that happen many times a step and hold more than a name. The last byte of their first word is 0, so that it is
no cell."""

RATES: dict[int, struct.Struct] = {count: struct.Struct(f"<BBB5x{count}dd") for count in range(1, 9)}
"""Optimizer and scheduler steps, by their number of parameter groups: kind, groups, skipped, rates, time."""

RATE_KINDS = (CODES[events.OptimizerStep], CODES[events.SchedulerStep])

SAMPLES = CODES[events.Samples]

SAMPLES_ROWS = [struct.Struct(f"<BBHHBxI{count}I{4 * (count + 1 & 1)}xd") for count in range(65)]
"""Samples of a micro-batch, by the number of positions: kind, positions, rows, labels, whether it is evaluated, digest,
positions, time."""

COUNTED: dict[int, dict[int, struct.Struct]] = {
    **dict.fromkeys(RATE_KINDS, RATES),
    SAMPLES: dict(enumerate(SAMPLES_ROWS)),
}
"""Packed kinds whose rows are of many sizes: their second byte tells which."""

CHUNK_BYTES = 1 << 20

RECORDING = "recording"
"""`Head.form` of a recording. Those of earlier versions, "rows", were laid out otherwise."""

FORMS = (RECORDING, "canonical", "portable")

LONGEST_TORN_ROW_BYTES = max(row.size for by_count in COUNTED.values() for row in by_count.values())
"""Of a row whose first piece is missing."""

LONGEST_LINE_BYTES = 64 * 1024 * 1024
"""A line longer than this is no row of ours: a file without line feeds must not fill the memory."""

PUBLIC_METHODS = frozenset(
    """
    __init__ create_accelerator_and_postprocess add_callback pop_callback remove_callback call_model_init
    train _inner_training_loop training_step compute_loss compute_loss_context_manager autocast_smart_context_manager
    _load_best_model _load_from_checkpoint _load_optimizer_and_scheduler _load_rng_state _issue_warnings_after_load
    _save _save_checkpoint _save_tpu save_metrics save_model save_state _rotate_checkpoints _sorted_checkpoints
    _get_output_dir _maybe_log_save_evaluate evaluate predict evaluation_loop prediction_loop prediction_step
    _get_eval_sampler _get_train_sampler get_test_dataloader get_train_dataloader get_eval_dataloader
    _remove_unused_columns _get_collator_with_removed_columns _set_signature_columns_if_needed _gather_and_numpify
    create_optimizer create_optimizer_and_scheduler create_scheduler get_optimizer_cls_and_kwargs _get_learning_rate
    _move_model_to_device _nested_gather _prepare_input _prepare_inputs _wrap_model ipex_optimize_model
    torch_jit_model_eval store_flos is_local_process_zero is_world_process_zero floating_point_ops num_examples log
    log_metrics metrics_format hyperparameter_search _hp_search_setup _tune_save_checkpoint _report_to_hp_search
    _push_from_checkpoint create_model_card _add_sm_patterns_to_gitignore init_git_repo push_to_hub
    """.split()
)
"""The 70 methods of 4.31.0's Trainer. Any other method that a library's Trainer defines is `private` in a trace."""


# -- reading either form -----------------------------------------------------------


def read(path: str | os.PathLike[str]) -> Reading:
    """Open a trace in either form.

    Args:
        path: a recording (`rank0.rows`) or a canonical file (`rank0.jsonl`). The first line tells which; the name of
            the file is not looked at.

    Returns:
        An iterable over the records, each `at` in microseconds since the start (None in a canonical file). Its
        `head` is there at once; `end`, `complete`, `open_scopes` and `torn_bytes` once it has been iterated over.

    Raises:
        UsageError: one line, where the file is missing, foreign, malformed or of a newer schema.
    """
    return Reading(path)


def read_canonical(path: str | os.PathLike[str]) -> list[Record]:
    """Read a whole trace into a list, for files known to be small."""
    return list(read(path))


class Scope(NamedTuple):
    """A call, event or callback that was entered: `kind` says which, `name` is its method, event or callback."""

    kind: str
    name: str
    owner: str
    depth: int


class Reading:
    """One pass over a trace file; see `read`. Every `for` starts again from the first record.

    Attributes:
        path: the file.
        head: its first record.
        end: its `End`, or None where the file has none (or was not yet read to its end).
        complete: whether the last pass found an `End`.
        open_scopes: what was entered and not left when the file stopped, outermost first: a post-mortem of a killed
            process. Empty for a complete trace.
        torn_bytes: bytes after the last whole record that are not zero: the row that was being written.
        rows: records of the last pass, `Head` included.
        gap: one sentence where the `End` does not stand where it says that it stands: something is missing before it.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.path = Path(path)
        self.head = self._read_head()
        self.end: events.End | None = None
        self.complete = False
        self.open_scopes: list[Scope] = []
        self.torn_bytes = 0
        self.rows = 0
        self.gap = ""

    def __iter__(self) -> Iterator[Record]:
        self.end, self.complete, self.open_scopes, self.torn_bytes, self.rows, self.gap = None, False, [], 0, 1, ""
        yield self.head
        for record in self._recorded() if self.head.form == RECORDING else self._canonical():
            if type(record) is events.End:
                self.end, self.complete = record, True
                self.open_scopes.clear()
                if self.head.form == RECORDING:
                    record.rows = self.rows
                elif record.rows != self.rows:
                    self.gap = f"{record.rows:,} rows were recorded, but {self.rows:,} are in the file"
            self.rows += 1
            yield record

    def _recorded(self) -> Iterator[Record]:
        """Records of a recording after its head."""
        decoder = RowDecoder(self.open_scopes)
        decode = decoder.decode
        with open(self.path, "rb") as file:
            split = RowSplitter()
            file.seek(0)
            head_is_behind = False
            number = 1
            while chunk := file.read(CHUNK_BYTES):
                rows = split.feed(chunk)
                for row in rows if head_is_behind else rows[1:]:
                    number += 1
                    try:
                        record = decode(row)
                    except (TypeError, ValueError, IndexError, KeyError, AttributeError, OverflowError) as error:
                        raise UsageError(f"{self.path}: row {number} is not a row of this schema") from error
                    if record is not None:
                        if type(record) is events.End and record.bytes not in (None, split.last_array_at):
                            self.gap = (
                                f"{record.bytes:,} bytes were recorded, but {split.last_array_at:,} are in the file"
                            )
                        yield record
                head_is_behind = head_is_behind or bool(rows)
                if split.stopped:
                    break
            self.torn_bytes = split.close()
            if self.torn_bytes and not split.only_zeros_follow(file):
                raise UsageError(f"{self.path}: what follows row {number} is not a row")

    def _canonical(self) -> Iterator[Record]:
        """Records of a canonical file after its head."""
        lines = _Lines(self.path)
        next(lines)
        for line in lines:
            try:
                record: Record = _CANONICAL.decode(line)
            except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
                if isinstance(error, msgspec.ValidationError):
                    if _unknown_kind(line):
                        continue
                elif lines.nothing_follows():
                    self.torn_bytes = len(line)
                    return
                raise UsageError(f"{self.path}: line {lines.number} is not a trace record: {error}") from error
            _follow(self.open_scopes, record)
            yield record
        self.torn_bytes = lines.torn_bytes

    def _read_head(self) -> events.Head:
        try:
            lines = _Lines(self.path)
            first = next(lines, b"")
        except IsADirectoryError as error:
            raise UsageError(f"{self.path} is a folder, not a trace file") from error
        except OSError as error:
            raise UsageError(f"{self.path} can't be read: {error.strerror or error}") from error
        try:
            fields = msgspec.json.decode(first)
            kind, schema = fields["kind"], fields["schema"]
        except (msgspec.MsgspecError, RecursionError, TypeError, KeyError, UnicodeDecodeError) as error:
            raise UsageError(f"{self.path} is not a trace (its first line is not a trace header)") from error
        if kind != "head" or type(schema) is not int:
            raise UsageError(f"{self.path} is not a trace (its first line is not a trace header)")
        if schema > SCHEMA:
            raise UsageError(
                f"{self.path} has trace schema {schema}, newer than {SCHEMA} that this minitrainer reads: upgrade it"
            )
        try:
            head = msgspec.convert(fields, events.Head)
        except msgspec.ValidationError as error:
            raise UsageError(f"{self.path}: its header is malformed: {error}") from error
        if head.form == "rows":
            raise UsageError(
                f"{self.path} was recorded by an earlier minitrainer, in a form that this one does not read: "
                "export it with that version (--to canonical), or record again"
            )
        if head.form not in FORMS:
            raise UsageError(f"{self.path} has the form {head.form[:40]!r}, which this minitrainer does not read")
        return head


class _Lines:
    """Whole lines of a file, without their line feed, up to the first zero byte."""

    def __init__(self, path: Path):
        self.path = path
        self.file: BinaryIO = open(path, "rb")
        self.number = 0
        self.torn_bytes = 0
        self._lines = self._generate()
        self._ahead: bytes | None = None

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> bytes:
        if self._ahead is not None:
            line, self._ahead = self._ahead, None
        else:
            line = next(self._lines)
        self.number += 1
        return line

    def nothing_follows(self) -> bool:
        """Whether the line that was handed out last is the last one of the file."""
        if self._ahead is None:
            self._ahead = next(self._lines, None)
        return self._ahead is None

    def _generate(self) -> Iterator[bytes]:
        rest = b""
        with self.file:
            while chunk := self.file.read(CHUNK_BYTES):
                zero = chunk.find(b"\0")
                if zero >= 0:
                    chunk = chunk[:zero]
                lines = (rest + chunk).split(b"\n")
                rest = lines.pop()
                yield from lines
                if zero >= 0:
                    break
                if len(rest) > LONGEST_LINE_BYTES:
                    raise UsageError(f"{self.path}: line {self.number + 1} is too long to be a trace record")
        self.torn_bytes = len(rest)


_CANONICAL: msgspec.json.Decoder[Any] = msgspec.json.Decoder(events.AnyRecord)


def _unknown_kind(line: bytes) -> bool:
    """Whether a canonical line is a record of a kind that this version does not know: it is skipped."""
    try:
        return msgspec.json.decode(line)["kind"] not in RECORDS
    except (msgspec.MsgspecError, TypeError, KeyError):
        return False


def _follow(scopes: list[Scope], record: Record) -> None:
    """Open or close a scope as `record` says."""
    kind = type(record)
    if kind is events.Call:
        scopes.append(Scope("call", record.method, record.cls, record.depth))  # type: ignore[attr-defined]
    elif kind is events.Event:
        scopes.append(Scope("event", record.event, "CallbackHandler", len(scopes)))  # type: ignore[attr-defined]
    elif kind is events.Callback:
        scopes.append(Scope("callback", record.callback, record.event, len(scopes)))  # type: ignore[attr-defined]
    elif kind in (events.Return, events.EventEnd, events.CallbackEnd, events.Raise) and scopes:
        scopes.pop()
    elif kind is events.End:
        scopes.clear()


# -- rows to records -----------------------------------------------------------------


def cell_head(number: int, zero: float) -> float | None:
    """What has to be added to the clock for a cell with this number; None for a number that a cell can't hold.

    Args:
        number: what happened.
        zero: the head of number 0: 2^32 less the clock's value when times began to be counted, in whole ticks.
    """
    return zero + float(number << 20) if number < CELL_NUMBERS else None


def microseconds(ticks: int) -> int:
    """A time, in whole microseconds."""
    return ticks * 15625 >> 14  # 10^6 / 2^20


def ticks(at_us: int) -> int:
    """The first tick of a microsecond: the inverse of `microseconds`."""
    return -((-at_us << 14) // 15625)


def filled_up(array: bytes) -> bytes:
    """An array as it stands in a recording: with spaces and a line feed up to the end of a word."""
    return array + _FILLINGS[len(array) & 7]


_FILLINGS = [b" " * (7 - used) + b"\n" for used in range(WORD_BYTES)]


class RowSplitter:
    """Cuts the bytes of a recording into rows as they come in, each in the shape of its array, times in microseconds.

    Attributes:
        stopped: whether a zero byte, or something that is not a row, was met where a row should begin.
        last_array_at: how many bytes stand before the last row that is an array.
    """

    def __init__(self) -> None:
        self.stopped = False
        self.last_array_at = 0
        self._began = 0  # ticks until times were last counted anew
        self._before = 0
        self._rest = b""
        self._parse = msgspec.json.Decoder().decode

    def feed(self, chunk: bytes) -> list[Any]:
        """Take more bytes; return the rows that are whole now (the head as a dict)."""
        data = self._rest + chunk
        rows: list[Any] = []
        add = rows.append
        position, length = 0, len(data) & -WORD_BYTES
        words = struct.unpack_from(f"<{length // WORD_BYTES}Q", data)
        while position < length:
            word = words[position >> 3]
            if word >> 52 == CELL_EXPONENT:
                row = self._cell(word)
                if row is not None:
                    add(row)
                position += WORD_BYTES
                continue
            kind = word & 0xFF
            if kind == 0x5B or kind == 0x7B:  # [ or {
                end = data.find(b"\n", position) + 1
                if not end:
                    if data.find(b"\0", position) >= 0:
                        self.stopped = True
                    break
                try:
                    row = self._parse(data[position : end - 1])
                except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError):
                    row = None
                if row is None or end % WORD_BYTES:
                    self.stopped = True
                    break
                self.last_array_at = self._before + position
                position = end
                if kind == 0x7B or self._tell_the_time(row):
                    add(row)
                continue
            by_count = COUNTED.get(kind)
            packed = PACKED.get(kind) if by_count is None else by_count.get(word >> 8 & 0xFF)
            if packed is None:
                self.stopped = True
                break
            end = position + packed.size
            if end > length:
                break
            if not data.startswith(END_OF_PACKED, end - len(END_OF_PACKED)):
                self.stopped = True
                break
            add(self._unpack(kind, packed.unpack_from(data, position), words[(end >> 3) - 1]))
            position = end
        self._rest = data[position:]
        self._before += position
        return rows

    def _at(self, word: int) -> int:
        """Microseconds since the recording began, from a cell."""
        return microseconds(self._began + (word & (1 << TIME_BITS) - 1))

    def _tell_the_time(self, row: Any) -> bool:
        """Bring the time of an array to microseconds; False for one that is about the time only."""
        if type(row) is not list or len(row) < 2 or row[0] == DEFINITION or type(row[1]) is not int:
            return True  # whoever decodes it looks whether it is well-formed
        ticks = row[1]
        row[1] = microseconds(self._began + ticks)
        if row[0] != NEW_TIME:
            return True
        self._began += row[2] if len(row) > 2 and type(row[2]) is int else 0
        return False

    def _cell(self, word: int) -> tuple[Any, ...] | None:
        """The row that a cell is; None for a number that a later version added."""
        at = self._at(word)
        number = word >> TIME_BITS & CELL_NUMBERS - 1
        if number >= CELL_NAMED:
            number -= CELL_NAMED
            return (CALLBACK if number & 1 else CALL, at, number >> 1)
        if number == CELL_RETURN:
            return (RETURN, at)
        if number == CELL_CALLBACK_END:
            return (CALLBACK_END, at)
        if number >= CELL_EVENT_END:
            return (EVENT_END, at, number - CELL_EVENT_END)
        return None

    def close(self) -> int:
        """Return how many bytes that are not zero stand after the last whole row."""
        return len(self._rest.rstrip(b"\0"))

    def only_zeros_follow(self, file: BinaryIO) -> bool:
        """Whether what is left over is one row that was being written: it is shorter than the longest, and nothing
        but zero bytes stands after it."""
        rest = self._rest.rstrip(b"\0")
        if rest[:1] in (b"[", b"{"):
            if b"\n" in rest[:-1] or len(rest) > LONGEST_LINE_BYTES:
                return False
        elif len(rest) > LONGEST_TORN_ROW_BYTES:
            return False
        elif len(rest) >= WORD_BYTES and rest[0] and rest[0] not in PACKED and rest[0] not in COUNTED:
            return False  # it may begin with zeros: a row is copied in pieces, not always from its beginning
        while chunk := file.read(CHUNK_BYTES):
            if chunk.strip(b"\0"):
                return False
        return True

    def _unpack(self, kind: int, fields: tuple[Any, ...], time: int) -> tuple[Any, ...]:
        """Bring a packed row to the shape of its array; `time` is its last word."""
        at = self._at(time)
        if kind == EVENT:
            epoch = fields[5]
            return (EVENT, at, fields[1], fields[4], None if epoch != epoch else epoch, fields[2], fields[3])
        if kind == STATE_OF_INTEGERS or kind == STATE_OF_FLOATS:
            old, new = fields[3], fields[4]
            if old - old != 0 or new - new != 0:
                old, new = _number(old), _number(new)
            return (STATE, at, fields[1], old, new, fields[2])
        if kind in RATE_KINDS:
            rates = [_number(rate) for rate in fields[3:-1]]
            return (kind, at, rates, True) if fields[2] else (kind, at, rates)
        if kind == SAMPLES:
            row = (kind, at, fields[2], fields[3], f"{fields[5]:08x}", list(fields[6:-1]))
            return (*row, "eval") if fields[4] else row
        norm, limit = fields[1], fields[2]
        return (kind, at, _number(norm), _number(limit), norm > limit)


def _number(value: float) -> events.Number:
    return value if math.isfinite(value) else str(value)


class Follower:
    """Reads a recording while it is being written: each `look` hands out the records that are new.

    Attributes:
        head: the first record.
        is_over: whether the `End` was seen.
    """

    def __init__(self, path: str | os.PathLike[str]):
        self.head = Reading(path).head
        self.is_over = False
        self._decoder = RowDecoder([])
        self._splitter = RowSplitter()
        self._file = open(path, "rb")
        self._head_is_behind = False

    def look(self) -> Iterator[Record]:
        """Hand out what is new; stop where the writer is."""
        while not self.is_over:
            begin = self._file.tell()
            chunk = self._file.read(CHUNK_BYTES)
            rows = self._splitter.feed(chunk)
            # what is not whole yet will be read again: it may be the zero bytes that the writer has yet to fill
            self._file.seek(begin + len(chunk) - len(self._splitter._rest))
            self._splitter._rest, self._splitter.stopped = b"", False
            if not rows:
                return
            for row in rows if self._head_is_behind else rows[1:]:
                record = self._decoder.decode(row)
                if record is not None:
                    self.is_over = self.is_over or type(record) is events.End
                    yield record
            self._head_is_behind = True

    def close(self) -> None:
        self._file.close()


class RowDecoder:
    """Turns rows into records. It holds the names defined so far and the stack of open scopes."""

    def __init__(self, scopes: list[Scope]):
        self.names: dict[int, Any] = {}
        self.scopes = scopes
        self.calls_open = 0

    def decode(self, row: Any) -> Record | None:
        """The record of a row; None for a definition and for a kind that this version does not know."""
        kind = row[0]
        if kind == DEFINITION:
            self.names[row[1]] = row[2]
            return None
        at = row[1]
        if kind == CALL:
            method, cls, part, private = self.names[row[2]]
            depth = self.calls_open
            self.calls_open += 1
            self.scopes.append(Scope("call", method, cls, depth))
            return events.Call(at=at, method=method, cls=cls, depth=depth, part=part, private=private)
        if kind == RETURN:
            scope = self._close("call")
            return events.Return(at=at, method=scope.name, depth=scope.depth)
        if kind == CALLBACK:
            event = next((scope.name for scope in reversed(self.scopes) if scope.kind == "event"), "")
            callback = self.names[row[2]]
            self.scopes.append(Scope("callback", callback, event, self.calls_open))
            return events.Callback(at=at, callback=callback, event=event)
        if kind == CALLBACK_END:
            scope = self._close("callback")
            return events.CallbackEnd(at=at, callback=scope.name, replaced=len(row) > 2 and bool(row[2]))
        if kind == EVENT:
            _, _, name, step, epoch, lowered, raised = row
            self.scopes.append(Scope("event", self.names[name], "CallbackHandler", self.calls_open))
            return events.Event(
                at=at,
                event=self.names[name],
                step=step,
                epoch=epoch,
                lowered=flags_of(lowered),
                raised=flags_of(raised),
            )
        if kind == EVENT_END:
            return events.EventEnd(at=at, event=self._close("event").name, raised=flags_of(row[2]))
        if kind == FLAG:
            by, file, line = self.names[row[4]]
            how = self.names[row[5]] if len(row) > 5 else "set"
            new = bool(row[3])
            return events.Flag(at=at, flag=FLAGS[row[2]], old=not new, new=new, by=by, file=file, line=line, how=how)
        if kind == STATE:
            by, file, line = self.names[row[5]]
            how = self.names[row[6]] if len(row) > 6 else "set"
            return events.State(
                at=at, field=self.names[row[2]], old=row[3], new=row[4], by=by, file=file, line=line, how=how
            )
        if kind == RAISE:
            scope = self._close(None)
            return events.Raise(
                at=at,
                method=scope.name,
                depth=scope.depth,
                error=self.names[row[2]],
                message=row[3],
                scope=scope.kind,
            )
        return self._decode_plain(kind, row, at)

    def _decode_plain(self, kind: int, row: list[Any], at: int) -> Record | None:
        if type(kind) is not int or kind < 0:
            raise ValueError("a row starts with its kind")
        if kind >= FIRST_PLAIN + len(PLAIN_RECORDS):
            return None  # a kind that a later version added
        record = PLAIN_RECORDS[kind - FIRST_PLAIN]
        fields = dict(zip(FIELDS[record], row[2:]))
        fields["at"] = at
        return msgspec.convert(fields, record)

    def _close(self, kind: str | None) -> Scope:
        """Close the innermost open scope of `kind` (of any kind for None), and whatever is still open inside it."""
        while self.scopes:
            scope = self.scopes.pop()
            if scope.kind == "call":
                self.calls_open -= 1
            if kind is None or scope.kind == kind:
                return scope
        raise ValueError("a scope is closed that was never opened")


def flags_of(bits: int) -> list[str]:
    """Names of the flags in a set of bits."""
    return [flag for i, flag in enumerate(FLAGS) if bits >> i & 1] if bits else []


def bits_of(flags: Iterable[str]) -> int:
    """Set of bits of some flags."""
    return sum(1 << FLAGS.index(flag) for flag in flags)


# -- records to the canonical form -----------------------------------------------------

CLOCK_KEYS = re.compile(r"(_runtime|_per_second|_jit_compilation_time|_mem_(cpu|gpu)_.*|_mem_before.*)$")
"""Logged values that a clock or the memory tracker gave. They differ between two equal runs."""

FILES_WITH_CLOCKS = re.compile(
    r"(^|/)(trainer_state\.json|config\.json|tokenizer_config\.json|training_args\.bin|all_results\.json|\w+_results\.json|README\.md|"
    r"events\.out\.tfevents.*)$"
)
"""Files whose content holds clock values, host names or paths, so that their size is not the run's."""


def canonical(records: Iterable[Record]) -> Iterator[Record]:
    """Bring records to the full canonical level: all that two equal runs of one implementation share.

    Left out: times, the process, the recorder's own cost, logged clock values, the size of files that hold such
    values. Everything else stays, file and line of authors and the private phases of a version included.
    """
    written = 0
    for record in records:
        kind = type(record)
        if kind is events.Head:
            record = msgspec.structs.replace(record, at=None, form="canonical", process=None)
        elif kind is events.End:
            record = events.End(rows=written, dropped=record.dropped)  # type: ignore[attr-defined]
        elif kind is events.Log:
            logs = {key: value for key, value in record.logs.items() if not CLOCK_KEYS.search(key)}  # type: ignore[attr-defined]
            record = msgspec.structs.replace(record, at=None, logs=logs)
        elif kind is events.File and FILES_WITH_CLOCKS.search(record.path):  # type: ignore[attr-defined]
            record = msgspec.structs.replace(record, at=None, size=None)
        elif record.at is not None:
            record = msgspec.structs.replace(record, at=None)
        written += 1
        yield record


PORTABLE_VERSIONS = ("transformers", "accelerate")
"""What decides how a Trainer behaves. Python's and torch's do not: the losses of the flow scenarios are exact."""


def portable(records: Iterable[Record]) -> Iterator[Record]:
    """Bring records to the portable canonical level: all that two implementations of one behaviour share.

    On top of `canonical`, left out are: versions but `PORTABLE_VERSIONS`; hooks; file and line of authors, and who
    called a collective; the mixin that holds a method; modules of class names; and calls of methods that the library
    defines and 4.31.0 does not have (`Call.private`), whose content moves up one level. An author inside such a method
    becomes the innermost public method around it.
    Methods that a user's subclass defines stay, whatever their name. Two files of this level are equal after their
    first line exactly when the two Trainers did the same, in the same order, with the same numbers.
    """
    calls: list[tuple[str, bool]] = []  # (cls.method, private) of every open call
    depth = 0  # open calls that are not private
    written = 0
    for record in canonical(records):
        kind = type(record)
        if kind is events.Head:
            versions = {name: record.versions[name] for name in PORTABLE_VERSIONS if name in record.versions}  # type: ignore[attr-defined]
            record = msgspec.structs.replace(record, form="portable", versions=versions, hooks=[], unhooked={})
        elif kind is events.Call:
            calls.append((f"{record.cls}.{record.method}", record.private))  # type: ignore[attr-defined]
            if record.private:  # type: ignore[attr-defined]
                continue
            record = events.Call(method=record.method, cls=record.cls, depth=depth)  # type: ignore[attr-defined]
            depth += 1
        elif kind is events.Return or (kind is events.Raise and record.scope == "call"):  # type: ignore[attr-defined]
            if calls and calls.pop()[1]:
                continue
            depth = max(0, depth - 1)
            record = msgspec.structs.replace(record, depth=depth)
        elif kind is events.Raise:
            record = msgspec.structs.replace(record, depth=depth)
        elif kind in (events.Flag, events.State):
            by = _public_author(record.by, calls)  # type: ignore[attr-defined]
            record = msgspec.structs.replace(record, by=by, file="", line=0)
        elif kind is events.Collective:
            record = msgspec.structs.replace(record, by="", file="", line=0)
        elif kind is events.TrainerBegin:
            classes = [name.rpartition(".")[2] for name in record.classes]  # type: ignore[attr-defined]
            record = msgspec.structs.replace(record, classes=classes)
        elif kind is events.End:
            record = events.End(rows=written, dropped=record.dropped)  # type: ignore[attr-defined]
        written += 1
        yield record


def _public_author(by: str, calls: list[tuple[str, bool]]) -> str:
    """Name the innermost public method around an author that is a private phase."""
    author_found = False
    for name, private in reversed(calls):
        author_found = author_found or (private and name == by)
        if author_found and not private:
            return name
    return by


LEVELS = {"canonical": canonical, "portable": portable}

_ENCODER = msgspec.json.Encoder()


def encode_canonical(record: Record) -> bytes:
    """One line of the canonical form, without its line feed. Bring the record to a level first."""
    return _ENCODER.encode(record)


def write_canonical(records: Iterable[Record], path: str | os.PathLike[str], level: str = "canonical") -> int:
    """Write records in the canonical form; stream, so a million of them need no memory.

    Args:
        records: from `read`, or made by hand.
        path: the file to write. It is replaced whole, or not at all.
        level: "canonical" (full) or "portable".

    Returns:
        The number of records written.
    """
    written = 0
    temporary = f"{os.fspath(path)}.{os.getpid()}.part"
    try:
        with open(temporary, "wb") as file:
            for record in LEVELS[level](records):
                file.write(_ENCODER.encode(record))
                file.write(b"\n")
                written += 1
        os.replace(temporary, path)
    except OSError as error:
        raise UsageError(f"{os.fspath(path)} can't be written: {error.strerror or error}") from error
    finally:
        if os.path.exists(temporary):
            os.unlink(temporary)
    return written


# -- records to rows -------------------------------------------------------------------


class Names:
    """Ids of names. `id_of` hands out the id of a name, and leaves its definition in `undefined` the first time."""

    def __init__(self) -> None:
        self.ids: dict[Any, int] = {}
        self.undefined: list[tuple[int, int, Any]] = []

    def id_of(self, name: Any) -> int:
        number = self.ids.get(name)
        if number is None:
            number = self.ids[name] = len(self.ids) + 1
            self.undefined.append((DEFINITION, number, name))
        return number


def plain_row(record: Record, at_us: int) -> list[Any]:
    """The row of a record of kind 10 or higher. Trailing fields that hold their default are left out."""
    kind = type(record)
    values = list(msgspec.structs.astuple(record)[1:])  # `at` is the first field of all
    values = _without_trailing_defaults(kind, values)
    return [CODES[kind], at_us, *values]


def _without_trailing_defaults(kind: type[Record], values: list[Any]) -> list[Any]:
    defaults = _defaults_of(kind)
    keep = len(values)
    while keep and defaults[keep - 1] is not msgspec.NODEFAULT and values[keep - 1] == defaults[keep - 1]:
        keep -= 1
    return values[:keep]


@functools.cache
def _defaults_of(kind: type[Record]) -> list[Any]:
    """Default of every field of a row, `NODEFAULT` for none. Asking msgspec compiles annotations: once is enough."""
    defaults = {}
    for field in msgspec.structs.fields(kind):
        makes = field.default_factory is not msgspec.NODEFAULT
        defaults[field.name] = field.default_factory() if makes else field.default  # type: ignore[operator, misc]
    return [defaults[name] for name in FIELDS[kind]]


def write_rows(records: Iterable[Record], path: str | os.PathLike[str]) -> int:
    """Write typed records as a recording: the inverse of `read`. For tests and for conversions.

    Returns:
        The number of records written.
    """
    names = Names()
    at_us = 0
    written = 0
    with open(path, "wb") as file:
        for record in records:
            if isinstance(record, events.Head):
                file.write(filled_up(_ENCODER.encode(msgspec.structs.replace(record, at=None, form=RECORDING))))
                written += 1
                continue
            at_us = at_us if record.at is None else record.at
            row = _row_of(record, at_us, names)
            for definition in names.undefined:
                file.write(filled_up(_ENCODER.encode(definition)))
            names.undefined.clear()
            row[1] = ticks(row[1])
            file.write(filled_up(_ENCODER.encode(row)))
            written += 1
    return written


def _row_of(record: Any, at_us: int, names: Names) -> list[Any]:
    kind = type(record)
    if kind is events.Call:
        return [CALL, at_us, names.id_of((record.method, record.cls, record.part, record.private))]
    if kind is events.Return:
        return [RETURN, at_us]
    if kind is events.Raise:
        return [RAISE, at_us, names.id_of(record.error), record.message]
    if kind is events.Event:
        lowered, raised = bits_of(record.lowered), bits_of(record.raised)
        return [EVENT, at_us, names.id_of(record.event), record.step, record.epoch, lowered, raised]
    if kind is events.EventEnd:
        return [EVENT_END, at_us, bits_of(record.raised)]
    if kind is events.Callback:
        return [CALLBACK, at_us, names.id_of(record.callback)]
    if kind is events.CallbackEnd:
        return [CALLBACK_END, at_us, 1] if record.replaced else [CALLBACK_END, at_us]
    if kind is events.Flag:
        site = names.id_of((record.by, record.file, record.line))
        row = [FLAG, at_us, FLAGS.index(record.flag), int(record.new), site]
        return row if record.how == "set" else [*row, names.id_of(record.how)]
    if kind is events.State:
        site = names.id_of((record.by, record.file, record.line))
        row = [STATE, at_us, names.id_of(record.field), record.old, record.new, site]
        return row if record.how == "set" else [*row, names.id_of(record.how)]
    return plain_row(record, at_us)


# -- a trace to try things on ------------------------------------------------------------


def sample_trace(steps: int = 4, accumulation: int = 2, logging_steps: int = 2, rank: int = 0) -> list[Record]:
    """Make a small trace by hand, with the shape of a real one, for tests and examples of the readers.

    Losses are exact binary fractions, so every derivation in it holds to the last bit. The flow is 4.31.0's: one
    epoch, a log every `logging_steps` steps, no evaluation.
    """
    clock = iter(range(0, 10**9, 5))
    records: list[Record] = [
        events.Head(schema=SCHEMA, form=RECORDING, versions={"transformers": "4.31.0"}, rank=rank, scenario="sample"),
        events.TrainerBegin(
            at=next(clock),
            trainer=0,
            classes=["transformers.trainer.Trainer"],
            model="Scripted",
            device="cpu",
            arguments={"gradient_accumulation_steps": accumulation, "logging_steps": logging_steps},
            callbacks=[("DefaultFlowCallback", ["on_epoch_end", "on_step_end"])],
        ),
    ]

    def add(record: Record) -> None:
        record.at = next(clock)
        records.append(record)

    def event(name: str, step: int, epoch: float, lowered: list[str] | None = None) -> None:
        add(events.Event(event=name, step=step, epoch=epoch, lowered=lowered or []))
        if name in ("on_step_end", "on_epoch_end"):
            add(events.Callback(callback="DefaultFlowCallback", event=name))
            if name == "on_step_end" and step % logging_steps == 0:
                site = {
                    "by": "DefaultFlowCallback.on_step_end",
                    "file": "transformers/trainer_callback.py",
                    "line": 429,
                }
                add(events.Flag(flag="should_log", old=False, new=True, **site))  # type: ignore[arg-type]
            add(events.CallbackEnd(callback="DefaultFlowCallback"))
        raised = ["should_log"] if name == "on_step_end" and step % logging_steps == 0 else []
        add(events.EventEnd(event=name, raised=raised))

    def call(method: str, depth: int) -> None:
        add(events.Call(method=method, cls="Trainer", depth=depth))

    def leave(method: str, depth: int) -> None:
        add(events.Return(method=method, depth=depth))

    call("train", 0)
    call("_inner_training_loop", 1)
    event("on_train_begin", 0, 0.0)
    event("on_epoch_begin", 0, 0.0)
    micro: list[events.Number] = []
    total = 0.0
    for step in range(1, steps + 1):
        for i in range(accumulation):
            if i == 0:
                event("on_step_begin", step - 1, (step - 1) / steps)
            row = (step - 1) * accumulation + i
            call("training_step", 2)
            add(events.Samples(rows=2, labels=2, digest=f"{row:08x}", indices=[2 * row, 2 * row + 1]))
            call("compute_loss", 3)
            leave("compute_loss", 3)
            leave("training_step", 2)
            micro.append((steps * accumulation - row) / 8 / accumulation)
            if i + 1 < accumulation:
                event("on_substep_end", step - 1, (step - 1) / steps)
        add(events.GradNorm(norm=0.5, max_norm=1.0, clipped=False))
        add(events.OptimizerStep(lr=[0.25 * (steps - step + 1) / steps]))
        add(events.SchedulerStep(lr=[0.25 * (steps - step) / steps]))
        site = {"by": "Trainer._inner_training_loop", "file": "transformers/trainer.py", "line": 1893}
        add(events.State(field="global_step", old=step - 1, new=step, **site))  # type: ignore[arg-type]
        event("on_step_end", step, step / steps)
        call("_maybe_log_save_evaluate", 2)
        if step % logging_steps == 0:
            mean = float(sum(value for value in micro if isinstance(value, float)))
            logged = round(mean / logging_steps, 4)
            call("log", 3)
            add(
                events.Loss(
                    step=step,
                    losses=[value * accumulation for value in micro if isinstance(value, float)],
                    micro=micro,
                    divided_by=[accumulation] * len(micro),
                    rows=[2] * len(micro),
                    labels=[2] * len(micro),
                    rank_sum=mean,
                    gathered=[mean],
                    mean=mean,
                    steps=logging_steps,
                    quotient=mean / logging_steps,
                    logged=logged,
                    total_before=total,
                    verified=True,
                )
            )
            add(events.Log(step=step, logs={"loss": logged, "learning_rate": 0.25, "epoch": round(step / steps, 2)}))
            site = {"by": "CallbackHandler.on_log", "file": "transformers/trainer_callback.py", "line": 390}
            add(events.Flag(flag="should_log", old=True, new=False, **site))  # type: ignore[arg-type]
            event("on_log", step, step / steps, lowered=["should_log"])
            leave("log", 3)
            micro = []
            total += mean
        leave("_maybe_log_save_evaluate", 2)
    event("on_epoch_end", steps, 1.0)
    rest = float(sum(value for value in micro if isinstance(value, float)))
    add(
        events.TrainLoss(
            total=total, rest=rest, micro=micro, steps=steps, logged=(total + rest) / steps, verified=True
        )
    )
    event("on_train_end", steps, 1.0)
    leave("_inner_training_loop", 1)
    leave("train", 0)
    add(events.End(rows=len(records)))
    return records


# Read next: pen.py, which puts words into a file.
