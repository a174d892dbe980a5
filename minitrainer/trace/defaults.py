"""Keeps the defaults of a version's training arguments beside a trace, so that two versions can be told apart by them.

A trace holds only the arguments that differ from their defaults. Where a default itself changes, both traces are
silent about it and the runs differ all the same: so the whole table is written down once for each run.
"""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path
from types import ModuleType
from typing import Any

FILE_NAME = "defaults.json"


def write(library: ModuleType, folder: str | os.PathLike[str]) -> None:
    """Write name and default of every field of the library's TrainingArguments; rank 0 does it for all."""
    if os.environ.get("RANK", "0") != "0":
        return
    table = {}
    for field in dataclasses.fields(library.TrainingArguments):
        if field.init and not field.name.startswith("_"):
            table[field.name] = _plain(field)
    text = json.dumps(table, indent=1, sort_keys=True, default=str)
    (Path(folder) / FILE_NAME).write_text(text + "\n", encoding="utf-8")


def read(folder: Path) -> dict[str, Any] | None:
    """The table beside a trace; None where there is none."""
    try:
        table = json.loads((folder / FILE_NAME).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return table if isinstance(table, dict) else None


def _plain(field: dataclasses.Field[Any]) -> Any:
    value = field.default
    if field.default_factory is not dataclasses.MISSING:
        value = field.default_factory()
    if value is dataclasses.MISSING:
        return None
    return getattr(value, "value", value)  # an enumeration stands by its text


# Read next: compare.py, which compares two such tables.
