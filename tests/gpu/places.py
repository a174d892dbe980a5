"""Where the GPU tests run their work: which cards, which environment, how many processes.

A test process never touches a card itself. It starts groups of workers (`worker.py`), one group for each place and
each environment, and reads the facts that they leave as JSON.

    one        one process, one card
    together   one process, all cards (DataParallel)
    apart      one process a card (DistributedDataParallel over NCCL)

    installed  the transformers that is installed here
    reference  the real 4.31.0: the isolated folder, or the one that MINITRAINER_REFERENCE names

With MINITRAINER_PRETEND_CARDS=2 the same work runs on processors (two ranks over gloo, no DataParallel): that tries
the harness, and proves nothing about cards.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.parity.ranks import free_port

ROOT = Path(__file__).resolve().parents[2]
PRETENDED_CARDS = int(os.environ.get("MINITRAINER_PRETEND_CARDS", "0"))
LIMIT_SECONDS = int(os.environ.get("MINITRAINER_GPU_LIMIT", "420"))
"""For one group."""


def cards() -> int:
    """Number of graphics cards, real or pretended."""
    if PRETENDED_CARDS:
        return PRETENDED_CARDS
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def places() -> list[str]:
    """The places that this machine has."""
    if cards() < 2:
        return ["one"]
    return ["one", "apart"] if PRETENDED_CARDS else ["one", "together", "apart"]


def environment_of(name: str) -> dict[str, str]:
    """The variables of a child in `installed` or `reference`."""
    from minitrainer.trace import upstream

    if name == "reference":
        given = os.environ.get("MINITRAINER_REFERENCE")
        variables = upstream.child_environment(Path(given) if given else upstream.reference_environment())
    else:
        variables = dict(os.environ)
        variables["PYTHONPATH"] = os.pathsep.join(filter(None, [str(ROOT), variables.get("PYTHONPATH")]))
    variables |= {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_DISABLED": "true"}
    # so that a product of matrices takes the same way each time; of no consequence for what is compared
    variables.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    for launched in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        variables.pop(launched, None)
    return variables


@dataclass
class Group:
    """Workers that have been started in one place.

    Attributes:
        folder: where they leave `rank0.json` and so on, and their output.
        processes: one a rank.
        late: ranks that had to be killed.
    """

    folder: Path
    processes: list[subprocess.Popen[bytes]]
    late: set[int] = field(default_factory=set)
    deadline: float = field(default_factory=lambda: time.monotonic() + LIMIT_SECONDS)

    def wait(self) -> None:
        """Return when all have ended, or the time is over."""
        for process in self.processes:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.1, self.deadline - time.monotonic()))

    def end(self) -> None:
        """Kill what still runs: a rank that waits for a dead one would keep its card busy."""
        for rank, process in enumerate(self.processes):
            if process.poll() is None:
                self.late.add(rank)
                process.kill()
                process.wait()

    def facts(self) -> list[dict[str, Any]]:
        """What each rank has found: every part that it has ended, and `cut_short` where it has not ended them all.

        Raises:
            RuntimeError: a rank ended before it could say where it is; the text holds the end of its output.
        """
        found = []
        self.end()
        for rank, process in enumerate(self.processes):
            code = process.returncode
            file = self.folder / f"rank{rank}.json"
            output = (self.folder / f"output{rank}.txt").read_text(encoding="utf-8", errors="replace")
            ended = f"no end within {LIMIT_SECONDS} s" if rank in self.late else f"ended with {code}"
            if not file.exists():
                raise RuntimeError(f"rank {rank} in {self.folder.name}: {ended}\n{output[-6000:]}")
            facts = json.loads(file.read_text(encoding="utf-8"))
            if code != 0:
                facts["cut_short"] = f"rank {rank} in {self.folder.name}: {ended}\n{output[-6000:]}"
            found.append(facts)
        return found


Key = tuple[str, str]
"""What a group is for, and its place: ("reference", "apart")."""


@dataclass
class Wave:
    """Groups that work in the same stretch of time.

    Attributes:
        at_a_time: how many of them; the others wait for one to end.
        work: for each group, its environment, its place and its parts, in the order in which they begin.
    """

    at_a_time: int
    work: dict[Key, tuple[str, str, list[str]]]


class Schedule:
    """Lets groups of workers do their work, wave after wave.

    Not all at once: processes that share a card take turns on it, and a collective ends only when both cards happen
    to be at the same process. With six processes on each card, the ranks of one group had not ended after 420 s.

    Args:
        folder: an empty folder; each group gets one below it.
        waves: each begins when the one before has ended.
    """

    def __init__(self, folder: Path, waves: list[Wave]):
        self.folder = folder
        self.groups: dict[Key, Future[Group]] = {key: Future() for wave in waves for key in wave.work}
        self._started: list[Group] = []
        self._is_over = False
        self._thread = threading.Thread(target=self._go, args=(waves,))
        self._thread.start()

    def end(self) -> None:
        """Start no more, and kill what runs."""
        self._is_over = True
        for group in self._started:
            group.end()
        self._thread.join()

    def _go(self, waves: list[Wave]) -> None:
        for wave in waves:
            with ThreadPoolExecutor(wave.at_a_time) as pool:
                for key, work in wave.work.items():
                    pool.submit(self._perform, key, *work)

    def _perform(self, key: Key, environment: str, place: str, parts: list[str]) -> None:
        if self._is_over:
            self.groups[key].cancel()
            return
        try:
            group = start(environment, place, parts, self.folder / "-".join(key))
        except BaseException as error:
            self.groups[key].set_exception(error)
            return
        self._started.append(group)
        group.wait()
        group.end()
        self.groups[key].set_result(group)


def start(environment: str, place: str, parts: list[str], folder: Path) -> Group:
    """Start the workers of one place.

    Args:
        environment: `installed` or `reference`.
        place: `one`, `together` or `apart`.
        parts: what they do, in this order: names in worker.PARTS.
        folder: an empty folder of their own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    variables = environment_of(environment)
    if PRETENDED_CARDS:
        variables["CUDA_VISIBLE_DEVICES"] = ""
    elif place == "one":
        variables["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    world_size = cards() if place == "apart" else 1
    port = str(free_port())
    processes = []
    for rank in range(world_size):
        own = dict(variables)
        if place == "apart":
            own |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            own |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
        with open(folder / f"output{rank}.txt", "wb") as output:
            command = [sys.executable, "-m", "tests.gpu.worker", str(folder), *parts]
            processes.append(subprocess.Popen(command, cwd=ROOT, env=own, stdout=output, stderr=output))
    return Group(folder, processes)


# Read next: tests/gpu/worker.py
