"""Reads the blocks of a recording without decoding them: most of them look like one that was seen before.

A recording is packed, and each of its rows carries its time, so its blocks can't be compared as bytes. But the steps of
a run are alike: the same rows with the same names, only numbers and times differ. Such a sequence of rows is a
*layout*. The first time it is decoded row by row and brought to the portable form; from its second time on one regular
expression, with the times left out and a group for every row that holds a value, reads the whole block in one call.
What the groups hold is compared as bytes, and only rows whose bytes differ are ever decoded.

A layout belongs to the calls that are open where its block begins: they decide its authors, and which rows the portable
form drops.
"""

from __future__ import annotations

import mmap
import re
import struct
from collections.abc import Hashable
from typing import Any, NamedTuple

import msgspec

from minitrainer.trace import events, rows
from minitrainer.trace.blocks import MARKS, START, Blocks, Cutter, Key
from minitrainer.trace.errors import UsageError
from minitrainer.trace.rows import Reading, RowDecoder, RowSplitter, Scope, portable

# -- what a row is made of -------------------------------------------------------------

HEAD_BYTES = {
    rows.EVENT: 3,
    rows.STATE_OF_INTEGERS: 5,
    rows.STATE_OF_FLOATS: 5,
    rows.CODES[events.GradNorm]: 1,
    **dict.fromkeys(rows.RATE_KINDS, 3),  # with the number of groups, and whether the step was skipped
    rows.SAMPLES: 1,
}
"""Packed kind to how many of its bytes say what the row is about: its kind and the ids of names."""

TIME_BYTES = rows.TIME_BITS // 8
"""The lower bytes of a cell; what it is about are the others."""

CELL = -1
"""Kind of a piece that is a cell."""

LITERAL_ARRAYS = frozenset(
    {rows.DEFINITION, rows.CALL, rows.RETURN, rows.RAISE, rows.EVENT_END, rows.CALLBACK, rows.CALLBACK_END, rows.FLAG}
)
"""Kinds whose arrays hold ids, and nothing that changes from step to step: all of it is what the row is about."""

ARRAYS_WITH_IDS = frozenset({rows.EVENT, rows.STATE})
"""Kinds whose arrays hold ids beside their values: such rows are always decoded."""

LONGEST_LAYOUT = 2_000
"""Rows. A longer block is decoded each time that it is asked for."""

MOST_LAYOUTS = 400

MALFORMED = (
    msgspec.MsgspecError,
    struct.error,
    ValueError,
    KeyError,
    IndexError,
    TypeError,
    AttributeError,
    OverflowError,
    RecursionError,
)
"""What decoding raises for a row that is none of this schema."""


def _malformed(head: events.Head) -> UsageError:
    return UsageError(f"trace of rank {head.rank}: a row is not a row of this schema")


class Piece(NamedTuple):
    """One row of a recording, without its time.

    Attributes:
        kind: its kind, or CELL.
        is_array: whether it stands as an array.
        head: what it is about: the upper bytes of a cell; kind and ids of a packed row; of an array that is about ids
            only, all after the time.
        value: the rest, None where there is none.
    """

    kind: int
    is_array: bool
    head: bytes
    value: bytes | None


_VALUES = rb"(\]|,[^\n]*\])"  # of an array, after its time; it ends in one place, so blanks after it are no part of it
_ARRAY = re.compile(rb"\[(\d+),\d+%s *\n" % _VALUES)
_CELL = re.compile(rows.CELL_PATTERN, re.DOTALL)


def cut_into_pieces(block: bytes) -> list[Piece]:
    """Cut whole rows into their parts."""
    pieces = []
    position = 0
    while position < len(block):
        if _CELL.match(block, position):
            end = position + rows.WORD_BYTES
            pieces.append(Piece(CELL, False, block[position + TIME_BYTES : end], None))
            position = end
            continue
        kind = block[position]
        if kind == 0x5B:
            array = _ARRAY.match(block, position)
            if array is None:
                raise ValueError("an array has no time")
            kind = int(array[1])
            parts = (array[2], None) if kind in LITERAL_ARRAYS else (b"", array[2])
            pieces.append(Piece(kind, True, *parts))
            position = array.end()
            continue
        head = HEAD_BYTES[kind]
        size = (rows.COUNTED[kind][block[position + 1]] if kind in rows.COUNTED else rows.PACKED[kind]).size
        value = block[position + head : position + size - rows.WORD_BYTES]
        pieces.append(Piece(kind, False, block[position : position + head], value or None))
        position += size
    return pieces


