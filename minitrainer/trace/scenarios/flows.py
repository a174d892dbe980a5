"""The flow scenarios' shapes: each a training run in a few numbers.

Nothing is learned in these runs. The losses are scripted (`scripted.py`): each row of the data names the loss that it
causes, an exact binary fraction, so that every sum, mean and quotient of the loss mathematics can be followed by hand
and comes out the same on every machine. What remains is order: events, flags, logs, evaluations, saves.

`traces/` holds the recordings of the real transformers 4.31.0 for each of them, and `expected.py` predicts their
callbacks from the same numbers.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Flow:
    """One scenario: a run's shape, and what is done with the trainer.

    Attributes:
        question: what a reader learns from it.
        rows: rows in the training set. The default batch holds 2 of them.
        eval_rows: rows in the evaluation set; a dict gives several sets by name; 0 gives none.
        arguments: TrainingArguments by their 4.31.0 names, beyond `COMMON`.
        losses: training rows whose loss is not the usual one (see `scripted.row_loss`).
        eval_curve: what is added to the evaluation loss, by the number of steps done; the last entry stays.
        actions: "train", "resume:N" (a new trainer goes on from checkpoint-N), "evaluate", "predict" and
            "predict-unlabelled".
        fails: actions that 4.31.0 can't do; the trace shows how they fail.
        stop: ("epoch" or "training", N): a callback raises that stop flag at the end of step N.
        patience: evaluations without improvement before `EarlyStoppingCallback` stops the run; None for none.
        iterable: the training set is a stream without length.
        legacy_prediction_loop: evaluate with the older `prediction_loop`.
        ranks: number of processes.
    """

    question: str
    rows: int = 8
    eval_rows: int | dict[str, int] = 0
    arguments: dict[str, Any] = field(default_factory=dict)
    losses: dict[int, float] = field(default_factory=dict)
    eval_curve: tuple[float, ...] = (0.0,)
    actions: tuple[str, ...] = ("train",)
    fails: tuple[str, ...] = ()
    stop: tuple[str, int] | None = None
    patience: int | None = None
    iterable: bool = False
    legacy_prediction_loop: bool = False
    ranks: int = 1


# What all flows share. Logs at every second step show an average of two; nothing is saved unless a flow asks for it.
COMMON: dict[str, Any] = {
    "per_device_train_batch_size": 2,
    "per_device_eval_batch_size": 2,
    "num_train_epochs": 1,
    "learning_rate": 0.5,
    "logging_steps": 2,
    "save_strategy": "no",
    "report_to": [],
    "disable_tqdm": True,
    "no_cuda": True,
}

# Evaluation loss by steps done: falls, has its best value at step 4, rises again.
BEST_AT_STEP_4 = (1.0, 1.0, 0.75, 0.625, 0.25, 0.5, 0.5, 0.5, 0.625)

FLOWS: dict[str, Flow] = {
    "one-epoch": Flow("the plainest run: one epoch of four steps, a log at every second"),
    "groups-divide-evenly": Flow(
        "two micro-batches a step: which callbacks run for a micro-batch, and which for a step",
        arguments={"gradient_accumulation_steps": 2, "num_train_epochs": 2, "logging_steps": 1},
    ),
    "group-straddles-epochs": Flow(
        "five micro-batches in groups of two: the last one of an epoch waits for the first of the next",
        rows=10,
        arguments={"gradient_accumulation_steps": 2, "num_train_epochs": 2, "logging_steps": 1},
    ),
    "epoch-shorter-than-group": Flow(
        "two micro-batches in groups of four: the epoch's end closes the group early",
        rows=4,
        arguments={"gradient_accumulation_steps": 4, "num_train_epochs": 2, "logging_steps": 1},
    ),
    "log-evaluate-save-same-step": Flow(
        "log, evaluation and save fall on one step: their order",
        eval_rows=4,
        arguments={"evaluation_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2},
    ),
    "max-steps-mid-epoch": Flow(
        "max_steps ends the run in the middle of its second epoch", arguments={"max_steps": 6}
    ),
    "fractional-intervals": Flow(
        "intervals given as fractions of the run: logs at every quarter, evaluations and saves at every half",
        eval_rows=4,
        arguments={
            "num_train_epochs": 2,
            "logging_steps": 0.25,
            "evaluation_strategy": "steps",
            "eval_steps": 0.5,
            "save_strategy": "steps",
            "save_steps": 0.5,
        },
    ),
    "callback-stops-epoch": Flow(
        "a callback raises should_epoch_stop at step 2: the rest of the epoch is skipped, the next begins",
        arguments={"num_train_epochs": 2, "logging_steps": 1},
        stop=("epoch", 2),
    ),
    "callback-stops-training": Flow(
        "a callback raises should_training_stop at step 2: what still runs before train returns",
        arguments={"num_train_epochs": 2, "logging_steps": 1},
        stop=("training", 2),
    ),
    "early-stopping": Flow(
        "EarlyStoppingCallback counts two evaluations without improvement and stops the run",
        eval_rows=4,
        arguments={
            "num_train_epochs": 2,
            "evaluation_strategy": "steps",
            "eval_steps": 1,
            "save_strategy": "steps",
            "save_steps": 1,
            "load_best_model_at_end": True,
        },
        eval_curve=BEST_AT_STEP_4,
        patience=2,
    ),
    "nan-loss-filtered": Flow(
        "a loss that is not a number: what enters the average instead",
        losses={3: math.nan},
        arguments={"num_train_epochs": 1, "logging_steps": 4, "per_device_train_batch_size": 1},
    ),
    "resume-mid-epoch": Flow(
        "a second trainer goes on from step 6 of 8, in the middle of epoch 2: what is skipped and restored",
        arguments={"num_train_epochs": 2, "save_strategy": "steps", "save_steps": 3},
        actions=("train", "resume:6"),
    ),
    "load-best-at-end": Flow(
        "the best of four checkpoints comes back when training ends",
        eval_rows=4,
        arguments={
            "num_train_epochs": 2,
            "evaluation_strategy": "steps",
            "eval_steps": 2,
            "save_strategy": "steps",
            "save_steps": 2,
            "load_best_model_at_end": True,
        },
        eval_curve=BEST_AT_STEP_4,
    ),
    "save-total-limit-with-best": Flow(
        "one checkpoint may stay, and the best one must: which are deleted, and when",
        eval_rows=4,
        arguments={
            "num_train_epochs": 2,
            "evaluation_strategy": "steps",
            "eval_steps": 2,
            "save_strategy": "steps",
            "save_steps": 2,
            "save_total_limit": 1,
            "load_best_model_at_end": True,
        },
        eval_curve=BEST_AT_STEP_4,
    ),
    "two-eval-sets": Flow(
        "a dict of evaluation sets: one evaluation for each, and one on_evaluate for each",
        eval_rows={"near": 4, "far": 6},
        arguments={"evaluation_strategy": "epoch", "num_train_epochs": 2},
    ),
    "reduce-on-plateau": Flow(
        "the learning rate follows the evaluation: the scheduler steps where the evaluation happens",
        eval_rows=4,
        arguments={
            "num_train_epochs": 3,
            "evaluation_strategy": "steps",
            "eval_steps": 1,
            "lr_scheduler_type": "reduce_lr_on_plateau",
        },
    ),
    "predict-after-evaluate": Flow(
        "evaluate and predict after training: the same loop, other events",
        eval_rows=6,
        arguments={"per_device_eval_batch_size": 4},
        actions=("train", "evaluate", "predict"),
    ),
    "iterable-dataset": Flow(
        "a stream without length: epochs are counted by max_steps, and begin again when the stream ends",
        rows=6,
        arguments={"max_steps": 5},
        iterable=True,
    ),
    "legacy-prediction-loop": Flow(
        "the older prediction_loop, reached by an attribute set by hand: it predicts, but can't evaluate",
        eval_rows=6,
        arguments={"per_device_eval_batch_size": 4},
        # A loss is repeated for each row of the batch, and this loop asks the data loader for its batch size.
        # Since accelerate prepares the loader, the answer is None.
        actions=("train", "predict-unlabelled", "evaluate"),
        fails=("evaluate",),
        legacy_prediction_loop=True,
    ),
    "two-ranks-uneven": Flow(
        "two ranks, seven training rows and five evaluation rows: who sees what, and how the losses are averaged",
        rows=7,
        eval_rows=5,
        arguments={"num_train_epochs": 2, "evaluation_strategy": "epoch", "logging_steps": 1},
        ranks=2,
    ),
}


# Read next: scripted.py, the data and the model that play these shapes.
