"""The harness itself: equal where things are equal, and able to fail.

The real Trainer compared with itself must be equal on drawn cases; every mutant must be found, on its own case and by
the drawn ones; and the draw must reach what it claims to reach.
"""

from __future__ import annotations

from collections import Counter

import pytest

from .cases import Case
from .compare import differences, failure_difference, named_things
from .mutants import MUTANTS, Mutant
from .observation import Failure
from .run import real_library
from .search import KINDS, SHARES, chunks, compare_on, drawn, search
from .subjects import EVENTS

pytestmark = pytest.mark.reference


@pytest.mark.parametrize("kind", SHARES)
def test_the_real_trainer_equals_itself(kind: str) -> None:
    """Nothing in an observation depends on the time, the folder or what ran before."""
    ran, difference = search(kind, 15, real_library())
    assert difference is None, difference
    assert ran >= 15


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_planted_difference_is_found_and_named(mutant: Mutant) -> None:
    """The message about each mutant says what is different."""
    difference = compare_on(mutant.case, real_library(), mutant.build())
    assert difference is not None, "not found"
    assert mutant.found_as in difference, difference


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_the_draw_finds_a_planted_difference(mutant: Mutant) -> None:
    """The property tests would find each mutant by themselves, within the examples of an everyday run."""
    _, difference = search(mutant.kind, round(300 * SHARES[mutant.kind]), mutant.build(), shrink=False)
    assert difference is not None


def test_the_draw_reaches_every_option() -> None:
    """Over the examples of an everyday run, every field of a Case and every event takes part."""
    seen: Counter[str] = Counter()
    fields: Counter[str] = Counter()
    for kind in KINDS:

        def look(case: Case) -> None:
            fields.update(name for name, value in vars(case).items() if value != getattr(Case(), name))
            seen.update(f"{name}={value}" for name, value in vars(case).items() if isinstance(value, str))
            seen.update(f"args.{name}" for name in case.args)
            seen.update(f"optim={case.args['optim']}" for _ in case.args if "optim" in case.args)
            seen.update(f"scheduler={case.args.get('lr_scheduler_type')}" for _ in (1,))
            seen.update(f"nudge={nudge[0]}" for nudge in case.nudges)

        drawn(kind, round(300 * SHARES[kind]), None, look, shrink=False)
    assert set(vars(Case())) == set(fields)
    assert {f"nudge={event}" for event in EVENTS} <= set(seen)
    for wanted in ("optim=adafactor", "optim=adamw_hf", "scheduler=cosine", "scheduler=reduce_lr_on_plateau"):
        assert seen[wanted] > 0, wanted
    for wanted in ("model=bert", "train=iterable", "train=datasets", "evaluation=iterable_sized", "resume=last"):
        assert seen[wanted] > 0, wanted


# -- the comparison --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("left", "right"), [(1, 1.0), (0.0, -0.0), (1, True), ("1", 1), ([1], [1, 2]), ({"a": 1}, {"a": 1, "b": 2})]
)
def test_values_that_only_look_equal_differ(left: object, right: object) -> None:
    """Types, signs of zero and lengths count."""
    assert list(differences(left, right))


def test_order_of_entries_counts_and_nan_equals_itself() -> None:
    """A dict in another order is another dict; NaN does not differ from NaN."""
    assert list(differences({"a": 1, "b": 2}, {"b": 2, "a": 1}))
    assert not list(differences({"a": float("nan")}, {"a": float("nan")}))


def test_messages_may_be_worded_afresh_but_must_name_the_same() -> None:
    """Own messages are compared by what they name; messages of shared code word by word."""
    real = Failure("ValueError", "--eval_steps must be an integer if bigger than 1: 2.5", "trainer")
    good = Failure("ValueError", "`eval_steps` above one has to be whole, not 2.5", "trainer")
    poor = Failure("ValueError", "`eval_steps` above one has to be whole", "trainer")
    assert failure_difference(real, good) is None
    assert "2.5" in str(failure_difference(real, poor))
    assert named_things(real.message) == {"eval_steps", "2.5"}
    shared = Failure("TypeError", "forward() got an unexpected keyword argument", "torch/nn/modules/module.py")
    assert failure_difference(shared, Failure("TypeError", "another text", "torch/nn/modules/module.py")) is not None


def test_the_long_run_is_divided_into_all_its_examples() -> None:
    """Chunks add up to the examples asked for, and no chunk appears twice."""
    plan = chunks(1000, 7, list(KINDS))
    assert sum(count for _, _, count in plan) == 1000
    assert len({(kind, seed) for kind, seed, _ in plan}) == len(plan)
    assert min(seed for _, seed, _ in plan) == 7


# Read next: tests/parity/test_properties.py
