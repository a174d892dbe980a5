"""Measures, beside a run, what its losses and gradients should be. Installed in the process that trains.

Two hooks of torch are used, none of any Trainer, so that nothing here shares an assumption with what is audited:

- after each forward pass that had labels, the loss of every sample (or token) is computed from the logits;
- before each optimizer step, the gradient of their mean is computed by one pass over all samples of the step, with the
  weights and the random state (dropout) that the Trainer's own passes had, and added up over the ranks.

One line a step and a line for each evaluation batch go to `audit-rankR.jsonl` beside the trace.
"""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TextIO

import torch
from torch.nn import functional

from minitrainer.trace.audit import PROBE_FILES

IGNORED_LABEL = -100


@dataclass
class Pass:
    """One forward pass of the model in training."""

    module: torch.nn.Module
    inputs: dict[str, Any]
    random_state: torch.Tensor
    device_random_state: torch.Tensor | None
    loss_sum: float
    units: int
    labels: int


def install(folder: str | os.PathLike[str]) -> Probe:
    """Hook torch in this process; the file is written to `folder`."""
    from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
    from torch.optim.optimizer import register_optimizer_step_pre_hook

    rank = int(os.environ.get("RANK", "0"))
    probe = Probe(Path(folder) / PROBE_FILES.format(rank=rank))
    register_module_forward_pre_hook(probe.before_forward)
    register_module_forward_hook(probe.after_forward, with_kwargs=True)
    register_optimizer_step_pre_hook(probe.before_step)
    return probe


class Probe:
    """Collects the passes of a step and writes what follows from them."""

    def __init__(self, path: Path):
        self.file: TextIO = open(path, "w", encoding="utf-8")
        self.passes: list[Pass] = []
        self.steps = 0
        self.is_measuring = False
        self._state: tuple[torch.Tensor, torch.Tensor | None] | None = None

    def before_forward(self, module: torch.nn.Module, arguments: Any) -> None:
        """Keep the random state with which a whole model starts: dropout can then be repeated."""
        if not self.is_measuring and hasattr(module, "config") and not hasattr(module, "module"):
            on_device = torch.cuda.get_rng_state() if torch.cuda.is_initialized() else None
            if self._state is None:
                self._state = (torch.get_rng_state(), on_device)

    def after_forward(self, module: torch.nn.Module, arguments: Any, inputs: dict[str, Any], output: Any) -> None:
        if self.is_measuring or hasattr(module, "module") or not hasattr(module, "config"):
            return
        measured = unit_losses(module, inputs, output)
        if measured is None:
            return
        losses = measured.losses.detach().double()
        state, self._state = self._state or (torch.get_rng_state(), None), None
        if torch.is_grad_enabled():
            kept = {name: value.detach() if torch.is_tensor(value) else value for name, value in inputs.items()}
            kept.pop("num_items_in_batch", None)
            self.passes.append(Pass(module, kept, *state, float(losses.sum()), losses.numel(), measured.labels))
        else:
            rows = _rows_of(inputs)
            sums = torch.zeros(rows, dtype=torch.float64).index_add_(0, measured.rows.cpu(), losses.cpu())
            units = torch.bincount(measured.rows.cpu(), minlength=rows)
            line = {"kind": "evaluated", "step": self.steps, "loss_sums": sums.tolist(), "units": units.tolist()}
            self._write({**line, "labels": measured.labels})

    def before_step(self, optimizer: torch.optim.Optimizer, arguments: Any, keywords: Any) -> None:
        if self.is_measuring or not self.passes:
            return
        self.is_measuring = True
        try:
            norm, norm_of_means = self._gradient_norms()
        finally:
            self.is_measuring = False
        self.steps += 1
        self._write(
            {
                "kind": "step",
                "step": self.steps,
                "loss_sums": [one.loss_sum for one in self.passes],
                "units": [one.units for one in self.passes],
                "labels": [one.labels for one in self.passes],
                "grad_norm": norm,
                "grad_norm_of_means": norm_of_means,
            }
        )
        self.passes.clear()

    def _gradient_norms(self) -> tuple[float, float]:
        """Norm of the gradient of the mean loss over every sample of the step on all ranks; and, for comparison, of
        the mean of the micro-batches' means."""
        module = self.passes[0].module
        parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        total = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]
        of_means = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in parameters]
        units = 0
        passes = len(self.passes)
        # A second pass would move running statistics (batch norm): they are put back.
        buffers = [(buffer, buffer.clone()) for buffer in module.buffers()]
        for one in self.passes:
            state = torch.get_rng_state()
            on_device = torch.cuda.get_rng_state() if one.device_random_state is not None else None
            torch.set_rng_state(one.random_state)
            if one.device_random_state is not None:
                torch.cuda.set_rng_state(one.device_random_state)
            with torch.enable_grad():
                losses = unit_losses(module, one.inputs, module(**one.inputs))
                assert losses is not None
                gradients = torch.autograd.grad(losses.losses.sum(), parameters, allow_unused=True)
            torch.set_rng_state(state)
            if on_device is not None:
                torch.cuda.set_rng_state(on_device)
            for held, held_mean, gradient in zip(total, of_means, gradients, strict=True):
                if gradient is not None:
                    held += gradient.double()
                    held_mean += gradient.double() / max(one.units, 1)
            units += one.units
        for buffer, before in buffers:
            buffer.copy_(before)
        if torch.distributed.is_available() and torch.distributed.is_initialized():
            for held in (*total, *of_means):
                torch.distributed.all_reduce(held)
            counts = torch.tensor([units, passes], device=total[0].device)
            torch.distributed.all_reduce(counts)
            units, passes = map(int, counts)
        return _norm(total, max(units, 1)), _norm(of_means, passes)

    def _write(self, line: dict[str, Any]) -> None:
        self.file.write(json.dumps(line) + "\n")
        self.file.flush()


