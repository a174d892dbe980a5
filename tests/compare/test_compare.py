"""Equal runs have no findings, and one planted difference gives exactly one: the one that was planted."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from minitrainer.trace import events
from minitrainer.trace.cli import main as command_line
from minitrainer.trace.compare import assert_trace_matches, compare_runs
from minitrainer.trace.errors import UsageError
from minitrainer.trace.findings import Finding
from minitrainer.trace.render import report
from minitrainer.trace.rows import read, read_canonical, sample_trace, write_canonical, write_rows

TRACES = Path(__file__).parents[2] / "traces"
COMMITTED = sorted(folder.name for folder in TRACES.iterdir() if folder.is_dir() and any(folder.glob("*.jsonl")))
RICH = "save-total-limit-with-best"
"""A committed trace with evaluations, checkpoints, a resume of the best and every kind of row we plant in."""

Rows = list[Any]


def written(rows: Rows, path: Path) -> Path:
    write_canonical(rows, path, level="portable")
    return path


def found(rows_a: Rows, rows_b: Rows, folder: Path, **how: Any) -> list[Finding]:
    comparison = compare_runs(written(rows_a, folder / "a.jsonl"), written(rows_b, folder / "b.jsonl"), **how)
    assert (comparison.first is None) == comparison.equal
    return comparison.findings


def rich() -> Rows:
    return read_canonical(TRACES / RICH / "rank0.jsonl")


def position(rows: Rows, kind: type, nth: int = 0, **fields: Any) -> int:
    """Where the n-th row of a kind with these fields stands."""
    places = [
        i
        for i, row in enumerate(rows)
        if type(row) is kind and all(getattr(row, name) == value for name, value in fields.items())
    ]
    return places[nth]


def changed(rows: Rows, at: int, **fields: Any) -> Rows:
    return [*rows[:at], msgspec.structs.replace(rows[at], **fields), *rows[at + 1 :]]


# -- equal runs --------------------------------------------------------------------------------


def test_there_are_committed_traces():
    assert len(COMMITTED) >= 20


@pytest.mark.parametrize("name", COMMITTED)
def test_a_trace_equals_itself(name):
    comparison = compare_runs(TRACES / name, TRACES / name)
    assert comparison.equal and comparison.first is None
    assert comparison.blocks == comparison.equal_blocks > 1


@pytest.mark.parametrize("name", COMMITTED)
def test_every_block_read_as_records_equals_itself(name, tmp_path):
    """The quick way out, equal bytes, is not what makes a run equal to itself."""
    rows = read_canonical(TRACES / name / "rank0.jsonl")
    other = [msgspec.structs.replace(row, depth=row.depth + 1) if hasattr(row, "depth") else row for row in rows]
    path = tmp_path / "rank0.jsonl"
    path.write_bytes(b"".join(msgspec.json.encode(row) + b"\n" for row in other))
    comparison = compare_runs(TRACES / name / "rank0.jsonl", path)
    assert comparison.findings == []
    assert comparison.equal_blocks < comparison.blocks


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps=st.integers(1, 9), accumulation=st.integers(1, 4), logging=st.integers(1, 4))
def test_a_recording_equals_its_portable_form(steps, accumulation, logging, tmp_path):
    rows = sample_trace(steps, accumulation, logging)
    write_rows(rows, tmp_path / "rank0.rows")
    write_canonical(read(tmp_path / "rank0.rows"), tmp_path / "full.jsonl", level="canonical")
    write_canonical(rows, tmp_path / "portable.jsonl", level="portable")
    for left in ("rank0.rows", "full.jsonl"):
        assert compare_runs(tmp_path / left, tmp_path / "portable.jsonl").equal


# -- one planted difference ------------------------------------------------------------------------


def event_swapped(rows: Rows) -> Rows:
    """`on_epoch_begin` comes after `on_step_begin`."""
    at = position(rows, events.Event, event="on_epoch_begin")
    return [*rows[:at], *rows[at + 2 : at + 4], *rows[at : at + 2], *rows[at + 4 :]]


def event_removed(rows: Rows) -> Rows:
    at = position(rows, events.Event, event="on_save")
    return [*rows[:at], *rows[position(rows, events.EventEnd, event="on_save") + 1 :]]


def event_added_in_each_step(rows: Rows) -> Rows:
    planted: Rows = []
    for row in rows:
        if type(row) is events.OptimizerStep:
            step = events.Event(event="on_pre_optimizer_step", step=0)
            planted += [step, events.EventEnd(event="on_pre_optimizer_step")]
        planted.append(row)
    return planted


def event_added_once(rows: Rows) -> Rows:
    at = position(rows, events.GradNorm)
    extra = [events.Event(event="on_planted", step=0), events.EventEnd(event="on_planted")]
    return [*rows[:at], *extra, *rows[at:]]


def callback_removed(rows: Rows) -> Rows:
    at = position(rows, events.Callback, event="on_epoch_end")
    return [*rows[:at], *rows[at + 2 :]]


def flag_lowered_late(rows: Rows) -> Rows:
    """`should_log` is lowered only after the event that it asked for; every event between lists it as raised."""
    at = position(rows, events.Flag, flag="should_log", new=False)
    end = position(rows, events.EventEnd, event="on_log")
    assert at < end
    between = []
    for row in rows[at + 1 : end + 1]:
        if type(row) is events.Event:
            row = msgspec.structs.replace(row, lowered=[], raised=[*row.raised, "should_log"])
        elif type(row) is events.EventEnd:
            row = msgspec.structs.replace(row, raised=[*row.raised, "should_log"])
        between.append(row)
    return [*rows[:at], *between, rows[at], *rows[end + 1 :]]


def flag_by_another(rows: Rows) -> Rows:
    return changed(rows, position(rows, events.Flag, flag="should_save", new=True), by="Mine.on_step_end")


def flag_up_at_an_event(rows: Rows) -> Rows:
    """The list of flags differs, and no row says how it came about."""
    return changed(rows, position(rows, events.Event, event="on_train_begin"), raised=["should_training_stop"])


def ulp_in_the_logged_loss(rows: Rows) -> Rows:
    at = next(i for i, row in enumerate(rows) if type(row) is events.Log and "loss" in row.logs)
    logs = dict(rows[at].logs, loss=math.nextafter(rows[at].logs["loss"], math.inf))
    return changed(rows, at, logs=logs)


def ulp_in_a_micro_batch(rows: Rows) -> Rows:
    at = position(rows, events.Loss, 1)
    losses = [*rows[at].losses[:-1], math.nextafter(rows[at].losses[-1], math.inf)]
    return changed(rows, at, losses=losses, micro=losses, mean=9.0, quotient=9.0, logged=9.0, total_before=7.0)


def ulp_in_the_gradient_norm(rows: Rows) -> Rows:
    at = position(rows, events.GradNorm, 2)
    return changed(rows, at, norm=math.nextafter(rows[at].norm, math.inf))


def learning_rate_off(rows: Rows) -> Rows:
    at = position(rows, events.SchedulerStep, 1)
    return changed(rows, at, lr=[math.nextafter(rate, 1) for rate in rows[at].lr])


def evaluation_loss_off(rows: Rows) -> Rows:
    at = position(rows, events.EvalLoss, 1)
    losses = [*rows[at].losses[:-1], 0.123]
    return changed(rows, at, losses=losses)


def epoch_off_everywhere(rows: Rows) -> Rows:
    return [
        msgspec.structs.replace(row, epoch=row.epoch * 2) if type(row) is events.Event and row.epoch else row
        for row in rows
    ]


def file_missing(rows: Rows) -> Rows:
    at = next(i for i, row in enumerate(rows) if type(row) is events.File and row.path.endswith("scheduler.pt"))
    return [*rows[:at], *rows[at + 1 :]]


def file_missing_everywhere(rows: Rows) -> Rows:
    return [
        row
        for row in rows
        if not (type(row) is events.File and row.action == "write" and row.path.endswith("scheduler.pt"))
    ]


def file_of_another_size(rows: Rows) -> Rows:
    at = next(i for i, row in enumerate(rows) if type(row) is events.File and row.size)
    return changed(rows, at, size=rows[at].size + 1)


def log_key_added(rows: Rows) -> Rows:
    planted = []
    for row in rows:
        if type(row) is events.Log and "loss" in row.logs:
            row = msgspec.structs.replace(row, logs=dict(row.logs, grad_norm=0.5))
        planted.append(row)
    return planted


def log_record_removed(rows: Rows) -> Rows:
    at = next(i for i, row in enumerate(rows) if type(row) is events.Log and "train_loss" in row.logs)
    return [*rows[:at], *rows[at + 1 :]]


def samples_in_another_order(rows: Rows) -> Rows:
    at = position(rows, events.Samples, 1)
    return changed(rows, at, indices=rows[at].indices[::-1], digest="0" * 8)


def samples_with_another_content(rows: Rows) -> Rows:
    return changed(rows, position(rows, events.Samples, 1), digest="0" * 8)


def argument_changed(rows: Rows) -> Rows:
    at = position(rows, events.TrainerBegin)
    return changed(rows, at, arguments=dict(rows[at].arguments, learning_rate=0.25))


def argument_that_is_no_default_now(rows: Rows) -> Rows:
    at = position(rows, events.TrainerBegin)
    return changed(rows, at, arguments=dict(rows[at].arguments, optim="adamw_torch_fused"))


def callback_in_the_list(rows: Rows) -> Rows:
    at = position(rows, events.TrainerBegin)
    return changed(rows, at, callbacks=[*rows[at].callbacks, ("Mine", ["on_log"])])


def state_field(rows: Rows) -> Rows:
    at = position(rows, events.State, field="best_model_checkpoint")
    return changed(rows, at, new="elsewhere")


def call_added(rows: Rows) -> Rows:
    at = position(rows, events.Call, method="compute_loss")
    extra = [
        events.Call(method="_prepare_input", cls="Trainer", depth=3),
        events.Return(method="_prepare_input", depth=3),
    ]
    return [*rows[:at], *extra, *rows[at:]]


def device(rows: Rows) -> Rows:
    return changed(rows, position(rows, events.TrainerBegin), device="cuda")


def without_end(rows: Rows) -> Rows:
    return rows[:-1]


def gathered_more(rows: Rows) -> Rows:
    return changed(rows, position(rows, events.EvalLoss), gathered=99)


def noted(rows: Rows) -> Rows:
    return [*rows[:-1], events.Note(text="a hook failed"), rows[-1]]


Plant = Callable[[Rows], Rows]

PLANTED: list[tuple[Plant, tuple[str, str, str]]] = [
    (event_swapped, ("event", "moved", "on_epoch_begin")),
    (event_removed, ("event", "removed", "on_save")),
    (event_added_in_each_step, ("event", "added", "on_pre_optimizer_step")),
    (event_added_once, ("event", "added", "on_planted")),
    (callback_removed, ("callback", "removed", "DefaultFlowCallback in on_epoch_end")),
    (flag_lowered_late, ("flag", "moved", "should_log lowered")),
    (flag_by_another, ("flag", "changed", "should_save: who raises it")),
    (flag_up_at_an_event, ("flag", "changed", "should_training_stop up at on_train_begin")),
    (ulp_in_the_logged_loss, ("number", "changed", "logged loss")),
    (ulp_in_a_micro_batch, ("number", "changed", "loss of a micro-batch")),
    (ulp_in_the_gradient_norm, ("number", "changed", "gradient norm")),
    (learning_rate_off, ("number", "changed", "learning rate")),
    (evaluation_loss_off, ("number", "changed", "eval_loss: loss of a batch")),
    (epoch_off_everywhere, ("number", "changed", "epoch")),
    (file_missing, ("file", "removed", "checkpoint-*/scheduler.pt")),
    (file_missing_everywhere, ("file", "removed", "checkpoint-*/scheduler.pt")),
    (file_of_another_size, ("file", "changed", "size of checkpoint-*/model.safetensors")),
    (log_key_added, ("log", "added", "grad_norm in the loss record")),
    (log_record_removed, ("log", "removed", "record of train_loss")),
    (samples_in_another_order, ("sample", "changed", "which samples, in which order")),
    (samples_with_another_content, ("sample", "changed", "content of the samples")),
    (argument_changed, ("argument", "changed", "learning_rate")),
    (argument_that_is_no_default_now, ("argument", "added", "optim")),
    (callback_in_the_list, ("callback", "added", "Mine in the list")),
    (state_field, ("state", "changed", "best_model_checkpoint")),
    (call_added, ("call", "added", "_prepare_input")),
    (device, ("run", "changed", "device")),
    (without_end, ("run", "removed", "end of the recording")),
    (gathered_more, ("gather", "changed", "eval_loss: rows gathered and kept")),
    (noted, ("note", "added", "a hook failed")),
]


@pytest.mark.parametrize("plant, expected", PLANTED, ids=[plant.__name__ for plant, _ in PLANTED])
def test_a_planted_difference_is_the_only_finding(plant, expected, tmp_path):
    findings = found(rich(), plant(rich()), tmp_path)
    assert [(finding.kind, finding.change, finding.subject) for finding in findings] == [expected]
    (finding,) = findings
    assert finding.count >= 1 and finding.ranks == {0}
    shown = [row for row in (finding.row_a, finding.row_b) if row is not None]
    assert shown and all(json.loads(row)["kind"] for row in shown)
    assert (finding.row_a is None, finding.row_b is None) == (
        expected[1] == "added" and expected[0] not in ("log", "argument", "callback"),
        expected[1] == "removed",
    )
    back = found(plant(rich()), rich(), tmp_path)
    assert len(back) == 1
    if expected[1] != "moved":  # which of two neighbours moved is a matter of taste
        assert back[0].subject == expected[2]


def test_kinds_that_are_ignored_are_left_out(tmp_path):
    rows = log_key_added(ulp_in_the_gradient_norm(rich()))
    assert [finding.kind for finding in found(rich(), rows, tmp_path)] == ["number", "log"]
    assert [finding.kind for finding in found(rich(), rows, tmp_path, ignore=("log",))] == ["number"]
    assert found(rich(), rows, tmp_path, ignore=("log", "number")) == []


def test_a_tolerance_overlooks_an_ulp_and_not_more(tmp_path):
    assert found(rich(), ulp_in_the_gradient_norm(rich()), tmp_path, tolerance=1e-9) == []
    assert len(found(rich(), epoch_off_everywhere(rich()), tmp_path, tolerance=1e-9)) == 1


def test_a_difference_in_every_step_is_one_finding_with_its_count(tmp_path):
    steps = sum(type(row) is events.OptimizerStep for row in rich())
    (finding,) = found(rich(), event_added_in_each_step(rich()), tmp_path)
    assert finding.count == steps
    assert (finding.first_step, finding.last_step) == (0, steps - 1)


def test_the_first_divergence_stands_after_three_rows_of_both_sides(tmp_path):
    rows = rich()
    at = position(rows, events.Event, event="on_save")
    comparison = compare_runs(written(rows, tmp_path / "a.jsonl"), written(event_removed(rows), tmp_path / "b.jsonl"))
    lines = (tmp_path / "a.jsonl").read_text().splitlines()
    first = comparison.first
    assert first is not None
    assert first.row_a == lines[at] and first.row_b is None
    assert first.before_a == first.before_b == lines[at - 3 : at]


# -- what is recognised -------------------------------------------------------------------------------


def test_a_constant_factor_is_recognised(tmp_path):
    rows = sample_trace(steps=8, accumulation=2, logging_steps=1)
    doubled = []
    for row in rows:
        if type(row) is events.Log and "loss" in row.logs:
            row = msgspec.structs.replace(row, logs=dict(row.logs, loss=row.logs["loss"] * 2))
        doubled.append(row)
    (finding,) = found(rows, doubled, tmp_path)
    assert finding.subject == "logged loss"
    assert finding.note == "B = 2.000 × A = accumulation steps"


def test_a_rounded_value_is_recognised(tmp_path):
    rows = sample_trace(steps=8, accumulation=2, logging_steps=1)
    exact = []
    for row in rows:
        if type(row) is events.Log and "loss" in row.logs:
            row = msgspec.structs.replace(row, logs=dict(row.logs, loss=row.logs["loss"] + 0.00001234))
        exact.append(row)
    (finding,) = found(rows, exact, tmp_path)
    assert finding.note == "equal when rounded to four digits, as A is"


def test_renamed_things_are_the_same_and_are_shown(tmp_path):
    rows, other = rich(), rich()
    at = position(other, events.TrainerBegin)
    arguments = dict(other[at].arguments)
    arguments["eval_strategy"] = arguments.pop("evaluation_strategy")
    other = changed(other, at, arguments=arguments)
    other = [
        msgspec.structs.replace(row, path=row.path.replace("pytorch_model.bin", "model.safetensors"))
        if type(row) is events.File
        else row
        for row in other
    ]
    comparison = compare_runs(written(rows, tmp_path / "a.jsonl"), written(other, tmp_path / "b.jsonl"))
    assert comparison.equal
    assert [finding.subject for finding in comparison.renamed] == [
        "pytorch_model.bin is now model.safetensors",
        "evaluation_strategy is now eval_strategy",
    ]


def test_a_missing_rank_is_a_finding(tmp_path):
    source = TRACES / "two-ranks-uneven"
    (tmp_path / "rank0.jsonl").write_bytes((source / "rank0.jsonl").read_bytes())
    comparison = compare_runs(source, tmp_path)
    assert [(finding.kind, finding.change, finding.subject) for finding in comparison.findings] == [
        ("run", "removed", "trace of rank 1")
    ]


def test_a_difference_on_both_ranks_is_one_finding(tmp_path):
    source = TRACES / "two-ranks-uneven"
    for rank in (0, 1):
        rows = read_canonical(source / f"rank{rank}.jsonl")
        written([row for row in rows if type(row) is not events.GradNorm], tmp_path / f"rank{rank}.jsonl")
    (finding,) = compare_runs(source, tmp_path).findings
    assert finding.ranks == {0, 1}


def test_defaults_beside_the_traces_are_compared(tmp_path):
    for name, table in (
        ("a", {"optim": "adamw_hf", "no_cuda": False}),
        ("b", {"optim": "adamw_torch", "use_cpu": False}),
    ):
        (tmp_path / name).mkdir()
        written(rich(), tmp_path / name / "rank0.jsonl")
        (tmp_path / name / "defaults.json").write_text(json.dumps(table))
    comparison = compare_runs(tmp_path / "a", tmp_path / "b")
    (finding,) = comparison.findings
    assert (finding.kind, finding.subject) == ("argument", "optim (its default)")
    assert (finding.value_a, finding.value_b) == ("adamw_hf", "adamw_torch")
    assert [one.subject for one in comparison.renamed] == ["no_cuda is now use_cpu"]


# -- any difference is found -----------------------------------------------------------------------------


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_rows_left_out_are_always_found_and_both_ways(data, tmp_path):
    rows = read_canonical(TRACES / data.draw(st.sampled_from(COMMITTED)) / "rank0.jsonl")
    at = data.draw(st.integers(1, len(rows) - 2))
    count = data.draw(st.integers(1, 12))
    shorter = [*rows[:at], *rows[at + count :]]
    there = found(rows, shorter, tmp_path)
    back = found(shorter, rows, tmp_path)
    assert there and back
    assert len(there) == len(back)


# -- reports and the command --------------------------------------------------------------------------------


def test_reports_hold_every_finding_and_nothing_of_a_trace_is_executed(tmp_path):
    hostile = [
        msgspec.structs.replace(row, text="<script>alert(1)</script>\x1b[31m") if type(row) is events.Note else row
        for row in noted(rich())
    ]
    comparison = compare_runs(written(rich(), tmp_path / "a.jsonl"), written(hostile, tmp_path / "b.jsonl"))
    assert json.loads(report.as_json(comparison))["findings"][0]["kind"] == "note"
    for page in (report.html(comparison), report.markdown(comparison), report.text(comparison, show_rows=True)):
        assert "alert(1)" in page
        assert "\x1b" not in page
    assert "<script" not in report.html(comparison)
    assert "<script" not in report.markdown(comparison).replace("```json", "").split("```")[0]


def test_exit_status_is_zero_one_or_two(tmp_path, capsys):
    a, b = written(rich(), tmp_path / "a.jsonl"), written(event_removed(rich()), tmp_path / "b.jsonl")
    assert command_line(["compare", str(a), str(a)]) == 0
    assert capsys.readouterr().out.startswith("equal: ")
    assert command_line(["compare", str(a), str(b)]) == 1
    assert "event on_save is gone" in " ".join(capsys.readouterr().out.split())
    assert command_line(["compare", str(a), str(b), "--ignore", "event"]) == 0
    capsys.readouterr()
    for words in (["compare", str(a)], ["compare", str(a), str(tmp_path / "none")],
                  ["compare", str(a), str(b), "--ignore", "x"],
                  ["compare", str(a), str(b), "--unknown"], ["compare", "--trainers", "a", "b"]):  # fmt: skip
        assert command_line(words) == 2
        said = capsys.readouterr()
        assert said.out == "" and said.err.count("\n") == 1


def test_pages_are_written(tmp_path, capsys):
    a, b = written(rich(), tmp_path / "a.jsonl"), written(event_removed(rich()), tmp_path / "b.jsonl")
    words = ["--markdown", str(tmp_path / "r.md"), "--html", str(tmp_path / "r.html"), "--json"]
    assert command_line(["compare", *words, str(a), str(b)]) == 1
    assert json.loads(capsys.readouterr().out)["equal"] is False
    assert "on_save" in (tmp_path / "r.md").read_text() and "on_save" in (tmp_path / "r.html").read_text()


# -- the helper for users' tests ---------------------------------------------------------------------------------


def test_a_run_is_pinned_by_a_committed_trace(tmp_path, monkeypatch):
    monkeypatch.delenv("MINITRAINER_UPDATE_TRACES", raising=False)
    run, other = tmp_path / "rank0.rows", tmp_path / "other.rows"
    write_rows(sample_trace(4), run)
    committed = tmp_path / "traces" / "mine.jsonl"
    assert_trace_matches(run, committed)  # writes it
    before = committed.read_bytes()
    assert_trace_matches(run, committed)
    write_rows(sample_trace(5), other)
    with pytest.raises(AssertionError, match="on_step_begin"):
        assert_trace_matches(other, committed)
    assert committed.read_bytes() == before
    with pytest.raises(UsageError):
        assert_trace_matches(tmp_path / "none", committed)
    monkeypatch.setenv("MINITRAINER_UPDATE_TRACES", "1")
    assert_trace_matches(other, committed)
    assert committed.read_bytes() != before


def test_the_helper_pins_a_real_trainer(tmp_path):
    """As in a user's test: a run of the installed Trainer, committed once, is matched by the same run."""
    from minitrainer.trace import assert_trace_matches as helper

    words = ["one-epoch", "--trainer", "minitrainer", "--quiet", "--out", str(tmp_path / "run")]
    subprocess.run([sys.executable, "-m", "minitrainer.trace", *words], check=True, capture_output=True)
    helper(tmp_path / "run", tmp_path / "mine.jsonl")
    helper(tmp_path / "run", tmp_path / "mine.jsonl")
    with pytest.raises(AssertionError, match="first divergence"):
        helper(tmp_path / "run", TRACES / "groups-divide-evenly")
