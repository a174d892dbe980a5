"""The arguments of a run: what can be asked for, what the defaults are, and which wishes exclude each other.

Three parts. The fields, by theme; their order is fixed, because it is the order of the positional arguments and of
the saved JSON. Then `__post_init__`, which turns words into members of `parts.choices`, fills what is derived from
something else and refuses what cannot work; it reads as a table of contents. Then questions that the Trainer asks
all the time: which device, how many ranks, may this rank write.
"""

import contextlib
import functools
import json
import math
import os
import socket
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from datetime import datetime, timedelta
from enum import Enum
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType
from packaging import version
from transformers import GenerationConfig
from transformers.debug_utils import DebugOption
from transformers.utils import is_torch_bf16_gpu_available, is_torch_tf32_available
from transformers.utils import logging as transformers_logging

from . import compat
from .parts.choices import (
    EvaluationStrategy,
    FSDPOption,
    HubStrategy,
    IntervalStrategy,
    OptimizerNames,
    ParallelMode,
    SchedulerType,
    ShardedDDPOption,
)
from .parts.logs import get_logger

logger = get_logger(__name__)

# Python's own levels, and one word for "leave the level as it is".
trainer_log_levels = {"debug": 10, "info": 20, "warning": 30, "error": 40, "critical": 50, "passive": -1}

_HALF_PRECISION_BACKENDS = ["auto", "cuda_amp", "apex", "cpu_amp"]


def _argument(default: Any, help_text: str, choices: Any = None) -> Any:
    """One field: its default, its line in `--help`, and the words it accepts if they are few."""
    metadata = {"help": help_text} | ({"choices": choices} if choices is not None else {})
    return field(default=default, metadata=metadata)


