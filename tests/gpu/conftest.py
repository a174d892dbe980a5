"""GPU tests run when they are asked for (`pytest -m gpu`, `make gpu`) and a card is there; else one line says so."""

from __future__ import annotations

import pytest

from .places import cards

WHY_LEFT_OUT = pytest.StashKey[str]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests out where they can't run, or were not asked for: they take minutes and want the cards alone."""
    found = [item for item in items if item.get_closest_marker("gpu") is not None]
    if not found:
        return
    if "gpu" not in config.getoption("markexpr", ""):
        why = "run on request: pytest -m gpu"
    elif cards() == 0:
        why = "need a CUDA device, and torch finds none here"
    else:
        return
    config.hook.pytest_deselected(items=found)
    items[:] = [item for item in items if item not in found]
    config.stash[WHY_LEFT_OUT] = f"{len(found)} GPU tests {why}"


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Say that GPU tests were left out."""
    if (why := config.stash.get(WHY_LEFT_OUT, None)) is not None:
        terminalreporter.write_line(why)


# Read next: tests/gpu/test_gpu.py
