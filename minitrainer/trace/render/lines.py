"""Writes a run as JSON: every rank with all its records, one record a line, in pure ASCII.

ASCII because JSON is often printed: a terminal must never get a control character out of a trace.
"""

from __future__ import annotations

import json
from typing import TextIO

import msgspec

from minitrainer.trace import events
from minitrainer.trace.ranks import Run, ending


def write(run: Run, file: TextIO) -> int:
    """Write `{"ranks": [{"rank": 0, "complete": true, "findings": [], "records": [...]}], …}`.

    Returns:
        The number of records written.
    """
    written = 0
    file.write('{"ranks": [')
    for n, (rank, reading) in enumerate(run.readings.items()):
        file.write(("," if n else "") + f'\n{{"rank": {rank}, "records": [')
        for i, record in enumerate(reading):
            file.write(("," if i else "") + "\n" + line(record))
            written += 1
        tail = {"complete": reading.complete, "findings": ending(reading)}
        file.write("\n], " + json.dumps(tail)[1:-1] + "}")
    rest = {"world_size": run.world_size, "missing_ranks": run.missing, "findings": run.findings}
    file.write("\n], " + json.dumps(rest)[1:-1] + "}\n")
    return written


_ENCODER = msgspec.json.Encoder()


def line(record: events.Record) -> str:
    """Return one record as a JSON object in ASCII."""
    encoded = _ENCODER.encode(record)
    if encoded.isascii():
        return encoded.decode("ascii").replace("\x7f", "\\u007f")
    return json.dumps(msgspec.json.decode(encoded)).replace("\x7f", "\\u007f")


# Read next: statistics.py, which counts instead.
