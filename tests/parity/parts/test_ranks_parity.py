"""What gathers across ranks, on two real gloo processes, against the functions of 4.31.0 in the same processes."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as multiprocessing

from minitrainer.parts import gathering, processes

torch_side = pytest.importorskip("transformers.trainer_pt_utils")

pytestmark = pytest.mark.reference

RANKS = 2


def on_each_rank(rank: int, folder: str) -> None:
    """Runs in a process of its own; any failed assertion makes the parent's test fail."""
    os.environ["OMP_NUM_THREADS"] = "1"
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=RANKS)
    try:
        gathered_alike(rank)
        first_goes_first(rank, Path(folder))
        Path(folder, f"done-{rank}").touch()
    finally:
        dist.destroy_process_group()


def gathered_alike(rank: int) -> None:
    """Nested tensors, scalars among them, whole and cut to the data set's length; lists of numbers."""
    mine = torch.arange(6.0).reshape(3, 2) + 10 * rank
    nested = {"a": (mine, [mine.t(), torch.tensor(float(rank))]), "b": mine[:, 0].long()}
    cpu = torch.device("cpu")
    for limit in (None, 1, 5):
        ours = flat(gathering.distributed_concat(nested, limit))
        theirs = flat(torch_side.distributed_concat(nested, limit))
        assert len(ours) == len(theirs) == 4
        assert all(torch.equal(x, y) and x.dtype == y.dtype for x, y in zip(ours, theirs, strict=True))
        numbers = gathering.distributed_broadcast_scalars([rank, rank + 0.5, 7], limit, device=cpu)
        assert torch.equal(numbers, torch_side.distributed_broadcast_scalars([rank, rank + 0.5, 7], limit, device=cpu))
    whole = gathering.distributed_concat(mine)
    assert whole[:, 0].tolist() == [0.0, 2.0, 4.0, 10.0, 12.0, 14.0]  # in the order of the ranks


def flat(nested: Any) -> list[torch.Tensor]:
    """The leaves in order."""
    if isinstance(nested, torch.Tensor):
        return [nested]
    parts = nested.values() if isinstance(nested, dict) else nested
    return [found for part in parts for found in flat(part)]


def first_goes_first(rank: int, folder: Path) -> None:
    """The second process enters only when the first has left; and both count the ranks."""
    written = folder / "written"
    with processes.torch_distributed_zero_first(rank):
        if rank == 0:
            time.sleep(0.3)
            written.touch()
        assert written.exists()
    assert processes.total_processes_number(rank) == RANKS
    assert processes.is_main_process(rank) == (rank == 0)


def test_two_ranks_gather_alike(tmp_path: Path) -> None:
    """Both processes got to their end."""
    multiprocessing.spawn(on_each_rank, args=(str(tmp_path),), nprocs=RANKS)
    assert sorted(path.name for path in tmp_path.glob("done-*")) == ["done-0", "done-1"]


# Read next: ../../parts/test_parts.py
