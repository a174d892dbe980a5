"""What one rank does: train a small model, and fail in one of several ways. Ranks are forked with all this imported."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset

import minitrainer
from minitrainer.trace import trace

STEPS = 8
SAVE_STEPS = 2
GROUP = 2
PER_DEVICE_BATCH = 2
ROWS = STEPS * GROUP * PER_DEVICE_BATCH * 2  # one epoch on two ranks
COLLECTIVE_LIMIT_SECONDS = 6
FAULTY_RANK = 1
FAULTY_STEP = 5  # one after a checkpoint


class Rows(Dataset):
    """`length` samples that differ."""

    def __init__(self, length: int):
        generator = torch.Generator().manual_seed(7)
        self.inputs = torch.randn(length, 8, generator=generator)

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"inputs": self.inputs[index], "labels": self.inputs[index].sum() > 0}


class Model(torch.nn.Module):
    """Two layers and a loss; `forward` calls what a fault has put there first."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.body = torch.nn.Linear(8, 8)
        self.head = torch.nn.Linear(8, 2)
        self.before_forward: Any = None

    def forward(self, inputs: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        if self.before_forward is not None and self.training:
            self.before_forward()
        logits = self.head(torch.tanh(self.body(inputs)))
        return {"loss": torch.nn.functional.cross_entropy(logits, labels.long()), "logits": logits}


def build(folder: Path, trainer_class: type = minitrainer.Trainer, **given: Any) -> minitrainer.Trainer:
    """A Trainer that saves, logs and evaluates every two steps."""
    settings: dict[str, Any] = {
        "per_device_train_batch_size": PER_DEVICE_BATCH,
        "gradient_accumulation_steps": GROUP,
        "num_train_epochs": 1,
        "save_steps": SAVE_STEPS,
        "logging_steps": SAVE_STEPS,
        "evaluation_strategy": "steps",
        "eval_steps": SAVE_STEPS,
        "ddp_timeout": COLLECTIVE_LIMIT_SECONDS,
        "no_cuda": True,
        "report_to": [],
        "disable_tqdm": True,
        "optim": "adamw_torch",
        "dataloader_pin_memory": False,
        **given,
    }
    args = minitrainer.TrainingArguments(str(folder / "output"), **settings)
    return trainer_class(Model(), args, train_dataset=Rows(ROWS), eval_dataset=Rows(9))


# -- faults -------------------------------------------------------------------------------------------------


def killed_in_mid_step(trainer: minitrainer.Trainer) -> None:
    """SIGKILL in the forward pass of the second micro-batch of a step."""
    calls = 0

    if trainer.args.process_index != FAULTY_RANK:
        return

    def die_at_last() -> None:
        nonlocal calls
        calls += 1
        if calls == FAULTY_STEP * GROUP:
            os.kill(os.getpid(), signal.SIGKILL)

    trainer.model.before_forward = die_at_last


class ShortOfData(minitrainer.Trainer):
    """Brings its own loader, and on one rank it holds less: a mistake that is easy to make with a sharded stream."""

    def get_train_dataloader(self) -> DataLoader:
        rows = ROWS // 2 - (PER_DEVICE_BATCH * GROUP * 3 if self.args.process_index == FAULTY_RANK else 0)
        return DataLoader(Rows(rows), batch_size=PER_DEVICE_BATCH)


class Forgetful(minitrainer.TrainerCallback):
    """Takes the evaluation back on one rank, as a callback does that decides by something only one rank knows."""

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.process_index == FAULTY_RANK and state.global_step > 4:
            control.should_evaluate = False


def never_evaluates(trainer: minitrainer.Trainer) -> None:
    """One rank goes on training where the others evaluate."""
    trainer.add_callback(Forgetful)


FAULTS: dict[str, Any] = {"killed": killed_in_mid_step, "never evaluates": never_evaluates}
CLASSES: dict[str, type] = {"out of data": ShortOfData}


def rank(
    number: int,
    world_size: int,
    port: int,
    folder: Path,
    fault: str,
    resume: bool,
    collectives: bool,
    machines: int,
    given: dict[str, Any],
) -> None:
    """Run as one rank, with what it prints in a file; the exit status is 1 after an exception.

    With several `machines`, each has an output folder of its own, as without a shared disk.
    """
    ranks_of_machine = world_size // machines
    machine, local_rank = divmod(number, ranks_of_machine)
    os.environ |= {
        "RANK": str(number),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(world_size),
        "LOCAL_WORLD_SIZE": str(ranks_of_machine),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }
    printed = os.open(folder / f"printed{number}.txt", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(printed, 1)
    os.dup2(printed, 2)
    torch.set_num_threads(1)
    disk = folder if machines == 1 else folder / f"machine{machine}"
    trainer = build(disk, CLASSES.get(fault, minitrainer.Trainer), save_on_each_node=machines > 1, **given)
    if fault in FAULTS:
        FAULTS[fault](trainer)
    where = folder / ("resumed" if resume else "trace")
    with trace(trainer, where, scenario=fault, collectives=collectives):
        trainer.train(resume_from_checkpoint=resume or None)
    torch.save(trainer.model.state_dict(), folder / f"weights{number}.pt")
    sys.stdout.flush()
    os._exit(0)  # a rank that has ended does not wait for threads of a group that others have left


# Read next: tests/launch/test_faults.py
