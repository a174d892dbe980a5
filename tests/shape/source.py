"""Reads the Trainer's files as syntax trees: methods, what they write, fire and call, and what docstrings say."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "minitrainer"

# In reading order.
TRAINER_FILES = (
    "trainer",
    "attributes",
    "loop",
    "setup",
    "data",
    "optimizer",
    "wrapping",
    "step",
    "cadence",
    "evaluation",
    "saving",
    "resuming",
    "reporting",
    "search",
    "hub",
)
SUBCLASS_FILES = ("seq2seq", "question_answering")


@dataclass(frozen=True)
class Method:
    """One method of the Trainer.

    Attributes:
        file: name of its file, without ".py".
        owner: name of its class.
        name: its own name.
        node: its syntax tree.
    """

    file: str
    owner: str
    name: str
    node: ast.FunctionDef

    @property
    def docstring(self) -> str:
        """The docstring, indentation removed; "" without one."""
        return ast.get_docstring(self.node) or ""


def methods(files: tuple[str, ...] = TRAINER_FILES) -> list[Method]:
    """All methods of the classes `Trainer`, `…Trainer` and `…Mixin` in these files, in reading order."""
    found = []
    for file in files:
        tree = ast.parse((PACKAGE / f"{file}.py").read_text(encoding="utf-8"))
        for owner in tree.body:
            if isinstance(owner, ast.ClassDef) and owner.name.endswith(("Trainer", "Mixin")):
                for node in owner.body:
                    if isinstance(node, ast.FunctionDef):
                        found.append(Method(file, owner.name, node.name, node))
    return found


def writes(method: Method) -> set[str]:
    """Everything that the method assigns or deletes through `self`, and through an argument named `args`.

    Dotted, without `self`: `model`, `state.epoch`, `args.eval_steps`.
    """
    return {path for target in _targets(method.node) if (path := _path(target)) is not None}


def events(method: Method) -> set[str]:
    """The events that the method fires itself: its calls of `self.callback_handler.on_*`."""
    return {
        node.func.attr
        for node in ast.walk(method.node)
        if isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr.startswith("on_")
        and ast.unparse(node.func.value) == "self.callback_handler"
    }


def calls(method: Method, names: set[str]) -> set[str]:
    """Those of `names` that the method reaches as `self.name` or `Trainer.name`."""
    return {
        node.attr
        for node in ast.walk(method.node)
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id in ("self", "Trainer")
        and node.attr in names
    }


def section(docstring: str, title: str) -> str | None:
    """The text of one section, such as `Writes: …`, with its continuation lines; None if there is none."""
    lines = docstring.split("\n")
    for start, line in enumerate(lines):
        if line.startswith(f"{title}:"):
            text = [line[len(title) + 1 :]]
            for following in lines[start + 1 :]:
                if not following.startswith(" "):
                    break
                text.append(following)
            return " ".join(part.strip() for part in text).strip().rstrip(".")
    return None


def listed(docstring: str, title: str) -> set[str]:
    """The comma-separated names of a section; empty if it is not there."""
    text = section(docstring, title)
    return set() if text is None else {name.strip().strip("`") for name in text.split(",") if name.strip()}


def source_ranges(docstring: str) -> list[tuple[str, int, int]]:
    """The `Source:` section: file, first and last line, for each place that it names."""
    text = section(docstring, "Source")
    if text is None:
        return []
    found = re.findall(r"(?:([\w/]+\.py) )?(\d+)-(\d+)", text)
    ranges, file = [], ""
    for name, first, last in found:
        file = name or file
        ranges.append((file, int(first), int(last)))
    return ranges


def code_lines(path: Path) -> int:
    """Lines that hold code: neither blank, nor only a comment, nor part of a docstring."""
    text = path.read_text(encoding="utf-8")
    tokens = tokenize.generate_tokens(io.StringIO(text).readline)
    holding: set[int] = set()
    layout = (tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER)
    for token in tokens:
        if token.type not in layout:
            holding.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            holding.difference_update(range(node.lineno, (node.end_lineno or node.lineno) + 1))
    return len(holding)


def normal_lines(text: str) -> list[tuple[int, str]]:
    """Number and text of the lines that count in a comparison: stripped, without blanks, bare brackets and signatures.

    Signatures are left out because they have to be upstream's, to the last default.
    """
    signatures: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            signatures.update(range(node.lineno, node.body[0].lineno))
    lines = enumerate((line.strip() for line in text.split("\n")), start=1)
    return [(number, line) for number, line in lines if re.search(r"\w", line) and number not in signatures]


def texts(text: str) -> list[tuple[int, str, bool]]:
    """Line, words and kind of every string in a file: messages (False), and docstrings and comments (True).

    What an f-string fills in, an address on the web and code in backticks within prose stand as a gap, "|".
    """
    tree = ast.parse(text)
    owners = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = {
        id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, owners) and _has_docstring(node)
    }
    within = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr) for part in node.values}
    found = [(line, re.sub("`[^`]*`", " | ", comment), True) for line, comment in _comments(text)]
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            parts = [str(part.value) if isinstance(part, ast.Constant) else " | " for part in node.values]
            found.append((node.lineno, "".join(parts), False))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in within:
            is_prose = id(node) in docstrings
            words = re.sub("`[^`]*`", " | ", node.value) if is_prose else node.value
            found.append((node.lineno, words, is_prose))
    return [(line, re.sub(r"https?://\S+", " | ", words), is_prose) for line, words, is_prose in found]


def word_runs(words: str, length: int) -> set[tuple[str, ...]]:
    """Every run of so many words in a row, in lower case; none reaches across a gap."""
    runs: set[tuple[str, ...]] = set()
    for piece in words.lower().split("|"):
        found = re.findall(r"[a-z_][\w'-]*", piece)
        runs.update(tuple(found[start : start + length]) for start in range(len(found) - length + 1))
    return runs


def _has_docstring(node: ast.Module | ast.ClassDef | ast.FunctionDef) -> bool:
    return ast.get_docstring(node, clean=False) is not None


def _comments(text: str) -> list[tuple[int, str]]:
    """Comments, those on neighbouring lines joined."""
    blocks: list[tuple[int, int, str]] = []
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            line, words = token.start[0], token.string.lstrip("# ")
            if blocks and blocks[-1][1] == line - 1:
                first, _, earlier = blocks.pop()
                blocks.append((first, line, f"{earlier} {words}"))
            else:
                blocks.append((line, line, words))
    return [(first, words) for first, _, words in blocks]


def _targets(node: ast.AST) -> Iterator[ast.expr]:
    for child in ast.walk(node):
        if isinstance(child, (ast.Assign, ast.Delete)):
            yield from child.targets
        elif isinstance(child, (ast.AugAssign, ast.AnnAssign, ast.For, ast.NamedExpr)):
            yield child.target
        elif isinstance(child, ast.withitem) and child.optional_vars is not None:
            yield child.optional_vars
        elif isinstance(child, (ast.Tuple, ast.List)) and isinstance(child.ctx, (ast.Store, ast.Del)):
            yield from child.elts
        elif (
            isinstance(child, ast.Call)
            and isinstance(child.func, ast.Name)
            and child.func.id in ("setattr", "delattr")
            and ast.unparse(child.args[0]) in ("self", "args", "self.args")
            and isinstance(child.args[1], ast.Constant)  # else a name that only the run knows, such as a search's
        ):
            yield ast.Attribute(value=child.args[0], attr=str(child.args[1].value), ctx=ast.Store())


def _path(target: ast.expr) -> str | None:
    names: list[str] = []
    while isinstance(target, ast.Attribute):
        names.append(target.attr)
        target = target.value
    if not names or not isinstance(target, ast.Name) or target.id not in ("self", "args"):
        return None
    if target.id == "args":
        names.append("args")
    return ".".join(reversed(names))


# Read next: test_ledger.py