@dataclass
class TrainingArguments:
    """Everything that can be asked of a Trainer. Only `output_dir` must be given.

    The fields are documented where they stand, and `--help` prints the same lines:

        parser = HfArgumentParser(TrainingArguments)
        (args,) = parser.parse_args_into_dataclasses()        # or parse_json_file, parse_yaml_file, parse_dict

    **Beware:** making arguments changes the process. It chooses the device, starts the process group where
    `torchrun` asks for one, and puts the precision into the environment variable `ACCELERATE_MIXED_PRECISION`. The
    latter stays: after one object with `bf16=True`, every later one of the same process runs in bfloat16 too, even if
    it does not ask for it.

    Units: every `*_steps` counts optimizer updates, except `gradient_accumulation_steps` (micro-batches in a group)
    and `eval_accumulation_steps` (evaluation batches). A batch size is per device unless it says otherwise.

    Source: training_args.py 155-2552.
    """

    framework = "pt"

    # -- what to do, and where ---

    output_dir: str = field(metadata={"help": "Folder for checkpoints, the final model and result files."})
    overwrite_output_dir: bool = _argument(
        False, "Accept an output folder that is not empty. Scripts look at it; the Trainer does not."
    )
    do_train: bool = _argument(False, "Train. Scripts look at it; the Trainer does not.")
    do_eval: bool = _argument(
        False, "Evaluate. Scripts look at it; it is switched on by any evaluation strategy other than 'no'."
    )
    do_predict: bool = _argument(False, "Predict on the test set. Scripts look at it; the Trainer does not.")
    evaluation_strategy: IntervalStrategy | str = _argument(
        "no", "When to evaluate during training: 'no', 'steps' (every eval_steps updates) or 'epoch'."
    )
    prediction_loss_only: bool = _argument(
        False, "Keep only the loss of an evaluation and drop logits and labels, which saves much memory."
    )

    # -- batches and accumulation ---

    per_device_train_batch_size: int = _argument(8, "Examples in a micro-batch on one device in training.")
    per_device_eval_batch_size: int = _argument(8, "Examples in a batch on one device in evaluation.")
    per_gpu_train_batch_size: int | None = _argument(None, "Deprecated: use per_device_train_batch_size.")
    per_gpu_eval_batch_size: int | None = _argument(None, "Deprecated: use per_device_eval_batch_size.")
    gradient_accumulation_steps: int = _argument(
        1, "Micro-batches in a group: so many forward and backward passes make one update. Steps count updates."
    )
    eval_accumulation_steps: int | None = _argument(
        None, "Move predictions to the CPU after so many evaluation batches; unset, all stay on the device to the end."
    )
    eval_delay: float | None = _argument(
        0, "No evaluation before this step (strategy 'steps') or this epoch (strategy 'epoch')."
    )

    # -- optimizer and schedule ---

    learning_rate: float = _argument(5e-5, "Highest learning rate, reached when the warm-up ends.")
    weight_decay: float = _argument(0.0, "Weight decay of all parameters except biases and layer norms.")
    adam_beta1: float = _argument(0.9, "Decay of Adam's running mean of gradients.")
    adam_beta2: float = _argument(0.999, "Decay of Adam's running mean of squared gradients.")
    adam_epsilon: float = _argument(1e-8, "Added to Adam's denominator against division by zero.")
    max_grad_norm: float = _argument(1.0, "Scale gradients down to at most this norm; 0 leaves them alone.")
    num_train_epochs: float = _argument(3.0, "Passes over the training set; a fraction ends within a pass.")
    max_steps: int = _argument(-1, "Train for so many updates, whatever num_train_epochs says; -1 to go by epochs.")
    lr_scheduler_type: SchedulerType | str = _argument("linear", "How the learning rate changes from step to step.")
    warmup_ratio: float = _argument(0.0, "Part of all updates, 0 to 1, in which the learning rate rises from zero.")
    warmup_steps: int = _argument(0, "Updates in which the learning rate rises from zero; beats warmup_ratio.")

    # -- logging ---

    log_level: str | None = _argument(
        "passive",
        "Verbosity of the main process; 'passive' leaves it as the script has set it.",
        trainer_log_levels.keys(),
    )
    log_level_replica: str | None = _argument(
        "warning", "Verbosity of all other processes.", trainer_log_levels.keys()
    )
    log_on_each_node: bool = _argument(
        True, "With several machines, let the first process of each one log, not only the very first."
    )
    logging_dir: str | None = _argument(
        None, "Folder of the TensorBoard files; by default runs/<date>_<host> in the output folder."
    )
    logging_strategy: IntervalStrategy | str = _argument(
        "steps", "When to log the training loss: 'no', 'steps' (every logging_steps updates) or 'epoch'."
    )
    logging_first_step: bool = _argument(False, "Log after the very first update too.")
    logging_steps: float = _argument(
        500, "Updates between two logs; a number below 1 is a part of all updates of the run."
    )
    logging_nan_inf_filter: bool = _argument(
        True,
        "Log the mean of the window in place of a loss that is NaN or infinite. Training itself goes on.",
    )

    # -- checkpoints ---

    save_strategy: IntervalStrategy | str = _argument(
        "steps", "When to write a checkpoint: 'no', 'steps' (every save_steps updates) or 'epoch'."
    )
    save_steps: float = _argument(
        500, "Updates between two checkpoints; a number below 1 is a part of all updates of the run."
    )
    save_total_limit: int | None = _argument(
        None,
        "Keep at most so many checkpoints and delete the oldest. With load_best_model_at_end the best is kept too, so "
        "with a limit of 1 there may be two.",
    )
    save_safetensors: bool | None = _argument(False, "Write weights as safetensors, not with torch.save.")
    save_on_each_node: bool = _argument(
        False, "With several machines, let each write its checkpoints; not for machines that share a disk."
    )

    # -- devices, seeds and precision ---

    no_cuda: bool = _argument(False, "Stay on the CPU, GPU or not.")
    use_mps_device: bool = _argument(False, "Deprecated: an Apple GPU is used wherever there is one.")
    seed: int = _argument(42, "Seed of weights, dropout and, without data_seed, of the order of the data.")
    data_seed: int | None = _argument(None, "Seed of the order of the data alone.")
    jit_mode_eval: bool = _argument(False, "Trace the model with torch.jit before an evaluation.")
    use_ipex: bool = _argument(False, "Optimize the model with Intel's extension for PyTorch, if it is installed.")
    bf16: bool = _argument(False, "Train in bfloat16 mixed precision: on an Ampere GPU or newer, or on the CPU.")
    fp16: bool = _argument(False, "Train in float16 mixed precision: on a GPU only.")
    fp16_opt_level: str = _argument("O1", "apex only: optimization level 'O0' to 'O3'.")
    half_precision_backend: str = _argument("auto", "Who does mixed precision.", _HALF_PRECISION_BACKENDS)
    bf16_full_eval: bool = _argument(False, "Evaluate with the whole model in bfloat16: less memory, other metrics.")
    fp16_full_eval: bool = _argument(False, "Evaluate with the whole model in float16: less memory, other metrics.")
    tf32: bool | None = _argument(None, "Allow TensorFloat-32 in matrix products; unset leaves torch's own setting.")

    # -- several devices, and debugging ---

    local_rank: int = _argument(-1, "Number of this process on its machine; set by the launcher.")
    ddp_backend: str | None = _argument(None, "Who carries messages between ranks.", ["nccl", "gloo", "mpi", "ccl"])
    tpu_num_cores: int | None = _argument(None, "Number of TPU cores; set by the launcher.")
    tpu_metrics_debug: bool = _argument(False, "Deprecated: use --debug tpu_metrics_debug.")
    debug: str | list[DebugOption] = _argument(
        "",
        "'underflow_overflow' reports the layers before the first infinite or NaN value; 'tpu_metrics_debug' prints "
        "TPU counters each epoch. Several are separated by spaces.",
    )

    # -- data ---

    dataloader_drop_last: bool = _argument(False, "Drop a last batch that is not full.")
    eval_steps: float | None = _argument(
        None, "Updates between two evaluations, by default logging_steps; below 1, a part of all updates of the run."
    )
    dataloader_num_workers: int = _argument(0, "Processes that load data; 0 loads in the main process.")
    past_index: int = _argument(
        -1, "Position, in the model's outputs, of a memory that is handed to the next batch; -1 if there is none."
    )

    # -- names and display ---

    run_name: str | None = _argument(None, "Name of the run in trackers; by default the output folder.")
    disable_tqdm: bool | None = _argument(None, "No progress bars; by default as transformers' verbosity is set.")
    remove_unused_columns: bool | None = _argument(True, "Drop columns of the data set that forward does not take.")
    label_names: list[str] | None = _argument(
        None, "Names of the inputs that are labels; by default found in the signature of forward."
    )

    # -- the best model, and resuming ---

    load_best_model_at_end: bool | None = _argument(
        False, "After training, load the checkpoint whose evaluation was best. Evaluate and save must keep in step."
    )
    metric_for_best_model: str | None = _argument(None, "The metric that says which is best; by default the loss.")
    greater_is_better: bool | None = _argument(
        None, "Whether that metric should grow; by default it should unless it is 'loss' or 'eval_loss'."
    )
    ignore_data_skip: bool = _argument(
        False, "When resuming, begin the epoch anew and do not skip what was seen: faster, other results."
    )

    # -- sharding ---

    sharded_ddp: str = _argument(
        "",
        "Deprecated, fairscale: 'simple', 'zero_dp_2' or 'zero_dp_3'; the last two with 'offload' or 'auto_wrap'.",
    )
    fsdp: str = _argument(
        "", "'full_shard', 'shard_grad_op' or 'no_shard', and after a space 'offload' and 'auto_wrap' if wanted."
    )
    fsdp_min_num_params: int = _argument(0, "Deprecated: the same key in fsdp_config.")
    fsdp_config: str | None = _argument(None, "Settings of FSDP: a JSON file, or from Python a dict.")
    fsdp_transformer_layer_cls_to_wrap: str | None = _argument(None, "Deprecated: the same key in fsdp_config.")
    deepspeed: str | None = _argument(None, "Configuration of DeepSpeed: a JSON file, or from Python a dict.")

    # -- loss, optimizer and grouping ---

    label_smoothing_factor: float = _argument(
        0.0, "Part of the target, 0 to 1, that is spread evenly over all classes; 0 leaves labels sharp."
    )
    default_optim = "adamw_hf"
    optim: OptimizerNames | str = _argument(default_optim, "The optimizer.")
    optim_args: str | None = _argument(None, "Arguments of the anyprecision optimizer: 'name=value,name=value'.")
    adafactor: bool = _argument(False, "Deprecated: use --optim adafactor.")
    group_by_length: bool = _argument(False, "Put examples of similar length into one batch: less padding.")
    length_column_name: str | None = _argument("length", "Column with lengths for group_by_length, if there is one.")
    report_to: list[str] | None = _argument(
        None, "Trackers that get the logs, by name; 'all' for all that are installed (the default), 'none' for none."
    )

    # -- DDP, memory, and how evaluation runs ---

    ddp_find_unused_parameters: bool | None = _argument(
        None, "DDP: look for parameters without gradient in each step; by default unless gradient checkpointing is on."
    )
    ddp_bucket_cap_mb: int | None = _argument(None, "DDP: size of a gradient bucket in MiB.")
    ddp_broadcast_buffers: bool | None = _argument(None, "DDP: copy the first rank's buffers to all before forward.")
    dataloader_pin_memory: bool = _argument(True, "Load batches into pinned memory, which reaches a GPU faster.")
    skip_memory_metrics: bool = _argument(True, "Do not measure memory: measuring slows training down.")
    use_legacy_prediction_loop: bool = _argument(False, "Evaluate with the old prediction_loop.")

    # -- the Hub ---

    push_to_hub: bool = _argument(False, "With every save, upload what was saved to the Hub.")
    resume_from_checkpoint: str | None = _argument(
        None, "Checkpoint to go on from. Scripts hand it to train(); the Trainer does not look at it."
    )
    hub_model_id: str | None = _argument(None, "Repository on the Hub; by default named after the output folder.")
    hub_strategy: HubStrategy | str = _argument(
        "every_save", "What to push and when: 'end', 'every_save', 'checkpoint' or 'all_checkpoints'."
    )
    hub_token: str | None = _argument(None, "Token for the Hub; by default that of the last login.")
    hub_private_repo: bool = _argument(False, "Make the repository private.")
    gradient_checkpointing: bool = _argument(
        False, "Compute activations again in the backward pass and do not keep them: less memory, slower."
    )
    include_inputs_for_metrics: bool = _argument(False, "Hand the inputs to compute_metrics too.")

    # -- deprecated names, and what only launchers set ---

    fp16_backend: str = _argument("auto", "Deprecated: use half_precision_backend.", _HALF_PRECISION_BACKENDS)
    push_to_hub_model_id: str | None = _argument(None, "Deprecated: use hub_model_id.")
    push_to_hub_organization: str | None = _argument(None, "Deprecated: put it before the name in hub_model_id.")
    push_to_hub_token: str | None = _argument(None, "Deprecated: use hub_token.")
    # GPUs of this process; -1 until the device has been chosen.
    _n_gpu: int = field(init=False, repr=False, default=-1)
    mp_parameters: str = _argument("", "Set by the SageMaker launcher; the Trainer does not look at it.")

    # -- later additions ---

    auto_find_batch_size: bool = _argument(False, "After an out-of-memory error, start again with half the batch.")
    full_determinism: bool = _argument(False, "Forbid algorithms whose result depends on timing: slow, for debugging.")
    torchdynamo: str | None = _argument(None, "Deprecated: use torch_compile_backend.")
    ray_scope: str | None = _argument(
        "last", "Ray's search: compare trials by their 'last' result, or by another scope that Ray knows."
    )
    ddp_timeout: int | None = _argument(1800, "Seconds after which a process gives up waiting for the others.")
    torch_compile: bool = _argument(False, "Compile the model with torch.compile.")
    torch_compile_backend: str | None = _argument(None, "Compile with this backend, 'inductor' by default.")
    torch_compile_mode: str | None = _argument(None, "Compile in this mode.")
    xpu_backend: str | None = _argument(None, "Deprecated: use ddp_backend.", ["mpi", "ccl", "gloo"])

    # =====================================================================================================
    # After the fields are set
    # =====================================================================================================

    def __post_init__(self) -> None:
        """Complete and check the arguments. The order decides which of two errors is reported, so it is upstream's.

        Raises:
            ValueError: with the name of the argument, if a word is unknown or two wishes exclude each other.
            OSError: if `fsdp_config` names a file that cannot be read, or the Hub cannot be asked who we are.

        Writes: most of the fields; deepspeed_plugin, hf_deepspeed_config and xla_fsdp_config besides.
        Source: training_args.py 1200-1658.
        """
        self._expand_paths()
        self._turn_words_into_choices()
        self._check_intervals()
        if self.load_best_model_at_end:
            self._check_best_model_can_be_found()
        self._check_safetensors()
        self._name_best_metric_and_run()
        self._check_precision()
        self._choose_optimizer()
        self._check_device_can_do_precision()  # from here on the device is chosen
        self._prepare_compilation()
        self._prepare_tf32()
        self._choose_reporters()
        self._check_warmup()
        self._read_sharded_ddp()
        self._read_fsdp()
        self._read_debug()
        self._read_deepspeed()
        self._read_deprecated_hub_names()
        self._hand_precision_to_accelerate()

    # -- paths and words ---

    def _expand_paths(self) -> None:
        """Replace `~` by the home folder, choose the TensorBoard folder, and decide about progress bars."""
        if self.output_dir is not None:
            self.output_dir = os.path.expanduser(self.output_dir)
            if self.logging_dir is None:
                self.logging_dir = os.path.join(self.output_dir, default_logdir())
        if self.logging_dir is not None:
            self.logging_dir = os.path.expanduser(self.logging_dir)
        if self.disable_tqdm is None:
            self.disable_tqdm = logger.getEffectiveLevel() > trainer_log_levels["warning"]

    def _turn_words_into_choices(self) -> None:
        """Make members of `parts.choices` out of plain words; an unknown word is an error that lists them."""
        if isinstance(self.evaluation_strategy, EvaluationStrategy):
            _warn_deprecated("using `EvaluationStrategy` for `evaluation_strategy`", "`IntervalStrategy`")
            # IntervalStrategy does not take another enum's member for its own word.
            self.evaluation_strategy = self.evaluation_strategy.value
        if self.xpu_backend is not None:
            _warn_deprecated("using `xpu_backend`", "`ddp_backend`", gone_in="version 4.31")
            self.ddp_backend = self.xpu_backend

        for name in ("evaluation_strategy", "logging_strategy", "save_strategy"):
            setattr(self, name, IntervalStrategy(getattr(self, name)))
        self.hub_strategy = HubStrategy(self.hub_strategy)
        self.lr_scheduler_type = SchedulerType(self.lr_scheduler_type)
        if self.do_eval is False and self.evaluation_strategy != IntervalStrategy.NO:
            self.do_eval = True

    # -- intervals, and the best model ---

    def _check_intervals(self) -> None:
        """Fill eval_steps from logging_steps, and make whole numbers of intervals above 1."""
        evaluates_by_steps = self.evaluation_strategy == IntervalStrategy.STEPS
        logs_by_steps = self.logging_strategy == IntervalStrategy.STEPS
        saves_by_steps = self.save_strategy == IntervalStrategy.STEPS

        if evaluates_by_steps and not self.eval_steps:
            if self.logging_steps <= 0:
                raise ValueError(
                    "evaluation_strategy=steps needs a number of steps: set --eval_steps, or --logging_steps, above 0"
                )
            logger.info(f"`eval_steps` is unset: evaluating every {self.logging_steps} steps, like `logging_steps`")
            self.eval_steps = self.logging_steps
        if logs_by_steps and self.logging_steps == 0:
            raise ValueError("logging_strategy=steps needs --logging_steps above 0")

        for counts, name in (
            (logs_by_steps, "logging_steps"),
            (evaluates_by_steps, "eval_steps"),
            (saves_by_steps, "save_steps"),
        ):
            interval = getattr(self, name)
            # 1 itself stays as it came: as a float it still means every step, since it is no part of the run.
            if counts and interval > 1:
                if interval != int(interval):
                    raise ValueError(f"--{name}={interval}: above 1 it counts steps, so it has to be a whole number")
                setattr(self, name, int(interval))

    def _check_best_model_can_be_found(self) -> None:
        """Every checkpoint must have been evaluated, or the best one could not be told.

        **Beware:** two parts of the run (both below 1) are always refused unless their remainder is exactly zero in
        floating point: upstream works around the rounding and then raises all the same.
        """
        evaluates, saves = IntervalStrategy(self.evaluation_strategy), IntervalStrategy(self.save_strategy)
        if evaluates != saves:
            raise ValueError(
                "--load_best_model_at_end compares checkpoints by their evaluations, so both have to come together: "
                f"evaluation_strategy is {evaluates.value} and save_strategy is {saves.value}"
            )
        save_steps, eval_steps = self.save_steps, self.eval_steps
        if evaluates != IntervalStrategy.STEPS or save_steps % eval_steps == 0:  # type: ignore[operator]
            return
        needed = "--load_best_model_at_end needs an evaluation with every checkpoint, but"
        parts_of_the_run = [steps < 1 for steps in (save_steps, eval_steps)]  # type: ignore[operator]
        if any(parts_of_the_run) and not all(parts_of_the_run):
            raise ValueError(
                f"{needed} save_steps={save_steps} and eval_steps={eval_steps} mix a share of the run with a count of "
                "steps: give two shares or two counts."
            )
        million = 1_000_000
        if all(parts_of_the_run) and (save_steps * million) % (eval_steps * million) != 0:  # type: ignore[operator]
            raise ValueError(
                f"{needed} save_steps={save_steps} divided by eval_steps={eval_steps} leaves a remainder."
            )
        raise ValueError(f"{needed} save_steps={save_steps} divided by eval_steps={eval_steps} leaves a remainder.")

    def _check_safetensors(self) -> None:
        """safetensors must be installed where it is asked for."""
        if self.save_safetensors and not compat.is_safetensors_available():
            raise ValueError(
                f"--save_safetensors={self.save_safetensors} needs a missing package: `pip install safetensors`"
            )
        if not self.save_safetensors and compat.is_safetensors_available():
            logger.info(
                f"safetensors is installed, but --save_safetensors={self.save_safetensors}: weights will be pickled. "
                "Reading safetensors is faster and runs no code."
            )

    def _name_best_metric_and_run(self) -> None:
        """By default the loss says which model is best, and the run is called after its folder."""
        compares = self.load_best_model_at_end or self.lr_scheduler_type == SchedulerType.REDUCE_ON_PLATEAU
        if compares and self.metric_for_best_model is None:
            self.metric_for_best_model = "loss"
        if self.metric_for_best_model is not None and self.greater_is_better is None:
            self.greater_is_better = self.metric_for_best_model not in ("loss", "eval_loss")
        if self.run_name is None:
            self.run_name = self.output_dir

    # -- precision, optimizer and device ---

    def _check_precision(self) -> None:
        """At most one half precision, and one that this installation and these other arguments allow."""
        if self.fp16_backend and self.fp16_backend != "auto":
            _warn_deprecated("`fp16_backend`", "`half_precision_backend`")
            self.half_precision_backend = self.fp16_backend

        if self.bf16 or self.bf16_full_eval:
            if self.no_cuda:
                if not compat.is_torch_bf16_cpu_available() and not compat.is_torch_tpu_available():
                    raise ValueError("bf16 off the GPU (cpu, tpu, neuroncore) takes torch>=1.10")
            elif torch.cuda.is_available() and not is_torch_bf16_gpu_available():
                raise ValueError(
                    "bf16/gpu: not with this card, driver or torch; it takes Ampere or newer, cuda>=11.0, torch>=1.10"
                )
        both = {"": self.fp16 and self.bf16, " for full eval": self.fp16_full_eval and self.bf16_full_eval}
        for where, are_both_asked_for in both.items():
            if are_both_asked_for:
                raise ValueError(f"fp16 and bf16 exclude each other{where}: switch one of them off")
        if self.bf16 and self.half_precision_backend == "apex":
            raise ValueError(
                "apex does not know bf16: replace `--half_precision_backend apex` by"
                " `--half_precision_backend cuda_amp`"
            )
        if self.bf16 and self.sharded_ddp:
            raise ValueError("sharded_ddp and bf16 exclude each other")

        plateau = SchedulerType.REDUCE_ON_PLATEAU
        if self.lr_scheduler_type == plateau and self.evaluation_strategy == IntervalStrategy.NO:
            raise ValueError(
                "lr_scheduler_type reduce_lr_on_plateau follows a metric: set evaluation_strategy to steps or epoch"
            )

    def _choose_optimizer(self) -> None:
        """Make a member of the optimizer's name, and check that this torch has the fused one."""
        self.optim = OptimizerNames(self.optim)
        if self.adafactor:
            _warn_deprecated("`--adafactor`", "`--optim adafactor`")
            self.optim = OptimizerNames.ADAFACTOR
        if self.optim == OptimizerNames.ADAMW_TORCH_FUSED:
            release = version.parse(version.parse(torch.__version__).base_version)
            if release < version.parse("2.0.0"):
                raise ValueError("--optim adamw_torch_fused came with PyTorch 2.0, and this one is older")
            if release == version.parse("2.0.0") and self.fp16:  # a bug of that release
                raise ValueError(
                    "--optim adamw_torch_fused and --fp16 do not go together in PyTorch 2.0.0: take a later one"
                )

    def _check_device_can_do_precision(self) -> None:
        """Choose the device, and check that it can do the half precision that is asked for."""
        if self.device.type == "cuda" or get_xla_device_type(self.device) == "GPU":
            return
        if self.fp16 or self.fp16_full_eval:
            raise ValueError(
                "`--fp16` and `--fp16_full_eval` compute on CUDA devices alone, and this run's device is"
                f" {self.device.type}: switch them off, or take `--bf16`."
            )
        can_do_bf16 = self.device.type == "cpu" or get_xla_device_type(self.device) == "TPU"
        if (self.bf16 or self.bf16_full_eval) and not can_do_bf16:
            raise ValueError(
                "`--bf16` and `--bf16_full_eval` take a CUDA device or one of CPU/TPU/NeuronCore, and this run's device is"
                f" {self.device.type}."
            )

    def _prepare_compilation(self) -> None:
        """Any of the three arguments switches compilation on. accelerate reads its backend from the environment."""
        if self.torchdynamo is not None:
            _warn_deprecated("`torchdynamo`", "`torch_compile_backend`")
            self.torch_compile_backend = self.torchdynamo
        if self.torch_compile_mode is not None or self.torch_compile_backend is not None:
            self.torch_compile = True
        if not self.torch_compile:
            return
        if self.torch_compile_backend is None:
            self.torch_compile_backend = "inductor"
        os.environ["ACCELERATE_DYNAMO_BACKEND"] = self.torch_compile_backend
        if self.torch_compile_mode is not None:
            os.environ["ACCELERATE_DYNAMO_MODE"] = self.torch_compile_mode

    def _prepare_tf32(self) -> None:
        """Set TensorFloat-32 as asked for; when compiling, also without being asked, because it pays there."""
        is_available = is_torch_tf32_available()
        if self.torch_compile:
            if not is_available:
                logger.warning("Compiling pays off on Ampere GPUs and newer, and there is none here.")
            elif (self.tf32 is None and not self.fp16) or self.bf16:
                logger.info("Setting TF32, without which compiling would hardly speed anything up.")
                torch.backends.cuda.matmul.allow_tf32 = True
        if self.tf32 and not is_available:
            raise ValueError("--tf32 takes a card of the Ampere generation or later, cuda>=11 and torch>=1.7")
        if self.tf32 is not None and is_available:
            torch.backends.cuda.matmul.allow_tf32 = bool(self.tf32)

    # -- reporters and warm-up ---

    def _choose_reporters(self) -> None:
        """Turn `report_to` into a list of names. Unset means all that are installed."""
        if self.report_to is None:
            logger.info("report_to is unset: reporting to all trackers that are installed, as with --report_to all.")
            self.report_to = "all"  # type: ignore[assignment]
        if self.report_to in ("all", ["all"]):
            # Here, because the reporters need the callbacks, which a script that only parses does not.
            from .reporters import get_available_reporting_integrations

            self.report_to = get_available_reporting_integrations()
        elif self.report_to in ("none", ["none"]):
            self.report_to = []
        elif not isinstance(self.report_to, list):
            self.report_to = [self.report_to]  # type: ignore[list-item]

    def _check_warmup(self) -> None:
        """The warm-up cannot be longer than the run."""
        if not 0 <= self.warmup_ratio <= 1:
            raise ValueError(f"warmup_ratio={self.warmup_ratio} is no share of the run: give a number from 0 to 1")
        if self.warmup_ratio > 0 and self.warmup_steps > 0:
            logger.info("Both warmup_ratio and warmup_steps are given: warmup_steps counts, warmup_ratio does not.")

    # -- reading the options of sharding ---

    def _read_sharded_ddp(self) -> None:
        """Turn a switch or words into fairscale options, and check that they go together."""
        if self.sharded_ddp:
            _warn_deprecated("using `sharded_ddp`", "`fsdp`", gone_in="version 4.33")
        options = _options(self.sharded_ddp, ShardedDDPOption, switched_on="simple")
        self.sharded_ddp = options
        if options == [ShardedDDPOption.OFFLOAD]:
            raise ValueError(
                '`--sharded_ddp offload` is an addition to another mode: write `--sharded_ddp "zero_dp_2 offload"` or '
                '`--sharded_ddp "zero_dp_3 offload"`.'
            )
        if len(options) > 1 and ShardedDDPOption.SIMPLE in options:
            raise ValueError("`--sharded_ddp simple` has to stand alone.")
        if ShardedDDPOption.ZERO_DP_2 in options and ShardedDDPOption.ZERO_DP_3 in options:
            raise ValueError("`--sharded_ddp`: zero_dp_2 and zero_dp_3 exclude each other.")

    def _read_fsdp(self) -> None:
        """Turn words into FSDP options, read and complete its settings, and hand both to accelerate.

        **Beware:** a dict that is passed as `fsdp_config` is changed in place.
        """
        options = _options(self.fsdp, FSDPOption, switched_on="full_shard")
        self.fsdp = options
        if options == [FSDPOption.OFFLOAD]:
            raise ValueError(
                '`--fsdp offload` is an addition to another mode: write `--fsdp "full_shard offload"` or '
                '`--fsdp "shard_grad_op offload"`.'
            )
        if FSDPOption.FULL_SHARD in options and FSDPOption.SHARD_GRAD_OP in options:
            raise ValueError("`--fsdp`: full_shard and shard_grad_op exclude each other.")

        if isinstance(self.fsdp_config, str):
            with open(self.fsdp_config, encoding="utf-8") as file:
                self.fsdp_config = json.load(file)
        config: dict[str, Any] = {} if self.fsdp_config is None else self.fsdp_config  # type: ignore[assignment]
        self.fsdp_config = config  # type: ignore[assignment]
        self._choose_fsdp_wrapping(config, is_used=len(options) > 0)
        self._choose_xla_fsdp(config, is_used=len(options) > 0)
        if options and not config["xla"]:
            _hand_fsdp_to_accelerate(options, config)

    def _choose_fsdp_wrapping(self, config: dict[str, Any], is_used: bool) -> None:
        """Which layers become units of their own: by size, or by class; the deprecated arguments are merged in."""
        min_params, layers = "fsdp_min_num_params", "fsdp_transformer_layer_cls_to_wrap"
        if self.fsdp_min_num_params > 0:
            _warn_for_fsdp_config(min_params)
        config[min_params] = max(config.get(min_params, 0), self.fsdp_min_num_params)

        if isinstance(config.get(layers), str):
            config[layers] = [config[layers]]
        if self.fsdp_transformer_layer_cls_to_wrap is not None:
            _warn_for_fsdp_config(layers)
            config[layers] = config.get(layers, []) + [self.fsdp_transformer_layer_cls_to_wrap]

        by_size, by_class = config[min_params] > 0, config.get(layers) is not None
        for is_asked_for, name in ((by_size, min_params), (by_class, layers)):
            if is_asked_for and not is_used:
                warnings.warn(f"`--{name}` does nothing without `--fsdp`.", stacklevel=5)
        if is_used and by_size and by_class:
            raise ValueError(f"`--{min_params}` and `--{layers}` are mutually exclusive.")

    def _choose_xla_fsdp(self, config: dict[str, Any], is_used: bool) -> None:
        """Settings of FSDP on TPUs; never run on the hardware here."""
        config["xla"] = config.get("xla", False)
        config["xla_fsdp_grad_ckpt"] = config.get("xla_fsdp_grad_ckpt", False)
        if not config["xla"]:
            if config["xla_fsdp_grad_ckpt"]:
                warnings.warn("`--xla_fsdp_grad_ckpt` does nothing while `--xla` is false.", stacklevel=5)
            return
        if not is_used:
            warnings.warn("The settings of FSDP on XLA do nothing without `--fsdp`.", stacklevel=5)
            return
        self.xla_fsdp_config = config.get("xla_fsdp_settings", {})
        for name in ("compute_dtype", "buffer_dtype"):
            if name in self.xla_fsdp_config:
                self.xla_fsdp_config[name] = getattr(torch, self.xla_fsdp_config[name])

    # -- debugging, DeepSpeed, Hub, accelerate ---

    def _read_debug(self) -> None:
        """Turn words into debug options.

        **Beware:** `tpu_metrics_debug` together with a list in `debug` appends single letters, as upstream.
        """
        if self.tpu_metrics_debug:
            _warn_deprecated("using `--tpu_metrics_debug`", "`--debug tpu_metrics_debug`")
            if self.debug is None:
                self.debug = ""
            self.debug += " tpu_metrics_debug"  # type: ignore[operator]
            self.tpu_metrics_debug = False
        if isinstance(self.debug, str):
            self.debug = [DebugOption(word) for word in self.debug.split()]
        elif self.debug is None:
            self.debug = []

    def _read_deepspeed(self) -> None:
        """Read DeepSpeed's configuration, which takes its "auto" values from all the rest: so it comes late.

        Never run on the hardware here. `deepspeed` itself stays as it was passed; scripts look at it.
        """
        self.deepspeed_plugin = None
        if not self.deepspeed:
            return
        self.hf_deepspeed_config = compat.hf_trainer_deepspeed_config()(self.deepspeed)
        self.hf_deepspeed_config.trainer_config_process(self)
        from accelerate.utils import DeepSpeedPlugin

        os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
        self.deepspeed_plugin = DeepSpeedPlugin(hf_ds_config=self.hf_deepspeed_config)

    def _read_deprecated_hub_names(self) -> None:
        """Move the three old names to the new ones; without an organization the Hub is asked who we are."""
        if self.push_to_hub_token is not None:
            _warn_deprecated("`--push_to_hub_token`", "`--hub_token`")
            self.hub_token = self.push_to_hub_token

        model_id, organization = self.push_to_hub_model_id, self.push_to_hub_organization
        if model_id is None and organization is None:
            return
        if model_id is not None:
            self.hub_model_id = compat.get_full_repo_name(model_id, organization=organization, token=self.hub_token)
        else:
            self.hub_model_id = f"{organization}/{Path(self.output_dir).name}"
        given = {"`--push_to_hub_model_id`": model_id, "`--push_to_hub_organization`": organization}
        old_names = [name for name, value in given.items() if value is not None]
        are = "are" if len(old_names) > 1 else "is"
        warnings.warn(
            f"{' and '.join(old_names)} {are} deprecated, and gone in version 5 of 🤗 Transformers: "
            f"`--hub_model_id` takes the repository's whole name, which is {self.hub_model_id} here.",
            FutureWarning,
            stacklevel=4,
        )

    def _hand_precision_to_accelerate(self) -> None:
        """Put the precision into the environment, where accelerate reads it.

        A value that stands there already (from `accelerate launch`, or from earlier arguments: see the class) stays
        unless `fp16` or `bf16` is asked for.
        """
        if self.half_precision_backend == "apex" or self.sharded_ddp:
            return
        precision = "fp16" if self.fp16 else "bf16" if self.bf16 else None
        if precision is not None:
            os.environ["ACCELERATE_MIXED_PRECISION"] = precision
        os.environ.setdefault("ACCELERATE_MIXED_PRECISION", "no")

    # =====================================================================================================
    # What the Trainer asks
    # =====================================================================================================

    # -- batch sizes and times ---

    @property
    def train_batch_size(self) -> int:
        """Examples in a micro-batch of this process: per device, times its GPUs."""
        if self.per_gpu_train_batch_size:
            logger.warning(
                "`--per_gpu_train_batch_size` is deprecated: its new name is `--per_device_train_batch_size`."
            )
        return (self.per_gpu_train_batch_size or self.per_device_train_batch_size) * max(1, self.n_gpu)

    @property
    def eval_batch_size(self) -> int:
        """Examples in an evaluation batch of this process: per device, times its GPUs."""
        if self.per_gpu_eval_batch_size:
            logger.warning(
                "`--per_gpu_eval_batch_size` is deprecated: its new name is `--per_device_eval_batch_size`."
            )
        return (self.per_gpu_eval_batch_size or self.per_device_eval_batch_size) * max(1, self.n_gpu)

    @property
    def ddp_timeout_delta(self) -> timedelta:
        """`ddp_timeout` as torch wants it."""
        return timedelta(seconds=self.ddp_timeout)  # type: ignore[arg-type]

    def get_warmup_steps(self, num_training_steps: int) -> int:
        """Updates of the warm-up: `warmup_steps` if it is set, else that part of the run, rounded up."""
        if self.warmup_steps > 0:
            return self.warmup_steps
        return math.ceil(num_training_steps * self.warmup_ratio)

    # -- the device ---

    @functools.cached_property
    def _setup_devices(self) -> torch.device:
        """Choose this process's device and start the process group, once for each object.

        **Beware:** it forgets the state of accelerate that earlier arguments or Accelerators have made.

        Writes: distributed_state, local_rank, _n_gpu.
        Source: training_args.py 1710-1787.
        Leaves out: the check for accelerate 0.20.1, which this package requires.
        """
        logger.info("PyTorch: setting up devices")
        on_sagemaker_mp, on_sagemaker_dp = compat.is_sagemaker_mp_enabled(), compat.is_sagemaker_dp_enabled()
        timeout = timedelta(seconds=self.ddp_timeout)  # type: ignore[arg-type]
        _start_neuron_processes()
        if not on_sagemaker_mp:
            AcceleratorState._reset_state(reset_partial_state=True)

        self.distributed_state: Any = None
        self._n_gpu = 1
        if self.no_cuda:
            # 4.31.0 forgets `ddp_timeout` here, so that a rank waits half an hour for one that has ended.
            self.distributed_state = compat.start_distributed_state(
                cpu=True, backend=self.ddp_backend, timeout=timeout
            )
            self._n_gpu = 0
        elif on_sagemaker_mp:
            device = torch.device("cuda", _sagemaker().local_rank())
            torch.cuda.set_device(device)
        elif on_sagemaker_dp:
            self.distributed_state = compat.start_distributed_state(_use_sagemaker_dp=True)
        elif self.deepspeed:
            os.environ["ACCELERATE_USE_DEEPSPEED"] = "true"
            self.distributed_state = compat.start_distributed_state(timeout=timeout)
            del os.environ["ACCELERATE_USE_DEEPSPEED"]
        else:
            self.distributed_state = compat.start_distributed_state(backend=self.ddp_backend, timeout=timeout)

        if not on_sagemaker_mp:
            device = self.distributed_state.device
            self.local_rank = self.distributed_state.local_process_index
        if dist.is_available() and dist.is_initialized() and self.parallel_mode != ParallelMode.DISTRIBUTED:
            logger.warning(
                "A process group of torch.distributed exists, but this run is not distributed. To train with DDP, "
                "start the script with `torchrun`."
            )
        if compat.is_torch_tpu_available():
            self._n_gpu = 0
            return self.distributed_state.device
        if not on_sagemaker_dp and not on_sagemaker_mp and not self._is_distributed():
            return self._single_process_device(device)
        return device

    def _single_process_device(self, device: torch.device) -> torch.device:
        """The device, and the number of GPUs, of a process that trains alone."""
        if self.use_mps_device:
            warnings.warn(
                "`use_mps_device` is deprecated, and gone in version 5.0 of 🤗 Transformers: leave it out, `mps` is "
                "taken wherever it is there, as `cuda` is.",
                stacklevel=4,
            )
            if device.type != "mps":
                raise ValueError(
                    "`use_mps_device`: no MPS device was found. It takes a Mac that has one, macOS>=12.3 and a PyTorch "
                    "built with MPS."
                )
        if device.type == "mps":
            self._n_gpu = 1
            return device
        if self.no_cuda:
            self._n_gpu = 0
            return torch.device("cpu")
        # More than one GPU: the Trainer will use torch.nn.DataParallel, whose home is the first of them. The index is
        # needed by set_device, and it counts within CUDA_VISIBLE_DEVICES.
        self._n_gpu = torch.cuda.device_count()
        device = torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
        if device.type == "cuda":
            torch.cuda.set_device(device)
        return device

    def _is_distributed(self) -> bool:
        """Whether accelerate sees several processes."""
        return self.distributed_state.distributed_type != DistributedType.NO

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return self._setup_devices

    @property
    def n_gpu(self) -> int:
        """GPUs of this process: more than one only where one process drives several by `torch.nn.DataParallel`."""
        if not hasattr(self, "_n_gpu"):
            _ = self._setup_devices
        return self._n_gpu

    # -- ranks ---

    @property
    def parallel_mode(self) -> ParallelMode:
        """How several devices share the work."""
        if compat.is_torch_tpu_available():
            return ParallelMode.TPU
        if compat.is_sagemaker_mp_enabled():
            return ParallelMode.SAGEMAKER_MODEL_PARALLEL
        if compat.is_sagemaker_dp_enabled():
            return ParallelMode.SAGEMAKER_DATA_PARALLEL
        if self._is_distributed() if self.distributed_state is not None else self.local_rank != -1:
            return ParallelMode.DISTRIBUTED
        return ParallelMode.NOT_DISTRIBUTED if self.n_gpu > 1 else ParallelMode.NOT_PARALLEL

    @property
    def world_size(self) -> int:
        """The number of ranks."""
        if self.distributed_state is not None:
            return self.distributed_state.num_processes
        if compat.is_sagemaker_mp_enabled():
            smp = _sagemaker()
            return smp.rdp_size() if smp.state.cfg.prescaled_batch else smp.dp_size()
        return 1

    @property
    def process_index(self) -> int:
        """The rank of this process among all."""
        if self.distributed_state is not None:
            return self.distributed_state.process_index
        if compat.is_sagemaker_mp_enabled():
            smp = _sagemaker()
            return smp.rdp_rank() if smp.state.cfg.prescaled_batch else smp.dp_rank()
        return 0

    @property
    def local_process_index(self) -> int:
        """The number of this process on its machine."""
        if self.distributed_state is not None:
            return self.distributed_state.local_process_index
        return _sagemaker().local_rank() if compat.is_sagemaker_mp_enabled() else 0

    @property
    def should_log(self) -> bool:
        """Whether this process logs: the first of each machine, or the first of all."""
        return self._is_first(on_each_machine=self.log_on_each_node)

    @property
    def should_save(self) -> bool:
        """Whether this process writes checkpoints: the first of all, or the first of each machine."""
        return self._is_first(on_each_machine=self.save_on_each_node)

    def _is_first(self, on_each_machine: bool) -> bool:
        """Whether this is process 0 of its machine, or of all."""
        if on_each_machine:
            return self.local_process_index == 0
        return (_sagemaker().rank() if compat.is_sagemaker_mp_enabled() else self.process_index) == 0

    def get_process_log_level(self) -> int:
        """The verbosity of this process, as a number; 'passive' stands for the present one."""
        # Both are looked up on every process, so that a misspelt word fails everywhere and not on the replicas alone.
        words = (self.log_level, self.log_level_replica)
        first_level, replica_level = (trainer_log_levels[word] for word in words)  # type: ignore[index]
        level = first_level if self.should_log else replica_level
        return transformers_logging.get_verbosity() if level == -1 else level

    @property
    def place_model_on_device(self) -> bool:
        """Whether the Trainer moves the model to the device. Override it where something else does."""
        return not compat.is_sagemaker_mp_enabled()

    @property
    def _no_sync_in_gradient_accumulation(self) -> bool:
        """Whether DDP may skip exchanging gradients until the last micro-batch of a group."""
        must_sync = compat.is_sagemaker_dp_enabled() or compat.is_sagemaker_mp_enabled()
        return not (self.deepspeed or must_sync or compat.is_torch_neuroncore_available())

    @contextlib.contextmanager
    def main_process_first(self, local: bool = True, desc: str = "work") -> Iterator[None]:
        """Let the first process run the block before all others, which then find its cache ready.

            with args.main_process_first(desc="tokenization"):
                dataset = dataset.map(tokenize)

        Args:
            local: the first of each machine goes first; False where machines share a disk.
            desc: what is being done, for the debug log.

        Source: training_args.py 1940-1989.
        """
        if self.world_size <= 1:
            yield
            return
        main_process = "main local process" if local else "main process"
        if self.distributed_state is not None:
            state = self.distributed_state
            goes_first = state.is_local_main_process if local else state.is_main_process
        else:
            goes_first = _sagemaker().rank() == 0

        try:
            if not goes_first:
                logger.debug(f"{self.process_index}: waiting for the {main_process} to perform {desc}")
                _wait_for_all(desc)
            yield
        finally:
            # Also after an error: otherwise the others would wait until their timeout.
            if goes_first:
                logger.debug(f"{self.process_index}: {main_process} completed {desc}, releasing all replicas")
                _wait_for_all(desc)

    # =====================================================================================================
    # As text
    # =====================================================================================================

    def to_dict(self) -> dict[str, Any]:
        """All fields, choices as plain words, tokens replaced by a placeholder."""
        values = {f.name: getattr(self, f.name) for f in fields(self) if f.init}
        for name, value in values.items():
            if isinstance(value, Enum):
                values[name] = value.value
            elif isinstance(value, list) and value and isinstance(value[0], Enum):
                values[name] = [member.value for member in value]
            if name.endswith("_token"):
                values[name] = f"<{name.upper()}>"
        return values

    def to_json_string(self) -> str:
        """`to_dict` as JSON.

        **Beware:** read back by `parse_json_file`, the placeholders of the tokens come back as tokens.

        Raises:
            TypeError: if a field holds something that JSON cannot, such as a DeepSpeed object.
        """
        return json.dumps(self.to_dict(), indent=2)

    def to_sanitized_dict(self) -> dict[str, Any]:
        """`to_dict` for trackers: switches, numbers, words and tensors, all else as text; batch sizes added."""
        values = self.to_dict() | {"train_batch_size": self.train_batch_size, "eval_batch_size": self.eval_batch_size}
        kept_types = (bool, int, float, str, torch.Tensor)
        return {name: value if type(value) in kept_types else str(value) for name, value in values.items()}

    def __str__(self) -> str:
        # asdict, not to_dict: choices print as members, and _n_gpu is shown too.
        values = asdict(self)
        for deprecated in ("per_gpu_train_batch_size", "per_gpu_eval_batch_size"):
            del values[deprecated]
        lines = ""
        for name in sorted(values):
            lines += f"{name}={f'<{name.upper()}>' if name.endswith('_token') else values[name]},\n"
        return f"{type(self).__name__}(\n{lines})"

    __repr__ = __str__

    # =====================================================================================================
    # By theme: each of these sets several fields and returns the object, so they can be chained
    # =====================================================================================================

    def set_training(
        self,
        learning_rate: float = 5e-5,
        batch_size: int = 8,  # per device
        weight_decay: float = 0,
        num_epochs: float = 3,
        max_steps: int = -1,  # beats num_epochs
        gradient_accumulation_steps: int = 1,  # micro-batches in a group
        seed: int = 42,
        gradient_checkpointing: bool = False,
    ) -> "TrainingArguments":
        """Set the basics of training, and `do_train`."""
        self.num_train_epochs, self.max_steps = num_epochs, max_steps
        self.per_device_train_batch_size = batch_size
        self.gradient_accumulation_steps = gradient_accumulation_steps
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.gradient_checkpointing = gradient_checkpointing
        self.seed, self.do_train = seed, True
        return self

    def set_evaluate(
        self,
        strategy: str | IntervalStrategy = "no",
        steps: int = 500,
        batch_size: int = 8,  # per device
        accumulation_steps: int | None = None,  # evaluation batches
        delay: float | None = None,
        loss_only: bool = False,
        jit_mode: bool = False,
    ) -> "TrainingArguments":
        """Set when and how to evaluate during training, and `do_eval`.

        **Beware:** without `delay` this sets `eval_delay` to None, not 0, and training with any strategy but "no"
        then fails at its first comparison with a number. Pass `delay=0`.

        Raises:
            ValueError: for strategy "steps" with 0 steps.
        """
        self.evaluation_strategy = _strategy(strategy, steps)
        self.eval_steps, self.eval_delay = steps, delay
        self.per_device_eval_batch_size, self.eval_accumulation_steps = batch_size, accumulation_steps
        self.prediction_loss_only, self.jit_mode_eval = loss_only, jit_mode
        self.do_eval = self.evaluation_strategy != IntervalStrategy.NO
        return self

    def set_testing(self, batch_size: int = 8, loss_only: bool = False, jit_mode: bool = False) -> "TrainingArguments":
        """Set how to predict, and `do_predict`. Batch size and switches are those of evaluation: they are shared."""
        self.per_device_eval_batch_size, self.do_predict = batch_size, True
        self.prediction_loss_only, self.jit_mode_eval = loss_only, jit_mode
        return self

    def set_save(
        self,
        strategy: str | IntervalStrategy = "steps",
        steps: int = 500,  # updates
        total_limit: int | None = None,
        on_each_node: bool = False,
    ) -> "TrainingArguments":
        """Set when to write checkpoints and how many to keep.

        Raises:
            ValueError: for strategy "steps" with 0 steps.
        """
        self.save_strategy = _strategy(strategy, steps)
        self.save_steps, self.save_total_limit, self.save_on_each_node = steps, total_limit, on_each_node
        return self

    def set_logging(
        self,
        strategy: str | IntervalStrategy = "steps",
        steps: int = 500,  # updates
        report_to: str | list[str] = "none",
        level: str = "passive",  # of the main process
        first_step: bool = False,
        nan_inf_filter: bool = False,
        on_each_node: bool = False,
        replica_level: str = "passive",  # of all others
    ) -> "TrainingArguments":
        """Set when, what and where to log.

        **Beware:** `report_to` is stored as it is passed, and its default here, the word "none", is not understood by
        the Trainer, which expects a list: pass `report_to=[]`. Three other defaults differ from the fields' own.

        Raises:
            ValueError: for strategy "steps" with 0 steps.
        """
        self.logging_strategy = _strategy(strategy, steps)
        self.logging_steps, self.logging_first_step = steps, first_step
        self.report_to = report_to  # type: ignore[assignment]
        self.log_level, self.log_level_replica = level, replica_level
        self.log_on_each_node, self.logging_nan_inf_filter = on_each_node, nan_inf_filter
        return self

    def set_push_to_hub(
        self,
        model_id: str,  # "name" or "owner/name"
        strategy: str | HubStrategy = "every_save",
        token: str | None = None,
        private_repo: bool = False,
    ) -> "TrainingArguments":
        """Set where and when to push, and `push_to_hub`. The output folder will become a clone of the repository."""
        self.hub_strategy = HubStrategy(strategy)
        self.hub_model_id, self.hub_token, self.hub_private_repo = model_id, token, private_repo
        self.push_to_hub = True
        return self

    def set_optimizer(
        self,
        name: str | OptimizerNames = "adamw_hf",
        learning_rate: float = 5e-5,
        weight_decay: float = 0,
        beta1: float = 0.9,
        beta2: float = 0.999,
        epsilon: float = 1e-8,
        args: str | None = None,  # 'name=value,name=value'
    ) -> "TrainingArguments":
        """Set the optimizer and its numbers.

        Raises:
            ValueError: for an unknown name.
        """
        self.optim, self.optim_args = OptimizerNames(name), args
        self.learning_rate, self.weight_decay = learning_rate, weight_decay
        self.adam_beta1, self.adam_beta2, self.adam_epsilon = beta1, beta2, epsilon
        return self

    def set_lr_scheduler(
        self,
        name: str | SchedulerType = "linear",
        num_epochs: float = 3.0,
        max_steps: int = -1,  # beats num_epochs
        warmup_ratio: float = 0,
        warmup_steps: int = 0,  # beats warmup_ratio
    ) -> "TrainingArguments":
        """Set the learning-rate schedule and the length of the run, which it depends on.

        Raises:
            ValueError: for an unknown name.
        """
        self.lr_scheduler_type = SchedulerType(name)
        self.num_train_epochs, self.max_steps = num_epochs, max_steps
        self.warmup_ratio, self.warmup_steps = warmup_ratio, warmup_steps
        return self

    def set_dataloader(
        self,
        train_batch_size: int = 8,  # both per device
        eval_batch_size: int = 8,
        drop_last: bool = False,
        num_workers: int = 0,  # 0: the main process loads
        pin_memory: bool = True,
        auto_find_batch_size: bool = False,
        ignore_data_skip: bool = False,
        sampler_seed: int | None = None,
    ) -> "TrainingArguments":
        """Set how data is loaded."""
        self.per_device_train_batch_size, self.per_device_eval_batch_size = train_batch_size, eval_batch_size
        self.dataloader_drop_last, self.dataloader_num_workers = drop_last, num_workers
        self.dataloader_pin_memory, self.auto_find_batch_size = pin_memory, auto_find_batch_size
        self.ignore_data_skip, self.data_seed = ignore_data_skip, sampler_seed
        return self


