"""Which samples a micro-batch holds: a digest of its tensors, and the positions in the data set where they are known.

The positions are what the loader's batch sampler handed out. They are taken where the loader draws them, and follow
the batch by the identity of its first tensor until the Trainer trains on it.

The digest is taken in the host's memory, where the batch was put together. On a GPU the batch has been copied to the
device before the Trainer sees it, and reading it back would make the host wait; so it is taken just before the copy.
"""

from __future__ import annotations

import ctypes
import sys
import weakref
from collections import deque
from collections.abc import Iterable
from typing import Any
from zlib import crc32

from xxhash import xxh3_64_intdigest

IGNORED_LABEL = -100
"""Labels with this value do not count towards a loss."""

LARGEST_SEARCHED_BYTES = 1 << 16
"""Integer labels up to this size are searched for `IGNORED_LABEL` as bytes; larger ones are compared one by one."""

Identity = tuple[Any, Any, Any]
"""What is known of a batch in the host's memory: rows, labels, digest."""


class Batches:
    """Follows batches from the loader to the Trainer.

    Args:
        torch: the torch module that is in use (this file must be importable without it).

    Attributes:
        drawer: the iterator that has drawn positions and not fetched their batch; drawn: these positions.
        in_line: what other iterators have drawn, or this one beyond that.
    """

    def __init__(self, torch: Any):
        self._torch = torch
        self._strided = torch.strided
        self._tensor_class = torch.Tensor
        self._plain_kinds = {  # those whose bytes in memory are what NumPy would show
            torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool,
            torch.float64, torch.float32, torch.float16,
        }  # fmt: skip
        # name -> what its tensors had in common so far: shape, element type, digest of these and the name, what gives
        # the bytes at an address (None where they can't be read as they lie), rows, whether all labels count, bytes of
        # one that does not, elements
        self._starts: dict[Any, tuple[Any, Any, int, Any, Any, bool, bytes, int]] = {}
        self.drawer: Any = None
        self.drawn: Any = None
        self.in_line: weakref.WeakKeyDictionary[Any, deque[Any]] = weakref.WeakKeyDictionary()
        # id of a batch's first tensor -> (reference to it, positions, identity where it was taken on the host)
        self._known: dict[int, tuple[weakref.ref[Any], list[Any] | None, Identity | None]] = {}

    # -- where the loader hands out ------------------------------------------------

    def put_in_line(self, iterator: Any, index: Any) -> None:
        """Remember the positions of a batch that a loader is going to fetch, where `drawn` is not enough for it."""
        self.in_line.setdefault(iterator, deque()).append(index)

    def batch_was_fetched(self, iterator: Any, batch: Any) -> None:
        """Tie a fetched batch to the positions that were drawn for it (loaders keep the order)."""
        if self.drawer is iterator:
            index, self.drawer, self.drawn = self.drawn, None, None
        else:
            line = self.in_line.get(iterator)
            if not line:
                return
            index = line.popleft()
            if not line:
                del self.in_line[iterator]
        tensor = self._first_tensor(batch)
        if tensor is None:
            return
        if type(index) is not list:  # a batch of one without a batch sampler, or a sampler of the user's own
            index = [index] if type(index) is int else None
        self._remember(tensor, index, None)

    def batch_was_lost(self, iterator: Any) -> None:
        """Fetching failed: nothing is kept alive for it."""
        if self.drawer is iterator:
            self.drawer = self.drawn = None

    def batch_was_moved(self, before: Any, after: Any, label_name: str) -> None:
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
        tensor = self._first_tensor(inputs)
        if tensor is None:
            return None, None, None, None
        entry = self._known.pop(id(tensor), None)
        indices = None
        if entry is not None and entry[0]() is tensor:
            _, indices, identity = entry
            if identity is not None:
                return *identity, indices
        if not tensor.is_cpu:
            return int(tensor.shape[0]) if tensor.dim() else None, None, None, indices
        rows, labels, digest = self.identify(inputs, label_name)
        return rows, labels, digest, indices

    def identify(self, inputs: Any, label_name: str) -> Identity:
        """Digest a batch in the host's memory, and count its rows and the labels that matter.

        The digest covers name, element type, shape and bytes of every tensor, in the order of the batch.
        """
        tensor_class, starts = self._tensor_class, self._starts
        digest = 0
        rows = labels = None
        for name, value in inputs.items() if type(inputs) is dict else _named(inputs):
            content: Any = None
            if type(value) is tensor_class and name in starts and value.is_cpu:
                shape, kind, start, bytes_at, first, all_count, ignored, elements = starts[name]
                if value.dtype is kind and bytes_at and value.shape == shape and value.is_contiguous():
                    address = value.data_ptr()  # 0 for a storage that was given back
                    if address:
                        content = bytes_at(address)
            if content is None:
                if not isinstance(value, tensor_class):
                    continue
                if not value.is_cpu or value.layout is not self._strided:
                    return rows, labels, None
                _, _, start, _, first, all_count, ignored, elements = self._start(name, value)
                content = self._array(value)
            digest = xxh3_64_intdigest(content, digest ^ start)
            if rows is None:
                rows = first
            if name == label_name:
                if all_count or (ignored and ignored not in bytes(content)):
                    labels = elements
                else:
                    labels = int((self._array(value) != IGNORED_LABEL).sum())
        return rows, labels, digest & 0xFFFFFFFF

    def _start(self, name: Any, tensor: Any) -> tuple[Any, Any, int, Any, Any, bool, bytes, int]:
        """What all tensors of this name, shape and type have in common."""
        size = tensor.numel() * tensor.element_size()
        shape, kind = tensor.shape, tensor.dtype
        ignored = b""
        if kind in (self._torch.int64, self._torch.int32) and size <= LARGEST_SEARCHED_BYTES:
            ignored = IGNORED_LABEL.to_bytes(tensor.element_size(), sys.byteorder, signed=True)
        start = self._starts[name] = (
            shape,
            kind,
            crc32(f"{name} {kind} {tuple(shape)}".encode()),
            (ctypes.c_char * size).from_address if kind in self._plain_kinds and size else None,
            shape[0] if shape else None,
            tensor.is_floating_point(),
            ignored,
            tensor.numel(),
        )
        return start

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
