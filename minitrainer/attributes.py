"""The ledger: every attribute of a Trainer, what it means, in which unit, and which methods write it.

The Trainer is made of many mixins that share one `self`. This file is where their sharing can be seen: no attribute
exists that does not stand here, and the methods after `Written by` are all that assign it. A test reads the syntax
trees of the Trainer's files and keeps both true.

Nothing happens here at run time: annotations without values create nothing.
"""

from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator

if TYPE_CHECKING:
    from .callbacks import TrainerControl, TrainerState
    from .parts.metrics import TrainerMemoryTracker


class Attributes:
    """What every mixin of the Trainer may use of `self`."""

    # -- given by the user -----------------------------------------------------------------------------

    args: Any
    """The `TrainingArguments`. `train` may change some: ratios become steps, and a search writes its trial into them.
    Written by: __init__."""
    train_dataset: Any
    """What to train on, or None. Written by: __init__."""
    eval_dataset: Any
    """What to evaluate on: a data set, a dict of name to data set, or None. Written by: __init__."""
    data_collator: Any
    """Joins examples into one batch. Written by: __init__."""
    tokenizer: Any
    """Pads, and is saved beside the model; or None. Written by: __init__."""
    compute_metrics: Any
    """From an `EvalPrediction` to a dict of name to number; None means that only losses are kept. Written by:
    __init__, _AnswersMixin._loop_without_metrics."""
    preprocess_logits_for_metrics: Any
    """From logits and labels of a batch to what is kept of the logits; or None. Written by: __init__."""
    model_init: Any
    """Makes a fresh model for each `train`; or None. Written by: _take_model."""

    # -- model -----------------------------------------------------------------------------------------

    model: Any
    """The core model, without wrappers. Only fairscale and FSDP put their wrapper here too. Written by: __init__,
    _build_new_model, _prepare_model_and_optimizer, _wrap_with_fairscale, _wrap_with_xla_fsdp,
    _model_for_evaluation."""
    model_wrapped: Any
    """The outermost wrapper, the one to call; the same object as `model` if nothing wraps it. Written by: __init__,
    train, _prepare_model_and_optimizer, _model_for_evaluation."""
    deepspeed: Any
    """DeepSpeed's engine (the same as `model_wrapped`), or None. Written by: __init__, _prepare_model_and_optimizer,
    _model_for_evaluation."""
    is_model_parallel: bool
    """Whether the model's layers lie on several devices, or on another one than the Trainer's. Written by:
    _find_model_parallelism."""
    place_model_on_device: bool
    """Whether the Trainer moves the model to `args.device` itself. Written by: _place_model."""
    label_names: list[str]
    """The keys of a batch that are labels: those of the arguments, or what `forward` calls its labels. Written by:
    __init__."""
    can_return_loss: bool
    """Whether `forward` has an argument `return_loss` that is True by default. Written by: __init__."""
    _signature_columns: Any
    """The columns that the model takes; None until a data loader asks. Written by: __init__,
    _set_signature_columns_if_needed."""
    jit_compilation_time: float
    """Seconds that tracing took, rounded to 4 places. Absent until `jit_mode_eval` has traced. Written by:
    _wrap_model."""
    _past: Any
    """The memory that a recurrent model returned for the last batch, or None. Absent outside of a loop. Written by:
    _enter_epoch, _finish_model, compute_loss, evaluation_loop, prediction_step, prediction_loop, _forget_past."""

    # -- devices, sharding, precision --------------------------------------------------------------------

    accelerator: Accelerator
    """Places everything on the devices of this run, and knows when gradients are exchanged. Written by:
    create_accelerator_and_postprocess."""
    is_deepspeed_enabled: bool
    """Whether accelerate drives DeepSpeed. Written by: create_accelerator_and_postprocess."""
    is_fsdp_enabled: bool
    """Whether accelerate drives FSDP. Written by: create_accelerator_and_postprocess."""
    sharded_ddp: Any
    """How fairscale shards, a `ShardedDDPOption`, or None. Written by: _choose_sharding."""
    fsdp: Any
    """How FSDP shards, a `ShardingStrategy`, or None. Only XLA's FSDP is driven from here. Written by:
    _choose_sharding."""
    backward_prefetch: Any
    """When FSDP fetches the next layer in backward. Absent without `args.fsdp`; nothing reads it in 4.31.0. Written
    by: _choose_sharding."""
    forward_prefetch: bool
    """Whether FSDP fetches the next layer in forward. Absent without `args.fsdp`; nothing reads it in 4.31.0. Written
    by: _choose_sharding."""
    limit_all_gathers: bool
    """Whether FSDP limits its gathers. Absent without `args.fsdp`; nothing reads it in 4.31.0. Written by:
    _choose_sharding."""
    use_apex: bool
    """Whether apex computes in half precision. Written by: _choose_precision."""
    use_cuda_amp: bool
    """Whether the Trainer itself puts autocast around the forward pass on GPUs: only with fairscale. Written by:
    _choose_precision, torch_jit_model_eval."""
    use_cpu_amp: bool
    """The same on CPUs. Written by: _choose_precision, torch_jit_model_eval."""
    amp_dtype: torch.dtype
    """The precision of that autocast. Absent unless one of the two is on. Written by: _choose_precision."""
    do_grad_scaling: bool
    """Whether `scaler` scales the loss. Written by: _choose_precision."""
    scaler: Any
    """The gradient scaler of fairscale. Absent unless `do_grad_scaling`. Written by: _choose_precision."""

    # -- optimizer and loss ------------------------------------------------------------------------------

    optimizer: Any
    """The optimizer: as passed, or made by `create_optimizer`, and wrapped by accelerate during `train`; or None.
    Written by: __init__, _build_new_model, _prepare_model_and_optimizer, _let_accelerate_wrap, create_optimizer,
    _wrap_model, ipex_optimize_model."""
    lr_scheduler: Any
    """The scheduler, never wrapped; steps once for each update. None before `train` unless one was passed. Written by:
    __init__, _build_new_model, _prepare_model_and_optimizer, _let_accelerate_wrap, create_scheduler."""
    _created_lr_scheduler: bool
    """Whether the scheduler is ours, so that the next `train` makes a new one. Written by: __init__,
    _prepare_model_and_optimizer, create_scheduler."""
    label_smoother: Any
    """Computes the loss from softened labels, or None: then the model does it. Written by: __init__."""
    _train_batch_size: int
    """Samples of one micro-batch in this process (over all its devices); halved after running out of memory. Written
    by: __init__, train, _inner_training_loop."""
    _total_loss_scalar: float
    """Sum of the sums of losses that were logged in this call of `train`, each a mean over ranks. Written by:
    _begin_run, _summarise_run, _maybe_log_save_evaluate."""
    _globalstep_last_logged: int
    """`state.global_step` at the last log of a training loss. Written by: _begin_run, _maybe_log_save_evaluate."""
    current_flos: float
    """Floating-point operations of this rank since `store_flos`. Written by: __init__, _inner_training_loop,
    store_flos."""

    # -- state and callbacks -----------------------------------------------------------------------------

    state: "TrainerState"
    """Where training stands; what a checkpoint saves as `trainer_state.json`. Replaced at each `train`. Written by:
    __init__, _prepare_model_and_optimizer, _find_position."""
    control: "TrainerControl"
    """The five flags; replaced by whatever the callbacks of an event hand back. Written by: __init__,
    _inner_training_loop, _maybe_log_save_evaluate, log, evaluate, predict, evaluation_loop, prediction_loop,
    _AnswersMixin._evaluate_answers."""
    callback_handler: Any
    """The `CallbackHandler`; it calls the callbacks in turn. Written by: __init__."""
    is_in_train: bool
    """Whether `train` is running. An exception that leaves `train` leaves it True. Written by: __init__, train,
    _summarise_run."""
    _memory_tracker: "TrainerMemoryTracker"
    """Measures memory by stage; does nothing with `skip_memory_metrics`. Written by: __init__."""
    _loggers_initialized: bool
    """Always False: a left-over that some subclasses read. Written by: __init__."""

    # -- hyperparameter search and Hub -------------------------------------------------------------------

    hp_search_backend: Any
    """Which library searches; None outside of a search. Written by: __init__, hyperparameter_search."""
    hp_space: Any
    """From a trial to the values to try. Absent before a search. Written by: hyperparameter_search."""
    hp_name: Any
    """From a trial to its name, or None. Written by: __init__, hyperparameter_search."""
    compute_objective: Any
    """From metrics to the number that the search improves. Absent before a search. Written by:
    hyperparameter_search."""
    objective: float
    """That number at the last evaluation. Absent before a search. Written by: _report_to_hp_search."""
    _trial: Any
    """The trial that `train` was called with, or None. Written by: _hp_search_setup."""
    use_tune_checkpoints: bool
    """Whether Ray Tune keeps checkpoints of its own. Written by: __init__."""
    repo: Any
    """The clone of the Hub's repository. Absent unless `push_to_hub`. Written by: init_git_repo."""
    push_in_progress: Any
    """The push that runs in the background, or None. Absent unless `push_to_hub`. Written by: init_git_repo,
    _push_from_checkpoint, push_to_hub."""

    # -- subclasses --------------------------------------------------------------------------------------

    _gen_kwargs: dict[str, Any]
    """The generation arguments of the evaluation or prediction that runs. Absent before the first one. Written by:
    QuestionAnsweringSeq2SeqTrainer.evaluate, Seq2SeqTrainer.evaluate, Seq2SeqTrainer.predict,
    QuestionAnsweringSeq2SeqTrainer.predict."""
    eval_examples: Any
    """The questions and contexts behind the features of `eval_dataset`. Only for question answering. Written by:
    QuestionAnsweringSeq2SeqTrainer.__init__, QuestionAnsweringTrainer.__init__."""
    post_process_function: Any
    """From examples, features and logits to answers in words. Only for question answering. Written by:
    QuestionAnsweringSeq2SeqTrainer.__init__, QuestionAnsweringTrainer.__init__."""

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """Stand for the methods of the sibling mixins, which a type checker cannot see from here."""


# Read next: arguments.py
