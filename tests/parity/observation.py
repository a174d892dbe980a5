"""What one run leaves behind, as plain data: no object of either library survives in it.

Values become nested lists, dicts and leaves that compare without knowing where they came from. A tensor becomes its
dtype, shape and digest; an object becomes its class name and attributes; a clock reading becomes CLOCK.
"""

from __future__ import annotations

import dataclasses
import enum
import functools
import hashlib
import json
import os
import re
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

CLOCK = "<clock>"
CLOCK_KEY = re.compile(r"(_runtime|_per_second|jit_compilation_time|_mem_\w+)$|^(before_)?init_mem_\w+$")

# -- the record ------------------------------------------------------------------------------------------------------


@dataclass
class Failure:
    """One exception.

    Attributes:
        kind: Class name.
        message: Its text.
        raised_in: `trainer` where the library under comparison raised it, otherwise the module that both share.
    """

    kind: str
    message: str
    raised_in: str

    def __str__(self) -> str:
        return f"{self.kind} ({self.raised_in}): {self.message}"


@dataclass
class Observation:
    """Everything that two equal runs have in common.

    Attributes:
        timeline: In order of time: method calls, events with flags and state, forward passes, results, failures.
        final: What is left at the end of each Trainer's life: parameters, optimizer, scheduler, attributes, …
        files: Every file of the output folder: path to content.
        stdout: What was printed, clock readings removed.
        seconds: How long it took; not compared.
    """

    timeline: list[dict[str, Any]] = field(default_factory=list)
    final: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, Any] = field(default_factory=dict)
    stdout: list[str] = field(default_factory=list)
    seconds: float = 0.0


@dataclass(frozen=True)
class Bits:
    """A tensor or array: equal when every bit of it is equal."""

    kind: str
    dtype: str
    shape: tuple[int, ...]
    digest: str
    preview: str

    def __str__(self) -> str:
        return f"{self.kind} {self.dtype}{list(self.shape)} {self.preview} #{self.digest}"


@dataclass(frozen=True)
class Leaf:
    """A scalar whose type matters beside its value, such as numpy.float32."""

    kind: str
    text: str

    def __str__(self) -> str:
        return f"{self.kind}({self.text})"


# -- values ----------------------------------------------------------------------------------------------------------


def digest_of(content: bytes) -> str:
    """A short digest of some bytes."""
    return hashlib.blake2b(content, digest_size=6).hexdigest()


def tensor_bits(tensor: torch.Tensor, kind: str = "tensor") -> Bits:
    """Record every bit of a tensor."""
    plain = tensor.detach().cpu().contiguous()
    content = plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    preview = str(plain.flatten()[:4].tolist())
    return Bits(kind, str(tensor.dtype).removeprefix("torch."), tuple(tensor.shape), digest_of(content), preview)


def array_bits(array: np.ndarray) -> Bits:
    """Record every bit of an array."""
    preview = str(array.flatten()[:4].tolist())
    return Bits("array", str(array.dtype), array.shape, digest_of(np.ascontiguousarray(array).tobytes()), preview)


def plain(value: Any, depth: int = 0) -> Any:
    """Turn any value into comparable plain data.

    Args:
        value: What to record.
        depth: How deep the recursion is; objects more than six levels down are recorded by class name.
    """
    if value is None or type(value) in (bool, int, str):
        return value
    if type(value) is float:
        return value
    if isinstance(value, enum.Enum):
        return Leaf(type(value).__name__, str(value.value))
    if isinstance(value, torch.nn.Parameter):
        return tensor_bits(value, "parameter")
    if isinstance(value, torch.Tensor):
        return tensor_bits(value)
    if isinstance(value, np.ndarray):
        return array_bits(value)
    if isinstance(value, np.generic):
        return Leaf(type(value).__name__, repr(value.item()))
    if isinstance(value, bytes):
        return Leaf("bytes", digest_of(value))
    if isinstance(value, (torch.device, torch.dtype)):
        return Leaf(type(value).__name__, str(value))
    if isinstance(value, dict) or (hasattr(value, "keys") and hasattr(value, "__getitem__")):
        entries = {key if isinstance(key, (str, int)) else repr(key): value[key] for key in list(value.keys())}
        return {"<type>": type(value).__name__} | {
            key: CLOCK if is_clock(key, item) else plain(item, depth + 1) for key, item in entries.items()
        }
    if isinstance(value, tuple) and len(value) > 100 and set(map(type, value)) == {int}:
        return Leaf(f"tuple[{len(value)}]", digest_of(repr(value).encode()))  # Python's random state
    if isinstance(value, (list, tuple)):
        items = [plain(item, depth + 1) for item in value]
        return items if type(value) is list else [f"<{type(value).__name__}>", *items]
    if isinstance(value, (set, frozenset)):
        return [f"<{type(value).__name__}>", *sorted(map(repr, value))]
    if isinstance(value, functools.partial):
        return [
            "<partial>",
            plain(value.func, depth + 1),
            plain(value.args, depth + 1),
            plain(value.keywords, depth + 1),
        ]
    if isinstance(value, type) or callable(value) and hasattr(value, "__qualname__"):
        return Leaf("name", value.__qualname__)
    if dataclasses.is_dataclass(value) and depth < 6:
        return {"<type>": type(value).__name__} | plain_attributes(value, depth)
    return Leaf("object", type(value).__name__)


