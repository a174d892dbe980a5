"""A recorded trace as HTML: the tree of its rows, each with an id to link to; repeated steps folded; ranks side by side.

The id of a row is the trace's name and the number of the row in its file: `#one-epoch-54` is line 54 of
`traces/one-epoch/rank0.jsonl`. With several ranks it names the rank as well: `#two-ranks-uneven-r1-92`.
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from difflib import SequenceMatcher
from pathlib import Path
from typing import Any, NoReturn

from minitrainer.trace import events, lossmath
from minitrainer.trace.errors import UsageError
from minitrainer.trace.ranks import Run, derivations_of_logs, open_run
from minitrainer.trace.render import words
from minitrainer.trace.render.escape import html
from minitrainer.trace.render.explain import explain_loss
from minitrainer.trace.render.terminal import PLURALS, derivation_lines
from minitrainer.trace.render.tree import ONLY, Explained, Node, TreeBuilder
from minitrainer.trace.render.words import Line

from .errors import BookError
from .pages import ROOT

FLAG_SHAPES = {
    "should_log": "●",
    "should_evaluate": "▲",
    "should_save": "■",
    "should_epoch_stop": "◆",
    "should_training_stop": "✖",
}
"""A shape for each flag, so that its colour says nothing that is not said otherwise."""

MOST_OPEN = 60
"""Lines of a tree that are shown at once; in a longer one calls and later steps are folded."""

LONGEST_CYCLE = 12


@dataclass(frozen=True)
class Request:
    """What a `trace` block asks for."""

    path: str
    only: tuple[str, ...] = ()
    steps: tuple[int, int] | None = None
    rank: int | None = None
    side_by_side: bool = False
    within: str = ""
    opened: bool = False


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise BookError(f"{message}; a trace block reads: {self.format_usage().strip()}")


def request(words_of_block: Sequence[str]) -> Request:
    """Read the words of a `trace` block: `traces/one-epoch --only callbacks --step 1..2`.

    Raises:
        BookError: they say something else.
    """
    parser = _Parser(prog="", add_help=False, usage="traces/NAME [--only A,B] [--step 3..5] [--rank R] "
                     "[--side-by-side] [--within NAME] [--open]")  # fmt: skip
    parser.add_argument("path")
    parser.add_argument("--only", default="")
    parser.add_argument("--step", default="")
    parser.add_argument("--rank", type=int)
    parser.add_argument("--side-by-side", action="store_true")
    parser.add_argument("--within", default="")
    parser.add_argument("--open", action="store_true")
    options = parser.parse_args(list(words_of_block))
    only = tuple(name.strip() for name in options.only.split(",") if name.strip())
    for name in only:
        if name not in ONLY:
            raise BookError(f"--only takes {', '.join(ONLY)}, not {name!r}")
    steps = None
    if options.step:
        first, _, last = options.step.partition("..")
        if not first.isdigit() or not (last or first).isdigit():
            raise BookError(f"--step takes 7 or 3..5, not {options.step!r}")
        steps = (int(first), int(last or first))
    return Request(options.path, only, steps, options.rank, options.side_by_side, options.within, options.open)


@functools.lru_cache(maxsize=64)
def recorded(path: str, root: Path = ROOT) -> Run:
    """Open a committed trace.

    Raises:
        BookError: there is none.
    """
    folder = (root / path).resolve()
    if not path.startswith("traces/") or not folder.is_relative_to(root / "traces"):
        raise BookError(f"{path!r} is no committed trace: name a folder below traces/")
    try:
        return open_run(folder)
    except UsageError as error:
        raise BookError(f"{path}: {error}") from error


def slug(path: str) -> str:
    """What the ids of a trace's rows begin with: `traces/atlas/5.24.0/one-epoch` gives `one-epoch-5-24-0`."""
    parts = path.strip("/").split("/")[1:]
    if parts and parts[0] == "atlas":
        parts = [*parts[2:], parts[1]]
    return "-".join(parts).replace(".", "-").replace("_", "-").lower()


# -- the tree ------------------------------------------------------------------------------------------


