"""Callbacks: what may watch a run, and steer it, without touching the Trainer.

Three objects pass through every event. `args` says what was asked for and does not change. `TrainerState` says how
far the run is; it is what a checkpoint keeps. `TrainerControl` carries five flags: a callback raises one, the loop
acts on it and lowers it.

**Beware:** the handler lowers a flag *before* it calls the callbacks of the event that the flag asked for. Inside
`on_log`, `should_log` is already False.

    event                    lowers                                      the loop fires it
    on_init_end                                                          at the end of Trainer.__init__
    on_train_begin           should_training_stop                        once
    on_epoch_begin           should_epoch_stop                           each epoch
    on_step_begin            should_log, should_evaluate, should_save    before the first micro-batch of a group
    on_substep_end                                                       after every other micro-batch
    on_step_end                                                          after the last one: the weights have moved
    on_log                   should_log                                  whenever something is logged
    on_evaluate              should_evaluate                             after an evaluation
    on_predict                                                           after a prediction
    on_prediction_step                                                   after each batch of either
    on_save                  should_save                                 after a checkpoint
    on_epoch_end                                                         each epoch
    on_train_end                                                         once
"""

import dataclasses
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from tqdm.auto import tqdm

from .parts.checkpoints import LEFT_AS_IT_IS, load_json
from .parts.choices import IntervalStrategy
from .parts.inspection import has_length
from .parts.logs import get_logger

if TYPE_CHECKING:
    from .arguments import TrainingArguments

logger = get_logger(__name__)

# -- the state and the flags ---


@dataclass
class TrainerState:
    """How far the run is. A checkpoint keeps it as `trainer_state.json`; callbacks read it and must not change it.

    A *step* is one optimizer update; with accumulation it takes several micro-batches.

    Attributes:
        epoch: epochs done, with the part of the present one as a fraction; None outside training.
        global_step: steps done.
        max_steps: steps that the run will have done at its end.
        num_train_epochs: epochs that the run will have begun at its end, a whole number.
        total_flos: floating-point operations so far, a float because the count leaves the range of integers.
        log_history: everything logged so far, each with its step and epoch.
        best_metric: the best value of `metric_for_best_model` so far.
        best_model_checkpoint: the path of the checkpoint that reached it.
        is_local_process_zero: whether this is the first process of its machine.
        is_world_process_zero: whether this is the first process of all.
        is_hyper_param_search: whether a search is running; reporters then open one run a trial.
        trial_name: the name of the present trial.
        trial_params: its hyperparameters.

    Source: trainer_callback.py 34-106.
    """

    epoch: float | None = None
    global_step: int = 0
    max_steps: int = 0
    num_train_epochs: int = 0
    total_flos: float = 0
    log_history: list[dict[str, Any]] = None  # type: ignore[assignment]  # an empty list, made below
    # the best so far
    best_metric: float | None = None
    best_model_checkpoint: str | None = None
    # who we are
    is_local_process_zero: bool = True
    is_world_process_zero: bool = True
    # the trial, in a hyperparameter search
    is_hyper_param_search: bool = False
    trial_name: str | None = None
    trial_params: dict[str, str | float | int | bool] | None = None

    def __post_init__(self) -> None:
        if self.log_history is None:
            self.log_history = []

    def save_to_json(self, json_path: str) -> None:
        """Write the state, keys sorted, so that two equal states give equal files.

        **Beware:** a NaN in the log is written as `NaN`, which strict JSON readers refuse.
        """
        text = json.dumps(dataclasses.asdict(self), indent=2, sort_keys=True)
        with open(json_path, "w", encoding="utf-8") as file:
            file.write(text + "\n")

    @classmethod
    def load_from_json(cls, json_path: str) -> "TrainerState":
        """Read a state that `save_to_json` wrote.

        Raises:
            TypeError: if the file has a key that this version does not know.
            ValueError: if the file is damaged.
        """
        entries = load_json(json_path)
        try:
            return cls(**entries)
        except TypeError as error:
            raise TypeError(f"{json_path} is no state of a Trainer ({error}). {LEFT_AS_IT_IS}") from error