@dataclass
class Seq2SeqTrainingArguments(TrainingArguments):
    """The same, with what `Seq2SeqTrainer` needs to generate text during an evaluation.

    Source: training_args_seq2seq.py 28-97.
    """

    sortish_sampler: bool = _argument(
        False, "Order examples roughly by length. Scripts look at it; the Trainer does not."
    )
    predict_with_generate: bool = _argument(
        False, "In evaluation and prediction generate text, for metrics such as ROUGE, and do not predict each token."
    )
    generation_max_length: int | None = _argument(
        None, "Longest text to generate, in tokens; by default as the model's configuration says."
    )
    generation_num_beams: int | None = _argument(
        None, "Beams of the search; by default as the model's configuration says."
    )
    generation_config: str | Path | GenerationConfig | None = _argument(
        None, "How to generate: a name on the Hub, a folder with generation_config.json, or from Python the object."
    )

    def to_dict(self) -> dict[str, Any]:
        """As in the base class, a generation configuration as a dict."""
        values = super().to_dict()
        return {k: v.to_dict() if isinstance(v, GenerationConfig) else v for k, v in values.items()}


# =========================================================================================================
# Helpers
# =========================================================================================================


def default_logdir() -> str:
    """`runs/<date>_<host>`, the default of torch's own TensorBoard writer.

    Source: training_args.py 102-110.
    """
    return os.path.join("runs", f"{datetime.now():%b%d_%H-%M-%S}_{socket.gethostname()}")


