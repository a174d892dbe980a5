"""Turns one block of a page into HTML: what the extension puts into the page, and what `check` tries out."""

from __future__ import annotations

import shlex
from pathlib import Path

from . import places, tables
from .errors import BookError
from .pages import ROOT, Block
from .tables import Ids


def html_of(block: Block, ids: Ids | None = None, root: Path = ROOT) -> str:
    """Return the HTML of a code, excerpt, trace, loss or picture block.

    Raises:
        BookError: what it names is not there.
    """
    ids = ids or Ids()
    if block.kind in ("code", "excerpt"):
        return "".join(_code_html(line, block.kind, ids, root) for line in block.lines)
    asked = [*block.words, *(word for line in block.lines for word in shlex.split(line))]
    if not asked:
        raise BookError(f"this {block.kind} block is empty")
    if block.kind == "trace":
        return tables.trace_html(tables.request(asked), ids, root)
    if block.kind == "loss":
        wanted = tables.request(asked)
        return tables.loss_html(wanted.path, wanted.steps[0] if wanted.steps else None, wanted.rank, ids, root)
    from . import pictures

    return pictures.picture_html(asked, ids, root)


def _code_html(line: str, kind: str, ids: Ids, root: Path) -> str:
    from pygments import highlight
    from pygments.formatters import HtmlFormatter
    from pygments.lexers import PythonLexer

    file, name, phase, _ = places.parse_spec(line)
    place = places.find(file, name, phase, root)
    formatter = HtmlFormatter(
        linenos="table", linenostart=place.first, cssclass="highlight", wrapcode=True, anchorlinenos=False
    )
    shown = highlight(place.text(root), PythonLexer(stripnl=False), formatter)
    anchor = ids.take(anchor_of(place))
    lines = f"line {place.first}" if place.first == place.last else f"lines {place.first}–{place.last}"
    title = tables.html(" ".join(filter(None, [name, f"/ {phase}" if phase else ""])) or file)
    return (
        f'<figure class="place" id="{anchor}" data-kind="{kind}" data-search-exclude>'
        f"<figcaption><b>{title}</b> <span>{tables.html(file)}, {lines}</span></figcaption>{shown}</figure>"
    )


def anchor_of(place: places.Place) -> str:
    """The id of a piece of code on its page: `LoopMixin.train / model` gives `train-model`."""
    name = place.name.rpartition(".")[2] or Path(place.file).stem
    return "-".join([name, *place.phase.replace(",", "").split()]) if place.phase else name


# Read next: extension.py, which does this while a page is built.
