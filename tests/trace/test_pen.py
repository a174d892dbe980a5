"""The two pens write the same words, and neither writes anything that it can't hold."""

from __future__ import annotations

import shutil
import struct
import sys
import sysconfig
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitrainer.trace import read, trace
from minitrainer.trace.pen import MOST_VALUES, Pen, PythonPen
from minitrainer.trace.probes import IfChanged
from minitrainer.trace.rows import CELL_NUMBERS, ORIGIN, SAMPLES, SAMPLES_ROWS, TICKS_A_SECOND, canonical
from minitrainer.trace.rows import encode_canonical as encode

from . import programs

PENS = [Pen, PythonPen]
ROOM_BYTES = 1024


def test_the_pen_in_use_is_compiled_where_there_is_a_compiler() -> None:
    """Both pens are tested below; without this they might be the same one."""
    if shutil.which((sysconfig.get_config_var("CC") or "cc").split()[0]) is None:
        pytest.skip("there is no compiler")
    assert Pen is not PythonPen


# -- calls drawn at random --------------------------------------------------------------------------

odd = st.sampled_from([None, True, "text", 1.5, -1, 1 << 16, 1 << 32, 1 << 63, 1 << 70, [1], (1,), b"12345678"])
small = st.integers(0, 1 << 16)
first = st.integers(0, (1 << 55) - 1) | odd
floats = st.floats(allow_nan=False)
calls = st.one_of(
    st.tuples(st.just("cell"), st.integers(0, CELL_NUMBERS) | odd),
    st.tuples(st.just("floats"), first, *[floats] * 2),
    st.tuples(st.just("floats"), first, floats, floats | odd, floats),
    st.builds(lambda head, values: ("floats", head, *values), first, st.lists(floats, max_size=MOST_VALUES + 2)),
    st.builds(
        lambda head, values: ("integers", head, *values),
        first,
        st.lists(st.integers(-(1 << 63), (1 << 63) - 1) | odd, max_size=MOST_VALUES + 2),
    ),
    st.tuples(st.just("event"), first, st.integers(0, 1 << 33) | odd, floats | odd),
    st.tuples(
        st.just("samples"),
        st.just(SAMPLES),
        small | odd,
        small | odd,
        st.booleans(),
        st.integers(0, 1 << 33) | odd,
        st.lists(small, max_size=70) | st.lists(small | odd, max_size=5) | odd,
    ),
    st.builds(
        lambda kind, rates, skipped, other: ("rates", kind, other or [{"lr": rate} for rate in rates], skipped),
        st.integers(0, 300) | odd,
        st.lists(floats | odd, max_size=MOST_VALUES + 2),
        st.booleans() | odd,
        st.sampled_from([None, None, None, None, ({"lr": 0.5},), [{}], [{"lr": 0.5}, [0.5]]]),
    ),
    st.tuples(st.just("line"), st.integers(0, 12).map(lambda words: b"l" * 8 * words)),
)


@given(st.lists(calls, max_size=30))
@settings(max_examples=300)
def test_both_pens_write_the_same(drawn: list[tuple[Any, ...]]) -> None:
    maps = [bytearray(ROOM_BYTES), bytearray(ROOM_BYTES)]
    pens: list[Any] = []
    zero = ORIGIN - time.perf_counter()
    for kind, map in zip(PENS, maps, strict=True):
        pens.append(kind(zero))
        pens[-1].move(map)
    for name, *arguments in drawn:
        before = [bytes(map) for map in maps]
        told = [getattr(pen, name)(*arguments) for pen in pens]
        assert told[0] is told[1], (name, arguments)
        assert pens[0].position == pens[1].position
        if not told[0]:
            assert [bytes(map) for map in maps] == before
        elif name != "line":  # the last word gives the time, in its lower five bytes
            end = 8 * pens[0].position
            (earlier,), (later,) = (struct.unpack_from("<d", map, end - 8) for map in maps)
            assert 0 <= (later - earlier) % TICKS_A_SECOND < 5
            for map in maps:
                map[end - 8 : end - 3] = bytes(5)
        assert maps[0] == maps[1], (name, arguments)
    for pen in pens:
        pen.move(None)


# -- what each of them promises -----------------------------------------------------------------------


@pytest.mark.parametrize("kind", PENS)
def test_what_does_not_fit_is_not_begun(kind: Any) -> None:
    pen, map = kind(ORIGIN), bytearray(4 * 8)
    attempts = [
        (3, lambda: pen.floats(11, 1.0)),
        (3, lambda: pen.integers(32, 1)),
        (4, lambda: pen.event(4, 1, None)),
        (4, lambda: pen.rates(12, [{"lr": 0.5}, {"lr": 1.5}], True)),
        (4, lambda: pen.samples(SAMPLES, 2, 2, False, 5, [1, 2])),
        (1, lambda: pen.cell(1)),
        (2, lambda: pen.line(b"x" * 16)),
    ]
    assert not any(write() for _, write in attempts)  # no map yet
    pen.move(map)
    for words, write in attempts:
        pen.position = 5 - words
        before = bytes(map)
        assert not write() and bytes(map) == before and pen.position == 5 - words
        pen.position = 4 - words
        assert write() and pen.position == 4
        map[:] = bytes(len(map))
    pen.move(None)
    map.clear()  # it was let go


