"""Puts records into words: one short line each, the same words in the terminal, on a page and in a progress line.

A line is a list of pieces, each a text with the name of its role ("name", "value", "dim" …). The terminal gives roles
colours; everything else joins the texts. All text of a trace is escaped here, once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from minitrainer.trace import events
from minitrainer.trace.events import Number, as_float
from minitrainer.trace.render.escape import printable

Piece = tuple[str, str]
Line = list[Piece]


def text_of(line: Line) -> str:
    return "".join(text for text, _ in line)


# -- numbers ------------------------------------------------------------------------


def number(value: Any, digits: int = 6) -> str:
    """Return a measured number with at most `digits` significant ones; an unknown one is a question mark."""
    if value is None:
        return "?"
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, bool) or not isinstance(value, float):
        return printable(value)
    return f"{value:.{digits}g}"


def exact(value: Number) -> str:
    """Return every digit of a number: the shortest decimal that reads back as the same float."""
    return "?" if value is None else printable(repr(as_float(value)) if not isinstance(value, str) else value)


def numbers(values: Sequence[Any], most: int = 6, digits: int = 5) -> str:
    """Return a list of numbers, the middle of a long one left out."""
    shown = [number(value, digits) for value in values]
    if len(shown) > most:
        shown = [*shown[: most - 2], f"… ({len(shown) - most + 1} more) …", shown[-1]]
    return "  ".join(shown)


def rates(values: Sequence[Any]) -> str:
    """Return learning rates, one for each parameter group; one number where they are all alike."""
    if len(values) > 1 and len({str(value) for value in values}) == 1:
        return f"{number(values[0])} (each of {len(values)} groups)"
    return numbers(values)


def counted(count: int, what: str) -> str:
    """Return "1 step", "2 steps", "3 micro-batches"."""
    ending = "" if count == 1 else "es" if what.endswith(("tch", "s", "x")) else "s"
    return f"{count:,} {what}{ending}"


def duration(microseconds: int | float) -> str:
    if microseconds < 1000:
        return f"{microseconds:.0f} µs"
    if microseconds < 1_000_000:
        return f"{microseconds / 1000:.3g} ms"
    return f"{microseconds / 1_000_000:.3g} s"


def size(count: int | None) -> str:
    if count is None:
        return ""
    if count < 10_000:
        return f"{count:,} B"
    return f"{count / 1000:,.0f} kB" if count < 10_000_000 else f"{count / 1_000_000:,.0f} MB"


# -- who wrote ------------------------------------------------------------------------

HOW = {
    "set": "",
    "trainer.control": ", through trainer.control",
    "replaced": ", by replacing the object",
    "__dict__": ", past any assignment, in __dict__",
}


def author(record: events.Flag | events.State) -> str:
    """Return who wrote, and where: `DefaultFlowCallback.on_step_end (transformers/trainer_callback.py:429)`."""
    by = printable(record.by) or "someone unknown"
    place = f" ({printable(record.file)}:{record.line})" if record.file else ""
    return by + place + HOW.get(record.how, f", {printable(record.how)}")


# -- one line a record ------------------------------------------------------------------


def describe(record: events.Record) -> Line:
    """Return a record in words. Records that only close another one have none."""
    writer = _WRITERS.get(type(record))
    return writer(record) if writer else []


def _call(record: events.Call) -> Line:
    owner = printable(record.cls)
    part = f" [{printable(record.part)}]" if record.part else ""
    return [(f"{owner}." if owner != "Trainer" else "", "owner"), (printable(record.method), "call"), (part, "dim")]


def _event(record: events.Event) -> Line:
    line: Line = [(printable(record.event), "event")]
    if record.lowered:
        line.append(("  lowers " + ", ".join(map(printable, record.lowered)), "flag"))
    if record.raised:
        line.append(
            (("; " if record.lowered else "  ") + "raised: " + ", ".join(map(printable, record.raised)), "dim")
        )
    return line


def _callback(record: events.Callback) -> Line:
    return [(printable(record.callback), "callback")]


def _flag(record: events.Flag) -> Line:
    verb = "raised" if record.new else "lowered"
    if record.old == record.new:
        verb = f"set to {record.new} again"
    return [(printable(record.flag), "flag"), (f" {verb} ", "flag"), ("by " + author(record), "author")]


def _state(record: events.State) -> Line:
    old, new = number(record.old), number(record.new)
    if old == new:
        old, new = printable(repr(record.old)), printable(repr(record.new))
    change = f"{old} → {new}"
    return [(f"state.{printable(record.field)} ", "dim"), (change, "dim"), ("  by " + author(record), "dim")]


def _samples(record: events.Samples) -> Line:
    line: Line = [(counted(record.rows, "sample") if record.rows is not None else "samples, not counted", "value")]
    if record.labels is not None:
        line.append((f", {counted(record.labels, 'label')}", "dim"))
    if record.digest:
        line.append((f"  #{printable(record.digest)}", "dim"))
    if record.indices:
        shown = ", ".join(map(str, record.indices[:8])) + (", …" if len(record.indices) > 8 else "")
        line.append((f"  rows {shown}", "dim"))
    return line


def _grad_norm(record: events.GradNorm) -> Line:
    norm = "not read yet" if record.norm is None else number(record.norm)
    line: Line = [("gradient norm ", "name"), (norm, "value")]
    if record.clipped:
        line.append((f", clipped to {number(record.max_norm)}", "value"))
    elif record.clipped is False:
        line.append((f", below {number(record.max_norm)}", "dim"))
    return line


def _optimizer_step(record: events.OptimizerStep) -> Line:
    if record.skipped:
        return [("optimizer step skipped: the gradients were not finite", "bad")]
    return [("optimizer step ", "name"), ("at lr " + rates(record.lr), "value")]


def _scheduler_step(record: events.SchedulerStep) -> Line:
    return [("scheduler step ", "name"), ("to lr " + rates(record.lr), "value")]


def _gather(record: events.Gather) -> Line:
    line = f"{number(record.rows)} → {number(record.gathered)} rows"
    if record.kept is not None and record.kept != record.gathered:
        line += f", {record.kept} kept"
    return [("gather ", "name"), (f"{printable(record.what)}  ", "value"), (line, "dim")]


def _collective(record: events.Collective) -> Line:
    what = f"{record.elements:,} {record.dtype}, {size(record.bytes)}" if record.elements else "nothing"
    ranks = f" over {counted(record.ranks, 'rank')}" if record.ranks else ""
    by = f", {record.part}" if record.part else ""
    place = f" ({printable(record.file)}:{record.line})" if record.file else ""
    if record.by:
        by += f"  by {printable(record.by)}{place}"
    return [(f"{printable(record.collective)} ", "name"), (what + ranks, "value"), (by, "dim")]


def _log(record: events.Log) -> Line:
    return [("log ", "name"), (logged(record.logs), "value")]


def logged(logs: dict[str, Any]) -> str:
    return "  ".join(f"{printable(key)}={number(value)}" for key, value in logs.items()) or "nothing"


def _loss(record: events.Loss) -> Line:
    ranks = len(record.gathered)
    mean = f"mean {number(record.mean)} of {ranks} ranks" if ranks > 1 else f"sum {number(record.mean)}"
    over = f"{mean} of {counted(len(record.micro), 'micro-batch')} ÷ {counted(record.steps, 'step')}"
    if ranks > 1:
        over = f"{mean} ÷ {counted(record.steps, 'step')}"
    return [("loss ", "name"), (number(record.logged), "value"), (f" = {over}", "dim")]


def _train_loss(record: events.TrainLoss) -> Line:
    chain = f" = ({number(record.total)} + {number(record.rest)}) ÷ {counted(record.steps, 'step')}"
    return [("train_loss ", "name"), (number(record.logged), "value"), (chain, "dim")]


def _eval_loss(record: events.EvalLoss) -> Line:
    cut = f" of {record.gathered:,} gathered" if record.gathered != record.kept else ""
    chain = f" = mean over {counted(record.kept, 'sample')}{cut}, {counted(len(record.losses), 'batch')} on this rank"
    return [(f"{printable(record.key)} ", "name"), (number(record.logged), "value"), (chain, "dim")]


def _file(record: events.File) -> Line:
    verb = {"write": "wrote ", "remove": "removed "}.get(record.action, printable(record.action) + " ")
    return [(verb, "name"), (printable(record.path), "file"), (f"  {size(record.size)}" if record.size else "", "dim")]


def _rng(record: events.Rng) -> Line:
    return [
        ("random states set from ", "name"),
        (printable(record.source), "file"),
        (f"  #{printable(record.digest)}", "dim"),
    ]


def _note(record: events.Note) -> Line:
    return [("note: " + printable(record.text), "note")]


def _raise(record: events.Raise) -> Line:
    message = f": {printable(record.message)}" if record.message else ""
    return [("left by ", "bad"), (printable(record.error) + message, "bad")]


def _trainer(record: events.TrainerBegin) -> Line:
    return [(f"Trainer number {record.trainer}", "name")]


def _focus(record: events.Focus) -> Line:
    return [(f"from here on Trainer number {record.trainer}", "note")]


_WRITERS: dict[type, Callable[[Any], Line]] = {
    events.Call: _call,
    events.Event: _event,
    events.Callback: _callback,
    events.Flag: _flag,
    events.State: _state,
    events.Samples: _samples,
    events.GradNorm: _grad_norm,
    events.OptimizerStep: _optimizer_step,
    events.SchedulerStep: _scheduler_step,
    events.Gather: _gather,
    events.Collective: _collective,
    events.Log: _log,
    events.Loss: _loss,
    events.TrainLoss: _train_loss,
    events.EvalLoss: _eval_loss,
    events.File: _file,
    events.Rng: _rng,
    events.Note: _note,
    events.Raise: _raise,
    events.TrainerBegin: _trainer,
    events.Focus: _focus,
}


# -- the top of a trace --------------------------------------------------------------------


def heading(head: events.Head) -> str:
    """Return what ran: `run_glue · transformers 4.31.0, accelerate 0.21.0 · rank 0 of 2`."""
    parts = [printable(head.scenario)] if head.scenario else []
    if head.versions:
        parts.append(", ".join(map(printable, versions(head))))
    parts.append(f"rank {head.rank} of {head.world_size}")
    return " · ".join(parts)


def versions(head: events.Head) -> list[str]:
    """Return "transformers 4.31.0" and so on, the libraries of the Trainer first. Not yet escaped."""
    order = ("transformers", "accelerate", "torch", "minitrainer")
    names = sorted(head.versions, key=lambda name: (order.index(name) if name in order else len(order), name))
    return [f"{name} {head.versions[name]}" for name in names]


def unhooked(head: events.Head) -> list[str]:
    """Return what could not be hooked, points with the same reason on one line."""
    points: dict[str, list[str]] = {}
    for point, reason in head.unhooked.items():
        points.setdefault(reason, []).append(printable(point))
    return [f"not hooked ({printable(reason)}): {', '.join(names)}" for reason, names in points.items()]


def trainer_lines(record: events.TrainerBegin) -> list[str]:
    """Return who is under observation: class, model, arguments that differ from their defaults, callbacks."""
    classes = " ← ".join(printable(name) for name in record.classes)
    lines = [f"Trainer {record.trainer}: {classes}"]
    if record.model:
        lines.append(f"model: {printable(record.model)} on {printable(record.device) or 'an unknown device'}")
    if record.arguments:
        lines.append("arguments: " + ", ".join(f"{printable(k)}={printable(v)}" for k, v in record.arguments.items()))
    if record.callbacks:
        lines.append("callbacks: " + ", ".join(printable(name) for name, _ in record.callbacks))
    return lines


# Read next: tree.py, which groups these lines into epochs, steps and micro-batches.
