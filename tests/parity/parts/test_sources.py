"""The `Source:` lines of arguments, callbacks, reporters and parts point at the definitions that they follow."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import minitrainer

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.reference

OURS = Path(minitrainer.__file__).parent
FILES = ["arguments.py", "callbacks.py", "notebook.py", "reporters.py"]
# What upstream has at the top of a module, not in a definition of that name.
NOT_DEFINITIONS = {"_start_neuron_processes", "default_progress_callback"}


def definitions(tree: ast.AST, owner: str = "") -> Iterator[tuple[str, int, int, str]]:
    """Every class and function, also those behind an `if`: its name, first and last line, docstring."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
            yield owner + node.name, first, node.end_lineno or first, ast.get_docstring(node) or ""
            if isinstance(node, ast.ClassDef):
                yield from definitions(node, f"{node.name}.")
        elif isinstance(node, ast.If | ast.Try):
            yield from definitions(node, owner)


def test_source_lines_are_those_of_the_definition() -> None:
    """Every one of them, first line (with decorators) to last."""
    upstream_folder, wrong, checked = Path(transformers.__file__).parent, [], 0
    for path in [OURS / name for name in FILES] + sorted((OURS / "parts").glob("*.py")):
        for name, _, _, docstring in definitions(ast.parse(path.read_text(encoding="utf-8"))):
            found = re.search(r"Source: (\S+\.py) (\d+)-(\d+)", docstring)
            if found is None:
                continue
            file, said = found[1], (int(found[2]), int(found[3]))
            theirs = definitions(ast.parse((upstream_folder / file).read_text(encoding="utf-8")))
            true = {their_name: (first, last) for their_name, first, last, _ in theirs}
            if name in NOT_DEFINITIONS:
                assert name not in true
            elif true.get(name) != said:
                wrong.append((path.name, name, said, true.get(name)))
            checked += 1
    assert wrong == []
    assert checked >= 80


# Read next: ../../parts/test_parts.py
