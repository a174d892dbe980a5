"""Samplers: which examples a rank sees, and in which order.

Two ideas and their combinations. *Grouping by length* puts examples of similar length into one batch, so that less
of it is padding. *Sharding* gives each rank its own part, and all ranks equally many, because a rank that has
nothing left to do would leave the others waiting in their next collective operation for ever.
"""

import math
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch.utils.data import Dataset, IterableDataset, RandomSampler, Sampler
from torch.utils.data.distributed import DistributedSampler
from transformers import BatchEncoding

from .logs import get_logger

logger = get_logger(__name__)

# -- grouping by length ---


def get_length_grouped_indices(
    lengths: Sequence[int],
    batch_size: int,
    mega_batch_mult: int | None = None,
    generator: torch.Generator | None = None,
) -> list[int]:
    """Return a random order in which neighbours have similar lengths.

    Shuffle everything, cut into mega-batches, sort each of them from long to short. Batches then hold examples of
    similar length, while which examples meet still changes from epoch to epoch. The longest example of all is moved
    to the very front: if memory is too small, the first step says so.

    Args:
        lengths: the length of each example.
        batch_size: examples in one batch.
        mega_batch_mult: batches in one mega-batch; by default 50, or fewer so that there are at least four of them.
        generator: draws the shuffle; without it torch's global generator does, and its state moves on.

    Source: trainer_pt_utils.py 515-547.
    """
    if mega_batch_mult is None:
        mega_batch_mult = max(1, min(len(lengths) // (batch_size * 4), 50))
    mega_batch_size = mega_batch_mult * batch_size

    shuffled = torch.randperm(len(lengths), generator=generator).tolist()
    mega_batches = [shuffled[start : start + mega_batch_size] for start in range(0, len(lengths), mega_batch_size)]
    for mega_batch in mega_batches:
        # Equal lengths keep their shuffled order: the sort is stable, also when reversed.
        mega_batch.sort(key=lambda index: lengths[index], reverse=True)

    # Each mega-batch begins with its longest, so the longest of all is one of their heads; exchange it with the
    # first. argmax is torch's, as upstream, so a tie falls the same way.
    longest = int(torch.argmax(torch.tensor([lengths[mega_batch[0]] for mega_batch in mega_batches])))
    first_head, longest_head = mega_batches[0][0], mega_batches[longest][0]
    mega_batches[0][0], mega_batches[longest][0] = longest_head, first_head
    return [index for mega_batch in mega_batches for index in mega_batch]


def _example_lengths(dataset: Any, lengths: Any, model_input_name: str | None, sampler_name: str) -> list[int]:
    """Take the lengths as given, or measure the data set: one pass over all of it, before the first step.

    Raises:
        ValueError: without either of the two, or if the examples are not dicts with the named key.
    """
    if lengths is None:
        if dataset is None:
            raise ValueError("pass a dataset, or the lengths of its examples")
        key = "input_ids" if model_input_name is None else model_input_name
        first = dataset[0]
        if not isinstance(first, (dict, BatchEncoding)) or key not in first:
            raise ValueError(
                f"the examples are no dictionaries with the key '{key}', so they cannot be measured: pass lengths"
            )
        return [len(example[key]) for example in dataset]
    if isinstance(lengths, torch.Tensor):
        logger.info(
            f"{sampler_name}: lengths is a torch.Tensor, which is slow to read one by one, and becomes a list."
        )
        return lengths.tolist()
    return lengths


class LengthGroupedSampler(Sampler):
    """Sample the whole data set in length-grouped order, a new one each epoch.

    Args:
        batch_size: examples in one batch over all ranks: the batches are cut from this order later.
        dataset: measured if `lengths` is not given.
        lengths: the length of each example.
        model_input_name: the key whose value's length counts, `input_ids` by default.
        generator: draws the order of every epoch.

    Raises:
        ValueError: as `_example_lengths`.

    Source: trainer_pt_utils.py 550-593.
    """

    def __init__(
        self,
        batch_size: int,
        dataset: Dataset | None = None,  # one of these two
        lengths: list[int] | None = None,
        model_input_name: str | None = None,
        generator: torch.Generator | None = None,
    ):
        self.lengths = _example_lengths(dataset, lengths, model_input_name, type(self).__name__)
        self.batch_size, self.generator = batch_size, generator

    def __len__(self) -> int:
        return len(self.lengths)

    def __iter__(self) -> Iterator[int]:
        return iter(get_length_grouped_indices(self.lengths, self.batch_size, generator=self.generator))


class DistributedLengthGroupedSampler(DistributedSampler):
    """Length-grouped order, dealt out to the ranks one index at a time like cards.

    Not used by the Trainer itself at 4.31.0 (accelerate shards the batches); scripts import it.

    Args:
        batch_size: examples in one batch of the common order.
        dataset: measured if `lengths` is not given.
        num_replicas: the number of ranks; asked from torch.distributed by default.
        rank: this rank; likewise.
        seed: every rank needs the same; the epoch is added to it.
        drop_last: drop the tail that does not fill all ranks, instead of repeating the first examples.
        lengths: the length of each example.
        model_input_name: the key whose value's length counts, `input_ids` by default.

    Raises:
        ValueError: as `_example_lengths`.
        RuntimeError: if the ranks must be asked for and torch was built without distributed support.

    Source: trainer_pt_utils.py 596-681.
    """

    def __init__(
        self,
        batch_size: int,
        dataset: Dataset | None = None,  # this one, or lengths
        num_replicas: int | None = None,
        rank: int | None = None,
        seed: int = 0,  # the same on every rank
        drop_last: bool = False,
        lengths: list[int] | None = None,
        model_input_name: str | None = None,
    ):
        if lengths is None and dataset is None:  # before the ranks are asked for: this error is the more helpful one
            raise ValueError("pass a dataset, or the lengths of its examples")
        self.num_replicas, self.rank = _ranks_and_rank(num_replicas, rank)
        self.lengths = _example_lengths(dataset, lengths, model_input_name, type(self).__name__)
        self.batch_size, self.drop_last = batch_size, drop_last
        self.seed, self.epoch = seed, 0

        example_count = len(self.lengths)
        if drop_last and example_count % self.num_replicas != 0:
            example_count -= self.num_replicas  # rounding up below then gives the full rounds alone
        self.num_samples = math.ceil(example_count / self.num_replicas)  # for one rank
        self.total_size = self.num_samples * self.num_replicas

    def __iter__(self) -> Iterator[int]:
        # Seed and epoch alone decide, so all ranks draw one common order without talking to each other.
        generator = torch.Generator()
        generator.manual_seed(self.seed + self.epoch)
        order = get_length_grouped_indices(self.lengths, self.batch_size, generator=generator)
        if not self.drop_last:
            order += order[: self.total_size - len(order)]
        order = order[: self.total_size]
        assert len(order) == self.total_size

        my_indices = order[self.rank :: self.num_replicas]
        assert len(my_indices) == self.num_samples
        return iter(my_indices)


def _ranks_and_rank(num_replicas: int | None, rank: int | None) -> tuple[int, int]:
    """The number of ranks and this one's number, asked from torch.distributed where not given."""
    if (num_replicas is None or rank is None) and not dist.is_available():
        raise RuntimeError("This torch was built without torch.distributed: pass num_replicas and rank.")
    return (
        dist.get_world_size() if num_replicas is None else num_replicas,
        dist.get_rank() if rank is None else rank,
    )


# -- sharding a map-style data set ---


class DistributedSamplerWithLoop(DistributedSampler):
    """torch's sampler, its end filled up from its beginning until each rank has whole batches.

    Args:
        dataset: the data set.
        batch_size: per device.
        **kwargs: `DistributedSampler`'s own: ranks, shuffle, seed, drop_last.

    Source: trainer_pt_utils.py 250-275.
    """

    def __init__(self, dataset: Any, batch_size: int, **kwargs: Any):
        super().__init__(dataset, **kwargs)
        self.batch_size = batch_size

    def __iter__(self) -> Iterator[int]:
        indices = list(super().__iter__())
        missing = -len(indices) % self.batch_size
        # The lowest ranks' first index stands a second time at the end of the whole order, where torch has evened out
        # the ranks; start behind it.
        start = 1 if self.rank < len(self.dataset) % self.num_replicas else 0  # type: ignore[arg-type]
        return iter(indices + indices[start : start + missing])


class SequentialDistributedSampler(Sampler):
    """Give each rank one contiguous stretch of the data set, so that predictions can be put back in order.

    Args:
        dataset: the data set, of which only the length is used.
        num_replicas: the number of ranks; asked from torch.distributed by default.
        rank: this rank; likewise.
        batch_size: even out to whole batches a rank, not only to equally many examples.

    Raises:
        AssertionError: if the data set is smaller than what has to be repeated to fill all ranks.

    Source: trainer_pt_utils.py 278-331.
    """

    def __init__(
        self, dataset: Any, num_replicas: int | None = None, rank: int | None = None, batch_size: int | None = None
    ):
        warnings.warn(
            "SequentialDistributedSampler is deprecated, and gone in v5 of Transformers.",
            FutureWarning,
            stacklevel=2,
        )
        self.dataset, self.batch_size = dataset, batch_size
        self.num_replicas, self.rank = _ranks_and_rank(num_replicas, rank)
        granule = 1 if batch_size is None else batch_size
        self.num_samples = math.ceil(len(dataset) / (granule * self.num_replicas)) * granule  # for one rank
        self.total_size = self.num_samples * self.num_replicas

    def __iter__(self) -> Iterator[int]:
        example_count = len(self.dataset)
        indices = [*range(example_count), *range(min(example_count, self.total_size - example_count))]
        assert len(indices) == self.total_size, (
            f"{len(indices)} indices for {self.total_size} places: the data set is repeated once at most"
        )
        my_indices = indices[self.rank * self.num_samples :][: self.num_samples]
        assert len(my_indices) == self.num_samples, f"{len(my_indices)} of {self.num_samples} indices for this rank"
        return iter(my_indices)

    def __len__(self) -> int:
        return self.num_samples


class ShardSampler(Sampler):
    """Deal out whole batches in order. With two ranks and batches of four, rank 0 gets 0-3 and 8-11, rank 1 the rest.

    Args:
        dataset: the data set, of which only the length is used.
        batch_size: per device.
        drop_last: drop a last round that does not fill all ranks, instead of repeating from the beginning.
        num_processes: the number of ranks.
        process_index: this rank.

    Source: trainer_pt_utils.py 684-728.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        drop_last: bool = False,
        num_processes: int = 1,
        process_index: int = 0,
    ):
        self.dataset, self.batch_size, self.drop_last = dataset, batch_size, drop_last
        self.num_processes, self.process_index = num_processes, process_index
        self.total_batch_size = batch_size * num_processes  # examples in one round over all ranks

        rounds = len(dataset) / self.total_batch_size
        self.total_num_samples = self.total_batch_size * (math.floor(rounds) if drop_last else math.ceil(rounds))

    def __iter__(self) -> Iterator[int]:
        indices = list(range(len(self.dataset)))  # type: ignore[arg-type]
        while len(indices) < self.total_num_samples:  # more than once where a round is larger than the data set
            indices += indices[: self.total_num_samples - len(indices)]
        my_starts = range(self.batch_size * self.process_index, self.total_num_samples, self.total_batch_size)
        return iter([index for start in my_starts for index in indices[start : start + self.batch_size]])

    def __len__(self) -> int:
        return self.total_num_samples // self.num_processes


def get_tpu_sampler(dataset: Any, batch_size: int) -> Sampler:
    """Shuffle on one TPU core, shard and shuffle on several. `batch_size` plays no part, as upstream.

    Never run on TPU hardware here.

    Source: trainer_pt_utils.py 334-337.
    """
    import torch_xla.core.xla_model as xla_model

    if xla_model.xrt_world_size() > 1:
        return DistributedSampler(dataset, num_replicas=xla_model.xrt_world_size(), rank=xla_model.get_ordinal())
    return RandomSampler(dataset)


# -- sharding a stream ---


class IterableDatasetShard(IterableDataset):
    """Give each rank its slice of every round of a stream; each rank reads the whole stream to know where it is.

    With two ranks and batches of two, the stream 0, 1, 2, … gives rank 0 the examples 0 1 4 5 8 9 and rank 1 the
    examples 2 3 6 7 10 11. A last round that is not full is filled from the first one, or dropped.

    **Beware:** a stream that shuffles must do so alike on all ranks. Give it a `set_epoch` method, or a
    `torch.Generator` in its attribute `generator`: that one is seeded here, with seed + epoch, before each pass.

    Args:
        dataset: the stream.
        batch_size: per device.
        drop_last: drop a last round that is not full.
        num_processes: the number of ranks.
        process_index: this rank.
        seed: the base of the generator's seed.

    Source: trainer_pt_utils.py 731-833.
    """

    def __init__(
        self,
        dataset: Any,
        batch_size: int = 1,
        drop_last: bool = False,
        num_processes: int = 1,
        process_index: int = 0,  # this rank
        seed: int = 0,
    ):
        self.dataset, self.batch_size, self.drop_last = dataset, batch_size, drop_last
        self.num_processes, self.process_index = num_processes, process_index
        self.seed, self.epoch = seed, 0
        self.num_examples = 0  # read from the stream in the current pass, over all ranks: the evaluation asks for it

    def set_epoch(self, epoch: int) -> None:
        """Tell the shard, and a stream that wants to know, which epoch the next pass belongs to."""
        self.epoch = epoch
        if hasattr(self.dataset, "set_epoch"):
            self.dataset.set_epoch(epoch)

    def __iter__(self) -> Iterator[Any]:
        self.num_examples = 0
        generator = getattr(self.dataset, "generator", None)
        if isinstance(generator, torch.Generator) and not hasattr(self.dataset, "set_epoch"):
            generator.manual_seed(self.seed + self.epoch)

        round_size = self.batch_size * self.num_processes
        my_slice = slice(self.process_index * self.batch_size, (self.process_index + 1) * self.batch_size)
        first_round: list[Any] = []
        current: list[Any] = []
        for example in self.dataset:
            self.num_examples += 1
            current.append(example)
            if len(current) == round_size:
                yield from current[my_slice]
                first_round = first_round or current
                current = []

        if current and not self.drop_last:
            filler = first_round or list(current)
            while len(current) < round_size:  # more than once where the whole stream is shorter than a round
                current += filler
            yield from current[my_slice]

    def __len__(self) -> int:
        """The examples of one rank.

        Raises:
            TypeError: if the stream has no length.
        """
        rounds = len(self.dataset) / (self.batch_size * self.num_processes)
        return (math.floor(rounds) if self.drop_last else math.ceil(rounds)) * self.batch_size


# Read next: columns.py
