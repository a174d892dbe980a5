"""Markdown, JSON and Perfetto: the same content, each in a form that its readers accept, with nothing that acts."""

from __future__ import annotations

import io
import json
import re
from collections import defaultdict
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

from minitrainer.trace import events
from minitrainer.trace.events import FLAGS
from minitrainer.trace.ranks import open_run
from minitrainer.trace.render import lines, markdown, perfetto
from minitrainer.trace.render.escape import code
from minitrainer.trace.render.escape import markdown as escaped
from minitrainer.trace.rows import sample_trace

from . import made
from .test_render_terminal import hostile_records
from .test_verify import write_ranks

# -- Markdown ------------------------------------------------------------------------


def html_of(page: str) -> str:
    return MarkdownIt("gfm-like", {"linkify": False, "html": True}).enable("table").render(page)


def test_page_tells_what_ran_what_happened_who_and_why(tmp_path: Path) -> None:
    page = markdown.page(made.write(sample_trace(steps=6, logging_steps=3), tmp_path))
    headings = re.findall(r"^#+ .*", page, re.MULTILINE)
    assert headings == ["# sample", "## What happened", "## Who changed which flag", "## Where each loss comes from"]
    assert "| model | `Scripted` on cpu |" in page
    assert "| argument `logging_steps` | `3` |" in page
    assert "steps 4–6: steps 1–3 again" in page
    author = "`DefaultFlowCallback.on_step_end` | `transformers/trainer_callback.py:429`"
    assert f"| `should_log` | raised | {author} | 3, 6 |" in page
    assert "| 6 | 0.75  0.625  0.5  0.375  0.25  0.125 | 2 | 1.3125 | 1.3125 | 3 | 0.4375 | 0.4375 | yes |" in page
    assert "3 logged values derived again" in page


def test_page_is_the_same_from_a_recording_and_from_its_canonical_form(tmp_path: Path) -> None:
    records = sample_trace(steps=5)
    records = made.replaced(records, events.Log, logs={"loss": records_loss(records), "train_runtime": 0.123})
    from_recording = markdown.page(made.write(records, tmp_path / "a"))
    from_canonical = markdown.page(made.canonical(records, tmp_path / "b"))
    assert from_recording == from_canonical
    assert "train_runtime" not in from_recording and "µs" not in from_recording


def records_loss(records) -> float:
    return next(record.logged for record in records if isinstance(record, events.Loss))


def test_page_of_two_ranks_has_their_table(tmp_path: Path) -> None:
    run = write_ranks(made.two_ranks(), tmp_path)
    page = markdown.page_of(run)
    assert "## Ranks" in page and "all ranks fired the same" in page
    assert "| 2 | 1  0.875  0.75  0.625 | 2 | 1.625  3.25 | 2.4375 | 2 | 1.21875 | 1.2188 | yes |" in page
    del run.readings[0]
    assert "| 0 | – | – | – | – | no file |" in markdown.page_of(run)


def test_incomplete_trace_says_so_on_its_page(tmp_path: Path) -> None:
    page = markdown.page(made.write(made.without_end(sample_trace(), 40), tmp_path))
    assert "**rank 0: incomplete, the trace stops after 40 rows" in page


def test_loss_that_does_not_follow_is_marked_on_its_page(tmp_path: Path) -> None:
    page = markdown.page(made.write(made.replaced(sample_trace(), events.Loss, mean=1.0), tmp_path))
    assert page.count("**no**") == 3  # this loss, and the next one and the train loss, whose totals it is a part of


@pytest.mark.parametrize("text", made.HOSTILE, ids=range(len(made.HOSTILE)))
def test_hostile_text_does_nothing_on_a_page(tmp_path: Path, text: str) -> None:
    calm = html_of(markdown.page(made.canonical(hostile_records("calm"), tmp_path / "calm")))
    page = markdown.page(made.canonical(hostile_records(text), tmp_path / "hostile"))
    html = html_of(page)
    # The same elements in the same order as with harmless text, but for code spans that became plain text.
    assert tags(html) == tags(calm)
    assert "<script" not in html and "href=" not in html
    assert all(character.isprintable() for line in page.split("\n") for character in line)


def tags(html: str) -> list[str]:
    return [tag for tag in re.findall(r"<(/?\w+)", html) if tag.strip("/") != "code"]


@pytest.mark.parametrize("text", made.HOSTILE, ids=range(len(made.HOSTILE)))
def test_escaped_text_is_one_paragraph_of_text(text: str) -> None:
    for shown in (escaped(text), code(text)):
        html = html_of(f"word {shown} word")
        assert set(tags(html)) == {"p", "/p"} and html.count("<p>") == 1, html


# -- JSON ------------------------------------------------------------------------------


