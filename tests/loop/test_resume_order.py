"""In which order a resumed run sees its examples: as the unbroken one, but for one flaw that 4.31.0 has too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import minitrainer

EXAMPLES, PER_STEP, EPOCHS = 12, 2, 3
STEPS = EXAMPLES // PER_STEP


class Watched(nn.Module):
    """One layer, and a list of the examples that it was trained on.

    Args:
        dropout: the share of outputs that are dropped; above 0 the model draws random numbers.
    """

    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.out, self.dropout = nn.Linear(1, 1), nn.Dropout(dropout)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        self.seen.append(tuple(int(number) for number in x.flatten()))
        return {"loss": (self.dropout(self.out(x)) ** 2).mean()}


def order(folder: Path, dropout: float, checkpoint: Path | None = None) -> list[tuple[int, ...]]:
    """The examples of every step that one run makes."""
    arguments = minitrainer.TrainingArguments(
        output_dir=str(folder), no_cuda=True, report_to=[], disable_tqdm=True, save_steps=1, num_train_epochs=EPOCHS,
        per_device_train_batch_size=PER_STEP, dataloader_pin_memory=False,
    )  # fmt: skip
    model = Watched(dropout)
    rows: Any = [{"x": torch.tensor([float(number)]), "labels": torch.tensor(0)} for number in range(EXAMPLES)]
    trainer = minitrainer.Trainer(model, arguments, train_dataset=rows)
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return model.seen


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_only_dropout_in_the_middle_of_a_later_epoch_changes_the_order(dropout: float, tmp_path: Path) -> None:
    """Resumed in the first epoch, at an epoch's end, and in the second epoch; the docstring of train warns of the last."""
    unbroken = order(tmp_path / "unbroken", dropout)
    for done in (2, STEPS, STEPS + 2):
        resumed = order(tmp_path / f"resumed-{done}", dropout, tmp_path / "unbroken" / f"checkpoint-{done}")
        assert len(resumed) == EPOCHS * STEPS - done
        if dropout == 0.0 or done != STEPS + 2:
            assert resumed == unbroken[done:]
            continue
        rest_of_epoch = 2 * STEPS - done
        assert resumed[:rest_of_epoch] != unbroken[done : 2 * STEPS]
        assert resumed[rest_of_epoch:] == unbroken[2 * STEPS :]


# Read next: test_compat.py
