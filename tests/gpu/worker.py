"""What runs on the cards: one process of a group that `places.start` has launched.

    python -m tests.gpu.worker FOLDER PART…       the facts end in FOLDER/rankN.json, part by part

A part that fails leaves its stack as a fact, and the next one runs: a test then fails with that stack.
"""

from __future__ import annotations

import contextlib
import faulthandler
import io
import json
import logging
import os
import platform
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from tests.parity import run as parity_run
from tests.parity.ranks import Meeting

from . import equal, records, shards, talk, unchanged
from .places import LIMIT_SECONDS

BEGAN = time.perf_counter()


class Here:
    """This process: its rank, its cards, and how it meets the others.

    Attributes:
        rank, world_size: of the group.
        folder: this group's; each run takes a fresh one below it.
        meeting: where the ranks wait for each other; None for one process.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self.rank = int(os.environ.get("RANK", "0"))
        self.world_size = int(os.environ.get("WORLD_SIZE", "1"))
        self.meeting = None
        if "RANK" in os.environ:
            self.meeting = Meeting("nccl" if torch.cuda.is_available() else "gloo")
            if torch.cuda.is_available():
                torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        self._runs = 0

    def fresh_folder(self) -> Path:
        """A folder that no run has touched, one name on all ranks."""
        self._runs += 1
        print(f"run {self._runs} at {time.perf_counter() - BEGAN:.1f} s", file=sys.stderr, flush=True)
        made = self.folder / f"run{self._runs}"
        made.mkdir(parents=True, exist_ok=True)
        return made

    @contextlib.contextmanager
    def one_run(self, library: Any) -> Iterator[Path]:
        """A clean process and a fresh process group for the run of one library; gives a folder, the same on all ranks.

        Args:
            library: a `Library` of the parity harness.
        """
        folder = self.fresh_folder()
        if self.meeting is not None:
            self.meeting.open_group()
        try:
            with parity_run.clean_process(library):
                parity_run.set_seeds(0)
                yield folder
        finally:
            if self.meeting is not None:
                self.meeting.close_group()

    def wait_for_all(self) -> None:
        """Return when all ranks have come here."""
        if self.meeting is not None:
            self.meeting.wait_for_all()


def surroundings(here: Here) -> dict[str, Any]:
    """What the facts were found on."""
    found: dict[str, Any] = {"rank": here.rank, "world_size": here.world_size, "python": platform.python_version()}
    for name in ("torch", "transformers", "accelerate", "numpy"):
        found[name] = import_module(name).__version__
    if torch.cuda.is_available():
        found["cards"] = [torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())]
        found["cuda"] = torch.version.cuda
        found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
        with contextlib.suppress(OSError):
            version = Path("/proc/driver/nvidia/version").read_text(encoding="utf-8").splitlines()[0]
            found["driver"] = next((word for word in version.split() if word[0].isdigit() and "." in word), version)
    return found


PARTS: dict[str, Callable[[Here], Any]] = {
    "equal": equal.to_the_real_one,
    "newest": equal.to_the_newest,
    "unchanged": unchanged.by_the_trace,
    "talk": talk.between_cards,
    "records": records.of_both,
    "shards": shards.trained_saved_resumed,
}


def main(folder: Path, parts: list[str]) -> None:
    """Run the parts and write their facts."""
    # where a rank stands that the time limit is about to end, its output says
    faulthandler.dump_traceback_later(max(1, LIMIT_SECONDS - 10 - (time.perf_counter() - BEGAN)))
    here = Here(folder)
    parity_run.TIME_LIMIT_SECONDS = 180
    facts: dict[str, Any] = {"surroundings": surroundings(here)}
    facts["surroundings"]["seconds of starting"] = round(time.perf_counter() - BEGAN, 1)
    for part in parts:
        began = time.perf_counter()
        facts["surroundings"]["part that runs"] = part
        write(folder / f"rank{here.rank}.json", facts)
        try:
            with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
                warnings.simplefilter("ignore")
                facts[part] = PARTS[part](here)
        except BaseException:
            facts[part] = {"error": traceback.format_exc()}
            if here.meeting is not None:  # the others have gone on, or wait: no meeting is to be trusted any more
                break
        finally:
            logging.disable(logging.NOTSET)
        facts["surroundings"][f"seconds of {part}"] = round(time.perf_counter() - began, 1)
        print(f"{part}: {time.perf_counter() - began:.1f} s", file=sys.stderr)
        write(folder / f"rank{here.rank}.json", facts)
    del facts["surroundings"]["part that runs"]
    write(folder / f"rank{here.rank}.json", facts)
    if any("error" in facts.get(part, {}) for part in parts):
        os._exit(0)  # the facts are written; a rank that waits for this one must not hold it
    here.wait_for_all()
    if here.rank == 0:
        time.sleep(2)  # it holds the store: the others must hear from it that all have come


def write(file: Path, facts: dict[str, Any]) -> None:
    """Write what is known by now; whoever reads it finds all of it."""
    new = file.with_suffix(".new")
    new.write_text(json.dumps(facts, indent=1, default=str), encoding="utf-8")
    new.replace(file)


if __name__ == "__main__":
    # through the package, so that there is one copy of every name
    import_module("tests.gpu.worker").main(Path(sys.argv[1]), sys.argv[2:])

# Read next: tests/gpu/equal.py
