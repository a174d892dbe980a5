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

PRIORITY = 29
"""After whitespace is normalized (30), before any other extension's fences (at most 25)."""


class BookExtension(Extension):
    """Expands the directives of pages; see the package's docstring."""

    def extendMarkdown(self, md: Markdown) -> None:
        md.preprocessors.register(_Expander(md), "minitrainer-book", PRIORITY)


class _Expander(Preprocessor):
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
            return ["", self.md.htmlStash.store(expand.html_of(block, ids)), ""]
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
