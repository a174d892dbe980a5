"""State, flags and handler by themselves: what the module's own table says, without upstream beside it."""

from __future__ import annotations

import dataclasses
import re
from pathlib import Path
from typing import Any

import pytest

from minitrainer import callbacks
from minitrainer.callbacks import (
    CallbackHandler,
    DefaultFlowCallback,
    EarlyStoppingCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
)

from .tiny import train

ALL_UP = {field.name: True for field in dataclasses.fields(TrainerControl)}


def documented_events() -> dict[str, set[str]]:
    """The table in the module's docstring: each event with the flags that it lowers."""
    rows = re.findall(r"^ {4}(on_\w+) +(.*)$", callbacks.__doc__ or "", flags=re.MULTILINE)
    return {event: set(re.findall(r"should_\w+", rest)) for event, rest in rows}


def test_the_table_names_every_event_and_the_flags_that_it_lowers() -> None:
    """With all flags up, each event lowers those that the table says, before the callbacks are called."""
    table = documented_events()
    assert set(table) == {name for name in dir(TrainerCallback) if name.startswith("on_")}
    assert len(table) == 13
    seen: list[dict[str, bool]] = []

    def note(self: Any, args: Any, state: Any, control: TrainerControl, **kwargs: Any) -> None:
        seen.append(dataclasses.asdict(control))

    for event, lowered in table.items():
        handler = CallbackHandler([type("Recorder", (DefaultFlowCallback,), {event: note})], None, None, None, None)
        more = {"logs": {}} if event == "on_log" else {"metrics": {}} if event in ("on_evaluate", "on_predict") else {}
        getattr(handler, event)(None, TrainerState(), TrainerControl(**ALL_UP), **more)
        assert {flag for flag, is_up in seen[-1].items() if not is_up} == lowered, event
    assert len(seen) == len(table)


def test_state_is_written_with_sorted_keys_and_a_last_newline(tmp_path: Path) -> None:
    """The very bytes, so that a change of Python's json would be seen."""
    path = tmp_path / "trainer_state.json"
    TrainerState(
        epoch=0.5, global_step=2, log_history=[{"step": 2, "loss": 0.1}], best_metric=float("inf")
    ).save_to_json(str(path))
    text = path.read_text()
    assert text.endswith('  "trial_params": null\n}\n')
    assert text.startswith('{\n  "best_metric": Infinity,\n  "best_model_checkpoint": null,\n  "epoch": 0.5,\n')
    assert TrainerState.load_from_json(str(path)).log_history == [{"step": 2, "loss": 0.1}]


def test_two_states_do_not_share_a_history() -> None:
    """The default list is made anew."""
    TrainerState().log_history.append({})
    assert TrainerState().log_history == []


class Order(TrainerCallback):
    """Notes every event of a run."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def __getattribute__(self, name: str) -> Any:
        if name.startswith("on_"):
            self.events.append(name)
        return super().__getattribute__(name)


def test_events_of_a_run(tmp_path: Path) -> None:
    """Two groups of two micro-batches, in one epoch: as the table says, nothing more and nothing less."""
    trainer = train(tmp_path, [], max_steps=1, gradient_accumulation_steps=2, evaluation_strategy="no", save_steps=1)
    order = Order()
    trainer.add_callback(order)
    trainer.train()
    assert order.events == [
        "on_train_begin",
        "on_epoch_begin",
        "on_step_begin",
        "on_substep_end",
        "on_step_end",
        "on_save",
        "on_epoch_end",
        "on_log",
        "on_train_end",
    ]


def test_early_stopping_stops_a_run(tmp_path: Path) -> None:
    """A learning rate of zero: no evaluation is better than the first, so the second is the last."""
    from minitrainer.trainer import Trainer

    from .tiny import EXAMPLES, Line

    first = train(tmp_path, [], load_best_model_at_end=True, save_steps=2, learning_rate=0.0)
    trainer = Trainer(
        Line(),
        first.args,
        train_dataset=EXAMPLES,
        eval_dataset=EXAMPLES[:4],
        callbacks=[EarlyStoppingCallback(early_stopping_patience=1)],
    )
    first.args.num_train_epochs = 5
    assert trainer.train().global_step == 4
    assert trainer.control.should_training_stop


def test_early_stopping_needs_a_tracked_metric(tmp_path: Path) -> None:
    """It says which argument is missing, when training begins."""
    trainer = train(tmp_path, [])
    trainer.add_callback(EarlyStoppingCallback())
    with pytest.raises(AssertionError, match="set load_best_model_at_end=True"):
        trainer.train()


# Read next: test_reporters.py
