"""Starts the ranks of a run as forks of one process that has imported everything: a second, not ten, for each run."""

from __future__ import annotations

import multiprocessing
import socket
import time
from pathlib import Path
from typing import Any, NamedTuple

from minitrainer.trace import ranks
from minitrainer.trace.render.side_by_side import how_a_run_failed

from . import programs

LIMIT_SECONDS = 90
"""A run that has not ended by then hangs. The collectives give up after `programs.COLLECTIVE_LIMIT_SECONDS`."""

_server = multiprocessing.get_context("forkserver")
_server.set_forkserver_preload(["tests.launch.programs"])


class Ended(NamedTuple):
    """How the ranks of one run ended: exit statuses (negative for signals), what they printed, and their trace."""

    statuses: list[int | None]
    printed: list[str]
    trace: Path
    seconds: float

    @property
    def verdict(self) -> str:
        return how_a_run_failed(ranks.open_run(self.trace))


def run(
    folder: Path,
    fault: str = "",
    world_size: int = 2,
    resume: bool = False,
    collectives: bool = False,
    machines: int = 1,
    **given: Any,
) -> Ended:
    """Run `programs.rank` as so many ranks, and wait for all of them. Whoever hangs is killed and has no status."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    begun = time.perf_counter()
    shared = (world_size, port, folder, fault, resume, collectives, machines, given)
    team = [_server.Process(target=programs.rank, args=(number, *shared)) for number in range(world_size)]
    for each in team:
        each.start()
    for each in team:
        each.join(max(0.0, LIMIT_SECONDS - (time.perf_counter() - begun)))
    statuses = [each.exitcode for each in team]
    for each in team:
        each.kill()
        each.join()
    printed = [(folder / f"printed{number}.txt").read_text(errors="replace") for number in range(world_size)]
    trace = folder / ("resumed" if resume else "trace")
    return Ended(statuses, printed, trace, time.perf_counter() - begun)


# Read next: tests/launch/test_faults.py
