"""In whatever environment this is, our Trainer does what the real 4.31.0 does in its own.

The real one runs in a child process on the isolated 4.31.0, ours runs here, on the installed transformers and
accelerate. Order, flags, counts, file names and kinds of failures must be equal; see shape.py for what is left out.
"""

from __future__ import annotations

import os
import pickle
from pathlib import Path

import pytest

from minitrainer.trace import upstream

from ..conftest import REFERENCE_VERSION
from .cases import Case, training_cases
from .compare import differences, show
from .run import our_library, run_case
from .search import drawn_from
from .shape import shape_of
from .test_named import SURPRISES

ROOT = Path(__file__).resolve().parents[2]
DRAWN_CASES = int(os.environ.get("MINITRAINER_EVERYDAY_EXAMPLES", "40"))


def independent_of_numbers(case: Case) -> bool:
    """Whether what a run does, apart from its numbers, depends on none of them."""
    decides = ("load_best_model_at_end", "metric_for_best_model", "auto_find_batch_size", "skip_memory_metrics")
    return case.early_stopping is None and case.oom_above is None and not any(name in case.args for name in decides)


def independent_of_libraries(case: Case) -> bool:
    """Whether nothing takes part that the installed transformers does otherwise than 4.31.0's.

    A newer tokenizer writes other files, a newer BERT can't be traced, and the inverse square root schedule no longer
    divides by zero without warm-up.
    """
    schedule = case.args.get("lr_scheduler_type")
    return not case.tokenizer and not case.args.get("jit_mode_eval") and schedule != "inverse_sqrt"


def comparable(case: Case) -> bool:
    """Whether both environments can be held to the same course."""
    return independent_of_numbers(case) and independent_of_libraries(case)


def everyday_cases() -> list[Case]:
    """The named surprises and drawn training runs, those whose course no number decides."""
    drawn: list[Case] = []
    drawn_from(training_cases().filter(comparable), "everyday", DRAWN_CASES, None, drawn.append, False)
    named = [case for case in SURPRISES.values() if comparable(case)]
    return named + drawn[:DRAWN_CASES]


@pytest.mark.slow
def test_ours_here_does_what_the_real_one_does_there(tmp_path: Path) -> None:
    """Every case has the same course in both environments."""
    cases = everyday_cases()
    assert len(cases) >= 25 + DRAWN_CASES
    plan, answers = tmp_path / "plan.pickle", tmp_path / "answers.pickle"
    plan.write_bytes(pickle.dumps(cases))
    upstream.add(REFERENCE_VERSION)
    arguments = ["-m", "tests.parity.shape", str(plan), str(answers)]
    child = upstream.run_in(REFERENCE_VERSION, arguments, capture=True, cwd=ROOT, env={"OMP_NUM_THREADS": "1"})
    assert child.returncode == 0, f"{child.stdout}\n{child.stderr}"
    there = pickle.loads(answers.read_bytes())
    different = []
    for case, expected in zip(cases, there, strict=True):
        here = shape_of(run_case(case, our_library()))
        for path, real, ours in differences(expected, here):
            different.append(f"{case!r}\n  {path}: real {show(real)}, ours {show(ours)}")
            break
    assert not different, f"{len(different)} of {len(cases)} differ\n" + "\n".join(different)


# Read next: tests/parity/shape.py
