"""Make the frozen locks again: one plan for each Python, merged into one requirements file.

    python minitrainer/trace/locks/remake.py --python python3.10 --python python3.11 … 4.31.0 4.36.2

Each interpreter needs pip and packaging, nothing else. What it resolves is what `upstream add` would install for a
version without a lock; freezing it means that next year's `add` installs the same. Where two Pythons get different
versions, because wheels exist for one and not for the other, the lines carry a python_version marker.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]

PLAN_SCRIPT = """
import dataclasses, json, pathlib, sys, tempfile
from minitrainer.trace import fetching, plans
with tempfile.TemporaryDirectory() as name, fetching.Progress(sys.stderr) as progress:
    folder = pathlib.Path(name)
    workshop = fetching.Workshop(folder, folder, f"transformers {sys.argv[1]}", "remake.py", progress)
    print(json.dumps([dataclasses.asdict(requirement) for requirement in plans.resolve(sys.argv[1], workshop)]))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description="Resolve versions under several Pythons and write their locks.")
    parser.add_argument("--python", action="append", required=True, help="an interpreter; give one for each version")
    parser.add_argument("versions", nargs="+")
    options = parser.parse_args()
    for version in options.versions:
        plans = {}
        for interpreter in options.python:
            python = ask(interpreter, "import sys; print('%d.%d' % sys.version_info[:2])").strip()
            plan = plan_of(interpreter, version)
            if plan is not None:
                plans[python] = plan
        lock = HERE / f"{version}.txt"
        lock.write_text(lock_text(version, plans, tried=len(options.python)), encoding="utf-8")
        print(f"{lock}: {len(lock.read_text(encoding='utf-8').splitlines())} lines, Python {', '.join(plans)}")
    return 0


def ask(interpreter: str, script: str, *arguments: str) -> str:
    """Run a script under an interpreter, from the project's root, and return what it prints."""
    return subprocess.run(
        [interpreter, "-c", script, *arguments], cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True
    ).stdout


def plan_of(interpreter: str, version: str) -> list[dict[str, Any]] | None:
    """Return what this interpreter would install, or None when the version is not for this Python."""
    try:
        return json.loads(ask(interpreter, PLAN_SCRIPT, version))
    except subprocess.CalledProcessError:
        print(f"{interpreter} can't have {version}; the lock leaves it out", file=sys.stderr)
        return None


def lock_text(version: str, plans: dict[str, list[dict[str, Any]]], tried: int) -> str:
    """Merge the plans of several Pythons, oldest Python first, into the text of one lock."""
    pythons = sorted(plans, key=lambda python: tuple(map(int, python.split("."))))
    lines = [
        f"# transformers {version} and everything it needs beyond torch, for Python {pythons[0]} to {pythons[-1]}.",
        "# Resolved by pip from the packages' own metadata, with the accelerate, huggingface_hub and datasets of its",
        "# season, then frozen by locks/remake.py. `pip install --no-deps --target FOLDER -r` takes it as it is.",
        "# torch and what torch itself requires are not here: they are shared, never fetched.",
    ]
    if len(pythons) < tried:
        lines.append(f"# needs Python >={pythons[0]}")
    entries: dict[str, dict[str, str]] = {}
    for python in pythons:
        for requirement in plans[python]:
            pin = f"{requirement['name']}=={requirement['version']}"
            if requirement["stands_in_for"]:
                pin += f"  # stands in for {requirement['stands_in_for']}"
            elif requirement["shared_range"] is not None:
                pin += f"  # shared when installed: {requirement['shared_range'] or 'any'}"
            entries.setdefault(requirement["name"], {})[python] = pin
    for name in sorted(entries):
        runs: list[tuple[str, list[str]]] = []  # neighbouring Pythons with the same line
        for python in pythons:
            pin = entries[name].get(python, "")
            if runs and runs[-1][0] == pin:
                runs[-1][1].append(python)
            else:
                runs.append((pin, [python]))
        for pin, covered in runs:
            if not pin:
                continue
            bounds = []
            if covered[0] != pythons[0]:
                bounds.append(f'python_version >= "{covered[0]}"')
            if covered[-1] != pythons[-1]:  # the newest one's line also serves Pythons that are newer still
                bounds.append(f'python_version < "{pythons[pythons.index(covered[-1]) + 1]}"')
            statement, _, remark = pin.partition("  # ")
            line = f"{statement} ; {' and '.join(bounds)}" if bounds else statement
            lines.append(f"{line}  # {remark}" if remark else line)
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
