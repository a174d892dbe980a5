"""On a GPU torch divides and averages in its own way; the derivation has to know it."""

from __future__ import annotations

import random

import pytest
import torch

from minitrainer.trace import lossmath, rounding

from .test_verify_arithmetic import made_loss

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")]


def test_division_is_the_gpus_in_each_precision() -> None:
    rng = random.Random(0)
    for name in ("float32", "bfloat16", "float16", "float64"):
        for divisor in range(1, 65):
            losses = torch.tensor([rng.uniform(0, 10) for _ in range(32)], dtype=getattr(torch, name), device="cuda")
            # One element at a time, as the Trainer divides: a longer tensor may be divided by another kernel.
            for loss in losses:
                micro = (loss / divisor).item()
                links = lossmath._division_links(made_loss([loss.item()], [micro], divisor, name), [])
                assert links[0].follows, (name, divisor, links)


def test_mean_over_ranks_is_the_gpus() -> None:
    rng = random.Random(1)
    for ranks in range(1, 65):
        for _ in range(32):
            sums = torch.tensor([10 ** rng.uniform(-3, 2) for _ in range(ranks)], dtype=torch.float32, device="cuda")
            expected = sums.mean().item()
            derived, how = rounding.mean_of(sums.tolist(), expected)
            assert derived == expected, (ranks, how)


def test_running_sum_is_the_gpus() -> None:
    rng = random.Random(2)
    losses = [rounding.float32(rng.uniform(0, 10)) for _ in range(500)]
    total = torch.tensor(0.0, device="cuda")
    for loss in losses:
        total += torch.tensor(loss, device="cuda")
    derived, _ = rounding.running_sum(losses, [], [], total.item())
    assert derived == total.item()


# Read next: test_verify.py, whole traces.
