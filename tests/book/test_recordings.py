"""The recordings that only the book shows can be made again by the command lines that stand in `recordings.py`."""

import json
from pathlib import Path

import pytest

from minitrainer.book import learning_curve, recordings
from minitrainer.trace.scenarios import RANKS

RECORDED = Path(__file__).resolve().parents[2] / "traces" / "book"


def test_every_recording_is_committed_and_nothing_else():
    files = {str(path.relative_to(RECORDED)) for path in RECORDED.rglob("*") if path.is_file()}
    expected = {f"{name}/rank{rank}.jsonl" for name in recordings.RECORDINGS for rank in range(ranks_of(name))}
    assert files == expected | {f"{recordings.LEARNING_CURVE}/{run}.json" for run in learning_curve.RUNS}
    assert len(expected) == 17


@pytest.mark.slow
@pytest.mark.parametrize("name", ["search", "two-ranks-seed-7"])
def test_recorded_again_they_are_the_committed_bytes(name, tmp_path, capsys):
    """Both are exact on every machine; one is a script, the other a scenario on two ranks."""
    assert recordings.main(["--to", str(tmp_path), name]) == 0
    assert "recorded 1 of 12" in capsys.readouterr().out
    assert {path.name for path in (tmp_path / name).iterdir()} == {path.name for path in (RECORDED / name).iterdir()}
    for committed in (RECORDED / name).iterdir():
        assert (tmp_path / name / committed.name).read_bytes() == committed.read_bytes(), committed.name


@pytest.mark.parametrize("name", recordings.RECORDINGS)
def test_every_recording_tells_of_its_command_line(name):
    """Version, scenario and every argument that the words name stand in the committed trace: no run is needed."""
    words = options_of(name)
    for rank in range(ranks_of(name)):
        records = [json.loads(line) for line in (RECORDED / name / f"rank{rank}.jsonl").open()]
        head = records[0]
        assert head["versions"]["transformers"] == words["trainer"].removeprefix("transformers==")
        assert head["scenario"] == words["what"]
        assert head.get("world_size", 1) == ranks_of(name)
        (trainer,) = (record for record in records if record["kind"] == "trainer")
        for option, word in words.items():
            if option.startswith("max_") and option.endswith("_samples"):
                assert len(rows_seen(records, option.split("_")[1])) >= int(word)  # a text may be several rows
            elif option not in ("what", "trainer", "nproc"):
                # A trace keeps what differs from the library's own defaults: both strategies are "no" there.
                assert as_word(trainer["arguments"].get(option, "no")) == word, option


def test_a_failed_run_shows_what_it_said(tmp_path, monkeypatch):
    monkeypatch.setitem(recordings.RECORDINGS, "search", "one-epoch --trainer transformers --max_steps many")
    (tmp_path / "rank0.jsonl").write_text("kept")
    with pytest.raises(recordings.UsageError, match="recording search failed:\n(.|\n)*many"):
        recordings.record("search", tmp_path)
    assert (tmp_path / "rank0.jsonl").read_text() == "kept"


def test_an_unknown_name_is_answered_with_the_known_ones(capsys):
    with pytest.raises(SystemExit, match="2"):
        recordings.main(["run_squad"])
    assert "no recording run_squad; there are: bert-groups-of-two-4.57.6," in capsys.readouterr().err


def options_of(name: str) -> dict[str, str]:
    """The options of a recording's command line by name, and what runs as "what"."""
    words = iter(recordings.RECORDINGS[name].split())
    options = {}
    for word in words:
        if word.startswith("--"):
            options[word.removeprefix("--")] = next(words)
        else:
            options["what"] = Path(word).name
    return options


def ranks_of(name: str) -> int:
    options = options_of(name)
    return int(options.get("nproc", RANKS.get(options["what"], 1)))


def rows_seen(records: list[dict], stage: str) -> set[int]:
    """Positions of the rows that a trace saw in training ("train"), in evaluations ("eval") or after them ("predict")."""
    rows: dict[str, set[int]] = {"train": set(), "eval": set(), "predict": set()}
    predicts = False
    for record in records:
        predicts = predicts or record.get("method") == "predict"
        if record["kind"] == "samples":
            rows["predict" if predicts else record.get("split", "train")] |= set(record["indices"])
    return rows[stage]


def as_word(value) -> str:
    """A recorded argument as it is written on a command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


# Read next: test_learning_curve.py
