"""Prints the tree of a trace: in colour on a terminal, plain in a pipe, never wider than the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from minitrainer.trace import events, lossmath
from minitrainer.trace.render import words
from minitrainer.trace.render.escape import printable
from minitrainer.trace.render.tree import Cycle, Explained, Node, with_cycles
from minitrainer.trace.render.words import Line, counted, duration, number

if TYPE_CHECKING:
    from rich.console import Console

STYLES = {
    "event": "bold cyan",
    "callback": "cyan",
    "call": "",
    "owner": "magenta",
    "flag": "bold yellow",
    "author": "yellow",
    "name": "",
    "value": "bold",
    "file": "green",
    "note": "italic",
    "good": "green",
    "bad": "bold red",
    "dim": "dim",
    "head": "bold",
    "part": "bold blue",
}
"""Role of a piece to its style. Colour only repeats what the words say already."""

PLURALS = {"epoch": "epochs", "step": "steps", "micro-batch": "micro-batches", "batch": "batches"}


class Screen:
    """Writes lines within the width of the output, in a colour only where a terminal takes it.

    `NO_COLOR`, a pipe and `TERM=dumb` all mean plain text; an output that can't show box characters gets ASCII ones.
    """

    def __init__(self, console: Console | None = None):
        from rich.console import Console

        self.console = console or Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
        self.width = max(self.console.width, 40)
        self.is_plain = self.console.no_color or self.console.color_system is None or not self.console.is_terminal
        self.is_unicode = (self.console.encoding or "").lower().replace("-", "").startswith("utf")

    def line(self, line: Line, first: str = "", rest: str | None = None) -> None:
        """Write a line, `first` before it and `rest` before what didn't fit."""
        rest = first if rest is None else rest
        rows = wrapped(line, self.width - max(len(first), len(rest)))
        for i, row in enumerate(rows):
            self._write([(first if i == 0 else rest, "dim"), *row])

    def tree(self, root: Node, explain: bool = False, show_times: bool = True) -> None:
        """Write a tree."""
        for first, rest, line in tree_lines(root, explain, show_times):
            self.line(line, first, rest)

    def text(self, text: str, style: str = "") -> None:
        """Write a sentence of our own (already escaped)."""
        self.line([(text, style)], "", "  ")

    def _write(self, row: Line) -> None:
        text = "".join(piece for piece, _ in row).rstrip()
        if not self.is_unicode:
            text = text.translate(_ASCII).encode("ascii", "backslashreplace").decode()
        if self.is_plain:
            self.console.file.write(text + "\n")
            return
        from rich.text import Text

        painted = Text(no_wrap=True, overflow="ignore")
        for piece, role in row:
            painted.append(piece, STYLES.get(role, "") or None)
        self.console.print(painted, soft_wrap=True)


_ASCII = str.maketrans("├│└─→←÷×–·…✓✗µ≠", "||`-></x-|~+!u!")


def wrapped(line: Line, width: int) -> list[Line]:
    """Break a line between words into rows of at most `width` characters; a longer word is broken where it must be."""
    if sum(len(text) for text, _ in line) <= width:
        return [line]
    width = max(width, 16)
    rows: list[Line] = [[]]
    used = 0
    for text, style in line:
        for word in _words(text):
            while word:
                if used + len(word.rstrip()) <= width:
                    rows[-1].append((word, style))
                    used += len(word)
                    break
                if used and len(word) <= width:
                    word = word.lstrip() if used else word
                    rows.append([])
                    used = 0
                    continue
                room = width - used if width - used > 8 else width
                if room == width and used:
                    rows.append([])
                rows[-1].append((word[:room], style))
                word, used = word[room:], 0
                rows.append([])
    return [row for row in rows if row]


def _words(text: str) -> list[str]:
    """Words, each with the spaces after it."""
    found: list[str] = []
    start = 0
    for i in range(1, len(text)):
        if text[i - 1] == " " and text[i] != " ":
            found.append(text[start:i])
            start = i
    found.append(text[start:])
    return found


# -- the tree -------------------------------------------------------------------------


