"""What a trace says of the training arguments: those that differ from their defaults, without paths or secrets."""

from __future__ import annotations

import dataclasses
import os
import re
from typing import Any

from minitrainer.trace.recorder import plain

NOT_RECORDED = frozenset(
    {
        "output_dir",
        "logging_dir",
        "run_name",
        "report_to",
        "hub_token",
        "push_to_hub_token",
        "hub_model_id",
        "local_rank",
        "ddp_backend",
        "deepspeed_plugin",
        "log_level",
        "distributed_state",
    }
)
"""Fields that name a place, a secret or what the machine filled in. Callbacks in use stand in the record anyway."""

_ABSOLUTE_PATH = re.compile(r"(?<![\w/.:])(?:/[\w.+@%=~,-]+)+/?|[A-Za-z]:\\[\w.\\ -]+")


def describe_arguments(args: Any) -> dict[str, Any]:
    """Fields of a dataclass of arguments that differ from their defaults, as plain values, in the class's order."""
    if not dataclasses.is_dataclass(args):
        return {}
    described: dict[str, Any] = {}
    for field in dataclasses.fields(args):
        if not field.init or field.name in NOT_RECORDED or field.name.startswith("_"):
            continue
        value = plain(getattr(args, field.name, None))
        if value != _default(field) and not _means_nothing(value, _default(field)):
            described[field.name] = reduce_paths(value) if isinstance(value, str) else value
    return described


def _default(field: dataclasses.Field[Any]) -> Any:
    if field.default is not dataclasses.MISSING:
        return plain(field.default)
    if field.default_factory is not dataclasses.MISSING:
        return plain(field.default_factory())
    return None


def _means_nothing(value: Any, default: Any) -> bool:
    """Whether a value is only the filled-in form of its default: an empty list for "", an enumeration for its name."""
    empty: tuple[Any, ...] = (None, "", [], {}, False)
    if value in empty and default in empty and not (value is False or default is False):
        return True
    return (
        isinstance(value, dict)
        and default in empty
        and not any(item not in (*empty, 0) for key, item in value.items() if key not in _FILLED_IN)
    )


_FILLED_IN = frozenset(
    """
    xla xla_fsdp_v2 xla_fsdp_grad_ckpt min_num_params split_batches dispatch_batches even_batches use_seedable_sampler
    non_blocking gradient_accumulation_kwargs use_configured_state fsdp_version
    """.split()
)
"""Keys that `__post_init__` fills into configuration dicts that the user left empty."""


def reduce_paths(text: str) -> str:
    """Reduce absolute paths in a text to their last part, so that it is the same on every machine."""

    def last_part(match: re.Match[str]) -> str:
        path = match.group(0).rstrip("/\\")
        return os.path.basename(path.replace("\\", "/")) if path.count("/") > 1 or "\\" in path else match.group(0)

    return _ABSOLUTE_PATH.sub(last_part, text)


# Read next: probes.py, what is hooked and what each hook writes.
