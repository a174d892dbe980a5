"""Writes a recording as the recorder does: cells and packed rows, each with its time."""

from __future__ import annotations

import math
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from minitrainer.trace import events, rows
from minitrainer.trace.events import Record


def write_packed(records: Iterable[Record], path: Path, began: float = 100.0) -> None:
    """Write a recording in which nothing is an array that the recorder stores otherwise; its times begin at `began`."""
    names = rows.Names()
    encode = msgspec.json.Encoder().encode
    with open(path, "wb") as file:
        for record in records:
            if isinstance(record, events.Head):
                head = msgspec.structs.replace(record, at=None, form=rows.RECORDING)
                file.write(rows.filled_up(encode(head)))
                continue
            row = rows._row_of(record, record.at or 0, names)
            for definition in names.undefined:
                file.write(rows.filled_up(encode(definition)))
            names.undefined.clear()
            row[1] = rows.ticks(row[1] + int(1e6 * began))
            file.write(packed(row) or rows.filled_up(encode(row)))


def packed(row: list[Any]) -> bytes | None:
    """A row as a cell or packed, or None for one that the recorder leaves an array."""
    kind, ticks, *fields = row
    time = rows.ORIGIN + ticks / rows.TICKS_A_SECOND

    def cell(number: int) -> bytes:
        head = rows.cell_head(number, time)
        assert head is not None
        return struct.pack("<d", head)

    if kind in (rows.CALL, rows.CALLBACK):
        return cell(rows.CELL_NAMED + 2 * fields[0] + (kind == rows.CALLBACK))
    if kind == rows.RETURN:
        return cell(rows.CELL_RETURN)
    if kind == rows.EVENT_END:
        return cell(rows.CELL_EVENT_END + fields[0])
    if kind == rows.CALLBACK_END and not fields:
        return cell(rows.CELL_CALLBACK_END)
    if kind == rows.EVENT:
        event, step, epoch, lowered, raised = fields
        return rows.PACKED[kind].pack(kind, event, lowered, raised, step, math.nan if epoch is None else epoch, time)
    if kind == rows.STATE and len(fields) == 4 and {type(one) for one in fields[1:3]} in ({int}, {float}):
        field, old, new, site = fields
        kind = rows.STATE_OF_INTEGERS if type(new) is int else rows.STATE_OF_FLOATS
        return rows.PACKED[kind].pack(kind, field, site, old, new, time)
    if kind in rows.RATE_KINDS and all(type(rate) is float for rate in fields[0]):
        rates, *skipped = fields
        return rows.RATES[len(rates)].pack(kind, len(rates), bool(skipped), *rates, time)
    if kind == rows.SAMPLES and len(fields) > 3 and None not in fields[:4] and len(fields[3]) < len(rows.SAMPLES_ROWS):
        count, labels, digest, positions, *split = fields
        packer = rows.SAMPLES_ROWS[len(positions)]
        return packer.pack(kind, len(positions), count, labels, bool(split), int(digest, 16), *positions, time)
    if kind == rows.CODES[events.GradNorm] and all(type(one) is float for one in fields[:2]):
        return rows.PACKED[kind].pack(kind, *fields[:2], time)
    return None


# Read next: test_layouts.py, which reads such recordings.
