"""Nested tensors: what a model returns, padded, joined, moved to the CPU and collected from all ranks.

A model may return one tensor, a tuple, a list or a dict of them, nested at will. Every function here walks that
nesting and keeps its types. Two batches of different sequence length are padded on dimension 1 with -100, the
value that losses and metrics ignore.
"""

import math
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from ..compat import is_torch_tpu_available
from .logs import get_logger

logger = get_logger(__name__)

PADDING_INDEX = -100
_FIRST_GPU = torch.device("cuda")


def _map_nested(function: Callable[[Any], Any], tensors: Any) -> Any:
    """Apply a function to every leaf and rebuild the same lists, tuples and mappings around the results."""
    if isinstance(tensors, (list, tuple)):
        return type(tensors)(_map_nested(function, t) for t in tensors)  # type: ignore[call-arg]
    if isinstance(tensors, Mapping):
        return type(tensors)({k: _map_nested(function, t) for k, t in tensors.items()})  # type: ignore[call-arg]
    return function(tensors)


# -- leaf by leaf ---


def nested_detach(tensors: Any) -> Any:
    """Cut every tensor from the graph that computed it, so that the graph's memory is freed.

    Source: trainer_pt_utils.py 163-169.
    """
    return _map_nested(lambda tensor: tensor.detach(), tensors)


def nested_numpify(tensors: Any) -> Any:
    """Move every tensor to the CPU as a numpy array; waits for the device. bfloat16 becomes float32.

    Source: trainer_pt_utils.py 147-160.
    """

    def to_numpy(tensor: torch.Tensor) -> np.ndarray:
        tensor = tensor.cpu()
        # numpy has no bfloat16; float32 holds each of its values exactly.
        return (tensor.float() if tensor.dtype == torch.bfloat16 else tensor).numpy()

    return _map_nested(to_numpy, tensors)


def nested_truncate(tensors: Any, limit: int) -> Any:
    """Keep the first `limit` entries of every tensor or array.

    Source: trainer_pt_utils.py 354-361.
    """
    return _map_nested(lambda tensor: tensor[:limit], tensors)


def nested_new_like(arrays: Any, num_samples: int, padding_index: int = PADDING_INDEX) -> Any:
    """Allocate the same nesting with `num_samples` rows, filled with padding.

    **Beware:** inside a list or tuple the padding is always -100, whatever was asked for; and dicts are not walked.

    Source: trainer_pt_utils.py 340-344.
    """
    if isinstance(arrays, (list, tuple)):
        return type(arrays)(nested_new_like(array, num_samples) for array in arrays)
    return np.full_like(arrays, padding_index, shape=(num_samples, *arrays.shape[1:]))


def expand_like(arrays: np.ndarray, new_seq_length: int, padding_index: int = PADDING_INDEX) -> np.ndarray:
    """Widen dimension 1 to `new_seq_length`, the new columns filled with padding.

    Source: trainer_pt_utils.py 347-351.
    """
    rows, columns, *rest = arrays.shape
    wider = np.full_like(arrays, padding_index, shape=(rows, new_seq_length, *rest))
    wider[:, :columns] = arrays
    return wider


def atleast_1d(tensor_or_array: Any) -> Any:
    """Give a scalar a dimension, so that it can be concatenated; leave everything else as it is.

    Source: trainer_pt_utils.py 58-66.
    """
    as_vector = torch.atleast_1d if isinstance(tensor_or_array, torch.Tensor) else np.atleast_1d
    return as_vector(tensor_or_array)


def find_batch_size(tensors: Any) -> int | None:
    """Return the first dimension of the first tensor that has one; None if there is none.

    Source: trainer_pt_utils.py 127-144.
    """
    if isinstance(tensors, (torch.Tensor, np.ndarray)):
        return tensors.shape[0] if tensors.ndim >= 1 else None
    children: Any = ()
    if isinstance(tensors, (list, tuple)):
        children = tensors
    elif isinstance(tensors, Mapping):
        children = tensors.values()
    sizes = (find_batch_size(child) for child in children)
    return next((size for size in sizes if size is not None), None)


# -- joining two batches ---


