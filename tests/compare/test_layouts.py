"""A recording read by its layouts is what it is read row by row, and what is found in two of them is the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minitrainer.trace import layouts, rows
from minitrainer.trace.blocks import Blocks
from minitrainer.trace.compare import Comparison, compare_runs
from minitrainer.trace.errors import UsageError
from minitrainer.trace.layouts import RecordedBlocks
from minitrainer.trace.rows import read, read_canonical, sample_trace, write_rows

from .packing import write_packed
from .test_compare import COMMITTED, PLANTED, TRACES, Rows, rich

SETTINGS = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


@pytest.fixture
def always_by_layout(monkeypatch):
    monkeypatch.setattr(layouts, "SMALL_BYTES", 0)


def recorded(trace: Rows, path: Path, began: float = 100.0) -> Path:
    """Write a recording; its times begin at `began`, so two of them never have equal bytes."""
    write_packed(trace, path, began)
    return path


def same_blocks(path: Path) -> int:
    """Check every block of a recording against the same block decoded row by row; return how many were read by a
    layout that was known already."""
    with RecordedBlocks(read(path)) as by_layout, Blocks(read(path)) as by_row:
        assert by_layout.keys == by_row.keys
        for index in range(len(by_row)):
            ours, theirs = by_layout.block(index).split(b"\n"), by_row.block(index).split(b"\n")
            # the last row counts those before it; a block alone can't know them
            kept = [line for line in ours if not line.startswith(b'{"kind":"end"')]
            assert kept == [line for line in theirs if not line.startswith(b'{"kind":"end"')]
        return sum(not by_layout.is_alone(index) for index in range(len(by_layout)))


def findings(comparison: Comparison) -> list[tuple]:
    """All but the place: which of two equal rows has no counterpart is a matter of taste."""
    return [(one.kind, one.change, one.subject, one.count, one.inside, one.note) for one in comparison.findings]


def test_every_packed_kind_has_its_head():
    assert set(layouts.HEAD_BYTES) == {*rows.PACKED, *rows.COUNTED}
    for kind, head in layouts.HEAD_BYTES.items():
        for packed in rows.COUNTED[kind].values() if kind in rows.COUNTED else [rows.PACKED[kind]]:
            assert packed.size > head + rows.WORD_BYTES and not packed.size % rows.WORD_BYTES


@pytest.mark.parametrize("name", COMMITTED)
def test_committed_traces_packed_again_are_read_alike(name, tmp_path):
    known = 0
    for trace in sorted((TRACES / name).glob("rank*.jsonl")):
        known += same_blocks(recorded(read_canonical(trace), tmp_path / trace.with_suffix(".rows").name))
    assert known >= 0


@SETTINGS
@given(steps=st.integers(1, 40), accumulation=st.integers(1, 3), logging=st.integers(1, 7), packs=st.booleans())
def test_recordings_of_any_shape_are_read_alike(steps, accumulation, logging, packs, tmp_path):
    path = tmp_path / "rank0.rows"
    (write_packed if packs else write_rows)(sample_trace(steps, accumulation, logging), path)
    known = same_blocks(path)
    if packs:
        # The first step with and without a log defines names, the second is the first of its layout, the last step
        # defines what follows it: all others are known.
        assert known >= steps - 6


def test_a_block_of_another_layout_is_told_at_once():
    """There must be one way only to match a row: two ways for each of fifty would be more than anyone can try."""
    arrays = b"".join(rows.filled_up(b"[12,%d,0.5]" % (10**n)) for n in range(10)) * 5
    pattern = b"".join(map(layouts._pattern_of, layouts.cut_into_pieces(arrays + rows.filled_up(b"[12,1,0.5]"))))
    assert re.fullmatch(pattern, arrays + rows.filled_up(b"[12,7,0.25]"), re.DOTALL)
    assert re.fullmatch(pattern, arrays + rows.filled_up(b"[13,7,0.25]"), re.DOTALL) is None


@SETTINGS
@given(data=st.data())
def test_a_recording_that_was_cut_short_is_read_up_to_the_cut(data, tmp_path):
    path = recorded(sample_trace(12, 2, 3), tmp_path / "rank0.rows")
    whole = path.read_bytes()
    cut = data.draw(st.integers(whole.index(b"\n") + 1, len(whole)))
    path.write_bytes(whole[:cut] + bytes(data.draw(st.sampled_from([0, 7, 5000]))))
    same_blocks(path)


@SETTINGS
@given(data=st.data())
def test_garbage_is_refused_in_one_line_or_read_as_the_reader_reads_it(data, tmp_path):
    path = recorded(sample_trace(6, 2, 3), tmp_path / "rank0.rows")
    whole = bytearray(path.read_bytes())
    at = data.draw(st.integers(whole.index(b"\n") + 1, len(whole) - 1))
    whole[at] = data.draw(st.integers(0, 255))
    path.write_bytes(whole)
    try:
        with RecordedBlocks(read(path)) as blocks:
            for index in range(len(blocks)):
                blocks.block(index)
    except UsageError as error:
        assert "\n" not in str(error)


@pytest.mark.usefixtures("always_by_layout")
@pytest.mark.parametrize("plant, expected", PLANTED, ids=[plant.__name__ for plant, _ in PLANTED])
def test_a_planted_difference_is_found_in_recordings_too(plant, expected, tmp_path):
    a, b = recorded(rich(), tmp_path / "a.rows"), recorded(plant(rich()), tmp_path / "b.rows", began=5.0)
    comparison = compare_runs(a, b)
    assert [(one.kind, one.change, one.subject) for one in comparison.findings] == [expected]
    assert comparison.first is not None
    assert compare_runs(a, recorded(rich(), tmp_path / "c.rows", began=7.0)).equal


@pytest.mark.usefixtures("always_by_layout")
def test_two_versions_differ_by_layout_as_they_do_by_lines(tmp_path):
    """The atlas's own traces, packed: the same findings, in the same order, with the same counts."""
    compared = 0
    for name in COMMITTED:
        for other in sorted(TRACES.glob(f"atlas/*/{name}")):
            sides = []
            for folder, clock in ((TRACES / name, 1.0), (other, 2.0)):
                side = tmp_path / f"{name}-{other.parent.name}-{clock}"
                side.mkdir()
                for trace in folder.glob("rank*.jsonl"):
                    recorded(read_canonical(trace), side / f"{trace.stem}.rows", clock)
                sides.append(side)
            by_lines = compare_runs(TRACES / name, other)
            by_layout = compare_runs(*sides)
            assert findings(by_layout) == findings(by_lines), (name, other.parent.name)
            assert (by_layout.first is None) == (by_lines.first is None)
            compared += 1
    assert compared > 50


# Read next: test_equal_runs.py, real recordings.