def get_int_from_env(env_keys: list[str], default: int) -> int:
    """The first of these environment variables that holds a number of 0 or more.

    Source: training_args.py 113-119.
    """
    numbers = (int(os.environ.get(key, -1)) for key in env_keys)
    return next((number for number in numbers if number >= 0), default)


def get_xla_device_type(device: torch.device) -> str | None:
    """`CPU`, `GPU` or `TPU` for a device of torch_xla, None for any other. Never run on the hardware here.

    Source: training_args.py 122-128.
    """
    if not compat.is_torch_tpu_available():
        return None
    return compat.xla_model().xla_real_devices([device])[0].split(":")[0]


def _warn_deprecated(old: str, new: str, gone_in: str = "version 5") -> None:
    """Say which argument to use in place of an old one."""
    warnings.warn(
        f"{old} is deprecated, and gone in {gone_in} of 🤗 Transformers: use {new}",
        FutureWarning,
        stacklevel=5,  # past this function, its caller, __post_init__ and __init__: the line that made the arguments
    )


def _warn_for_fsdp_config(name: str) -> None:
    """Say that an argument has become a key of `fsdp_config`."""
    warnings.warn(f"`--{name}` is deprecated: make it a key of fsdp_config", FutureWarning, stacklevel=6)


def _strategy(word: str | IntervalStrategy, steps: int) -> IntervalStrategy:
    """An interval strategy that can work."""
    strategy = IntervalStrategy(word)
    if strategy == IntervalStrategy.STEPS and steps == 0:
        raise ValueError("strategy 'steps' goes by a number of `steps`, and that is 0.")
    return strategy


