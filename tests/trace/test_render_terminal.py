"""The tree folds repetition, keeps within its width, and shows nothing but text."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from minitrainer.trace import events
from minitrainer.trace.events import Record
from minitrainer.trace.render.escape import printable
from minitrainer.trace.render.terminal import Screen, wrapped
from minitrainer.trace.render.tree import MOST_SHAPES, TreeBuilder
from minitrainer.trace.rows import sample_trace

from . import made


def tree_text(
    records: list[Record], width: int = 80, show_times: bool = False, encoding: str = "utf-8", **options
) -> str:
    builder = TreeBuilder(**options)
    for record in records:
        builder.add(record)
    raw = io.BytesIO()
    file = io.TextIOWrapper(raw, encoding=encoding)
    screen = Screen(Console(file=file, width=width, highlight=False, markup=False, emoji=False))
    screen.tree(builder.finish(), explain="loss" in options.get("only", ()), show_times=show_times)
    file.flush()
    return raw.getvalue().decode(encoding)


# -- the whole tree, once ------------------------------------------------------------

WHOLE = """\
Trainer 0: transformers.trainer.Trainer
├─ model: Scripted on cpu
├─ arguments: gradient_accumulation_steps=2, logging_steps=3
└─ callbacks: DefaultFlowCallback
train
└─ _inner_training_loop
   ├─ on_train_begin
   ├─ epoch 1  · loss 1.1875 → 0.4375
   │  ├─ on_epoch_begin
   │  ├─ step 1
   │  │  ├─ on_step_begin
   │  │  ├─ micro-batch 1
   │  │  │  ├─ training_step
   │  │  │  │  ├─ 2 samples, 2 labels  #00000000  rows 0, 1
   │  │  │  │  └─ compute_loss
   │  │  │  └─ on_substep_end
   │  │  ├─ micro-batch 2
   │  │  │  └─ training_step
   │  │  │     ├─ 2 samples, 2 labels  #00000001  rows 2, 3
   │  │  │     └─ compute_loss
   │  │  ├─ gradient norm 0.5, below 1
   │  │  ├─ optimizer step at lr 0.25
   │  │  ├─ scheduler step to lr 0.20833
   │  │  ├─ state.global_step 0 → 1  by Trainer._inner_training_loop
   │  │  │    (transformers/trainer.py:1893)
   │  │  ├─ on_step_end  calls DefaultFlowCallback
   │  │  └─ _maybe_log_save_evaluate
   │  ├─ step 2 alike
   │  ├─ step 3  · loss 1.1875
   │  │  ├─ on_step_begin
   │  │  ├─ micro-batch 1
   │  │  │  ├─ training_step
   │  │  │  │  ├─ 2 samples, 2 labels  #00000004  rows 8, 9
   │  │  │  │  └─ compute_loss
   │  │  │  └─ on_substep_end
   │  │  ├─ micro-batch 2
   │  │  │  └─ training_step
   │  │  │     ├─ 2 samples, 2 labels  #00000005  rows 10, 11
   │  │  │     └─ compute_loss
   │  │  ├─ gradient norm 0.5, below 1
   │  │  ├─ optimizer step at lr 0.16667
   │  │  ├─ scheduler step to lr 0.125
   │  │  ├─ state.global_step 2 → 3  by Trainer._inner_training_loop
   │  │  │    (transformers/trainer.py:1893)
   │  │  ├─ on_step_end
   │  │  │  └─ DefaultFlowCallback
   │  │  │     └─ should_log raised by DefaultFlowCallback.on_step_end
   │  │  │          (transformers/trainer_callback.py:429)
   │  │  └─ _maybe_log_save_evaluate
   │  │     └─ log
   │  │        ├─ loss 1.1875 = sum 3.5625 of 6 micro-batches ÷ 3 steps  ✓
   │  │        ├─ log loss=1.1875  learning_rate=0.25  epoch=0.5
   │  │        ├─ should_log lowered by CallbackHandler.on_log
   │  │        │    (transformers/trainer_callback.py:390)
   │  │        └─ on_log  lowers should_log
   │  ├─ steps 4–6: steps 1–3 again  · loss 0.4375
   │  └─ on_epoch_end  calls DefaultFlowCallback
   ├─ train_loss 0.8125 = (4.875 + 0) ÷ 6 steps  ✓
   └─ on_train_end
