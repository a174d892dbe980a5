"""How the cost of a trace is estimated: a known cost, under noise and a drift, is found again."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks.gpu_trace_cost import PATTERN, READINGS, TIMED_STEPS, Block, figures, verdict

STEP = 0.08  # seconds


def made(added: float, noise: float, drift: float, count: int = 400, seed: int = 0) -> list[Block]:
    """Blocks whose steps take STEP, `added` of it more with the trace, `drift` of it more from the first to the last."""
    random = np.random.default_rng(seed)
    blocks = []
    for number in range(count):
        on = PATTERN[number % len(PATTERN)]
        base = STEP * (1 + added * on + drift * number / count)
        steps = base * (1 + noise * random.standard_normal(TIMED_STEPS))
        blocks.append(Block(on, steps.tolist(), (steps / 2).tolist()))
    return blocks


@pytest.mark.parametrize("name", READINGS)
@pytest.mark.parametrize("added", [0.0, 0.003, 0.02])
def test_a_known_cost_is_found_again_within_its_interval(name: str, added: float) -> None:
    found = figures(made(added, noise=0.01, drift=0.1))[name]
    low, high = found["added"]["interval"]
    assert low < added / 1.05 * 1.06 and high > added / 1.06  # of the middle of the drift
    assert high - low < 0.003
    assert found["null"]["interval"][0] < 0 < found["null"]["interval"][1]
    assert (found["added"]["pairs"], found["null"]["pairs"]) == (200, 199)


def test_the_interval_covers_what_it_says() -> None:
    """Of 40 runs with a cost of 0.4 %, at most six intervals of 95 % miss it: more would come by chance in 1 of 500."""
    name = "a step, every tenth with a log"
    missed = 0
    for seed in range(40):
        blocks = made(0.004, noise=0.02, drift=0.0, count=120, seed=seed)
        low, high = figures(blocks, resamples=400)[name]["added"]["interval"]
        missed += not low <= 0.004 <= high
    assert missed <= 6


def test_the_verdict_says_when_it_cannot_tell() -> None:
    name = "a step, every tenth with a log"
    assert "as aimed at" in verdict(figures(made(0.001, noise=0.005, drift=0.0))[name])
    assert "more than" in verdict(figures(made(0.02, noise=0.005, drift=0.0))[name])
    assert "too coarse" in verdict(figures(made(0.005, noise=0.05, drift=0.0, count=40))[name])


# Read next: tests/benchmarks/gpu_trace_cost.py
