"""Reading order is execution order: callers stand above callees, and the reader seldom has to turn back."""

from __future__ import annotations

import re

from .source import PACKAGE, SUBCLASS_FILES, TRAINER_FILES, Method, calls, methods

# Two one-line questions that every theme asks. Nobody turns back to read them, so they are not counted.
QUESTIONS = {"is_world_process_zero", "is_local_process_zero"}

# 4.31.0's own class, counted in the same way, turns back 42 times (test_upstream.py counts).
MOST_JUMPS_BACK = 16


def jumps_back(found: list[Method]) -> list[tuple[str, str]]:
    """Pairs of caller and callee where the callee stands earlier; each pair once."""
    position = {method.name: place for place, method in enumerate(found)}
    edges = {(method.name, callee) for method in found for callee in calls(method, set(position) - QUESTIONS)}
    assert len(edges) > 80, "hardly any calls found: the check looks at nothing"
    return sorted(edge for edge in edges if position[edge[1]] < position[edge[0]])


def test_the_reader_seldom_turns_back() -> None:
    back = jumps_back(methods())
    assert len(back) <= MOST_JUMPS_BACK, f"{len(back)} jumps back: {back}"


def test_each_file_says_what_to_read_next() -> None:
    files = [*TRAINER_FILES]
    files.insert(files.index("attributes") + 1, "arguments")
    files.insert(files.index("search") + 1, "registry")
    for file, following in zip(files, files[1:], strict=False):
        assert last_line(file) == f"# Read next: {following}.py", file
    for file in SUBCLASS_FILES:
        assert re.fullmatch(r"# Read next: [\w/.]+\.py", last_line(file)), file


def last_line(file: str) -> str:
    return (PACKAGE / f"{file}.py").read_text(encoding="utf-8").rstrip("\n").rsplit("\n", 1)[-1]


# Read next: test_upstream.py
