"""The atlas's pages are what its traces say, and its traces are what the versions do."""

from __future__ import annotations

import itertools

import pytest

from minitrainer.trace import atlas
from minitrainer.trace.compare import compare_runs
from minitrainer.trace.plans import locked_versions
from minitrainer.trace.render import report
from minitrainer.trace.scenarios.flows import FLOWS

ROOT = atlas.Path(__file__).parents[2]
NEWER = "4.36.2"


@pytest.fixture(autouse=True)
def in_the_repository(monkeypatch):
    monkeypatch.chdir(ROOT)


def committed() -> list[str]:
    return [version for version in atlas.MILESTONES if (ROOT / "traces/atlas" / version).is_dir()]


def test_every_milestone_has_a_lock_and_traces():
    assert set(atlas.MILESTONES) <= set(locked_versions())
    assert committed() == list(atlas.MILESTONES[1:])


@pytest.mark.parametrize("before, version", list(zip(atlas.MILESTONES, atlas.MILESTONES[1:], strict=False)))
def test_a_page_is_what_the_traces_say(before, version):
    text, differing = atlas.page(before, version, atlas.MILESTONES, list(FLOWS), atlas.TRACES / "atlas")
    assert (ROOT / "traces/atlas" / f"{version}.md").read_text(encoding="utf-8") == text
    assert text.count("\n## ") >= differing


def test_no_scenario_takes_more_than_twenty_rows():
    sections = 0
    for version in committed():
        page = (ROOT / "traces/atlas" / f"{version}.md").read_text(encoding="utf-8")
        for section in page.split("\n## ")[1:]:
            sections += 1
            assert section.count("\n- *") - section.count("\n- *renamed") <= 20, section.split("\n")[0]
    assert sections > 20


@pytest.mark.slow
def test_a_pair_of_versions_gives_the_same_bytes_again(tmp_path):
    names = ["one-epoch", "log-evaluate-save-same-step"]
    atlas.record([atlas.MILESTONES[0], NEWER], names, tmp_path)
    looked_at = 0
    for name in names:
        for trace in (ROOT / "traces/atlas" / NEWER / name).iterdir():
            assert (tmp_path / NEWER / name / trace.name).read_bytes() == trace.read_bytes()
            looked_at += 1
    assert looked_at == len(names)


def test_unknown_words_are_refused(capsys):
    with pytest.raises(SystemExit):
        atlas.main(["--only", "no-such"])
    assert "neither a milestone" in capsys.readouterr().err


def test_any_two_versions_differ_in_at_most_twenty_rows_of_a_report():
    pairs = 0
    for name in FLOWS:
        traces = [
            atlas.trace_of(version, name, atlas.MILESTONES, atlas.TRACES / "atlas") for version in atlas.MILESTONES
        ]
        for before, after in itertools.combinations([trace for trace in traces if trace is not None], 2):
            rows = sum(len(said) for _, said in report.rows_of(compare_runs(before, after)))
            assert rows <= 20, (name, before, after)
            pairs += 1
    assert pairs == len(FLOWS) * 36
