"""Every name that a page may use in inline code, and where it comes from.

Known are the names in our own code, of our tests, in the Trainer of the transformers that is installed (and of the
accelerate beside it), in the committed traces and in Python itself. A page may also use names that its own blocks
introduce. What none of these holds stands in `foreign_names.txt`, each with where it is from.
"""

from __future__ import annotations

import ast
import builtins
import functools
import importlib.util
import io
import keyword
import re
import token
import tokenize
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from .pages import ROOT, Page

FOREIGN = Path(__file__).with_name("foreign_names.txt")

FILE_ENDINGS = "json|jsonl|pt|pth|bin|safetensors|py|md|txt|rows|csv|yml|yaml|toml|model|log|gitignore"

_EVENT = re.compile(r"(?<![\w.])on_[a-z]\w*")
_FLAG = re.compile(r"(?<![\w-])--[a-zA-Z][\w-]*")
_FILE = re.compile(rf"(?<![\w*…])(?:[\w.-]+/)*[\w.-]*\.(?:{FILE_ENDINGS})\b(?![\w(])")
_DEFINED = re.compile(r"^[ \t]*(?:def|class) (\w+)", re.MULTILINE)
_NAME = re.compile(r"[A-Za-z_]\w*")
_LIBRARIES = {
    "transformers": ("trainer*.py", "training_args*.py", "modelcard.py", "optimization.py", "data/data_collator.py",
                     "integrations/*.py", "utils/__init__.py", "utils/hub.py", "trainer.py", "hf_argparser.py",
                     "modeling_utils.py", "generation/utils.py", "generation/configuration_utils.py",
                     "tokenization_utils_base.py", "debug_utils.py", "utils/logging.py"),
    "accelerate": ("accelerator.py", "data_loader.py", "utils/*.py", "state.py", "optimizer.py", "scheduler.py",
                   "checkpointing.py"),
}  # fmt: skip
"""Files of other packages whose names are known. They are read, not imported."""


@dataclass(frozen=True)
class Vocabulary:
    """What exists.

    Attributes:
        names: identifiers, and words of strings that look like them.
        events: `on_…` methods of callbacks, ours and the installed transformers'.
        flags: arguments of command lines, with their dashes.
        files: base names of files in the repository, in recorded runs and in strings of the code.
    """

    names: frozenset[str]
    events: frozenset[str]
    flags: frozenset[str]
    files: frozenset[str]


@functools.lru_cache(maxsize=1)
def vocabulary() -> Vocabulary:
    """Collect every known name; takes a second, once."""
    names = {*dir(builtins), *keyword.kwlist, *keyword.softkwlist}
    files: set[str] = set()
    flags: set[str] = set()
    for path in _sources():
        text = path.read_text(encoding="utf-8", errors="replace")
        for word in _words_of(text):
            names.add(word)
        files.update(Path(found).name for found in _FILE.findall(text))
        flags.update(_FLAG.findall(text))
    for path in sorted((ROOT / "traces").rglob("rank0.jsonl")):
        text = path.read_text(encoding="utf-8")
        names.update(_NAME.findall(text))
        files.update(Path(found).name for found in _FILE.findall(text))
    for path in sorted((ROOT / "tests").rglob("*.py")):
        names.update(_DEFINED.findall(path.read_text(encoding="utf-8")))
    files.update(path.name for path in _tracked())
    names.update(part for path in _tracked() for part in _NAME.findall(path.as_posix()))
    foreign = _foreign()
    names |= foreign
    files |= foreign
    flags |= {word for word in foreign if word.startswith("--")}
    arguments = _fields(ROOT / "minitrainer" / "arguments.py") | _fields(_library("transformers") / "training_args.py")
    flags |= {f"--{name}" for name in arguments} | {f"--no_{name}" for name in arguments}
    events = _methods(ROOT / "minitrainer" / "callbacks.py") | _methods(
        _library("transformers") / "trainer_callback.py"
    )
    return Vocabulary(frozenset(names), frozenset({*events, *foreign}), frozenset(flags), frozenset(files))


def _sources() -> Iterator[Path]:
    yield from sorted((ROOT / "minitrainer").rglob("*.py"))
    for library, patterns in _LIBRARIES.items():
        for pattern in patterns:
            yield from sorted(_library(library).glob(pattern))


def _library(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def _tracked() -> Iterator[Path]:
    for folder in ("minitrainer", "tests", "traces", "chapters"):
        for path in (ROOT / folder).rglob("*"):
            if "__pycache__" not in path.parts:
                yield path.relative_to(ROOT)
    yield from (path.relative_to(ROOT) for path in ROOT.glob("*.*") if path.is_file())
    yield from (Path("Makefile"), Path("LICENSE"))


def _words_of(text: str) -> Iterator[str]:
    """Identifiers of a source, and those inside its strings that are no docstrings."""
    try:
        tokens = list(tokenize.generate_tokens(io.StringIO(text).readline))
    except (tokenize.TokenError, SyntaxError):
        return
    for one in tokens:
        if one.type == token.NAME:
            yield one.string
        elif (
            one.type == token.STRING
            and '"""' not in one.string[:5]
            or one.type == getattr(token, "FSTRING_MIDDLE", -1)
        ):
            yield from _NAME.findall(one.string)


def _fields(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {
        node.target.id
        for owner in ast.walk(tree)
        if isinstance(owner, ast.ClassDef)
        for node in owner.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    }


def _methods(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name.startswith("on_")}


def _foreign() -> set[str]:
    lines = FOREIGN.read_text(encoding="utf-8").splitlines()
    return {line.split("  ")[0].strip() for line in lines if line.strip() and not line.startswith("#")}


# -- one page ------------------------------------------------------------------------------------------


def unknown(page: Page) -> tuple[int, list[str]]:
    """Look at every name in a page's inline code.

    Returns:
        How many names were looked at, and a sentence for each that exists nowhere.
    """
    known = vocabulary()
    own = {word for block in page.blocks for word in _NAME.findall(block.body)}
    own_files = {Path(found).name for block in page.blocks for found in _FILE.findall(block.body)}
    looked_at = 0
    wrong = []
    for line, span in page.inline_code():
        for what, name, exists in _names_in(span, known, own, own_files):
            looked_at += 1
            if not exists:
                wrong.append(f"{page.where(line)}: `{span}`: there is no {what} {name}")
    return looked_at, wrong


def _names_in(
    span: str, known: Vocabulary, own: Iterable[str], own_files: Iterable[str]
) -> Iterator[tuple[str, str, bool]]:
    if "<" in span and ">" in span and "/" in span:
        return  # HTML, or a place holder
    rest = re.sub(r"<[\w ]+>", " ", span)  # a place holder, as in `<HUB_TOKEN>`
    for found in _FILE.findall(span):
        if "*" not in found:
            yield "file", found, Path(found).name in known.files or Path(found).name in own_files
        rest = rest.replace(found, " ")
    for found in _FLAG.findall(rest):
        yield "flag", found, found in known.flags
        rest = rest.replace(found, " ")
    for found in _EVENT.findall(rest):
        yield "event", found, found in known.events or found in known.names or found in own
        rest = rest.replace(found, " ")
    rest = re.sub(r"\"[^\"]*\"|'[^']*'", " ", rest)
    for match in _NAME.finditer(rest):
        word = match[0]
        called = rest[match.end() : match.end() + 1] == "("
        if called or "_" in word.strip("_") or word.startswith("_") or re.search(r"[a-z][A-Z]", word):
            yield ("method" if called else "name"), word, word in known.names or word in own


# Read next: runs.py, which executes what stands on a page.