def _options(value: Any, choices: Any, switched_on: str) -> Any:
    """A list of choices from a list, from words with spaces between, or from a switch."""
    if isinstance(value, bool):
        value = switched_on if value else ""
    return [choices(word) for word in value.split()] if isinstance(value, str) else value


def _hand_fsdp_to_accelerate(options: list[FSDPOption], config: dict[str, Any]) -> None:
    """Put FSDP's options into the environment, where accelerate reads them. They stay there for the whole process."""
    from accelerate.utils.constants import FSDP_AUTO_WRAP_POLICY, FSDP_SHARDING_STRATEGY

    by_class, by_size = FSDP_AUTO_WRAP_POLICY[:2]
    settings = {
        "ACCELERATE_USE_FSDP": "true",
        "FSDP_BACKWARD_PREFETCH": config.get("fsdp_backward_prefetch", "NO_PREFETCH").upper(),
    }
    for option in options:
        if option.upper() in FSDP_SHARDING_STRATEGY:
            settings["FSDP_SHARDING_STRATEGY"] = str(FSDP_SHARDING_STRATEGY.index(option.upper()) + 1)  # from 1
        elif option == FSDPOption.OFFLOAD:
            settings["FSDP_OFFLOAD_PARAMS"] = "true"
        elif option == FSDPOption.AUTO_WRAP and config["fsdp_min_num_params"] > 0:
            settings["FSDP_AUTO_WRAP_POLICY"] = by_size
            settings["FSDP_MIN_NUM_PARAMS"] = str(config["fsdp_min_num_params"])
        elif option == FSDPOption.AUTO_WRAP and config.get("fsdp_transformer_layer_cls_to_wrap") is not None:
            settings["FSDP_AUTO_WRAP_POLICY"] = by_class
            settings["FSDP_TRANSFORMER_CLS_TO_WRAP"] = ",".join(config["fsdp_transformer_layer_cls_to_wrap"])
    os.environ.update(settings)


