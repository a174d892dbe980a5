"""Looks for a Case in which two libraries differ, with hypothesis drawing and shrinking the Cases.

As a program it is the long run: `python -m tests.parity.search --examples 10000`. It goes on after a difference,
prints its progress, can be interrupted and resumed, and ends with one report line. Outside the reference environment
it starts itself there.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, given, settings

from minitrainer.trace import upstream

from ..conftest import REFERENCE_VERSION, in_reference_environment
from .cases import Case, evaluation_cases, invalid_cases, resume_cases, training_cases
from .compare import first_difference
from .run import Library, TimeLimit, our_library, real_library, run_case

KINDS: dict[str, Callable[[], Any]] = {
    "training": training_cases,
    "evaluation": evaluation_cases,
    "resume": resume_cases,
    "invalid": invalid_cases,
}
# of all examples, the part that each kind gets
SHARES = {"training": 0.35, "evaluation": 0.2, "resume": 0.3, "invalid": 0.15}
CHUNK = 50  # examples under one seed in the long run


class Different(AssertionError):
    """Two libraries differ on one case."""


def compare_on(case: Case, real: Library, ours: Library) -> str | None:
    """Run one case with both libraries and return the first difference, or None."""
    try:
        found = first_difference(run_case(case, real), run_case(case, ours))
    except TimeLimit as limit:
        found = str(limit)
    return None if found is None else f"{case!r}\n{found}"


def search(
    kind: str, examples: int, ours: Library, seed: int | None = None, shrink: bool = True
) -> tuple[int, str | None]:
    """Compare `ours` with the real library on drawn cases until one differs.

    Args:
        kind: A key of KINDS.
        examples: How many cases to draw.
        ours: The library under test.
        seed: Hypothesis' seed; None draws the same cases every time.
        shrink: Whether to look for a smaller case once one differs.

    Returns:
        How many cases ran, and the difference, smallest case first, or None.
    """
    real = real_library()
    ran = 0

    def check(case: Case) -> None:
        nonlocal ran
        ran += 1
        found = compare_on(case, real, ours)
        if found is not None:
            raise Different(found)

    try:
        drawn(kind, examples, seed, check, shrink)
    except Different as difference:
        return ran, str(difference)
    return ran, None


def collect(kind: str, examples: int, ours: Library, seed: int) -> tuple[int, list[str]]:
    """Compare on drawn cases and go on after a difference.

    Returns:
        How many cases ran, and every difference found.
    """
    real = real_library()
    ran = 0
    found: list[str] = []

    def check(case: Case) -> None:
        nonlocal ran
        ran += 1
        difference = compare_on(case, real, ours)
        if difference is not None:
            found.append(difference)

    drawn(kind, examples, seed, check, shrink=False)
    return ran, found


def drawn(kind: str, examples: int, seed: int | None, check: Callable[[Case], None], shrink: bool) -> None:
    """Call `check` on `examples` cases of a kind."""
    drawn_from(KINDS[kind](), kind, examples, seed, check, shrink)


def drawn_from(
    cases: Any, name: str, examples: int, seed: int | None, check: Callable[[Case], None], shrink: bool
) -> None:
    """Call `check` on `examples` cases of a strategy.

    Args:
        cases: The strategy.
        name: Takes part in the draw where there is no seed.
        examples: How many to draw.
        seed: Hypothesis' seed; None draws the same cases every time.
        check: Raises to say that a case fails.
        shrink: Whether to look for a smaller failing case.
    """
    phases = [Phase.generate, Phase.shrink] if shrink else [Phase.generate]
    configured = settings(
        max_examples=examples,
        derandomize=seed is None,
        database=None,
        deadline=None,
        report_multiple_bugs=False,
        suppress_health_check=list(HealthCheck),
        phases=phases,
    )

    def one(case: Case) -> None:
        check(case)

    # without a seed hypothesis derives the draw from the function's name: one name a kind gives each its own draw
    one.__name__ = one.__qualname__ = f"one_{name}"
    property_test = configured(given(cases)(one))
    if seed is not None:
        property_test = hypothesis.seed(seed)(property_test)
    property_test()


# -- the long run ----------------------------------------------------------------------------------------------------


def main() -> int:
    """Run many examples, chunk by chunk, writing what is done after each so that it can go on later."""
    parser = argparse.ArgumentParser(prog="python -m tests.parity.search", description=main.__doc__)
    parser.add_argument("--examples", type=int, default=10_000, help="how many cases to compare in all")
    parser.add_argument("--first_seed", type=int, default=0, help="seed of the first chunk")
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--progress", type=Path, default=Path("runs/parity-long.json"), help="where progress is kept")
    options = parser.parse_args()
    if not in_reference_environment():
        upstream.add(REFERENCE_VERSION)
        return upstream.run_in(REFERENCE_VERSION, ["-m", "tests.parity.search", *sys.argv[1:]]).returncode

    plan = chunks(options.examples, options.first_seed, options.kinds)
    done = load_progress(options.progress)
    started = time.perf_counter()
    for kind, seed, count in plan:
        key = f"{kind}:{seed}:{count}"
        if key not in done:
            ran, found = collect(kind, count, our_library(), seed)
            done[key] = {"ran": ran, "differences": found}
            save_progress(options.progress, done)
            for difference in found:
                print(difference, end="\n\n")
        finished = [done[f"{k}:{s}:{c}"] for k, s, c in plan if f"{k}:{s}:{c}" in done]
        ran_so_far = sum(chunk["ran"] for chunk in finished)
        print(
            f"{ran_so_far:>6} of {options.examples} examples, {sum(len(c['differences']) for c in finished)} differ, "
            f"{time.perf_counter() - started:.0f} s ({kind}, seed {seed})",
            flush=True,
        )
    total = sum(done[f"{k}:{s}:{c}"]["ran"] for k, s, c in plan)
    differing = sum(len(done[f"{k}:{s}:{c}"]["differences"]) for k, s, c in plan)
    seeds = f"{options.first_seed} to {max(seed for _, seed, _ in plan)}"
    print(f"parity: {total} examples against transformers {REFERENCE_VERSION}, {differing} differ, seeds {seeds}")
    return 1 if differing else 0


def chunks(examples: int, first_seed: int, kinds: list[str]) -> list[tuple[str, int, int]]:
    """Divide the examples into chunks: kind, seed, number of examples; the kinds take turns."""
    whole = sum(SHARES[kind] for kind in kinds)
    left = {kind: round(examples * SHARES[kind] / whole) for kind in kinds}
    plan = []
    seed = first_seed
    while any(left.values()):
        for kind in kinds:
            count = min(CHUNK, left[kind])
            if count:
                plan.append((kind, seed, count))
                left[kind] -= count
        seed += 1
    return plan


def load_progress(path: Path) -> dict[str, Any]:
    """What an earlier run of the same command has done."""
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def save_progress(path: Path, done: dict[str, Any]) -> None:
    """Write the progress file whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    partial.write_text(json.dumps(done, indent=1), encoding="utf-8")
    partial.replace(path)


if __name__ == "__main__":
    sys.exit(main())

# Read next: tests/parity/compare.py
