"""The words that arguments accept: every closed set of choices, one class each.

Each is a `str` as well as an `Enum`, so `IntervalStrategy.STEPS == "steps"` holds and a command line can pass the
plain word. The values are upstream's, letter for letter: they stand in users' scripts and in saved JSON.
"""

from enum import Enum
from typing import Any


class ExplicitEnum(str, Enum):
    """A set of words whose error names the words that would have been right.

    Source: utils/generic.py 341-350.
    """

    @classmethod
    def _missing_(cls, value: object) -> Any:
        """Reject an unknown word and list the known ones.

        Raises:
            ValueError: always; Python calls this only after an ordinary lookup failed.
        """
        known_words = [member.value for member in cls]
        raise ValueError(f"{value} is not a valid {cls.__name__}: it is one of {known_words}")


# -- when something happens ---


class IntervalStrategy(ExplicitEnum):
    """When to log, evaluate or save: never, every so many steps, or once an epoch."""

    NO = "no"
    STEPS = "steps"
    EPOCH = "epoch"


class EvaluationStrategy(ExplicitEnum):
    """The old name of `IntervalStrategy`; the arguments still accept it, with a warning."""

    NO = "no"
    STEPS = "steps"
    EPOCH = "epoch"


class HubStrategy(ExplicitEnum):
    """What to push to the Hub, and when."""

    END = "end"
    EVERY_SAVE = "every_save"
    CHECKPOINT = "checkpoint"
    ALL_CHECKPOINTS = "all_checkpoints"


# -- how the weights move ---


class SchedulerType(ExplicitEnum):
    """How the learning rate changes from step to step."""

    # down to zero at the last step, after an optional warm-up
    LINEAR = "linear"
    COSINE = "cosine"
    COSINE_WITH_RESTARTS = "cosine_with_restarts"
    POLYNOMIAL = "polynomial"
    # it stays where the warm-up ended
    CONSTANT = "constant"
    CONSTANT_WITH_WARMUP = "constant_with_warmup"
    # it falls for ever, or only when an evaluation is no better
    INVERSE_SQRT = "inverse_sqrt"
    REDUCE_ON_PLATEAU = "reduce_lr_on_plateau"


class OptimizerNames(ExplicitEnum):
    """Which optimizer updates the weights; the comments say what has to be installed besides torch."""

    ADAMW_HF = "adamw_hf"  # in transformers, until its version 5
    ADAMW_TORCH = "adamw_torch"
    ADAMW_TORCH_FUSED = "adamw_torch_fused"
    ADAMW_TORCH_XLA = "adamw_torch_xla"  # torch_xla
    ADAMW_APEX_FUSED = "adamw_apex_fused"  # apex
    ADAFACTOR = "adafactor"
    ADAMW_ANYPRECISION = "adamw_anyprecision"  # torchdistx
    SGD = "sgd"
    ADAGRAD = "adagrad"
    # from here on: bitsandbytes
    ADAMW_BNB = "adamw_bnb_8bit"
    ADAMW_8BIT = "adamw_8bit"  # the same optimizer as ADAMW_BNB
    LION_8BIT = "lion_8bit"
    LION = "lion_32bit"
    # paged: the optimizer's state moves to the CPU when GPU memory runs out
    PAGED_ADAMW = "paged_adamw_32bit"
    PAGED_ADAMW_8BIT = "paged_adamw_8bit"
    PAGED_LION = "paged_lion_32bit"
    PAGED_LION_8BIT = "paged_lion_8bit"


# -- how the work is spread ---


class ParallelMode(Enum):
    """How several devices share the work; the only one of these sets that is not also a `str`, as upstream."""

    NOT_PARALLEL = "not_parallel"  # one device
    NOT_DISTRIBUTED = "not_distributed"  # one process, several GPUs: torch.nn.DataParallel
    DISTRIBUTED = "distributed"  # one process a GPU: DistributedDataParallel
    SAGEMAKER_MODEL_PARALLEL = "sagemaker_model_parallel"
    SAGEMAKER_DATA_PARALLEL = "sagemaker_data_parallel"
    TPU = "tpu"


class FSDPOption(ExplicitEnum):
    """The words of `fsdp`: one sharding plan, and what to add to it."""

    FULL_SHARD = "full_shard"
    SHARD_GRAD_OP = "shard_grad_op"
    NO_SHARD = "no_shard"
    OFFLOAD = "offload"
    AUTO_WRAP = "auto_wrap"


class ShardedDDPOption(ExplicitEnum):
    """The words of `sharded_ddp`, fairscale's forerunner of FSDP."""

    SIMPLE = "simple"
    ZERO_DP_2 = "zero_dp_2"
    ZERO_DP_3 = "zero_dp_3"
    OFFLOAD = "offload"
    AUTO_WRAP = "auto_wrap"


class HPSearchBackend(ExplicitEnum):
    """Who drives a hyperparameter search."""

    OPTUNA = "optuna"
    RAY = "ray"
    SIGOPT = "sigopt"
    WANDB = "wandb"


# Read next: outputs.py
