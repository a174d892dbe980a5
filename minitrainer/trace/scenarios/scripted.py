"""Play a flow scenario: scripted data, a scripted model, and the Trainer of whichever library is asked.

See `flows.py` for the shapes. Everything numeric here is exact, so that a recording is the same on every machine.
"""

from __future__ import annotations

from collections.abc import Iterator
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

from .arguments import parse
from .flows import COMMON, FLOWS, Flow

# -- the scripted data and model ------------------------------------------------------


def row_loss(flow: Flow, row: int) -> float:
    """Return the loss that training row number `row` causes: eighths from 1/8 to 8/8 in turn, unless scripted."""
    return flow.losses.get(row, (row % 8 + 1) / 8)


class Rows(Dataset):
    """Map-style rows `{"row": int, "labels": float}`; the label is the loss that the row causes."""

    def __init__(self, losses: list[float]):
        self.losses = losses

    def __len__(self) -> int:
        return len(self.losses)

    def __getitem__(self, row: int) -> dict[str, Any]:
        return {"row": row, "labels": self.losses[row]}


class Stream(IterableDataset):
    """The same rows, in order, as a stream whose length is not known."""

    def __init__(self, losses: list[float]):
        self.losses = losses

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for row, loss in enumerate(self.losses):
            yield {"row": row, "labels": loss}


class ScriptedModel(nn.Module):
    """Give back the mean of the labels as the loss, with a gradient of exactly 1/2.

    The parameter moves at every optimizer step, and no loss depends on it: `weight - weight.detach()` is zero with a
    gradient of one. In evaluation the loss shifts along `eval_curve`, by the optimizer steps that the model has seen;
    it counts its training passes in a buffer, so the count survives a checkpoint.

    Args:
        passes_per_step: training passes of this process in one step.
        eval_curve: see `Flow`.
    """

    passes: torch.Tensor

    def __init__(self, passes_per_step: int, eval_curve: tuple[float, ...]):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("passes", torch.zeros((), dtype=torch.int64))
        self.passes_per_step = passes_per_step
        self.eval_curve = eval_curve

    def forward(self, row: torch.Tensor, labels: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        logits = torch.stack([row.float(), row.float() / 2], dim=-1)  # (batch, 2): something to predict
        if labels is None:
            return {"logits": logits}
        loss = labels.float().mean()
        if self.training:
            self.passes += 1
            loss = loss + (self.weight - self.weight.detach()) / 2
        else:
            steps_done = int(self.passes) // self.passes_per_step
            loss = loss + self.eval_curve[min(steps_done, len(self.eval_curve) - 1)]
        return {"loss": loss, "logits": logits}


def _stopper(library: ModuleType, kind: str, step: int) -> Any:
    """Make a callback that raises `should_<kind>_stop` at the end of step number `step`."""

    class StopAtStep(library.TrainerCallback):  # type: ignore[name-defined]
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == step:
                setattr(control, f"should_{kind}_stop", True)
            return control

    return StopAtStep()


# -- running one ------------------------------------------------------------------------


def run(name: str, library: ModuleType, argv: list[str]) -> int:
    """Run the flow `name` with the Trainer of `library`; `argv` may override any training argument."""
    flow = FLOWS[name]
    chosen = {"output_dir": "output", **COMMON, **flow.arguments}
    (args,) = parse(library, argv, (), library.TrainingArguments, lambda: chosen, name, flow.question)
    if flow.legacy_prediction_loop:
        args.use_legacy_prediction_loop = True

    losses = [row_loss(flow, row) for row in range(flow.rows)]
    train_dataset = Stream(losses) if flow.iterable else Rows(losses)
    if isinstance(flow.eval_rows, dict):
        eval_dataset: Any = {name: _eval_rows(count) for name, count in flow.eval_rows.items()}
    else:
        eval_dataset = _eval_rows(flow.eval_rows) if flow.eval_rows else None

    trainer = None
    for action in flow.actions:
        verb, _, step = action.partition(":")
        if trainer is None or verb == "resume":
            callbacks = [_stopper(library, *flow.stop)] if flow.stop else []
            if flow.patience is not None:
                callbacks.append(library.EarlyStoppingCallback(early_stopping_patience=flow.patience))
            trainer = library.Trainer(
                model=ScriptedModel(args.gradient_accumulation_steps, flow.eval_curve),
                args=args,
                train_dataset=train_dataset,
                eval_dataset=eval_dataset,
                callbacks=callbacks,
            )
        try:
            _act(trainer, verb, step, eval_dataset)
        except TypeError as error:
            if action not in flow.fails:
                raise
            print(f"{action} failed, as it does in 4.31.0: {error}")
    return 0


def _act(trainer: Any, verb: str, step: str, eval_dataset: Any) -> None:
    if verb == "train":
        trainer.train()
    elif verb == "resume":
        trainer.train(resume_from_checkpoint=f"{trainer.args.output_dir}/checkpoint-{step}")
    elif verb == "evaluate":
        trainer.evaluate()
    elif verb == "predict":
        trainer.predict(eval_dataset)
    elif verb == "predict-unlabelled":
        trainer.predict([{"row": row["row"]} for row in eval_dataset])


def _eval_rows(count: int) -> Rows:
    return Rows([(row % 4 + 1) / 4 for row in range(count)])


# Read next: ../expected.py, which predicts the callbacks of these runs from their shapes.