def _norm(vectors: list[torch.Tensor], divisor: int) -> float:
    return math.sqrt(sum(float(((vector / divisor) ** 2).sum()) for vector in vectors))


def _rows_of(inputs: dict[str, Any]) -> int:
    """Samples in a batch."""
    return next((value.shape[0] for value in inputs.values() if torch.is_tensor(value) and value.dim()), 0)


class UnitLosses(NamedTuple):
    """The losses of one forward pass.

    Attributes:
        losses: one element for each label that counts.
        rows: for each of them, which sample of the batch it belongs to.
        labels: labels that are not -100, the first token of a causal model's rows included, which nothing predicts.
    """

    losses: torch.Tensor
    rows: torch.Tensor
    labels: int


def unit_losses(module: Any, inputs: dict[str, Any], output: Any) -> UnitLosses | None:
    """The loss of each sample (classification, question answering) or token (the others) of one forward pass.

    Returns:
        None where the pass has no labels or is of no known kind.
    """
    if not hasattr(output, "get"):
        return None
    start, end = output.get("start_logits"), output.get("end_logits")
    if start is not None and end is not None:
        if inputs.get("start_positions") is None:
            return None
        starts = _position_losses(start, inputs["start_positions"])
        ends = _position_losses(end, inputs["end_positions"])
        return _one_a_row((starts + ends) / 2)
    logits, labels = output.get("logits"), inputs.get("labels")
    if logits is None or labels is None or not torch.is_tensor(logits):
        return None
    if labels.is_floating_point():
        return _one_a_row(((logits.float().squeeze(-1) - labels.float()) ** 2).reshape(len(labels), -1).mean(1))
    counted_labels = int((labels != IGNORED_LABEL).sum())
    rows = torch.arange(len(labels), device=labels.device)
    if logits.dim() == 3 and labels.dim() == 2:
        if type(module).__name__.endswith(("ForCausalLM", "LMHeadModel")):
            logits, labels = logits[:, :-1], labels[:, 1:]
        rows = rows[:, None].expand_as(labels).reshape(-1)
        logits, labels = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
    if logits.dim() != 2 or labels.dim() != 1 or logits.shape[0] != labels.shape[0]:
        return None
    counts = labels != IGNORED_LABEL
    losses = functional.cross_entropy(logits.float()[counts], labels[counts], reduction="none")
    return UnitLosses(losses, rows[counts], counted_labels)


def _one_a_row(losses: torch.Tensor) -> UnitLosses:
    return UnitLosses(losses, torch.arange(len(losses), device=losses.device), len(losses))


def _position_losses(logits: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Losses of answers' positions; one outside the text is ignored, as the models do, and counts as no loss."""
    ignored = logits.shape[1]
    positions = positions.reshape(-1).clamp(0, ignored)
    return functional.cross_entropy(logits.float(), positions, reduction="none", ignore_index=ignored)


# Read next: audit.py, which compares these numbers with those of the Trainer.
