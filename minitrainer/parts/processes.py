"""Who is first among several processes, and who waits."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist

from ..compat import is_torch_tpu_available


@contextmanager
def torch_distributed_zero_first(local_rank: int) -> Iterator[None]:
    """Let the first process of a machine run the block before the others enter it; they find its cache ready.

    **Beware:** if the first process raises inside the block, the others wait until their timeout.

    Args:
        local_rank: -1 without distributed training (nobody waits), 0 for the one that goes first.

    Source: trainer_pt_utils.py 235-247.
    """
    goes_later = local_rank not in (-1, 0)
    if goes_later:
        dist.barrier()
    yield
    if local_rank == 0:
        dist.barrier()  # the one that the others wait in


def is_main_process(local_rank: int) -> bool:
    """Whether this is the first process of its machine; on TPUs the first of all.

    Source: trainer_utils.py 305-314.
    """
    if is_torch_tpu_available(check_device=True):
        import torch_xla.core.xla_model as xla_model

        return xla_model.get_ordinal() == 0
    return local_rank in (-1, 0)


def total_processes_number(local_rank: int) -> int:
    """Count the ranks; 1 where `local_rank` is -1.

    Source: trainer_utils.py 317-329.
    """
    if is_torch_tpu_available(check_device=True):
        import torch_xla.core.xla_model as xla_model

        return xla_model.xrt_world_size()
    return 1 if local_rank == -1 else dist.get_world_size()


# Read next: search_spaces.py
