"""Which samples a micro-batch holds: a digest of its tensors, and the positions in the data set where they are known.

The positions are what the loader's batch sampler handed out. They are taken where the loader draws them, and follow the
batch by the identity of its first tensor until the Trainer trains on it.

The digest is taken in the host's memory, where the batch was put together. On a GPU the batch has been copied to the
device before the Trainer sees it, and reading it back would make the host wait; so it is taken just before the copy.
"""

from __future__ import annotations

import weakref
import zlib
from collections import deque
from collections.abc import Mapping
from typing import Any, NamedTuple

MOST_INDICES = 4096
"""More positions than this in one micro-batch are not recorded."""

IGNORED_LABEL = -100
"""Labels with this value do not count towards a loss."""


class Identity(NamedTuple):
    """What is known of a batch in the host's memory."""

    rows: int | None
    labels: int | None
    digest: str | None


class Batches:
    """Follows batches from the loader to the Trainer.

    Args:
        torch: the torch module that is in use (this file must be importable without it).
    """

    def __init__(self, torch: Any):
        self._torch = torch
        self._headers: dict[tuple[Any, ...], int] = {}
        self._drawn: weakref.WeakKeyDictionary[Any, deque[Any]] = weakref.WeakKeyDictionary()
        # id of a batch's first tensor -> (reference to it, positions, identity where it was taken on the host)
        self._known: dict[int, tuple[weakref.ref[Any], list[int] | None, Identity | None]] = {}

    # -- where the loader hands out ------------------------------------------------

    def index_was_drawn(self, iterator: Any, index: Any) -> None:
        """Remember the positions of a batch that this loader is going to fetch."""
        try:
            drawn = self._drawn.get(iterator)
            if drawn is None:
                drawn = self._drawn[iterator] = deque()
            drawn.append(index)
        except TypeError:  # an iterator that can't be referred to weakly
            pass

    def batch_was_fetched(self, iterator: Any, batch: Any) -> None:
        """Tie a fetched batch to the positions that were drawn for it (loaders keep the order)."""
        drawn = self._drawn.get(iterator)
        if not drawn:
            return
        tensor = self._first_tensor(batch)
        index = drawn.popleft()
        if tensor is None:
            return
        if type(index) is not list:  # a batch of one without a batch sampler, or a sampler of the user's own
            index = [index] if type(index) is int else None
        if index is not None and (len(index) > MOST_INDICES or not all(type(i) is int for i in index)):
            index = None
        self._remember(tensor, index, None)

    def batch_was_moved(self, before: Any, after: Any, label_name: str) -> None:
        """Follow a batch that was copied to a device; take its digest while it is still in the host's memory.

        Ranks on CPUs copy too: later versions of accelerate name the device "cpu:0", and torch takes that for another.
        """
        source, target = self._first_tensor(before), self._first_tensor(after)
        if source is None or target is None or source is target or source.device.type != "cpu":
            return
        known = self._recall(source)
        identity = self.identify(before, label_name) if target.device.type != "cpu" else None
        self._remember(target, known[0] if known else None, identity)

    # -- where the Trainer trains ------------------------------------------------------

    def of(self, inputs: Any, label_name: str) -> tuple[Identity, list[int] | None]:
        """Identity and positions of a batch that the Trainer is about to use."""
        tensor = self._first_tensor(inputs)
        if tensor is None:
            return Identity(None, None, None), None
        indices, identity = self._recall(tensor) or (None, None)
        self._known.pop(id(tensor), None)
        if identity is None:
            if tensor.device.type == "cpu":
                identity = self.identify(inputs, label_name)
            else:
                identity = Identity(int(tensor.shape[0]) if tensor.dim() else None, None, None)
        return identity, indices

    def identify(self, inputs: Any, label_name: str) -> Identity:
        """Digest a batch in the host's memory, and count its rows and the labels that matter.

        The digest covers name, element type, shape and bytes of every tensor, in the order of the batch.
        """
        torch = self._torch
        crc = 0
        rows = labels = None
        items = inputs.items() if isinstance(inputs, Mapping) else enumerate(_flat(inputs))
        for name, value in items:
            if not isinstance(value, torch.Tensor):
                continue
            if value.device.type != "cpu" or value.layout is not torch.strided:
                return Identity(rows, labels, None)
            shape = value.shape
            header = (name, value.dtype, shape)
            start = self._headers.get(header)
            if start is None:
                start = self._headers[header] = zlib.crc32(f"{name} {value.dtype} {tuple(shape)}".encode())
            array = self._array(value)
            crc = zlib.crc32(array, crc ^ start)
            if rows is None and shape:
                rows = shape[0]
            if name == label_name:
                labels = array.size if value.is_floating_point() else int((array != IGNORED_LABEL).sum())
        return Identity(rows, labels, f"{crc:08x}")

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
        tensor_class = self._torch.Tensor
        if isinstance(batch, tensor_class):
            return batch
        values = batch.values() if isinstance(batch, Mapping) else batch if isinstance(batch, (list, tuple)) else ()
        for value in values:
            if isinstance(value, tensor_class):
                return value
        for value in values:
            if isinstance(value, (Mapping, list, tuple)):
                tensor = self._first_tensor(value)
                if tensor is not None:
                    return tensor
        return None

    def _remember(self, tensor: Any, indices: list[int] | None, identity: Identity | None) -> None:
        if len(self._known) > 1024:  # batches that nobody trained on, such as those a resume skips
            self._known = {key: entry for key, entry in self._known.items() if entry[0]() is not None}
        self._known[id(tensor)] = (weakref.ref(tensor), indices, identity)

    def _recall(self, tensor: Any) -> tuple[list[int] | None, Identity | None] | None:
        entry = self._known.get(id(tensor))
        if entry is None or entry[0]() is not tensor:
            return None
        return entry[1], entry[2]


def _flat(batch: Any) -> list[Any]:
    """Tensors of a batch that is a list or a tuple, one level deep, or the batch itself."""
    return list(batch) if isinstance(batch, (list, tuple)) else [batch]


# Read next: arithmetic.py, where a logged loss comes from.