@dataclass
class TrainerControl:
    """Five flags by which callbacks ask the loop for something. It looks at them after each step and each epoch.

    Attributes:
        should_training_stop: end the training after this step. Stays up until the next `train`.
        should_epoch_stop: end the epoch after this step. Lowered when the next one begins.
        should_save: write a checkpoint. Lowered by the save, or when the next step begins.
        should_evaluate: run an evaluation. Lowered likewise.
        should_log: log the training loss. Lowered likewise.

    Source: trainer_callback.py 109-156.
    """

    # looked at by the loop itself
    should_training_stop: bool = False
    should_epoch_stop: bool = False
    # acted on after a step or an epoch; not in this order, but log, evaluate, save
    should_save: bool = False
    should_evaluate: bool = False
    should_log: bool = False

    def _new_training(self) -> None:
        """Lower the flag that lasts for a training."""
        self.should_training_stop = False

    def _new_epoch(self) -> None:
        """Lower the flag that lasts for an epoch."""
        self.should_epoch_stop = False

    def _new_step(self) -> None:
        """Lower the three flags that last for a step."""
        self.should_save = self.should_evaluate = self.should_log = False


# -- events ---


class TrainerCallback:
    """Override the events that you want to hear about; the others do nothing.

    Every event gets `args`, `state` and `control` in this order, and by keyword `model`, `tokenizer`, `optimizer`,
    `lr_scheduler`, `train_dataloader`, `eval_dataloader` (those that do not exist yet are None). `on_evaluate` and
    `on_predict` get `metrics` besides, `on_log` gets `logs`. Name the ones you need and take the rest as `**kwargs`:

        class Loss(TrainerCallback):
            def on_log(self, args, state, control, logs=None, **kwargs):
                print(state.global_step, logs.get("loss"))

    To steer the run, change `control`; returning it is optional. **Beware:** `logs` and `metrics` are the very
    dicts that the next callback gets, and some callbacks remove entries from them.

    Source: trainer_callback.py 159-287.
    """

    # fmt: off
    def on_init_end(self, args: "TrainingArguments", state: TrainerState, control: TrainerControl, **kwargs: Any):
        """The Trainer has been built."""

    def on_train_begin(self, args: "TrainingArguments", state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Training is about to begin: model, optimizer and loaders are ready."""

    def on_train_end(self, args: "TrainingArguments", state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Training has ended, and the best model, if one was tracked, is loaded."""

    def on_epoch_begin(self, args: "TrainingArguments", state: TrainerState, control: TrainerControl, **kwargs: Any):
        """The loop is about to ask for an epoch's first micro-batch."""

    def on_epoch_end(self, args: "TrainingArguments", state: TrainerState, control: TrainerControl, **kwargs: Any):
        """The loop has no more micro-batches in this epoch, or was told to leave it."""

    def on_step_begin(self, args: "TrainingArguments", state: TrainerState, control: TrainerControl, **kwargs: Any):
        """A group is about to begin: its first micro-batch has been loaded, not yet used."""

    def on_substep_end(self, args: "TrainingArguments", state: TrainerState, control: TrainerControl, **kwargs: Any):
        """A micro-batch is done that is not the last of its group; gradients have grown, weights not moved."""

    def on_step_end(self, args: "TrainingArguments", state: TrainerState, control: TrainerControl, **kwargs: Any):
        """A group is done: the weights have moved, gradients are cleared, `global_step` counts this step."""

    def on_evaluate(self, args: "TrainingArguments", state: TrainerState, control: TrainerControl, **kwargs: Any):
        """An evaluation is done and has been logged. With several sets, one event each."""

    def on_predict(
        self, args: "TrainingArguments", state: TrainerState, control: TrainerControl, metrics: Any, **kwargs: Any
    ):
        """A call of `predict` is done."""

    def on_save(self, args: "TrainingArguments", state: TrainerState, control: TrainerControl, **kwargs: Any):
        """A checkpoint has been written."""

    def on_log(self, args: "TrainingArguments", state: TrainerState, control: TrainerControl, **kwargs: Any):
        """Something was logged and stands in `state.log_history`."""

    def on_prediction_step(
        self, args: "TrainingArguments", state: TrainerState, control: TrainerControl, **kwargs: Any
    ):
        """One batch of an evaluation or a prediction is done."""
    # fmt: on


class CallbackHandler(TrainerCallback):
    """Calls each callback in the order of the list, and lowers the flag of an event before that.

    Itself a callback, so it has one method an event; the Trainer holds it as `callback_handler`.

    Args:
        callbacks: classes or instances; a class is instantiated without arguments.
        model: handed to every callback; likewise the next three.
        tokenizer: None is allowed.
        optimizer: set later by the Trainer, once it exists.
        lr_scheduler: likewise.

    Source: trainer_callback.py 290-412.
    """

    def __init__(self, callbacks: list[Any], model: Any, tokenizer: Any, optimizer: Any, lr_scheduler: Any):
        self.callbacks: list[TrainerCallback] = []
        for callback in callbacks:
            self.add_callback(callback)
        self.model, self.tokenizer = model, tokenizer
        self.optimizer, self.lr_scheduler = optimizer, lr_scheduler
        self.train_dataloader = self.eval_dataloader = None
        if not any(isinstance(callback, DefaultFlowCallback) for callback in self.callbacks):
            logger.warning(
                "Without a DefaultFlowCallback nothing says when to log, evaluate, save or stop: call"
                f" `trainer.add_callback(DefaultFlowCallback)` before training. The callbacks now:\n{self.callback_list}"
            )

    # -- the list ---

    @property
    def callback_list(self) -> str:
        """The class names, one a line."""
        return "\n".join(type(callback).__name__ for callback in self.callbacks)

    def add_callback(self, callback: Any) -> None:
        """Append a class or an instance. A second of the same class is warned about and appended all the same."""
        instance = callback() if isinstance(callback, type) else callback
        if type(instance) in [type(present) for present in self.callbacks]:
            logger.warning(
                f"A second {type(instance)} is added, and both will hear every event. The callbacks now:"
                f"\n{self.callback_list}"
            )
        self.callbacks.append(instance)

    def pop_callback(self, callback: Any) -> TrainerCallback | None:
        """Take out and return the first of that class, or the first equal to that instance; None if there is none."""
        found = self._find(callback)
        if found is not None:
            self.callbacks.remove(found)
        return found

    def remove_callback(self, callback: Any) -> None:
        """Take out the first of that class, if there is one, or that instance.

        Raises:
            ValueError: if an instance, not a class, is not in the list.
        """
        found = self._find(callback) if isinstance(callback, type) else callback
        if found is not None:
            self.callbacks.remove(found)

    def _find(self, callback: Any) -> TrainerCallback | None:
        """The first callback that is meant; a class means its subclasses too."""
        for present in self.callbacks:
            if isinstance(present, callback) if isinstance(callback, type) else present == callback:
                return present
        return None

    # -- the events, with the flags that they lower ---

    def on_init_end(self, args, state, control):  # type: ignore[override]
        """Fire once the Trainer is built."""
        return self.call_event("on_init_end", args, state, control)

    def on_train_begin(self, args, state, control):  # type: ignore[override]
        """Fire before the first epoch; lower should_training_stop."""
        control._new_training()
        return self.call_event("on_train_begin", args, state, control)

    def on_train_end(self, args, state, control):  # type: ignore[override]
        """Fire after the last epoch, when the best model is back."""
        return self.call_event("on_train_end", args, state, control)

    def on_epoch_begin(self, args, state, control):  # type: ignore[override]
        """Fire before an epoch's first micro-batch; lower should_epoch_stop."""
        control._new_epoch()
        return self.call_event("on_epoch_begin", args, state, control)

    def on_epoch_end(self, args, state, control):  # type: ignore[override]
        """Fire after an epoch's last micro-batch."""
        return self.call_event("on_epoch_end", args, state, control)

    def on_step_begin(self, args, state, control):  # type: ignore[override]
        """Fire before a group's first micro-batch; lower should_save, should_evaluate and should_log."""
        control._new_step()
        return self.call_event("on_step_begin", args, state, control)

    def on_substep_end(self, args, state, control):  # type: ignore[override]
        """Fire after each micro-batch of a group but its last."""
        return self.call_event("on_substep_end", args, state, control)

    def on_step_end(self, args, state, control):  # type: ignore[override]
        """Fire after the update of the weights."""
        return self.call_event("on_step_end", args, state, control)

    def on_evaluate(self, args, state, control, metrics):  # type: ignore[override]
        """Fire after an evaluation; lower should_evaluate."""
        control.should_evaluate = False
        return self.call_event("on_evaluate", args, state, control, metrics=metrics)

    def on_predict(self, args, state, control, metrics):  # type: ignore[override]
        """Fire after a prediction."""
        return self.call_event("on_predict", args, state, control, metrics=metrics)

    def on_save(self, args, state, control):  # type: ignore[override]
        """Fire after a checkpoint is written; lower should_save."""
        control.should_save = False
        return self.call_event("on_save", args, state, control)

    def on_log(self, args, state, control, logs):  # type: ignore[override]
        """Fire after a log entry is kept; lower should_log."""
        control.should_log = False
        return self.call_event("on_log", args, state, control, logs=logs)

    def on_prediction_step(self, args, state, control):  # type: ignore[override]
        """Fire after each batch of an evaluation or prediction."""
        return self.call_event("on_prediction_step", args, state, control)

    def call_event(
        self, event: str, args: "TrainingArguments", state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Call one event of every callback.

        Args:
            event: the method's name.
            args: the training arguments.
            state: the Trainer's state.
            control: the flags.
            **kwargs: what only this event has, such as `logs`.

        Returns:
            The flags: the same object, or what the last callback returned that returned any.
        """
        for callback in self.callbacks:
            # Looked up anew for each callback: one of them may have replaced the optimizer or the model.
            returned = getattr(callback, event)(
                args,
                state,
                control,
                train_dataloader=self.train_dataloader,
                eval_dataloader=self.eval_dataloader,
                model=self.model,
                tokenizer=self.tokenizer,
                optimizer=self.optimizer,
                lr_scheduler=self.lr_scheduler,
                **kwargs,
            )
            control = control if returned is None else returned
        return control


# -- the callback that decides ---


class DefaultFlowCallback(TrainerCallback):
    """Raises the flags that the strategies and intervals of the arguments ask for. Without it nothing is ever logged.

    **Beware:** it looks at one step at a time. With `eval_delay` in steps an evaluation that falls before the delay
    is skipped, not postponed. With strategy "steps", `save_steps=0` means never, while `logging_steps=0` is an error.

    Source: trainer_callback.py 415-462.
    """

    def on_step_end(self, args, state, control, **kwargs):
        """Raise what is due at this step. An interval counts from the start of training, not of the epoch."""
        step = state.global_step
        by_steps = IntervalStrategy.STEPS

        if args.logging_first_step and step == 1:
            control.should_log = True
        if args.logging_strategy == by_steps and step % args.logging_steps == 0:
            control.should_log = True

        evaluation_is_due = args.evaluation_strategy == by_steps and step % args.eval_steps == 0
        if evaluation_is_due and args.eval_delay <= step:
            control.should_evaluate = True

        if args.save_strategy == by_steps and args.save_steps > 0 and step % args.save_steps == 0:
            control.should_save = True

        if step >= state.max_steps:
            control.should_training_stop = True
        return control

    def on_epoch_end(self, args, state, control, **kwargs):
        """Raise what is due once an epoch. `eval_delay` then counts epochs."""
        once_an_epoch = IntervalStrategy.EPOCH
        if args.logging_strategy == once_an_epoch:
            control.should_log = True
        if args.evaluation_strategy == once_an_epoch and args.eval_delay <= state.epoch:
            control.should_evaluate = True
        if args.save_strategy == once_an_epoch:
            control.should_save = True
        return control


# -- the callbacks that show ---


class ProgressCallback(TrainerCallback):
    """Draws a progress bar for training, one for each evaluation, and writes what is logged between them.

    Only the first process of a machine draws. **Beware:** it removes `total_flos` from the logs that later callbacks
    get, and fails if `on_train_end` comes without an `on_train_begin`.

    Source: trainer_callback.py 465-512.
    """

    def __init__(self) -> None:
        self.training_bar: Any = None
        self.prediction_bar: Any = None

    def on_train_begin(self, args, state, control, **kwargs):
        """Open the bar; its length is the number of steps."""
        if state.is_local_process_zero:
            self.training_bar = tqdm(total=state.max_steps, dynamic_ncols=True)
        self.current_step = 0  # where the bar stands

    def on_step_end(self, args, state, control, **kwargs):
        """Move the bar to the present step; after a resume it first jumps over the steps done before."""
        if state.is_local_process_zero:
            self.training_bar.update(state.global_step - self.current_step)
            self.current_step = state.global_step

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        """Move the second bar by one batch; open it at the first. A loader without length gets no bar."""
        if not state.is_local_process_zero or not has_length(eval_dataloader):
            return
        if self.prediction_bar is None:
            # Inside training it vanishes when it is done.
            stays = self.training_bar is None
            self.prediction_bar = tqdm(total=len(eval_dataloader), leave=stays, dynamic_ncols=True)
        self.prediction_bar.update(1)

    def on_evaluate(self, args, state, control, **kwargs):
        """Close the second bar."""
        self._close_prediction_bar(state)

    def on_predict(self, args, state, control, metrics=None, **kwargs):
        """Close the second bar."""
        self._close_prediction_bar(state)

    def _close_prediction_bar(self, state: TrainerState) -> None:
        if state.is_local_process_zero:
            if self.prediction_bar is not None:
                self.prediction_bar.close()
            self.prediction_bar = None

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Write the logs above the bar."""
        if state.is_local_process_zero and self.training_bar is not None:
            logs.pop("total_flos", None)
            self.training_bar.write(str(logs))

    def on_train_end(self, args, state, control, **kwargs):
        """Close the bar."""
        if state.is_local_process_zero:
            self.training_bar.close()
            self.training_bar = None


class PrinterCallback(TrainerCallback):
    """Prints what is logged, for runs without progress bars (`disable_tqdm`). It removes `total_flos` from the logs.

    Source: trainer_callback.py 515-523.
    """

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Print on the first process of each machine."""
        logs.pop("total_flos", None)
        if state.is_local_process_zero:
            print(logs)


def default_progress_callback() -> type[TrainerCallback]:
    """Choose how to show progress: a table in a notebook, a bar elsewhere.

    Source: trainer.py 146-152.
    """
    from transformers.utils import is_in_notebook

    if is_in_notebook():
        from .notebook import NotebookProgressCallback

        return NotebookProgressCallback
    return ProgressCallback


# -- the callback that stops ---


class EarlyStoppingCallback(TrainerCallback):
    """Stops the training when the tracked metric has not improved for some evaluations in a row.

    **Beware:** it compares with `state.best_metric`, which the Trainer moves when it *saves*. Between two saves,
    several evaluations are measured against the same old best value. A resumed run counts from zero again.

    Args:
        early_stopping_patience: evaluations without improvement that are too many.
        early_stopping_threshold: an improvement must be larger than this to count.

    Source: trainer_callback.py 526-584.
    """

    def __init__(self, early_stopping_patience: int = 1, early_stopping_threshold: float | None = 0.0):
        self.early_stopping_patience = early_stopping_patience
        self.early_stopping_threshold = early_stopping_threshold
        self.early_stopping_patience_counter = 0  # evaluations without improvement so far

    def check_metric_value(self, args, state, control, metric_value):
        """Count one more evaluation without improvement, or start over. Override it for a rule of your own."""
        is_better = np.greater if args.greater_is_better else np.less
        has_improved = state.best_metric is None or (
            is_better(metric_value, state.best_metric)
            and abs(metric_value - state.best_metric) > self.early_stopping_threshold
        )
        self.early_stopping_patience_counter = 0 if has_improved else self.early_stopping_patience_counter + 1

    def on_train_begin(self, args, state, control, **kwargs):
        """Check that there will be a best metric to compare with.

        Raises:
            AssertionError: without `load_best_model_at_end`, a metric's name or evaluations.
        """
        assert args.load_best_model_at_end, (
            "EarlyStoppingCallback compares with the best model: set load_best_model_at_end=True"
        )
        assert args.metric_for_best_model is not None, (
            "EarlyStoppingCallback needs the name of a metric: set metric_for_best_model"
        )
        assert args.evaluation_strategy != IntervalStrategy.NO, (
            "EarlyStoppingCallback listens to evaluations: set evaluation_strategy to steps or epoch"
        )

    def on_evaluate(self, args, state, control, metrics, **kwargs):  # type: ignore[override]
        """Look at the new value, and stop if patience has run out. A missing metric is warned about, nothing more."""
        name = args.metric_for_best_model
        name = name if name.startswith("eval_") else f"eval_{name}"
        metric_value = metrics.get(name)
        if metric_value is None:
            logger.warning(
                f"no early stopping at this evaluation: it returned no {name}, which metric_for_best_model asks for"
            )
            return
        self.check_metric_value(args, state, control, metric_value)
        if self.early_stopping_patience_counter >= self.early_stopping_patience:
            control.should_training_stop = True


# Read next: reporters.py