def _without_value(piece: Piece) -> Piece:
    """What a piece has in common with those that its pattern matches."""
    if piece.value is None:
        return piece
    return piece._replace(value=b"" if piece.is_array else bytes(len(piece.value)))


def _pattern_of(piece: Piece) -> bytes:
    """Pattern of the rows that are about the same, with a group for their value."""
    if piece.kind == CELL:
        return b".{%d}" % TIME_BYTES + re.escape(piece.head)
    if piece.is_array:
        value = b"" if piece.value is None else _VALUES
        return rb"\[%d,\d+%s%s *\n" % (piece.kind, re.escape(piece.head), value)
    value = b"" if piece.value is None else b"(.{%d})" % len(piece.value)
    return re.escape(piece.head) + value + b".{%d}" % TIME_BYTES + re.escape(rows.END_OF_PACKED)


def _array_of(piece: Piece, value: bytes | None) -> Any:
    """The row as an array, its time at zero."""
    if piece.is_array:
        return msgspec.json.decode(b"[%d,0%s%s" % (piece.kind, piece.head, value or b""))
    if piece.kind == CELL:
        whole = bytes(TIME_BYTES) + piece.head
    else:
        whole = piece.head + (value or b"") + bytes(TIME_BYTES) + rows.END_OF_PACKED
    (row,) = RowSplitter().feed(whole)
    return row


# -- layouts -----------------------------------------------------------------------------

Context = tuple[tuple[Scope, bool], ...]
"""What is open where a block begins, outermost first: the scope, and whether it is a private call."""

Values = tuple[bytes, ...]


class Layout:
    """A sequence of rows, with a gap for every value.

    Attributes:
        rows: the portable records of the block that it was made from.
        subjects: for each of them, what it is about. Rows of two layouts with equal subjects have values of one form,
            and are equal where these are.
        slots: for each of them, which of a block's values is its own; None for a row without one.
        before, after: what is open where the block begins and ends.
    """

    def __init__(self, pieces: list[Piece], before: Context, names: dict[int, Any], head: events.Head):
        self.before = before
        self._names = names
        self._head = head
        decoder = RowDecoder([scope for scope, _ in before])
        decoder.names = names
        decoder.calls_open = sum(scope.kind == "call" for scope, _ in before)
        private = [is_private for _, is_private in before]
        records: list[Any] = []
        self._pieces: list[Piece] = []  # of the rows that the portable form keeps
        self.slots: list[int | None] = []
        slot = 0
        for piece in pieces:
            mine = None
            if piece.value is not None:
                mine, slot = slot, slot + 1
            record: Any = None if piece.kind == rows.DEFINITION else decoder.decode(_array_of(piece, piece.value))
            if record is None:
                continue
            records.append(record)
            is_dropped = False
            if type(record) in (events.Call, events.Event, events.Callback):
                is_dropped = type(record) is events.Call and record.private
                private.append(is_dropped)
            while len(private) > len(decoder.scopes):
                is_dropped = private.pop()  # the last to go is the one that the row is about
            if not is_dropped:
                self._pieces.append(piece)
                self.slots.append(mine)
        self.after: Context = tuple(zip(decoder.scopes, private, strict=True))
        around = [
            events.Call(method=scope.name, cls=scope.owner, depth=0, private=is_private)
            for scope, is_private in before
            if scope.kind == "call"
        ]
        kept_around = sum(not call.private for call in around)
        self.rows: list[Any] = list(portable([*around, *records]))[kept_around:]
        self.subjects = [_subject(piece, row) for piece, row in zip(self._pieces, self.rows, strict=True)]
        self._pattern = b"".join(map(_pattern_of, pieces))
        self._compiled: re.Pattern[bytes] | None = None

    def match(self, data: mmap.mmap, begin: int, end: int) -> re.Match[bytes] | None:
        """Read a block by this layout; None where it is of another. Its groups are the values."""
        if self._compiled is None:
            self._compiled = re.compile(self._pattern, re.DOTALL)
        return self._compiled.fullmatch(data, begin, end)

    def row(self, position: int, values: Values) -> Any:
        """One portable record of a block with these values.

        Raises:
            UsageError: the row is malformed.
        """
        slot = self.slots[position]
        if slot is None:
            return self.rows[position]
        try:
            return self._decoded(position, values[slot])
        except MALFORMED as error:
            raise _malformed(self._head) from error

    def _decoded(self, position: int, value: bytes) -> Any:
        decoder = RowDecoder([])
        decoder.names = self._names
        recorded: Any = decoder.decode(_array_of(self._pieces[position], value))
        record: Any = next(portable([recorded]))
        if type(record) is events.State:  # who the author is depends on the calls around it
            record.by = self.rows[position].by
        elif type(record) is events.End:  # what stands before it was not counted
            record.rows = 0
        return record

    def lines(self, values: Values) -> list[bytes]:
        """The portable form of a block with these values."""
        try:
            return [rows.encode_canonical(self.row(position, values)) for position in range(len(self.rows))]
        except MALFORMED as error:
            raise _malformed(self._head) from error


