"""The smallest training that logs, evaluates and saves."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from minitrainer.arguments import TrainingArguments
from minitrainer.trainer import Trainer


class Line(nn.Module):
    """One weight; learns to double a number."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        prediction = self.weight * x
        return {"loss": ((prediction - labels) ** 2).mean(), "logits": prediction}


EXAMPLES = [{"x": torch.tensor(float(n)), "labels": torch.tensor(2.0 * n)} for n in range(8)]


def train(folder: Path, report_to: list[str], **more: Any) -> Trainer:
    """Four steps of two examples; a log and an evaluation every second step, a checkpoint at the last."""
    chosen: dict[str, Any] = {
        "output_dir": str(folder / "out"),
        "logging_dir": str(folder / "logs"),
        "report_to": report_to,
        "per_device_train_batch_size": 2,
        "num_train_epochs": 1,
        "logging_steps": 2,
        "evaluation_strategy": "steps",
        "save_steps": 4,
        "learning_rate": 0.01,
        "disable_tqdm": True,
        "no_cuda": True,
        "optim": "sgd",
    }
    args = TrainingArguments(**(chosen | more))
    torch.manual_seed(0)
    trainer = Trainer(Line(), args, train_dataset=EXAMPLES, eval_dataset=EXAMPLES[:4])
    trainer.train()
    return trainer


# Read next: test_reporters.py
