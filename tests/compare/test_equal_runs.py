"""Two recordings of one run have no finding: every scenario, recorded twice, on ours and on the installed Trainer."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from minitrainer.trace import events, layouts, scenarios
from minitrainer.trace.compare import compare_runs
from minitrainer.trace.rows import read
from minitrainer.trace.scenarios.flows import FLOWS

from .test_layouts import same_blocks

ON_ONE_RANK = [*(name for name in FLOWS if scenarios.RANKS.get(name, 1) == 1), "run_glue"]
ON_TWO_RANKS = [name for name in FLOWS if scenarios.RANKS.get(name, 1) == 2]


def test_the_scenarios_are_all_there():
    assert len(ON_ONE_RANK) == 20 and ON_TWO_RANKS == ["two-ranks-uneven"]


def record_twice(library: str, names: list[str], folder: Path, launcher: list[str] | None = None) -> tuple[Path, Path]:
    """Record scenarios twice, each time in a process of its own, and leave the recordings as they are."""
    for time in ("first", "second"):
        (folder / time).mkdir()
        words = [*(launcher or []), "-m", "minitrainer.trace.specification", "--in-place", library]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        done = subprocess.run(
            [sys.executable, *words, str(folder / time), *names], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr[-3000:]
    return folder / "first", folder / "second"


def check_equal(first: Path, second: Path, names: list[str], ranks: int = 1) -> None:
    compared = 0
    for name in names:
        comparison = compare_runs(first / name, second / name)
        assert comparison.findings == [] and comparison.renamed == [], name
        assert comparison.first is None and comparison.blocks > 1
        assert len(list((first / name).glob("rank*.rows"))) == ranks
        compared += 1
    assert compared == len(names)


@pytest.mark.parametrize("library", ["minitrainer", "transformers"])
def test_every_scenario_recorded_twice_is_equal(library, tmp_path, monkeypatch):
    first, second = record_twice(library, ON_ONE_RANK, tmp_path)
    check_equal(first, second, ON_ONE_RANK)
    monkeypatch.setattr(layouts, "SMALL_BYTES", 0)  # and once more by layouts, as recordings of a million rows are
    check_equal(first, second, ON_ONE_RANK)
    known = sum(same_blocks(first / name / "rank0.rows") for name in ON_ONE_RANK)
    assert known > 50
    calls = [row for row in read(first / "run_glue" / "rank0.rows") if type(row) is events.Call]
    assert any(call.private for call in calls)  # such calls are left out, and layouts must know it


def test_two_ranks_recorded_twice_are_equal(tmp_path):
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    first, second = record_twice("minitrainer", ON_TWO_RANKS, tmp_path, launcher)
    check_equal(first, second, ON_TWO_RANKS, ranks=2)


# Read next: test_audit.py, whether the numbers are right.
