"""Makes a tree of one rank's rows: calls, and among them epochs, steps, micro-batches and evaluation batches.

Calls, events and callbacks nest by themselves. Epochs, steps and micro-batches have no rows of their own: they are cut
out of the sequence here, by the events and calls that bound them. Neighbours of one shape are folded while the rows
come in, so the tree of a long run is small; two steps have one shape if they have the same rows apart from measured
values (losses, rates, digests, sizes, the numbers of step and epoch).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import msgspec

from minitrainer.trace import events, lossmath

ONLY: dict[str, tuple[type[events.Record], ...]] = {
    "callbacks": (events.Event, events.Callback),
    "flags": (events.Flag,),
    "loss": (events.Loss, events.TrainLoss, events.EvalLoss, events.Log),
    "calls": (events.Call,),
    "files": (events.File, events.Rng),
    "collectives": (events.Collective,),
}
"""What `--only` can ask for, and the records that it leaves. `ALWAYS` stays in any case."""

ALWAYS = (events.Note, events.Raise, events.TrainerBegin, events.Focus)

MOST_SHAPES = 100
"""Unlike steps that are shown in full. Nobody reads more, and each holds its rows in memory."""

LONGEST_CYCLE = 12
"""Runs of alike steps that can make up a pattern that repeats (a log every 5 steps makes patterns of two runs)."""

COUNTING = frozenset({"floating_point_ops", "_track_num_input_tokens"})
"""Methods that count what a micro-batch cost, after its `training_step` and before its `on_substep_end`."""

FOLDED = frozenset({"epoch", "step", "micro-batch", "batch"})
"""Nodes without rows of their own."""


class Explained:
    """A loss record together with its derivation."""

    __slots__ = ("record", "derivation")

    def __init__(self, record: events.Record, derivation: lossmath.Derivation):
        self.record = record
        self.derivation = derivation


class Node:
    """A part of the run with parts of its own.

    Attributes:
        kind: "epoch", "step", "micro-batch", "batch" (of an evaluation), "call", "event", "callback" or "root".
        record: the row that opened it; None for the first four.
        children: nodes, records and explained losses, in order.
        number: of the epoch, step, …; `last_number` is that of the last one folded into this node.
        count: how many neighbours of one shape this node stands for.
        second_number, second_loss: number and first logged loss of the first one folded into it.
        own_last_loss, own_us: `last_loss` and `took_us` of the node itself, where others are folded into it.
        like: number of the earlier node of this shape that is shown in full; `children` is then empty.
        is_complete: False for a step that never came to its `on_step_end`.
        is_done: of a step: it has begun; of a micro-batch or batch: its main call returned; of an epoch: it had its
            `on_epoch_end`.
        is_open: the trace stops inside it.
        is_cut: left without children because too many shapes are shown already.
        began_us: time at its start, None where the trace holds no times.
        took_us: its duration, or the sum over those folded into it.
        first_loss, last_loss: losses logged in it.
    """

    __slots__ = (
        "kind", "record", "children", "signatures", "signature", "number", "last_number", "second_number", "count",
        "like", "is_complete", "is_done", "is_open", "is_cut", "is_wanted", "began_us", "took_us",
        "first_loss", "second_loss", "last_loss", "own_last_loss", "own_us",
    )  # fmt: skip

    def __init__(self, kind: str, record: Any, signature: Any, is_wanted: bool, at: int | None, number: int = 0):
        self.kind = kind
        self.record = record
        self.children: list[Any] = []
        self.signatures: list[Any] = []
        self.signature = signature
        self.number = self.last_number = self.second_number = number
        self.count = 1
        self.like: int | None = None
        self.is_complete = self.is_done = self.is_open = self.is_cut = False
        self.is_wanted = is_wanted
        self.began_us = at
        self.took_us: int | None = None
        self.first_loss: Any = None
        self.second_loss: Any = None
        self.own_last_loss: Any = None
        self.own_us: int | None = None
        self.last_loss: Any = None


class TreeBuilder:
    """Takes records one by one and holds the folded tree.

    Args:
        only: names from `ONLY`; empty for everything.
        steps: first and last step to keep; None for all.
        rank, world_size: from the file's header, for the derivations of losses.
    """

    def __init__(
        self,
        only: Iterable[str] = (),
        steps: tuple[int, int] | None = None,
        rank: int = 0,
        world_size: int = 1,
    ):
        names = list(only)
        self.kept = frozenset(ALWAYS).union(*(ONLY[name] for name in names)) if names else None
        self.steps = steps
        self.rank = rank
        self.world_size = world_size
        self.root = Node("root", None, "root", True, None)
        self.stack = [self.root]
        self.ledger = lossmath.LossLedger()
        self.shapes: dict[tuple[str, Any], int] = {}
        self.shapes_shown = 0
        self.epoch = 0
        self.step = 0
        self.is_in_range = steps is None
        self.told: tuple[str, str] | None = None
        self._handlers: dict[type, Callable[[Any], None]] = {
            events.Call: self._call,
            events.Return: self._return,
            events.Event: self._event,
            events.EventEnd: self._event_end,
            events.Callback: self._callback,
            events.CallbackEnd: self._callback_end,
            events.Raise: self._raise,
            events.Samples: self._samples,
            events.GradNorm: self._after_micro_batches,
            events.OptimizerStep: self._after_micro_batches,
            events.SchedulerStep: self._after_micro_batches,
            events.State: self._state,
            events.Flag: self._leaf,
            events.Loss: self._loss,
            events.TrainLoss: self._train_loss,
            events.EvalLoss: self._loss,
            events.Log: self._log,
        }

    def add(self, record: events.Record) -> None:
        """Take the next record."""
        kind = type(record)
        if kind is events.Head or kind is events.End:
            return
        if kind is not events.Raise:
            self.told = None
        handler = self._handlers.get(kind)
        if handler is None:
            self._leaf(record)
        else:
            handler(record)

    def finish(self) -> Node:
        """Close what is still open, mark it, and return the tree."""
        while len(self.stack) > 1:
            node = self.stack[-1]
            # An epoch or step that nothing closes is simply over when its call is; a call is not.
            node.is_open = True
            node.signature = (node.signature, "open")
            self._close(None)
        return self.root

    # -- rows ---------------------------------------------------------------------

    def _leaf(self, record: Any) -> None:
        kept = self.kept
        if (kept is None or type(record) in kept) and (self.is_in_range or type(record) in ALWAYS):
            top = self.stack[-1]
            top.children.append(record)
            top.signatures.append(_signature(record))

    def _call(self, record: events.Call) -> None:
        self.ledger.see(record)
        method = record.method
        top = self.stack[-1]
        if method == "training_step":
            if top.kind in FOLDED:
                self._begin_micro_batch(record.at)
        elif method == "prediction_step":
            self._begin_batch(record.at, is_call=True)
        elif top.kind == "micro-batch" and top.is_done and method not in COUNTING:
            self._close("micro-batch", record.at)
        if method == "get_batch_samples":
            self._begin_group(record.at)
        if self.stack[-1].kind == "epoch" and self.stack[-1].is_done and method != "_maybe_log_save_evaluate":
            self._close("epoch", record.at)
        self._open("call", record, ("call", method, record.cls, record.part))

    def _return(self, record: events.Return) -> None:
        self.ledger.see(record)
        node = self._close("call", record.at)
        if node is not None:
            top = self.stack[-1]
            method = node.record.method
            if (top.kind == "micro-batch" and method == "training_step") or (
                top.kind == "batch" and method == "prediction_step"
            ):
                top.is_done = True

    def _event(self, record: events.Event) -> None:
        self.ledger.see(record)
        name = record.event
        self.step = record.step
        if self.stack[-1].kind == "micro-batch" and name != "on_substep_end":
            self._close("micro-batch", record.at)
        top = self.stack[-1]
        if name == "on_step_begin":
            # A group that straddles two epochs begins twice; it is one step.
            if top.kind != "step" or top.is_complete:
                self._close("step", record.at)
                self._begin_step(record.at)
            self.stack[-1].is_done = True
        elif name == "on_epoch_begin":
            self._close("step", record.at)
            self._close("epoch", record.at)
            self.epoch = self.epoch + 1 if self.epoch else int(record.epoch or 0) + 1
            self._open("epoch", None, ("epoch",), record.at, self.epoch)
        elif name == "on_epoch_end":
            self._close("step", record.at)
        elif name in ("on_train_begin", "on_train_end"):
            self._close("step", record.at)
            self._close("epoch", record.at)
            if name == "on_train_begin":
                self.epoch = 0
                self.shapes.clear()  # "like step 8" means step 8 of the same training
        self._open("event", record, ("event", name, tuple(record.lowered), tuple(record.raised)))

    def _event_end(self, record: events.EventEnd) -> None:
        node = self._close("event", record.at)
        if node is None:
            return
        top, name = self.stack[-1], node.record.event
        if top.kind == "step" and name == "on_step_end":
            top.is_complete = True
        elif top.kind == "epoch" and name == "on_epoch_end":
            top.is_done = True
        elif top.kind == "batch" and name == "on_prediction_step":
            self._close("batch", record.at)

    def _callback(self, record: events.Callback) -> None:
        self._open("callback", record, ("callback", record.callback))

    def _callback_end(self, record: events.CallbackEnd) -> None:
        node = self._close("callback", record.at)
        if node is not None and record.replaced and node.is_wanted:
            note = events.Note(text=f"{record.callback} returned another control object than it was given")
            node.children.append(note)

    def _raise(self, record: events.Raise) -> None:
        self.ledger.see(record)
        # An exception passes through many scopes: its message is told in the innermost one.
        told = (record.error, record.message)
        self._leaf(msgspec.structs.replace(record, message="") if told == self.told else record)
        self.told = told
        self._close(record.scope if record.scope in ("call", "event", "callback") else "call", record.at)

    def _samples(self, record: events.Samples) -> None:
        top = self.stack[-1]
        if record.split == "train":
            if top.kind in FOLDED:
                self._begin_micro_batch(record.at)
        else:
            self._begin_batch(record.at, is_call=False)
        self._leaf(record)

    def _after_micro_batches(self, record: events.Record) -> None:
        if self.stack[-1].kind == "micro-batch":
            self._close("micro-batch", record.at)
        self._leaf(record)

    def _state(self, record: events.State) -> None:
        self.ledger.see(record)
        if self.stack[-1].kind == "micro-batch" and self.stack[-1].is_done:
            self._close("micro-batch", record.at)
        self._leaf(record)

    def _loss(self, record: events.Loss | events.EvalLoss | events.TrainLoss) -> None:
        found = self.ledger.see(record)
        if found is None or (self.kept is not None and type(record) not in self.kept) or not self.is_in_range:
            return
        # With one file of several ranks the derivation stops at this rank's share; `verify` joins the files.
        explained = Explained(record, lossmath.derive(found, self.rank, self.world_size))
        top = self.stack[-1]
        top.children.append(explained)
        top.signatures.append((_signature(record), explained.derivation.follows))

    def _train_loss(self, record: events.TrainLoss) -> None:
        if self.stack[-1].kind in FOLDED:
            self._close("step", record.at)
            self._close("epoch", record.at)
        self._loss(record)

    def _log(self, record: events.Log) -> None:
        self.ledger.see(record)
        if "loss" in record.logs and self.is_in_range:
            loss = record.logs["loss"]
            for node in self.stack:
                if node.kind in FOLDED:
                    node.first_loss = loss if node.first_loss is None else node.first_loss
                    node.last_loss = loss
        self._leaf(record)

    # -- epochs, steps, micro-batches -------------------------------------------------

    def _begin_group(self, at: int | None) -> None:
        """Versions from 4.46 on fetch the micro-batches of a whole group before its `on_step_begin`."""
        if self.stack[-1].kind == "step" and self.stack[-1].is_complete:
            self._close("step", at)
        top = self.stack[-1]
        if top.kind == "epoch" or (top.kind == "call" and top.record.method == "_run_epoch"):
            self._begin_step(at)

    def _begin_step(self, at: int | None) -> None:
        number = self.step + 1
        if self.steps is not None:
            self.is_in_range = self.steps[0] <= number <= self.steps[1]
        self._open("step", None, ("step",), at, number)

    def _begin_micro_batch(self, at: int | None) -> None:
        top = self.stack[-1]
        if top.kind == "micro-batch":
            if not top.is_done:
                return  # `Samples` has opened it, and this is its `training_step`
            self._close("micro-batch", at)
            top = self.stack[-1]
        if top.kind == "step" and top.is_complete:
            self._close("step", at)
            top = self.stack[-1]
        if top.kind != "step":
            self._begin_step(at)
            top = self.stack[-1]
        top.is_done = True
        done = sum(child.count for child in top.children if isinstance(child, Node) and child.kind == "micro-batch")
        self._open("micro-batch", None, ("micro-batch",), at, done + 1)

    def _begin_batch(self, at: int | None, is_call: bool) -> None:
        top = self.stack[-1]
        if top.kind == "batch":
            if is_call and not top.is_done:
                return
            self._close("batch", at)
            top = self.stack[-1]
        # An override that calls `super().prediction_step` is still in the same batch.
        if top.kind == "call" and top.record.method == "prediction_step":
            return
        last = top.children[-1] if top.children else None
        number = last.last_number + 1 if isinstance(last, Node) and last.kind == "batch" else 1
        self._open("batch", None, ("batch",), at, number)

    # -- opening and closing --------------------------------------------------------------

    def _open(self, kind: str, record: Any, signature: Any, at: int | None = None, number: int = 0) -> None:
        if record is not None:
            wanted = (self.kept is None or type(record) in self.kept) and self.is_in_range
            at = record.at
        else:
            wanted = True
        self.stack.append(Node(kind, record, signature, wanted, at, number))

    def _close(self, kind: str | None, at: int | None = None) -> Node | None:
        """Close the innermost node of `kind` and what is open inside it; with None, the innermost of any kind.

        A folded kind is looked for above the innermost call only: the step of a training around this one is not ours.
        """
        stack = self.stack
        depth = len(stack) - 1
        if kind is not None:
            looked_for_is_folded = kind in FOLDED
            while depth and stack[depth].kind != kind:
                if looked_for_is_folded and stack[depth].kind not in FOLDED:
                    return None
                depth -= 1
        if not depth:
            return None
        node = stack[depth]
        while len(stack) > depth:
            closed = stack.pop()
            if at is not None and closed.began_us is not None:
                closed.took_us = at - closed.began_us
            self._attach(closed)
        return node

    def _attach(self, node: Node) -> None:
        """Hang a closed node into its parent, folded with its left neighbour where they are alike."""
        parent = self.stack[-1]
        if node.kind in FOLDED:
            if node.kind == "step" and self.steps is not None:
                in_range = self.is_in_range
                self.is_in_range = False
                if not in_range:
                    return
            if not node.children:
                return  # nothing of it is wanted
            if node.kind == "step" and not node.is_done:
                # A group was fetched, and the data were at their end: no step at all.
                parent.children += node.children
                parent.signatures += node.signatures
                return
        elif not node.is_wanted:
            parent.children += node.children
            parent.signatures += node.signatures
            return
        signature = hash((node.signature, node.is_complete, tuple(node.signatures)))
        node.signature = signature
        node.signatures = []
        if parent.children and self._fold(parent, node, signature):
            return
        if node.kind == "step" and self.steps is None and not node.is_open:
            self._compare_with_shapes(node, signature)
        parent.children.append(node)
        parent.signatures.append(signature)

    def _fold(self, parent: Node, node: Node, signature: int) -> bool:
        last = parent.children[-1]
        if not isinstance(last, Node) or last.kind != node.kind or last.signature != signature or node.is_open:
            return False
        if node.kind in ("step", "epoch") and self.steps is not None:
            return False  # who asks for some steps wants to see them
        last.count += 1
        last.last_number = node.number
        if last.count == 2 and last.like is None:
            # The first one is shown by itself: what follows is told of the others alone.
            last.second_number, last.second_loss = node.number, node.first_loss
            last.own_last_loss, last.own_us = last.last_loss, last.took_us
            last.took_us = 0 if last.took_us is not None else None
        last.last_loss = node.last_loss if node.last_loss is not None else last.last_loss
        if last.took_us is not None and node.took_us is not None:
            last.took_us += node.took_us
        parent.signatures[-1] = (signature, last.count)
        return True

    def _compare_with_shapes(self, node: Node, signature: int) -> None:
        shape = (node.kind, signature)
        if shape in self.shapes:
            node.like = self.shapes[shape]
            node.children = []
        elif self.shapes_shown >= MOST_SHAPES:
            node.is_cut = True
            node.children = []
        else:
            self.shapes[shape] = node.number
            self.shapes_shown += 1


def _signature(record: Any) -> Any:
    """What makes a row unlike another one: its kind and names, not its measured values."""
    kind = type(record)
    if kind is events.Flag:
        return ("flag", record.flag, record.new, record.by, record.line, record.how)
    if kind is events.State:
        return ("state", record.field, record.by, record.line)
    if kind is events.Samples:
        return ("samples", record.rows, record.split)
    if kind is events.Log:
        return ("log", *record.logs)
    if kind is events.GradNorm:
        return ("grad_norm",)
    if kind is events.OptimizerStep:
        return ("optimizer_step", record.skipped)
    if kind is events.Gather:
        return ("gather", record.what, record.rows, record.kept)
    if kind is events.Collective:
        return ("collective", record.collective, record.elements, record.part, record.by)
    if kind is events.Raise:
        return ("raise", record.error, record.scope)
    if kind is events.EvalLoss:
        return ("eval_loss", record.key, record.kept)
    if kind is events.Loss:
        return ("loss", record.steps, len(record.filtered))
    if kind is events.File:
        return ("file", record.action)
    if kind is events.Note:
        return ("note", record.text)
    return (kind.__name__,)


# -- patterns that repeat --------------------------------------------------------------------


class Cycle:
    """Steps `first` to `last` that repeat the pattern of steps `like_first` to `like_last`, `times` times."""

    __slots__ = ("first", "last", "like_first", "like_last", "times", "first_loss", "last_loss", "steps")

    def __init__(self, runs: list[Node], pattern: list[Node], times: int):
        self.first, self.last = runs[0].number, runs[-1].last_number
        self.like_first, self.like_last = pattern[0].number, pattern[-1].last_number
        self.times = times
        self.steps = sum(run.count for run in runs)
        losses = [run.first_loss for run in runs if run.first_loss is not None]
        self.first_loss = losses[0] if losses else None
        losses = [run.last_loss for run in runs if run.last_loss is not None]
        self.last_loss = losses[-1] if losses else None


def with_cycles(children: list[Any]) -> Iterator[Any]:
    """Hand out children, runs of steps that repeat a pattern drawn together."""
    i = 0
    while i < len(children):
        cycle, length = _cycle_at(children, i)
        if cycle is not None:
            yield cycle
            i += length
        else:
            yield children[i]
            i += 1


def _cycle_at(children: list[Any], i: int) -> tuple[Cycle | None, int]:
    if not _is_repeat(children[i]):
        return None, 0
    for period in range(2, min(LONGEST_CYCLE, i) + 1):
        length = 0
        while i + length < len(children) and _repeats(children, i + length, period):
            length += 1
        whole = length // period * period
        if whole:
            return Cycle(children[i : i + whole], children[i - period : i], whole // period), whole
    return None, 0


def _is_repeat(child: Any) -> bool:
    return isinstance(child, Node) and child.kind == "step" and child.like is not None


def _repeats(children: list[Any], i: int, period: int) -> bool:
    here, before = children[i], children[i - period]
    return (
        _is_repeat(here)
        and isinstance(before, Node)
        and before.kind == "step"
        and here.signature == before.signature
        and here.count == before.count
    )


# Read next: terminal.py, which prints the tree.
