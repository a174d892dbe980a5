"""What the ranks say to each other: every collective, as torch's dispatcher is asked for it.

    with trace(trainer, "runs/a", collectives=True): trainer.train()
    python -m minitrainer.trace run_glue --nproc 2 --collectives

All collectives, those that DDP starts in C++ while the gradients arrive included, go through operators of the library
`c10d`. A kernel of ours stands before their own one while the trace is on: it writes a row and calls on. Nothing else
is slowed, no collective is added, and its arguments pass through untouched.

Off by default: a big model starts dozens of them in each step.
"""

from __future__ import annotations

import sys
from _thread import get_ident
from collections.abc import Callable
from types import FrameType
from typing import Any

from minitrainer.trace import events
from minitrainer.trace.authors import relative_file
from minitrainer.trace.session import COLLECTIVES_HOOK

KEYS = ("AutogradCPU", "AutogradCUDA")
"""Where the kernels stand: before the backends, on both kinds of device."""

NOT_COLLECTIVES = ("check_for_nan", "monitored_barrier_")
"""Operators of the library that exchange nothing themselves."""

TORCH, OURS = "torch", "minitrainer.trace"

DDP_PARTS = {
    "_sync_module_states": "parameters and buffers, when the model is wrapped",
    "_verify_param_shape_across_processes": "shapes of the parameters, when the model is wrapped",
    "_pre_forward": "buffers, before the forward pass",
    "_sync_buffers": "buffers, before the forward pass",
    "_engine_run_backward": "gradients, in the backward pass",
}
"""Functions of torch that tell which part of DistributedDataParallel a collective belongs to."""


class Collectives:
    """Watches the operators of `c10d` from `attach` to `detach`.

    Args:
        write: takes each record as it is made.
        trouble: takes the name of the hook and an exception, once something of ours fails.
    """

    def __init__(self, write: Callable[[events.Collective], None], trouble: Callable[[str, Exception], None]):
        self._write = write
        self._trouble = trouble
        self._library: Any = None
        self._thread = 0  # the one that trains

    def attach(self) -> str:
        """Put the kernels in place; return "" or the reason why they can't be."""
        import torch

        if not torch.distributed.is_available():
            return "this torch is built without torch.distributed"
        try:
            library = torch.library.Library("c10d", "IMPL")
            for name in collective_operators():
                for key in KEYS:
                    library.impl(name, self._kernel(name), key, with_keyset=True)
        except Exception as error:  # an older dispatcher, or one that another tool has hooked already
            return f"{type(error).__name__}: {error}"
        self._thread = get_ident()
        self._library = library
        return ""

    def detach(self) -> None:
        """Take the kernels away."""
        library, self._library = self._library, None
        if library is not None:
            library._destroy()

    def _kernel(self, name: str) -> Callable[..., Any]:
        import torch

        operator = getattr(torch.ops.c10d, name).default
        position = _position_of_input(operator)
        below = torch._C._after_autograd_keyset

        def kernel(keys: Any, *arguments: Any, **named: Any) -> Any:
            try:
                if self._library is not None:
                    self._write(_record(name, arguments, position, *self._caller(sys._getframe().f_back)))
            except Exception as error:
                self._trouble(COLLECTIVES_HOOK, error)
            return operator.redispatch(keys & below, *arguments, **named)

        return kernel

    def _caller(self, frame: FrameType | None) -> tuple[FrameType | None, str]:
        """The innermost function outside torch around a collective, and which part of DDP asked for it, if one did.

        Args:
            frame: the kernel's caller. With a card, autograd's own thread starts the collectives of a backward pass: it
                has no frames of Python. The thread that trains waits for it meanwhile, and its frames tell.
        """
        found = _outside_torch(frame)
        return found if found[0] is not None else _outside_torch(sys._current_frames().get(self._thread))


def collective_operators() -> list[str]:
    """Names of the operators of `c10d` that exchange something between ranks."""
    import torch

    names = {
        each.partition("::")[2].partition(".")[0]
        for each in torch._C._dispatch_get_all_op_names()
        if each.startswith("c10d::")
    }
    return sorted(names - set(NOT_COLLECTIVES))


def _position_of_input(operator: Any) -> int | None:
    """Which argument holds what this rank gives away."""
    names = [argument.name for argument in operator._schema.arguments]
    for position, name in enumerate(names):
        if name.startswith("input"):
            return position
    return next((position for position, name in enumerate(names) if name.startswith("tensor")), None)


def _record(
    name: str, arguments: tuple[Any, ...], position: int | None, caller: FrameType | None, part: str
) -> events.Collective:
    tensors = [] if position is None or name == "barrier" else list(_tensors_in(arguments[position]))
    return events.Collective(
        collective=name.strip("_"),
        elements=sum(each.numel() for each in tensors),
        dtype=str(tensors[0].dtype).removeprefix("torch.") if tensors else "",
        bytes=sum(each.numel() * each.element_size() for each in tensors),
        ranks=_ranks(arguments),
        by=getattr(caller.f_code, "co_qualname", caller.f_code.co_name) if caller is not None else "",
        part=part,
        file=relative_file(caller) if caller is not None else "",
        line=caller.f_lineno if caller is not None else 0,
    )


def _tensors_in(given: Any) -> Any:
    if isinstance(given, (list, tuple)):
        for each in given:
            yield from _tensors_in(each)
    elif hasattr(given, "numel"):
        yield given


def _ranks(arguments: tuple[Any, ...]) -> int:
    """Size of the group that the collective is for; 0 where this torch does not tell."""
    from torch.distributed import ProcessGroup

    for each in arguments:
        if type(each).__name__ == "ScriptObject" and "ProcessGroup" in str(each._type()):
            unbox = getattr(ProcessGroup, "unbox", None)
            return unbox(each).size() if unbox is not None else 0
    return 0


def _outside_torch(frame: FrameType | None) -> tuple[FrameType | None, str]:
    part = ""
    while frame is not None:
        package = frame.f_globals.get("__name__", "")
        if package != TORCH and not package.startswith((TORCH + ".", OURS)):
            return frame, part
        part = part or DDP_PARTS.get(frame.f_code.co_name, "")
        frame = frame.f_back
    return None, part


# Read next: probes.py, which ties all this to a Trainer.
