"""The notebook's progress against that of 4.31.0: the same HTML, drawing by drawing.

The cell itself is IPython's. A stand-in for its `display` module notes every drawing, so the test needs no notebook.
"""

from __future__ import annotations

import importlib
import sys
import time
import types
from typing import Any

import pytest

from minitrainer import callbacks
from minitrainer.parts.choices import IntervalStrategy

upstream_callbacks = pytest.importorskip("transformers.trainer_callback")
upstream_utils = pytest.importorskip("transformers.trainer_utils")

pytestmark = pytest.mark.reference


class Cell:
    """What `display` hands back: a place that can be drawn into again."""

    def __init__(self, drawings: list[str]):
        self.drawings = drawings

    def update(self, html: str) -> None:
        self.drawings.append(html)


@pytest.fixture
def drawings(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Every drawing, in order."""
    drawn: list[str] = []

    def display(html: str, display_id: bool) -> Cell:
        assert display_id
        drawn.append("new: " + html)
        return Cell(drawn)

    package, module = types.ModuleType("IPython"), types.ModuleType("IPython.display")
    module.HTML, module.display, package.display = str, display, module  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "IPython", package)
    monkeypatch.setitem(sys.modules, "IPython.display", module)
    for name in ("minitrainer.notebook", "transformers.utils.notebook"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    return drawn


def both_sides() -> list[tuple[Any, Any, Any]]:
    """Module, state class and strategy of either side."""
    ours = importlib.import_module("minitrainer.notebook")
    theirs = importlib.import_module("transformers.utils.notebook")
    return [
        (ours, callbacks.TrainerState, IntervalStrategy),
        (theirs, upstream_callbacks.TrainerState, upstream_utils.IntervalStrategy),
    ]


def slow_clock(monkeypatch: pytest.MonkeyPatch, seconds_a_call: float) -> None:
    """A clock that goes on by the same amount each time it is read."""
    readings = iter(range(10**9))
    monkeypatch.setattr(time, "time", lambda: 1000.0 + seconds_a_call * next(readings))


@pytest.mark.parametrize("strategy", ["no", "steps", "epoch"])
@pytest.mark.parametrize("seconds", [0.01, 0.7, 4000.0])
def test_a_training_is_drawn_alike(
    strategy: str, seconds: float, drawings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Steps, logs, evaluations of two sets with their own metrics, a stream without length, and the end."""
    seen = []
    for module, state_class, strategies in both_sides():
        slow_clock(monkeypatch, seconds)
        drawings.clear()
        args = types.SimpleNamespace(evaluation_strategy=strategies(strategy))
        callback, state = module.NotebookProgressCallback(), state_class(max_steps=40, num_train_epochs=2, epoch=0.0)
        callback.on_prediction_step(args, state, None, eval_dataloader=[1, 2])
        callback.on_predict(args, state, None)
        callback.on_train_begin(args, state, None)
        for step in range(40):
            state.global_step, state.epoch = step + 1, (step + 1) / 20
            callback.on_step_end(args, state, None)
            if step % 7 == 3:
                state.log_history.append({"loss": 1 / (step + 1)})
                callback.on_log(args, state, None, logs={"loss": 1 / (step + 1)})
            if step % 20 == 19 and strategy != "no":
                for loader in ([1, 2, 3], iter([1])):
                    for _ in range(3):
                        callback.on_prediction_step(args, state, None, eval_dataloader=loader)
                metrics = {"eval_loss": 0.5, "eval_exact_match": 0.25, "eval_runtime": 3.0, "epoch": 1.0}
                callback.on_evaluate(args, state, None, metrics=metrics)
                drawings.append(str(metrics))
        callback.on_train_end(args, state, None)
        seen.append(list(drawings))
    assert seen[0] == seen[1]
    assert len(seen[0]) > 10


@pytest.mark.parametrize("t", [0, 59.9, 61, 3599, 3600, 86400])
def test_times_are_written_alike(t: float, drawings: list[str]) -> None:
    """With and without hours."""
    ours, theirs = (module for module, _, _ in both_sides())
    assert ours.format_time(t) == theirs.format_time(t)


def test_a_bar_that_does_not_stay_and_a_table_that_grows(drawings: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The parts that scripts use on their own."""
    seen = []
    for module, _, _ in both_sides():
        slow_clock(monkeypatch, 0.3)
        drawings.clear()
        bar = module.NotebookProgressBar(12, prefix="read", leave=False, width=200)
        for value in (0, 0, 3, 2, 9, 12):
            bar.update(value, comment="half" if value == 3 else None, force_update=value == 2)
        tracker = module.NotebookTrainingTracker(3)
        tracker.update(1)
        tracker.write_line({"Step": 1, "Training Loss": 0.5})
        tracker.write_line({"Step": 2, "Training Loss": 0.25, "Seldom": "yes"})
        tracker.write_line({"Step": 3, "Training Loss": 0.125, "Seldom": "no"})
        child = tracker.add_child(2, prefix="below", width=100)
        child.update(1)
        child.close()
        tracker.remove_child()
        seen.append(list(drawings))
    assert seen[0] == seen[1]


# Read next: ../parts/test_parts_parity.py
