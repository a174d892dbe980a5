"""A piece of code by its name: `minitrainer/loop.py LoopMixin._run_epoch / optimizer step`.

A whole piece is a class, function, method or top-level name. A *phase* of it runs from its banner
(`# -- optimizer step ---`) to the next banner or to the end; the phase `head` is what stands before the first banner,
or in a class without phases before its first method. Phases are found, never marked: the source holds no line for the
book's sake.

The digest is taken over the tokens of the piece. Comments, blank lines and line breaks within brackets don't count; a
changed name, number, string or indentation does. It is the same on every Python from 3.10: newer ones cut an f-string
into many tokens, which are put together again here.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import re
import token
import tokenize
from dataclasses import dataclass
from pathlib import Path

from .errors import BookError
from .pages import ROOT

HEAD = "head"

_BANNER = re.compile(r"^[ \t]*# -- (.+?) -{3,}[ \t]*$")
_SPEC = re.compile(r"^(\S+\.py)(?:[ \t]+([\w.]+))?(?:[ \t]+/[ \t]+(.+?))?(?:[ \t]+#([0-9a-f]*))?$")
_IGNORED = frozenset({token.COMMENT, token.NL, token.ENCODING, token.ENDMARKER, token.TYPE_COMMENT})
_FSTRING_START = getattr(token, "FSTRING_START", -1)
_FSTRING_END = getattr(token, "FSTRING_END", -1)


@dataclass(frozen=True)
class Place:
    """A piece of code, found.

    Attributes:
        file: path from the repository's top.
        name: qualified name; "" for the whole file.
        phase: its banner's text, `head`, or "" for the whole piece.
        first, last: its lines.
        digest: eight hexadecimal digits over its tokens.
    """

    file: str
    name: str
    phase: str
    first: int
    last: int
    digest: str

    @property
    def spec(self) -> str:
        """How a page names it, without the digest."""
        parts = [self.file, *([self.name] if self.name else []), *(["/", self.phase] if self.phase else [])]
        return " ".join(parts)

    def text(self, root: Path = ROOT) -> str:
        """Its source, common indentation removed."""
        lines = (root / self.file).read_text(encoding="utf-8").splitlines()[self.first - 1 : self.last]
        indent = min((len(line) - len(line.lstrip()) for line in lines if line.strip()), default=0)
        return "\n".join(line[indent:] for line in lines)


def parse_spec(line: str) -> tuple[str, str, str, str]:
    """Take a line of a `code` block apart: file, name, phase, digest ("" where none is written).

    Raises:
        BookError: the line has another form.
    """
    match = _SPEC.match(line.strip())
    if not match:
        raise BookError(f"{line.strip()!r} names no code: write FILE.py [QUALIFIED.NAME] [/ PHASE] #DIGEST")
    return match[1], match[2] or "", (match[3] or "").strip(), match[4] or ""


def find(file: str, name: str = "", phase: str = "", root: Path = ROOT) -> Place:
    """Find a piece of code.

    Raises:
        BookError: there is no such file, name or phase, or more than one.
    """
    source = _source(root / file, file)
    first, last = source.span(name)
    if phase:
        first, last = source.phase(name, phase)
    return Place(file, name, phase, first, last, source.digest(first, last))


def phases(file: str, name: str, root: Path = ROOT) -> list[str]:
    """The phases of a piece, in order: `head` and its banners; empty for a piece without banners."""
    banners = _source(root / file, file).banners(name)
    return [HEAD, *(title for title, _ in banners)] if banners else []


def _source(path: Path, file: str) -> _Source:
    try:
        stat = path.stat()
    except OSError as error:
        raise BookError(
            f"{file} is not there: a piece of code is named by its path from the repository's top"
        ) from error
    return _parsed(path, file, stat.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _parsed(path: Path, file: str, changed: int) -> _Source:
    return _Source(path.read_text(encoding="utf-8"), file)


class _Source:
    """One file, parsed once."""

    def __init__(self, text: str, file: str):
        self.file = file
        self.lines = text.splitlines()
        self.tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
        # A line inside a string may look like a banner.
        comments = {one.start[0] for one in self.tokens if one.type == token.COMMENT}
        self.titles = {
            number: match[1] for number in sorted(comments) if (match := _BANNER.match(self.lines[number - 1]))
        }
        self.spans: dict[str, list[tuple[int, int]]] = {}
        self.nodes: dict[str, ast.AST] = {}
        self._collect(ast.parse(text).body, "")

    def _collect(self, body: list[ast.stmt], prefix: str) -> None:
        for node in body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                name = prefix + node.name
                first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
                self.spans.setdefault(name, []).append((first, node.end_lineno or first))
                self.nodes[name] = node
                if isinstance(node, ast.ClassDef):
                    self._collect(node.body, name + ".")
            elif isinstance(node, (ast.Assign, ast.AnnAssign)):
                targets = node.targets if isinstance(node, ast.Assign) else [node.target]
                for target in targets:
                    if isinstance(target, ast.Name):
                        span = (node.lineno, node.end_lineno or node.lineno)
                        self.spans.setdefault(prefix + target.id, []).append(span)
                        self.nodes[prefix + target.id] = node
            elif isinstance(node, (ast.If, ast.Try)):
                self._collect(node.body, prefix)

    def span(self, name: str) -> tuple[int, int]:
        if not name:
            return 1, len(self.lines)
        found = self.spans.get(name, [])
        if not found:
            last = name.rpartition(".")[2]
            alike = sorted(one for one in self.spans if one.rpartition(".")[2] == last)
            hint = f": do you mean {', '.join(alike[:3])}?" if alike else ""
            raise BookError(f"{self.file} holds no {name}{hint}")
        if len(found) > 1:
            lines = ", ".join(str(first) for first, _ in found)
            raise BookError(f"{self.file} holds {name} {len(found)} times (lines {lines}): it names no single piece")
        return found[0]

    def banners(self, name: str) -> list[tuple[str, int]]:
        """Banners inside a piece: title and line. Those of a class are the ones between its methods."""
        first, last = self.span(name)
        inner = (
            [self.spans[one][0] for one in self.spans if one.startswith(name + ".")] if name else list(self._tops())
        )
        inside = [number for number in self.titles if first < number <= last]
        return [(self.titles[n], n) for n in inside if not any(start <= n <= end for start, end in inner)]

    def _tops(self) -> list[tuple[int, int]]:
        return [span for name, spans in self.spans.items() if "." not in name for span in spans]

    def phase(self, name: str, title: str) -> tuple[int, int]:
        first, last = self.span(name)
        banners = self.banners(name)
        node = self.nodes.get(name)
        if title == HEAD:
            starts = [number for _, number in banners]
            if isinstance(node, ast.ClassDef):
                starts += [self.spans[one][0][0] for one in self.spans if one.startswith(name + ".")
                           and isinstance(self.nodes[one], (ast.FunctionDef, ast.AsyncFunctionDef))]  # fmt: skip
            if not starts:
                raise BookError(f"{self.file} {name} has no phases: show the whole piece")
            return first, self._trimmed(first, min(starts) - 1)
        found = [number for one, number in banners if one == title]
        if not found:
            there = ", ".join([HEAD, *(one for one, _ in banners)]) if banners else "none"
            raise BookError(f"{self.file} {name} has no phase {title!r}; its phases: {there}")
        if len(found) > 1:
            raise BookError(f"{self.file} {name} has {len(found)} banners {title!r}: a banner is unique in its piece")
        later = [number for _, number in banners if number > found[0]]
        return found[0], self._trimmed(found[0], min(later) - 1 if later else last)

    def _trimmed(self, first: int, last: int) -> int:
        while last > first and not self.lines[last - 1].strip():
            last -= 1
        return last

    def digest(self, first: int, last: int) -> str:
        texts: list[str] = []
        depth = 0
        start = (0, 0)
        for one in self.tokens:
            if not first <= one.start[0] <= last:
                continue
            if one.type == _FSTRING_START:
                start = one.start if depth == 0 else start
                depth += 1
            elif one.type == _FSTRING_END:
                depth -= 1
                if depth == 0:
                    texts.append(self._between(start, one.end))
            elif depth or one.type in _IGNORED:
                continue
            elif one.type == token.INDENT or one.type == token.DEDENT:
                if texts:  # where the piece before it ended is not its business
                    texts.append("\x01" if one.type == token.INDENT else "\x02")
            else:
                texts.append("\n" if one.type == token.NEWLINE else one.string)
        return hashlib.sha256("\x00".join(texts).encode()).hexdigest()[:8]

    def _between(self, start: tuple[int, int], end: tuple[int, int]) -> str:
        (row, column), (last_row, last_column) = start, end
        if row == last_row:
            return self.lines[row - 1][column:last_column]
        middle = self.lines[row : last_row - 1]
        return "\n".join([self.lines[row - 1][column:], *middle, self.lines[last_row - 1][:last_column]])


# Read next: names.py, which knows every name that prose may use.
