"""The program of one rank: train, break off, resume; ours or the real Trainer, as the arguments say.

torchrun --nproc_per_node 2 -m tests.saving.two_ranks FOLDER ours|real [CHECKPOINT]
"""

from __future__ import annotations

import gc
import sys
from pathlib import Path

import torch
import torch.distributed as dist
import transformers

import minitrainer
from tests.saving import subjects


def main(folder: str, side: str, checkpoint: str | None = None) -> None:
    library = minitrainer if side == "ours" else transformers
    # Half the batch on each rank: as many steps as in one process.
    trainer = subjects.build(
        folder,
        library.Trainer,
        library.TrainingArguments,
        per_device_train_batch_size=2,
        load_best_model_at_end=True,
        metric_for_best_model="accuracy",
        learning_rate=0.01,
    )
    with subjects.upstream_may_unpickle():
        trainer.train(resume_from_checkpoint=checkpoint)
    end = {"weights": subjects.parameters(trainer), "states": repr(subjects.random_states())}
    torch.save(end, Path(folder) / f"end_{side}_{dist.get_rank()}.pt")
    dist.barrier()
    # DDP's reducer, which the Trainer holds, must die before its process group: after it, the group's threads are
    # joined under Python's lock, which one of them may be waiting for, and the rank never ends.
    del trainer
    gc.collect()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])

# Read next: tests/parity/test_checkpoints_ranks.py
