"""State, flags, handler and built-in callbacks against those of 4.31.0, over drawn sequences of events."""

from __future__ import annotations

import contextlib
import dataclasses
import inspect
import io
import types
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from minitrainer import callbacks as ours
from minitrainer.parts.choices import IntervalStrategy

from ..compare import Said, said_by

upstream = pytest.importorskip("transformers.trainer_callback")
upstream_utils = pytest.importorskip("transformers.trainer_utils")

pytestmark = pytest.mark.reference

EVENTS = [name for name in dir(upstream.TrainerCallback) if name.startswith("on_")]
WITH_METRICS = ("on_evaluate", "on_predict")


def outcome(function: Any) -> Any:
    """What a call returns, or its error."""
    try:
        return function()
    except Exception as error:
        return said_by(error)


# -- state and flags ---

NUMBERS = st.floats(allow_nan=True, allow_infinity=True) | st.integers(-(2**70), 2**70)
STATES = st.fixed_dictionaries(
    {},
    optional={
        "epoch": st.none() | NUMBERS,
        "global_step": st.integers(0, 10**6),
        "max_steps": st.integers(-1, 10**6),
        "num_train_epochs": st.integers(0, 100),
        "total_flos": NUMBERS,
        "log_history": st.none() | st.lists(st.dictionaries(st.text(max_size=5), NUMBERS | st.text(), max_size=3)),
        "best_metric": st.none() | NUMBERS,
        "best_model_checkpoint": st.none() | st.text(),
        "is_world_process_zero": st.booleans(),
        "is_hyper_param_search": st.booleans(),
        "trial_name": st.none() | st.text(),
        "trial_params": st.none() | st.dictionaries(st.text(max_size=4), st.booleans() | NUMBERS, max_size=3),
    },
)


