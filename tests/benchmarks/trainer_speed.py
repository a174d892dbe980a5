"""Steps per second: our Trainer, the installed upstream's, and a hand-written PyTorch loop that does the same work.

    OMP_NUM_THREADS=1 python tests/benchmarks/trainer_speed.py
    OMP_NUM_THREADS=1 PYTHONPATH=<folder of 4.31.0> python tests/benchmarks/trainer_speed.py

Two models: a linear one, where nearly all time is the Trainer's own, and a small BERT. The three take turns, so that a
busy machine slows all of them alike, and the median of the ratios within a turn is shown. A script, not a test: clocks
on shared machines lie.
"""

from __future__ import annotations

import argparse
import gc
import os
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import nn
from torch.utils.data import DataLoader, RandomSampler

MICRO_BATCH = 8  # samples


class Linear(nn.Module):
    """Eight numbers in, one out."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        prediction = self.linear(x).squeeze(-1)
        return {"loss": ((prediction - labels) ** 2).mean(), "logits": prediction}


def small_bert() -> nn.Module:
    """Two layers, width 128, no dropout."""
    config = transformers.BertConfig(
        vocab_size=2000,
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=512,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    return transformers.BertForSequenceClassification(config)


def linear_samples(count: int) -> list[dict[str, Any]]:
    """Random numbers with random labels."""
    generator = torch.Generator().manual_seed(0)
    return [
        {"x": torch.randn(8, generator=generator), "labels": torch.randn((), generator=generator)}
        for _ in range(count)
    ]


def token_samples(count: int) -> list[dict[str, Any]]:
    """Random sequences of 32 tokens in two classes."""
    generator = torch.Generator().manual_seed(0)
    return [
        {
            "input_ids": torch.randint(0, 2000, (32,), generator=generator),
            "attention_mask": torch.ones(32, dtype=torch.long),
            "labels": index % 2,
        }
        for index in range(count)
    ]


def options(folder: str, steps: int) -> dict[str, Any]:
    """The arguments that both Trainers get."""
    return {
        "output_dir": folder,
        "max_steps": steps,
        "per_device_train_batch_size": MICRO_BATCH,
        "logging_steps": 50,
        "save_strategy": "no",
        "report_to": [],
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
        "optim": "adamw_torch",
    }


def train_with_ours(make_model: Callable[[], nn.Module], samples: list[Any], steps: int, folder: str) -> float:
    """Seconds that minitrainer's Trainer takes for the steps."""
    import minitrainer

    arguments = minitrainer.TrainingArguments(no_cuda=True, **options(folder, steps))
    trainer = minitrainer.Trainer(make_model(), arguments, train_dataset=samples)
    trainer.remove_callback(minitrainer.PrinterCallback)
    return seconds_of_steps(trainer, minitrainer.TrainerCallback)


def train_with_upstream(make_model: Callable[[], nn.Module], samples: list[Any], steps: int, folder: str) -> float:
    """Seconds that the installed transformers' Trainer takes for them."""
    fields = transformers.TrainingArguments.__dataclass_fields__
    on_cpu = {"use_cpu": True} if "use_cpu" in fields else {"no_cuda": True}
    arguments = transformers.TrainingArguments(**on_cpu, **options(folder, steps))
    trainer = transformers.Trainer(make_model(), arguments, train_dataset=samples)
    trainer.remove_callback(transformers.PrinterCallback)
    return seconds_of_steps(trainer, transformers.TrainerCallback)


def train_by_hand(make_model: Callable[[], nn.Module], samples: list[Any], steps: int, folder: str) -> float:
    """Seconds of a plain loop: same loader, optimizer, clipping, schedule, and the loss read every step."""
    model = make_model()
    decaying = [parameter for name, parameter in model.named_parameters() if parameter.dim() > 1]
    others = [parameter for name, parameter in model.named_parameters() if parameter.dim() <= 1]
    optimizer = torch.optim.AdamW([{"params": decaying}, {"params": others}], lr=5e-5, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / steps))

    loader: DataLoader[Any] = DataLoader(
        samples,  # type: ignore[arg-type]
        batch_size=MICRO_BATCH,
        sampler=RandomSampler(samples),
        collate_fn=transformers.default_data_collator,
    )
    done, loss_sum = 0, torch.tensor(0.0)
    gc.collect()
    began = time.process_time()
    while done < steps:
        for batch in loader:
            model.train()
            loss = model(**batch)["loss"]
            loss.backward()
            if torch.isfinite(loss):
                loss_sum += loss.detach()
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            scheduler.step()
            model.zero_grad()
            done += 1
            if done == steps:
                break
    return time.process_time() - began


def seconds_of_steps(trainer: Any, callback_class: type) -> float:
    """Seconds of processor time between the first and the last event of `train`.

    Not of the clock on the wall: with one thread the two agree on an idle machine, and on a busy one only this means
    anything. What `train` does before (a collection of garbage, the optimizer) takes as long for one step as for a
    million; both Trainers share it.
    """
    moments: list[float] = []

    def note(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        moments.append(time.process_time())

    trainer.add_callback(type("Clock", (callback_class,), {"on_train_begin": note, "on_train_end": note})())
    trainer.train()
    began, ended = moments
    return ended - began


def main() -> None:
    """Take turns and show the medians."""
    parser = argparse.ArgumentParser(description="steps per second of three ways to train")
    parser.add_argument("--turns", type=int, default=9)
    parser.add_argument("--linear-steps", type=int, default=400)
    parser.add_argument("--bert-steps", type=int, default=60)
    asked = parser.parse_args()
    warnings.filterwarnings("ignore")
    os.environ.setdefault("WANDB_DISABLED", "true")
    transformers.logging.set_verbosity_error()
    torch.set_num_threads(1)

    ways = {
        "minitrainer": train_with_ours,
        f"transformers {transformers.__version__}": train_with_upstream,
        "by hand": train_by_hand,
    }
    upstream_name = list(ways)[1]
    plans: list[tuple[str, Callable[[], nn.Module], list[Any], int]] = [
        ("linear", Linear, linear_samples(800), asked.linear_steps),
        ("small BERT", small_bert, token_samples(240), asked.bert_steps),
    ]
    for title, make_model, samples, steps in plans:
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        with tempfile.TemporaryDirectory() as folder:
            for turn in range(asked.turns + 1):
                order = list(ways) if turn % 2 else list(reversed(ways))
                for name in order:
                    took = ways[name](make_model, samples, steps, folder)
                    if turn > 0:  # the first turn only warms up
                        seconds[name].append(took)
        print(f"{title}, {steps} steps, {asked.turns} turns")
        for name, times in seconds.items():
            print(f"  {name:<22}{steps / statistics.median(times):>10.1f} steps per CPU second")
        for other in (upstream_name, "by hand"):
            ratios = [theirs / ours for ours, theirs in zip(seconds["minitrainer"], seconds[other], strict=True)]
            print(f"  speed of minitrainer to {other}: {statistics.median(ratios):.3f} (above 1: faster)")


if __name__ == "__main__":
    main()

# Read next: help_speed.py
