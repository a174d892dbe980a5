"""What the GPU tests keep: facts and traces, in the folder that MINITRAINER_GPU_FACTS names, if it is set."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from pathlib import Path
from typing import Any

from .places import Key, Schedule


def folder_of_facts() -> Path | None:
    """Where facts are kept; None where they are not."""
    if (target := os.environ.get("MINITRAINER_GPU_FACTS")) is None:
        return None
    folder = Path(target)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def keep(name: str, found: Any) -> None:
    """Write facts as NAME.json."""
    if (folder := folder_of_facts()) is not None:
        (folder / f"{name}.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


def keep_traces(name: str, traces: Path) -> None:
    """Copy a folder of traces."""
    if (folder := folder_of_facts()) is not None and traces.is_dir():
        shutil.copytree(traces, folder / f"traces-{name}", dirs_exist_ok=True)


class Facts:
    """What the groups of a schedule have found: `facts("reference", "apart")` waits for it, a list over the ranks.

    Each is kept as soon as it is asked for, also that of a group which was cut short.
    """

    def __init__(self, schedule: Schedule):
        self.schedule = schedule
        self._read: dict[Key, list[dict[str, Any]]] = {}

    def __call__(self, what: str, place: str) -> list[dict[str, Any]]:
        if (what, place) not in self._read:
            group = self.schedule.groups[what, place].result()
            found = self._read[what, place] = group.facts()
            keep(f"{what}-{place}", found[0] if len(found) == 1 else found)
            keep_traces(f"{what}-{place}", group.folder / "traces")
        return self._read[what, place]

    def keep_what_is_done(self) -> None:
        """Keep also what no test came to ask for, because the tests were interrupted."""
        for key, group in self.schedule.groups.items():
            if group.done() and not group.cancelled():
                with contextlib.suppress(RuntimeError):  # no rank came far enough to leave a fact
                    self(*key)

    def folder(self, what: str, place: str) -> Path:
        """The folder of one group."""
        return self.schedule.groups[what, place].result().folder


def part(found: dict[str, Any], name: str) -> dict[str, Any]:
    """One part of a rank's facts; fails with the stack that it left, or with how the rank ended before it."""
    assert name in found, f"no answer to {name!r}: {found.get('cut_short', found['surroundings'])}"
    assert "error" not in found[name], found[name]["error"]
    return found[name]


# Read next: tests/gpu/test_gpu.py
