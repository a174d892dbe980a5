"""What the readers say about real runs: accumulation, evaluation, checkpoints, a filtered loss, two ranks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from minitrainer.trace import commands, events
from minitrainer.trace.ranks import open_run
from minitrainer.trace.render.verdict import verify
from minitrainer.trace.rows import read

SCENARIOS = {
    "log-evaluate-save-same-step": {"loss", "eval_loss", "train_loss"},
    "group-straddles-epochs": {"loss", "train_loss"},
    "nan-loss-filtered": {"loss", "train_loss"},
    "two-ranks-uneven": {"loss", "eval_loss", "train_loss"},
}
"""Scenario to the losses that it logs."""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Record each scenario with the Trainer that is installed here."""
    folders = {}
    for name in SCENARIOS:
        folder = tmp_path_factory.mktemp("runs") / name
        nproc = ["--nproc", "2"] if name.startswith("two-ranks") else []
        # Everything up to the scenario's name is ours; the name itself comes last.
        command = [sys.executable, "-m", "minitrainer.trace", "--out", str(folder), "--quiet", *nproc, name]
        done = subprocess.run(
            command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr[-3000:]
        folders[name] = folder
    return folders


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SCENARIOS))
def test_every_logged_loss_of_a_real_run_follows(recorded: dict[str, Path], name: str) -> None:
    run = open_run(recorded[name])
    verdict = verify(run)
    assert verdict.passed, verdict.lines()
    # How many there are is the version's affair; that none is left out can be counted in the logs.
    logs = [record.logs for reading in run.readings.values() for record in reading if isinstance(record, events.Log)]
    counted = Counter(key for log in logs for key in log if key in ("loss", "eval_loss", "train_loss"))
    assert verdict.looked_at == counted and set(counted) == SCENARIOS[name]
    assert not verdict.findings


@pytest.mark.slow
@pytest.mark.parametrize("name", list(SCENARIOS))
def test_real_runs_are_shown_within_eighty_columns(
    recorded: dict[str, Path], name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for only in (None, "callbacks", "flags", "loss", "calls", "files"):
        assert commands.show(recorded[name], only=only) == 0
        out = capsys.readouterr().out
        assert max(map(len, out.splitlines())) <= 80 and "\x1b" not in out
    assert commands.stats(recorded[name]) == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.slow
def test_step_with_log_evaluation_and_checkpoint_is_in_order(
    recorded: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    commands.show(recorded["log-evaluate-save-same-step"], step="2")
    out = capsys.readouterr().out
    order = [
        "should_log raised by DefaultFlowCallback.on_step_end",
        "should_evaluate raised by DefaultFlowCallback.on_step_end",
        "should_save raised by DefaultFlowCallback.on_step_end",
        "should_log lowered by CallbackHandler.on_log",
        "eval_loss",
        "should_evaluate lowered by CallbackHandler.on_evaluate",
        "wrote checkpoint-2/",
        "should_save lowered by CallbackHandler.on_save",
    ]
    positions = [out.index(words) for words in order]
    assert positions == sorted(positions)


@pytest.mark.slow
def test_perfetto_of_a_real_run_closes_every_slice(recorded: dict[str, Path], tmp_path: Path) -> None:
    from .test_render_pages import check_structure

    for name in ("log-evaluate-save-same-step", "two-ranks-uneven"):
        path = tmp_path / f"{name}.json"
        commands.export(recorded[name], "perfetto", str(path))
        check_structure(json.loads(path.read_text())["traceEvents"])


@pytest.mark.slow
def test_any_cut_of_a_real_recording_can_be_read_shown_and_joined(recorded: dict[str, Path], tmp_path: Path) -> None:
    """Cut anywhere, in a row or between two, every whole row before the cut is there."""
    whole = (recorded["log-evaluate-save-same-step"] / "rank0.rows").read_bytes()
    records = list(read(recorded["log-evaluate-save-same-step"] / "rank0.rows"))
    first = whole.index(b"\n") + 1
    stride = max(1, (len(whole) - first) // 60)
    looked_at = at_least = 0
    for cut in range(first, len(whole), stride):
        path = tmp_path / "rank0.rows"
        path.write_bytes(whole[:cut])
        run = open_run(path)
        found = list(run.first)
        assert found == records[: len(found)]
        assert len(found) >= at_least  # a later cut never shows fewer rows
        at_least = len(found)
        assert commands.show(path, only="flags") == 0
        assert verify(run).failed == 0
        looked_at += 1
    assert looked_at >= 50 and at_least > 0.9 * len(records)


@pytest.mark.slow
def test_unequal_batches_are_explained(recorded: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    path = recorded["two-ranks-uneven"]
    logged = [record.step for record in read(path / "rank0.rows") if isinstance(record, events.Loss)]
    assert logged
    for step in logged:
        assert commands.explain_loss(path, step) == 0
        assert "all" in capsys.readouterr().out


# Read next: tests/benchmarks/reading_speed.py, a million rows.