def _subject(piece: Piece, record: Any) -> Hashable:
    if piece.value is None:
        if isinstance(record, (events.Call, events.Return, events.Raise)):
            record = msgspec.structs.replace(record, depth=0)
        return rows.encode_canonical(record)
    if piece.is_array:
        return object() if piece.kind in ARRAYS_WITH_IDS else ("array", piece.kind)
    if type(record) is events.Event:
        return piece.kind, record.event
    if type(record) is events.State:
        return piece.kind, record.field, record.by, record.how
    return piece.kind, piece.head


# -- the blocks of a file ----------------------------------------------------------------------


class RecordedBlocks:
    """The blocks of a recording, in the order of the file. Use it in a `with`, which closes the file.

    Attributes:
        head: the file's first record.
        keys: key of each block.
    """

    def __init__(self, reading: Reading):
        self.head = reading.head
        self.path = reading.path
        self._names: dict[int, Any] = {}
        self._starts: list[int] = []
        self._layouts: list[Layout | None] = []
        self._before: dict[int, Context] = {}  # of the blocks without a layout
        cutter = Cutter()
        self.keys: list[Key] = cutter.keys
        self._file = open(reading.path, "rb")
        self._bytes = mmap.mmap(self._file.fileno(), 0, access=mmap.ACCESS_READ)
        try:
            self._cut(cutter)
            self._lay_out()
        except MALFORMED as error:
            raise UsageError(f"{self.path}: a row is not a row of this schema") from error

    def __enter__(self) -> RecordedBlocks:
        return self

    def __exit__(self, *_: object) -> None:
        self._bytes.close()
        self._file.close()

    def __len__(self) -> int:
        return len(self.keys)

    def laid_out(self, index: int) -> tuple[Layout, Values]:
        """The layout of a block, and its values. A block unlike any other has one of its own, made each time."""
        layout = self._layouts[index]
        if layout is not None:
            match = layout.match(self._bytes, self._starts[index], self._starts[index + 1])
            assert match is not None
            return layout, match.groups()
        try:
            pieces = self._pieces(index)
            values = tuple(piece.value for piece in pieces if piece.value is not None)
            return Layout(pieces, self._before[index], self._names, self.head), values
        except MALFORMED as error:
            raise _malformed(self.head) from error

    def block(self, index: int) -> bytes:
        """The portable form of a block: its lines, each with its line feed."""
        layout, values = self.laid_out(index)
        return b"".join(line + b"\n" for line in layout.lines(values))

    def is_alone(self, index: int) -> bool:
        """Whether no other block has the layout of this one."""
        return self._layouts[index] is None

    def _pieces(self, index: int) -> list[Piece]:
        return cut_into_pieces(self._bytes[self._starts[index] : self._starts[index + 1]])

    def _cut(self, cutter: Cutter) -> None:
        """Find where blocks begin, and what the names stand for."""
        data = self._bytes
        event_bytes = rows.PACKED[rows.EVENT].size
        marks: dict[int, bytes] = {}
        others = _other_rows(marks)
        position = data.find(b"\n") + 1
        cutter.add(START, 0)
        self._starts.append(position)
        while True:
            position = others.match(data, position).end()  # type: ignore[union-attr]
            first = data[position : position + event_bytes]
            if first[:1] == bytes([rows.EVENT]) and len(first) == event_bytes and first.endswith(rows.END_OF_PACKED):
                _, event, _, _, step, *_ = rows.PACKED[rows.EVENT].unpack(first)
                end = position + event_bytes
            elif first[:1] == b"[" and (line_feed := data.find(b"\n", position)) >= 0:
                end = line_feed + 1
                kind, *fields = msgspec.json.decode(data[position:line_feed])
                if kind == rows.DEFINITION:
                    self._names[fields[0]] = fields[1]
                    if isinstance(fields[1], str) and fields[1].encode() in MARKS:
                        marks[fields[0]] = fields[1].encode()
                        others = _other_rows(marks)
                    position = end
                    continue
                _, event, step = fields[:3]
            else:
                break
            if event in marks:
                cutter.add(marks[event], step)
                self._starts.append(position)
            position = end
        self._starts.append(position)
        self._check_the_end(position)

    def _check_the_end(self, position: int) -> None:
        """After the last row there may be zero bytes, or one row that was being written."""
        splitter = RowSplitter()
        self._file.seek(position)
        chunk = self._file.read(rows.CHUNK_BYTES)
        if chunk.strip(b"\0") and (splitter.feed(chunk) or not splitter.only_zeros_follow(self._file)):
            raise UsageError(f"{self.path}: what follows byte {position} is not a row")

    def _lay_out(self) -> None:
        """Find the layout of every block; what is open where it begins follows from the one before it."""
        data, starts = self._bytes, self._starts
        contexts: dict[Context, Context] = {}  # each once, so that `is` tells them apart
        seen: dict[tuple[Context, tuple[Piece, ...]], Layout] = {}
        known: dict[Context, list[Layout]] = {}
        followed_by: dict[Layout | None, Layout] = {}
        before: Context = contexts.setdefault((), ())
        last: Layout | None = None
        for index in range(len(self.keys)):
            begin, end = starts[index], starts[index + 1]
            layout = followed_by.get(last)
            if layout is None or layout.before is not before or layout.match(data, begin, end) is None:
                layout = next((one for one in known.get(before, ()) if one.match(data, begin, end)), None)
            if layout is None:
                pieces = self._pieces(index)
                about = tuple(map(_without_value, pieces))
                layout = seen.get((before, about))
                if layout is None:
                    layout = Layout(pieces, before, self._names, self.head)
                    layout.after = contexts.setdefault(layout.after, layout.after)
                    if len(seen) < MOST_LAYOUTS and len(pieces) <= LONGEST_LAYOUT:
                        seen[before, about] = layout
                    self._before[index] = before
                    self._layouts.append(None)
                    last, before = None, layout.after
                    continue
                known.setdefault(before, []).append(layout)
            self._layouts.append(layout)
            followed_by[last] = layout
            last, before = layout, layout.after


