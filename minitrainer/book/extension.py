"""The Python-Markdown extension that fills pages from the repository.

    markdown_extensions:
      - minitrainer.book.extension

It runs before every other treatment of fences and knows nothing of MkDocs, so any program that reads Python-Markdown's
extensions builds the same site.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from markdown import Markdown
from markdown.extensions import Extension
from markdown.preprocessors import Preprocessor

from . import expand, statements
from .errors import BookError
from .pages import DIRECTIVES, Block, Page, fences
from .tables import Ids

EXPANDS_AT = 29
"""After whitespace is normalized (30), before any other extension's fences (at most 25)."""

STORES_AT = 20.5
"""Before HTML is read as blocks (20), which would take a large table apart tag by tag; and after MkDocs has looked for
the ids that links may lead to (21)."""


class BookExtension(Extension):
    """Expands the directives of pages; see the package's docstring."""

    def extendMarkdown(self, md: Markdown) -> None:
        expander = _Expander(md)
        md.preprocessors.register(expander, "minitrainer-book", EXPANDS_AT)
        md.preprocessors.register(_Storer(md, expander), "minitrainer-book-html", STORES_AT)


class _Expander(Preprocessor):
    """Puts one line of HTML in place of each directive."""

    def __init__(self, md: Markdown):
        super().__init__(md)
        self.made: set[str] = set()

    def run(self, lines: list[str]) -> list[str]:
        blocks = fences(lines, "this page")
        ids = Ids()
        out: list[str] = []
        at = 0
        for i, block in enumerate(blocks):
            out += lines[at : block.line - 1]
            at = block.last
            own = lines[block.line - 1 : block.last]
            out += self._expanded(block, own, ids, blocks[i - 1] if i else None)
        return out + lines[at:]

    def _expanded(self, block: Block, own: list[str], ids: Ids, previous: Block | None) -> list[str]:
        if block.kind == "claim":
            return _claim(block)
        if block.kind in DIRECTIVES:
            line = expand.html_of(block, ids).replace("\n", "&#10;")
            self.made.add(line)
            return ["", line, ""]
        fence = own[0][: own[0].index("`")] + "```" if "`" in own[0] else "~~~"
        longest = max((len(line) - len(line.lstrip("`")) for line in own[1:-1]), default=0)
        fence = "`" * max(3, longest + 1)
        if block.kind == "python":
            title = ' title="on the real 4.31.0"' if "reference" in block.words else ""
            return [f"{fence}{{ .python .run{title} }}", *own[1:-1], fence]
        if block.kind == "output":
            return [f"{fence}{{ .text .printed }}", *own[1:-1], fence]
        if block.kind in ("console", "try"):
            return [f"{fence}{{ .console .{block.kind} }}", *own[1:-1], fence]
        return own


class _Storer(Preprocessor):
    """Puts the lines made above where nothing reads them as Markdown."""

    def __init__(self, md: Markdown, expander: _Expander):
        super().__init__(md)
        self.expander = expander

    def run(self, lines: list[str]) -> list[str]:
        made = self.expander.made
        return [self.md.htmlStash.store(line) if line in made else line for line in lines]


def _claim(block: Block) -> list[str]:
    """A box in Markdown, so that links and emphasis in it work as anywhere."""
    claim = statements.claim(Page(Path("page"), ""), block)
    proofs = ", ".join(_proof(proof) for proof in claim.proofs)
    return [
        "",
        f'<div class="claim v-{claim.verdict}" id="{claim.label.lower()}" markdown="1">',
        "",
        f'<p class="verdict"><a href="#{claim.label.lower()}">{claim.label}</a> {claim.verdict}</p>',
        "",
        f"**The article:** {claim.article}",
        "",
        f"**Recorded:** {claim.recorded}",
        "",
        f"Proof: {proofs}",
        "",
        "</div>",
        "",
    ]


def _proof(proof: str) -> str:
    name = proof.rstrip("/").removeprefix("traces/")
    if proof.startswith("traces/") and "/" not in name:
        return f"[`{proof}`](trace-{name}.md)"
    return f"`{proof}`"


def makeExtension(**options: Any) -> BookExtension:
    """What Python-Markdown calls."""
    return BookExtension(**options)


__all__ = ["BookError", "BookExtension", "makeExtension"]

# Read next: generated.py, which writes whole pages.