class _Rows(TreeBuilder):
    """A tree in which nothing is folded away, with derivations that know all ranks."""

    def __init__(self, run: Run, rank: int, only: Sequence[str], steps: tuple[int, int] | None, within: str = ""):
        self.within = within
        super().__init__(only, steps, rank, run.world_size)
        self.numbers: dict[int, int] = {}  # id of a record -> its row; the records live as long as this object
        self.records: list[events.Record] = []
        self.derived = _derived(run, rank)

    def take(self, record: events.Record, row: int) -> None:
        self.records.append(record)
        self.numbers[id(record)] = row
        self.add(record)

    def _open(self, kind: str, record: Any, signature: Any, at: int | None = None, number: int = 0) -> None:
        super()._open(kind, record, signature, at, number)
        if self.within in _names_of(record):
            self.stack[-1].is_wanted = True  # whatever else is shown, what is asked for stays

    def _leaf(self, record: Any) -> None:
        if id(record) not in self.numbers:  # a copy that leaves something out: it stands for the row it was made of
            self.numbers[id(record)] = self.numbers[id(self.records[-1])]
            self.records.insert(-1, record)
        super()._leaf(record)

    def _fold(self, parent: Node, node: Node, signature: int) -> bool:
        return False

    def _compare_with_shapes(self, node: Node, signature: int) -> None:
        return

    def _loss(self, record: Any) -> None:
        super()._loss(record)
        children = self.stack[-1].children
        if children and isinstance(children[-1], Explained) and children[-1].record is record:
            known = next((derivation for one, derivation in self.derived if one == record), None)
            children[-1].derivation = known or children[-1].derivation


def _names_of(record: Any) -> tuple[str, ...]:
    """How a request may name what a record opens: a method with or without its class, an event, a callback."""
    if isinstance(record, events.Call):
        return record.method, f"{record.cls}.{record.method}"
    if isinstance(record, events.Event):
        return (record.event,)
    return (record.callback,) if isinstance(record, events.Callback) else ()


def _derived(run: Run, rank: int) -> list[tuple[Any, lossmath.Derivation]]:
    found: list[tuple[Any, lossmath.Derivation]] = []
    for joined, derived in derivations_of_logs(run):
        if rank in joined:
            found.append((joined[rank].record, derived[rank]))
    return found


@dataclass
class Row:
    """One line of a rendered tree, with the lines below it.

    Attributes:
        line: what it says, in pieces.
        row: number of the record in its file; 0 for a line without one (a step, an epoch).
        key: end of its id.
        kind: for the style sheet.
        names: callbacks that share the line: name and row.
        below: its parts.
        folds: for a group of alike neighbours, what its summary says; it has no record.
        signature: equal for neighbours of one shape.
        is_open: whether it is shown unfolded.
        opens: names by which a request may ask for it.
    """

    line: Line
    row: int
    key: str
    kind: str
    names: list[tuple[str, int]] = field(default_factory=list)
    below: list[Row] = field(default_factory=list)
    folds: bool = False
    signature: Any = None
    is_open: bool = True
    opens: tuple[str, ...] = ()
    step: int = 0

    def size(self) -> int:
        return 1 + sum(one.size() for one in self.below)


def rows_of(asked: Request, rank: int, root: Path = ROOT) -> list[Row]:
    """The rows that a request wants of one rank, as a tree.

    Raises:
        BookError: there is no such rank, or nothing of that kind.
    """
    run = recorded(asked.path, root)
    if rank not in run.readings:
        raise BookError(f"{asked.path} holds no rank {rank}; it holds {', '.join(map(str, run.readings))}")
    builder = _Rows(run, rank, asked.only, asked.steps, asked.within)
    for number, record in enumerate(run.readings[rank], start=1):
        if not ((asked.only or asked.steps) and isinstance(record, (events.TrainerBegin, events.Focus))):
            builder.take(record, number)
    made = _Maker(builder.numbers, explain="loss" in asked.only or not asked.only)
    rows = made.children(builder.finish().children)
    if asked.within:
        found = list(_within(rows, asked.within))
        if not found:
            raise BookError(f"{asked.path} holds no {asked.within} to look into")
        rows = found[:1]
    if not rows:
        within = f" in step {asked.steps[0]}..{asked.steps[1]}" if asked.steps else ""
        raise BookError(f"{asked.path} holds nothing of {', '.join(asked.only) or 'any kind'}{within}")
    _fold_away(rows, all_open=asked.opened or sum(row.size() for row in rows) <= MOST_OPEN)
    return rows


