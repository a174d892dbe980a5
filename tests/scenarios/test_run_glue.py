"""run_glue trains, learns, repeats to the last bit, and answers wrong use with one line."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import transformers
from transformers import AutoModelForSequenceClassification

from minitrainer.trace import scenarios
from minitrainer.trace.errors import UsageError
from minitrainer.trace.scenarios import models, run_glue

from .support import in_both_environments, log_history, results, run

ROOT = Path(__file__).resolve().parents[2]
SHORT = ("--max_steps", "6", "--logging_steps", "2", "--max_eval_samples", "40", "--max_predict_samples", "10")


# -- it runs ---


@in_both_environments
def test_a_short_run_trains_evaluates_and_predicts(environment: str, tmp_path: Path) -> None:
    out = run("run_glue", tmp_path, *SHORT)
    steps = [record["step"] for record in log_history(out) if "loss" in record]
    assert steps == [2, 4, 6]
    assert {"eval_accuracy", "eval_loss", "train_loss", "train_samples", "eval_samples"} <= set(results(out))
    assert (results(out)["train_samples"], results(out)["eval_samples"]) == (2000, 40)
    lines = (out / "predict_results_polarity.txt").read_text().splitlines()
    assert lines[0] == "index\tprediction"
    assert len(lines) == 11
    assert {line.split("\t")[1] for line in lines[1:]} <= {"negative", "positive"}


@in_both_environments
def test_two_runs_agree_to_the_last_bit(environment: str, tmp_path: Path) -> None:
    first, second = (log_history(run("run_glue", tmp_path / name, *SHORT)) for name in "ab")
    assert json.dumps(first) == json.dumps(second)
    assert len(first) == 3 + 1 + 1  # loss records, the evaluation at the end of training, the summary


@in_both_environments
def test_another_seed_is_another_run(environment: str, tmp_path: Path) -> None:
    assert log_history(run("run_glue", tmp_path / "a", *SHORT)) != log_history(
        run("run_glue", tmp_path / "b", *SHORT, "--seed", "43")
    )


@in_both_environments
def test_pairs_are_scored_by_f1_too(environment: str, tmp_path: Path) -> None:
    out = run("run_glue", tmp_path, "--task", "pairs", *SHORT)
    assert {"eval_accuracy", "eval_f1"} <= set(results(out))
    lines = (out / "predict_results_pairs.txt").read_text().splitlines()
    assert {line.split("\t")[1] for line in lines[1:]} <= {"different", "same"}


def test_a_resumed_run_ends_where_the_unbroken_one_does(tmp_path: Path) -> None:
    steps = ("--save_strategy", "steps", "--save_steps", "4", *SHORT)
    whole = run("run_glue", tmp_path / "whole", *steps)
    resumed = run("run_glue", tmp_path / "resumed", *steps, "--resume_from_checkpoint", str(whole / "checkpoint-4"))
    assert [record for record in log_history(resumed) if record["step"] > 4 and "train_loss" not in record] == [
        record for record in log_history(whole) if record["step"] > 4 and "train_loss" not in record
    ]


def test_each_part_can_be_left_out(tmp_path: Path) -> None:
    out = run("run_glue", tmp_path, *SHORT, "--do_train", "false", "--do_predict", "false")
    assert set(results(out)) >= {"eval_accuracy"}
    assert not [key for key in results(out) if key.startswith("train_")]
    assert not list(out.glob("predict_results*"))


def test_a_pretrained_model_from_a_folder_is_used(tmp_path: Path) -> None:
    transformers.set_seed(1)
    tokenizer, model = models.small_model(AutoModelForSequenceClassification, "bert", num_labels=2)
    tokenizer.save_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    words = ("--model_name_or_path", str(tmp_path / "model"), "--max_steps", "2", "--max_eval_samples", "4")
    out = run("run_glue", tmp_path / "out", *words, "--logging_steps", "1")
    rates = [record["learning_rate"] for record in log_history(out) if "learning_rate" in record]
    assert max(rates) <= 5e-5, "a pretrained model must not get the rate of one that starts from nothing"


def test_a_pretrained_model_with_another_head_gets_one_line(tmp_path: Path) -> None:
    tokenizer, model = models.small_model(AutoModelForSequenceClassification, "bert", num_labels=3)
    tokenizer.save_pretrained(tmp_path / "model")
    model.save_pretrained(tmp_path / "model")
    with pytest.raises(UsageError, match="cannot load a model from the folder") as error:
        run("run_glue", tmp_path / "out", "--model_name_or_path", str(tmp_path / "model"))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["csv", "json"])
def test_the_users_own_files_are_read(kind: str, tmp_path: Path) -> None:
    rows = [{"sentence": f"sentence number {number}", "label": number % 2} for number in range(8)]
    for split in ("train", "validation"):
        with open(tmp_path / f"{split}.{kind}", "w", newline="") as file:
            if kind == "csv":
                writer = csv.DictWriter(file, ["sentence", "label"])
                writer.writeheader()
                writer.writerows(rows)
            else:
                file.writelines(json.dumps(row) + "\n" for row in rows)
    words = [f"--{split}_file={tmp_path / split}.{kind}" for split in ("train", "validation")]
    out = run("run_glue", tmp_path / "out", *words, "--num_train_epochs", "1")
    assert (results(out)["train_samples"], results(out)["eval_samples"]) == (8, 8)


def test_nothing_is_written_into_the_users_home(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    code = (
        "import sys, transformers\n"
        "from minitrainer.trace.scenarios import run_glue\n"
        "run_glue.main(transformers, sys.argv[1:])"
    )
    words = ["--output_dir", str(tmp_path / "out"), "--max_steps", "1", "--max_eval_samples", "4"]
    environment = {key: value for key, value in os.environ.items() if not key.startswith(("HF_", "XDG_"))}
    child = subprocess.run(
        [sys.executable, "-c", code, *words],
        cwd=ROOT,
        env=environment | {"HOME": str(home)},
        capture_output=True,
        text=True,
    )
    assert child.returncode == 0, child.stderr
    written = [path.relative_to(home) for path in home.rglob("*") if path.is_file()]
    # The hub's client marks its own, empty cache when it is imported; nothing else.
    assert [path for path in written if path.name != "version.txt"] == []


# -- it learns ---


@pytest.mark.slow
@in_both_environments
def test_the_default_learns(environment: str, tmp_path: Path) -> None:
    out = run("run_glue", tmp_path)
    assert results(out)["eval_accuracy"] > 0.65  # The larger class alone gives 0.5125.
    assert len([record for record in log_history(out) if "loss" in record]) == 15
    assert sorted(path.name for path in out.glob("checkpoint-*")) == [
        "checkpoint-125",
        "checkpoint-250",
        "checkpoint-375",
    ]


def test_scores_on_rows_worked_by_hand() -> None:
    predicted, labels = np.array([1, 1, 0, 0, 1]), np.array([1, 0, 0, 1, 1])
    assert run_glue.accuracy(predicted, labels) == 3 / 5
    # Two of label 1 found; three said to be, three that are: precision and recall 2/3 each.
    assert run_glue.f1(predicted, labels) == 2 / 3
    assert run_glue.f1(np.zeros(5), labels) == 0.0
    # Matthews': (2·1 − 1·1) / √(3·3·2·2) = 1/6.
    assert run_glue.correlation(predicted, labels) == pytest.approx(1 / 6, abs=1e-15)
    assert run_glue.correlation(np.zeros(5), labels) == 0.0


# -- its arguments ---


@in_both_environments
def test_help_teaches(environment: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_glue.main(transformers, ["--help"])
    assert stop.value.code == 0
    said = " ".join(capsys.readouterr().out.split())
    for words in (
        "--task {polarity,pairs}",
        "--task_name",
        "--gradient_accumulation_steps",
        "args.json",
        "OMP_NUM_THREADS",
    ):
        assert words in said
    assert re.search(r"--num_train_epochs \S+ .*?\(default: 3\.0\)", said)


def test_a_file_of_arguments_stands_for_flags_and_the_later_word_holds(tmp_path: Path) -> None:
    arguments = {
        "max_steps": 4,
        "logging_steps": 2,
        "output_dir": str(tmp_path / "b"),
        "report_to": [],
        "run_name": None,
    }
    (tmp_path / "args.json").write_text(json.dumps(arguments))
    words = ["--output_dir", str(tmp_path / "a"), str(tmp_path / "args.json"), "--logging_steps", "4"]
    run_glue.main(transformers, [*words, "--max_eval_samples", "4", "--disable_tqdm", "true"])
    assert not (tmp_path / "a").exists()
    assert [record["step"] for record in log_history(tmp_path / "b") if "loss" in record] == [4]


WRONG_EVERYWHERE = {
    "unknown scenario value": (["--task", "polaritty"], r"invalid choice: '?polaritty'?"),
    "unknown benchmark task": (["--task_name", "mrcp"], r"invalid choice: '?mrcp'?"),
    "unknown field": (["--loging_steps", "5"], r"has no --loging_steps; did you mean --logging_steps\?"),
    "field without any likeness": (["--xyzzy", "5"], r"has no --xyzzy$"),
    "abbreviated field": (["--learning", "5"], r"has no --learning"),
    "word that is no flag": (["polarity"], r"unexpected word 'polarity'"),
    "wrong type": (["--max_steps", "many"], r"--max_steps.*: invalid int value: 'many'"),
    "value missing": (["--seed"], r"--seed: expected one argument"),
    "contradiction": (["--load_best_model_at_end", "--save_strategy", "steps"], r"load_best_model_at_end requires"),
    "one file of two": (["--train_file", "a.csv"], r"--train_file and --validation_file go together"),
    "missing file": (["--train_file", "a.csv", "--validation_file", "b.csv"], r"cannot read a\.csv: there is no such"),
    "missing arguments file": (["nowhere.json"], r"cannot read arguments from nowhere\.json"),
    "folder without a model": (["--model_name_or_path", "tests"], r"cannot load a model from the folder tests"),
    "missing checkpoint": (["--resume_from_checkpoint", "no/where"], r"there is no folder no/where to resume from"),
}


@pytest.mark.parametrize(("words", "message"), WRONG_EVERYWHERE.values(), ids=WRONG_EVERYWHERE)
def test_wrong_use_gets_one_line(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    with pytest.raises(UsageError, match=message) as error:
        run_glue.main(transformers, ["--output_dir", str(tmp_path), *words])
    assert "\n" not in str(error.value)


UNREADABLE = {
    "no label column": ("a.csv", "sentence\nfine\n", r"has no column 'label'"),
    "another form": ("a.csv", "sentence1,sentence2,label\na,b,1\n", r"has no column 'sentence'"),
    "foreign label": ("a.csv", "sentence,label\nfine,2\n", r"has the label 2; labels are 0 or 1"),
    "empty label": ("a.csv", "sentence,label\nfine,\nbad,1\n", r"has the label None"),
    "empty text": ("a.csv", "sentence,label\n,1\nfine,0\n", r"rows without text"),
    "ragged": ("a.csv", 'sentence,label\n"open quote,1\n', r"cannot read"),
    "no rows": ("a.csv", "sentence,label\n", r"has no rows"),
    "empty": ("a.csv", "", r"has no rows"),
    "empty json": ("a.json", "\n", r"has no rows"),
    "broken json": ("a.json", '{"sentence": "fi', r"cannot read"),
    "not text": ("a.csv", b"sentence,label\n\xff\xfe\x00,1\n", r"cannot read"),
    "another kind": ("a.tsv", "sentence\tlabel\n", r"both must be \.csv, or both \.json"),
}


@pytest.mark.parametrize(("name", "content", "message"), UNREADABLE.values(), ids=UNREADABLE)
def test_unreadable_data_gets_one_line(name: str, content: str | bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    words = [f"--{split}_file={tmp_path / name}" for split in ("train", "validation")]
    with pytest.raises(UsageError, match=message) as error:
        run_glue.main(transformers, ["--output_dir", str(tmp_path / "out"), *words])
    assert "\n" not in str(error.value)


def test_an_unknown_name_is_answered_with_this_versions_own(tmp_path: Path) -> None:
    for word, other in (
        ("evaluation_strategy", "eval_strategy"),
        ("no_cuda", "use_cpu"),
        ("warmup_ratio", "warmup_steps"),
    ):
        with pytest.raises(UsageError, match=rf"^transformers \S+ has no --{word}; there it is --{other}"):
            run_glue.main(transformers, ["--output_dir", str(tmp_path), f"--{word}", "no"])


@pytest.mark.reference
def test_an_unknown_name_is_answered_with_4_31_0s_own(tmp_path: Path) -> None:
    for word, other in (("eval_strategy", "evaluation_strategy"), ("use_cpu", "no_cuda")):
        with pytest.raises(UsageError, match=rf"^transformers 4\.31\.0 has no --{word}; there it is --{other}"):
            run_glue.main(transformers, ["--output_dir", str(tmp_path), f"--{word}", "no"])


@in_both_environments
def test_without_network_one_line_says_what_is_missing(environment: str, tmp_path: Path) -> None:
    # Port 9 of this machine refuses at once, as a machine without a network does.
    code = """
import sys, time, transformers
from minitrainer.trace.errors import UsageError
from minitrainer.trace.scenarios import run_glue
for words in (["--model_name_or_path", "bert-base-cased"], ["--task_name", "mrpc"]):
    started = time.monotonic()
    try:
        run_glue.main(transformers, ["--output_dir", sys.argv[1], *words])
    except UsageError as error:
        print(f"{error} [{time.monotonic() - started < 15}]")
"""
    child = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        cwd=ROOT,
        env=os.environ | {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
    )
    first, second = child.stdout.splitlines()
    ending = r"no network, and the cache has no copy; the embedded default needs none: .*--model_name_or_path \[True\]"
    assert re.fullmatch("cannot load the model bert-base-cased: " + ending, first), child.stderr
    assert re.fullmatch(r"cannot load the data set nyu-mll/glue \(mrpc\): " + ending, second), child.stderr
    assert child.returncode == 0


def test_an_unknown_scenario_is_answered_with_the_nearest() -> None:
    with pytest.raises(UsageError, match=r"no scenario is called 'run_glu'; did you mean run_glue\?"):
        scenarios.load("run_glu")


# Read next: test_run_summarization.py
