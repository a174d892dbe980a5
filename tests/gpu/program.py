"""The training program of the GPU tests: a BERT of random weights and random tokens, with either library's Trainer."""

from __future__ import annotations

from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

VOCABULARY = 8000


def samples(count: int, tokens: int, seed: int = 0) -> list[dict[str, Any]]:
    """Random sequences of equal length, in two classes."""
    source = torch.Generator().manual_seed(seed)
    return [
        {
            "input_ids": torch.randint(1, VOCABULARY, (tokens,), generator=source),
            "attention_mask": torch.ones(tokens, dtype=torch.long),
            "labels": index % 2,
        }
        for index in range(count)
    ]


def bert(hidden: int, layers: int, dropout: float, seed: int = 0) -> Any:
    """A BERT for two classes, the same weights each time."""
    from transformers import BertConfig, BertForSequenceClassification

    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        intermediate_size=4 * hidden,
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
    )
    return BertForSequenceClassification(config)


class Dense(nn.Module):
    """Embedding, mean, two layers; forward takes no further keywords, so no version treats its loss specially."""

    def __init__(self, dropout: float) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embedding = nn.Embedding(VOCABULARY, 32)
        self.body = nn.Sequential(nn.Linear(32, 32), nn.Tanh(), nn.Dropout(dropout), nn.Linear(32, 2))

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, labels: torch.Tensor | None = None
    ) -> dict[str, torch.Tensor]:
        logits = self.body(self.embedding(input_ids).mean(dim=1))
        if labels is None:
            return {"logits": logits}
        return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}


def arguments(library: ModuleType, folder: Path | str, **chosen: Any) -> Any:
    """TrainingArguments of either library and any version: names are 4.31.0's."""
    from minitrainer.trace.scenarios.arguments import translated

    values: dict[str, Any] = {"output_dir": str(folder), "report_to": [], "disable_tqdm": True, "optim": "adamw_torch"}
    values |= {"save_strategy": "no", **chosen}
    if not torch.cuda.is_available():
        values["no_cuda"] = True
    return library.TrainingArguments(**translated(values, library.TrainingArguments.__dataclass_fields__))


def trainer(
    library: ModuleType,
    folder: Path | str,
    trainer_class: Any = None,
    *,
    model: str = "bert",
    hidden: int = 64,
    layers: int = 2,
    dropout: float = 0.1,
    train_samples: int = 64,
    eval_samples: int = 0,
    tokens: int = 16,
    **chosen: Any,
) -> Any:
    """A Trainer, ready to train."""
    return (trainer_class or library.Trainer)(
        model=bert(hidden, layers, dropout) if model == "bert" else Dense(dropout),
        args=arguments(library, folder, **chosen),
        train_dataset=samples(train_samples, tokens),
        eval_dataset=samples(eval_samples, tokens, seed=1) if eval_samples else None,
    )


# Read next: tests/gpu/unchanged.py