def _within(rows: Sequence[Row], name: str) -> Iterator[Row]:
    for row in rows:
        if name in row.opens:
            yield row
        yield from _within(row.below, name)


class _Maker:
    """Makes rows of the nodes of a tree."""

    def __init__(self, numbers: dict[int, int], explain: bool):
        self.numbers = numbers
        self.explain = explain
        self.parts: dict[str, int] = {}

    def children(self, children: Sequence[Any]) -> list[Row]:
        return _grouped([self.row(child) for child in children])

    def row(self, child: Any) -> Row:
        if isinstance(child, Node):
            return self._node(child)
        if isinstance(child, Explained):
            number = self.numbers[id(child.record)]
            row = Row(self._explained(child), number, str(number), "loss", signature=("loss",))
            if self.explain:
                lines = derivation_lines(child.record, child.derivation)
                row.below = [Row(line, 0, "", "link") for line in lines]
            return row
        number = self.numbers.get(id(child), 0)
        kind = type(child).__name__.lower()
        if isinstance(child, events.TrainerBegin):
            said = words.trainer_lines(child)
            row = Row([(said[0], "head")], number, str(number), "trainer", signature=("trainer",))
            row.below = [Row([(text, "dim")], 0, "", "link") for text in said[1:]]
            return row
        key = str(number) if number else ""
        return Row(words.describe(child), number, key, kind, signature=words.text_of(words.describe(child)))

    def _explained(self, child: Explained) -> Line:
        line = words.describe(child.record)
        if child.derivation.follows:
            return [*line, ("  ✓ follows", "good")]
        if child.derivation.lacking:
            return [*line, (f"  ({child.derivation.lacking} to derive it)", "dim")]
        return [*line, ("  ✗ does not follow", "bad")]

    def _node(self, node: Node) -> Row:
        if node.kind in PLURALS:
            key = f"{node.kind}-{node.number}"
            seen = self.parts[key] = self.parts.get(key, 0) + 1
            line: Line = [(f"{node.kind} {node.number}", "part")]
            if node.kind == "step" and not node.is_complete and not node.is_open:
                line.append((", begun and not completed here", "note"))
            if node.first_loss is not None:
                same = node.first_loss == node.last_loss
                shown = words.number(node.first_loss) + ("" if same else f" → {words.number(node.last_loss)}")
                line.append((f"  · loss {shown}", "value"))
            row = Row(line, 0, key if seen == 1 else f"{key}-{seen}", node.kind, step=node.number)
        else:
            number = self.numbers[id(node.record)]
            row = Row(words.describe(node.record), number, str(number), node.kind, opens=_names_of(node.record))
        if node.is_open:
            row.line = [*row.line, ("  … the trace stops in here", "bad")]
        row.signature = node.signature
        row.below = self.children(node.children)
        if node.kind == "event":
            # Callbacks that did nothing the trace would show share the line of their event.
            idle = [one for one in row.below if one.kind == "callback" and not one.below]
            if idle and len(idle) == len(row.below):
                row.names = [(words.text_of(one.line), one.row) for one in idle]
                row.below = []
        return row


def _grouped(rows: list[Row]) -> list[Row]:
    """Fold neighbours that repeat: one shape again and again, or a pattern of up to twelve steps."""
    grouped: list[Row] = []
    flat = rows
    i = 0
    while i < len(flat):
        period, length = _repeated(flat, i)
        if length < 2 and not (length == 1 and flat[i].kind in ("micro-batch", "batch")):
            grouped.append(flat[i])
            i += 1
            continue
        alike = flat[i : i + length]
        kind = alike[0].kind
        first, last = alike[0].step, alike[-1].step
        numbers = f"{PLURALS[kind]} {first}–{last}" if last > first else f"{kind} {first}"
        line: Line = [(numbers, "part")]
        if period == 1:
            line.append((" alike", "dim"))
        else:
            times = f", {length // period} times" if length > period else ""
            line.append((f": {PLURALS[kind]} {flat[i - period].step}–{flat[i - 1].step} again{times}", "dim"))
        grouped.append(Row(line, 0, f"{kind}s-{first}-{last}", "alike", below=alike, folds=True))
        i += length
    return grouped


