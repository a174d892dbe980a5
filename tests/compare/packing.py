"""Writes a recording as the recorder does: packed rows, each with its clock."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from minitrainer.trace import events, rows
from minitrainer.trace.events import Record


def write_packed(records: Iterable[Record], path: Path, clock: float = 100.0) -> None:
    """Write a recording with every row packed that the recorder packs; the clock begins at `clock`."""
    names = rows.Names()
    encode = msgspec.json.Encoder().encode
    with open(path, "wb") as file:
        for record in records:
            if isinstance(record, events.Head):
                head = msgspec.structs.replace(record, at=None, form="rows", process={"clock": clock})
                file.write(encode(head) + b"\n")
                continue
            row = rows._row_of(record, record.at or 0, names)
            for definition in names.undefined:
                file.write(encode(definition) + b"\n")
            names.undefined.clear()
            file.write(packed(row, clock) or encode(row) + b"\n")


def packed(row: list[Any], clock: float) -> bytes | None:
    """A row packed, or None for one that the recorder leaves an array."""
    kind, at_us, *fields = row
    end = (clock + at_us / 1e6, rows.LINE_FEED)
    if kind in (rows.CALL, rows.RETURN, rows.CALLBACK, rows.EVENT_END):
        return rows.PACKED[kind].pack(kind, *fields, *end)
    if kind == rows.CALLBACK_END and not fields:
        return rows.PACKED[kind].pack(kind, *end)
    if kind == rows.EVENT:
        event, step, epoch, lowered, raised = fields
        return rows.PACKED[kind].pack(kind, event, step, math.nan if epoch is None else epoch, lowered, raised, *end)
    if kind == rows.STATE and len(fields) == 4 and {type(one) for one in fields[1:3]} in ({int}, {float}):
        field, old, new, site = fields
        kind = rows.STATE_OF_INTEGERS if type(new) is int else rows.STATE_OF_FLOATS
        return rows.PACKED[kind].pack(kind, field, site, old, new, *end)
    if kind in rows.RATE_KINDS and all(type(rate) is float for rate in fields[0]):
        rates, *skipped = fields
        return rows.RATES[len(rates)].pack(kind, len(rates), bool(skipped), *rates, *end)
    if kind == rows.CODES[events.GradNorm] and all(type(one) is float for one in fields[:2]):
        return rows.PACKED[kind].pack(kind, *fields[:2], *end)
    return None


# Read next: test_layouts.py, which reads such recordings.
