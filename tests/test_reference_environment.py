"""Starts the `reference` tests on the isolated transformers 4.31.0, and wants all of them to run and to pass."""

from __future__ import annotations

import faulthandler
import re
import shutil
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from minitrainer.trace import upstream

from .conftest import REFERENCE_VERSION, in_reference_environment

ROOT = Path(__file__).resolve().parents[1]

# How many of them there are at least: a run that lost its tests must not pass. Raise it when tests are added.
LEAST_TESTS = 440
LEAST_PARITY_TESTS = 400
WORKERS = 2
LIMIT_SECONDS = 3000  # a few minutes on two idle cores; they are seldom idle


@pytest.mark.slow
def test_reference_tests_pass_on_the_real_4_31_0(tmp_path: Path) -> None:
    """The child runs at least LEAST_TESTS tests, none fails, none is skipped but the pushes that need git-lfs."""
    assert not in_reference_environment(), "run the reference tests themselves here: pytest -m reference"
    faulthandler.cancel_dump_traceback_later()  # LIMIT_SECONDS holds for all of them; each is watched in the child
    counts = run_reference_tests([str(ROOT / "tests")], tmp_path / "report.xml")
    assert counts["tests"] >= LEAST_TESTS, counts


def run_reference_tests(selection: list[str], report: Path) -> dict[str, int]:
    """Run reference tests in a child on the isolated 4.31.0.

    Its output goes where this process's goes: pytest shows it when the test fails, also after a time-out.

    Args:
        selection: What pytest is told to run, beside `-m reference`.
        report: Where the child writes its counts.

    Returns:
        The number of tests that ran, of failures, of errors and of skipped ones.
    """
    if not upstream_is_at_hand():
        upstream.add(REFERENCE_VERSION)
    options = [
        "-q",
        "-n",
        str(WORKERS),
        "--dist=loadfile",
        "--max-worker-restart=0",  # a new worker would begin a file anew, and hang where the last one did
        "-p",
        "no:cacheprovider",
        "--no-header",
        "--durations=15",
        f"--junitxml={report}",
    ]
    child = upstream.run_in(
        REFERENCE_VERSION,
        ["-m", "pytest", "-m", "reference", *options, *selection],
        env={"OMP_NUM_THREADS": "1", "PYTEST_ADDOPTS": None, "PYTEST_XDIST_WORKER": None},
        timeout=LIMIT_SECONDS,
        resume_own_checkpoints=True,
        cwd=ROOT,
    )
    assert child.versions["transformers"] == REFERENCE_VERSION
    assert child.returncode == 0, "the reference tests did not all pass; their output stands above"
    suite = ElementTree.parse(report).getroot()[0]
    counts = {name: int(suite.get(name, "0")) for name in ("tests", "failures", "errors", "skipped")}
    without_git_lfs = 2 if shutil.which("git-lfs") is None else 0
    assert counts["failures"] == counts["errors"] == 0 and counts["skipped"] <= without_git_lfs, counts
    counts["tests"] -= counts["skipped"]
    return counts


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
    assert int(found.group(1)) >= LEAST_PARITY_TESTS
    assert "skipped" not in listing.stdout


# Read next: tests/parity/test_properties.py
