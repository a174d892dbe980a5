"""What the ranks say to each other, by `collectives=True`: how much, when, and what is skipped while accumulating."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest
import torch

from minitrainer.trace import events, ranks

from . import programs
from .starting import run

pytestmark = pytest.mark.slow

PARAMETERS = 8 * 8 + 8 + 8 * 2 + 2


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run whose collectives were recorded."""
    folder = tmp_path_factory.mktemp("watched")
    ended = run(folder, collectives=True)
    assert ended.statuses == [0, 0], ended.printed
    return folder


def test_gradients_travel_once_a_step_and_not_while_accumulating(watched: Path) -> None:
    for reading in ranks.open_run(watched / "trace").readings.values():
        by_micro_batch: list[int] = []
        for record in reading:
            if isinstance(record, events.Call) and record.method == "training_step":
                by_micro_batch.append(0)
            elif isinstance(record, events.Collective) and record.part.startswith("gradients"):
                if record.dtype == "float32":  # beside them DDP asks once a step which parameters were used
                    by_micro_batch[-1] += record.elements
                assert (record.collective, record.ranks) == ("allreduce", 2)
        assert by_micro_batch == [0, PARAMETERS] * programs.STEPS


def test_a_log_gathers_one_number_a_rank(watched: Path) -> None:
    """In `_maybe_log_save_evaluate` before the log: the sum of the losses, and nothing else."""
    for reading in ranks.open_run(watched / "trace").readings.values():
        open_calls: list[str] = []
        gathered: Counter[tuple[str, int, str]] = Counter()
        for record in reading:
            if isinstance(record, events.Call):
                open_calls.append(record.method)
            elif isinstance(record, events.Return):
                open_calls.pop()
            elif isinstance(record, events.Collective) and open_calls[-2:] == [
                "_maybe_log_save_evaluate",
                "_nested_gather",
            ]:
                gathered[record.collective, record.elements, record.dtype] += 1
        assert gathered == {("allgather", 1, "float32"): programs.STEPS // programs.SAVE_STEPS}


def test_both_ranks_say_the_same_in_the_same_order(watched: Path) -> None:
    said = [
        [(each.collective, each.elements, each.dtype, each.part, each.by) for each in reading if is_collective(each)]
        for reading in ranks.open_run(watched / "trace").readings.values()
    ]
    assert said[0] == said[1] and len(said[0]) > 3 * programs.STEPS


def is_collective(record: events.Record) -> bool:
    return isinstance(record, events.Collective)


def test_watching_them_changes_nothing(watched: Path, tmp_path: Path) -> None:
    """The same weights, and the same rows but for the collectives."""
    ended = run(tmp_path)
    assert ended.statuses == [0, 0], ended.printed
    for rank in range(2):
        here, there = (torch.load(each / f"weights{rank}.pt", weights_only=True) for each in (watched, tmp_path))
        assert here and all(torch.equal(here[key], there[key]) for key in here)
    plain, with_them = (ranks.open_run(folder / "trace").readings[0] for folder in (tmp_path, watched))
    assert not any(map(is_collective, plain))
    assert [type(each) for each in with_them if not is_collective(each)] == [type(each) for each in plain]
    assert "torch.ops.c10d" in with_them.head.hooks and "torch.ops.c10d" not in plain.head.hooks


# Read next: tests/launch/test_launchers.py
