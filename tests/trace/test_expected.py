"""The third witness against the first: `expected_events` and the real Trainer agree on random shapes.

They run inside the isolated transformers 4.31.0. The everyday number of shapes is 500; `make shapes` draws 10,000
(MINITRAINER_SHAPES) from a seed of its own (MINITRAINER_SEED) and says how far it is.
"""

import math
import os
import random
import tempfile
import time

import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from minitrainer.trace.events import FLAGS
from minitrainer.trace.expected import ExpectedEvent, Shape, expected_events

SHAPES = int(os.environ.get("MINITRAINER_SHAPES", "500"))
SEED = int(os.environ.get("MINITRAINER_SEED", "0"))
STOPS = ("should_epoch_stop", "should_training_stop")


@st.composite
def shapes(draw) -> Shape:
    """Draw a run that 4.31.0 accepts: training and evaluation sets of unequal size, every strategy, stops, resumes."""
    iterable = draw(st.integers(0, 7)) == 0
    steps_bound = iterable or draw(st.booleans())
    strategies = st.sampled_from(["no", "steps", "epoch"])
    # An interval is whole from 1 on, or a fraction of the run.
    intervals = st.one_of(st.integers(1, 7), st.sampled_from([0.1, 0.25, 0.34, 0.5, 0.99]))
    events = st.sampled_from(
        ["on_step_begin", "on_substep_end", "on_step_end", "on_epoch_begin", "on_epoch_end", "on_log", "on_save",
         "on_evaluate", "on_prediction_step"]
    )  # fmt: skip
    early_stopping = draw(st.integers(0, 3)) == 0
    evaluation = draw(strategies) if not early_stopping else "steps"
    eval_steps = draw(st.one_of(st.none(), intervals))
    logging_steps = draw(intervals)
    save_steps = draw(intervals)
    save_strategy = draw(strategies)
    if early_stopping:  # keeping the best checkpoint demands that saves and evaluations go together
        eval_steps = save_steps = draw(st.integers(1, 4))
        save_strategy = "steps"
    return Shape(
        rows=draw(st.integers(1, 23)),
        eval_rows=tuple(draw(st.lists(st.integers(1, 9), min_size=1, max_size=1 if early_stopping else 2))),
        iterable=iterable,
        per_device_train_batch_size=draw(st.integers(1, 5)),
        per_device_eval_batch_size=draw(st.integers(1, 5)),
        # An evaluation set without a single batch, and a run without a step, are errors of their own kind.
        dataloader_drop_last=False,
        gradient_accumulation_steps=draw(st.integers(1, 5)),
        num_train_epochs=draw(st.sampled_from([1, 2, 3, 0.5, 1.5, 2.3])),
        max_steps=draw(st.integers(1, 12)) if steps_bound else -1,
        logging_strategy=draw(strategies),
        logging_steps=logging_steps,
        logging_first_step=draw(st.booleans()),
        evaluation_strategy=evaluation,
        eval_steps=eval_steps,
        eval_delay=draw(st.sampled_from([0, 0, 1, 2, 3.5])),
        save_strategy=save_strategy,
        save_steps=save_steps,
        ignore_data_skip=draw(st.booleans()),
        raises=tuple(
            (draw(events), draw(st.integers(0, 6)), draw(st.sampled_from((*FLAGS, *STOPS))))
            for _ in range(draw(st.sampled_from([0, 0, 1, 2])))
        ),
        patience=draw(st.integers(1, 3)) if early_stopping else None,
        eval_metric=tuple(draw(st.lists(st.sampled_from([0.25, 0.5, 0.75]), min_size=1, max_size=8))),
    )


