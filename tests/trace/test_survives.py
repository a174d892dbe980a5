"""What ends a recording early: a rank that dies, a full disk, SIGTERM. The others, and the training, go on."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from minitrainer.trace import events, read
from minitrainer.trace.ranks import open_run

from . import programs

ROOT = str(Path(__file__).parents[2])

START = """
import os, resource, signal, sys, warnings
sys.path.insert(0, {root!r})
import torch
torch.set_num_threads(1)
from pathlib import Path
from minitrainer.trace import trace
from tests.trace import programs
library, folder = programs.library_named(sys.argv[1]), Path(sys.argv[2])
"""


def child(code: str, *words: object, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", START.format(root=ROOT) + code, *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


DYING_RANK = """
class Dying(library.TrainerCallback):
    def on_step_begin(self, args, state, control, **kwargs):
        if state.global_step == 3 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)

trainer = programs.trainer(library, folder / "out", rows=64, callbacks=[Dying()])
with trace(trainer, folder / "trace"):
    trainer.train()
"""


def test_a_rank_that_dies_takes_no_other_trace_along(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    ranks = [
        child(DYING_RANK, "transformers", tmp_path, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in (0, 1)
    ]
    errors = [process.communicate(timeout=500)[1] for process in ranks]
    assert ranks[0].returncode == 1 and ranks[1].returncode == -9, errors
    alive, dead = (read(tmp_path / "trace" / f"rank{rank}.rows") for rank in (0, 1))
    records, last = list(alive), list(dead)[-1]
    assert not dead.complete and isinstance(last, events.Callback) and last.callback == "Dying"
    assert [scope.name for scope in dead.open_scopes][-2:] == ["on_step_begin", "Dying"]
    raised = [record.method for record in records if isinstance(record, events.Raise)]
    assert alive.complete and raised[-1] == "train" and "training_step" in raised
    run = open_run(tmp_path / "trace")
    assert run.world_size == 2 and not any("missing" in finding for finding in run.findings)


FULL_DISK = """
warnings.simplefilter("always")
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
trainer = programs.trainer(library, folder / "out", rows=64, max_steps=2500, logging_steps=100, save_strategy="no")
if sys.argv[3] == "small":
    resource.setrlimit(resource.RLIMIT_FSIZE, (1_200_000, resource.RLIM_INFINITY))
with trace(trainer, folder / sys.argv[3]):
    print(trainer.train().training_loss)
"""


@pytest.mark.parametrize("name", programs.LIBRARIES)
def test_a_full_disk_stops_the_recording_and_not_the_training(name: str, tmp_path: Path) -> None:
    losses = []
    for size in ("large", "small"):
        process = child(FULL_DISK, name, tmp_path, size)
        out, error = process.communicate(timeout=500)
        assert process.returncode == 0, error[-2000:]
        losses.append(out.split()[-1])
        assert error.count("stops here") == (size == "small")
    assert losses[0] == losses[1]
    whole, cut = (read(tmp_path / size / "rank0.rows") for size in ("large", "small"))
    all_rows, rows = list(whole), list(cut)
    assert whole.end is not None and cut.end is not None and whole.complete and cut.complete
    assert 0 < cut.end.dropped == whole.end.rows - cut.end.rows and len(rows) == cut.end.rows + 1
    assert [type(row) for row in rows[:-1]] == [type(row) for row in all_rows[: len(rows) - 1]]


TERMINATED = """
class Terminating(library.TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

trainer = programs.trainer(library, folder / "out", callbacks=[Terminating()])
with trace(trainer, folder / "trace"):
    trainer.train()
"""


def test_sigterm_loses_nothing(tmp_path: Path) -> None:
    process = child(TERMINATED, "transformers", tmp_path)
    assert process.communicate(timeout=500)[1].count("Traceback") == 0 and process.returncode == -15
    reading = read(tmp_path / "trace" / "rank0.rows")
    last = list(reading)[-1]
    assert not reading.complete and isinstance(last, events.Callback) and last.callback == "Terminating"
    names = [scope.name for scope in reading.open_scopes]
    assert names[0] == "train" and names[-2:] == ["on_step_end", "Terminating"]


# Read next: test_changes_nothing.py
