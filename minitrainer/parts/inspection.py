"""Small questions about data sets, functions and models."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from torch import nn

from ..compat import is_deepspeed_zero3_enabled


def has_length(dataset: Any) -> bool:
    """Whether `len(dataset)` works. A loader over a stream has the method, but calling it raises TypeError.

    Source: trainer_utils.py 585-593.
    """
    try:
        return len(dataset) is not None
    except TypeError:
        return False


def number_of_arguments(func: Callable[..., Any]) -> int:
    """Count the parameters that are still open, those bound by `functools.partial` taken off.

    Source: trainer_utils.py 611-618.
    """
    bound_count = 0
    if isinstance(func, functools.partial):
        bound_count = len(func.args) + len(func.keywords)
        func = func.func
    return len(inspect.signature(func).parameters) - bound_count


def get_model_param_count(model: nn.Module, trainable_only: bool = False) -> int:
    """Count the parameters, shared ones once. Under ZeRO stage 3 a tensor is empty here and DeepSpeed knows its size.

    Source: trainer_pt_utils.py 1039-1053.
    """
    size_attribute = "ds_numel" if is_deepspeed_zero3_enabled() else None
    counted = (p for p in model.parameters() if p.requires_grad or not trainable_only)
    return sum(getattr(p, size_attribute) if size_attribute else p.numel() for p in counted)


def get_parameter_names(model: nn.Module, forbidden_layer_types: list[type]) -> list[str]:
    """Name the parameters that do not sit inside a module of the forbidden types; used to spare LayerNorms the decay.

    **Beware:** a forbidden `model` itself is not checked, only its descendants; and a parameter that is registered but
    set to None is named too.

    Source: trainer_pt_utils.py 1056-1069.
    """
    names: list[str] = []
    for child_name, child in model.named_children():
        if not isinstance(child, tuple(forbidden_layer_types)):
            names += [f"{child_name}.{name}" for name in get_parameter_names(child, forbidden_layer_types)]
    return names + list(model._parameters)


def get_module_class_from_name(module: nn.Module, name: str) -> type | None:
    """Find the class of that name among a module and its descendants, depth first; None if there is none.

    Source: trainer_pt_utils.py 1072-1089.
    """
    return next((type(part) for part in module.modules() if type(part).__name__ == name), None)


# Read next: checkpoints.py
