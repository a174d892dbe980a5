"""Drawings made from the rows of a trace: the life of a flag, the walk, the loss from sample to log line.

Nothing is placed by hand: a picture is laid out from what was recorded, so it can't show what did not happen. Colours
and fonts come from the page (`chapters/assets/book.css`), so a picture reads in the light and in the dark.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from minitrainer.trace import events
from minitrainer.trace.ranks import joined_losses
from minitrainer.trace.render import words
from minitrainer.trace.render.escape import html
from minitrainer.trace.render.terminal import PLURALS
from minitrainer.trace.render.tree import Explained, Node, TreeBuilder
from minitrainer.trace.render.words import counted, exact, number

from .errors import BookError
from .pages import ROOT
from .tables import FLAG_SHAPES, Ids, recorded, slug

LINE = 20
"""Height of a line of text."""

SMALL = 6.6
"""Width of a character of 11 pixels; a box is made to hold its text."""


KINDS = "flag-life|walk|loss|learning-curve"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BookError(f"{message}; a picture block reads: {KINDS} traces/NAME [--step N]")


def picture_html(asked: Sequence[str], ids: Ids | None = None, root: Path = ROOT) -> str:
    """Return the SVG of a `picture` block, in a figure.

    Raises:
        BookError: there is no such picture, or the trace holds nothing to draw.
    """
    parser = _Parser(prog="", add_help=False)
    parser.add_argument("what", choices=KINDS.split("|"))
    parser.add_argument("path")
    parser.add_argument("--step", type=int)
    options = parser.parse_args(list(asked))
    ids = ids or Ids()
    if options.what == "learning-curve":
        return _learning_curve(options.path, ids, root)
    draw = {"flag-life": _flag_life, "walk": _walk, "loss": _loss}[options.what]
    drawing = draw(options.path, options.step, root)
    name = ids.take(f"picture-{options.what}-{slug(options.path)}")
    return (
        f'<figure class="picture" id="{name}" data-trace="{html(options.path)}" data-search-exclude>'
        f"{drawing.svg(name)}<figcaption>{html(drawing.title)} <span>drawn from {html(options.path)}</span></figcaption>"
        f"</figure>"
    )


def _learning_curve(path: str, ids: Ids, root: Path) -> str:
    from . import learning_curve

    try:
        drawing = learning_curve.svg(root / path)
    except ValueError as error:
        raise BookError(f"a picture of {path} can't be drawn: {error}") from error
    name = ids.take(f"picture-learning-curve-{slug(path)}")
    return (
        f'<figure class="picture" id="{name}" data-trace="{html(path)}" data-search-exclude>'
        f"{drawing}<figcaption>loss and accuracy over the epochs <span>drawn from {html(path)}</span></figcaption>"
        f"</figure>"
    )


@dataclass
class Drawing:
    """An SVG being made: shapes in order, and the size that holds them."""

    title: str
    description: str
    width: float = 0
    height: float = 0
    shapes: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, text: str, style: str = "", anchor: str = "") -> None:
        at = f' text-anchor="{anchor}"' if anchor else ""
        self.shapes.append(f'<text x="{x:g}" y="{y:g}" class="{style}"{at}>{html(text)}</text>')
        if not anchor:
            self.reach(x + len(text) * SMALL, y + 6)

    def rect(self, x: float, y: float, width: float, height: float, style: str) -> None:
        self.shapes.append(f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="4" class="{style}"/>')
        self.reach(x + width + 1, y + height + 1)

    def line(self, x1: float, y1: float, x2: float, y2: float, style: str, arrow: bool = False) -> None:
        self.shapes.append(f'<path d="M{x1:g} {y1:g}L{x2:g} {y2:g}" class="{style}"/>')
        if arrow:
            self.shapes.append(
                f'<path d="M{x2 - 4:g} {y2 - 7:g}L{x2:g} {y2:g}L{x2 + 4:g} {y2 - 7:g}" class="{style}"/>'
            )
        self.reach(max(x1, x2), max(y1, y2))

    def reach(self, x: float, y: float) -> None:
        self.width, self.height = max(self.width, x), max(self.height, y)

    def svg(self, name: str) -> str:
        width, height = self.width + 4, self.height + 4
        return (
            f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img" '
            f'aria-labelledby="{name}-title {name}-desc"><title id="{name}-title">{html(self.title)}</title>'
            f'<desc id="{name}-desc">{html(self.description)}</desc>{"".join(self.shapes)}</svg>'
        )


# -- the life of a flag --------------------------------------------------------------------------------


@dataclass
class _Moment:
    """A line of the picture: an event, or a change of a flag."""

    text: str
    flag: str = ""
    is_up: bool = False
    author: str = ""
    depth: int = 0


def _flag_life(path: str, step: int | None, root: Path) -> Drawing:
    """Lanes down the left, one for each flag; a bar where it is raised; beside it what happened, in order."""
    records = list(recorded(path, root).first)
    by_step: dict[int, list[_Moment]] = {}
    now, depth = 0, 0
    for record in records:
        kind = type(record)
        if kind is events.Event:
            if record.event == "on_step_begin":  # type: ignore[attr-defined]
                now = record.step + 1  # type: ignore[attr-defined]
            name = record.event  # type: ignore[attr-defined]
            by_step.setdefault(now, []).append(_Moment(name, depth=depth))
            for flag in record.lowered:  # type: ignore[attr-defined]
                before = [one for one in by_step[now] if one.flag == flag]
                if before and before[-1].is_up:  # else a row before the event has told it already
                    handler = "the handler, before it calls any callback"
                    by_step[now].append(_Moment(f"{flag} lowered", flag, False, handler, depth + 1))
            depth += 1
        elif kind is events.EventEnd:
            depth -= 1
        elif kind is events.Flag and record.old != record.new:  # type: ignore[attr-defined]
            verb = "raised" if record.new else "lowered"  # type: ignore[attr-defined]
            flag = record.flag  # type: ignore[attr-defined]
            moment = _Moment(f"{flag} {verb}", flag, bool(record.new), words.printable(record.by), depth)  # type: ignore[attr-defined]
            by_step.setdefault(now, []).append(moment)
    raised = {n: {one.flag for one in moments if one.flag and one.is_up} for n, moments in by_step.items()}
    chosen = step if step is not None else max(raised, key=lambda n: (len(raised[n]), -n))
    moments = by_step.get(chosen, [])
    flags = [flag for flag in FLAG_SHAPES if flag in {one.flag for one in moments}]
    if not flags:
        raise BookError(f"{path}: no flag changes in step {chosen}")
    changes = "; ".join(f"{one.text} by {one.author}" for one in moments if one.flag)
    drawing = Drawing(f"The life of the flags in step {chosen}", f"In order: {changes}.")
    left = 14 + 22 * len(flags)
    y = 8.0
    up: dict[str, float] = {}
    for moment in moments:
        y += LINE
        x = left + 10 * moment.depth
        if not moment.flag:
            drawing.text(x, y, moment.text, "p-event")
            drawing.line(4, y - 4, left - 8, y - 4, "p-grid")
            continue
        lane = 12 + 22 * flags.index(moment.flag)
        style = moment.flag.removeprefix("should_").replace("_", "-")
        if moment.is_up:
            up[moment.flag] = y - 4
        elif moment.flag in up:
            drawing.rect(lane - 4, up[moment.flag], 8, y - 4 - up.pop(moment.flag), f"p-bar f-{style}")
        drawing.text(lane, y + 1, FLAG_SHAPES[moment.flag], f"p-mark f-{style}", "middle")
        drawing.text(x, y, moment.text, "p-flag")
        y += LINE * 0.75
        drawing.text(x, y, f"by {moment.author}", "p-dim")
    for flag, since in up.items():
        lane = 12 + 22 * flags.index(flag)
        style = flag.removeprefix("should_").replace("_", "-")
        drawing.rect(lane - 4, since, 8, y + 10 - since, f"p-bar f-{style}")
    return drawing


# -- the walk ----------------------------------------------------------------------------------------------


@dataclass
class _Stop:
    """A place on the walk: everything of one name under one parent, taken together."""

    label: str
    kind: str
    count: int = 0
    below: dict[str, _Stop] = field(default_factory=dict)


SKIPPED = frozenset({"is_local_process_zero", "is_world_process_zero", "num_examples"})
"""Methods that only answer a question: they would fill the picture."""


def _walk(path: str, step: int | None, root: Path) -> Drawing:
    """Boxes within boxes: what is called within what, in the order of its first time; how often, beside it."""
    run = recorded(path, root)
    builder = TreeBuilder(("calls", "callbacks"), None, run.first.head.rank, run.world_size)
    for record in run.first:
        builder.add(record)
    tree = builder.finish()
    start = next((child for child in tree.children if _label(child) == "train"), None)
    if start is None:
        raise BookError(f"{path}: nothing was trained here")
    top = _Stop("train", "call", 1)
    _merge(top, [_unfolded(path, root)])
    drawing = Drawing("The walk of train", "")
    names: list[str] = []
    _draw_stop(drawing, top, 2, 2, 420, names)
    drawing.description = "In order, indented by what calls what: " + ", ".join(names) + "."
    return drawing


def _unfolded(path: str, root: Path) -> Node:
    from .tables import _Rows

    run = recorded(path, root)
    builder = _Rows(run, run.first.head.rank, ("calls", "callbacks"), None)
    for n, record in enumerate(run.first, start=1):
        builder.take(record, n)
    return next(child for child in builder.finish().children if _label(child) == "train")


def _label(child: Any) -> str:
    if isinstance(child, Node):
        if child.kind in PLURALS:
            return child.kind
        if child.kind == "call":
            return str(child.record.method)
        if child.kind == "event":
            return str(child.record.event)
    return ""


def _merge(stop: _Stop, nodes: Sequence[Node]) -> None:
    """Put the children of several nodes of one name into one, each new name after the one it followed."""
    for node in nodes:
        previous = ""
        groups: dict[str, list[Node]] = {}
        for child in node.children:
            if isinstance(child, Explained) or not (label := _label(child)) or label in SKIPPED:
                continue
            if label not in stop.below:
                _insert(stop, label, child.kind, previous)
            stop.below[label].count += 1
            groups.setdefault(label, []).append(child)
            previous = label
        for label, members in groups.items():
            _merge(stop.below[label], members)


def _insert(stop: _Stop, label: str, kind: str, after: str) -> None:
    items = list(stop.below.items())
    position = next((i + 1 for i, (name, _) in enumerate(items) if name == after), 0 if not after else len(items))
    items.insert(position, (label, _Stop(label, kind)))
    stop.below = dict(items)


def _draw_stop(drawing: Drawing, stop: _Stop, x: float, y: float, width: float, names: list[str]) -> float:
    """Draw one stop at a place; return the height it took."""
    times = f"  × {stop.count}" if stop.count > 1 else ""
    names.append(stop.label + (f" {stop.count} times" if times else ""))
    style = "p-event" if stop.kind == "event" else "p-part" if stop.kind in PLURALS else "p-call"
    if not stop.below:
        drawing.text(x + 8, y + 12, stop.label + times, style)
        return LINE - 2
    position = len(drawing.shapes)
    drawing.text(x + 8, y + 15, stop.label + times, style)
    height = LINE + 1.0
    for child in stop.below.values():
        height += 2 if child.below else 0
        height += _draw_stop(drawing, child, x + 12, y + height, width - 18, names)
    height += 4
    box = f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="5" class="p-box b-{html(stop.kind)}"/>'
    drawing.shapes.insert(position, box)
    drawing.reach(x + width, y + height)
    return height + 4


# -- the loss ------------------------------------------------------------------------------------------------

MOST_BOXES = 4
"""Micro-batches of a rank that are drawn; of more the middle is left out."""


def _loss(path: str, step: int | None, root: Path) -> Drawing:
    """From the samples of each micro-batch down to the number in the log, one column a rank."""
    run = recorded(path, root)
    found: dict[int, dict[int, events.Loss]] = {}
    for joined in joined_losses(run):
        logged = {rank: one.record for rank, one in joined.items() if isinstance(one.record, events.Loss)}
        if logged:
            found[next(iter(logged.values())).step] = logged
    if not found:
        raise BookError(f"{path}: no training loss was logged")
    # The first log with more micro-batches than most shows more of the way.
    most = {n: min(len(next(iter(logged.values())).micro), MOST_BOXES) for n, logged in found.items()}
    chosen = step if step is not None else max(found, key=lambda n: (most[n], -n))
    if chosen not in found:
        there = ", ".join(map(str, found))
        raise BookError(f"{path}: no training loss was logged at step {chosen}; there are logs at {there}")
    ranks = found[chosen]
    one = next(iter(ranks.values()))
    drawing = Drawing(f"The loss logged at step {chosen}, from the samples to the log line", "")
    said: list[str] = []
    box, gap = 116.0, 8.0
    widest = max(min(len(record.micro), MOST_BOXES) for record in ranks.values())
    column = max(widest * (box + gap), 180.0)
    centers = []
    bottom = 0.0
    for n, (rank, record) in enumerate(ranks.items()):
        x0 = 2 + n * (column + 16)
        center = x0 + column / 2
        centers.append(center)
        if len(ranks) > 1:
            drawing.text(center, 14, f"rank {rank}", "p-part", "middle")
        shown = _shown(len(record.micro))
        left = center - len(shown) * (box + gap) / 2 + gap / 2
        for k, i in enumerate(shown):
            x = left + k * (box + gap)
            if i is None:
                drawing.text(x + box / 2, 58, f"… {len(record.micro) - MOST_BOXES + 1} more", "p-dim", "middle")
                continue
            rows = record.rows[i] if i < len(record.rows) and record.rows[i] is not None else "?"
            drawing.rect(x, 24, box, 62, "p-box b-micro")
            drawing.text(x + box / 2, 40, f"micro-batch {i + 1}", "p-small", "middle")
            drawing.text(x + box / 2, 57, f"loss {number(record.losses[i])}", "p-value", "middle")
            drawing.text(x + box / 2, 75, f"mean of {rows} sample{'s' if rows != 1 else ''}", "p-small", "middle")
            drawing.line(x + box / 2, 87, center, 122, "p-arrow")
        divisors = sorted({str(by) for by in record.divided_by if by is not None and by != 1})
        how = f"each ÷ {' or '.join(divisors)} (group)" if divisors else "added up"
        drawing.text(center + 12, 112, how, "p-small")
        drawing.rect(center - 84, 123, 168, 40, "p-box b-sum")
        drawing.text(center, 139, "sum on this rank, tr_loss", "p-small", "middle")
        drawing.text(center, 156, exact(record.rank_sum), "p-value", "middle")
        said.append(f"rank {rank}: {counted(len(record.micro), 'micro-batch')}, sum {exact(record.rank_sum)}")
        bottom = 163
    middle = sum(centers) / len(centers)
    drawing.reach(max(centers) + max(column / 2, 110), bottom)
    for center in centers:
        drawing.line(center, bottom, middle, bottom + 34, "p-arrow", arrow=len(centers) == 1)
    y = bottom + 34
    steps = [
        *([(f"mean of {counted(len(ranks), 'rank')}, gathered", exact(one.mean))] if len(one.gathered) > 1 else []),
        (f"÷ {counted(one.steps, 'step')} since the last log", exact(one.quotient)),
        ("rounded to 4 places: what the log says", exact(one.logged)),
    ]
    for k, (what, value) in enumerate(steps):
        last = k == len(steps) - 1
        drawing.rect(middle - 130, y, 260, 40, "p-box b-last" if last else "p-box b-sum")
        drawing.text(middle, y + 16, what, "p-small", "middle")
        drawing.text(middle, y + 33, value, "p-value", "middle")
        said.append(f"{what}: {value}")
        if not last:
            drawing.line(middle, y + 40, middle, y + 58, "p-arrow", arrow=True)
        y += 58
    drawing.description = "; ".join(said) + "."
    return drawing


def _shown(count: int) -> list[int | None]:
    if count <= MOST_BOXES:
        return list(range(count))
    return [*range(MOST_BOXES - 2), None, count - 1]


# Read next: expand.py, which chooses between code, traces and pictures.