def _repeated(rows: Sequence[Row], i: int) -> tuple[int, int]:
    """How many rows from `i` on repeat those before them, and with which period."""
    if rows[i].kind not in PLURALS or rows[i].kind == "epoch":
        return 0, 0
    for period in range(1, min(LONGEST_CYCLE, i) + 1):
        length = 0
        while (
            i + length < len(rows)
            and rows[i + length].kind == rows[i].kind
            and rows[i + length - period].kind == rows[i].kind
            and rows[i + length].signature == rows[i + length - period].signature
        ):
            length += 1
        whole = length // period * period
        if whole:
            return period, whole
    return 0, 0


def _fold_away(rows: Sequence[Row], all_open: bool, depth: int = 0) -> None:
    steps_seen = 0
    for row in rows:
        if row.folds or row.kind in ("loss", "trainer"):
            row.is_open = False
        elif all_open or row.kind in ("epoch", "event", "callback"):
            row.is_open = True
        elif row.kind == "step":
            steps_seen += 1
            row.is_open = steps_seen == 1
        else:
            row.is_open = depth < 2 and row.size() > 40
        _fold_away(row.below, all_open, depth + 1)


# -- HTML ----------------------------------------------------------------------------------------------


class Ids:
    """Ids that a page has used: the first use of a row keeps its plain one."""

    def __init__(self) -> None:
        self.used: dict[str, int] = {}

    def take(self, wanted: str) -> str:
        count = self.used[wanted] = self.used.get(wanted, 0) + 1
        return wanted if count == 1 else f"{wanted}--{count}"


def trace_html(asked: Request, ids: Ids | None = None, root: Path = ROOT) -> str:
    """Return the HTML of a `trace` block.

    Raises:
        BookError: the trace does not hold what was asked for.
    """
    ids = ids or Ids()
    run = recorded(asked.path, root)
    if asked.side_by_side:
        return _side_by_side(asked, run, ids, root)
    rank = asked.rank if asked.rank is not None else run.first.head.rank
    rows = rows_of(asked, rank, root)
    prefix = _prefix(asked.path, run, rank)
    body = _list(rows, prefix, ids, is_top=True)
    return _figure(asked, run, f"rank {rank} of {run.world_size}" if run.world_size > 1 else "", rank, body, ids)


def _prefix(path: str, run: Run, rank: int) -> str:
    return f"{slug(path)}-r{rank}-" if run.world_size > 1 else f"{slug(path)}-"


def _figure(asked: Request, run: Run, of_rank: str, rank: int | None, body: str, ids: Ids) -> str:
    head = run.first.head
    versions = ", ".join(words.versions(head)[:1])
    filters = [f"only {', '.join(asked.only)}"] if asked.only else []
    if asked.steps:
        first, last = asked.steps
        filters.append(f"step {first}" if first == last else f"steps {first}–{last}")
    if asked.within:
        filters.append(f"inside {asked.within}")
    said = " · ".join(filter(None, [versions, of_rank, *filters]))
    data = f'data-trace="{html(asked.path)}" data-only="{html(",".join(asked.only))}"'
    if rank is not None:
        data += f' data-rank="{rank}"'
    if asked.steps:
        data += f' data-steps="{asked.steps[0]}..{asked.steps[1]}"'
    name = ids.take(f"trace-{slug(asked.path)}")
    page = page_of_trace(asked.path)
    title = f'<a href="{page}">{html(asked.path)}</a>' if page else html(asked.path)
    return (
        f'<figure class="trace" id="{name}" {data} data-search-exclude>'
        f"<figcaption>{title} <span>{html(said)}</span></figcaption>{body}</figure>"
    )