@pytest.mark.parametrize("kind", PENS)
def test_a_line_fills_whole_words(kind: Any) -> None:
    with pytest.raises(ValueError, match="whole words"):
        kind(ORIGIN).line(b"seven b")


@pytest.mark.parametrize("kind", PENS)
def test_another_thread_writes_nothing(kind: Any) -> None:
    pen, map = kind(ORIGIN), bytearray(64)
    pen.move(map)
    found: list[Any] = []

    def elsewhere() -> None:
        found.extend([pen.is_elsewhere(), pen.cell(1), pen.floats(11, 1.0), pen.integers(32, 1), pen.event(4, 1, 0.5)])
        found.append(pen.samples(SAMPLES, 1, 1, False, 5, [1]))

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert found == [True, False, False, False, False, False]
    assert map == bytes(64) and not pen.is_elsewhere() and pen.cell(1)


@pytest.mark.parametrize("kind", PENS)
@pytest.mark.parametrize("count", range(len(SAMPLES_ROWS)))
def test_samples_lie_as_the_reader_expects(kind: Any, count: int) -> None:
    pen, map = kind(ORIGIN), bytearray(600)
    pen.move(map)
    positions = [(1 << 32) - 1 - i for i in range(count)]
    assert pen.samples(SAMPLES, count, 65_535, True, 0xFFFFFFFF, positions)
    row = SAMPLES_ROWS[count].unpack_from(map)
    assert row[:-1] == (SAMPLES, count, count, 65_535, 1, 0xFFFFFFFF, *positions)
    assert pen.position * 8 == SAMPLES_ROWS[count].size


@pytest.mark.parametrize("kind", PENS)
def test_the_clock_is_the_recorders(kind: Any) -> None:
    pen, map = kind(ORIGIN - 100.0), bytearray(800)
    pen.move(map)
    for i in range(100):
        before = time.perf_counter()
        assert pen.cell(0)
        after = time.perf_counter()
        assert before <= struct.unpack_from("<d", map, 8 * i)[0] - ORIGIN + 100.0 + 2.0**-20
        assert struct.unpack_from("<d", map, 8 * i)[0] - ORIGIN + 100.0 <= after + 2.0**-20


# -- the filter before a hook ---------------------------------------------------------------------------


@pytest.mark.skipif(IfChanged is None, reason="there was no compiler")
def test_the_hook_sees_only_assignments_that_change_something() -> None:
    seen: list[tuple[str, Any]] = []

    class Control:
        up = False
        __slots__ = ("__dict__", "slot")

        @property
        def careful(self) -> Any:
            return vars(self).get("careful")

        @careful.setter
        def careful(self, value: Any) -> None:
            vars(self)["careful"] = value
            asked.append(value)

    asked: list[Any] = []

    def hook(self: Any, name: str, value: Any) -> None:
        object.__setattr__(self, name, value)
        seen.append((name, value))
        if name == "bad":
            raise KeyError(name)

    Control.__setattr__ = IfChanged(hook)
    control = Control()
    for value in (False, False, True, True, False, None):
        control.up = value
    control.new = 1
    setattr(control, "new", 1)  # noqa: B010  (another spelling)
    # the first False goes from the class into the object, as it would have without a filter
    assert seen == [("up", False), ("up", True), ("up", False), ("up", None), ("new", 1)]
    assert vars(control) == {"up": None, "new": 1}
    seen.clear()
    for _ in range(2):
        control.slot = control.careful = 5
    assert seen == [("slot", 5), ("careful", 5)] * 2 and asked == [5, 5]  # both are asked each time
    with pytest.raises(KeyError, match="bad"):
        control.bad = 2
    with pytest.raises(TypeError):
        setattr(control, 3, 2)
    before = sys.getrefcount(hook), sys.getrefcount(control), sys.getrefcount(Control)
    for i in range(1000):
        control.up = i % 3 == 0
    assert (sys.getrefcount(hook), sys.getrefcount(control), sys.getrefcount(Control)) == before
    Control.__setattr__(control, "up", "called by hand")
    assert control.up == "called by hand"


# -- a whole run ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", programs.LIBRARIES)
def test_a_trainer_leaves_the_same_trace_without_the_c(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = programs.library_named(name)
    lines = []
    for kind in PENS:
        for module in ("recorder", "probes"):
            monkeypatch.setattr(f"minitrainer.trace.{module}.Pen", kind)
        if kind is PythonPen:  # as if nothing had been compiled
            monkeypatch.setattr("minitrainer.trace.batches.like_the_last", lambda *_: None)
            monkeypatch.setattr("minitrainer.trace.probes.IfChanged", None)
        trainer = programs.trainer(
            library,
            tmp_path / "out",
            rows=40,
            max_steps=12,
            logging_steps=3,
            evaluation_strategy="steps",
            eval_steps=5,
        )
        with trace(trainer, tmp_path / kind.__name__ / "rank0.rows"):
            trainer.train()
        reading = read(tmp_path / kind.__name__ / "rank0.rows")
        lines.append([encode(record) for record in canonical(reading)])
    assert len(lines[0]) > 500
    differing = [pair for pair in zip(*lines, strict=True) if pair[0] != pair[1] and b"runtime" not in pair[0]]
    assert not differing


# Read next: test_recorder.py
