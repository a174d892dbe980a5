"""What the scenario tests share: both environments, running a scenario, reading what it left behind."""

from __future__ import annotations

import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import transformers

from minitrainer.trace import scenarios

# The same test twice: in the everyday environment, and in the child process on the real 4.31.0.
in_both_environments = pytest.mark.parametrize(
    "environment", ["everyday", pytest.param("reference", marks=pytest.mark.reference)]
)

CLOCK_KEYS = ("_runtime", "_per_second")


def run(name: str, folder: Path, *words: str, library: ModuleType = transformers) -> Path:
    """Run the scenario `name` with `library`'s Trainer; return its output folder, which is `folder`."""
    words = ("--output_dir", str(folder), "--disable_tqdm", "true", *words)
    assert scenarios.load(name).main(library, list(words)) == 0
    return folder


def log_history(folder: Path) -> list[dict[str, Any]]:
    """The run's log records, without what a clock measured."""
    state = json.loads((folder / "trainer_state.json").read_text())
    return [
        {key: value for key, value in record.items() if not key.endswith(CLOCK_KEYS)}
        for record in state["log_history"]
    ]


def results(folder: Path) -> dict[str, Any]:
    """What the scenario saved with `save_metrics`."""
    return json.loads((folder / "all_results.json").read_text())


# Read next: test_data.py
