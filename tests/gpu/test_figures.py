"""How speeds and the cost of a trace are estimated: what is known, under noise and a drift, is found again."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks import gpu_speed
from tests.benchmarks.estimate import FEWEST, means_outside, typical
from tests.benchmarks.gpu_shapes import shapes_of
from tests.benchmarks.gpu_trace_cost import PATTERN, READINGS, TIMED_STEPS, Block, figures, verdict

STEP = 0.08  # seconds

# -- one figure from many comparisons --------------------------------------------------------------------------------


def test_the_median_of_the_pairs_means() -> None:
    """Of 0, 1 and 8: 0, 0.5, 1, 4, 4.5 and 8. Three values are too few for an interval: it is all of them."""
    assert typical([8, 0, 1]) == (2.5, 0, 8)


def test_the_interval_is_that_of_the_published_tables() -> None:
    """Critical sums of Wilcoxon's signed ranks, two-sided 5 %: 0 for six, 8 for ten, 52 for twenty."""
    assert [means_outside(count) for count in (5, FEWEST, 10, 20)] == [0, 0, 8, 52]


def test_a_hiccup_moves_neither_figure_nor_interval_far() -> None:
    calm = np.random.default_rng(0).normal(0.004, 0.001, 40).tolist()
    figure, low, high = typical([*calm, 0.5, -0.3, 0.4])
    assert low < 0.004 < high < 0.005
    assert abs(figure - typical(calm)[0]) < 0.0002


def test_shapes_are_for_every_precision_or_for_one() -> None:
    usual = {"bf16": ["64x512"], "fp32": ["32x128"]}
    both = list(usual)
    assert shapes_of(None, both, usual) == usual
    assert shapes_of(["8x16", "bf16=4x32"], both, usual) == {"bf16": ["8x16", "4x32"], "fp32": ["8x16"]}
    assert shapes_of(["bf16=4x32"], both, usual) == {"bf16": ["4x32"]}
    for wrong in ("fp16=8x16", "8", "8x", "bf16=x16", "=8x16x2"):
        with pytest.raises(SystemExit, match="--shapes"):
            shapes_of([wrong], both, usual)


# -- the cost of a trace ---------------------------------------------------------------------------------------------


def made(
    added: float, noise: float, drift: float, count: int = 400, seed: int = 0, added_to_a_log: float = 0.0
) -> list[Block]:
    """Blocks whose steps take STEP, `added` of it more with the trace, `drift` of it more from the first to the last.

    The last step of a block takes `added_to_a_log` of STEP more with the trace.
    """
    random = np.random.default_rng(seed)
    blocks = []
    for number in range(count):
        on = PATTERN[number % len(PATTERN)]
        base = STEP * (1 + added * on + drift * number / count)
        steps = base * (1 + noise * random.standard_normal(TIMED_STEPS))
        steps[-1] += STEP * added_to_a_log * on
        blocks.append(Block(on, steps.tolist(), (steps / 2).tolist()))
    return blocks


@pytest.mark.parametrize("name", READINGS)
@pytest.mark.parametrize("added", [0.0, 0.003, 0.02])
def test_a_known_cost_is_found_again_within_its_interval(name: str, added: float) -> None:
    found = figures([made(added, noise=0.01, drift=0.1), made(added, noise=0.01, drift=-0.1, seed=1)])[name]
    low, high = found["added"]["interval"]
    assert low < added < high
    assert high - low < 0.002
    assert found["null"]["interval"][0] < 0 < found["null"]["interval"][1]
    assert (found["added"]["groups"], found["null"]["groups"]) == (200, 198)


def test_a_log_counts_as_one_step_of_ten() -> None:
    found = figures([made(0.003, noise=0.01, drift=0.0, added_to_a_log=0.05)])
    for name, expected in (("a step, every tenth with a log", 0.008), ("a step without a log", 0.003)):
        low, high = found[name]["added"]["interval"]
        assert low < expected < high, name
        assert high - low < 0.003, name


def test_the_interval_covers_what_it_says() -> None:
    """Of 40 runs with a cost of 0.4 %, at most six intervals of 95 % miss it: more would come by chance in 1 of 500."""
    name = "a step, every tenth with a log"
    missed = 0
    for seed in range(40):
        blocks = made(0.004, noise=0.02, drift=0.0, count=120, seed=seed)
        low, high = figures([blocks])[name]["added"]["interval"]
        missed += not low <= 0.004 <= high
    assert missed <= 6


