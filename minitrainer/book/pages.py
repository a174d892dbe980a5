"""A page of the book: its fenced blocks, headings, inline code and links, each with its line.

The dialect is Python-Markdown's, but fences are read here and nowhere else, by the strict rules of CommonMark: a fence
closes with at least as many of the same characters, and one that never closes is an error. An include that is
forgiving shows half a page and says nothing.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .errors import BookError

ROOT = Path(__file__).resolve().parents[2]
"""The repository: pages name files relative to it."""

CHAPTERS = ROOT / "chapters"

DIRECTIVES = frozenset({"code", "excerpt", "trace", "loss", "picture", "claim"})
"""Blocks that are expanded from the repository."""

RUNS = frozenset({"python", "console", "try"})
"""Blocks that are executed; `output` belongs to the block before it."""

GENERATED = re.compile(r"(?:ledger|differences|api|methods|claims|questions|traces|(?:trace|atlas)-.+)\.md")
"""Pages that `write` makes. They are read by the checks of links, and by no other."""

_FENCE = re.compile(r"^( {0,3})(`{3,}|~{3,})[ \t]*([^`]*)$")
_HEADING = re.compile(r"^(#{1,6})[ \t]+(.+?)[ \t]*$")
_ATTRIBUTES = re.compile(r"[ \t]*\{:?[ \t]*([^{}]*?)[ \t]*\}$")
_ID = re.compile(r"(?:^|\s)#([\w.:-]+)")
_INLINE = re.compile(r"(?<!`)(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"\[(?:[^\[\]]|\[[^\]]*\])*\]\(\s*<?([^)<>\s]*)>?(?:\s+\"[^\"]*\")?\s*\)")
_COMMENT = re.compile(r"<!--.*?-->", re.DOTALL)


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        kind: first word after the fence; "" without one.
        words: the words after it.
        body: the lines inside, as one text without a final line break.
        line: number of the opening fence.
        last: number of the closing fence.
        indent: spaces before the fence, taken off the body as well.
    """

    kind: str
    words: tuple[str, ...]
    body: str
    line: int
    last: int
    indent: int = 0

    @property
    def lines(self) -> list[str]:
        """The body's lines that are not blank, stripped."""
        return [line.strip() for line in self.body.splitlines() if line.strip()]


@dataclass(frozen=True)
class Heading:
    """A heading: its text without the attribute list, its level, its explicit id or ""."""

    text: str
    level: int
    id: str
    line: int


@dataclass
class Page:
    """One page, read.

    Attributes:
        path: the file.
        text: as it stands.
        blocks: fenced blocks in order.
        headings: headings outside of blocks.
        prose: the text with blocks and comments blanked out, every line at its place.
    """

    path: Path
    text: str
    blocks: list[Block] = field(default_factory=list)
    headings: list[Heading] = field(default_factory=list)
    prose: str = ""

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def is_generated(self) -> bool:
        return GENERATED.fullmatch(self.name) is not None

    def where(self, line: int) -> str:
        """How to name a line of this page in a message."""
        return f"{self.name}:{line}"

    def inline_code(self) -> list[tuple[int, str]]:
        """Every inline code span: line and text."""
        return [
            (self.prose.count("\n", 0, m.start()) + 1, " ".join(m[2].split())) for m in _INLINE.finditer(self.prose)
        ]

    def links(self) -> list[tuple[int, str]]:
        """Every inline link: line and target."""
        shown = _INLINE.sub(lambda match: re.sub(r"[^\n]", "·", match[0]), self.prose)
        return [(shown.count("\n", 0, m.start()) + 1, m[1]) for m in _LINK.finditer(shown)]

    def section(self, heading: Heading) -> tuple[int, int]:
        """First and last line of what stands under a heading, up to the next one of its level or above."""
        for other in self.headings:
            if other.line > heading.line and other.level <= heading.level:
                return heading.line + 1, other.line - 1
        return heading.line + 1, self.text.count("\n") + 1


def read_page(path: Path) -> Page:
    """Read a page from its file.

    Raises:
        BookError: the file is missing or a fence is not closed.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as error:
        raise BookError(f"{path.name} can't be read: {error.strerror}") from error
    return parse(text, path)


def parse(text: str, path: Path) -> Page:
    """Read a page from its text; see `read_page`."""
    page = Page(path, text)
    lines = text.splitlines()
    page.blocks = fences(lines, path.name)
    prose = list(lines)
    for block in page.blocks:
        prose[block.line - 1 : block.last] = [""] * (block.last - block.line + 1)
    if prose and prose[0] == "---":
        closing = next((i for i, line in enumerate(prose[1:], 1) if line == "---"), 0)
        prose[: closing + 1] = [""] * (closing + 1)
    blanked = _COMMENT.sub(lambda match: re.sub(r"[^\n]", " ", match[0]), "\n".join(prose))
    page.prose = blanked
    for number, line in enumerate(blanked.split("\n"), start=1):
        match = _HEADING.match(line)
        if match:
            attributes = _ATTRIBUTES.search(match[2])
            found = _ID.search(attributes[1]) if attributes else None
            text_of = match[2][: attributes.start()] if attributes else match[2]
            page.headings.append(Heading(text_of.strip(" #"), len(match[1]), found[1] if found else "", number))
    return page


def fences(lines: Sequence[str], name: str) -> list[Block]:
    """Find the fenced blocks of a page.

    Raises:
        BookError: a fence that is never closed.
    """
    blocks: list[Block] = []
    opened: tuple[int, str, str, int] | None = None
    for number, line in enumerate(lines, start=1):
        match = _FENCE.match(line)
        if opened is None:
            if match:
                opened = (number, match[2], match[3].strip(), len(match[1]))
            continue
        start, fence, info, indent = opened
        if match and match[2][0] == fence[0] and len(match[2]) >= len(fence) and not match[3].strip():
            inside = [_unindented(inner, indent) for inner in lines[start : number - 1]]
            words = info.split()
            kind = words[0] if words else ""
            blocks.append(Block(kind, tuple(words[1:]), "\n".join(inside), start, number, indent))
            opened = None
    if opened is not None:
        raise BookError(f"{name}:{opened[0]}: this fence is never closed: end the block with {opened[1]}")
    return blocks


def _unindented(line: str, indent: int) -> str:
    return line[min(indent, len(line) - len(line.lstrip(" "))) :]


def all_pages(folder: Path = CHAPTERS) -> list[Page]:
    """Every page of the book, by name."""
    return [read_page(path) for path in sorted(folder.glob("*.md"))]


# Read next: places.py, which finds the code that a block names.