def nested_concat(tensors: Any, new_tensors: Any, padding_index: int = PADDING_INDEX) -> Any:
    """Append one batch of predictions to those before it, leaf by leaf.

    Args:
        tensors: what was collected so far.
        new_tensors: the next batch, with the same nesting.
        padding_index: fills dimension 1 of the shorter side where the sequence lengths differ.

    Raises:
        AssertionError: if the two are not of one type.
        TypeError: if a leaf is neither tensor nor array.

    Source: trainer_pt_utils.py 105-124.
    """
    types = (type(tensors), type(new_tensors))
    assert types[0] is types[1], (
        f"`tensors` is a {types[0]} and `new_tensors` a {types[1]}: only two of one type can be joined."
    )
    if isinstance(tensors, (list, tuple)):
        pairs = zip(tensors, new_tensors, strict=False)  # the longer side loses its tail, as upstream
        return type(tensors)(nested_concat(old, new, padding_index) for old, new in pairs)
    if isinstance(tensors, torch.Tensor):
        return torch_pad_and_concatenate(tensors, new_tensors, padding_index)
    if isinstance(tensors, np.ndarray):
        return numpy_pad_and_concatenate(tensors, new_tensors, padding_index)
    if isinstance(tensors, Mapping):
        joined = {key: nested_concat(old, new_tensors[key], padding_index) for key, old in tensors.items()}
        return type(tensors)(joined)  # type: ignore[call-arg]
    raise TypeError(f"Unsupported type for concatenation: got {type(tensors)}")


def torch_pad_and_concatenate(
    tensor1: torch.Tensor, tensor2: torch.Tensor, padding_index: int = PADDING_INDEX
) -> torch.Tensor:
    """Put the second tensor below the first; where dimension 1 differs, pad the shorter of them.

    Source: trainer_pt_utils.py 69-84.
    """
    tensor1, tensor2 = atleast_1d(tensor1), atleast_1d(tensor2)
    if tensor1.dim() == 1 or tensor1.shape[1] == tensor2.shape[1]:
        return torch.cat([tensor1, tensor2])
    return _stack_padded(tensor1, tensor2, lambda shape: tensor1.new_full(shape, padding_index))


def numpy_pad_and_concatenate(
    array1: np.ndarray, array2: np.ndarray, padding_index: int = PADDING_INDEX
) -> np.ndarray:
    """The same for arrays. The result has the first array's type when padded, numpy's common type otherwise.

    Source: trainer_pt_utils.py 87-102.
    """
    array1, array2 = atleast_1d(array1), atleast_1d(array2)
    if array1.ndim == 1 or array1.shape[1] == array2.shape[1]:
        return np.concatenate([array1, array2])
    return _stack_padded(array1, array2, lambda shape: np.full_like(array1, padding_index, shape=shape))


def _stack_padded(upper: Any, lower: Any, new_filled: Callable[[tuple[int, ...]], Any]) -> Any:
    """Copy both into a fresh block wide enough for the wider one."""
    rows, columns = upper.shape[:2]
    stacked = new_filled((rows + lower.shape[0], max(columns, lower.shape[1]), *upper.shape[2:]))
    stacked[:rows, :columns] = upper
    stacked[rows:, : lower.shape[1]] = lower
    return stacked


# -- across ranks ---


def distributed_concat(tensor: Any, num_total_examples: int | None = None) -> Any:
    """Collect every rank's tensor on every rank, one below the other in rank order. Waits for all ranks.

    All ranks must hold the same shape: `all_gather` neither pads nor checks.

    Args:
        tensor: nested tensors.
        num_total_examples: cut each result to this length, dropping what a sampler added to even out the ranks.

    Raises:
        AssertionError: if torch reports by an assertion that there is no process group.

    Source: trainer_pt_utils.py 189-205.
    """

    def gather(leaf: torch.Tensor) -> torch.Tensor:
        return _all_gather(atleast_1d(leaf).contiguous(), num_total_examples)

    return _map_nested(gather, tensor)


def distributed_broadcast_scalars(
    scalars: list[int | float],
    num_total_examples: int | None = None,
    device: torch.device | None = _FIRST_GPU,
) -> torch.Tensor:
    """Collect every rank's list of numbers on every rank, one after the other in rank order.

    **Beware:** despite its name it gathers, and its default device is a GPU; on CPU ranks pass the device.

    Source: trainer_pt_utils.py 208-224.
    """
    return _all_gather(torch.tensor(scalars).to(device), num_total_examples)


def _all_gather(mine: torch.Tensor, num_total_examples: int | None) -> torch.Tensor:
    """Concatenate all ranks' tensors on dimension 0 and cut the result if a length is given."""
    try:
        from_each_rank = [mine.clone() for _ in range(dist.get_world_size())]
        dist.all_gather(from_each_rank, mine)
    except AssertionError as error:
        raise AssertionError("Not currently using distributed training") from error
    return torch.cat(from_each_rank, dim=0)[:num_total_examples]