def test_the_shortest_run_has_figures() -> None:
    """Two groups of four blocks are what the program accepts; between them lies one comparison of equals."""
    for found in figures([made(0.003, noise=0.001, drift=0.0, count=8)]).values():
        assert (found["added"]["groups"], found["null"]["groups"]) == (2, 1)
        assert found["null"]["middle_half"] == [found["null"]["share"]] * 2


def test_the_verdict_says_when_it_cannot_tell() -> None:
    name = "a step, every tenth with a log"
    assert "as aimed at" in verdict(figures([made(0.001, noise=0.005, drift=0.0)])[name])
    assert "more than" in verdict(figures([made(0.02, noise=0.005, drift=0.0)])[name])
    assert "too coarse" in verdict(figures([made(0.005, noise=0.05, drift=0.0, count=80)])[name])
    assert "too few" in verdict(figures([made(0.0, noise=0.001, drift=0.0, count=20)])[name])


# -- speeds ----------------------------------------------------------------------------------------------------------


def blocks(times: dict[str, float], noise: float, drift: float, turns: int, seed: int = 0) -> dict[str, list[float]]:
    """Seconds of each way's blocks, there and back again, on a machine that grows slower by `drift` until the end."""
    random = np.random.default_rng(seed)
    seconds: dict[str, list[float]] = {name: [] for name in gpu_speed.WAYS}
    moment = 0
    for turn in range(turns):
        for name in gpu_speed.WAYS if turn % 2 else reversed(gpu_speed.WAYS):
            pace = 1 + drift * moment / (turns * len(gpu_speed.WAYS))
            seconds[name].append(times.get(name, 1.0) * pace * (1 + noise * random.standard_normal()))
            moment += 1
    return seconds


def test_known_speeds_are_found_again_under_a_drift() -> None:
    """Ours takes 0.9 of the real one's time and 1.1 of the loop's: both ratios, and the two verdicts."""
    found = gpu_speed.figures(blocks({"transformers 4.31.0": 1 / 0.9, "by hand": 1 / 1.1}, 0.01, 0.3, turns=24))
    assert len(found) == len(gpu_speed.GOALS)
    for name, ratio, said in (
        ("minitrainer to transformers 4.31.0", 1 / 0.9, "met"),
        ("minitrainer to by hand", 1 / 1.1, "missed"),
        ("minitrainer to transformers, installed", 1.0, "not settled"),
        ("minitrainer to minitrainer, again", 1.0, None),
    ):
        low, high = found[name]["interval"]
        assert low < ratio < high, name
        assert high - low < 0.03
        assert found[name]["verdict"] == said, name
        assert found[name]["lowest_and_highest_turn"][0] <= low <= found[name]["typical"] <= high
        assert found[name]["turns"] == 24


def test_ways_that_were_left_out_are_not_compared() -> None:
    some = blocks({}, 0.01, 0.0, turns=8)
    found = gpu_speed.figures({name: some[name] for name in ("minitrainer", "by hand", "minitrainer, again")})
    assert list(found) == ["minitrainer to by hand", "minitrainer to minitrainer, again"]


def test_the_interval_of_two_equal_ways_covers_one() -> None:
    """Of 40 runs at most six intervals of 95 % miss it."""
    missed = 0
    for seed in range(40):
        found = gpu_speed.figures(blocks({}, 0.02, 0.1, turns=16, seed=seed))
        low, high = found["minitrainer to minitrainer, again"]["interval"]
        missed += not low <= 1 <= high
    assert missed <= 6


def test_a_verdict_takes_an_interval_on_one_side_and_turns_enough() -> None:
    enough = FEWEST
    assert gpu_speed.verdict(1.0, 1.0, 1.1, enough) == "met"
    assert gpu_speed.verdict(1.0, 0.9, 0.99, enough) == "missed"
    assert gpu_speed.verdict(1.0, 0.99, 1.0, enough) == "not settled"
    assert gpu_speed.verdict(1.0, 1.05, 1.1, enough - 1) == "not settled"


# Read next: tests/benchmarks/gpu_speed.py