def page_of_trace(path: str) -> str:
    """The page that shows the whole trace, as a link from another page; "" where there is none."""
    name = path.removeprefix("traces/")
    return "" if "/" in name else f"trace-{name}.html"


def _list(rows: Sequence[Row], prefix: str, ids: Ids, is_top: bool = False) -> str:
    items = "".join(_item(row, prefix, ids) for row in rows)
    return f'<ul class="{"rows top" if is_top else "rows"}">{items}</ul>'


def _item(row: Row, prefix: str, ids: Ids) -> str:
    identity, number = "", ""
    if row.key:
        name = ids.take(prefix + row.key)
        identity = f' id="{name}"'
        shown = str(row.row) if row.row else "#"
        label = f"row {row.row}" if row.row else f"link to {words.text_of(row.line).strip()}"
        number = f'<a class="n" href="#{name}" aria-label="{html(label)}">{shown}</a>'
    text = _pieces(row.line)
    if row.names:
        spans = []
        for callback, at in row.names:
            spans.append(f'<span class="t-callback" id="{ids.take(prefix + str(at))}">{html(callback)}</span>')
        text += '<span class="t-dim"> calls </span>' + ", ".join(spans)
    kind = f' class="k-{html(row.kind)}"'
    data = f' data-row="{row.row}"' if row.row else ""
    if not row.below:
        return f'<li{identity}{kind}{data}>{number}<div class="line">{text}</div></li>'
    opened = " open" if row.is_open else ""
    folded = f'<details{opened}><summary class="line">{text}</summary>{_list(row.below, prefix, ids)}</details>'
    return f"<li{identity}{kind}{data}>{number}{folded}</li>"


def _pieces(line: Line) -> str:
    return "".join(
        f'<span class="t-{role}">{_with_flags(text)}</span>' if role else _with_flags(text)
        for text, role in line
        if text
    )


def _with_flags(text: str) -> str:
    shown = html(text)
    for flag, shape in FLAG_SHAPES.items():
        if flag in shown:
            shown = shown.replace(flag, flag_html(flag, shape))
    return shown


def flag_html(flag: str, shape: str = "") -> str:
    """A flag's name with its shape and colour."""
    shape = shape or FLAG_SHAPES[flag]
    style = "f-" + flag.removeprefix("should_").replace("_", "-")
    return f'<span class="flag {style}"><i aria-hidden="true">{shape}</i>{flag}</span>'


# -- ranks beside each other -------------------------------------------------------------------------------


