"""Ours against the real Trainer, on cards: the parity harness, with cases in which a card matters."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.data import SequentialSampler

from tests.parity.cases import Case
from tests.parity.compare import first_difference, last_failure
from tests.parity.mutants import BUSY
from tests.parity.observation import Observation, plain
from tests.parity.ranks import run_on_this_rank
from tests.parity.run import our_library, real_library, run_case

from . import program

if TYPE_CHECKING:
    from .worker import Here

# Batches of 4 so that two cards in one process get two samples each, the last ones fewer.
ARGS = BUSY | {"per_device_eval_batch_size": 2, "learning_rate": 0.01}


def case(train_samples: int = 13, **fields: Any) -> Case:
    """A case with steps enough, and an uneven last batch."""
    args = ARGS | fields.pop("args", {})
    return Case(train_samples=train_samples, args=args, **({"eval_samples": (7,), "metrics": "digest"} | fields))


CASES: dict[str, Case] = {
    "dense fp32": case(model="classifier", calls=("train", "evaluate", "predict")),
    "dense fp32, groups of 2": case(model="classifier", args={"gradient_accumulation_steps": 2}),
    "dense fp16, gradients that are lost": case(
        model="regression", args={"fp16": True}, broken_losses=(2,), broken_kind="poison"
    ),
    "dense fp32, a broken loss": case(model="classifier", broken_losses=(2,)),
    "tokens, unequal label counts": case(model="tagger", args={"label_smoothing_factor": 0.1}),
    "BERT fp32, dropout": case(model="bert", dropout=0.3, calls=("train", "evaluate")),
    "BERT bf16, groups of 2": case(model="bert", dropout=0.3, args={"bf16": True, "gradient_accumulation_steps": 2}),
    "BERT fp16": case(model="bert", dropout=0.3, args={"fp16": True, "num_train_epochs": 2}),
    "BERT fp16, evaluated in fp16": case(
        model="bert", args={"fp16": True, "fp16_full_eval": True}, calls=("evaluate",)
    ),
    "BERT bf16, fused optimizer": case(model="bert", args={"bf16": True, "optim": "adamw_torch_fused"}),
    "stream": case(model="classifier", train="iterable", evaluation="iterable", args={"max_steps": 4}),
    "best model": case(model="classifier", args={"load_best_model_at_end": True, "save_total_limit": 1}),
    "BERT fp32, resumed in mid-epoch": case(model="bert", dropout=0.3, train_samples=17, resume=1),
    "BERT fp16, resumed in mid-epoch": case(
        model="bert", dropout=0.3, train_samples=17, args={"fp16": True}, resume=1
    ),
}

# Every forward of a replica is its first: a loss that breaks at the second never breaks there.
NOT_TOGETHER = ("dense fp32, a broken loss", "dense fp16, gradients that are lost")


def to_the_real_one(here: Here) -> dict[str, Any]:
    """Run every case with the real Trainer and with ours, and compare what this rank saw."""
    answers = {}
    together = here.meeting is None and torch.cuda.device_count() > 1
    for name, each in CASES.items():
        if together and name in NOT_TOGETHER:
            continue
        sides = []
        for library in (real_library(), our_library()):
            folder = here.fresh_folder()
            if here.meeting is None:
                observation = run_case(each, library, str(folder))
            else:
                observation = run_on_this_rank(each, library, folder, here.meeting)
            order_replicas(observation)
            sides.append(observation)
        real = sides[0]
        failure = last_failure(real)
        answers[name] = {
            "difference": first_difference(*sides),
            "failure": None if failure is None else str(failure),
            "steps": sum(entry.get("event") == "on_step_end" for entry in real.timeline),
            "skipped_steps": skipped_steps(real),
            "entries_compared": len(real.timeline),
            "files_compared": len(real.files),
        }
    return answers


def order_replicas(observation: Observation) -> None:
    """Put forward passes that ran at the same time, one thread a card, into an order that no thread decides."""
    ordered: list[dict[str, Any]] = []
    together: list[dict[str, Any]] = []
    for entry in [*observation.timeline, None]:
        if entry is not None and entry["kind"] == "forward":
            together.append(entry)
            continue
        ordered += sorted(together, key=repr)
        together = []
        if entry is not None:
            ordered.append(entry)
    observation.timeline[:] = ordered


def skipped_steps(observation: Observation) -> int | None:
    """Steps of the last Trainer that mixed precision gave up: counted, but the schedule did not move."""
    left = observation.final[-1]
    if not left.get("lr_scheduler") or not left.get("state"):
        return None
    return left["state"]["global_step"] - left["lr_scheduler"]["state"]["last_epoch"]


# -- the installed one -----------------------------------------------------------------------------------------------

# With DataParallel, 4.31.0 leaves the optimizer to itself: the gradients of fp16 stay scaled, are clipped as they are, and
# nothing is skipped. Later versions have accelerate prepare the optimizer there too.
CHANGED_TOGETHER = ("fp16",)

PLAIN: dict[str, dict[str, Any]] = {
    "fp32": {},
    "bf16": {"bf16": True},
    "fp16": {"fp16": True},
    "fp32, groups of 2": {"gradient_accumulation_steps": 2},
}


def to_the_newest(here: Here) -> dict[str, Any]:
    """Train one dense model with the installed Trainer and with ours: weights, optimizer, logged losses."""
    answers = {}
    for name, chosen in PLAIN.items():
        if "fp16" in chosen and not torch.cuda.is_available():
            continue
        sides = {}
        for library in (real_library(), our_library()):
            with here.one_run(library) as folder:
                sides[library.name] = trained(import_module(library.name), folder, chosen)
        theirs, ours = sides["transformers"], sides["minitrainer"]
        answers[name] = {
            "weights_equal": theirs["weights"] == ours["weights"],
            "optimizer_equal": theirs["optimizer"] == ours["optimizer"],
            # later versions do not round, so theirs are rounded here
            "losses": [round(value, 4) for value in theirs["losses"]],
            "losses_of_ours": ours["losses"],
            "eval_losses": theirs["eval_losses"],
            "eval_losses_of_ours": ours["eval_losses"],
        }
    return answers


def in_order(base: type) -> type:
    """A subclass that does not shuffle: later versions draw the order in another way."""

    def _get_train_sampler(self: Any, *args: Any) -> Any:
        return SequentialSampler(self.train_dataset)

    return type("Trainer", (base,), {"_get_train_sampler": _get_train_sampler})


def trained(library: Any, folder: Path, chosen: dict[str, Any]) -> dict[str, Any]:
    """Train and evaluate; return what the two sides must share."""
    trainer = program.trainer(
        library,
        folder,
        in_order(library.Trainer),
        model="dense",
        eval_samples=7,
        max_steps=12,
        logging_steps=3,
        per_device_train_batch_size=2,
        per_device_eval_batch_size=2,
        evaluation_strategy="steps",
        eval_steps=6,
        **chosen,
    )
    trainer.train()
    history = trainer.state.log_history
    state = trainer.optimizer.state_dict()["state"]
    return {
        "weights": {name: str(plain(value)) for name, value in trainer.model.state_dict().items()},
        "optimizer": {key: {name: str(plain(item)) for name, item in entry.items()} for key, entry in state.items()},
        "losses": [entry["loss"] for entry in history if "loss" in entry],
        "eval_losses": [entry["eval_loss"] for entry in history if "eval_loss" in entry],
    }


# Read next: tests/gpu/unchanged.py
