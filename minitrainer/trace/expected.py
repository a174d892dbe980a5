"""The third witness: which callbacks a run of 4.31.0 must fire, computed from the run's shape alone.

A recorded trace says what a Trainer did, and ours is written to do what upstream does. This file knows neither of
them. It takes a few numbers (rows, batch size, accumulation, ranks, epochs, intervals, a resume point, stops) and
plays the control flow through with counters: no model, no tensor, no Trainer. Where all three agree, on thousands of
random shapes, nobody has to take anybody's word.

It doubles as the shortest complete description of 4.31.0's cadence there is.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field

from .events import FLAGS


@dataclass(frozen=True)
class Shape:
    """The numbers that decide a training run's callbacks. Names and defaults are those of TrainingArguments.

    Attributes:
        rows: rows in the training set.
        eval_rows: rows of each evaluation set; several for a dict of sets; empty for no evaluation set.
        ranks: number of processes.
        iterable: the training set has no length (then `max_steps` must be set; one rank only).
        legacy_prediction_loop, logging_first_step, …: as the training arguments of these names.
        resume_step: the step of the checkpoint that the run goes on from; None for a fresh run.
        resume_epoch: the epoch in that checkpoint's state.
        raises: (event, step, flag): a callback of the user's, after the default ones, raises the flag in that event
            when `global_step` has that value.
        patience: of an `EarlyStoppingCallback`; None for none. Not together with a resume: it would need the history.
        eval_metric: the evaluation loss after step i is `eval_metric[min(i, last)]`; only early stopping looks at it.
    """

    rows: int
    eval_rows: tuple[int, ...] = ()
    ranks: int = 1
    iterable: bool = False
    per_device_train_batch_size: int = 8
    per_device_eval_batch_size: int = 8
    dataloader_drop_last: bool = False
    gradient_accumulation_steps: int = 1
    num_train_epochs: float = 3
    max_steps: int = -1
    logging_strategy: str = "steps"
    logging_steps: float = 500
    logging_first_step: bool = False
    evaluation_strategy: str = "no"
    eval_steps: float | None = None
    eval_delay: float = 0
    save_strategy: str = "steps"
    save_steps: float = 500
    ignore_data_skip: bool = False
    resume_step: int | None = None
    resume_epoch: float = 0
    raises: tuple[tuple[str, int, str], ...] = ()
    patience: int | None = None
    eval_metric: tuple[float, ...] = (0.0,)


@dataclass(frozen=True)
class ExpectedEvent:
    """One call of the callback handler; fields as in `events.Event`."""

    event: str
    step: int
    epoch: float | None
    lowered: tuple[str, ...]
    raised: tuple[str, ...]


# What the handler itself lowers before the callbacks of an event run.
LOWERS = {
    "on_train_begin": ("should_training_stop",),
    "on_epoch_begin": ("should_epoch_stop",),
    "on_step_begin": ("should_save", "should_evaluate", "should_log"),
    "on_log": ("should_log",),
    "on_evaluate": ("should_evaluate",),
    "on_save": ("should_save",),
}


def expected_events(shape: Shape) -> list[ExpectedEvent]:
    """Return the events of building a Trainer of this shape and calling `train` once, in order.

    Raises:
        ZeroDivisionError: a log falls due without a step since the last one, or the run makes no step at all; 4.31.0
            fails in the same way, dividing the loss by the steps.
    """
    return list(_Run(shape).events())


@dataclass
class _Run:
    """The counters and flags of one run, moved by `events` as the training loop moves them."""

    shape: Shape
    step: int = 0  # optimizer updates, `state.global_step`
    step_last_logged: int = 0
    epoch: float | None = None  # `state.epoch`
    flags: dict[str, bool] = field(default_factory=lambda: dict.fromkeys(FLAGS, False))
    best_metric: float | None = None
    evaluations_without_gain: int = 0

    def __post_init__(self) -> None:
        shape = self.shape
        self.micro_batches = per_rank_batches(
            shape.rows, shape.per_device_train_batch_size, shape.ranks, shape.dataloader_drop_last
        )
        # -- how long the run is ------------------------------------------------
        accumulation = shape.gradient_accumulation_steps
        if shape.iterable:
            self.steps_per_epoch, self.max_steps, self.epochs = shape.max_steps, shape.max_steps, sys.maxsize
            self.epoch_length = shape.max_steps * accumulation  # what `epoch` is a fraction of
        else:
            # Rounded down: what is left over in an epoch still trains, but is not counted here.
            self.steps_per_epoch = max(self.micro_batches // accumulation, 1)
            self.epoch_length = self.micro_batches
            if shape.max_steps > 0:
                self.max_steps, self.epochs = shape.max_steps, math.ceil(shape.max_steps / self.steps_per_epoch)
            else:
                self.max_steps = math.ceil(shape.num_train_epochs * self.steps_per_epoch)
                self.epochs = math.ceil(shape.num_train_epochs)
        self.logging_steps = self._absolute(shape.logging_steps)
        self.save_steps = self._absolute(shape.save_steps)
        # Evaluation by steps without an interval of its own takes the one of the log, as the user gave it.
        by_steps_without_interval = shape.evaluation_strategy == "steps" and not shape.eval_steps
        self.eval_steps = self._absolute(shape.logging_steps if by_steps_without_interval else shape.eval_steps or 0)

    def _absolute(self, interval: float) -> int:
        """Turn a fraction of the run into steps."""
        return math.ceil(self.max_steps * interval) if interval < 1 else int(interval)

    # -- the run ----------------------------------------------------------------

    def events(self) -> Iterator[ExpectedEvent]:
        shape, accumulation = self.shape, self.shape.gradient_accumulation_steps
        yield from self._fire("on_init_end")
        self.epoch = 0
        first_epoch, skip = 0, 0
        if shape.resume_step is not None:
            self.step, self.epoch = shape.resume_step, shape.resume_epoch
            self.step_last_logged = self.step
            first_epoch = self.step // self.steps_per_epoch
            if not shape.ignore_data_skip:
                skip = self.step % self.steps_per_epoch * accumulation
        yield from self._fire("on_train_begin")
        # Counted over the whole run and never set back at an epoch's end: that is why a group can straddle epochs.
        micro_batches_done = 0
        for epoch in range(first_epoch, self.epochs):
            yield from self._fire("on_epoch_begin")
            for position in range(self.micro_batches - skip):
                micro_batches_done += 1
                # Counted within the epoch: after a straddling group the two counts disagree, and `on_step_begin`
                # falls in the middle of a group.
                if position % accumulation == 0:
                    yield from self._fire("on_step_begin")
                epoch_is_one_short_group = self.epoch_length <= accumulation and position + 1 == self.epoch_length
                if micro_batches_done % accumulation == 0 or epoch_is_one_short_group:
                    self.step += 1
                    self.epoch = epoch + (position + 1 + skip) / self.epoch_length
                    yield from self._fire("on_step_end")
                    yield from self._log_evaluate_save()
                else:
                    yield from self._fire("on_substep_end")
                if self.flags["should_epoch_stop"] or self.flags["should_training_stop"]:
                    break
            if self.micro_batches - skip <= 0:
                self.flags["should_training_stop"] = True  # not a single micro-batch came
            skip = 0
            yield from self._fire("on_epoch_end")
            yield from self._log_evaluate_save()
            if self.flags["should_training_stop"]:
                break
        if self.step == 0:
            raise ZeroDivisionError("no step was made")
        yield from self._fire("on_log")  # the summary of train
        yield from self._fire("on_train_end")

    def _log_evaluate_save(self) -> Iterator[ExpectedEvent]:
        shape = self.shape
        if self.flags["should_log"]:
            if self.step == self.step_last_logged:
                raise ZeroDivisionError("a log without a step since the last one")
            self.step_last_logged = self.step
            yield from self._fire("on_log")
        evaluated = self.flags["should_evaluate"]
        if evaluated:
            for rows in shape.eval_rows:
                for _ in range(
                    per_rank_batches(rows, shape.per_device_eval_batch_size, shape.ranks, shape.dataloader_drop_last)
                ):
                    yield from self._fire("on_prediction_step")
                yield from self._fire("on_log")  # the metrics
                yield from self._fire("on_evaluate")
        if self.flags["should_save"]:
            if evaluated and (self.best_metric is None or self._metric() < self.best_metric):
                self.best_metric = self._metric()
            yield from self._fire("on_save")

    # -- one event ----------------------------------------------------------------

    def _fire(self, event: str) -> Iterator[ExpectedEvent]:
        lowered = tuple(flag for flag in FLAGS if flag in LOWERS.get(event, ()) and self.flags[flag])
        self.flags.update(dict.fromkeys(lowered, False))
        raised = tuple(flag for flag in FLAGS if self.flags[flag])
        yield ExpectedEvent(event, self.step, self.epoch, lowered, raised)
        self._default_flow(event)
        if event == "on_evaluate" and self.shape.patience is not None:
            self._early_stopping(self.shape.patience)
        for at_event, at_step, flag in self.shape.raises:
            if event == at_event and self.step == at_step:
                self.flags[flag] = True

    def _default_flow(self, event: str) -> None:
        """What `DefaultFlowCallback` decides."""
        shape, flags = self.shape, self.flags
        if event == "on_step_end":
            flags["should_log"] |= (self.step == 1 and shape.logging_first_step) or (
                shape.logging_strategy == "steps" and self.step % self.logging_steps == 0
            )
            flags["should_evaluate"] |= (
                shape.evaluation_strategy == "steps"
                and self.step % self.eval_steps == 0
                and shape.eval_delay <= self.step
            )
            flags["should_save"] |= (
                shape.save_strategy == "steps" and self.save_steps > 0 and self.step % self.save_steps == 0
            )
            flags["should_training_stop"] |= self.step >= self.max_steps
        elif event == "on_epoch_end":
            flags["should_log"] |= shape.logging_strategy == "epoch"
            flags["should_evaluate"] |= shape.evaluation_strategy == "epoch" and shape.eval_delay <= (self.epoch or 0)
            flags["should_save"] |= shape.save_strategy == "epoch"

    def _early_stopping(self, patience: int) -> None:
        """What `EarlyStoppingCallback` decides; the best metric is the one of the last *saved* evaluation before."""
        if self.best_metric is None or self._metric() < self.best_metric:
            self.evaluations_without_gain = 0
        else:
            self.evaluations_without_gain += 1
        if self.evaluations_without_gain >= patience:
            self.flags["should_training_stop"] = True

    def _metric(self) -> float:
        return self.shape.eval_metric[min(self.step, len(self.shape.eval_metric) - 1)]


def per_rank_batches(rows: int, batch_size: int, ranks: int, drop_last: bool) -> int:
    """Return how many batches each rank gets from `rows` rows.

    Whole batches are dealt to the ranks in turn. Without `drop_last` the ranks that would go without in the last round
    get rows from the beginning again, so that all ranks have equally many.
    """
    if drop_last:
        return rows // batch_size // ranks
    return math.ceil(math.ceil(rows / batch_size) / ranks)


# Read next: lossmath.py, which derives every logged loss again from the recorded numbers.
