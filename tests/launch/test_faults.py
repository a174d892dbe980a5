"""One rank fails: all end, the error is there, the joined trace says who stopped where, and the checkpoint goes on."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from minitrainer.parts.checkpoints import get_last_checkpoint
from minitrainer.trace import events, ranks

from . import programs
from .starting import LIMIT_SECONDS, Ended, run

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run without a fault."""
    folder = tmp_path_factory.mktemp("unbroken")
    ended = run(folder)
    assert ended.statuses == [0, 0] and ended.verdict == "", ended.printed
    return folder


def resumes_to_the_same_end(folder: Path, unbroken: Path) -> None:
    """Go on from the last checkpoint, and come to the weights of the run that was never interrupted."""
    ended = run(folder, resume=True)
    assert ended.statuses == [0, 0], ended.printed
    for rank in range(2):
        name = f"weights{rank}.pt"
        here, there = (torch.load(each / name, weights_only=True) for each in (folder, unbroken))
        assert here.keys() == there.keys() and here
        assert all(torch.equal(here[key], there[key]) for key in here)


def first_to_part(ended: Ended) -> dict[int, str]:
    """Rank to the last event that it fired."""
    last: dict[int, str] = {}
    for rank, reading in ranks.open_run(ended.trace).readings.items():
        last[rank] = [record.event for record in reading if isinstance(record, events.Event)][-1]
    return last


def test_a_killed_rank(tmp_path: Path, unbroken: Path) -> None:
    """SIGKILL in the middle of step 5: the other rank fails at once, and step 4's checkpoint is whole."""
    ended = run(tmp_path, "killed")
    assert ended.statuses == [1, -9]
    assert ended.printed[0].rstrip().splitlines()[-1].startswith("RuntimeError")
    assert ended.verdict == (
        "rank 1 was cut off in compute_loss after on_substep_end, 4 steps done; "
        "rank 0 stopped by RuntimeError in training_step, 4 steps done"
    )
    assert Path(get_last_checkpoint(str(tmp_path / "output"))).name == "checkpoint-4"
    resumes_to_the_same_end(tmp_path, unbroken)


def test_a_rank_whose_data_runs_out(tmp_path: Path) -> None:
    """It leaves the loop while the other still waits for its gradients: both give up after the time-out."""
    ended = run(tmp_path, "out of data")
    assert ended.statuses == [1, 1], ended.printed
    assert programs.COLLECTIVE_LIMIT_SECONDS < ended.seconds < LIMIT_SECONDS
    assert ended.verdict == (
        "rank 0 stopped by RuntimeError in training_step, 5 steps done; "
        "rank 1 stopped by RuntimeError in store_flos, 5 steps done"
    )
    assert first_to_part(ended) == {0: "on_substep_end", 1: "on_epoch_end"}
    # What was saved before is whole, and both ranks can begin from it, each with data enough.
    assert Path(get_last_checkpoint(str(tmp_path / "output"))).name == "checkpoint-4"
    assert run(tmp_path, resume=True).statuses == [0, 0]


def test_a_rank_that_never_evaluates(tmp_path: Path, unbroken: Path) -> None:
    """A callback takes `should_evaluate` back on one rank alone: their collectives no longer fit each other."""
    ended = run(tmp_path, "never evaluates")
    assert None not in ended.statuses and 0 not in ended.statuses, ended
    # Which of the two notices first is the network's affair, and with it the place where rank 0 is left.
    assert "rank 1" in ended.verdict and "rank 0 stopped by RuntimeError in " in ended.verdict
    assert ended.verdict.count("6 steps done") == 2
    flags = [
        (record.flag, record.new, record.by)
        for record in ranks.open_run(ended.trace).readings[1]
        if isinstance(record, events.Flag) and not record.new and record.by.startswith("Forgetful")
    ]
    assert flags == [("should_evaluate", False, "Forgetful.on_step_end")]
    assert Path(get_last_checkpoint(str(tmp_path / "output"))).name == "checkpoint-4"
    resumes_to_the_same_end(tmp_path, unbroken)


def test_a_resume_with_another_number_of_ranks(tmp_path: Path, unbroken: Path) -> None:
    """As in 4.31.0 it goes on, which is another run; one line says so, and the trace shows fewer steps."""
    shutil.copytree(unbroken / "output" / "checkpoint-4", tmp_path / "output" / "checkpoint-4")
    ended = run(tmp_path, world_size=3, resume=True)
    assert ended.statuses == [0, 0, 0], ended.printed
    assert ended.printed[0].count("was written by 2 process(es) and is resumed by 3") == 1
    assert not any("was written by" in printed for printed in ended.printed[1:])
    # 64 rows are 5 steps of 2 micro-batches of 2 on 3 ranks, not 8: the trace of each rank ends there.
    steps = {
        rank: max(record.step for record in reading if isinstance(record, events.Event))
        for rank, reading in ranks.open_run(ended.trace).readings.items()
    }
    assert steps == {0: 5, 1: 5, 2: 5}


# Read next: tests/launch/test_collectives.py
