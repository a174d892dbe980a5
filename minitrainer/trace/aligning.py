"""Finds which rows of two blocks belong together, and which only one of them has.

A row's *identity* is what it is about (the call of `log`, the event `on_step_end`, the flag `should_save` raised), not
what it says. Rows of equal identity are paired in order by the shortest edit script (Myers 1986): O((n + m) · d) for n
and m rows that differ in d. A block is one step or one evaluation batch, so d is small; and two blocks of known shapes
are never aligned a second time.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

from minitrainer.trace import events
from minitrainer.trace.events import Record

Identity = tuple[str, ...]

MOST_EDITS = 600
"""Beyond so many differing rows in one block the script's memory (d² numbers) would be felt: rows are then only
counted, and what both have counts as being where it was."""

# -- what a row is about ------------------------------------------------------------------

WEIGHT_FILES = {
    "pytorch_model.bin": "model.safetensors",
    "pytorch_model.bin.index.json": "model.safetensors.index.json",
    "adapter_model.bin": "adapter_model.safetensors",
}
"""Weight files of the old format to their names in the new one."""

CLOSERS = (events.Return, events.EventEnd, events.CallbackEnd)
OPENERS = (events.Call, events.Event, events.Callback)


def identity(record: Any) -> Identity:
    """What a row is about. Rows of equal identity can be compared field by field."""
    kind = type(record)
    if kind is events.Call:
        return ("call", record.method)
    if kind is events.Return:
        return ("return", record.method)
    if kind is events.Event:
        return ("event", record.event)
    if kind is events.EventEnd:
        return ("event_end", record.event)
    if kind is events.Callback:
        return ("callback", record.callback, record.event)
    if kind is events.CallbackEnd:
        return ("callback_end", record.callback)
    if kind is events.Flag:
        return ("flag", record.flag, "raised" if record.new else "lowered")
    if kind is events.State:
        return ("state", record.field)
    if kind is events.Samples:
        return ("samples", record.split)
    if kind is events.EvalLoss:
        return ("eval_loss", record.key)
    if kind is events.Gather:
        return ("gather", record.what)
    if kind is events.Collective:
        return ("collective", record.collective)
    if kind is events.Log:
        return ("log", log_name(record.logs))
    if kind is events.File:
        return ("file", record.action, general_path(record.path))
    if kind is events.Raise:
        return ("raise", record.scope, record.method)
    if kind is events.Rng:
        return ("rng", general_path(record.source))
    if kind is events.Note:
        return ("note", record.text)
    return (record.__struct_config__.tag,)


def log_name(logs: dict[str, Any]) -> str:
    """Which kind of log entry this is: "loss", "train_loss", or the prefix of its metrics ("eval")."""
    for name in ("loss", "train_loss"):
        if name in logs:
            return name
    return next((key.partition("_")[0] for key in logs if "_" in key and key not in _ALWAYS_LOGGED), "other")


_ALWAYS_LOGGED = frozenset({"learning_rate", "grad_norm", "total_flos", "num_input_tokens_seen"})


def general_path(path: str) -> str:
    """A path without what differs from step to step and between weight formats."""
    path = re.sub(r"(checkpoint|run|global_step)-?\d+", r"\1-*", path)
    folder, slash, name = path.rpartition("/")
    name = WEIGHT_FILES.get(name, name)
    name = re.sub(r"^pytorch_model-(\d+)-of-(\d+)\.bin$", r"model-\1-of-\2.safetensors", name)
    return folder + slash + name


# -- pairing ---------------------------------------------------------------------------------


class Alignment(NamedTuple):
    """Which rows of two blocks belong together.

    Attributes:
        pairs: positions (in A, in B) of rows with the same identity.
        removed: positions in A of rows that B does not have. Rows inside a call, event or callback that is removed as
            a whole are left out: they are counted in `inside`.
        added: the same for rows of B that A does not have.
        inside: ("A" or "B", position of the opening row) to the number of rows that went or came with it.
    """

    pairs: list[tuple[int, int]]
    removed: list[int]
    added: list[int]
    inside: dict[tuple[str, int], int]

    @property
    def differences(self) -> int:
        return len(self.removed) + len(self.added)


def align(rows_a: Sequence[Record], rows_b: Sequence[Record]) -> Alignment:
    """Pair the rows of two blocks."""
    names: dict[Identity, int] = {}
    tokens_a = [names.setdefault(identity(row), len(names)) for row in rows_a]
    tokens_b = [names.setdefault(identity(row), len(names)) for row in rows_b]
    pairs = _pairs(tokens_a, tokens_b)
    kept_a = {a for a, _ in pairs}
    kept_b = {b for _, b in pairs}
    inside: dict[tuple[str, int], int] = {}
    removed = _outermost("A", rows_a, [i for i in range(len(rows_a)) if i not in kept_a], inside)
    added = _outermost("B", rows_b, [i for i in range(len(rows_b)) if i not in kept_b], inside)
    return Alignment(pairs, removed, added, inside)


def _pairs(a: list[int], b: list[int]) -> list[tuple[int, int]]:
    begin = 0
    shortest = min(len(a), len(b))
    while begin < shortest and a[begin] == b[begin]:
        begin += 1
    end = 0
    while end < shortest - begin and a[-1 - end] == b[-1 - end]:
        end += 1
    middle = _myers(a[begin : len(a) - end], b[begin : len(b) - end])
    if middle is None:
        middle = _counted(a[begin : len(a) - end], b[begin : len(b) - end])
    return [
        *((i, i) for i in range(begin)),
        *((begin + i, begin + j) for i, j in middle),
        *((len(a) - i, len(b) - i) for i in range(end, 0, -1)),
    ]


def _myers(a: list[int], b: list[int]) -> list[tuple[int, int]] | None:
    """Pairs of the shortest edit script from `a` to `b`; None where it has more than `MOST_EDITS` edits."""
    if not a or not b:
        return []
    furthest = {1: 0}  # diagonal to the furthest position in `a` that so many edits reach
    history: list[dict[int, int]] = []
    for edits in range(min(len(a) + len(b), MOST_EDITS) + 1):
        history.append(dict(furthest))
        for diagonal in range(-edits, edits + 1, 2):
            down = diagonal == -edits or (
                diagonal != edits and furthest.get(diagonal - 1, -1) < furthest.get(diagonal + 1, -1)
            )
            x = furthest[diagonal + 1] if down else furthest[diagonal - 1] + 1
            y = x - diagonal
            while x < len(a) and y < len(b) and a[x] == b[y]:
                x += 1
                y += 1
            furthest[diagonal] = x
            if x >= len(a) and y >= len(b):
                return _trace_back(a, b, history)
    return None


def _trace_back(a: list[int], b: list[int], history: list[dict[int, int]]) -> list[tuple[int, int]]:
    pairs: list[tuple[int, int]] = []
    x, y = len(a), len(b)
    for edits in range(len(history) - 1, -1, -1):
        furthest = history[edits]
        diagonal = x - y
        down = diagonal == -edits or (
            diagonal != edits and furthest.get(diagonal - 1, -1) < furthest.get(diagonal + 1, -1)
        )
        before = diagonal + 1 if down else diagonal - 1
        before_x = furthest.get(before, 0) if edits else 0
        before_y = before_x - before if edits else 0
        while x > before_x and y > before_y and x > 0 and y > 0 and a[x - 1] == b[y - 1]:
            x -= 1
            y -= 1
            pairs.append((x, y))
        x, y = before_x, before_y
    pairs.reverse()
    return pairs


def _counted(a: list[int], b: list[int]) -> list[tuple[int, int]]:
    """Pair the n-th row of an identity with the n-th of the other side, wherever it stands."""
    places: dict[tuple[int, int], int] = {}
    seen: Counter[int] = Counter()
    for j, token in enumerate(b):
        places[token, seen[token]] = j
        seen[token] += 1
    seen.clear()
    pairs = []
    for i, token in enumerate(a):
        place = places.get((token, seen[token]))
        seen[token] += 1
        if place is not None:
            pairs.append((i, place))
    return pairs


def _outermost(side: str, rows: Sequence[Record], alone: list[int], inside: dict[tuple[str, int], int]) -> list[int]:
    """Of the rows that only one side has, those that are not inside another of them."""
    alone_set = set(alone)
    outermost: list[int] = []
    open_rows: list[int] = []  # positions of what is open, outermost first
    for i, row in enumerate(rows):
        kind = type(row)
        opener = open_rows.pop() if kind in CLOSERS and open_rows else None
        if kind is events.Raise and open_rows:
            open_rows.pop()
        if i in alone_set:
            around = [*open_rows, *([opener] if opener is not None else [])]
            owner = next((position for position in around if position in alone_set), None)
            if owner is None:
                outermost.append(i)
            else:
                inside[side, owner] = inside.get((side, owner), 0) + 1
        if kind in OPENERS:
            open_rows.append(i)
    return outermost


# Read next: findings.py, which says what differs between two rows that belong together.
