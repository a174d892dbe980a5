"""What the GPU tests keep: facts and traces, in the folder that MINITRAINER_GPU_FACTS names, if it is set."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .places import Group

Facts = Callable[[str, str], list[dict[str, Any]]]


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


def reader(groups: dict[tuple[str, str], Group]) -> Facts:
    """Return what gives the facts of one group, rank by rank, and keeps them, a group that failed as far as it came."""
    read: dict[tuple[str, str], list[dict[str, Any]]] = {}

    def of(environment: str, place: str) -> list[dict[str, Any]]:
        if (environment, place) not in read:
            name, group = f"{environment}-{place}", groups[environment, place]
            try:
                read[environment, place] = group.facts()
            except RuntimeError:
                keep(f"{name}-unfinished", group.what_is_there())
                raise
            found = read[environment, place]
            keep(name, found[0] if len(found) == 1 else found)
            keep_traces(name, group.folder / "traces")
        return read[environment, place]

    return of


def part(found: dict[str, Any], name: str) -> dict[str, Any]:
    """One part of a rank's facts; fails with the stack that it left, if it did."""
    assert "error" not in found[name], found[name]["error"]
    return found[name]


# Read next: tests/gpu/test_gpu.py
