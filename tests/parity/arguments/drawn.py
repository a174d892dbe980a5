"""Arguments drawn at random, and everything that making them shows: attributes, warnings, environment, errors."""

from __future__ import annotations

import copy
import os
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from enum import Enum
from typing import Any

import torch
from hypothesis import strategies as st

from ..compare import Said, said_by

# Every field whose value something else depends on, or that is changed or checked after it is set; with values that
# are right, values that are wrong, and values that are wrong only beside others.
INTERESTING: dict[str, list[Any]] = {
    "do_eval": [True],
    "evaluation_strategy": ["no", "steps", "epoch", "sometimes"],
    "logging_strategy": ["no", "steps", "epoch", "never"],
    "save_strategy": ["no", "steps", "epoch", ""],
    "logging_steps": [0, 1, 0.25, 5, 5.0, 2.5, -1],
    "eval_steps": [None, 0, 1, 0.1, 0.25, 0.3, 2, 4.0, 3.5],
    "save_steps": [0, 0.5, 0.3, 1.0, 2, 4, 6.0, 7.5],
    "load_best_model_at_end": [True],
    "metric_for_best_model": ["loss", "eval_loss", "accuracy"],
    "greater_is_better": [True, False],
    "lr_scheduler_type": ["cosine", "reduce_lr_on_plateau", "stairs"],
    "warmup_ratio": [0.1, 1.0, 1.5, -0.1],
    "warmup_steps": [3],
    "hub_strategy": ["end", "checkpoint", "often"],
    "hub_token": ["secret"],
    "push_to_hub_token": ["older secret"],
    "push_to_hub_organization": ["we"],
    "output_dir": ["~/out", "out", "a/b/"],
    "logging_dir": ["~/logs", "logs"],
    "run_name": ["first"],
    "disable_tqdm": [True, False],
    "per_device_train_batch_size": [1, 3],
    "per_gpu_train_batch_size": [2],
    "per_gpu_eval_batch_size": [5],
    "save_safetensors": [True],
    "no_cuda": [True],
    "bf16": [True],
    "bf16_full_eval": [True],
    "fp16": [True],
    "fp16_full_eval": [True],
    "fp16_backend": ["auto", "apex", "cpu_amp"],
    "half_precision_backend": ["cuda_amp", "apex"],
    "tf32": [True, False],
    "optim": ["adamw_torch", "adamw_torch_fused", "sgd", "adamax"],
    "adafactor": [True],
    "ddp_backend": ["gloo"],
    "xpu_backend": ["mpi"],
    "debug": ["", None, "underflow_overflow", "tpu_metrics_debug underflow_overflow", "loud"],
    "tpu_metrics_debug": [True],
    "report_to": [None, "all", ["all"], "none", ["none"], [], "tensorboard", ["wandb", "mlflow"]],
    "sharded_ddp": [
        True,
        False,
        "",
        "simple",
        "offload",
        "simple offload",
        "zero_dp_2 offload",
        "zero_dp_2 zero_dp_3",
    ],
    "fsdp": [True, False, "full_shard", "offload", "full_shard shard_grad_op", "full_shard auto_wrap", "no_shard x"],
    "fsdp_min_num_params": [10],
    "fsdp_transformer_layer_cls_to_wrap": ["BertLayer"],
    "fsdp_config": [
        {},
        {"fsdp_min_num_params": 20},
        {"fsdp_transformer_layer_cls_to_wrap": "T5Block"},
        {"fsdp_transformer_layer_cls_to_wrap": ["T5Block", "GPT2Block"], "fsdp_backward_prefetch": "backward_pre"},
        {"xla": True, "xla_fsdp_settings": {"compute_dtype": "float16"}},
        {"xla": True, "xla_fsdp_grad_ckpt": True},
        {"xla_fsdp_grad_ckpt": True},
        "no/such/file.json",
    ],
    "torch_compile": [True],
    "torch_compile_backend": ["eager"],
    "torch_compile_mode": ["reduce-overhead"],
    "torchdynamo": ["inductor"],
    "log_level": ["debug", "passive"],
    "log_level_replica": ["error", "passive"],
    "log_on_each_node": [False],
    "save_on_each_node": [True],
    "max_steps": [10],
    "label_names": [["labels"], []],
    "ddp_timeout": [60],
    "use_mps_device": [True],
}


@st.composite
def arguments(draw: st.DrawFn) -> dict[str, Any]:
    """A few of the interesting fields, each with one of its values; an output folder always."""
    names = draw(st.lists(st.sampled_from(sorted(INTERESTING)), max_size=7, unique=True))
    return {"output_dir": "out"} | {name: draw(st.sampled_from(INTERESTING[name])) for name in names}


def observe(arguments_class: Any, values: dict[str, Any]) -> dict[str, Any]:
    """Make arguments and return everything that this shows, in words that do not depend on the class's module."""
    with restored_process(), warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        before = dict(os.environ)
        seen: dict[str, Any] = {}
        try:
            made = arguments_class(**copy.deepcopy(values))
        except Exception as error:
            seen["error"] = said_by(error)
        else:
            seen["attributes"] = {name: plain(value) for name, value in vars(made).items() if is_compared(name)}
            seen["texts"] = [without_clock(text) for text in (str(made), repr(made))]
            try:
                seen["texts"].append(without_clock(made.to_json_string()))
            except TypeError as error:  # a dtype in the settings of FSDP on TPUs
                seen["texts"].append(str(error))
            seen["sanitized"] = plain(made.to_sanitized_dict())
            seen["answers"] = {name: plain(getattr(made, name)) for name in QUESTIONS}
            seen["log level"] = made.get_process_log_level()
            seen["warm-up"] = [made.get_warmup_steps(count) for count in (0, 1, 7, 1000)]
        is_ours = arguments_class.__module__.startswith("minitrainer")
        seen["warnings"] = [
            (w.category.__name__, Said(str(w.message), is_ours))
            for w in caught
            if w.category in (FutureWarning, UserWarning)
        ]
        seen["environment"] = {name: value for name, value in os.environ.items() if before.get(name) != value}
        return seen


QUESTIONS = [
    "train_batch_size",
    "eval_batch_size",
    "ddp_timeout_delta",
    "device",
    "n_gpu",
    "parallel_mode",
    "world_size",
    "process_index",
    "local_process_index",
    "should_log",
    "should_save",
    "place_model_on_device",
    "_no_sync_in_gradient_accumulation",
    "framework",
    "default_optim",
]


def is_compared(name: str) -> bool:
    """All but where the two sides keep the device that they have chosen."""
    return name not in ("_setup_devices", "__cached__setup_devices", "distributed_state")


def plain(value: Any) -> Any:
    """A value without the identity of the class that it is a member of."""
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}={value.value}"
    if isinstance(value, dict):
        return {key: plain(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [plain(entry) for entry in value]
    if isinstance(value, str):
        return without_clock(value)
    return (type(value).__name__, value)


def without_clock(text: str) -> str:
    """The default log folder holds the second at which the arguments were made."""
    return re.sub(r"[A-Z][a-z]{2}\d\d_\d\d-\d\d-\d\d", "<date>", text)


@contextmanager
def restored_process() -> Iterator[None]:
    """Undo what making arguments does to the process."""
    environment, allow_tf32 = dict(os.environ), torch.backends.cuda.matmul.allow_tf32
    for name in list(os.environ):
        if name.startswith(("ACCELERATE_", "FSDP_")):
            del os.environ[name]
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(environment)
        torch.backends.cuda.matmul.allow_tf32 = allow_tf32


# Read next: test_arguments_parity.py
