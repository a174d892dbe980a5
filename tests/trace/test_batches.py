"""The digest of a batch: what it covers, and that the C and the Python find the same."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from minitrainer.trace import batches
from minitrainer.trace.batches import IGNORED_LABEL, Batches

KINDS = [
    torch.int64, torch.int32, torch.int16, torch.uint8, torch.bool, torch.float64, torch.float32, torch.float16,
    torch.bfloat16, torch.complex64,
]  # fmt: skip


def in_c(known: Batches, batch: Any) -> Any:
    """What the C alone finds; None where it leaves the batch to the Python."""
    found = batches.like_the_last(batch, known._layouts, "labels", torch.Tensor, xxh3_64_intdigest)
    assert found is None or found[3] is next(iter(batch.values()))
    return found and found[:3]


@st.composite
def tensors(draw: Any, kinds: list[torch.dtype] = KINDS) -> torch.Tensor:
    shape = draw(st.lists(st.integers(0, 4), max_size=3))
    kind = draw(st.sampled_from(kinds))
    numbers = st.sampled_from([0, 1, 2, 77, IGNORED_LABEL, IGNORED_LABEL + 1])
    count = torch.Size(shape).numel()
    values = torch.tensor(draw(st.lists(numbers, min_size=count, max_size=count)), dtype=torch.float64)
    tensor = values.reshape(shape).abs().to(kind) if kind is torch.uint8 else values.reshape(shape).to(kind)
    if draw(st.booleans()) and tensor.dim() > 1:
        tensor = tensor.transpose(0, 1)
    return tensor


names = st.sampled_from(["x", "labels", "mask", 0])


@given(st.dictionaries(names, tensors(), max_size=4), st.dictionaries(names, tensors(), max_size=4))
@settings(max_examples=400)
def test_c_and_python_find_the_same(first: dict[Any, torch.Tensor], second: dict[Any, torch.Tensor]) -> None:
    known, other = Batches(torch), Batches(torch)
    for batch in (first, first, second, first, second, second):
        expected = other.identify(batch, "labels")
        if known._first_tensor(batch) is not None:
            assert known.of(batch, "labels") == (*expected, None)
        assert in_c(known, batch) in (None, expected)


@pytest.mark.skipif(not hasattr(batches.like_the_last, "__self__"), reason="there was no compiler")
def test_the_c_takes_what_is_like_the_last_batch_and_nothing_else() -> None:
    known = Batches(torch)
    batch = {"x": torch.rand(4, 3), "labels": torch.tensor([1, IGNORED_LABEL, 3, IGNORED_LABEL])}
    assert in_c(known, batch) is None  # nothing is known yet
    found = known.identify(batch, "labels")
    assert found[:2] == (4, 2) and in_c(known, batch) == found
    larger = {"x": torch.rand(5, 3), "labels": torch.zeros(5, dtype=torch.int64)}
    narrow = {**batch, "labels": batch["labels"].int()}
    spread = {**batch, "x": torch.rand(3, 4).T}
    subclass = {**batch, "x": torch.nn.Parameter(batch["x"])}
    for unlike in (larger, narrow, spread, subclass, {**batch, "other": batch["x"]}, {**batch, "text": "t"}, [batch]):
        assert in_c(known, unlike) is None
    assert in_c(known, {}) is None and in_c(known, {"x": torch.rand(4, 3, device="meta")}) is None


def test_what_the_digest_covers() -> None:
    known = Batches(torch)
    x = torch.arange(6, dtype=torch.float32)
    batches_apart = [
        {"x": x},
        {"y": x},
        {"x": x.double()},
        {"x": x.reshape(2, 3)},
        {"x": x + 1},
        {"x": x, "labels": x},
        {"labels": x, "x": x},
    ]
    found = [known.identify(batch, "labels")[2] for batch in batches_apart for _ in range(2)]
    assert found[::2] == found[1::2] and len(set(found)) == len(batches_apart)


def test_nothing_is_kept_alive() -> None:
    """A reference too many is a leak of a batch each step, one too few a crash later."""
    known = Batches(torch)
    batch = {"x": torch.rand(4, 3), "labels": torch.zeros(4, dtype=torch.int64)}
    known.identify(batch, "labels")
    watched = [batch, *batch.values(), *known._layouts.values(), known._layouts, xxh3_64_intdigest, torch.Tensor]
    watched += [field for layout in known._layouts.values() for field in layout if not isinstance(field, int)]
    before = [sys.getrefcount(one) for one in watched]
    for _ in range(1000):
        in_c(known, batch)
        in_c(known, {"x": batch["x"].T})
        in_c(known, {**batch, "labels": torch.zeros(3)})
    assert [sys.getrefcount(one) for one in watched] == before


# Read next: test_probes.py
