"""Starts the `reference` tests on the isolated transformers 4.31.0, and wants all of them to run and to pass."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from minitrainer.trace import upstream

from .conftest import REFERENCE_VERSION, in_reference_environment

ROOT = Path(__file__).resolve().parents[1]

# How many of them there are at least: a run that lost its tests must not pass. Raise it when tests are added.
LEAST_TESTS = 380
LIMIT_SECONDS = 3000  # a few minutes on two idle cores; they are seldom idle


@pytest.mark.slow
def test_reference_tests_pass_on_the_real_4_31_0() -> None:
    """The child runs at least LEAST_TESTS tests, none fails, none is skipped but the pushes that need git-lfs."""
    assert not in_reference_environment(), "run the reference tests themselves here: pytest -m reference"
    if not upstream_is_at_hand():
        upstream.add(REFERENCE_VERSION)
    child = upstream.run_in(
        REFERENCE_VERSION,
        ["-m", "pytest", "-m", "reference", "-q", "-p", "no:cacheprovider", "--no-header", str(ROOT / "tests")],
        env={"OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": None},
        capture=True,
        timeout=LIMIT_SECONDS,
        cwd=ROOT,
    )
    shown = f"{child.stdout}\n{child.stderr}"
    print(shown[-20_000:])  # pytest shows it when the test fails
    assert child.versions["transformers"] == REFERENCE_VERSION
    assert child.returncode == 0, "the reference tests did not all pass; their output stands above"
    counts = {word: int(number) for number, word in re.findall(r"(\d+) (passed|failed|skipped|xfailed|error)", shown)}
    without_git_lfs = 2 if shutil.which("git-lfs") is None else 0
    assert counts.pop("skipped", 0) <= without_git_lfs and set(counts) == {"passed"}, counts
    assert counts["passed"] >= LEAST_TESTS, counts


def upstream_is_at_hand() -> bool:
    """Whether the isolated reference folder is already there."""
    try:
        upstream.find(REFERENCE_VERSION)
    except upstream.UsageError:
        return False
    return True


def test_reference_tests_are_deselected_here_and_counted(tmp_path: Path) -> None:
    """Outside the reference environment they are neither run nor skipped, and the summary says how many there are."""
    command = [
        sys.executable,
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
        str(ROOT / "tests" / "parity"),
    ]
    listing = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    found = re.search(r"(\d+) reference tests are run by tests/test_reference_environment.py", listing.stdout)
    assert found is not None, listing.stdout + listing.stderr
    assert int(found.group(1)) >= LEAST_TESTS
    assert "skipped" not in listing.stdout


# Read next: tests/parity/test_properties.py
