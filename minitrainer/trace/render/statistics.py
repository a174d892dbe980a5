"""Counts what a trace holds: rows by kind, calls with their time, events, who changed which flag, and the cost."""

from __future__ import annotations

from collections import Counter

from minitrainer.trace import events
from minitrainer.trace.render.escape import printable
from minitrainer.trace.render.side_by_side import table
from minitrainer.trace.render.words import counted, duration, size, unhooked
from minitrainer.trace.rows import Reading

MOST_METHODS = 30


class Statistics:
    """Counters over the records of one rank."""

    def __init__(self) -> None:
        self.rows: Counter[str] = Counter()
        self.calls: Counter[str] = Counter()
        self.total_us: Counter[str] = Counter()
        self.own_us: Counter[str] = Counter()
        self.events: Counter[str] = Counter()
        self.callbacks: Counter[str] = Counter()
        self.changes: Counter[tuple[str, bool, str]] = Counter()
        self.files: Counter[str] = Counter()
        self.first_us: int | None = None
        self.last_us: int | None = None
        self._open: list[list[int | str]] = []

    def add(self, record: events.Record) -> None:
        kind = type(record)
        self.rows[kind.__struct_config__.tag] += 1  # type: ignore[index]
        at = record.at
        if at is not None:
            self.first_us = at if self.first_us is None else self.first_us
            self.last_us = at
        if kind is events.Call:
            name = record.method if record.cls == "Trainer" else f"{record.cls}.{record.method}"  # type: ignore[attr-defined]
            self.calls[name] += 1
            self._open.append([name, at or 0, 0])
        elif kind is events.Return or (kind is events.Raise and record.scope == "call"):  # type: ignore[attr-defined]
            self._leave(at)
        elif kind is events.Event:
            self.events[record.event] += 1  # type: ignore[attr-defined]
        elif kind is events.Callback:
            self.callbacks[record.callback] += 1  # type: ignore[attr-defined]
        elif kind is events.Flag:
            self.changes[record.flag, record.new, record.by] += 1  # type: ignore[attr-defined]
        elif kind is events.File:
            self.files[record.action] += 1  # type: ignore[attr-defined]

    def _leave(self, at: int | None) -> None:
        if not self._open or at is None:
            return
        name, began, inside = self._open.pop()
        took = at - int(began)
        self.own_us[str(name)] += took - int(inside)
        # A method that calls itself (an override calls super) counts the outermost time once.
        if not any(other[0] == name for other in self._open):
            self.total_us[str(name)] += took
        if self._open:
            self._open[-1][2] = int(self._open[-1][2]) + took

    def lines(self, reading: Reading, width: int) -> list[str]:
        """Return the counts as tables."""
        lines = [*self._frame(reading), ""]
        lines += table([["kind of row", "rows"], *([kind, f"{n:,}"] for kind, n in self.rows.most_common())], width)
        if self.calls:
            lines += ["", *table(self._call_rows(), width)]
            if len(self.calls) > MOST_METHODS:
                lines.append(f"… and {counted(len(self.calls) - MOST_METHODS, 'method')} more")
        if self.events:
            lines += [
                "",
                *table([["event", "times"], *([printable(k), f"{n:,}"] for k, n in self.events.most_common())], width),
            ]
        if self.callbacks:
            rows = ([printable(k), f"{n:,}"] for k, n in self.callbacks.most_common())
            lines += ["", *table([["callback", "times"], *rows], width)]
        if self.changes:
            changed = [
                [f"{printable(flag)} {'raised' if new else 'lowered'}", printable(by), f"{n:,}"]
                for (flag, new, by), n in self.changes.most_common()
            ]
            lines += ["", *table([["flag", "by", "times"], *changed], width)]
        if self.files:
            lines += [
                "",
                "files: " + ", ".join(f"{counted(n, printable(action))}" for action, n in self.files.items()),
            ]
        return lines

    def _frame(self, reading: Reading) -> list[str]:
        stored = reading.path.stat().st_size
        lines = [f"{counted(reading.rows, 'row')}, {size(stored)} on disk"]
        if self.first_us is not None and self.last_us is not None:
            lines[0] += f", over {duration(self.last_us - self.first_us)}"
        end = reading.end
        if end is not None and end.cost_us is not None:
            share = ""
            if self.last_us:
                share = f" ({end.cost_us / self.last_us:.2%} of the run)"
            per_row = f", {end.bytes / end.rows:.1f} bytes a row" if end.bytes and end.rows else ""
            lines.append(f"the recorder took {duration(end.cost_us)}{share}{per_row}")
        if end is not None and end.dropped:
            lines.append(f"{end.dropped:,} rows could not be written and are missing")
        return lines + unhooked(reading.head)

    def _call_rows(self) -> list[list[str]]:
        if not self.total_us:
            return [["method", "calls"], *([printable(k), f"{n:,}"] for k, n in self.calls.most_common(MOST_METHODS))]
        ordered = sorted(self.calls, key=lambda name: -self.total_us[name])[:MOST_METHODS]
        rows = [["method", "calls", "in all", "own", "each"]]
        for name in ordered:
            times = (self.total_us[name], self.own_us[name], self.total_us[name] / self.calls[name])
            rows.append([printable(name), f"{self.calls[name]:,}", *map(duration, times)])
        return rows


# Read next: live.py, which looks at a trace while it grows.
