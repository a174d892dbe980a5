"""One rank fails: all end, the error is there, the joined trace says who stopped where, and the checkpoint goes on."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
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
    return whole_run(tmp_path_factory.mktemp("unbroken"), 2)


@pytest.fixture(scope="module")
def unbroken_alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one rank without a fault."""
    return whole_run(tmp_path_factory.mktemp("unbroken-alone"), 1)


def whole_run(folder: Path, world_size: int, machines: int = 1) -> Path:
    ended = run(folder, world_size=world_size, machines=machines)
    assert ended.statuses == [0] * world_size and ended.verdict == "", ended.printed
    return folder


def resumes_to_the_same_end(folder: Path, unbroken: Path, world_size: int = 2, machines: int = 1) -> None:
    """Go on from the last checkpoint, and come to the weights of the run that was never interrupted."""
    ended = run(folder, world_size=world_size, resume=True, machines=machines)
    assert ended.statuses == [0] * world_size, ended.printed
    for rank in range(world_size):
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


# -- another number of ranks --------------------------------------------------------------------------------


def digests(folder: Path) -> dict[str, str]:
    """What every file below the folder holds."""
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) > 5
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def refused(ended: Ended, before: int) -> None:
    """Each rank ended by the one error, before a step and before it could wait for another."""
    now = len(ended.statuses)
    assert ended.statuses == [1] * now, ended.printed
    assert ended.seconds < programs.COLLECTIVE_LIMIT_SECONDS
    for printed in ended.printed:
        last = printed.rstrip().splitlines()[-1]
        assert last.startswith("ValueError: ") and printed.count("Error: ") == 1, printed
        assert f"was saved by {before} rank(s), and this run has {now}: that cannot be the same run" in last
        assert f"Start {before} process(es), or pass ignore_data_skip=True" in last
    assert ended.verdict == "; ".join(
        f"rank {rank} stopped by ValueError in _check_number_of_ranks, 0 steps done" for rank in range(now)
    )
    readings = ranks.open_run(ended.trace).readings
    assert len(readings) == now
    assert not any(isinstance(record, events.Event) for reading in readings.values() for record in reading)