def nested_xla_mesh_reduce(tensors: Any, name: str) -> Any:
    """Collect nested tensors from all TPU cores; each leaf needs a name of its own, so their positions are added.

    Never run on TPU hardware here.

    Raises:
        ImportError: without torch_xla and a device.

    Source: trainer_pt_utils.py 172-186.
    """
    if not is_torch_tpu_available():
        raise ImportError("`nested_xla_mesh_reduce` needs torch_xla and a device.")
    import torch_xla.core.xla_model as xla_model

    if isinstance(tensors, (list, tuple)):
        return type(tensors)(nested_xla_mesh_reduce(t, f"{name}_{place}") for place, t in enumerate(tensors))
    if isinstance(tensors, Mapping):
        named = enumerate(tensors.items())
        reduced = {key: nested_xla_mesh_reduce(t, f"{name}_{place}") for place, (key, t) in named}
        return type(tensors)(reduced)  # type: ignore[call-arg]
    return xla_model.mesh_reduce(name, atleast_1d(tensors), torch.cat)


class DistributedTensorGatherer:
    """Puts the predictions of all ranks back into the order of the data set, batch by batch, on the CPU.

    `SequentialDistributedSampler` gives each rank one contiguous stretch of the data. With 16 examples on 3 ranks
    that is 18 indices, two of them repeated:

        rank 0   0  1  2  3  4  5
        rank 1   6  7  8  9 10 11
        rank 2  12 13 14 15  0  1

    A gather after the first batch of two brings 0 1, 6 7 and 12 13 in one array. Concatenating such arrays would
    shuffle the data set; this class knows where each rank's stretch begins and writes every part there. Only the
    deprecated `prediction_loop` still uses it.

    Args:
        world_size: the number of ranks.
        num_samples: the number of examples in the data set.
        make_multiple_of: the per-device batch size, if the sampler evened out to whole batches.
        padding_index: fills dimension 1 where sequence lengths differ.

    Source: trainer_pt_utils.py 364-469.
    """

    def __init__(
        self,
        world_size: int,
        num_samples: int,
        make_multiple_of: int | None = None,
        padding_index: int = PADDING_INDEX,
    ):
        warnings.warn(
            "DistributedTensorGatherer is deprecated, and gone in v5 of Transformers.",
            FutureWarning,
            stacklevel=2,
        )
        self.world_size, self.num_samples, self.padding_index = world_size, num_samples, padding_index
        granule = world_size * (1 if make_multiple_of is None else make_multiple_of)
        self.total_samples = math.ceil(num_samples / granule) * granule  # what the sampler hands out, over all ranks
        self.process_length = self.total_samples // world_size  # and to each of them
        self._storage: Any = None  # all predictions, allocated at the first batch
        self._offsets: list[int] = []  # for each rank, the row where its next batch goes

    def add_arrays(self, arrays: Any) -> None:
        """Store one gathered batch. The first call allocates for the whole data set: memory runs out early or never.

        Args:
            arrays: lists or tuples of arrays (not dicts); first dimension `world_size` equal parts in rank order.

        Raises:
            AssertionError: if the first dimension cannot be divided by the number of ranks.
        """
        if arrays is None:
            return
        if self._storage is None:
            self._offsets = list(range(0, self.total_samples, self.process_length))
            self._storage = nested_new_like(arrays, self.total_samples, padding_index=self.padding_index)
        rows_per_rank, self._storage = self._nested_set_tensors(self._storage, arrays)
        self._offsets = [offset + rows_per_rank for offset in self._offsets]

    def _nested_set_tensors(self, storage: Any, arrays: Any) -> tuple[int, Any]:
        """Write each rank's rows to that rank's place; return the rows per rank and the storage, perhaps widened."""
        if isinstance(arrays, (list, tuple)):
            written = [self._nested_set_tensors(s, a) for s, a in zip(storage, arrays, strict=False)]
            return written[0][0], type(arrays)(leaf for _, leaf in written)
        assert arrays.shape[0] % self.world_size == 0, (
            f"rows that {self.world_size} ranks cannot have contributed evenly: {arrays.shape[0]}"
        )
        rows_per_rank = arrays.shape[0] // self.world_size
        if arrays.ndim > 1 and storage.ndim > 1 and storage.shape[1] < arrays.shape[1]:
            storage = expand_like(storage, arrays.shape[1], padding_index=self.padding_index)
        for rank, offset in enumerate(self._offsets):
            rank_rows = arrays[rank * rows_per_rank : (rank + 1) * rows_per_rank]
            place = storage[offset : offset + rows_per_rank]
            if arrays.ndim == 1:
                place[:] = rank_rows
            else:
                place[:, : arrays.shape[1]] = rank_rows
        return rows_per_rank, storage

    def finalize(self) -> Any:
        """Return everything in the order of the data set, without the examples that evened out the ranks."""
        if self._storage is None:
            return None
        if self._offsets[0] != self.process_length:
            logger.warning("finalize() comes before all arrays were added: some rows of the result are padding.")
        return nested_truncate(self._storage, self.num_samples)


# Read next: metrics.py