@given(values=STATES)
@example(values={})
@example(values={"log_history": [{"loss": 0.1 + 0.2, "epoch": 1e-17, "step": 3}], "trial_name": "é\u2028\ud83d\ude00"})
def test_state_is_written_byte_for_byte(values: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> None:
    """Both write the same bytes, and each reads what the other has written."""
    folder = tmp_path_factory.mktemp("states")
    paths = [folder / "ours.json", folder / "theirs.json"]
    try:
        upstream.TrainerState(**values).save_to_json(str(paths[1]))
    except UnicodeEncodeError:
        return
    ours.TrainerState(**values).save_to_json(str(paths[0]))
    assert paths[0].read_bytes() == paths[1].read_bytes()
    for side in (ours, upstream):
        read = side.TrainerState.load_from_json(str(paths[0]))
        read.save_to_json(str(folder / "again.json"))
        assert (folder / "again.json").read_bytes() == paths[0].read_bytes()


@pytest.mark.parametrize("name", ["TrainerState", "TrainerControl"])
def test_state_and_flags_have_the_same_fields(name: str) -> None:
    """In the same order, for positional use."""
    mine, theirs = getattr(ours, name), getattr(upstream, name)
    assert [(f.name, f.default) for f in dataclasses.fields(mine)] == [
        (f.name, f.default) for f in dataclasses.fields(theirs)
    ]
    assert repr(mine()) == repr(theirs())
    assert [n for n in vars(theirs) if n.startswith("_new")] == [n for n in vars(mine) if n.startswith("_new")]


def test_a_state_file_with_an_unknown_key_is_refused_alike(tmp_path: Path) -> None:
    """A later version's file."""
    path = tmp_path / "state.json"
    path.write_text('{"logging_steps": 500}')
    mine, theirs = (outcome(lambda: side.TrainerState.load_from_json(str(path))) for side in (ours, upstream))  # noqa: B023
    assert mine[0] == theirs[0] == "TypeError"
    assert theirs[1].text in mine[1].text, "ours adds the file and the remedy"


# -- handler ---


@pytest.mark.parametrize(
    "name",
    ["TrainerCallback", "CallbackHandler", "DefaultFlowCallback", "ProgressCallback", "PrinterCallback"]
    + ["EarlyStoppingCallback"],
)
def test_callbacks_have_the_same_methods(name: str) -> None:
    """The same names, and arguments that accept the same calls."""
    mine, theirs = getattr(ours, name), getattr(upstream, name)
    names = [n for n in dir(theirs) if not n.startswith("_")]
    assert set(names) <= set(dir(mine))
    for method in names:
        if inspect.isfunction(getattr(theirs, method)):
            theirs_names = [p.name for p in inspect.signature(getattr(theirs, method)).parameters.values()]
            mine_names = [p.name for p in inspect.signature(getattr(mine, method)).parameters.values()]
            assert [n for n in mine_names if n in theirs_names] == theirs_names, method


def recording_class(side: Any, label: str, plan: dict[tuple[str, int], Any], log: list[Any]) -> Any:
    """A callback that notes what it is given, sets flags as planned, and sometimes returns another control object."""

    def event_method(event: str) -> Any:
        def method(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            count = self.counts[event] = self.counts.get(event, 0) + 1
            log.append((label, event, dataclasses.asdict(control), sorted(kwargs), kwargs.get("logs")))
            action = plan.get((event, count))
            if action is None:
                return None
            kind, flags = action
            target = side.TrainerControl(**dataclasses.asdict(control)) if kind == "replace" else control
            for flag in flags:
                setattr(target, flag, True)
            return None if kind == "silent" else target

        return method

    methods = {event: event_method(event) for event in EVENTS}
    return type(label, (side.TrainerCallback,), {"counts": {}, **methods})


FLAGS = [f.name for f in dataclasses.fields(upstream.TrainerControl)]
PLANS = st.dictionaries(
    st.tuples(st.sampled_from(EVENTS), st.integers(1, 3)),
    st.tuples(st.sampled_from(["replace", "silent", "return"]), st.lists(st.sampled_from(FLAGS), unique=True)),
    max_size=6,
)


@given(sequence=st.lists(st.sampled_from(EVENTS), max_size=25), plans=st.tuples(PLANS, PLANS))
def test_handler_calls_in_order_and_lowers_the_same_flags(sequence: list[str], plans: Any) -> None:
    """Two callbacks that raise flags as drawn: the same calls with the same flags, the same control at the end."""
    seen = []
    for side in (ours, upstream):
        log: list[Any] = []
        classes = [recording_class(side, label, plan, log) for label, plan in zip("AB", plans, strict=True)]
        handler = side.CallbackHandler([classes[0], classes[1]()], "model", "tokenizer", "optimizer", "scheduler")
        control, state = side.TrainerControl(), side.TrainerState()
        returned = []
        for event in sequence:
            more = {"metrics": {}} if event in WITH_METRICS else {"logs": {"loss": 1}} if event == "on_log" else {}
            control = getattr(handler, event)("args", state, control, **more)
            returned.append(dataclasses.asdict(control))
        seen.append((log, returned))
    assert seen[0] == seen[1]


def test_handler_keeps_its_list_alike(caplog: pytest.LogCaptureFixture) -> None:
    """Adding twice, popping and removing by class and by instance, and what is said about it."""
    seen = []
    for side in (ours, upstream):
        caplog.clear()
        printer = side.PrinterCallback()
        handler = side.CallbackHandler([printer, side.ProgressCallback], None, None, None, None)
        steps: list[Any] = [handler.callback_list]
        handler.add_callback(side.DefaultFlowCallback)
        handler.add_callback(side.PrinterCallback)
        steps.append(handler.callback_list)
        steps.append(handler.pop_callback(side.PrinterCallback) is printer)
        steps.append(handler.pop_callback(side.EarlyStoppingCallback))
        steps.append(handler.pop_callback(printer))
        steps.append(outcome(lambda: handler.remove_callback(side.EarlyStoppingCallback)))  # noqa: B023
        steps.append(outcome(lambda: handler.remove_callback(printer)))  # noqa: B023
        handler.remove_callback(side.TrainerCallback)  # a class means its subclasses too
        steps.append(handler.callback_list)
        messages = [
            Said(record.getMessage().replace(side.__name__, "<module>"), side is ours) for record in caplog.records
        ]
        seen.append((steps, messages))
    assert seen[0] == seen[1]
    assert len(seen[0][1]) == 2  # no DefaultFlowCallback at first; a second PrinterCallback


# -- the callback that decides ---


@given(
    strategies=st.tuples(*[st.sampled_from(["no", "steps", "epoch"])] * 3),
    intervals=st.tuples(*[st.integers(1, 5)] * 3),
    first=st.booleans(),
    delay=st.sampled_from([0, 2, 2.5]),
    step=st.integers(1, 12),
    max_steps=st.integers(1, 12),
    epoch=st.floats(0, 4),
    raised=st.lists(st.sampled_from(FLAGS)),
)
def test_default_flow_raises_the_same_flags(
    strategies: Any, intervals: Any, first: bool, delay: float, step: int, max_steps: int, epoch: float, raised: Any
) -> None:
    """At the end of a step and of an epoch, some flags already up."""
    logging_steps, eval_steps, save_steps = intervals
    seen = []
    for side, strategy in ((ours, IntervalStrategy), (upstream, upstream_utils.IntervalStrategy)):
        args = types.SimpleNamespace(
            logging_first_step=first,
            eval_delay=delay,
            logging_steps=logging_steps,
            eval_steps=eval_steps,
            save_steps=save_steps % 5,  # sometimes 0, which means never
            logging_strategy=strategy(strategies[0]),
            evaluation_strategy=strategy(strategies[1]),
            save_strategy=strategy(strategies[2]),
        )
        state = side.TrainerState(global_step=step, max_steps=max_steps, epoch=epoch)
        for event in ("on_step_end", "on_epoch_end"):
            control = side.TrainerControl(**dict.fromkeys(raised, True))
            assert getattr(side.DefaultFlowCallback(), event)(args, state, control) is control
            seen.append((side is ours, event, dataclasses.asdict(control)))
    assert [entry[1:] for entry in seen if entry[0]] == [entry[1:] for entry in seen if not entry[0]]


# -- the callback that stops ---


@given(
    values=st.lists(st.none() | st.sampled_from([0.1, 0.2, 0.25, 0.3, float("nan")]), max_size=10),
    greater=st.booleans(),
    patience=st.integers(1, 3),
    threshold=st.sampled_from([0.0, 0.05, 0.1]),
    saves=st.lists(st.booleans(), min_size=10, max_size=10),
    name=st.sampled_from(["accuracy", "eval_accuracy"]),
)
def test_early_stopping_counts_alike(
    values: Any, greater: bool, patience: int, threshold: float, saves: list[bool], name: str
) -> None:
    """Evaluations with and without a save between them; a metric that is missing now and then."""
    seen = []
    for side in (ours, upstream):
        args = types.SimpleNamespace(metric_for_best_model=name, greater_is_better=greater)
        callback, state, control = (
            side.EarlyStoppingCallback(patience, threshold),
            side.TrainerState(),
            side.TrainerControl(),
        )
        counts = []
        for value, is_saved in zip(values, saves, strict=False):
            callback.on_evaluate(args, state, control, {} if value is None else {"eval_accuracy": value})
            counts.append((callback.early_stopping_patience_counter, control.should_training_stop))
            is_better = np.greater if greater else np.less
            if is_saved and value is not None and (state.best_metric is None or is_better(value, state.best_metric)):
                state.best_metric = value
        seen.append(counts)
    assert seen[0] == seen[1]


@pytest.mark.parametrize("wrong", ["load_best_model_at_end", "metric_for_best_model", "evaluation_strategy", None])
def test_early_stopping_requires_alike(wrong: str | None) -> None:
    """The same assertion for each argument that is missing."""
    seen = []
    for side, strategy in ((ours, IntervalStrategy), (upstream, upstream_utils.IntervalStrategy)):
        args = types.SimpleNamespace(
            load_best_model_at_end=wrong != "load_best_model_at_end",
            metric_for_best_model=None if wrong == "metric_for_best_model" else "loss",
            evaluation_strategy=strategy("no" if wrong == "evaluation_strategy" else "steps"),
        )
        callback = side.EarlyStoppingCallback()
        seen.append(outcome(lambda: callback.on_train_begin(args, side.TrainerState(), side.TrainerControl())))  # noqa: B023
    assert seen[0] == seen[1]


# -- the callbacks that show ---


@pytest.mark.parametrize("is_first", [True, False])
def test_printer_prints_alike(is_first: bool) -> None:
    """And removes the same entry."""
    seen = []
    for side in (ours, upstream):
        logs, printed = {"loss": 1.5, "total_flos": 7}, io.StringIO()
        with contextlib.redirect_stdout(printed):
            side.PrinterCallback().on_log(
                None, side.TrainerState(is_local_process_zero=is_first), side.TrainerControl(), logs=logs
            )
        seen.append((printed.getvalue(), logs))
    assert seen[0] == seen[1]


class Bar:
    """Stands where tqdm stands, and notes how it is used: the drawing itself is tqdm's own."""

    uses: list[Any] = []

    def __init__(self, **how: Any):
        Bar.uses.append(("open", sorted(how.items())))

    def update(self, by: int) -> None:
        Bar.uses.append(("update", by))

    def write(self, text: str) -> None:
        Bar.uses.append(("write", text))

    def close(self) -> None:
        Bar.uses.append(("close",))


@pytest.mark.parametrize("is_first", [True, False])
@pytest.mark.parametrize("resumed_at", [0, 7])
def test_progress_uses_its_bars_alike(is_first: bool, resumed_at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training with evaluations, a prediction after it, a stream without length."""
    seen = []
    for side in (ours, upstream):
        monkeypatch.setattr(side, "tqdm", Bar)
        Bar.uses = []
        callback, control = side.ProgressCallback(), side.TrainerControl()
        state = side.TrainerState(max_steps=10, global_step=resumed_at, is_local_process_zero=is_first)
        callback.on_log(None, state, control, logs={"before": 1})
        callback.on_train_begin(None, state, control)
        for _ in range(3):
            state.global_step += 1
            callback.on_step_end(None, state, control)
        callback.on_log(None, state, control, logs={"loss": 1, "total_flos": 2})
        for loader in ([1, 2], iter([1])):
            callback.on_prediction_step(None, state, control, eval_dataloader=loader)
            callback.on_prediction_step(None, state, control, eval_dataloader=loader)
            callback.on_evaluate(None, state, control, metrics={})
        callback.on_train_end(None, state, control)
        callback.on_prediction_step(None, state, control, eval_dataloader=[1])
        callback.on_predict(None, state, control, metrics={})
        seen.append(Bar.uses)
    assert seen[0] == seen[1]
    assert bool(seen[0]) == is_first


# Read next: ../parts/test_parts_parity.py
