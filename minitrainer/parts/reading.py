"""Reading a checkpoint's files without running anything that they say.

A pickle is a program, and `torch.load` as 4.31.0 calls it runs that program. Here a file may hold tensors, plain
containers and numbers, and whatever the caller admits; all else is refused before it runs.
"""

import contextlib
import pickle
import re
from typing import Any

import numpy as np
import torch
from packaging.version import Version

CAN_ADMIT_TYPES = Version(torch.__version__) >= Version("2.6")
"""Whether `torch.load` can admit a type under the name that a file calls it by."""


def _numpy_state_types() -> list[Any]:
    # Files of numpy 1 call the function that rebuilds an array by another module's name than those of numpy 2.
    words = np.random.get_state()[1]  # type: ignore[index]
    rebuild = words.__reduce__()[0]  # type: ignore[union-attr]
    names = [f"{module}.multiarray._reconstruct" for module in ("numpy.core", "numpy._core")]
    return [np.ndarray, np.dtype, type(words.dtype), *((rebuild, name) for name in names)]  # type: ignore[union-attr]


# What numpy's random state consists of, beside strings and numbers: one array of 32-bit words.
NUMPY_STATE_TYPES = _numpy_state_types()


def load_tensors(path: str, map_location: Any = None, also_allowed: list[Any] | None = None) -> Any:
    """Read a file that `torch.save` wrote.

    Args:
        path: the file.
        map_location: the device for its tensors; None means the one that they were saved from.
        also_allowed: types to admit beside tensors, containers and numbers.

    Returns:
        What was saved.

    Raises:
        OSError: if the file cannot be opened.
        pickle.UnpicklingError: if the file is damaged, or names a type that is not admitted.
    """
    if also_allowed and not CAN_ADMIT_TYPES:
        raise pickle.UnpicklingError(
            f"{path} was not loaded: torch {torch.__version__} can't admit single types, so reading it would run whatever"
            " it says. Resume with torch 2.6 or newer."
        )
    admitted = torch.serialization.safe_globals(also_allowed) if also_allowed else contextlib.nullcontext()
    try:
        with admitted:
            return torch.load(path, map_location=map_location, weights_only=True)
    except (OSError, MemoryError, torch.cuda.OutOfMemoryError):
        raise
    except Exception as error:
        # Damage shows as anything from EOFError to a zip reader's RuntimeError; the remedy is the same. torch's own
        # text is not repeated in full, since it advises weights_only=False, the one thing not to do here.
        raise pickle.UnpicklingError(_refusal(path, _reason(error))) from error


def load_safetensors(path: str) -> dict[str, torch.Tensor]:
    """Read a safetensors file into the CPU's memory; the format holds tensors and nothing else.

    Args:
        path: the file.

    Returns:
        The tensors by name.

    Raises:
        OSError: if the file cannot be opened.
        safetensors.SafetensorError: if the file is damaged.
    """
    import safetensors
    import safetensors.torch

    try:
        return safetensors.torch.load_file(path, device="cpu")
    except safetensors.SafetensorError as error:
        raise safetensors.SafetensorError(_refusal(path, str(error))) from error


def _refusal(path: str, reason: str) -> str:
    return (
        f"{path} was not loaded: {reason}. The file is left as it is, and nothing in it was run. If it is damaged or "
        "not yours, resume from another checkpoint. If you wrote it, with a type of your own in it, admit that type "
        "with torch.serialization.add_safe_globals([...]) before you call train()."
    )


def _reason(error: Exception) -> str:
    text = str(error)
    refused = re.search(r"(?:unsupported global:? (?:global )?|unsupported class )([\w.]+)", text, re.IGNORECASE)
    if refused:
        return f"it names {refused[1].rstrip('.')}, which is neither tensor, container nor number"
    return f"{type(error).__name__}: {text.splitlines()[0] if text else 'no further reason'}".rstrip(".")


# Read next: ../resuming.py
