"""Real Trainers with one planted difference each: what the harness must find, or it proves nothing.

A mutant is a subclass of the real Trainer (and sometimes of its arguments or its callback handler) that does one thing
otherwise. Beside it stand a Case in which the difference shows and the words that the message must contain.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from .cases import Case
from .run import Library, real_library

# one evaluation, save and log at every step
BUSY = {
    "evaluation_strategy": "steps",
    "eval_steps": 1,
    "save_strategy": "steps",
    "save_steps": 1,
    "logging_steps": 1,
    "per_device_train_batch_size": 2,
    "num_train_epochs": 1,
    "learning_rate": 0.1,
}


@dataclass
class Mutant:
    """One planted difference.

    Attributes:
        name: What is planted.
        build: Makes the library, when the real one is importable.
        case: A case in which it shows.
        found_as: A part of the message that must report it.
        kind: Which kind of drawn cases must find it too.
    """

    name: str
    build: Callable[[], Library]
    case: Case
    found_as: str
    kind: str


MUTANTS: list[Mutant] = []


def mutant(
    found_as: str, case: Case, kind: str = "training"
) -> Callable[[Callable[[Any], dict[str, Any]]], Callable[[Any], dict[str, Any]]]:
    """Register a function that gives the members by which a mutant differs.

    Args:
        found_as: A part of the message that must report it.
        case: A case in which it shows.
        kind: Which kind of drawn cases must find it too.
    """

    def register(members: Callable[[Any], dict[str, Any]]) -> Callable[[Any], dict[str, Any]]:
        def build() -> Library:
            real = real_library()
            given = members(real)
            arguments = given.pop("TrainingArguments", real.TrainingArguments)
            trainer = type("Trainer", (real.Trainer,), given)
            return dataclasses.replace(real, name=members.__name__, Trainer=trainer, TrainingArguments=arguments)

        MUTANTS.append(Mutant(members.__name__, build, case, found_as, kind))
        return members

    return register


# -- the training loop -----------------------------------------------------------------------------------------------


@mutant("flags", Case(args=BUSY))
def log_flag_stays_up(real: Any) -> dict[str, Any]:
    """The handler does not lower should_log before on_log."""

    class Handler(real.CallbackHandler):
        def on_log(self, args: Any, state: Any, control: Any, logs: Any) -> Any:
            return self.call_event("on_log", args, state, control, logs=logs)

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        real.Trainer.__init__(self, *args, **kwargs)
        self.callback_handler.__class__ = Handler

    return {"__init__": __init__}


@mutant("train_loss", Case(args={"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1}))
def loss_not_divided_by_group(real: Any) -> dict[str, Any]:
    """The loss that is summed up is not divided by the accumulation steps."""

    def training_step(self: Any, model: Any, inputs: Any) -> Any:
        return real.Trainer.training_step(self, model, inputs) * self.args.gradient_accumulation_steps

    return {"training_step": training_step}


@mutant("loss", Case(args=BUSY))
def loss_logged_with_five_places(real: Any) -> dict[str, Any]:
    """The logged loss differs in its fifth place."""

    def log(self: Any, logs: Any) -> None:
        if "loss" in logs:
            logs["loss"] += 1e-5
        real.Trainer.log(self, logs)

    return {"log": log}


@mutant("parameters", Case(args=BUSY | {"max_grad_norm": 0.05}))
def gradients_not_clipped(real: Any) -> dict[str, Any]:
    """max_grad_norm is ignored."""

    def create_optimizer(self: Any) -> Any:
        self.accelerator.clip_grad_norm_ = lambda *args: None
        return real.Trainer.create_optimizer(self)

    return {"create_optimizer": create_optimizer}


@mutant("learning_rate", Case(args=BUSY | {"warmup_steps": 2}))
def warmup_one_step_longer(real: Any) -> dict[str, Any]:
    """The warm-up lasts one step too many."""

    def create_scheduler(self: Any, num_training_steps: int, optimizer: Any = None) -> Any:
        self.args.warmup_steps += 1
        scheduler = real.Trainer.create_scheduler(self, num_training_steps, optimizer)
        self.args.warmup_steps -= 1
        return scheduler

    return {"create_scheduler": create_scheduler}


@mutant("parameters", Case(args=BUSY | {"weight_decay": 0.3}))
def norms_are_decayed_too(real: Any) -> dict[str, Any]:
    """Weight decay reaches the parameters that it must spare."""

    def create_optimizer(self: Any) -> Any:
        optimizer = real.Trainer.create_optimizer(self)
        for group in optimizer.param_groups:
            group["weight_decay"] = self.args.weight_decay
        return optimizer

    return {"create_optimizer": create_optimizer}


@mutant("random", Case(args=BUSY))
def no_shuffling(real: Any) -> dict[str, Any]:
    """The training set is read in its own order."""
    return {"_get_train_sampler": lambda self: torch.utils.data.SequentialSampler(self.train_dataset)}


@mutant("max_steps", Case(train_samples=5, args=BUSY | {"dataloader_drop_last": False}))
def last_batch_dropped(real: Any) -> dict[str, Any]:
    """The incomplete last batch is dropped although nobody asked."""

    def get_train_dataloader(self: Any) -> Any:
        self.args.dataloader_drop_last = True
        return real.Trainer.get_train_dataloader(self)

    return {"get_train_dataloader": get_train_dataloader}


@mutant("loss", Case(broken_losses=(2,), args=BUSY | {"evaluation_strategy": "no"}))
def broken_losses_not_filtered(real: Any) -> dict[str, Any]:
    """A NaN loss is summed up although logging_nan_inf_filter is on."""

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.args.logging_nan_inf_filter = False
        return real.Trainer.train(self, *args, **kwargs)

    return {"train": train}


@mutant("parameters", Case(model="classifier", args=BUSY | {"label_smoothing_factor": 0.1}))
def smoothing_a_little_stronger(real: Any) -> dict[str, Any]:
    """Label smoothing with another factor, by one part in a million."""

    def compute_loss(self: Any, model: Any, inputs: Any, return_outputs: bool = False) -> Any:
        self.label_smoother.epsilon = self.args.label_smoothing_factor * (1 + 1e-6)
        return real.Trainer.compute_loss(self, model, inputs, return_outputs)

    return {"compute_loss": compute_loss}


@mutant("total_flos", Case(model="pretrained", args=BUSY))
def operations_not_counted(real: Any) -> dict[str, Any]:
    """The floating-point operations are forgotten."""
    return {"store_flos": lambda self: None}


@mutant("epoch", Case(args=BUSY))
def epoch_rounded(real: Any) -> dict[str, Any]:
    """state.epoch is kept with three places."""

    def _maybe_log_save_evaluate(self: Any, *args: Any) -> None:
        self.state.epoch = round(self.state.epoch, 3)
        real.Trainer._maybe_log_save_evaluate(self, *args)

    return {"_maybe_log_save_evaluate": _maybe_log_save_evaluate}


@mutant("value", Case())
def step_count_as_float(real: Any) -> dict[str, Any]:
    """train() returns 3.0 where 3 was returned."""

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = real.Trainer.train(self, *args, **kwargs)
        return output._replace(global_step=float(output.global_step))

    return {"train": train}


@mutant("method", Case())
def hook_bypassed(real: Any) -> dict[str, Any]:
    """A method that users override is no longer called."""

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        real.Trainer.__init__(self, *args, **kwargs)
        self.floating_point_ops = lambda inputs: 0

    return {"__init__": __init__}


# -- evaluation ------------------------------------------------------------------------------------------------------


@mutant("random", Case(args=BUSY))
def evaluation_consumes_a_random_number(real: Any) -> dict[str, Any]:
    """The evaluation moves torch's generator by one number."""

    def evaluation_loop(self: Any, *args: Any, **kwargs: Any) -> Any:
        torch.rand(1)
        return real.Trainer.evaluation_loop(self, *args, **kwargs)

    return {"evaluation_loop": evaluation_loop}


