"""The leaf functions by themselves: the examples that their docstrings give, and promises that hold on every input."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from minitrainer.parts.choices import IntervalStrategy
from minitrainer.parts.gathering import DistributedTensorGatherer, nested_concat, nested_numpify
from minitrainer.parts.label_smoothing import LabelSmoother
from minitrainer.parts.logs import get_logger
from minitrainer.parts.metrics import TrainerMemoryTracker
from minitrainer.parts.outputs import EvalPrediction
from minitrainer.parts.samplers import (
    IterableDatasetShard,
    SequentialDistributedSampler,
    ShardSampler,
    get_length_grouped_indices,
)

# -- the examples of the docstrings ---


def test_ranks_get_whole_batches_in_order() -> None:
    """ShardSampler's example."""
    parts = [list(ShardSampler(range(16), 4, num_processes=2, process_index=rank)) for rank in range(2)]
    assert parts == [[0, 1, 2, 3, 8, 9, 10, 11], [4, 5, 6, 7, 12, 13, 14, 15]]


def test_ranks_get_their_slice_of_a_stream() -> None:
    """IterableDatasetShard's example."""
    parts = [list(IterableDatasetShard(range(12), 2, num_processes=2, process_index=rank)) for rank in range(2)]
    assert parts == [[0, 1, 4, 5, 8, 9], [2, 3, 6, 7, 10, 11]]


def test_gathered_batches_come_back_in_order() -> None:
    """DistributedTensorGatherer's example: 16 examples, 3 ranks, batches of 2, each rank predicting its index."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        parts = [list(SequentialDistributedSampler(range(16), 3, rank, 2)) for rank in range(3)]
        gatherer = DistributedTensorGatherer(3, 16, make_multiple_of=2)
    assert parts[2] == [12, 13, 14, 15, 0, 1]
    first = [index for part in parts for index in part[:2]]
    assert first == [0, 1, 6, 7, 12, 13]
    for start in range(0, 6, 2):
        gatherer.add_arrays(np.array([index for part in parts for index in part[start : start + 2]]))
    assert gatherer.finalize().tolist() == list(range(16))


# -- promises ---


@given(lengths=st.lists(st.integers(1, 50), min_size=1, max_size=200), size=st.integers(1, 8))
def test_grouping_by_length(lengths: list[int], size: int) -> None:
    """Every example once, the longest first, mega-batches sorted (but for the exchange of two heads)."""
    order = get_length_grouped_indices(lengths, size)
    assert sorted(order) == list(range(len(lengths)))
    assert lengths[order[0]] == max(lengths)
    mega = size * max(1, min(len(lengths) // (size * 4), 50))
    for start in range(0, len(order), mega):
        rest = [lengths[index] for index in order[start + 1 : start + mega]]
        assert rest == sorted(rest, reverse=True)


def test_padding_fills_the_shorter_side() -> None:
    """On dimension 1, with -100."""
    joined = nested_concat({"a": torch.ones(1, 2)}, {"a": torch.zeros(2, 3)})
    assert joined["a"].tolist() == [[1, 1, -100], [0, 0, 0], [0, 0, 0]]


def test_bfloat16_becomes_float32() -> None:
    """numpy has no such type."""
    (array,) = nested_numpify((torch.tensor([1.5], dtype=torch.bfloat16),))
    assert (array.dtype, array.tolist()) == (np.float32, [1.5])


@given(epsilon=st.floats(0, 1), classes=st.integers(2, 6), rows=st.integers(1, 5))
def test_label_smoothing_is_torchs_cross_entropy(epsilon: float, classes: int, rows: int) -> None:
    """torch's own `label_smoothing` means the same mixture, so float64 agrees closely (not to the last bit)."""
    generator = torch.Generator().manual_seed(classes * 10 + rows)
    logits = torch.randn(rows, classes, generator=generator, dtype=torch.float64)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    mine = LabelSmoother(epsilon)({"logits": logits}, labels)
    theirs = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=epsilon)
    # The uniform part is summed in float32: seven digits.
    assert abs(float(mine - theirs)) < 1e-6


def test_eval_prediction_has_two_or_three_parts() -> None:
    """And refuses negative indices."""
    assert len([*EvalPrediction(1, 2)]) == 2
    assert [*EvalPrediction(1, 2, 3)] == [1, 2, 3]
    with pytest.raises(IndexError):
        EvalPrediction(1, 2)[2]
    with pytest.raises(IndexError):
        EvalPrediction(1, 2)[-1]


def test_an_unknown_word_lists_the_known_ones() -> None:
    """In the order of the class."""
    with pytest.raises(
        ValueError, match=r"^x is not a valid IntervalStrategy: it is one of \['no', 'steps', 'epoch'\]$"
    ):
        IntervalStrategy("x")


def test_loggers_obey_transformers() -> None:
    """Their level is that of its root logger."""
    from transformers.utils import logging as transformers_logging

    logger, before = get_logger("minitrainer.some.module"), transformers_logging.get_verbosity()
    try:
        for level in (10, 40):
            transformers_logging.set_verbosity(level)
            assert logger.getEffectiveLevel() == level
    finally:
        transformers_logging.set_verbosity(before)


class Phases:
    """A Trainer whose `train` is split into phases, one of which ends the measurement."""

    def __init__(self) -> None:
        self.tracker = TrainerMemoryTracker()
        self.tracker.start()
        self.tracker.stop_and_update_metrics()

    def train(self) -> dict[str, Any]:
        self.tracker.start()
        return self._finish()

    def _finish(self) -> dict[str, Any]:
        metrics: dict[str, Any] = {}
        self.tracker.stop_and_update_metrics(metrics)
        return metrics


def test_the_stage_is_found_from_a_phase() -> None:
    """The nearest Trainer method outwards names it."""
    pytest.importorskip("psutil")
    assert "train_mem_cpu_alloc_delta" in Phases().train()


# Read next: ../test_reference_environment.py