SMALL_BYTES = 1_000_000
"""A recording smaller than this is brought to the portable form: for a few blocks of a kind no layout pays."""


def open_blocks(a: Reading, b: Reading) -> tuple[Blocks, Blocks] | tuple[RecordedBlocks, RecordedBlocks]:
    """The blocks of two files that are to be compared: by layouts where both are recordings, else by their lines."""
    if all(one.head.form == rows.RECORDING and one.path.stat().st_size >= SMALL_BYTES for one in (a, b)):
        return RecordedBlocks(a), RecordedBlocks(b)
    return Blocks(a), Blocks(b)


def _other_rows(marks: dict[int, bytes]) -> re.Pattern[bytes]:
    """Pattern of all rows up to the next that begins a block, is a definition, or an event that stands as an array."""
    packed = []
    for kind, row in rows.PACKED.items():
        not_a_mark = b""
        if kind == rows.EVENT and marks:
            not_a_mark = b"(?!%s)" % b"|".join(re.escape(struct.pack("<H", number)) for number in marks)
        packed.append(re.escape(bytes([kind])) + not_a_mark + b".{%d}" % (row.size - 1 - len(rows.END_OF_PACKED)))
    for kind, by_count in rows.COUNTED.items():
        counts: dict[int, list[int]] = {}
        for count, row in by_count.items():
            counts.setdefault(row.size, []).append(count)
        for size, these in counts.items():
            number = b"[%s]" % re.escape(bytes(these))
            packed.append(re.escape(bytes([kind])) + number + b".{%d}" % (size - 2 - len(rows.END_OF_PACKED)))
    a_packed_row = b"(?:" + b"|".join(packed) + b")" + re.escape(rows.END_OF_PACKED)
    return re.compile(b"(?:%s|%s|" % (rows.CELL_PATTERN, a_packed_row) + rb"\[(?!0,|4,)[^\n]*\n)*", re.DOTALL)


# Read next: aligning.py, which finds the rows of two blocks that belong together.