@mutant("random", Case(args=BUSY))
def evaluation_consumes_a_numpy_number(real: Any) -> dict[str, Any]:
    """The evaluation moves NumPy's generator by one number."""

    def evaluation_loop(self: Any, *args: Any, **kwargs: Any) -> Any:
        np.random.rand()
        return real.Trainer.evaluation_loop(self, *args, **kwargs)

    return {"evaluation_loop": evaluation_loop}


@mutant("float64", Case(metrics="digest", calls=("predict",)), kind="evaluation")
def predictions_in_double(real: Any) -> dict[str, Any]:
    """Predictions come in another number type."""

    def predict(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = real.Trainer.predict(self, *args, **kwargs)
        return output._replace(predictions=output.predictions.astype(np.float64))

    return {"predict": predict}


@mutant("eval_rows", Case(metrics="digest", calls=("evaluate",)), kind="evaluation")
def metrics_keep_numpy_types(real: Any) -> dict[str, Any]:
    """A metric stays a NumPy number."""

    def evaluation_loop(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = real.Trainer.evaluation_loop(self, *args, **kwargs)
        output.metrics["eval_rows"] = np.int64(output.metrics["eval_rows"])
        return output

    return {"evaluation_loop": evaluation_loop}


@mutant("forward", Case(args=BUSY))
def one_forward_too_many(real: Any) -> dict[str, Any]:
    """Each prediction step runs the model twice."""

    def prediction_step(self: Any, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
        model(**inputs)
        return real.Trainer.prediction_step(self, model, inputs, *args, **kwargs)

    return {"prediction_step": prediction_step}


@mutant("eval_loss", Case(calls=("evaluate",)), kind="evaluation")
def loss_off_by_one_bit(real: Any) -> dict[str, Any]:
    """The evaluation loss differs in its last bit."""

    def log(self: Any, logs: Any) -> None:
        logs["eval_loss"] = float(np.nextafter(logs["eval_loss"], 10.0))
        real.Trainer.log(self, logs)

    return {"log": log}


@mutant("training_mode", Case(calls=("train", "evaluate")))
def model_left_training(real: Any) -> dict[str, Any]:
    """evaluate() leaves the model in training mode."""

    def evaluate(self: Any, *args: Any, **kwargs: Any) -> Any:
        metrics = real.Trainer.evaluate(self, *args, **kwargs)
        self.model.train()
        return metrics

    return {"evaluate": evaluate}


# -- saving and resuming ---------------------------------------------------------------------------------------------


@mutant("checkpoint-1/scheduler.pt", Case(args=BUSY))
def scheduler_not_saved(real: Any) -> dict[str, Any]:
    """A checkpoint lacks a file."""

    def _save_checkpoint(self: Any, model: Any, trial: Any, metrics: Any = None) -> None:
        real.Trainer._save_checkpoint(self, model, trial, metrics=metrics)
        os.remove(f"{self.args.output_dir}/checkpoint-{self.state.global_step}/scheduler.pt")

    return {"_save_checkpoint": _save_checkpoint}


@mutant("checkpoint-1/notes.txt", Case(args=BUSY))
def one_file_too_many(real: Any) -> dict[str, Any]:
    """A checkpoint has a file that upstream's has not."""

    def _save_checkpoint(self: Any, model: Any, trial: Any, metrics: Any = None) -> None:
        real.Trainer._save_checkpoint(self, model, trial, metrics=metrics)
        with open(f"{self.args.output_dir}/checkpoint-1/notes.txt", "w", encoding="utf-8") as stream:
            stream.write("extra\n")

    return {"_save_checkpoint": _save_checkpoint}


@mutant("pytorch_model.bin", Case(args=BUSY))
def weights_saved_in_double(real: Any) -> dict[str, Any]:
    """The saved weights have another type than the trained ones."""

    def _save(self: Any, output_dir: Any = None, state_dict: Any = None) -> None:
        real.Trainer._save(self, output_dir, {key: value.double() for key, value in self.model.state_dict().items()})

    return {"_save": _save}


@mutant("file checkpoint-2", Case(args=BUSY | {"save_total_limit": 1}))
def rotation_keeps_one_more(real: Any) -> dict[str, Any]:
    """One checkpoint too many survives."""

    def _rotate_checkpoints(self: Any, use_mtime: bool = False, output_dir: Any = None) -> None:
        limit = self.args.save_total_limit
        self.args.save_total_limit = limit + 1
        real.Trainer._rotate_checkpoints(self, use_mtime, output_dir)
        self.args.save_total_limit = limit

    return {"_rotate_checkpoints": _rotate_checkpoints}


@mutant("best_metric", Case(args=BUSY | {"load_best_model_at_end": True}))
def best_metric_rounded(real: Any) -> dict[str, Any]:
    """The best metric is remembered with six places."""

    def _save_checkpoint(self: Any, model: Any, trial: Any, metrics: Any = None) -> None:
        rounded = {key: round(value, 6) for key, value in metrics.items()}
        real.Trainer._save_checkpoint(self, model, trial, metrics=rounded)

    return {"_save_checkpoint": _save_checkpoint}


@mutant("parameters", Case(args=BUSY | {"load_best_model_at_end": True, "learning_rate": 5.0}))
def best_model_not_loaded(real: Any) -> dict[str, Any]:
    """The last model is kept where the best was wanted."""

    def _load_best_model(self: Any) -> None:
        last = {name: value.clone() for name, value in self.model.state_dict().items()}
        real.Trainer._load_best_model(self)
        self.model.load_state_dict(last)

    return {"_load_best_model": _load_best_model}


RESUMED = {"save_strategy": "steps", "save_steps": 1, "per_device_train_batch_size": 2, "num_train_epochs": 1}


@mutant("random", Case(model="classifier", dropout=0.3, args=RESUMED, resume=0), kind="resume")
def random_state_not_restored(real: Any) -> dict[str, Any]:
    """A resumed run does not go on with the random numbers of the checkpoint."""
    return {"_load_rng_state": lambda self, checkpoint: None}


@mutant("parameters", Case(args=RESUMED | {"learning_rate": 0.1}, resume=0), kind="resume")
def optimizer_not_restored(real: Any) -> dict[str, Any]:
    """A resumed run starts with an empty optimizer."""
    return {"_load_optimizer_and_scheduler": lambda self, checkpoint: None}


@mutant("random", Case(args=RESUMED, resume=0), kind="resume")
def skipped_data_not_skipped(real: Any) -> dict[str, Any]:
    """A resumed run sees the data of the checkpointed epoch again."""

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.args.ignore_data_skip = True
        return real.Trainer.train(self, *args, **kwargs)

    return {"train": train}


@mutant("checkpoint-1", Case(args=RESUMED, crash=("on_epoch_end", 1)))
def checkpoints_lost_after_a_crash(real: Any) -> dict[str, Any]:
    """A run that dies takes its checkpoints with it."""

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return real.Trainer.train(self, *args, **kwargs)
        except BaseException:
            shutil.rmtree(self.args.output_dir)
            raise

    return {"train": train}


# -- failures and the rest -------------------------------------------------------------------------------------------


@mutant("RuntimeError", Case(train="none"), kind="invalid")
def failure_of_another_class(real: Any) -> dict[str, Any]:
    """The error has another class."""

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return real.Trainer.train(self, *args, **kwargs)
        except ValueError as error:
            raise RuntimeError(str(error)) from error

    return {"train": train}


@mutant("leaves out ['train_dataset']", Case(train="none"), kind="invalid")
def failure_without_the_name(real: Any) -> dict[str, Any]:
    """The error no longer names the argument."""

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return real.Trainer.train(self, *args, **kwargs)
        except ValueError:
            raise ValueError("something is missing") from None

    return {"train": train}


@mutant("failure", Case(train="none"), kind="invalid")
def failure_swallowed(real: Any) -> dict[str, Any]:
    """What must fail passes."""

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return real.Trainer.train(self, *args, **kwargs)
        except ValueError:
            return SimpleNamespace()

    return {"train": train}


@mutant("printed line", Case(args=BUSY))
def one_line_printed_more(real: Any) -> dict[str, Any]:
    """Something is printed that upstream does not print."""

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = real.Trainer.train(self, *args, **kwargs)
        print("done")
        return output

    return {"train": train}


@mutant("attributes", Case())
def attribute_missing(real: Any) -> dict[str, Any]:
    """An attribute that scripts read is not there."""

    def train(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = real.Trainer.train(self, *args, **kwargs)
        del self.place_model_on_device
        return output

    return {"train": train}


@mutant("learning_rate", Case(calls=()))
def argument_changed(real: Any) -> dict[str, Any]:
    """The arguments hold another default."""

    class Arguments(real.TrainingArguments):
        def __post_init__(self) -> None:
            super().__post_init__()
            if self.learning_rate == 5e-5:
                self.learning_rate = 5.1e-5

    Arguments.__name__ = "TrainingArguments"
    return {"TrainingArguments": Arguments}


# Read next: tests/parity/test_harness.py
