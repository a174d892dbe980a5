"""A tiny T5 and a set of number sequences to copy, for Seq2SeqTrainer of either side."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from transformers import T5Config, T5ForConditionalGeneration

import minitrainer

PAD, END, VOCABULARY = 0, 1, 12


class Copying(Dataset):
    """Sequences of three to five tokens, padded, with themselves as the answer."""

    def __init__(self, length: int = 10) -> None:
        generator = torch.Generator().manual_seed(3)
        self.rows = []
        for _ in range(length):
            size = int(torch.randint(3, 6, (1,), generator=generator))
            row = torch.full((6,), PAD)
            row[:size] = torch.randint(2, VOCABULARY, (size,), generator=generator)
            row[size] = END
            self.rows.append(row)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self.rows[index]
        return {
            "input_ids": row,
            "attention_mask": (row != PAD).long(),
            "labels": torch.where(row == PAD, torch.tensor(-100), row),
        }


class WithDecoderInputs(Copying):
    """With the answer shifted by one as the decoder's inputs, as label smoothing needs them."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        example = super().__getitem__(index)
        return {**example, "decoder_input_ids": self.rows[index].roll(1)}


class Unlabelled(Copying):
    """The same without answers."""

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {name: value for name, value in super().__getitem__(index).items() if name != "labels"}


def tiny_t5() -> T5ForConditionalGeneration:
    torch.manual_seed(5)
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=16,
            d_kv=8,
            d_ff=32,
            num_layers=1,
            num_heads=2,
            pad_token_id=PAD,
            eos_token_id=END,
            decoder_start_token_id=PAD,
        )
    )


def count_tokens(prediction: Any) -> dict[str, float]:
    """A metric that changes with every single predicted token."""
    predictions = prediction.predictions
    if isinstance(predictions, tuple):
        predictions = predictions[0].argmax(-1)
    weights = np.arange(1, predictions.shape[1] + 1)
    return {"checksum": float((predictions * weights).sum()), "width": float(predictions.shape[1])}


def build(
    output_dir: Path | str,
    trainer_class: Any = None,
    arguments_class: Any = None,
    data: type[Copying] = Copying,
    **arguments: Any,
) -> Any:
    """A Seq2SeqTrainer; ours, unless classes are given."""
    settings = {
        "output_dir": str(output_dir),
        "max_steps": 4,
        "per_device_train_batch_size": 4,
        "per_device_eval_batch_size": 4,
        "evaluation_strategy": "steps",
        "eval_steps": 2,
        "logging_steps": 1,
        "save_strategy": "no",
        "learning_rate": 0.05,
        "predict_with_generate": True,
        "report_to": [],
        "disable_tqdm": True,
        "no_cuda": True,
        **arguments,
    }
    return (trainer_class or minitrainer.Seq2SeqTrainer)(
        model=tiny_t5(),
        args=(arguments_class or minitrainer.Seq2SeqTrainingArguments)(**settings),
        train_dataset=data(16),
        eval_dataset=data(),
        compute_metrics=count_tokens,
    )


# Read next: tests/seq2seq/test_seq2seq.py