@pytest.mark.parametrize(("before", "now"), [(2, 3), (2, 1), (1, 2)])
def test_a_resume_with_another_number_of_ranks(
    before: int, now: int, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """4.31.0 goes on with other data. Ours refuses on every rank, and leaves the checkpoint to the right number."""
    whole = request.getfixturevalue("unbroken" if before == 2 else "unbroken_alone")
    checkpoint = tmp_path / "output" / "checkpoint-4"
    shutil.copytree(whole / "output" / "checkpoint-4", checkpoint)
    held = digests(checkpoint)
    refused(run(tmp_path, world_size=now, resume=True), before)
    assert digests(checkpoint) == held and [path.name for path in checkpoint.parent.iterdir()] == ["checkpoint-4"]
    shutil.rmtree(tmp_path / "resumed")
    resumes_to_the_same_end(tmp_path, whole, before)


def test_another_number_of_ranks_that_gives_up_the_position(tmp_path: Path, unbroken: Path) -> None:
    """With `ignore_data_skip` it goes on; one line says what that means, and the trace shows fewer steps."""
    shutil.copytree(unbroken / "output" / "checkpoint-4", tmp_path / "output" / "checkpoint-4")
    ended = run(tmp_path, world_size=3, resume=True, ignore_data_skip=True)
    assert ended.statuses == [0, 0, 0], ended.printed
    assert (
        ended.printed[0].count("was saved by 2 rank(s), and this run has 3. Data, steps and random states go on") == 1
    )
    assert not any("was saved by" in printed for printed in ended.printed[1:])
    # 64 rows are 5 steps of 2 micro-batches of 2 on 3 ranks, not 8: the trace of each rank ends there.
    steps = {
        rank: max(record.step for record in reading if isinstance(record, events.Event))
        for rank, reading in ranks.open_run(ended.trace).readings.items()
    }
    assert steps == {0: 5, 1: 5, 2: 5}


def test_a_checkpoint_without_random_states_is_nobodys(tmp_path: Path, unbroken: Path) -> None:
    """They may have been deleted, or never written: then nothing says how many ranks there were."""
    checkpoint = tmp_path / "output" / "checkpoint-4"
    shutil.copytree(unbroken / "output" / "checkpoint-4", checkpoint)
    for file in checkpoint.glob("rng_state*"):
        file.unlink()
    ended = run(tmp_path, world_size=1, resume=True)
    assert ended.statuses == [0], ended.printed
    assert "was saved by" not in ended.printed[0]


def test_a_checkpoint_that_was_written_over_counts_its_last_run(tmp_path: Path) -> None:
    """Two ranks and then one wrote the same folders: what the second rank left there is not counted any more."""
    assert run(tmp_path, world_size=2, max_steps=2).statuses == [0, 0]
    shutil.rmtree(tmp_path / "trace")
    checkpoint = tmp_path / "output" / "checkpoint-2"
    assert sorted(path.name for path in checkpoint.glob("rng*")) == ["rng_state_0.pth", "rng_state_1.pth"]
    assert run(tmp_path, world_size=1, max_steps=2).statuses == [0]
    assert [path.name for path in checkpoint.glob("rng*")] == ["rng_state.pth"]
    ended = run(tmp_path, world_size=1, max_steps=4, resume=True)
    assert ended.statuses == [0], ended.printed


def test_machines_that_share_no_disk_count_together(tmp_path: Path, unbroken: Path) -> None:
    """Each machine holds its own ranks' files: enough to go on, and to refuse on all of them alike."""
    saved = tmp_path / "saved"
    saved.mkdir()
    whole_run(saved, 2, machines=2)
    for machine in range(2):
        shutil.rmtree(saved / f"machine{machine}" / "output" / "checkpoint-8")
        shutil.rmtree(saved / f"machine{machine}" / "output" / "checkpoint-6")
        names = [path.name for path in (saved / f"machine{machine}" / "output" / "checkpoint-4").glob("rng*")]
        assert names == [f"rng_state_{machine}.pth"]
    # Twice the ranks on the same two machines: no machine sees more files than one, none goes on alone.
    refused(run(saved, world_size=4, resume=True, machines=2), 2)
    shutil.rmtree(saved / "resumed")
    # One machine alone, with the files of the second rank: they say that there was a first.
    alone = tmp_path / "alone"
    shutil.copytree(saved / "machine1" / "output" / "checkpoint-4", alone / "output" / "checkpoint-4")
    refused(run(alone, world_size=1, resume=True), 2)
    resumes_to_the_same_end(saved, unbroken, machines=2)


def test_the_command_line_says_it_in_its_last_line(tmp_path: Path) -> None:
    def traced(*words: str) -> subprocess.CompletedProcess[str]:
        argv = [sys.executable, "-m", "minitrainer.trace", "run_glue", "--quiet", "--max_steps", "2", *words]
        return subprocess.run(argv, capture_output=True, text=True, timeout=2 * LIMIT_SECONDS, check=False)

    saved = traced("--out", str(tmp_path / "saved"), "--save_strategy", "steps", "--save_steps", "1")
    checkpoint = tmp_path / "saved" / "output" / "checkpoint-1"
    assert saved.returncode == 0 and checkpoint.is_dir(), saved.stderr
    held = digests(checkpoint)
    trace = tmp_path / "resumed"
    ended = traced("--nproc", "3", "--out", str(trace), "--resume_from_checkpoint", str(checkpoint))
    assert ended.returncode == 1
    assert "Traceback" not in ended.stderr, ended.stderr
    complaints = {line for line in ended.stderr.splitlines() if "was saved by" in line}
    assert len(complaints) == 1  # of each rank that came to it before torchrun ended them all
    assert "was saved by 1 rank(s), and this run has 3: that cannot be the same run" in complaints.pop()
    last = ended.stderr.rstrip().splitlines()[-1]
    assert last.startswith("minitrainer.trace: the run failed (status 1): ")
    assert "stopped by ValueError in _check_number_of_ranks, 0 steps done" in last
    assert last.count("rank ") == 3 and all(f"rank {rank} " in last for rank in range(3))
    assert digests(checkpoint) == held


# Read next: tests/launch/test_collectives.py