def test_json_holds_every_record(tmp_path: Path) -> None:
    run = write_ranks(made.two_ranks(), tmp_path)
    file = io.StringIO()
    written = lines.write(run, file)
    document = json.loads(file.getvalue())
    assert [one["rank"] for one in document["ranks"]] == [0, 1]
    assert written == sum(len(one["records"]) for one in document["ranks"]) == sum(map(len, made.two_ranks()))
    assert document["ranks"][0]["records"][0]["kind"] == "head"
    assert document["ranks"][1]["complete"] is True and document["missing_ranks"] == []


@pytest.mark.parametrize("text", made.HOSTILE, ids=range(len(made.HOSTILE)))
def test_json_and_perfetto_hold_nothing_that_acts_whatever_the_trace_holds(tmp_path: Path, text: str) -> None:
    run = open_run(made.canonical(hostile_records(text), tmp_path))
    for write in (lines.write, perfetto.write):
        file = io.StringIO()
        write(run, file)
        found = file.getvalue()
        assert found.isascii() or write is perfetto.write  # Perfetto does not understand \u escapes
        assert all(part.isprintable() for part in found.split("\n"))
        json.loads(found)


# -- Perfetto ----------------------------------------------------------------------------


def trace_events(run) -> list[dict]:
    file = io.StringIO()
    written = perfetto.write(run, file)
    document = json.loads(file.getvalue())
    assert written == len(document["traceEvents"])
    return document["traceEvents"]


def check_structure(found: list[dict]) -> None:
    """What the viewers ask for: known phases, times in order on each track, slices that close in their order."""
    open_slices: dict[tuple[int, int], list[str]] = defaultdict(list)
    last: dict[int, int] = defaultdict(int)
    for event in found:
        assert event["ph"] in "MBEiC" and isinstance(event["name"], str)
        if event["ph"] == "M":
            continue
        assert isinstance(event["ts"], int) and event["ts"] >= last[event["pid"]]
        last[event["pid"]] = event["ts"]
        track = event["pid"], event["tid"]
        if event["ph"] == "B":
            open_slices[track].append(event["name"])
        elif event["ph"] == "E":
            assert open_slices[track].pop() == event["name"]
        elif event["ph"] == "C":
            assert all(isinstance(value, (int, float)) for value in event["args"].values())
    assert not any(open_slices.values())


@pytest.mark.parametrize("form", ["rows", "canonical"])
def test_perfetto_has_slices_counters_and_instants(tmp_path: Path, form: str) -> None:
    records = sample_trace(steps=4, logging_steps=2)
    path = made.write(records, tmp_path) if form == "rows" else made.canonical(records, tmp_path)
    found = trace_events(open_run(path))
    check_structure(found)
    begun = [event["name"] for event in found if event["ph"] == "B"]
    assert begun.count("training_step") == 8 and begun.count("on_step_end") == 4
    assert [name for name in begun if name.startswith(("epoch", "step "))] == [
        "epoch 1",
        "step 1",
        "step 2",
        "step 3",
        "step 4",
    ]
    flags = [
        (event["name"], event["args"]["raised"]) for event in found if event["ph"] == "C" and event["name"] in FLAGS
    ]
    assert flags[:5] == [(flag, 0) for flag in FLAGS]
    assert flags[5:] == [("should_log", 1), ("should_log", 0)] * 2
    losses = [event["args"]["logged"] for event in found if event["ph"] == "C" and event["name"] == "loss"]
    assert losses == [record.logged for record in records if isinstance(record, events.Loss)]
    by = [event["args"]["by"] for event in found if event["ph"] == "i" and event["cat"] == "flag"]
    assert by == ["DefaultFlowCallback.on_step_end", "CallbackHandler.on_log"] * 2


def test_perfetto_gives_each_rank_a_process(tmp_path: Path) -> None:
    found = trace_events(write_ranks(made.two_ranks(), tmp_path))
    check_structure(found)
    names = {event["pid"]: event["args"]["name"] for event in found if event["name"] == "process_name"}
    assert names == {0: "rank 0", 1: "rank 1"}
    # Perfetto would put two threads of one number on one track, and give one with a process's number to that process.
    threads = {(event["pid"], event["tid"]) for event in found}
    numbers = [tid for _, tid in threads]
    assert len(numbers) == 4 and len({*numbers, *names}) == 6


def test_perfetto_lays_ranks_of_one_host_by_their_clocks(tmp_path: Path) -> None:
    ranks = made.two_ranks()
    for rank, records in enumerate(ranks):
        process = {"wall_ns": 10**18 + rank * 7_000, "host": "one"}
        ranks[rank] = made.replaced(records, events.Head, process=process)
    found = trace_events(write_ranks(ranks, tmp_path))
    begun = {event["pid"]: event["ts"] for event in reversed(found) if event["ph"] == "B" and event["name"] == "train"}
    assert begun[1] - begun[0] == 7


def test_perfetto_closes_what_a_cut_trace_leaves_open(tmp_path: Path) -> None:
    for kept in range(1, 60, 3):
        found = trace_events(open_run(made.write(made.without_end(sample_trace(), kept), tmp_path)))
        check_structure(found)
    assert any(event.get("args", {}).get("incomplete") for event in found)


# Read next: test_ranks.py.
