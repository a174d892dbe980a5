"""A tiny run that can be broken off and resumed, for either Trainer, and the comparison of two checkpoint folders."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import BertConfig, BertForSequenceClassification

import minitrainer

EXAMPLES, EVAL_EXAMPLES, TOKENS, VOCABULARY = 24, 13, 8, 50
# Six steps an epoch, two epochs, a checkpoint every three steps: 3 and 9 lie in the middle of an epoch, 6 between.
STEPS_PER_EPOCH, EPOCHS, SAVE_STEPS = 6, 2, 3

# Clock values: the only numbers of a log that may differ between two runs.
CLOCK_SUFFIXES = ("_runtime", "_per_second")


class Tokens(Dataset):
    """Random token ids with a label, the same ones every time."""

    def __init__(self, length: int = EXAMPLES) -> None:
        generator = torch.Generator().manual_seed(0)
        self.ids = torch.randint(0, VOCABULARY, (length, TOKENS), generator=generator)
        self.labels = torch.randint(0, 2, (length,), generator=generator)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return {"input_ids": self.ids[index], "labels": self.labels[index]}


def tiny_bert(**config: Any) -> BertForSequenceClassification:
    """A BERT of one layer, with dropout, always of the same weights."""
    torch.manual_seed(1)
    sizes = {
        "vocab_size": VOCABULARY,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 16,
    }
    return BertForSequenceClassification(BertConfig(**{**sizes, **config}))


class PlainModel(nn.Module):
    """No PreTrainedModel: of it, only a state dict can be saved."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.embedding = nn.Embedding(VOCABULARY, 8)
        self.dropout = nn.Dropout(0.1)
        self.head = nn.Linear(8, 2)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
        logits = self.head(self.dropout(self.embedding(input_ids).mean(dim=1)))
        return (nn.functional.cross_entropy(logits, labels), logits) if labels is not None else (logits,)


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": (prediction.predictions.argmax(-1) == prediction.label_ids).mean()}


def build(
    output_dir: Path | str,
    trainer_class: Any = None,
    arguments_class: Any = None,
    model: nn.Module | None = None,
    tokenizer: Any = None,
    **arguments: Any,
) -> Any:
    """A Trainer for the tiny run; ours, unless classes are given."""
    settings = {
        "output_dir": str(output_dir),
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": EXAMPLES // STEPS_PER_EPOCH,
        "per_device_eval_batch_size": 8,
        "save_steps": SAVE_STEPS,
        "eval_steps": SAVE_STEPS,
        "logging_steps": 1,
        "evaluation_strategy": "steps",
        "report_to": [],
        "disable_tqdm": True,
        "no_cuda": True,
        "logging_dir": "runs",  # the default holds the time of day
        **arguments,
    }
    return (trainer_class or minitrainer.Trainer)(
        model=model if model is not None else tiny_bert(),
        args=(arguments_class or minitrainer.TrainingArguments)(**settings),
        train_dataset=Tokens(),
        eval_dataset=Tokens(EVAL_EXAMPLES),
        tokenizer=tokenizer,
        compute_metrics=accuracy,
        data_collator=None if tokenizer is None else collate,
    )


def collate(examples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    return {name: torch.stack([example[name] for example in examples]) for name in examples[0]}


def parameters(trainer: Any) -> torch.Tensor:
    """All weights in one row; `torch.equal` on two of them is equality to the last bit."""
    return torch.cat([parameter.detach().flatten() for parameter in trainer.model.parameters()])


def copy(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


@contextlib.contextmanager
def upstream_may_unpickle() -> Iterator[None]:
    """Let the real 4.31.0 read back a random state that this test has written; torch refuses it since 2.6."""
    name = "TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before


# -- two folders ---


def files_in(folder: Path) -> list[str]:
    """Every file below a folder, as relative paths."""
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def differences(ours: Path, theirs: Path) -> list[str]:
    """Compare two output folders, file by file; an empty list means equal.

    Bytes must be equal, with two exceptions: clock values within JSON, and the class that the arguments' pickle names.
    """
    found = []
    if files_in(ours) != files_in(theirs):
        found.append(f"files: only one side has {sorted(set(files_in(ours)) ^ set(files_in(theirs)))}")
    for name in sorted(set(files_in(ours)) & set(files_in(theirs))):
        a, b = ours / name, theirs / name
        if a.name == "training_args.bin":
            if _arguments_in(a, ours) != _arguments_in(b, theirs):
                found.append(f"{name}: the arguments differ")
        elif a.suffix == ".json":
            if _without_clock(a, ours) != _without_clock(b, theirs):
                found.append(f"{name}: {_without_clock(a, ours)} != {_without_clock(b, theirs)}")
        elif a.read_bytes() != b.read_bytes():
            found.append(f"{name}: the bytes differ")
    return found


def _arguments_in(path: Path, root: Path) -> dict[str, Any]:
    values = torch.load(path, weights_only=False).to_dict()
    return json.loads(json.dumps(values).replace(str(root), "ROOT"))


def _without_clock(path: Path, root: Path) -> Any:
    text = path.read_text().replace(str(root), "ROOT")

    def drop(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        return {key: value for key, value in pairs if not key.endswith(CLOCK_SUFFIXES)}

    # Order within an object counts: as text, not as a dict.
    return json.dumps(json.loads(text, object_pairs_hook=drop))


def random_states() -> dict[str, Any]:
    """The three random states of this process, comparable."""
    import random

    return {
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tobytes(),
        "torch": torch.random.get_rng_state().numpy().tobytes(),
    }


# Read next: tests/saving/test_checkpoints.py
