"""Executes what stands on pages, and compares what was printed with what the page says was printed.

`python` blocks of a page share one namespace and run in order; `python reference` blocks have one of their own, on the
real 4.31.0. `console` and `try` blocks run each line that begins with `$ `. All of it happens in forks of two
processes, one for each version of transformers (`jobs.py`), in empty temporary folders.
"""

from __future__ import annotations

import difflib
import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .errors import BookError
from .pages import ROOT, Block, Page

REFERENCE = "4.31.0"
WIDTH = 100
"""Columns of the terminal in which commands run."""

ANY = "…"
"""A line that is only this stands for any number of lines."""

SURROUNDINGS = {
    "COLUMNS": str(WIDTH),
    "NO_COLOR": "1",
    "OMP_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PYTHONWARNINGS": "ignore",
    "PYTHONHASHSEED": "0",
}


@dataclass(frozen=True)
class Ran:
    """A block that was executed: what it printed, what went wrong ("" for nothing), and how long it took."""

    page: Page
    block: Block
    printed: str
    error: str
    seconds: float


@dataclass(frozen=True)
class _Task:
    """One thing to execute: a Python block, or one command of a console block."""

    page: Page
    block: Block
    kind: str
    text: str
    is_reference: bool


def run(pages: Sequence[Page]) -> list[Ran]:
    """Execute all blocks of these pages. A console block gives one `Ran` for each of its commands."""
    tasks = [task for page in pages for task in _tasks(page)]
    done: dict[int, Ran] = {}
    for is_reference in (False, True):
        chosen = [task for task in tasks if task.is_reference == is_reference]
        if chosen:
            for task, ran in zip(chosen, _execute(chosen, is_reference), strict=True):
                done[id(task)] = ran
    return [done[id(task)] for task in tasks]


def _tasks(page: Page) -> list[_Task]:
    tasks = []
    for block in page.blocks:
        if block.kind == "python" and "no-run" not in block.words:
            tasks.append(_Task(page, block, "python", block.body, "reference" in block.words))
        elif block.kind in ("console", "try"):
            for command, _ in commands(page, block):
                tasks.append(_Task(page, block, "command", command, False))
    return tasks


def commands(page: Page, block: Block) -> list[tuple[str, list[str]]]:
    """The commands of a console block, each with the lines that stand below it. A command may go on after `\\`."""
    found: list[tuple[str, list[str]]] = []
    goes_on = False
    for line in block.body.splitlines():
        if goes_on:
            command, lines = found[-1]
            found[-1] = (command[:-1].rstrip() + " " + line.strip(), lines)
            goes_on = line.rstrip().endswith("\\")
        elif line.startswith("$ "):
            found.append((line[2:].strip(), []))
            goes_on = line.rstrip().endswith("\\")
        elif found:
            found[-1][1].append(line.rstrip())
        elif line.strip():
            raise BookError(f"{page.where(block.line)}: a {block.kind} block begins with a command: $ python -m …")
    if not found:
        raise BookError(f"{page.where(block.line)}: no command in this {block.kind} block")
    return found


def _execute(tasks: Sequence[_Task], is_reference: bool) -> list[Ran]:
    """Run tasks in a child process, the Python blocks of a page together and each command for itself."""
    jobs: list[dict] = []
    places: list[tuple[int, int]] = []
    of_page: dict[str, int] = {}
    for task in tasks:
        item = {"kind": task.kind, "text": task.text, "line": task.block.line + 1}
        # Commands and Python of a page share a folder: what a script writes a command may show.
        if task.page.name not in of_page:
            of_page[task.page.name] = len(jobs)
            jobs.append({"page": task.page.name, "blocks": []})
        number = of_page[task.page.name]
        places.append((number, len(jobs[number]["blocks"])))
        jobs[number]["blocks"].append(item)
    with tempfile.TemporaryDirectory(prefix="minitrainer-book-") as folder:
        asked, answered = Path(folder) / "jobs.json", Path(folder) / "results.json"
        asked.write_text(json.dumps(jobs), encoding="utf-8")
        said = _child(is_reference, [str(asked), str(answered)])
        if not answered.exists():
            raise BookError(f"the blocks could not be run: {said[-600:]}")
        results = json.loads(answered.read_text(encoding="utf-8"))
    ran = []
    for task, (number, position) in zip(tasks, places, strict=True):
        result = results[number]
        if position < len(result["blocks"]):
            one = result["blocks"][position]
            ran.append(Ran(task.page, task.block, one["printed"], one["error"], one["seconds"]))
        else:
            reason = result["error"] or "not run, because a block before it failed"
            ran.append(Ran(task.page, task.block, "", reason, 0.0))
    return ran


def _child(is_reference: bool, arguments: list[str]) -> str:
    argv = ["-m", "minitrainer.book.jobs", *arguments]
    if is_reference:
        from minitrainer.trace import upstream

        finished = upstream.run_in(
            REFERENCE, argv, env={**SURROUNDINGS, "PYTHONPATH": str(ROOT)}, capture=True, timeout=600, cwd=ROOT,
            add_if_missing=True, resume_own_checkpoints=True,
        )  # fmt: skip
        return str(finished.stderr or finished.stdout or "")
    surroundings = {**os.environ, **SURROUNDINGS}
    finished_here = subprocess.run(
        [sys.executable, *argv], cwd=ROOT, env=surroundings, text=True, capture_output=True, timeout=900, check=False
    )
    return finished_here.stderr or finished_here.stdout


# -- comparing -----------------------------------------------------------------------------------------


def agrees(expected: Sequence[str], printed: str) -> bool:
    """Whether what was printed is what is expected, line by line; a line `…` stands for any lines."""
    want = [line.rstrip() for line in expected]
    have = [line.rstrip() for line in printed.splitlines()]
    while want and not want[-1]:
        want.pop()
    while have and not have[-1]:
        have.pop()
    pattern = "".join(r"(?:.*\n)*" if line.strip() == ANY else re.escape(line) + r"\n" for line in want)
    return re.fullmatch(pattern, "".join(line + "\n" for line in have)) is not None


def missing_in_order(expected: Sequence[str], printed: str) -> str | None:
    """The first expected line that what was printed doesn't contain at or after the place of the one before it."""
    have = [" ".join(line.split()) for line in printed.splitlines()]
    at = 0
    for line in expected:
        wanted = " ".join(line.split())
        if not wanted or wanted == ANY:
            continue
        found = next((i for i in range(at, len(have)) if wanted in have[i]), None)
        if found is None:
            return line.strip()
        at = found + 1
    return None


def difference(expected: Sequence[str], printed: str) -> str:
    """What the page says and what was printed, as a diff of at most 40 lines."""
    lines = difflib.unified_diff(
        [line.rstrip() for line in expected],
        [line.rstrip() for line in printed.splitlines()],
        "on the page",
        "printed",
        lineterm="",
    )
    shown = list(lines)
    return "\n".join("    " + line for line in shown[:60])


# Read next: jobs.py, which is what the child processes run.