def record(shape: Shape, folder: str, resume_from: str | None = None) -> list[ExpectedEvent]:
    """Train a run of this shape on the real Trainer and return what its callback handler was called with."""
    import torch
    import transformers
    from torch.utils.data import IterableDataset
    from transformers.trainer_callback import CallbackHandler, TrainerControl

    seen: list[ExpectedEvent] = []
    lowered: list[str] = []
    original_call_event, original_setattr = CallbackHandler.call_event, TrainerControl.__setattr__

    def call_event(handler, event, args, state, control, **kwargs):
        raised = tuple(flag for flag in FLAGS if getattr(control, flag))
        # What was lowered since the handler's own method was entered; the Trainer itself lowers nothing.
        seen.append(
            ExpectedEvent(
                event, state.global_step, state.epoch, tuple(flag for flag in FLAGS if flag in lowered), raised
            )
        )
        result = original_call_event(handler, event, args, state, control, **kwargs)
        lowered.clear()
        return result

    def watch(control, name, value):
        if name in FLAGS and getattr(control, name, False) and not value:
            lowered.append(name)
        original_setattr(control, name, value)

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(()))

        def forward(self, labels=None):
            loss = self.weight * 0.0 + labels.mean()
            if not self.training:
                step = trainer.state.global_step
                loss = loss * 0.0 + shape.eval_metric[min(step, len(shape.eval_metric) - 1)]
            return {"loss": loss, "logits": labels}

    class Stream(IterableDataset):
        def __iter__(self):
            return iter([{"labels": 1.0}] * shape.rows)

    class Raiser(transformers.TrainerCallback):
        pass

    def raiser(event):
        def method(self, args, state, control, **kwargs):
            for at_event, at_step, flag in shape.raises:
                if event == at_event and state.global_step == at_step:
                    setattr(control, flag, True)

        return method

    for event in {event for event, _, _ in shape.raises}:
        setattr(Raiser, event, raiser(event))

    sets = [[{"labels": 1.0}] * rows for rows in shape.eval_rows]
    callbacks = [Raiser()]
    if shape.patience is not None:
        callbacks.insert(0, transformers.EarlyStoppingCallback(early_stopping_patience=shape.patience))
    args = transformers.TrainingArguments(
        output_dir=folder,
        report_to=[],
        disable_tqdm=True,
        no_cuda=True,
        load_best_model_at_end=shape.patience is not None,
        **{
            name: getattr(shape, name)
            for name in Shape.__dataclass_fields__
            if name in transformers.TrainingArguments.__dataclass_fields__
        },
    )
    CallbackHandler.call_event, TrainerControl.__setattr__ = call_event, watch
    try:
        trainer = transformers.Trainer(
            model=Model(),
            args=args,
            train_dataset=Stream() if shape.iterable else [{"labels": 1.0}] * shape.rows,
            eval_dataset=sets[0] if len(sets) == 1 else {f"set{i}": rows for i, rows in enumerate(sets)},
            callbacks=callbacks,
        )
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.train(resume_from_checkpoint=resume_from)
    finally:
        CallbackHandler.call_event, TrainerControl.__setattr__ = original_call_event, original_setattr
    return seen


def agree(expected: list[ExpectedEvent], seen: list[ExpectedEvent], shape: Shape) -> None:
    for position, (ours, theirs) in enumerate(zip(expected, seen, strict=False)):
        assert ours == theirs, f"event {position}: expected {ours}, recorded {theirs}; {shape}"
    assert len(expected) == len(seen), f"expected {len(expected)} events, recorded {len(seen)}; {shape}"


agreed = 0
began = time.monotonic()


@pytest.mark.reference
@seed(SEED)
@settings(max_examples=SHAPES, deadline=None, database=None)
@given(shape=shapes(), pick=st.integers(0, 10**6))
def test_expected_events_agree_with_the_real_trainer(shape: Shape, pick: int):
    """Every event, step, epoch and flag of a fresh run; then of a run resumed at one of its checkpoints."""
    global agreed
    with tempfile.TemporaryDirectory() as folder:
        if not both_agree(shape, folder):
            return
        saved = sorted(name for name in os.listdir(folder) if name.startswith("checkpoint-"))
        if saved and shape.patience is None:
            checkpoint = os.path.join(folder, random.Random(pick).choice(saved))
            both_agree(resumed_shape(shape, checkpoint), folder, checkpoint)
    agreed += 1
    if agreed % 500 == 0:
        print(f"{agreed} shapes agree after {time.monotonic() - began:.0f} s (seed {SEED})", flush=True)


def both_agree(shape: Shape, folder: str, checkpoint: str | None = None) -> bool:
    """Compare the two; return whether the run came to its end. Both must fail where one of them does."""
    try:
        expected = expected_events(shape)
    except ZeroDivisionError:
        with pytest.raises(ZeroDivisionError):
            record(shape, folder, checkpoint)
        return False
    agree(expected, record(shape, folder, checkpoint), shape)
    return True


def resumed_shape(shape: Shape, checkpoint: str) -> Shape:
    import dataclasses
    import json

    with open(os.path.join(checkpoint, "trainer_state.json")) as file:
        state = json.load(file)
    return dataclasses.replace(shape, resume_step=state["global_step"], resume_epoch=state["epoch"])


@pytest.mark.reference
def test_enough_shapes_were_compared():
    """The property above must not have gone empty by way of its early return."""
    assert agreed > SHAPES * 0.6, f"only {agreed} of {SHAPES} shapes ran to their end"


def test_a_shape_by_hand():
    """Four micro-batches in groups of two, read off the definition, with a log at every step."""
    shape = Shape(rows=4, per_device_train_batch_size=1, gradient_accumulation_steps=2, num_train_epochs=1,
                  logging_steps=1, save_strategy="no")  # fmt: skip
    names = [event.event for event in expected_events(shape)]
    group = ["on_step_begin", "on_substep_end", "on_step_end", "on_log"]
    begin, end = ["on_init_end", "on_train_begin", "on_epoch_begin"], ["on_epoch_end", "on_log", "on_train_end"]
    assert names == [*begin, *group, *group, *end]
    last_step = [event for event in expected_events(shape) if event.event == "on_log"][1]
    assert last_step.lowered == ("should_log",) and last_step.raised == ("should_training_stop",)


def test_ranks_share_the_rows():
    from minitrainer.trace.expected import per_rank_batches

    assert per_rank_batches(7, 2, 2, drop_last=False) == 2
    assert per_rank_batches(7, 2, 2, drop_last=True) == 1
    assert per_rank_batches(9, 2, 2, drop_last=False) == math.ceil(5 / 2)