def _side_by_side(asked: Request, run: Run, ids: Ids, root: Path) -> str:
    if run.world_size < 2:
        raise BookError(f"{asked.path} is the trace of one rank: nothing can stand beside it")
    ranks = list(run.readings)
    columns = [list(_flat(rows_of(asked, rank, root))) for rank in ranks]
    lines = _aligned(columns)
    head = "".join(f'<th scope="col" colspan="2">rank {rank}</th>' for rank in ranks)
    body = []
    for cells in lines:
        texts = {words.text_of(cell[1].line) for cell in cells if cell is not None}
        differs = len(texts) > 1 or None in cells
        made = []
        for rank, cell in zip(ranks, cells, strict=True):
            if cell is None:
                made.append('<td class="n"></td><td class="none">–</td>')
                continue
            depth, row = cell
            number, identity = "", ""
            if row.key:
                name = ids.take(_prefix(asked.path, run, rank) + row.key)
                identity = f' id="{name}"'
                shown = str(row.row) if row.row else "#"
                number = f'<a href="#{name}" aria-label="{html(f"rank {rank}, row {shown}")}">{shown}</a>'
            text = _pieces(row.line)
            if row.names:
                text += '<span class="t-dim"> calls </span>' + ", ".join(html(one) for one, _ in row.names)
            made.append(f'<td class="n"{identity}>{number}</td><td class="line d{min(depth, 9)}">{text}</td>')
        body.append(f"<tr{' class=differs' if differs else ''}>{''.join(made)}</tr>")
    table = (
        f'<div class="side" tabindex="0" role="group" aria-label="ranks side by side">'
        f'<table class="ranks"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )
    return _figure(asked, run, f"{len(ranks)} ranks side by side", None, table, ids)


def _flat(rows: Sequence[Row], depth: int = 0) -> Iterator[tuple[int, Row]]:
    for row in rows:
        if row.folds:
            yield from _flat(row.below, depth)
            continue
        yield depth, row
        yield from _flat(row.below, depth + 1)


def _shape(cell: tuple[int, Row]) -> tuple[int, str, str]:
    depth, row = cell
    first = words.text_of(row.line).split("  ")[0] if row.kind != "samples" else "samples"
    names = first if row.kind in ("call", "event", "callback", "flag", "step", "epoch") else row.kind
    return depth, row.kind, names


def _aligned(columns: Sequence[list[tuple[int, Row]]]) -> list[list[tuple[int, Row] | None]]:
    """Lay the rows of all ranks beside each other: equal shapes on one line, the first rank's order kept."""
    lines: list[list[tuple[int, Row] | None]] = [[cell] for cell in columns[0]]
    for n, column in enumerate(columns[1:], start=1):
        left = [_shape(line[0]) if line[0] is not None else (0, "", "") for line in lines]
        right = [_shape(cell) for cell in column]
        joined: list[list[tuple[int, Row] | None]] = []
        for tag, a, b, c, d in SequenceMatcher(a=left, b=right, autojunk=False).get_opcodes():
            if tag == "equal":
                joined += [[*lines[a + k], column[c + k]] for k in range(b - a)]
                continue
            joined += [[*lines[k], None] for k in range(a, b)]
            joined += [[*[None] * n, column[k]] for k in range(c, d)]
        lines = joined
    return lines


# -- the derivation of a loss --------------------------------------------------------------------------------


def loss_html(path: str, step: int | None, rank: int | None = None, ids: Ids | None = None, root: Path = ROOT) -> str:
    """Return the HTML of a `loss` block: how the loss logged at a step came about, sentence by sentence.

    Raises:
        BookError: no training loss was logged there, or it does not follow.
    """
    from minitrainer.trace.ranks import joined_losses

    ids = ids or Ids()
    run = recorded(path, root)
    first = rank if rank is not None else run.first.head.rank
    logged = []
    for joined in joined_losses(run):
        one = next(iter(joined.values()))
        if not isinstance(one.record, events.Loss) or first not in joined:
            continue
        logged.append(one.step)
        if step is None or one.step == step:
            lines, follows = explain_loss({first: joined[first], **joined}, run.world_size)
            if not follows:
                raise BookError(f"{path}: the loss logged at step {step} does not follow from the recorded numbers")
            return _explanation(lines, path, one.step, ids)
    raise BookError(
        f"{path}: no training loss was logged at step {step}; there are logs at {', '.join(map(str, logged))}"
    )


def _explanation(lines: Sequence[str], path: str, step: int, ids: Ids) -> str:
    title = lines[0]
    sentences: list[str] = []
    rest: list[str] = []
    for line in lines[1:]:
        number, dot, text = line.strip().partition(". ")
        if dot and number.isdigit() and not rest:
            sentences.append(text)
        elif line.strip():
            rest.append(line.strip())
    steps = "".join(f"<li>{html(text)}</li>" for text in sentences)
    after = ""
    reasons = [line.removeprefix("- ") for line in rest if line.startswith("- ")]
    for line in rest:
        if line.startswith("- "):
            continue
        mark = ' class="t-good"' if line.startswith("Derived again") else ""
        after += f"<p{mark}>{html(line)}</p>"
    if reasons:
        after += "<ul>" + "".join(f"<li>{html(text)}</li>" for text in reasons) + "</ul>"
    name = ids.take(f"loss-{slug(path)}-{step}")
    page = page_of_trace(path)
    where = f'<a href="{page}">{html(path)}</a>' if page else html(path)
    return (
        f'<figure class="trace loss" id="{name}" data-trace="{html(path)}" data-step="{step}" data-search-exclude>'
        f"<figcaption>{where} <span>{html(title.rstrip(':'))}</span></figcaption><ol>{steps}</ol>{after}</figure>"
    )


# Read next: pictures.py, which draws.
