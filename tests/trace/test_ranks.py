"""The files of one run are joined; what is missing or broken is said, and takes nothing else along."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest

from minitrainer.trace import commands, events
from minitrainer.trace.errors import UsageError
from minitrainer.trace.ranks import ending, joined_losses, open_run
from minitrainer.trace.rows import sample_trace

from . import made
from .test_verify import write_ranks


def test_ranks_come_from_headers_not_from_names(tmp_path: Path) -> None:
    first, second = made.two_ranks()
    made.write(second, tmp_path, "a.rows")
    made.write(first, tmp_path, "b.rows")
    run = open_run(tmp_path)
    assert {rank: reading.path.name for rank, reading in run.readings.items()} == {0: "b.rows", 1: "a.rows"}
    assert run.world_size == 2 and not run.findings and not run.missing


def test_missing_rank_is_a_finding(tmp_path: Path) -> None:
    made.write(made.two_ranks()[1], tmp_path, "rank1.rows")
    run = open_run(tmp_path)
    assert run.missing == [0] and run.findings == ["rank 0 of 2 left no file here"]
    assert run.first.head.rank == 1


def test_other_files_in_the_folder_are_left_alone(tmp_path: Path) -> None:
    made.write(sample_trace(), tmp_path)
    (tmp_path / "output").mkdir()
    (tmp_path / "notes.txt").write_text("mine")
    made.canonical(sample_trace(), tmp_path)  # the same rank, exported beside its recording
    run = open_run(tmp_path)
    assert list(run.readings) == [0] and run.readings[0].path.suffix == ".rows" and not run.findings


def test_broken_file_beside_a_good_one_is_a_finding(tmp_path: Path) -> None:
    made.write(made.two_ranks()[0], tmp_path, "rank0.rows")
    (tmp_path / "rank1.rows").write_bytes(b"not a trace\n")
    run = open_run(tmp_path)
    assert list(run.readings) == [0]
    assert any("left out" in finding and "rank1.rows" in finding for finding in run.findings)


def test_latest_attempt_of_a_restarted_rank_is_read(tmp_path: Path) -> None:
    for attempt in (0, 1, 2):
        records = made.replaced(sample_trace(), events.Head, process={"restarts": attempt})
        made.write(records, tmp_path, f"rank0.restart{attempt}.rows" if attempt else "rank0.rows")
    run = open_run(tmp_path)
    assert run.readings[0].path.name == "rank0.restart2.rows"
    assert len(run.findings) == 2


def test_disagreeing_versions_are_a_finding(tmp_path: Path) -> None:
    ranks = made.two_ranks()
    ranks[1] = made.replaced(ranks[1], events.Head, versions={"transformers": "4.30.0"})
    assert "the ranks ran different versions of transformers" in write_ranks(ranks, tmp_path).findings


@pytest.mark.parametrize("content", [None, b"", b"{}", b"\x00" * 100, b"PK\x03\x04", b'{"kind":"head","schema":99}\n'])
def test_only_file_unusable_gives_one_line(tmp_path: Path, content: bytes | None) -> None:
    if content is not None:
        (tmp_path / "rank0.rows").write_bytes(content)
    with pytest.raises(UsageError) as error:
        open_run(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_no_such_path_gives_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError):
        open_run(tmp_path / "nothing")


def test_losses_of_ranks_stand_side_by_side(tmp_path: Path) -> None:
    joined = list(joined_losses(write_ranks(made.two_ranks(), tmp_path)))
    assert [(one[0].key, one[0].step, sorted(one)) for one in joined] == [
        ("loss", 2, [0, 1]),
        ("loss", 4, [0, 1]),
        ("eval_loss", 4, [0, 1]),
        ("train_loss", 4, [0, 1]),
    ]


def test_rank_that_lost_a_log_does_not_shift_the_others(tmp_path: Path) -> None:
    ranks = made.two_ranks()
    first_loss = next(i for i, record in enumerate(ranks[1]) if isinstance(record, events.Loss))
    ranks[1] = made.with_end([*ranks[1][:first_loss], *ranks[1][first_loss + 2 :]])
    joined = list(joined_losses(write_ranks(ranks, tmp_path)))
    for group in joined:
        assert len({(found.key, found.step) for found in group.values()}) == 1


def test_ending_names_open_calls(tmp_path: Path) -> None:
    path = made.write(made.without_end(sample_trace(), 14), tmp_path)
    with open(path, "ab") as file:
        file.write(b'[4,5,"torn')  # the row that was being written
    reading = open_run(path).first
    list(reading)
    (sentence,) = ending(reading)
    assert "incomplete, the trace stops after 14 rows (and 10 bytes of a row that was being written)" in sentence
    assert "open when it stopped: Trainer.train, Trainer._inner_training_loop, Trainer.training_step" in sentence


def test_dropped_rows_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    records = sample_trace()
    records = [*records[:-1], msgspec.structs.replace(records[-1], dropped=12)]
    path = made.write(records, tmp_path)
    for show in (commands.show, commands.stats):
        show(path)
        assert "12 rows could not be written and are missing" in " ".join(capsys.readouterr().out.split())


def test_show_puts_ranks_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ranks = made.two_ranks()
    ranks[1] = made.without_end(ranks[1], 70)
    write_ranks(ranks, tmp_path)
    commands.show(tmp_path)
    out = capsys.readouterr().out
    assert "no: cut in training_step after on_step_begin" in " ".join(out.split())
    assert "rank 1 went the same way but not as far" in out
    assert "rank 1: incomplete" in out
    words = " ".join(out.split())
    assert "0.3125 = 1.625" in words and "= 3.25" in words


def test_show_tells_unequal_micro_batches(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ranks = made.two_ranks()
    ranks[1] = made.replaced(ranks[1], events.Samples, 3, rows=1)
    write_ranks(ranks, tmp_path)
    commands.show(tmp_path)
    assert "micro-batch 4 (step 2) has unlike sizes: 2 on rank 0, 1 on rank 1" in capsys.readouterr().out


def test_rank_option_chooses_the_tree(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_ranks(made.two_ranks(), tmp_path)
    commands.show(tmp_path, rank=1, only="loss")
    out = capsys.readouterr().out
    assert "rank 1 of 2" in out and "losses, rank by rank" not in out
    with pytest.raises(UsageError, match="holds no rank 7; of 2 it holds 0, 1"):
        commands.show(tmp_path, rank=7)


# Read next: test_commands.py.
