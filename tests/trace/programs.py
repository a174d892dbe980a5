"""A tiny training program for the tests of the recorder: quick, exact, and the same for every library.

`library` is any module with `Trainer`, `TrainingArguments` and `TrainerCallback`: transformers of any version, or
minitrainer. The names of arguments that versions renamed are chosen here.
"""

from __future__ import annotations

import dataclasses
import importlib
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

LIBRARIES = ("transformers", "minitrainer")


def library_named(name: str) -> ModuleType:
    return importlib.import_module(name)


class Line(torch.nn.Module):
    """One linear layer with a squared error, and dropout so that random states matter."""

    def __init__(self, seed: int = 0):
        super().__init__()
        torch.manual_seed(seed)
        self.layer = torch.nn.Linear(8, 1)
        self.dropout = torch.nn.Dropout(0.25)

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        predicted = self.layer(self.dropout(x))
        return {"loss": ((predicted - labels) ** 2).mean(), "logits": predicted}


class Scripted(torch.nn.Module):
    """Gives back the mean of the labels as its loss: whatever the test wants, NaN included."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": labels.mean() + 0.0 * self.weight.sum(), "logits": labels}


class Numbers(torch.utils.data.Dataset):
    def __init__(self, count: int, seed: int = 1, labels: list[float] | None = None):
        generator = torch.Generator().manual_seed(seed)
        self.x = torch.randn(count, 8, generator=generator)
        self.labels = torch.randn(count, 1, generator=generator)
        if labels is not None:
            self.labels = torch.tensor(labels).reshape(-1, 1)

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, position: int) -> dict[str, torch.Tensor]:
        return {"x": self.x[position], "labels": self.labels[position]}


def arguments(library: ModuleType, folder: Path, **given: Any) -> Any:
    """Training arguments for a small run on the CPU, in the words of this library's version."""
    names = {field.name for field in dataclasses.fields(library.TrainingArguments)}
    if "evaluation_strategy" in given and "evaluation_strategy" not in names:
        given["eval_strategy"] = given.pop("evaluation_strategy")
    chosen: dict[str, Any] = {
        "output_dir": str(folder),
        "logging_dir": str(folder / "logs"),
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "num_train_epochs": 1,
        "logging_steps": 2,
        "report_to": [],
        "disable_tqdm": True,
        "remove_unused_columns": False,
        "use_cpu" if "use_cpu" in names else "no_cuda": True,
        **given,
    }
    return library.TrainingArguments(**{name: value for name, value in chosen.items() if name in names})


def trainer(
    library: ModuleType,
    folder: Path,
    rows: int = 16,
    eval_rows: int = 6,
    callbacks: list[Any] | None = None,
    cls: type | None = None,
    model: torch.nn.Module | None = None,
    labels: list[float] | None = None,
    **given: Any,
) -> Any:
    built = (cls or library.Trainer)(
        model=model or Line(),
        args=arguments(library, folder, **given),
        train_dataset=Numbers(rows, labels=labels),
        eval_dataset=Numbers(eval_rows, seed=2),
        callbacks=callbacks,
    )
    return built


# Read next: test_recorder.py
