"""Runs Cases on several ranks, with both libraries in the same processes, and compares on every rank.

    parent  starts one process a rank, hands them the cases, and collects what each rank found
    rank    for every case: a fresh gloo group, the real Trainer, a fresh gloo group, ours, the comparison

One launch runs many cases: starting the processes costs more than fifty of them. The ranks meet between runs through a
key-value store, not through the group under test, so that a rank whose run failed does not take the others with it.
"""

from __future__ import annotations

import datetime
import gc
import os
import pickle
import socket
import subprocess
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from . import run
from .cases import Case
from .compare import first_difference, last_failure
from .mutants import MUTANTS
from .run import Library, our_library, real_library, run_case

COLLECTIVE_LIMIT_SECONDS = 20  # a rank that waits longer for the others is told so by gloo
STORE_LIMIT_SECONDS = 120
ROOT = Path(__file__).resolve().parents[2]

# -- parent ----------------------------------------------------------------------------------------------------------


@dataclass
class RankAnswer:
    """What one rank found in one case.

    Attributes:
        difference: The first difference between the two libraries, or None.
        steps: Optimizer steps that the real Trainer took on this rank.
        failure: How the real Trainer's run ended, or None if it ended well.
    """

    difference: str | None
    steps: int
    failure: str | None


def compare_on_ranks(cases: list[Case], world_size: int, against: str | list[str] = "ours") -> list[list[RankAnswer]]:
    """Run every case on `world_size` ranks with the real library and with another, and compare rank by rank.

    Args:
        cases: What to run.
        world_size: Number of processes.
        against: `ours`, `real` (the harness against itself), or the name of a mutant; one for all cases, or one each.

    Returns:
        For every case, a list over the ranks.

    Raises:
        RuntimeError: A rank died without an answer; the text holds its output.
    """
    with tempfile.TemporaryDirectory(prefix="parity-ranks-") as folder:
        plan = Path(folder, "plan.pickle")
        others = [against] * len(cases) if isinstance(against, str) else against
        plan.write_bytes(pickle.dumps(list(zip(cases, others, strict=True))))
        address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
        processes = []
        for rank in range(world_size):
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
            environment = os.environ | address | {name: str(value) for name, value in place.items()}
            environment["OMP_NUM_THREADS"] = "1"
            with open(Path(folder, f"output-{rank}.txt"), "wb") as output:
                command = [sys.executable, "-m", "tests.parity.ranks", folder]
                processes.append(subprocess.Popen(command, cwd=ROOT, env=environment, stdout=output, stderr=output))
        codes = [process.wait() for process in processes]
        answers = []
        for rank, code in enumerate(codes):
            answer = Path(folder, f"answer-{rank}.pickle")
            if code != 0 or not answer.exists():
                shown = Path(folder, f"output-{rank}.txt").read_text(encoding="utf-8", errors="replace")
                raise RuntimeError(f"rank {rank} of {world_size} ended with {code}:\n{shown[-4000:]}")
            answers.append(pickle.loads(answer.read_bytes()))
    return [list(of_ranks) for of_ranks in zip(*answers, strict=True)]


def free_port() -> int:
    """A port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


# -- rank ------------------------------------------------------------------------------------------------------------


class Meeting:
    """Where the ranks wait for each other between runs, and get a fresh process group for each.

    Args:
        backend: What the groups communicate through.

    Attributes:
        rank: Of this process.
        world_size: Number of processes.
    """

    def __init__(self, backend: str = "gloo") -> None:
        self.backend = backend
        self.rank = int(os.environ["RANK"])
        self.world_size = int(os.environ["WORLD_SIZE"])
        limit = datetime.timedelta(seconds=STORE_LIMIT_SECONDS)
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        self.store = torch.distributed.TCPStore(host, port, self.world_size, self.rank == 0, limit)
        self.meetings = 0

    def wait_for_all(self) -> None:
        """Return when every rank has come here."""
        self.meetings += 1
        key = f"meeting-{self.meetings}"
        if self.store.add(key, 1) == self.world_size:
            self.store.set(f"{key}-complete", "yes")
        self.store.wait([f"{key}-complete"])

    def open_group(self) -> None:
        """Start a group that no earlier run has touched."""
        self.wait_for_all()
        torch.distributed.init_process_group(
            self.backend,
            store=torch.distributed.PrefixStore(f"group-{self.meetings}", self.store),
            rank=self.rank,
            world_size=self.world_size,
            timeout=datetime.timedelta(seconds=COLLECTIVE_LIMIT_SECONDS),
        )

    def close_group(self) -> None:
        """End the group once every rank is done with it."""
        # A DDP model must not outlive its group: the group's threads and Python's lock would wait for each other.
        gc.collect()
        self.wait_for_all()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def run_on_this_rank(case: Case, library: Library, folder: Path, meeting: Meeting) -> Any:
    """Run one case with one library as one of the ranks."""
    folder.mkdir(parents=True, exist_ok=True)
    meeting.open_group()
    try:
        return run_case(case, library, str(folder), settle=meeting.wait_for_all)
    finally:
        meeting.close_group()


def compare_on_this_rank(case: Case, libraries: list[Library], folder: Path, meeting: Meeting) -> RankAnswer:
    """Run both sides and compare what this rank saw of them."""
    try:
        sides = [run_on_this_rank(case, each, folder / str(n), meeting) for n, each in enumerate(libraries)]
    except run.TimeLimit as limit:
        # this rank has missed meetings: nothing that follows could be trusted
        raise RuntimeError(f"{case!r}\n{limit}") from limit
    found = first_difference(*sides)
    failure = last_failure(sides[0])
    return RankAnswer(
        difference=None if found is None else f"{case!r}\nrank {meeting.rank} of {meeting.world_size}: {found}",
        steps=sum(entry.get("event") == "on_step_end" for entry in sides[0].timeline),
        failure=None if failure is None else str(failure),
    )


def main(folder: Path) -> None:
    """Run the whole plan as one rank and leave the answers in a file."""
    meeting = Meeting()
    run.TIME_LIMIT_SECONDS = 3 * COLLECTIVE_LIMIT_SECONDS
    plan: list[tuple[Case, str]] = pickle.loads((folder / "plan.pickle").read_bytes())
    started = time.perf_counter()
    answers = []
    for at, (case, against) in enumerate(plan):
        libraries = [real_library(), library_named(against)]
        answers.append(compare_on_this_rank(case, libraries, folder / f"case-{at}", meeting))
    print(f"{len(plan)} cases in {time.perf_counter() - started:.1f} s")
    (folder / f"answer-{meeting.rank}.pickle").write_bytes(pickle.dumps(answers))
    meeting.wait_for_all()


def library_named(name: str) -> Library:
    """The library to compare the real one with."""
    if name == "ours":
        return our_library()
    if name == "real":
        return real_library()
    return next(mutant.build() for mutant in MUTANTS if mutant.name == name)


if __name__ == "__main__":
    try:
        # through the package, so that what is pickled is known to the parent by the same name
        import_module("tests.parity.ranks").main(Path(sys.argv[1]))
    except Exception:
        traceback.print_exc()
        os._exit(1)  # at once: a rank that waits for this one would wait for its time-out

# Read next: tests/parity/test_ranks.py