def _wait_for_all(desc: str) -> None:
    """Wait until all processes are here."""
    if compat.is_torch_tpu_available():
        compat.xla_model().rendezvous(desc)
    else:
        dist.barrier()


@functools.lru_cache
def _sagemaker() -> Any:
    """SageMaker's model-parallel library, started once. Never run on that platform here."""
    library = compat.sagemaker()
    library.init()
    return library


def _start_neuron_processes() -> None:
    """Start the process group of AWS Trainium where torchrun started us. Never run on the hardware here.

    Source: training_args.py 71-90, where it happens at import.

    Raises:
        AssertionError: if the group that came up is not torch_xla's.
    """
    if not os.environ.get("TORCHELASTIC_RUN_ID") or not compat.is_torch_neuroncore_available():
        return
    if compat.is_optimum_neuron_available():
        logger.info("On AWS Trainium this Trainer fails: use the TrainiumTrainer of optimum[neuron].")
        return
    logger.warning("On AWS Trainium the TrainiumTrainer of optimum[neuron] is the one to use, not this Trainer.")
    import torch_xla.distributed.xla_backend as xla_backend

    if not isinstance(dist.group.WORLD, xla_backend.ProcessGroupXla):
        dist.init_process_group(backend="xla")
        if not isinstance(dist.group.WORLD, xla_backend.ProcessGroupXla):
            raise AssertionError("torch.distributed came up without the XLA backend.")


# Read next: loop.py