def tree_lines(root: Node, explain: bool = False, show_times: bool = True) -> Iterator[tuple[str, str, Line]]:
    """Hand out the lines of a tree: what stands before a line, what stands before its continuation, and the line.

    Args:
        root: from a `TreeBuilder`.
        explain: write the links of each derivation below its loss.
        show_times: say how long steps and slow calls took, where the trace tells.
    """
    layout = _Layout(explain, show_times)
    for child in _items(root.children):
        yield from layout.rows(child, "", "")


def _items(children: list[Any]) -> Iterator[Any]:
    """What is written for some children: a folded node gives itself, and a line for those that are like it.
    Callbacks of an event that did nothing that the trace would show share one line."""
    idle: list[Node] = []
    for child in with_cycles(children):
        is_node = isinstance(child, Node)
        if is_node and child.kind == "callback" and not child.children and not child.is_open:
            idle.append(child)
            continue
        if idle:
            yield _idle_line(idle)
            idle = []
        yield child
        if is_node and child.count > 1 and child.like is None and child.kind in PLURALS and not child.is_cut:
            yield _Alike(child)
    if idle:
        yield _idle_line(idle)


class _Alike:
    """The neighbours that were folded into a node."""

    __slots__ = ("node",)

    def __init__(self, node: Node):
        self.node = node


def _idle_line(callbacks: list[Node]) -> Line:
    return [(", ".join(words.text_of(words.describe(node.record)) for node in callbacks), "callback")]


class _Layout:
    """How the nodes of a tree become lines."""

    def __init__(self, explain: bool, show_times: bool):
        self.explain = explain
        self.show_times = show_times

    def rows(self, item: Any, first: str, rest: str) -> Iterator[tuple[str, str, Line]]:
        """One line for `item` and the lines below it."""
        line, below = self._line(item)
        items = list(_items(below))
        if isinstance(item, Node) and item.kind == "event" and len(items) == 1 and isinstance(items[0], list):
            # An event and its idle callbacks share a line.
            line, items = [*line, ("; calls " if len(line) > 1 else "  calls ", "dim"), *items[0]], []
        yield first, rest + ("│ " if items else "  "), line
        for i, child in enumerate(items):
            last = i == len(items) - 1
            yield from self.rows(child, rest + ("└─ " if last else "├─ "), rest + ("   " if last else "│  "))

    def _line(self, item: Any) -> tuple[Line, list[Any]]:
        if isinstance(item, list):
            return item, []
        if isinstance(item, Node):
            return self._label(item), item.children
        if isinstance(item, _Alike):
            return self._alike_line(item.node), []
        if isinstance(item, Cycle):
            return _cycle_line(item), []
        if isinstance(item, Explained):
            below = derivation_lines(item.record, item.derivation) if self.explain else []
            return _explained_line(item), below
        if isinstance(item, events.TrainerBegin):
            lines = words.trainer_lines(item)
            return [(lines[0], "head")], [[(text, "dim")] for text in lines[1:]]
        return words.describe(item), []

    def _label(self, node: Node) -> Line:
        if node.kind in PLURALS:
            line = self._part_label(node)
        else:
            line = words.describe(node.record)
            if node.kind == "call" and node.took_us is not None and node.took_us >= 1000 and self.show_times:
                line = [*line, (f"  · {duration(node.took_us)}", "dim")]
        if node.is_open:
            line = [*line, ("  … the trace stops in here", "bad")]
        return line

    def _part_label(self, node: Node) -> Line:
        """The label of an epoch, a step, a micro-batch or a batch."""
        line: Line
        if node.like is not None:
            line = [*_several(node.kind, node.number, node.last_number, node.count)]
            line += [(f" like {node.kind} {node.like}", "dim")]
            if not node.is_complete and node.kind == "step":
                line.append((", not completed here", "note"))
            return line + _losses(node.first_loss, node.last_loss) + self._time(node, node.took_us, node.count)
        if node.is_cut:
            line = [*_several(node.kind, node.number, node.last_number, node.count)]
            return [*line, (f" of another shape (--step {node.number} shows it)", "dim")]
        line = [(f"{node.kind} {node.number}", "part")]
        if node.kind == "step" and not node.is_complete and not node.is_open:
            line.append((", begun and not completed here", "note"))
        if node.count == 1:
            return line + _losses(node.first_loss, node.last_loss) + self._time(node, node.took_us, 1)
        return line + _losses(node.first_loss, node.own_last_loss) + self._time(node, node.own_us, 1)

    def _alike_line(self, node: Node) -> Line:
        """The line for the neighbours that were folded into `node`, which itself stands above it."""
        line = [*_several(node.kind, node.second_number, node.last_number, node.count - 1), (" alike", "dim")]
        return line + _losses(node.second_loss, node.last_loss) + self._time(node, node.took_us, node.count - 1)

    def _time(self, node: Node, took_us: int | None, count: int) -> Line:
        if took_us is None or node.kind not in ("epoch", "step") or not self.show_times:
            return []
        return [(f"  · {duration(took_us / count)}{' each' if count > 1 else ''}", "dim")]


