"""A search over versions finds the first with a finding, goes on after an interruption, and says what it skipped."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minitrainer.trace import events, history
from minitrainer.trace.cli import main as command_line
from minitrainer.trace.errors import UsageError
from minitrainer.trace.history import RELEASES, Search, bisect, narrow, since
from minitrainer.trace.rows import sample_trace, write_rows


@given(st.data())
def test_the_first_bad_release_is_found_in_about_log2_runs(data):
    releases = list(RELEASES[1:-1])
    bad_from = data.draw(st.integers(0, len(releases)))
    cannot_run = data.draw(st.sets(st.sampled_from(releases), max_size=5))
    asked = []

    def shows_it(version):
        asked.append(version)
        return None if version in cannot_run else releases.index(version) >= bad_from

    good, bad, between, tried = narrow(releases, RELEASES[0], RELEASES[-1], shows_it)
    everything = [RELEASES[0], *releases, RELEASES[-1]]
    assert everything.index(good) <= bad_from < everything.index(bad)
    assert set(between) <= cannot_run
    assert everything[everything.index(good) + 1 : everything.index(bad)] == between
    assert len(asked) == len(set(asked)) == tried <= math.ceil(math.log2(len(everything))) + len(cannot_run)


def test_releases_hold_no_withdrawn_one_and_all_minor_versions():
    assert RELEASES[0] == "4.31.0" and RELEASES[-1] == "5.24.0" and len(RELEASES) == 27 + 25
    assert not {"4.46.0", "4.52.0", "4.57.0", "5.10.0"} & set(RELEASES)


@pytest.fixture
def recorded(monkeypatch):
    """Recordings made by hand stand in the folders where real runs would leave theirs; each is asked for once."""
    asked: list[str] = []

    def record(trainer, what, words, folder, nproc=None):
        version = trainer.partition("==")[2]
        asked.append(version)
        if version == "5.12.0":
            raise UsageError("there is no such version here")
        rows = sample_trace(4)
        if history.plans.order(version) >= (5, 7, 0):
            rows.insert(-1, events.Note(text="new"))
        folder.mkdir(parents=True, exist_ok=True)
        write_rows(rows, folder / "rank0.rows")

    monkeypatch.setattr(history, "record", record)
    return asked


def test_bisect_finds_the_release_and_goes_on_after_an_interruption(recorded, tmp_path: Path):
    search = Search("one-epoch", [], tmp_path)
    result = bisect(search, "4.44.0", "5.24.0", "note:new")
    assert (result.good, result.bad, result.between) == ("5.6.0", "5.7.0", [])
    assert result.comparison.findings[0].subject == "new"
    times = len(recorded)
    again = bisect(Search("one-epoch", [], tmp_path), "4.44.0", "5.24.0", None)
    assert (again.good, again.bad) == ("5.6.0", "5.7.0")
    assert [version for version in recorded[times:] if version != "5.12.0"] == []
    with pytest.raises(UsageError, match="another --out"):
        Search("one-epoch", ["--max_steps", "2"], tmp_path)


def test_bisect_refuses_what_is_no_question(recorded, tmp_path):
    search = Search("one-epoch", [], tmp_path)
    for good, bad, wanted, said in (
        ("5.0.0", "4.44.0", None, "earlier"),
        ("4.44.0", "5.1.0", None, "nothing differs"),
        ("4.44.0", "5.24.0", "number:loss", "1. note:new"),
        ("5.12.0", "5.24.0", None, "no such version here"),
    ):
        with pytest.raises(UsageError, match=said):
            bisect(search, good, bad, wanted)


def test_since_compares_each_milestone_with_the_one_before(recorded, tmp_path):
    compared = since(Search("one-epoch", [], tmp_path), "4.57.6")
    assert [after for _, after, comparison in compared if not comparison.equal] == ["5.24.0"]
    assert recorded[0] == "4.57.6"


def test_wrong_words_give_one_line(capsys):
    for words in (["since"], ["since", "4.31.0"], ["bisect", "one-epoch"], ["since", "3.0", "one-epoch"],
                  ["bisect", "--good", "4.46.0", "--bad", "5.0.0", "one-epoch"]):  # fmt: skip
        assert command_line(words) == 2
        assert capsys.readouterr().err.count("\n") == 1
