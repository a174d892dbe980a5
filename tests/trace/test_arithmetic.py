"""The recorder's own arithmetic: divisors on CPUs and GPUs, kept numbers read in one copy, sums as a tensor adds them."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from minitrainer.trace.arithmetic import Kept, TrainingBook, keep, read, read_all
from minitrainer.trace.rounding import running_sum

KINDS = ("float32", "float64", "bfloat16", "float16")

losses = st.floats(2**-10, 100.0)


@pytest.mark.parametrize("kind", KINDS)
@given(loss=losses, divisor=st.integers(2, 64))
def test_the_divisor_is_found_for_a_cpu_and_for_a_gpu(kind: str, loss: float, divisor: int) -> None:
    book = TrainingBook()
    book.dtype = kind
    dtype = getattr(torch, kind)
    tensor = torch.tensor(loss, dtype=dtype)
    # A GPU multiplies by the reciprocal, both in the type that it computes in: float32 for the small ones.
    computes_in = torch.float64 if kind == "float64" else torch.float32
    on_a_gpu = (tensor.to(computes_in) * torch.tensor(1.0 / divisor, dtype=computes_in)).to(dtype)
    for micro in (tensor / divisor, on_a_gpu):
        found = book._divisor(tensor.item(), micro.item(), divisor)
        assert found == divisor or (found == 1 and micro == tensor)


def test_the_reciprocal_gives_other_numbers() -> None:
    """Without it a GPU's divisor would stay unknown: there are losses whose product and quotient differ."""
    generator = torch.Generator().manual_seed(0)
    for kind in ("float32", "float64"):
        dtype = getattr(torch, kind)
        computes_in = torch.float64 if kind == "float64" else torch.float32
        values = torch.rand(4096, generator=generator, dtype=torch.float64).to(dtype)
        products = [
            (values.to(computes_in) * torch.tensor(1.0 / d, dtype=computes_in)).to(dtype) != values / d
            for d in (3, 5, 7, 49)
        ]
        assert any(bool(differ.any()) for differ in products), kind


class Counting(TorchDispatchMode):
    """Counts how often a number is read from a tensor, and how often several are put into one."""

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.names.append(function.overloadpacket.__name__)
        return function(*args, **(kwargs or {}))


def test_kept_tensors_are_read_in_one_copy() -> None:
    kept = [torch.tensor(0.5), 0.25, None, torch.tensor([0.125]), torch.tensor(math.inf)]
    with Counting() as counting:
        numbers = read_all(kept)
    assert numbers == [0.5, 0.25, None, 0.125, math.inf] and all(type(n) in (float, type(None)) for n in numbers)
    assert counting.names.count("stack") == 1 and "_local_scalar_dense" not in counting.names
    assert read_all([torch.tensor(0.5, dtype=torch.float64), torch.tensor(0.25)]) == [0.5, 0.25]
    assert read_all([]) == []


def test_a_number_that_was_changed_after_it_was_kept_is_not_taken_for_what_it_was() -> None:
    losses = [torch.tensor(0.5), torch.tensor(0.25), torch.tensor([2.0])]
    kept: list[Any] = [Kept(loss) for loss in losses]
    assert read_all(kept) == [0.5, 0.25, 2.0] and read(kept[0]) == 0.5
    losses[1] *= 4
    assert read_all([*kept, None, 0.125]) == [0.5, None, 2.0, None, 0.125] and read(kept[1]) is None
    assert losses[0].data_ptr() == kept[0].tensor.data_ptr()


def test_a_loss_of_several_cards_is_their_mean() -> None:
    assert (
        keep(torch.tensor([1.0, 2.0])) == 1.5 and keep(torch.tensor([[3.0]])) == 3.0 and keep(torch.tensor(4.0)) == 4.0
    )


@pytest.mark.parametrize("kind", ("float32", "float64"))
@given(micro=st.lists(st.one_of(losses, st.just(math.nan), st.just(math.inf)), max_size=40), filters=st.booleans())
def test_sums_are_rounded_after_every_addition(kind: str, micro: list[float], filters: bool) -> None:
    book = TrainingBook()
    book.dtype = kind
    dtype = getattr(torch, kind)
    micro = [float(torch.tensor(value, dtype=dtype)) for value in micro]
    book.entries = [(None, value, i // 2, None, None) for i, value in enumerate(micro)]
    filtered, divisors = book._filtered(micro, filters)
    assert filtered == ([i for i, value in enumerate(micro) if not math.isfinite(value)] if filters else [])
    total = torch.zeros((), dtype=dtype)
    for i, value in enumerate(micro):
        if i in filtered:
            total += total / (1 + i // 2)
        else:
            total += value
    mine = book._sum(micro, filtered, divisors)
    assert mine == total.item() or (math.isnan(mine) and math.isnan(total.item()))
    if kind == "float32":
        theirs, _ = running_sum(micro, filtered, divisors, total.item())
        assert theirs == mine or (theirs is not None and math.isnan(theirs) and math.isnan(mine))


# Read next: test_changes_nothing.py
