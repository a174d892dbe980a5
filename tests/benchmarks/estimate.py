"""From repeated comparisons to one figure and what is known of it.

Comparisons scatter with heavy tails: a shared machine has hiccups, and for seconds at a time half its pace. So neither
their mean is taken, which one hiccup moves, nor their median, which leaves a third of what they say unused, but the
median of the means of all their pairs (Hodges and Lehmann). Its interval comes from Wilcoxon's signed ranks. It is
exact for any number of comparisons, as long as they scatter alike to both sides, as differences of neighbours and
logarithms of their ratios do.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

FEWEST = 6
"""Comparisons: of fewer, not even the lowest and the highest hold the figure with 95 %."""


def typical(differences: Sequence[float]) -> tuple[float, float, float]:
    """The median of all pairs' means, and an interval that holds it with at least 95 % (all values, if too few)."""
    values = np.array(differences)
    one, other = np.triu_indices(len(values))  # each value is paired with itself too
    means = np.sort((values[one] + values[other]) / 2)
    outside = means_outside(len(values))
    return float(np.median(means)), float(means[outside]), float(means[-1 - outside])


def typical_ratio(ours: Sequence[float], others: Sequence[float]) -> tuple[float, float, float]:
    """How many times as long the others take, pair by pair: the figure and its interval."""
    found = typical([math.log(other / own) for own, other in zip(ours, others, strict=True)])
    return math.exp(found[0]), math.exp(found[1]), math.exp(found[2])


def means_outside(count: int) -> int:
    """How many of the sorted means lie outside of an interval of 95 %, on either side."""
    # chances of each sum of ranks: every rank, 1 to `count`, is in the sum or not, like a coin
    chances = np.zeros(count * (count + 1) // 2 + 1)
    chances[0] = 1
    for rank in range(1, count + 1):
        chances[rank:] = (chances[rank:] + chances[:-rank]) / 2
        chances[:rank] /= 2
    return max(0, int(np.searchsorted(np.cumsum(chances), 0.025, side="right")) - 1)


# Read next: gpu_trace_cost.py
