"""What one comparison runs: the Case, and the hypothesis strategies that draw Cases.

A Case is plain data and prints itself with what differs from its defaults only, so that a failing example can be
pasted into test_named.py as it stands.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import Any

from hypothesis import strategies as st

from .subjects import EVENTS, TOKEN_MODELS

# -- the case --------------------------------------------------------------------------------------------------------


@dataclass
class Case:
    """One run, or one run and its resumption, of a Trainer.

    Attributes:
        model: A key of subjects.MODELS.
        outputs: `dict`, `tuple` or `model_output`: the form of what forward returns.
        extras: `none`, `hidden` (nested tensors beside the logits) or `mems` (what `past_index` hands on).
        dropout: Dropout probability; above 0, every training forward consumes random numbers.
        broken_losses: Training forwards, counted from 1 in the process, whose loss is broken.
        broken_kind: `nan` or `inf` (the value only), or `poison` (the gradient too).
        oom_above: Batch size above which a training forward reports an exhausted memory.
        model_source: `model`, `init`, `init_with_trial`, `both` or `neither`.
        train: Kind of the training set: `map`, `iterable`, `iterable_sized`, `datasets` or `none`.
        train_samples: Its number of samples.
        evaluation: Kind of the evaluation sets.
        eval_samples: Their sizes: one, or a dict of named sets when there are several.
        sample_form: `lists`, `tensors`, `arrays` or `objects`.
        labels: Whether samples carry labels.
        unused_column: Whether samples carry a column that forward does not take.
        length_column: Whether a `datasets.Dataset` carries a `length` column.
        collator: `default`, `pad`, `encoding` or `old_style`.
        tokenizer: Whether a tokenizer is passed.
        metrics: A key of subjects.METRICS.
        preprocess: A key of subjects.PREPROCESS.
        own_optimizers: `none`, `optimizer` or `both` (optimizer and scheduler passed by the user).
        early_stopping: (patience, threshold), or None.
        nudges: Flags that a callback sets: (event, occurrence counted from 1, flag, value).
        crash: (event, occurrence) at which a callback raises, or None.
        args: TrainingArguments that differ from the harness's own defaults.
        calls: What is called on the Trainer, in order: keys of run.CALLS.
        resume: How a second Trainer goes on: None, `last` (True), an index into the checkpoints, `nowhere`, `empty`.
        resume_args: TrainingArguments of the second Trainer that differ from the first's.
        same_trainer: Whether the first Trainer object itself resumes.
        seed: Seed of models and data.
    """

    model: str = "regression"
    outputs: str = "dict"
    extras: str = "none"
    dropout: float = 0.0
    broken_losses: tuple[int, ...] = ()
    broken_kind: str = "nan"
    oom_above: int | None = None
    model_source: str = "model"
    train: str = "map"
    train_samples: int = 6
    evaluation: str = "map"
    eval_samples: tuple[int, ...] = (5,)
    sample_form: str = "lists"
    labels: bool = True
    unused_column: bool = False
    length_column: bool = False
    collator: str = "default"
    tokenizer: bool = False
    metrics: str = "none"
    preprocess: str = "none"
    own_optimizers: str = "none"
    early_stopping: tuple[int, float] | None = None
    nudges: tuple[tuple[str, int, str, bool], ...] = ()
    crash: tuple[str, int] | None = None
    args: dict[str, Any] = field(default_factory=dict)
    calls: tuple[str, ...] = ("train",)
    resume: str | int | None = None
    resume_args: dict[str, Any] = field(default_factory=dict)
    same_trainer: bool = False
    seed: int = 0

    def __repr__(self) -> str:
        changed = []
        for each in dataclasses.fields(self):
            value = getattr(self, each.name)
            default = each.default_factory() if callable(each.default_factory) else each.default
            if value != default:
                changed.append(f"{each.name}={value!r}")
        return f"Case({', '.join(changed)})"

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        """How hypothesis prints a failing case: as short as repr does."""
        printer.text(repr(self))


# -- the names that 4.31.0 knows -------------------------------------------------------------------------------------

# optimizers that need no further package …
OPTIMIZERS = ("adamw_hf", "adamw_torch", "adamw_torch_fused", "adafactor", "sgd", "adagrad")
# … and those that do: asking for them must give upstream's error
FOREIGN_OPTIMIZERS = (
    "adamw_torch_xla",
    "adamw_apex_fused",
    "adamw_anyprecision",
    "adamw_bnb_8bit",
    "adamw_8bit",
    "lion_8bit",
    "lion_32bit",
    "paged_adamw_32bit",
    "paged_adamw_8bit",
    "paged_lion_32bit",
    "paged_lion_8bit",
)
SCHEDULERS = (
    "linear",
    "cosine",
    "cosine_with_restarts",
    "polynomial",
    "constant",
    "constant_with_warmup",
    "inverse_sqrt",
    "reduce_lr_on_plateau",
)
STRATEGIES = ("no", "steps", "epoch")
MOST_MICRO_BATCHES = 9  # of one drawn run: enough for every rhythm, few enough for hundreds of runs
FLAGS = ("should_training_stop", "should_epoch_stop", "should_save", "should_evaluate", "should_log")

intervals = st.sampled_from((1, 2, 3, 5, 0.2, 0.34, 0.5))
nudge_lists = st.lists(
    st.tuples(
        st.sampled_from(EVENTS), st.integers(1, 5), st.sampled_from(FLAGS), st.sampled_from((True, True, False))
    ),
    max_size=3,
).map(tuple)


def chance(draw: st.DrawFn, one_in: int) -> bool:
    """True once in `one_in` draws; shrinks to False."""
    return draw(st.sampled_from(range(one_in))) == one_in - 1


# -- arguments -------------------------------------------------------------------------------------------------------

# every entry is drawn or left out on its own; values are those under which a run can succeed
OPTIONAL_ARGS: dict[str, st.SearchStrategy[Any]] = {
    "learning_rate": st.sampled_from((0.1, 0.01, 5e-5, 0)),
    "weight_decay": st.sampled_from((0.01, 0.3)),
    "max_grad_norm": st.sampled_from((0.05, 0.0, 10.0, None)),
    "warmup_steps": st.integers(0, 4),
    "warmup_ratio": st.sampled_from((0.1, 0.5, 1.0)),
    "optim": st.sampled_from(OPTIMIZERS),
    "adam_beta1": st.just(0.7),
    "adam_epsilon": st.just(1e-3),
    "logging_first_step": st.booleans(),
    "logging_nan_inf_filter": st.booleans(),
    "eval_delay": st.sampled_from((0, 1, 2, 0.5)),
    "eval_accumulation_steps": st.integers(1, 2),
    "dataloader_drop_last": st.booleans(),
    "dataloader_pin_memory": st.booleans(),
    "save_total_limit": st.sampled_from((1, 2, 3, 0)),
    "save_safetensors": st.booleans(),
    "seed": st.integers(1, 3),
    "data_seed": st.integers(1, 2),
    "remove_unused_columns": st.booleans(),
    "prediction_loss_only": st.booleans(),
    "disable_tqdm": st.booleans(),
    "no_cuda": st.just(True),
    "bf16": st.just(True),
    "full_determinism": st.booleans(),
    "log_level": st.sampled_from(("error", "info")),
}


@st.composite
def argument_sets(draw: st.DrawFn, case_model: str, stream: bool, strategies: bool = True) -> dict[str, Any]:
    """Draw TrainingArguments under which a run is mostly possible.

    Args:
        draw: Given by hypothesis.
        case_model: The model's key; label smoothing and length grouping need some of them.
        stream: Whether the training set has no length, so that `max_steps` is needed.
        strategies: Whether logging, evaluation and saving strategies are drawn too.
    """
    names = draw(st.lists(st.sampled_from(sorted(OPTIONAL_ARGS)), unique=True, max_size=8))
    args = {name: draw(OPTIONAL_ARGS[name]) for name in names}
    args["per_device_train_batch_size"] = draw(st.integers(1, 4))
    args["per_device_eval_batch_size"] = draw(st.integers(1, 4))
    args["gradient_accumulation_steps"] = draw(st.sampled_from((1, 1, 2, 2, 3, 4)))
    if stream or draw(st.booleans()):
        args["max_steps"] = draw(st.integers(1, 8))
    else:
        args["num_train_epochs"] = draw(st.sampled_from((1, 2, 3, 0.5, 1.5)))
    if draw(st.booleans()):
        # the plateau scheduler reads evaluation metrics, so it needs a strategy beside it
        args["lr_scheduler_type"] = draw(st.sampled_from(SCHEDULERS if strategies else SCHEDULERS[:-1]))
    if strategies:
        for name in ("logging", "evaluation", "save"):
            args[f"{name}_strategy"] = draw(st.sampled_from(STRATEGIES))
        args["logging_steps"] = draw(intervals)
        args["save_steps"] = draw(intervals)
        if draw(st.booleans()):
            args["eval_steps"] = draw(intervals)
        if args.get("lr_scheduler_type") == "reduce_lr_on_plateau" and not chance(draw, 4):
            args["evaluation_strategy"] = draw(st.sampled_from(("steps", "epoch")))
        if chance(draw, 4):
            args["load_best_model_at_end"] = True
            args["save_strategy"] = args["evaluation_strategy"] = draw(st.sampled_from(("steps", "epoch")))
            args["save_steps"] = args["eval_steps"] = draw(st.sampled_from((1, 2, 3)))
    if case_model in ("classifier", "bert", "tagger", "pretrained") and chance(draw, 4):
        args["label_smoothing_factor"] = draw(st.sampled_from((0.1, 0.5)))
    if not stream and chance(draw, 6):
        args["group_by_length"] = True
    if chance(draw, 30):
        args["skip_memory_metrics"] = False  # rarely: a thread of upstream's then spins for the whole run
    if chance(draw, 10):
        args["use_legacy_prediction_loop"] = True
    return args


# -- subjects --------------------------------------------------------------------------------------------------------


@st.composite
def subject_fields(draw: st.DrawFn) -> dict[str, Any]:
    """Draw model, data, collator, metrics and the rest that surrounds the Trainer, in a combination that can work."""
    model = draw(
        st.sampled_from(
            ("regression", "classifier", "tagger", "classifier", "pretrained", "bert", "span", "contrastive")
        )
    )
    fields: dict[str, Any] = {"model": model, "seed": draw(st.integers(0, 3))}
    fields["outputs"] = draw(st.sampled_from(("dict", "tuple", "model_output")))
    if fields["outputs"] != "model_output":
        fields["extras"] = draw(st.sampled_from(("none", "none", "hidden")))
    fields["dropout"] = draw(st.sampled_from((0.0, 0.3)))
    fields["train"] = draw(st.sampled_from(("map", "map", "datasets", "iterable", "iterable_sized")))
    fields["train_samples"] = draw(st.integers(1, 9))
    fields["evaluation"] = draw(st.sampled_from(("map", "map", "datasets", "iterable", "iterable_sized")))
    fields["eval_samples"] = draw(st.lists(st.integers(1, 6), min_size=1, max_size=2).map(tuple))
    if "datasets" not in (fields["train"], fields["evaluation"]):
        fields["sample_form"] = draw(st.sampled_from(("lists", "tensors", "arrays", "objects")))
    fields["unused_column"] = fields.get("sample_form", "lists") == "lists" and draw(st.booleans())
    fields["length_column"] = draw(st.booleans())
    fields["collator"] = draw(st.sampled_from(("default", "default", "pad", "encoding")))
    fields["tokenizer"] = model == "bert" and draw(st.booleans())
    if fields["tokenizer"] and fields.get("sample_form") != "objects":
        fields["collator"] = draw(st.sampled_from(("default", "pad")))
    fields["metrics"] = draw(st.sampled_from(("none", "digest", "digest")))
    fields["preprocess"] = draw(st.sampled_from(("none", "none", "argmax", "pair")))
    fields["model_source"] = draw(st.sampled_from(("model", "model", "init", "init_with_trial")))
    if fields["model_source"] == "model":
        fields["own_optimizers"] = draw(st.sampled_from(("none", "none", "none", "optimizer", "both")))
    if chance(draw, 4):
        fields["broken_losses"] = draw(st.lists(st.integers(1, 6), min_size=1, max_size=2, unique=True).map(tuple))
        fields["broken_kind"] = draw(st.sampled_from(("nan", "inf", "poison")))
    return fields


def with_repairs(fields: dict[str, Any]) -> dict[str, Any]:
    """Add what a drawn combination needs so that most of them run to their end."""
    args = fields["args"]
    if fields.get("unused_column") and fields.get("collator") != "default":
        # the padding collator turns every column into a tensor, and forward would refuse the unused one
        args.pop("remove_unused_columns", None)
    while micro_batches(fields) > MOST_MICRO_BATCHES and args["per_device_train_batch_size"] < 4:
        args["per_device_train_batch_size"] += 1
    if micro_batches(fields) > MOST_MICRO_BATCHES and "num_train_epochs" in args:
        args["num_train_epochs"] = 1
    if fields.get("extras") == "mems":
        fields.update(model="classifier", outputs="tuple")
        args["past_index"] = 2  # loss, logits, mems
    if args.get("group_by_length") and not fields["train"].startswith("iterable"):
        if fields["model"] not in TOKEN_MODELS or fields.get("sample_form") == "objects":
            fields.update(train="datasets", length_column=True, sample_form="lists")
    else:
        args.pop("group_by_length", None)
    if args.get("use_legacy_prediction_loop"):
        # this loop fails wherever accelerate hands it a loader with a batch sampler: all but the sized streams
        fields["evaluation"] = "iterable_sized"
    if args.get("include_inputs_for_metrics") and fields["model"] not in TOKEN_MODELS:
        del args["include_inputs_for_metrics"]
    if needs_metric(args):
        if len(fields["eval_samples"]) > 1:
            args["metric_for_best_model"] = "set1_loss"  # a dict of sets has no eval_loss
        elif fields.get("metrics") == "digest":
            args["metric_for_best_model"] = "accuracy"
            args.pop("prediction_loss_only", None)
    return fields


def micro_batches(fields: dict[str, Any]) -> float:
    """About how many micro-batches a drawn run trains on."""
    args = fields["args"]
    batches = -(-fields["train_samples"] // args["per_device_train_batch_size"])
    return max(batches * args.get("num_train_epochs", 1), 0)


def needs_metric(args: dict[str, Any]) -> bool:
    """Whether these arguments make the Trainer look a metric up."""
    return bool(args.get("load_best_model_at_end")) or args.get("lr_scheduler_type") == "reduce_lr_on_plateau"


# -- the kinds of case -----------------------------------------------------------------------------------------------


@st.composite
def training_cases(draw: st.DrawFn) -> Case:
    """Draw a training run, with everything that can happen inside it."""
    fields = draw(subject_fields())
    fields["args"] = draw(argument_sets(fields["model"], fields["train"] == "iterable"))
    fields["nudges"] = draw(nudge_lists)
    if chance(draw, 5):
        fields["early_stopping"] = (draw(st.integers(1, 2)), draw(st.sampled_from((0.0, 0.01))))
        fields["args"].update(
            load_best_model_at_end=True,
            evaluation_strategy="steps",
            save_strategy="steps",
            eval_steps=1,
            save_steps=draw(st.sampled_from((1, 2))),
        )
    if chance(draw, 8):
        fields["oom_above"] = draw(st.integers(1, 3))
        fields["args"]["auto_find_batch_size"] = draw(st.sampled_from((True, True, False)))
    fields["calls"] = draw(
        st.sampled_from(
            (
                ("train",),
                ("train",),
                ("train", "evaluate"),
                ("train", "predict", "save_model"),
                ("train", "train"),
                ("evaluate", "train"),
                ("train", "save_state", "log_metrics", "save_metrics"),
            )
        )
    )
    return Case(**with_repairs(fields))


@st.composite
def evaluation_cases(draw: st.DrawFn) -> Case:
    """Draw evaluation and prediction without, or after, a short training."""
    fields = draw(subject_fields())
    fields["args"] = draw(argument_sets(fields["model"], True, strategies=False))
    fields["args"]["max_steps"] = 1
    if not chance(draw, 8):
        fields["eval_samples"] = fields["eval_samples"][:1]  # evaluate() itself takes no dict of sets
    fields["labels"] = draw(st.sampled_from((True, True, True, False)))
    fields["metrics"] = draw(st.sampled_from(("none", "digest", "digest", "digest")))
    args = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "include_inputs_for_metrics": st.booleans(),
                "bf16_full_eval": st.booleans(),
                "label_names": st.sampled_from((["labels"], ["start_labels"], ["missing"])),
                "eval_accumulation_steps": st.integers(1, 3),
            },
        )
    )
    fields["args"].update(args)
    if chance(draw, 6) and fields["outputs"] != "model_output":
        fields["extras"] = "mems"
    fields["calls"] = draw(
        st.lists(
            st.sampled_from(
                (
                    "evaluate",
                    "predict",
                    "evaluate_other",
                    "predict_ignoring",
                    "predict_unlabelled",
                    "prediction_step",
                    "train",
                )
            ),
            min_size=1,
            max_size=3,
        ).map(tuple)
    )
    return Case(**with_repairs(fields))


@st.composite
def resume_cases(draw: st.DrawFn) -> Case:
    """Draw a run that saves, ends or crashes, and is resumed at one of its checkpoints."""
    fields = draw(subject_fields())
    fields["args"] = draw(argument_sets(fields["model"], fields["train"] == "iterable"))
    fields["args"]["save_strategy"] = draw(st.sampled_from(("steps", "steps", "epoch")))
    fields["args"]["save_steps"] = draw(st.sampled_from((1, 1, 2, 3)))
    fields["train_samples"] += 3
    if fields["args"].get("load_best_model_at_end"):
        fields["args"]["evaluation_strategy"] = fields["args"]["save_strategy"]
        fields["args"]["eval_steps"] = fields["args"]["save_steps"]
    fields["resume"] = draw(st.one_of(st.just("last"), st.integers(0, 5)))
    fields["resume_args"] = draw(
        st.fixed_dictionaries(
            {},
            optional={
                "ignore_data_skip": st.booleans(),
                "max_steps": st.integers(2, 10),
                "per_device_train_batch_size": st.integers(1, 4),
                "gradient_accumulation_steps": st.integers(1, 3),
                "logging_steps": st.integers(1, 3),
                "save_safetensors": st.booleans(),
                "num_train_epochs": st.sampled_from((2, 4)),
            },
        )
    )
    if fields["train"] == "iterable" and fields["resume_args"].get("max_steps", 1) <= 0:
        del fields["resume_args"]["max_steps"]
    fields["nudges"] = draw(nudge_lists)
    if chance(draw, 3):
        fields["crash"] = (
            draw(st.sampled_from(("on_step_begin", "on_step_end", "on_save", "on_epoch_end", "on_substep_end"))),
            draw(st.integers(2, 5)),
        )
    fields["same_trainer"] = draw(st.sampled_from((False, False, False, True)))
    return Case(**with_repairs(fields))


@st.composite
def rank_cases(draw: st.DrawFn) -> Case:
    """Draw a run for several ranks: uneven last batches, unequal label counts, streams, resumption."""
    case = draw(st.one_of(training_cases(), evaluation_cases(), resume_cases()))
    args = case.args | {"no_cuda": True}
    # what each rank would meet at a moment of its own, the others waiting, belongs to the tests of faults
    case.oom_above = None
    args.pop("auto_find_batch_size", None)
    case.crash = None
    if chance(draw, 3):
        case.model, case.outputs, case.extras, case.collator, case.tokenizer = "buffered", "dict", "none", "pad", False
        args.pop("label_smoothing_factor", None)
        args.pop("group_by_length", None)
        args["ddp_find_unused_parameters"] = draw(st.sampled_from((True, True, False)))
        args["ddp_broadcast_buffers"] = draw(st.booleans())
    if chance(draw, 4):
        args["save_on_each_node"] = True
    if chance(draw, 4):
        case.calls = ("main_process_first", *case.calls)
    case.args = args
    return case


# what must be refused, or fails late: each entry alone breaks an otherwise sound case
BREAKAGES: tuple[dict[str, Any], ...] = (
    {"model_source": "neither"},
    {"model_source": "both"},
    {"model_source": "init_with_two"},
    {"model_source": "init_returns_none"},
    {"model_source": "init", "own_optimizers": "optimizer"},
    {"model": "headless"},
    {"model": "bare_bert"},
    {"train": "none"},
    {"train_samples": 0},
    {"train": "iterable", "train_samples": 0},
    {"evaluation": "none"},
    {"eval_samples": (0,)},
    {"eval_samples": (0, 2)},
    {"collator": "old_style"},
    {"metrics": "broken"},
    {"labels": False},
    {"train": "iterable", "args": {"max_steps": -1}},
    {"train": "iterable", "args": {"group_by_length": True, "max_steps": 2}},
    {"early_stopping": (1, 0.0), "args": {"load_best_model_at_end": False}},
    {"args": {"fp16": True}},
    {"args": {"fp16": True, "bf16": True}},
    {"args": {"fp16_full_eval": True}},
    {"args": {"fp16_full_eval": True, "bf16_full_eval": True}},
    {"args": {"bf16": True, "half_precision_backend": "apex"}},
    {"args": {"half_precision_backend": "apex"}},
    {"args": {"sharded_ddp": "simple"}},
    {"args": {"sharded_ddp": "offload"}},
    {"args": {"sharded_ddp": "simple offload"}},
    {"args": {"sharded_ddp": "zero_dp_2 zero_dp_3"}},
    {"args": {"sharded_ddp": "sideways"}},
    {"args": {"fsdp": "full_shard"}},
    {"args": {"fsdp": "offload"}},
    {"args": {"fsdp": "full_shard shard_grad_op"}},
    {"args": {"fsdp": "full_shard", "sharded_ddp": "simple"}},
    {"args": {"deepspeed": {"train_batch_size": "auto"}}},
    {"args": {"use_ipex": True}},
    {"args": {"tf32": True}},
    {"args": {"warmup_ratio": 1.5}},
    {"args": {"warmup_ratio": -0.5}},
    {"args": {"optim": "no_such_optimizer"}},
    {"args": {"lr_scheduler_type": "no_such_scheduler"}},
    {"args": {"evaluation_strategy": "sometimes"}},
    {"args": {"hub_strategy": "sometimes"}},
    {"args": {"debug": "no_such_option"}},
    {"args": {"log_level": "no_such_level"}},
    {"args": {"evaluation_strategy": "steps", "logging_steps": 0}},
    {"args": {"evaluation_strategy": "steps", "logging_steps": 0, "logging_strategy": "no"}},
    {"args": {"logging_steps": 0}},
    {"args": {"logging_steps": 2.5}},
    {"args": {"evaluation_strategy": "steps", "eval_steps": 2.5}},
    {"args": {"save_steps": 2.5}},
    {"args": {"save_steps": 0}},
    {"args": {"load_best_model_at_end": True}},
    {"args": {"load_best_model_at_end": True, "evaluation_strategy": "epoch", "save_strategy": "steps"}},
    {
        "args": {
            "load_best_model_at_end": True,
            "evaluation_strategy": "steps",
            "save_strategy": "steps",
            "eval_steps": 2,
            "save_steps": 3,
        }
    },
    {
        "args": {
            "load_best_model_at_end": True,
            "evaluation_strategy": "steps",
            "save_strategy": "steps",
            "eval_steps": 0.2,
            "save_steps": 3,
        }
    },
    {
        "args": {
            "load_best_model_at_end": True,
            "evaluation_strategy": "steps",
            "save_strategy": "steps",
            "eval_steps": 0.2,
            "save_steps": 0.3,
        }
    },
    {
        "args": {
            "load_best_model_at_end": True,
            "evaluation_strategy": "epoch",
            "save_strategy": "epoch",
            "metric_for_best_model": "absent",
        }
    },
    {"args": {"metric_for_best_model": "absent", "evaluation_strategy": "epoch", "save_strategy": "epoch"}},
    {"args": {"lr_scheduler_type": "reduce_lr_on_plateau"}},
    {
        "args": {
            "lr_scheduler_type": "reduce_lr_on_plateau",
            "evaluation_strategy": "epoch",
            "metric_for_best_model": "absent",
        }
    },
    {"args": {"per_device_train_batch_size": 0}},
    {"args": {"per_device_eval_batch_size": 0}, "calls": ("evaluate",)},
    {"args": {"gradient_accumulation_steps": 0}},
    {"args": {"num_train_epochs": 0}},
    {"args": {"num_train_epochs": -1}},
    {"args": {"dataloader_num_workers": -1}},
    {"args": {"adam_beta1": 1.5}},
    {"args": {"learning_rate": -1}},
    {"args": {"label_smoothing_factor": 0.1}},
    {"args": {"label_smoothing_factor": 0.1}, "model": "contrastive"},
    {"args": {"label_names": ["missing"], "remove_unused_columns": False}},
    {"args": {"remove_unused_columns": False}, "unused_column": True},
    {"args": {"group_by_length": True}},
    {"args": {"group_by_length": True}, "model": "tagger", "collator": "pad", "sample_form": "objects"},
    {"args": {"past_index": 7}, "outputs": "tuple"},
    {"args": {"past_index": 1}},
    {"args": {"include_inputs_for_metrics": True}, "calls": ("evaluate",), "metrics": "digest"},
    {"args": {"gradient_checkpointing": True}},
    {"args": {"debug": "underflow_overflow"}},
    {"args": {"debug": "tpu_metrics_debug"}},
    {"args": {"ddp_backend": "gloo"}},
    {"args": {"output_dir": "blocked/out"}},
    {"args": {"report_to": ["no_such_reporter"]}},
    {"args": {"report_to": ["tensorboard"]}},
    {"calls": ("train_unknown_keyword",)},
    {"calls": ("train_model_path",)},
    {"calls": ("train_then_search",)},
    {"calls": ("predict_nothing",)},
    {"calls": ("create_model_card",)},
    {"resume": "nowhere"},
    {"resume": "empty"},
    {"resume": "last", "args": {"save_strategy": "no"}},
    *({"args": {"optim": name}} for name in FOREIGN_OPTIMIZERS),
)


@st.composite
def invalid_cases(draw: st.DrawFn) -> Case:
    """Draw a sound small case and break it in one or two ways."""
    fields: dict[str, Any] = {
        "model": draw(st.sampled_from(("regression", "classifier", "pretrained"))),
        "outputs": draw(st.sampled_from(("dict", "tuple"))),
        "args": {"evaluation_strategy": draw(st.sampled_from(STRATEGIES)), "logging_steps": 1},
        "metrics": draw(st.sampled_from(("none", "digest"))),
        "calls": draw(st.sampled_from((("train",), ("train", "evaluate"), ("evaluate",), ("predict", "train")))),
    }
    for breakage in draw(st.lists(st.sampled_from(BREAKAGES), min_size=1, max_size=2)):
        for name, value in breakage.items():
            if name == "args":
                fields["args"] = fields["args"] | value
            else:
                fields[name] = value
    return Case(**fields)


# Read next: tests/parity/run.py
