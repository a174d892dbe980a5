"""A version of transformers that nobody has seen yet: it is traced as far as its names go, and the rest is named.

The version is made of the installed one: a folder of links in which only the version number and `trainer.py` are other
files. One hooked method has another name there, another has moved to a function, and an attribute that a hook reads is
gone.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import transformers

from minitrainer.trace import events, read

ROOT = Path(__file__).parents[2]

CHANGES = {
    "_maybe_log_save_evaluate": "_report_when_due",
    "_globalstep_last_logged": "_step_of_the_last_log",
    "def _clip_grad_norm(self,": "def _limit_gradient(self,",
    "self._clip_grad_norm(": "self._limit_gradient(",
}
"""Text in `trainer.py` to what stands there instead."""

PROGRAM = """
import sys, warnings
warnings.simplefilter("ignore")
sys.path.insert(1, {root!r})
import transformers
from pathlib import Path
from minitrainer.trace import trace
from tests.trace import programs
assert transformers.__version__ == "99.0.0" and not hasattr(transformers.Trainer, "_maybe_log_save_evaluate")
trainer = programs.trainer(transformers, Path(sys.argv[1]) / "out", rows=16)
with trace(trainer, Path(sys.argv[1]) / "trace"):
    print(trainer.train().training_loss)
"""


def later_version(folder: Path) -> Path:
    """A folder for the path that holds "transformers 99.0.0"."""
    real = Path(transformers.__file__).parent
    package = folder / "transformers"
    package.mkdir(parents=True)
    for entry in real.iterdir():
        if entry.name not in ("__init__.py", "trainer.py", "__pycache__"):
            (package / entry.name).symlink_to(entry)
    version = f'__version__ = "{transformers.__version__}"'
    init = (real / "__init__.py").read_text()
    assert init.count(version) == 1
    (package / "__init__.py").write_text(init.replace(version, '__version__ = "99.0.0"'))
    source = (real / "trainer.py").read_text()
    for old, new in CHANGES.items():
        assert old in source
        source = source.replace(old, new)
    (package / "trainer.py").write_text(source)
    return folder


def test_an_unknown_version_gives_events_calls_and_logs_and_says_what_is_missing(tmp_path: Path) -> None:
    overlay = later_version(tmp_path / "overlay")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(root=str(ROOT)), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(overlay)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    reading = read(tmp_path / "trace" / "rank0.rows")
    records = list(reading)
    assert reading.complete and reading.head.versions["transformers"] == "99.0.0"
    assert reading.head.unhooked["Trainer._maybe_log_save_evaluate"] == "not in this version"
    names = [record.event for record in records if type(record) is events.Event]
    assert names[0] == "on_train_begin" and names[-1] == "on_train_end" and names.count("on_step_end") == 4
    methods = [record.method for record in records if type(record) is events.Call]
    assert methods.count("training_step") == 4 and methods.count("_report_when_due") >= 4
    logs = [record.logs for record in records if type(record) is events.Log]
    assert [sorted(log) for log in logs[:2]] == [["epoch", "grad_norm", "learning_rate", "loss"]] * 2
    assert "train_loss" in logs[-1] and float(done.stdout.split()[-1]) == logs[-1]["train_loss"]
    assert sum(type(record) is events.Samples for record in records) == 4
    assert [record.text for record in records if type(record) is events.Note] == []
    (train_loss,) = [record for record in records if type(record) is events.TrainLoss]
    assert len(train_loss.micro) == 4  # no log record has taken them: the method that logs has another name
    shown = subprocess.run(
        [sys.executable, "-m", "minitrainer.trace", "show", str(tmp_path / "trace")],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert shown.returncode == 0, shown.stderr
    missing = shown.stdout.split("not hooked (not in this version): ")[1].split("not hooked")[0]
    assert "Trainer._maybe_log_save_evaluate" in missing


# Read next: test_changes_nothing.py
