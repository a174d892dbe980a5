"""A real Trainer, killed at random moments of its training: its recording holds every callback that had been entered.

The process that is killed is forked from one that has imported everything, so that a kill costs a tenth of a second. A
callback of the test keeps the count that the recording is held against, in a page of its own.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from . import programs

KILL_POINTS = int(os.environ.get("MINITRAINER_KILL_POINTS", "6"))

KILLED = """
import mmap, os, random, signal, sys, time, warnings
sys.path.insert(0, {root!r})
warnings.simplefilter("ignore")
import torch
torch.set_num_threads(1)
from pathlib import Path
from minitrainer.trace import events, read, trace
from tests.trace import programs
library, folder, points = programs.library_named(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
counter = mmap.mmap(-1, 8)

class Counting(library.TrainerCallback):
    def _count(self):
        self.seen += 1
        counter[:8] = self.seen.to_bytes(8, "little")
    def on_step_begin(self, *args, **kwargs): self._count()
    def on_step_end(self, *args, **kwargs): self._count()
    def on_log(self, *args, **kwargs): self._count()
    seen = 0

random.seed(11)
rows = entered = 0
for point in range(points):
    counter[:8] = bytes(8)
    path = folder / f"{{point}}.rows"
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        trainer = programs.trainer(library, folder / "out", callbacks=[Counting()], rows=64, num_train_epochs=10_000)
        with trace(trainer, path):
            trainer.train()
        os._exit(3)
    while not counter[:8].strip(b"\\0"):
        time.sleep(0.002)
    time.sleep(random.uniform(0, 0.06))
    os.kill(child, signal.SIGKILL)
    assert os.waitpid(child, 0)[1] == signal.SIGKILL
    completed = int.from_bytes(counter[:8], "little")
    reading = read(path)
    records = list(reading)
    found = sum(type(r) is events.Callback and r.callback == "Counting" for r in records)
    assert completed <= found <= completed + 1, (completed, found)
    assert not reading.complete and [scope.name for scope in reading.open_scopes[:1]] == ["train"]
    rows, entered = rows + len(records), entered + completed
    path.unlink()
print("kills", points, "rows", rows, "callbacks", entered, file=sys.stderr)
"""


@pytest.mark.parametrize("name", programs.LIBRARIES)
def test_a_killed_trainer_leaves_every_completed_row(name: str, tmp_path: Path) -> None:
    code = KILLED.format(root=str(Path(__file__).parents[2]))
    done = subprocess.run(
        [sys.executable, "-c", code, name, str(tmp_path), str(KILL_POINTS)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    summary = done.stderr.split("kills ")[-1].split()
    assert int(summary[0]) == KILL_POINTS and int(summary[2]) > 100 * KILL_POINTS
    print(done.stderr.splitlines()[-1])


# Read next: test_changes_nothing.py
