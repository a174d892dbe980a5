"""Writes a run for ui.perfetto.dev (and chrome://tracing): one process a rank, calls as slices, flags as counters.

The format is Chrome's trace events in JSON, which both viewers open. A canonical trace holds no times: there every
row takes one microsecond, and the file says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any, TextIO

from minitrainer.trace import events
from minitrainer.trace.events import FLAGS, as_float
from minitrainer.trace.ranks import Run
from minitrainer.trace.render import words
from minitrainer.trace.render.escape import printable
from minitrainer.trace.rows import RECORDING

PARTS, CALLS = 0, 1
"""Tracks (threads) of a rank: epochs and steps above, calls with their events and callbacks below."""
TRACKS = {PARTS: "epochs and steps", CALLS: "calls, events and callbacks"}


def write(run: Run, file: TextIO) -> int:
    """Write all ranks of a run.

    Returns:
        The number of trace events written.
    """
    has_times = all(reading.head.form == RECORDING for reading in run.readings.values())
    about = {
        "from": ", ".join(words.heading(reading.head) for reading in run.readings.values()),
        "clock": "microseconds" if has_times else "one microsecond a row: this trace holds no times",
    }
    file.write('{"displayTimeUnit": "ms", "otherData": ' + _json(about) + ', "traceEvents": [\n')
    written = 0
    starts = _starts_us(run)
    for rank, reading in run.readings.items():
        # Perfetto knows a thread by its number alone, whatever the process; one numbered as a process is that one's main
        # thread, and 0 is the idle thread of all. So no two tracks share a number, nor has one that of a rank.
        first_thread = max(run.readings) + 1 + len(TRACKS) * rank
        track = _Track(rank, starts[rank], first_thread)
        for event in track.trace_events(reading):
            file.write((",\n" if written else "") + _json(event))
            written += 1
    file.write("\n]}\n")
    return written


def _json(value: Any) -> str:
    r"""Encode without \u escapes, which Perfetto shows as they stand; whatever must not be shown is escaped already."""
    return json.dumps(value, ensure_ascii=False)


def _starts_us(run: Run) -> dict[int, int]:
    """When each rank began, against the first one. Clocks of one host can be compared, those of several can't."""
    begun: dict[int, int] = {}
    hosts = set()
    for rank, reading in run.readings.items():
        process = reading.head.process or {}
        if isinstance(process.get("wall_ns"), int):
            begun[rank] = process["wall_ns"] // 1000
        hosts.add(str(process.get("host")))
    if len(begun) < len(run.readings) or len(hosts) > 1:
        return dict.fromkeys(run.readings, 0)
    first = min(begun.values())
    return {rank: at - first for rank, at in begun.items()}


