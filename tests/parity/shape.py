"""What of an observation must be the same in every environment: order, flags, counts, shapes, names — not numbers.

Other versions of accelerate shuffle otherwise, so the numbers of a run in the everyday environment are not those of
the reference. Which methods and events follow one another, with which flags, at which steps, on batches of which size,
and which files are left, is the same.

As a program it records the real Trainer's observations in the reference environment, for a test outside it to read:
`python -m tests.parity.shape PLAN ANSWERS`.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path
from typing import Any

from .observation import Bits, Observation
from .run import real_library, run_case

# what the numbers decide, or what only some versions of the libraries count
NUMBERS_IN_STATE = {"best_metric", "best_model_checkpoint", "total_flos", "<type>"}


def shape_of(observation: Observation) -> dict[str, Any]:
    """Reduce an observation to what every environment shares."""
    return {
        "timeline": [shape_of_entry(entry) for entry in observation.timeline if entry["kind"] != "arguments"],
        "files": sorted(observation.files),
        "log_keys": [sorted(entry) for entry in log_history(observation)],
    }


def shape_of_entry(entry: dict[str, Any]) -> dict[str, Any]:
    """One timeline entry without its numbers."""
    kind = entry["kind"]
    kept: dict[str, Any] = {"kind": kind, "depth": entry["depth"]}
    if kind == "event":
        state = {name: value for name, value in entry["state"].items() if name not in NUMBERS_IN_STATE}
        kept |= {"event": entry["event"], "before": entry["before"], "after": entry.get("after"), "state": state}
        kept["given"] = {name: sorted(map(str, value)) for name, value in entry["given"].items()}
    elif kind == "forward":
        kept |= {"training": entry["training"], "gradients": entry["gradients"], "inputs": samples_in(entry["inputs"])}
    elif kind == "failure":
        kept["failure"] = entry["failure"].kind
    elif kind == "method":
        kept["method"] = entry["method"]
    elif kind in ("begin", "result"):
        kept["call"] = entry["call"]
    return kept


def samples_in(inputs: dict[str, Any]) -> dict[str, Any]:
    """For each input the number of samples; lengths depend on which samples came together."""
    return {name: value.shape[:1] if isinstance(value, Bits) else str(value) for name, value in inputs.items()}


def log_history(observation: Observation) -> list[dict[str, Any]]:
    """The log of the last Trainer."""
    state = observation.final[-1].get("state") if observation.final else None
    return [entry for entry in (state or {}).get("log_history", []) if isinstance(entry, dict)]


def main(plan: Path, answers: Path) -> None:
    """Run a plan of cases with the real Trainer and write the shapes of what it did."""
    cases = pickle.loads(plan.read_bytes())
    answers.write_bytes(pickle.dumps([shape_of(run_case(case, real_library())) for case in cases]))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))

# Read next: tests/parity/test_everyday.py