def plain_attributes(value: Any, depth: int = 0) -> dict[str, Any]:
    """The attributes of an object, in plain data, sorted by name.

    A cached property keeps its value under its own name in Python's way, and behind a prefix in upstream's.
    """
    named = {name.removeprefix("__cached_"): item for name, item in vars(value).items()}
    return {name: plain(item, depth + 1) for name, item in sorted(named.items())}


def is_clock(key: Any, value: Any) -> bool:
    """Whether an entry holds a reading of the clock or of the memory in use, which no two runs share."""
    return isinstance(key, str) and isinstance(value, (int, float)) and CLOCK_KEY.search(key) is not None


# -- files -----------------------------------------------------------------------------------------------------------


def plain_files(folder: str) -> dict[str, Any]:
    """Record every file and empty folder below `folder`: content loaded where its format is known, bytes otherwise."""
    found: dict[str, Any] = {}
    for parent, folders, names in os.walk(folder):
        folders.sort()
        if not names and not folders:
            found[os.path.relpath(parent, folder) + "/"] = "<empty folder>"
        event_files = 0
        for name in sorted(names):
            path = os.path.join(parent, name)
            if ".tfevents." in name:  # the name holds a second, a host and a counter of the process
                path_without_clock = os.path.join(parent, f"events.out.tfevents.{event_files}")
                found[os.path.relpath(path_without_clock, folder)] = plain_events(path)
                event_files += 1
            else:
                found[os.path.relpath(path, folder)] = plain_file(path)
    return dict(sorted(found.items()))


def plain_events(path: str) -> list[Any]:
    """Record a TensorBoard file: step, tag and value of everything in it but the clock."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    return [
        [
            event.step,
            value.tag,
            CLOCK if CLOCK_KEY.search(value.tag.replace("/", "_")) else digest_of(str(value.tensor).encode()),
        ]
        for event in EventFileLoader(path).Load()
        for value in event.summary.value
    ]


def plain_file(path: str) -> Any:
    """Record one file.

    Returns:
        For JSON, its values with the clock removed. For what torch wrote, the loaded values and their types; weights
        and optimizer states add the digest of the file itself, so that they are compared byte for byte. For anything
        else, the digest of the bytes.
    """
    with open(path, "rb") as stream:
        content = stream.read()
    if path.endswith(".json"):
        text = content.decode("utf-8")
        values = plain(json.loads(text))
        has_clock = CLOCK in re.findall(re.escape(CLOCK), repr(values))
        # layout counts too: without a clock reading the text itself must be equal
        return {"values": values, "text": CLOCK if has_clock else text}
    if path.endswith((".bin", ".pt", ".pth")):
        try:
            loaded = torch.load(path, weights_only=False)
        except Exception as error:  # a run that died while writing leaves such a file
            return Leaf("unreadable", type(error).__name__)
        if path.endswith("training_args.bin"):
            return {"<type>": type(loaded).__name__, "attributes": plain_attributes(loaded)}
        return {"values": plain(loaded), "bytes": digest_of(content), "size": len(content)}
    return Leaf(f"bytes[{len(content)}]", digest_of(content))


# Read next: tests/parity/compare.py