class _Track:
    """Turns the records of one rank into trace events."""

    def __init__(self, rank: int, start_us: int, first_thread: int):
        self.rank = rank
        self.first_thread = first_thread
        self.start_us = start_us
        self.now_us = start_us
        self.open_scopes: list[tuple[int, str]] = []
        self.open_parts: list[str] = []
        self.epoch = 0

    def trace_events(self, records: Iterable[events.Record]) -> Iterator[dict[str, Any]]:
        yield self._meta("process_name", PARTS, name=f"rank {self.rank}")
        yield self._meta("process_sort_index", PARTS, sort_index=self.rank)
        for track, name in TRACKS.items():
            yield self._meta("thread_name", track, name=name)
            yield self._meta("thread_sort_index", track, sort_index=track)
        for flag in FLAGS:
            yield self._counter(flag, "raised", 0)
        for n, record in enumerate(records):
            self.now_us = self.start_us + (n if record.at is None else record.at)
            yield from self._of(record)
        # A trace that was cut short leaves slices open: they end where it ends, and say so.
        while self.open_parts:
            yield self._end(PARTS, self.open_parts.pop(), cut=True)
        while self.open_scopes:
            yield self._end(CALLS, self.open_scopes.pop()[1], cut=True)

    def _of(self, record: events.Record) -> Iterator[dict[str, Any]]:
        kind = type(record)
        if kind is events.Call:
            yield self._call(record)  # type: ignore[arg-type]
        elif kind is events.Return:
            yield from self._leave()
        elif kind is events.Event:
            yield from self._parts(record)  # type: ignore[arg-type]
            yield self._begin("event", printable(record.event), step=record.step, epoch=record.epoch)  # type: ignore[attr-defined]
        elif kind is events.EventEnd:
            yield from self._leave()
            yield from self._parts_after(record)  # type: ignore[arg-type]
        elif kind is events.Callback:
            yield self._begin("callback", printable(record.callback))  # type: ignore[attr-defined]
        elif kind is events.CallbackEnd:
            yield from self._leave()
        elif kind is events.Flag:
            yield self._counter(printable(record.flag), "raised", int(record.new))  # type: ignore[attr-defined]
            yield self._instant("flag", record)
        elif kind is events.Raise:
            yield self._instant("raise", record)
            yield from self._leave()
        elif kind is events.Log:
            yield self._instant("log", record)
            yield from self._logged(record)  # type: ignore[arg-type]
        elif kind in (events.Loss, events.TrainLoss, events.EvalLoss):
            yield self._instant("loss", record)
        elif kind in (events.File, events.Rng, events.Note, events.Samples, events.TrainerBegin):
            yield self._instant(kind.__struct_config__.tag, record)  # type: ignore[arg-type]

    def _call(self, record: events.Call) -> dict[str, Any]:
        owner = "" if record.cls == "Trainer" else f"{printable(record.cls)}."
        part = {"part": printable(record.part)} if record.part else {}  # in the name it would crowd narrow slices
        return self._begin("call", owner + printable(record.method), **part)

    def _parts(self, record: events.Event) -> Iterator[dict[str, Any]]:
        name = record.event
        if name == "on_epoch_begin":
            yield from self._close_parts(0)
            self.epoch += 1
            yield self._begin_part(f"epoch {self.epoch}")
        elif name == "on_step_begin" and not any(part.startswith("step") for part in self.open_parts):
            yield self._begin_part(f"step {record.step + 1}")
        elif name in ("on_epoch_end", "on_train_end"):
            yield from self._close_parts(1 if name == "on_epoch_end" else 0)

    def _parts_after(self, record: events.EventEnd) -> Iterator[dict[str, Any]]:
        if record.event == "on_step_end" and self.open_parts and self.open_parts[-1].startswith("step"):
            yield self._end(PARTS, self.open_parts.pop())
        elif record.event == "on_epoch_end":
            yield from self._close_parts(0)

    def _close_parts(self, keep: int) -> Iterator[dict[str, Any]]:
        while len(self.open_parts) > keep:
            yield self._end(PARTS, self.open_parts.pop())

    def _logged(self, record: events.Log) -> Iterator[dict[str, Any]]:
        for key, value in record.logs.items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < float("inf"):
                yield self._counter(printable(key), "logged", value)

    # -- trace events of each phase --------------------------------------------------

    def _event(self, phase: str, track: int, name: str, **more: Any) -> dict[str, Any]:
        return {"ph": phase, **self._place(track), "ts": self.now_us, "name": name, **more}

    def _meta(self, what: str, track: int, **args: Any) -> dict[str, Any]:
        return {"ph": "M", **self._place(track), "name": what, "args": args}

    def _place(self, track: int) -> dict[str, int]:
        return {"pid": self.rank, "tid": self.first_thread + track}

    def _begin(self, category: str, name: str, **args: Any) -> dict[str, Any]:
        self.open_scopes.append((CALLS, name))
        return self._event("B", CALLS, name, cat=category, **({"args": args} if args else {}))

    def _begin_part(self, name: str) -> dict[str, Any]:
        self.open_parts.append(name)
        return self._event("B", PARTS, name, cat="part")

    def _leave(self) -> Iterator[dict[str, Any]]:
        if self.open_scopes:
            track, name = self.open_scopes.pop()
            yield self._end(track, name)

    def _end(self, track: int, name: str, cut: bool = False) -> dict[str, Any]:
        more = {"args": {"incomplete": "the trace stops in here"}} if cut else {}
        return self._event("E", track, name, **more)

    def _counter(self, name: str, what: str, value: float) -> dict[str, Any]:
        """Perfetto shows both words, as in "loss logged"."""
        return self._event("C", PARTS, name, args={what: value})

    def _instant(self, category: str, record: events.Record) -> dict[str, Any]:
        text = words.text_of(words.describe(record))
        args: dict[str, Any] = {"text": text}
        if isinstance(record, events.Flag):
            args |= {"by": printable(record.by), "where": f"{printable(record.file)}:{record.line}"}
        if isinstance(record, events.Loss):
            args |= {"logged": words.number(as_float(record.logged)), "micro": words.numbers(record.micro, 20)}
        return self._event("i", CALLS, f"{category}: {text}"[:120], cat=category, s="t", args=args)


# Read next: lines.py, the plain JSON.
