"""Two environments, one test folder.

Tests marked `reference` compare with the real Trainer of transformers 4.31.0, in the same process. They can only run
where that version is installed; elsewhere they are left out of the run and counted, and one test,
test_reference_environment.py, starts them in a child process on the isolated 4.31.0.
"""

from __future__ import annotations

import importlib.metadata

import pytest
from hypothesis import settings

# A slow example on a busy machine is no finding; and what is drawn stays out of the working tree.
settings.register_profile("minitrainer", deadline=None, database=None)
settings.load_profile("minitrainer")

REFERENCE_VERSION = "4.31.0"


def in_reference_environment() -> bool:
    """Whether `import transformers` gives the reference version here."""
    return importlib.metadata.version("transformers") == REFERENCE_VERSION


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the `reference` tests to the child process unless this is it."""
    if in_reference_environment():
        return
    left_out = [item for item in items if item.get_closest_marker("reference") is not None]
    if left_out:
        config.hook.pytest_deselected(items=left_out)
        items[:] = [item for item in items if item.get_closest_marker("reference") is None]
    config.stash[LEFT_OUT] = len(left_out)


LEFT_OUT = pytest.StashKey[int]()


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say how many tests the child process is responsible for."""
    count = config.stash.get(LEFT_OUT, 0)
    if count:
        terminalreporter.write_line(
            f"{count} reference tests are run by tests/test_reference_environment.py on transformers "
            + REFERENCE_VERSION
        )


# Read next: tests/test_reference_environment.py