def _several(kind: str, first: int, last: int, count: int) -> Line:
    """Name `count` of the steps `first` to `last`: "steps 2–9", or "steps 10 … 90 (9 of them)"."""
    if count == 1:
        return [(f"{kind} {first}", "part")]
    if count == 2:
        return [(f"{PLURALS[kind]} {first}, {last}", "part")]
    if last - first + 1 == count:
        return [(f"{PLURALS[kind]} {first}–{last}", "part")]
    return [(f"{PLURALS[kind]} {first} … {last}", "part"), (f" ({count} of them)", "dim")]


def _cycle_line(cycle: Cycle) -> Line:
    steps = _several("step", cycle.first, cycle.last, cycle.last - cycle.first + 1)
    pattern = _several("step", cycle.like_first, cycle.like_last, cycle.like_last - cycle.like_first + 1)
    times = f", {cycle.times} times" if cycle.times > 1 else ""
    return [*steps, (f": {words.text_of(pattern)} again{times}", "dim"), *_losses(cycle.first_loss, cycle.last_loss)]


def _losses(first: Any, last: Any) -> Line:
    if first is None:
        return []
    return [("  · loss ", "dim"), (number(first) if first == last else f"{number(first)} → {number(last)}", "value")]


# -- derivations -----------------------------------------------------------------------


def _explained_line(item: Explained) -> Line:
    line = words.describe(item.record)
    derivation = item.derivation
    if derivation.follows:
        return [*line, ("  ✓", "good")]
    if derivation.lacking:
        return [*line, (f"  ({derivation.lacking} to derive it)", "dim")]
    broken = derivation.broken
    reason = f"{printable(broken.what)} does not follow" if broken else "nothing to derive it from"
    return [*line, (f"  ✗ {reason}", "bad")]


def derivation_lines(record: events.Record, derivation: lossmath.Derivation) -> list[Line]:
    """The links of a derivation, one line each; the micro-batches on one line."""
    lines: list[Line] = []
    alone = isinstance(record, events.Loss) and len(record.gathered) == 1
    if isinstance(record, events.Loss):
        rows = [row for row in record.rows if row is not None]
        samples = f" of {words.numbers(record.rows, 5)} samples" if rows and len(set(rows)) > 1 else ""
        samples = f" of {counted(rows[0], 'sample')}" if rows and len(set(rows)) == 1 else samples
        divided = sorted({str(divisor) if divisor is not None else "?" for divisor in record.divided_by})
        lines.append([("micro-batches" + samples + "  ", "dim"), (words.numbers(record.losses), "value")])
        if divided != ["1"]:
            lines.append([(f"each ÷ {' or '.join(divided)}  ", "dim"), (words.numbers(record.micro), "value")])
    elif isinstance(record, events.EvalLoss):
        lines.append([("batches  ", "dim"), (words.numbers(record.losses), "value")])
    for link in derivation.links:
        # On one rank nothing is gathered: the links over ranks say the same number again.
        is_idle = alone and link.what in (lossmath.OWN_SUM_GATHERED, lossmath.MEAN_OVER_RANKS)
        if link.follows and (is_idle or link.what.startswith("micro-batch ")):
            continue
        lines.append(link_line(link))
    lines += [[(printable(note), "note")] for note in derivation.notes]
    return lines


def link_line(link: lossmath.Link) -> Line:
    line: Line = [(printable(link.what) + "  ", "dim"), (words.exact(link.recorded), "value")]
    if link.how:
        line.append((f"  ({link.how})", "dim"))
    if link.follows:
        line.append(("  ✓", "good"))
    else:
        line.append((f"  ✗ comes out as {words.exact(link.derived)}", "bad"))
    return line


# Read next: explain.py, which tells one derivation in sentences.
