"""Which samples a micro-batch holds: a digest of its tensors, and the positions in the data set where they are known.

The positions are what the loader's batch sampler handed out. They are taken where the batch is put together, or where
it comes back from a worker, and follow it by the identity of its first tensor until the Trainer trains on it.

The digest is taken in the host's memory, where the batch was put together. On a GPU the batch has been copied to the
device before the Trainer sees it, and reading it back would make the host wait; so it is taken just before the copy.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Iterable
from typing import Any, NamedTuple
from zlib import crc32

from xxhash import xxh3_64_intdigest

try:
    from minitrainer.trace._native import identify as like_the_last
except ImportError:  # there was no compiler

    def like_the_last(*_: Any) -> None:  # type: ignore[misc]
        """Leaves every batch to the Python."""


IGNORED_LABEL = -100
"""Labels with this value do not count towards a loss."""

Identity = tuple[Any, Any, Any]
"""What is known of a batch in the host's memory: rows, labels, digest."""


class Layout(NamedTuple):
    """What tensors of one name have in common as long as shape and type stay the same. _native.c reads it, too.

    Attributes:
        shape, dtype: of the tensor.
        start: digest of these and the name.
        size_bytes: of all elements; 0 where they can't be read as they lie in memory.
        rows: length of the first dimension, or None.
        elements: how many there are.
        label_bytes: of one element, if such a tensor may hold labels that do not count: 0 for floats, which all do, and
            -1 for integers of other sizes than four and eight bytes.
    """

    shape: Any
    dtype: Any
    start: int
    size_bytes: int
    rows: int | None
    elements: int
    label_bytes: int


