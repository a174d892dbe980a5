"""Cases with a name: differences that were found once, and behaviour of 4.31.0 that surprises.

A difference that the drawn cases find is pasted here as it was printed, so that it stays found whatever is drawn
later. Surprises of 4.31.0 are kept by ours, and each stands here so that nobody repairs one by accident.
"""

from __future__ import annotations

import pytest

from .cases import Case
from .mutants import BUSY
from .run import our_library, real_library, run_case
from .search import compare_on

pytestmark = pytest.mark.reference

# -- found by the draw -----------------------------------------------------------------------------------------------

FOUND: dict[str, Case] = {
    # 4.31.0 stumbles over an undefined name; ours used to report a missing module without saying which option wants it
    "metrics of a TPU that is not there": Case(
        args={"evaluation_strategy": "steps", "logging_steps": 1, "debug": "tpu_metrics_debug"}
    ),
}

# -- surprises of 4.31.0 ---------------------------------------------------------------------------------------------

SURPRISES: dict[str, Case] = {
    # 5 micro-batches an epoch in groups of 2: the fifth joins the first of the next epoch
    "a group crosses an epoch's end": Case(
        train_samples=5,
        args=BUSY | {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1, "num_train_epochs": 3},
    ),
    # 3 micro-batches an epoch in groups of 4: each epoch's end closes a group early, undivided by its true size
    "an epoch shorter than a group": Case(
        args=BUSY | {"gradient_accumulation_steps": 4, "num_train_epochs": 3},
    ),
    # the sum of losses starts at zero again, the division is by all steps
    "train_loss after a resume": Case(args=BUSY | {"num_train_epochs": 2}, resume=2),
    "a resume that has nothing left to do": Case(args=BUSY, resume="last"),
    # eval_loss weighs every batch by its nominal size
    "a smaller last evaluation batch": Case(
        eval_samples=(5,), args={"per_device_eval_batch_size": 3}, calls=("evaluate",)
    ),
    # a NaN micro-batch is replaced by the average of the losses since the last log
    "a NaN is averaged away": Case(broken_losses=(2, 3), args=BUSY | {"logging_steps": 2}),
    "a NaN is kept": Case(broken_losses=(2,), args=BUSY | {"logging_nan_inf_filter": False}),
    "a gradient turns NaN": Case(broken_losses=(2,), broken_kind="poison", args=BUSY),
    # rounding: epoch to 2 places, loss to 4
    "thirds of an epoch": Case(train_samples=7, args=BUSY | {"num_train_epochs": 2}),
    "half an epoch": Case(args=BUSY | {"num_train_epochs": 0.5}),
    "no step at all": Case(args=BUSY | {"num_train_epochs": 0}),
    "fractional intervals": Case(
        args=BUSY | {"logging_steps": 0.34, "eval_steps": 0.5, "save_steps": 0.2, "num_train_epochs": 2}
    ),
    # fractions are replaced in the arguments themselves, so a second train() sees the numbers of the first
    "fractions and a second training": Case(
        args=BUSY | {"logging_steps": 0.34, "num_train_epochs": 2}, calls=("train", "train")
    ),
    # the check that wants a multiple fails for every pair of fractions that it means to allow
    "fractions with the best model": Case(
        args=BUSY | {"load_best_model_at_end": True, "eval_steps": 0.2, "save_steps": 0.4},
    ),
    "the best model of several sets": Case(
        eval_samples=(3, 4), args=BUSY | {"load_best_model_at_end": True, "metric_for_best_model": "set1_loss"}
    ),
    "the best model is deleted by a limit": Case(
        metrics="digest",
        args=BUSY | {"load_best_model_at_end": True, "metric_for_best_model": "accuracy", "save_total_limit": 1},
    ),
    # a flag that on_epoch_end raises is acted on after the epoch, not in it
    "evaluation asked for at the epoch's end": Case(
        nudges=(("on_epoch_end", 1, "should_evaluate", True), ("on_epoch_end", 1, "should_log", True))
    ),
    "logging asked for while evaluating": Case(nudges=(("on_prediction_step", 1, "should_log", True),), args=BUSY),
    "saving asked for and taken back": Case(
        nudges=(("on_step_end", 2, "should_save", False), ("on_log", 1, "should_save", False)), args=BUSY
    ),
    "stopped within an epoch": Case(
        nudges=(("on_step_end", 2, "should_epoch_stop", True),), args=BUSY | {"num_train_epochs": 2}
    ),
    "stopped within a group": Case(
        nudges=(("on_substep_end", 1, "should_training_stop", True),),
        args=BUSY | {"gradient_accumulation_steps": 2, "num_train_epochs": 2},
    ),
    # an evaluation set without a length, and a legacy loop that most loaders break
    "the legacy loop on a map-style set": Case(
        metrics="digest", args={"use_legacy_prediction_loop": True}, calls=("evaluate",)
    ),
    "the legacy loop on a sized stream": Case(
        evaluation="iterable_sized",
        metrics="digest",
        args={"use_legacy_prediction_loop": True},
        calls=("evaluate", "predict"),
    ),
    "a stream that ends early": Case(train="iterable", train_samples=3, args=BUSY | {"max_steps": 5}),
    "a stream resumed": Case(train="iterable", train_samples=9, args=BUSY | {"max_steps": 4}, resume=1),
    "an empty stream": Case(train="iterable", train_samples=0, args=BUSY | {"max_steps": 2}),
    "a batch size found by trying": Case(
        oom_above=1, args=BUSY | {"auto_find_batch_size": True, "per_device_train_batch_size": 4}
    ),
    "a past handed on": Case(
        model="classifier", outputs="tuple", extras="mems", args=BUSY | {"past_index": 2}, calls=("train", "evaluate")
    ),
    "predictions of different widths": Case(
        model="tagger",
        eval_samples=(6,),
        metrics="digest",
        preprocess="pair",
        args=BUSY | {"eval_accumulation_steps": 2},
    ),
    "inputs for the metrics": Case(
        model="tagger",
        eval_samples=(6,),
        metrics="digest",
        args={"include_inputs_for_metrics": True},
        calls=("evaluate",),
    ),
    "prediction without labels": Case(model="bert", metrics="digest", calls=("predict_unlabelled", "predict")),
    "two label columns": Case(model="span", metrics="digest", args=BUSY),
    "a loss without labels": Case(model="contrastive", metrics="digest", args=BUSY),
    "evaluation in bf16, then in full": Case(
        metrics="digest", args={"bf16_full_eval": True}, calls=("evaluate", "train")
    ),
    "a bf16 Trainer": Case(model="bert", dropout=0.3, args=BUSY | {"bf16": True}),
    "memory readings": Case(args=BUSY | {"skip_memory_metrics": False}),
    "a tokenizer beside the model": Case(model="bert", tokenizer=True, args=BUSY, calls=("train", "save_model")),
    "metrics as scripts report them": Case(args=BUSY, calls=("train", "log_metrics", "save_metrics", "save_state")),
    "a crash, then a resume": Case(
        model="bert", dropout=0.3, crash=("on_step_end", 2), args=BUSY, resume="last", train_samples=9
    ),
    "the same object resumes": Case(args=BUSY, resume=1, same_trainer=True),
    "another batch size after the resume": Case(
        train_samples=9, args=BUSY, resume=1, resume_args={"per_device_train_batch_size": 3, "num_train_epochs": 3}
    ),
    "safetensors resumed as a pickle": Case(
        model="pretrained",
        args=BUSY | {"save_safetensors": True},
        resume=0,
        resume_args={"save_safetensors": False},
    ),
    "model and model_init together": Case(model_source="both", args=BUSY),
    "every scheduler of the plateau kind": Case(args=BUSY | {"lr_scheduler_type": "reduce_lr_on_plateau"}),
    "gradient checkpointing": Case(model="bert", dropout=0.3, args=BUSY | {"gradient_checkpointing": True}),
    "the overflow detector": Case(model="classifier", args=BUSY | {"debug": "underflow_overflow"}),
    "a traced model for evaluation": Case(model="bert", args={"jit_mode_eval": True}, calls=("evaluate",)),
}


@pytest.mark.parametrize("name", FOUND)
def test_a_difference_found_once_is_gone(name: str) -> None:
    """What the draw found once differs no more."""
    difference = compare_on(FOUND[name], real_library(), our_library())
    assert difference is None, difference


@pytest.mark.parametrize("name", SURPRISES)
def test_ours_surprises_as_upstream_does(name: str) -> None:
    """Behaviour that nobody would guess is the same."""
    difference = compare_on(SURPRISES[name], real_library(), our_library())
    assert difference is None, difference


LEAK = Case(
    model="classifier",
    args=BUSY | {"bf16": True},
    resume="last",
    resume_args={"bf16": False, "num_train_epochs": 2},
)


def test_a_bf16_trainer_leaks_its_precision_into_the_next() -> None:
    """The second Trainer of a process asks for full precision and gets bf16, in 4.31.0 and so in ours."""
    real = run_case(LEAK, real_library())
    forwards = [entry["autocast"] for entry in real.timeline if entry["kind"] == "forward"]
    assert real.timeline[-1]["kind"] == "result"
    assert len(forwards) > 10
    assert all(forwards)
    assert compare_on(LEAK, real_library(), our_library()) is None


# Read next: tests/parity/test_ranks.py
