"""The arithmetic without torch equals torch's and NumPy's to the last bit."""

from __future__ import annotations

import math

import numpy
import torch
from hypothesis import given
from hypothesis import strategies as st

from minitrainer.trace import events, lossmath, rounding

FLOATS = st.floats(allow_nan=True, allow_infinity=True)
LOSSES = st.floats(min_value=0.0, max_value=100.0, width=32)


def same(left: float, right: float) -> bool:
    return left == right or (math.isnan(left) and math.isnan(right))


@given(FLOATS)
def test_rounding_to_each_precision_is_torchs(number: float) -> None:
    # torch goes to the small types by way of float32 here, as a loss does that was computed in float32.
    single = torch.tensor(number, dtype=torch.float64).to(torch.float32)
    for name in ("float32", "bfloat16", "float16"):
        expected = single.to(getattr(torch, name)).item()
        assert same(rounding.PRECISIONS[name](number), expected), name


@given(LOSSES, st.integers(1, 64))
def test_division_is_torchs_in_each_precision(loss: float, divisor: int) -> None:
    for name in ("float32", "bfloat16", "float16", "float64"):
        tensor = torch.tensor(loss, dtype=getattr(torch, name))
        micro = (tensor / divisor).item()
        record = made_loss([tensor.item()], [micro], divisor, name)
        notes: list[str] = []
        links = lossmath._division_links(record, notes)
        assert len(links) == 1 and not notes
        assert links[0].follows, (name, links)


@given(st.lists(LOSSES, min_size=1, max_size=40))
def test_running_sum_is_torchs(losses: list[float]) -> None:
    total = torch.tensor(0.0)
    for loss in losses:
        total += torch.tensor(loss)
    derived, _ = rounding.running_sum(losses, [], [], total.item())
    assert derived == total.item()


@given(st.lists(st.one_of(LOSSES, st.sampled_from(["nan", "inf"])), min_size=1, max_size=30), st.integers(1, 4))
def test_running_sum_with_filtered_losses_is_torchs(losses: list, accumulation: int) -> None:
    total = torch.tensor(0.0)
    filtered, divisors = [], []
    for i, loss in enumerate(losses):
        tensor = torch.tensor(float(loss))
        if torch.isnan(tensor) or torch.isinf(tensor):
            filtered.append(i)
            divisors.append(1 + i // accumulation)
            total += total / divisors[-1]
        else:
            total += tensor
    derived, _ = rounding.running_sum(losses, filtered, divisors, total.item())
    assert derived == total.item()


@given(st.lists(LOSSES, min_size=1, max_size=64))
def test_mean_over_ranks_is_torchs(sums: list[float]) -> None:
    expected = torch.tensor(sums, dtype=torch.float32).mean().item()
    derived, how = rounding.mean_of(sums, expected)
    assert derived == expected, how


@given(st.lists(st.tuples(LOSSES, st.integers(1, 9)), min_size=1, max_size=30), st.integers(0, 8))
def test_evaluation_mean_is_numpys(batches: list[tuple[float, int]], cut: int) -> None:
    vector = numpy.concatenate([numpy.full(rows, loss, dtype="float32") for loss, rows in batches])
    kept = max(1, len(vector) - cut)
    mean = vector[:kept].mean().item()
    record = events.EvalLoss(
        key="eval_loss",
        losses=[loss for loss, _ in batches],
        rows=[rows for _, rows in batches],
        gathered=len(vector),
        kept=kept,
        mean=mean,
        logged=mean,
        verified=True,
    )
    assert lossmath.derive_eval_loss([record]).follows


def made_loss(losses: list[float], micro: list[float], divisor: int, dtype: str = "float32") -> events.Loss:
    total = micro[0]
    return events.Loss(
        step=1,
        losses=losses,
        micro=micro,
        divided_by=[divisor],
        rank_sum=total,
        gathered=[total],
        mean=total,
        steps=1,
        quotient=total,
        logged=total,
        total_before=0.0,
        dtype=dtype,
        verified=True,
    )


def test_a_gpus_reciprocal_is_accepted_but_nothing_else() -> None:
    loss = rounding.float32(0.7)
    reciprocal = rounding.float32(loss * rounding.float32(1 / 3))
    divided = rounding.float32(loss / 3)
    assert lossmath._division_links(made_loss([loss], [reciprocal], 3), [])[0].follows
    assert lossmath._division_links(made_loss([loss], [divided], 3), [])[0].follows
    beside = float(numpy.nextafter(numpy.float32(max(reciprocal, divided)), numpy.float32(1)))
    assert not lossmath._division_links(made_loss([loss], [beside], 3), [])[0].follows


# Read next: test_verify.py, whole traces.