class Batches:
    """Follows batches from the loader to the Trainer.

    Args:
        torch: the torch module that is in use (this file must be importable without it).
    """

    def __init__(self, torch: Any):
        self._torch = torch
        self._strided = torch.strided
        self._tensor_class = torch.Tensor
        self._plain_kinds = {  # those whose bytes in memory are what NumPy would show
            torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
            torch.float64, torch.float32, torch.float16,
        }  # fmt: skip
        self._layouts: dict[Any, Layout] = {}  # by name, of the last tensor
        self._in_line: weakref.WeakKeyDictionary[Any, deque[Any]] = weakref.WeakKeyDictionary()
        # id of a batch's first tensor -> (reference to it, positions, identity where it was taken on the host)
        self._known: dict[int, tuple[weakref.ref[Any], list[Any] | None, Identity | None]] = {}

    # -- where the loader hands out ------------------------------------------------

    def was_fetched(self, batch: Any, positions: Any) -> None:
        """Remember the positions of a batch that was put together here."""
        tensor = self._first_tensor(batch)
        if tensor is not None:
            if type(positions) is not list:  # a batch of one without a batch sampler, or a sampler of the user's own
                positions = [positions] if type(positions) is int else None
            self._remember(tensor, positions, None)

    def put_in_line(self, iterator: Any, positions: Any) -> None:
        """Remember the positions of a batch that will come out of an iterator (loaders keep the order)."""
        self._in_line.setdefault(iterator, deque()).append(positions)

    def came_out(self, iterator: Any, batch: Any) -> None:
        """Tie a batch to the positions that have been in line for the longest time; None for a batch that failed."""
        line = self._in_line.get(iterator)
        if line:
            self.was_fetched(batch, line.popleft())

    def was_moved(self, before: Any, after: Any, label_name: str) -> None:
        """Follow a batch that was copied to a device; take its digest while it is still in the host's memory.

        Ranks on CPUs copy too: later versions of accelerate name the device "cpu:0", and torch takes that for another.
        """
        source, target = self._first_tensor(before), self._first_tensor(after)
        if source is None or target is None or source is target or not source.is_cpu:
            return
        known = self._recall(source)
        identity = self.identify(before, label_name) if target.device.type != "cpu" else None
        self._remember(target, known[0] if known else None, identity)

    # -- where the Trainer trains ------------------------------------------------------

    def of(self, inputs: Any, label_name: str) -> tuple[int | None, int | None, int | None, list[Any] | None]:
        """Rows, labels, digest and positions of a batch that the Trainer is about to use."""
        found = like_the_last(inputs, self._layouts, label_name, self._tensor_class, xxh3_64_intdigest)
        tensor = self._first_tensor(inputs) if found is None else found[3]
        if tensor is None:
            return None, None, None, None
        entry = self._known.pop(id(tensor), None)
        positions = None
        if entry is not None and entry[0]() is tensor:
            _, positions, identity = entry
            if identity is not None:
                return *identity, positions
        rows, labels, digest = self.identify(inputs, label_name) if found is None else found[:3]
        return rows, labels, digest, positions

    def identify(self, inputs: Any, label_name: str) -> Identity:
        """Digest a batch, and count its rows and the labels that matter.

        The digest covers name, element type, shape and bytes of every tensor, in the order of the batch. Where one of
        them is not in the host's memory there is no digest, and labels are counted only before it.
        """
        digest = 0
        rows = labels = None
        for name, value in inputs.items() if type(inputs) is dict else _named(inputs):
            if not isinstance(value, self._tensor_class):
                continue
            if not value.is_cpu or value.layout is not self._strided:
                if rows is None and value.dim():
                    rows = int(value.shape[0])
                return rows, labels, None
            layout = self._layouts[name] = self._layout(name, value)
            content = self._array(value)
            digest = xxh3_64_intdigest(content, digest ^ layout.start)
            if rows is None:
                rows = layout.rows
            if name == label_name:
                labels = int((content != IGNORED_LABEL).sum()) if layout.label_bytes else layout.elements
        return rows, labels, digest & 0xFFFFFFFF

    def _layout(self, name: Any, tensor: Any) -> Layout:
        """What tensors of this name, shape and type have in common."""
        known = self._layouts.get(name)
        shape, kind = tensor.shape, tensor.dtype
        if known is not None and known.shape == shape and known.dtype is kind:
            return known
        size = tensor.element_size()
        counts_all = tensor.is_floating_point()
        return Layout(
            shape=shape,
            dtype=kind,
            start=crc32(f"{name} {kind} {tuple(shape)}".encode()),
            size_bytes=tensor.numel() * size if kind in self._plain_kinds else 0,
            rows=shape[0] if shape else None,
            elements=tensor.numel(),
            label_bytes=0 if counts_all else size if kind in (self._torch.int64, self._torch.int32) else -1,
        )

    def _array(self, tensor: Any) -> Any:
        """The bytes of a tensor as a NumPy array that shares its memory."""
        tensor = tensor.detach() if tensor.requires_grad else tensor
        if not tensor.is_contiguous():
            tensor = tensor.contiguous()
        try:
            return tensor.numpy()
        except (TypeError, RuntimeError):  # an element type that NumPy does not have, or a pending conjugation
            return tensor.resolve_conj().resolve_neg().reshape(-1).view(self._torch.uint8).numpy()

    def _first_tensor(self, batch: Any) -> Any:
        tensor_class = self._tensor_class
        if type(batch) is dict:
            values: Any = batch.values()
            for value in values:
                if type(value) is tensor_class:
                    return value
                break
        elif isinstance(batch, tensor_class):
            return batch
        elif hasattr(batch, "values"):
            values = batch.values()
        elif isinstance(batch, (list, tuple)):
            values = batch
        else:
            return None
        for value in values:
            if isinstance(value, tensor_class):
                return value
        for value in values:
            tensor = self._first_tensor(value)
            if tensor is not None:
                return tensor
        return None

    def _remember(self, tensor: Any, indices: list[Any] | None, identity: Identity | None) -> None:
        if len(self._known) > 1024:  # batches that nobody trained on, such as those a resume skips
            self._known = {key: entry for key, entry in self._known.items() if entry[0]() is not None}
        self._known[id(tensor)] = weakref.ref(tensor), indices, identity

    def _recall(self, tensor: Any) -> tuple[list[Any] | None, Identity | None] | None:
        entry = self._known.get(id(tensor))
        if entry is None or entry[0]() is not tensor:
            return None
        return entry[1], entry[2]


def _named(batch: Any) -> Iterable[tuple[Any, Any]]:
    """Names and tensors of a batch that is no plain dict; a list or a tuple has positions for names."""
    if hasattr(batch, "items"):
        return batch.items()
    return enumerate(batch if isinstance(batch, (list, tuple)) else [batch])


# Read next: arithmetic.py, where a logged loss comes from.
