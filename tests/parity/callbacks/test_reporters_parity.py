"""Names, grouping and complaints of the reporters against those of 4.31.0."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitrainer import reporters

from ..compare import said_by

upstream = pytest.importorskip("transformers.integrations")

pytestmark = pytest.mark.reference


def outcome(function: Any) -> Any:
    """What a call returns, or its error."""
    try:
        return function()
    except Exception as error:
        return said_by(error)


def test_the_same_names_in_the_same_order() -> None:
    """With classes of the same names."""
    ours, theirs = reporters.INTEGRATION_TO_CALLBACK, upstream.INTEGRATION_TO_CALLBACK
    assert [(name, c.__name__) for name, c in ours.items()] == [(name, c.__name__) for name, c in theirs.items()]
    assert reporters.get_available_reporting_integrations() == upstream.get_available_reporting_integrations()


@pytest.mark.parametrize("names", [["paper"], ["wandb", "paper"], "none", []])
def test_unknown_names_are_refused_alike(names: Any) -> None:
    """Also a plain word, of which the first letter is complained about."""
    mine = outcome(lambda: reporters.get_reporting_integration_callbacks(names))
    assert mine == outcome(lambda: upstream.get_reporting_integration_callbacks(names))


# Two of upstream's reporters, when they could not be built, complain once more in their __del__.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
@pytest.mark.parametrize("name", sorted(reporters.INTEGRATION_TO_CALLBACK))
def test_a_missing_library_gets_the_same_complaint(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both sides are told that nothing is installed."""
    monkeypatch.setattr(reporters, "_is_installed", lambda module_name: False)
    reporters.is_comet_available.cache_clear()
    for question in [q for q in dir(upstream) if q.startswith("is_") and q.endswith("_available")]:
        monkeypatch.setattr(upstream, question, lambda *_: False)
    monkeypatch.setattr(upstream, "_has_comet", False)
    mine = outcome(reporters.INTEGRATION_TO_CALLBACK[name])
    assert mine == outcome(upstream.INTEGRATION_TO_CALLBACK[name])
    assert isinstance(mine, tuple)


PREFIXES = st.sampled_from(["eval_", "test_", "eval", "train_", "evaluate_", ""])


@given(logs=st.dictionaries(st.tuples(PREFIXES, st.text(max_size=4)).map("".join), st.integers(), max_size=6))
def test_names_are_grouped_alike(logs: dict[str, int]) -> None:
    """Whatever the names."""
    assert list(reporters.rewrite_logs(logs).items()) == list(upstream.rewrite_logs(logs).items())


# Read next: ../parts/test_parts_parity.py