"""


def test_whole_tree_of_a_small_run() -> None:
    text = tree_text(sample_trace(steps=6, accumulation=2, logging_steps=3))
    assert text == WHOLE


def test_million_steps_of_one_shape_are_one_line() -> None:
    text = tree_text(sample_trace(steps=500, accumulation=1, logging_steps=1000))
    assert "steps 2–500 alike" in text
    assert len(text.splitlines()) < 40


def test_logs_at_a_rhythm_are_one_line() -> None:
    text = tree_text(sample_trace(steps=100, logging_steps=5))
    assert re.search(r"steps 6–100: steps 1–5 again, 19 times  · loss \d", text)


def test_folded_micro_batches_and_evaluation_batches() -> None:
    assert "micro-batches 2–7 alike" in tree_text(sample_trace(accumulation=8))
    records: list[Record] = [events.Call(method="evaluation_loop", cls="Trainer", depth=0)]
    for _ in range(30):
        records += [
            events.Call(method="prediction_step", cls="Trainer", depth=1),
            events.Samples(rows=4, split="eval"),
            events.Return(method="prediction_step", depth=1),
            events.Gather(what="loss", rows=4, gathered=4),
            events.Event(event="on_prediction_step", step=0),
            events.EventEnd(event="on_prediction_step"),
        ]
    records.append(events.Return(method="evaluation_loop", depth=0))
    text = tree_text(records)
    assert "batch 1\n" in text and "batches 2–30 alike" in text


def test_a_step_unlike_its_neighbours_is_shown_in_full() -> None:
    records = sample_trace(steps=9, logging_steps=100)
    positions = [i for i, record in enumerate(records) if type(record) is events.GradNorm]
    records.insert(positions[4], events.Note(text="here"))
    text = tree_text(records)
    assert re.search(r"steps 2–4 alike\n.*step 5\n", text) and "note: here" in text and "steps 6–9 like step 1" in text


def test_unlike_steps_are_told_one_by_one_only_up_to_a_bound() -> None:
    records: list[Record] = []
    for record in sample_trace(steps=MOST_SHAPES + 50, logging_steps=1000):
        records.append(record)
        if type(record) is events.OptimizerStep:
            records.append(events.Note(text=f"number {len(records)}"))
    text = tree_text(records)
    assert f"step {MOST_SHAPES + 50} of another shape (--step {MOST_SHAPES + 50} shows it)" in text
    assert text.count("note: number") == MOST_SHAPES


def test_group_over_two_epochs_is_one_step_that_begins_twice() -> None:
    def micro_batch() -> list[Record]:
        return [
            events.Call(method="training_step", cls="Trainer", depth=1),
            events.Return(method="training_step", depth=1),
        ]

    def event(name: str, step: int) -> list[Record]:
        return [events.Event(event=name, step=step, epoch=0.0), events.EventEnd(event=name)]

    records: list[Record] = [events.Call(method="_inner_training_loop", cls="Trainer", depth=0)]
    records += event("on_epoch_begin", 0) + event("on_step_begin", 0) + micro_batch() + event("on_epoch_end", 0)
    records += event("on_epoch_begin", 0) + event("on_step_begin", 0) + micro_batch()
    records += [events.OptimizerStep(lr=[0.5]), events.State(field="global_step", old=0, new=1, by="x")]
    # The next group begins where upstream fires no on_step_begin; it comes in the middle of the group.
    records += event("on_step_end", 1) + micro_batch() + event("on_step_begin", 1) + micro_batch()
    records += [events.OptimizerStep(lr=[0.5]), *event("on_step_end", 2), *event("on_epoch_end", 2)]
    text = tree_text(records)
    assert "step 1, begun and not completed here" in text
    assert text.count("step 1") == 2 and text.count("step 2") == 1


def test_group_that_is_fetched_at_once_belongs_to_its_step() -> None:
    """From 4.46 on a group is fetched before its first event; a fetch at the end of the data is no step."""

    def call(method: str) -> list[Record]:
        return [events.Call(method=method, cls="Trainer", depth=1), events.Return(method=method, depth=1)]

    def event(name: str, step: int) -> list[Record]:
        return [events.Event(event=name, step=step, epoch=0.0), events.EventEnd(event=name)]

    records: list[Record] = [events.Call(method="_inner_training_loop", cls="Trainer", depth=0)]
    records += event("on_epoch_begin", 0)
    for step in range(3):
        records += call("get_batch_samples") + event("on_step_begin", step) + call("training_step")
        records += event("on_step_end", step + 1)
    records += call("get_batch_samples") + event("on_epoch_end", 3)
    assert tree_text(records) == (
        "_inner_training_loop  … the trace stops in here\n"
        "└─ epoch 1  … the trace stops in here\n"
        "   ├─ on_epoch_begin\n"
        "   ├─ step 1\n"
        "   │  ├─ get_batch_samples\n"
        "   │  ├─ on_step_begin\n"
        "   │  ├─ micro-batch 1\n"
        "   │  │  └─ training_step\n"
        "   │  └─ on_step_end\n"
        "   ├─ steps 2, 3 alike\n"
        "   ├─ get_batch_samples\n"
        "   └─ on_epoch_end\n"
    )


# -- what is asked for ---------------------------------------------------------------


@pytest.mark.parametrize(
    ("only", "kept", "gone"),
    [
        ("flags", ["should_log raised by"], ["on_step_begin", "training_step", "log loss="]),
        (
            "callbacks",
            ["on_substep_end", "calls DefaultFlowCallback"],
            ["compute_loss", "should_log raised by", "log loss="],
        ),
        ("loss", ["÷ 2 steps", "log loss=", "each ÷ 2"], ["on_step_end", "training_step", "should_log"]),
        ("calls", ["training_step", "compute_loss"], ["on_step_end", "should_log", "log loss="]),
    ],
)
def test_only(only: str, kept: list[str], gone: list[str]) -> None:
    text = tree_text(sample_trace(), only=[only])
    for words in kept:
        assert words in text
    for words in gone:
        assert words not in text


def test_only_files() -> None:
    records = sample_trace()
    where = next(i for i, record in enumerate(records) if type(record) is events.SchedulerStep)
    records[where:where] = [events.File(action="write", path="checkpoint-1/model.bin", size=1_234_567)]
    text = tree_text(records, only=["files"])
    assert "step 1\n" in text and "wrote checkpoint-1/model.bin  1,235 kB" in text
    assert "training_step" not in text


def test_step_range_shows_these_steps_unfolded() -> None:
    text = tree_text(sample_trace(steps=9), steps=(3, 5))
    assert re.findall(r"─ step (\d+)", text) == ["3", "4", "5"]
    assert "alike" not in text and "on_train_begin" not in text


# -- width, colour, characters ----------------------------------------------------------


@pytest.mark.parametrize("width", [60, 80, 100, 200])
def test_no_line_is_wider_than_the_output(width: int) -> None:
    text = tree_text(sample_trace(steps=9, logging_steps=3), width=width, only=[])
    assert max(map(len, text.splitlines())) <= width


def test_wrapping_keeps_every_character_but_spaces_at_breaks() -> None:
    line = [("state.global_step ", "dim"), ("a" * 95 + " tail", "value"), ("  and more words to wrap here", "dim")]
    rows = wrapped(line, 30)
    assert all(sum(len(text) for text, _ in row).__le__(31) for row in rows)
    joined = "".join(text for row in rows for text, _ in row)
    assert joined.replace(" ", "") == "".join(text for text, _ in line).replace(" ", "")


def run_show(path: Path, **environment: str) -> bytes:
    env = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, "-m", "minitrainer.trace", "show", str(path)], env=env, capture_output=True, check=True
    )
    assert done.stderr == b""
    return done.stdout


def test_pipe_has_no_escape_sequences_and_eighty_columns(tmp_path: Path) -> None:
    out = run_show(made.write(sample_trace(), tmp_path), COLUMNS="80")
    assert b"\x1b" not in out
    assert max(map(len, out.decode().splitlines())) <= 80


def test_output_without_unicode_is_ascii(tmp_path: Path) -> None:
    out = run_show(made.write(sample_trace(), tmp_path), PYTHONIOENCODING="ascii")
    assert out.isascii() and b"|- " in out and b"0 > 1" in out


def test_terminal_gets_colour_unless_no_color(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = TreeBuilder()
    for record in sample_trace():
        builder.add(record)
    root = builder.finish()
    for no_color, coloured in ((None, True), ("1", False)):
        monkeypatch.delenv("NO_COLOR", raising=False)
        if no_color:
            monkeypatch.setenv("NO_COLOR", no_color)
        file = io.StringIO()
        screen = Screen(Console(file=file, force_terminal=True, color_system="standard", width=100))
        screen.tree(root)
        assert ("\x1b[" in file.getvalue()) is coloured
        plain = re.sub(r"\x1b\[[0-9;]*m", "", file.getvalue())
        assert plain.count("\n") == file.getvalue().count("\n") and "should_log raised by" in plain


# -- hostile and broken traces -------------------------------------------------------------


@pytest.mark.parametrize("text", made.HOSTILE, ids=range(len(made.HOSTILE)))
def test_hostile_text_is_shown_as_text(text: str) -> None:
    records = hostile_records(text)
    shown = tree_text(records)
    assert printable(text)[:12] in shown.replace("\n", " ") or len(text) > 100
    assert all(character.isprintable() for line in shown.split("\n") for character in line)
    assert len(shown.splitlines()) < 500  # 300 characters of a text are shown, not 10,000


def hostile_records(text: str) -> list[Record]:
    """A trace with `text` in every field that takes one."""
    records: list[Record] = []
    for record in sample_trace(steps=2):
        fields = {}
        for name in record.__struct_fields__:
            value = getattr(record, name)
            if isinstance(value, str) and name not in ("form", "event", "method", "dtype"):
                fields[name] = text
            elif isinstance(value, list) and value and isinstance(value[0], str):
                fields[name] = [text, *value[1:]]
        if isinstance(record, (events.Call, events.Return)) and record.method == "compute_loss":
            fields["method"] = text
        if isinstance(record, events.TrainerBegin):
            fields |= {"arguments": {text: text}, "callbacks": [(text, [text])]}
        if isinstance(record, events.Log):
            fields["logs"] = {text: text, "loss": record.logs["loss"]}
        if isinstance(record, events.Head):
            fields |= {"versions": {text: text}, "unhooked": {text: text}}
        records.append(msgspec.structs.replace(record, **fields))
    extra: list[Record] = [
        events.Note(text=text),
        events.File(action=text, path=text, size=1),
        events.Rng(source=text, digest=text),
        events.Gather(what=text, rows=1, gathered=1),
        events.State(field=text, old=text, new=text, by=text, file=text, line=1, how=text),
    ]
    return made.with_end([*records[:20], *extra, *records[20:]])


def test_every_hostile_text_is_escaped_by_printable() -> None:
    for text in made.HOSTILE:
        assert printable(text).isprintable() and len(printable(text)) <= 300 * 10


def test_open_calls_are_marked_where_the_trace_stops() -> None:
    records = made.without_end(sample_trace(steps=6), 60)
    text = tree_text(records)
    assert re.search(r"^train  … the trace stops in here", text, re.MULTILINE)
    assert text.count("the trace stops in here") >= 3


def test_every_prefix_of_a_trace_has_a_tree() -> None:
    records = sample_trace(steps=3, logging_steps=2)
    for length in range(len(records)):
        assert tree_text(records[:length]) is not None


def test_rows_in_any_order_have_a_tree() -> None:
    records = sample_trace(steps=3, logging_steps=2)
    for stride in (5, 7, 11):
        shuffled = [records[i * stride % len(records)] for i in range(len(records))]
        assert tree_text(shuffled)


def test_exceptions_are_told_where_they_pass() -> None:
    records: list[Record] = [
        events.Call(method="train", cls="Trainer", depth=0),
        events.Event(event="on_step_end", step=1),
        events.Callback(callback="Mine", event="on_step_end"),
        events.Raise(method="Mine", depth=1, error="ValueError", message="no", scope="callback"),
        events.Raise(method="on_step_end", depth=1, error="ValueError", message="no", scope="event"),
        events.Raise(method="train", depth=0, error="ValueError", message="no"),
    ]
    assert tree_text(records) == (
        "train\n"
        "├─ on_step_end\n"
        "│  ├─ Mine\n"
        "│  │  └─ left by ValueError: no\n"
        "│  └─ left by ValueError\n"
        "└─ left by ValueError\n"
    )


# Read next: test_render_pages.py.
