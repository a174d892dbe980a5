"""The command line as a person meets it: help, wrong use, exit status."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from minitrainer.trace import scenarios
from minitrainer.trace.cli import COMMANDS


def trace(*words: str, cwd: Path, timeout: float = 120, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run `python -m minitrainer.trace` with `words`, as a pipe of 80 columns would see it."""
    root = str(Path(__file__).resolve().parents[2])
    environment = {**os.environ, "PYTHONPATH": root, "COLUMNS": "80", "NO_COLOR": "1", **variables}
    return subprocess.run(
        [sys.executable, "-m", "minitrainer.trace", *words],
        cwd=cwd,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
    )


def test_help_names_every_scenario_and_command_within_80_columns(tmp_path):
    done = trace("--help", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in (*scenarios.SCENARIOS, *COMMANDS):
        assert name in done.stdout
    assert max(map(len, done.stdout.splitlines())) <= 80


@pytest.mark.parametrize("words", [["--help"], ["run_glue", "--help"], ["upstream", "--help"], ["show", "--help"]])
def test_help_does_not_import_anything_heavy(words, tmp_path):
    """Torch alone takes a second; `tests/benchmarks/help_speed.py` measures what remains."""
    program = (
        "import sys\n"
        "from minitrainer.trace.cli import main\n"
        "try:\n    main(sys.argv[1:])\nexcept SystemExit:\n    pass\n"
        "heavy = {'torch', 'transformers', 'datasets', 'accelerate', 'rich', 'numpy'} & set(sys.modules)\n"
        "sys.exit(f'imported: {sorted(heavy)}' if heavy else 0)\n"
    )
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        [sys.executable, "-c", program, *words],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "usage" in done.stdout


WRONG_USE = {
    "an unknown word": (["run_gleu"], "did you mean run_glue"),
    "nothing to run": (["--trainer", "transformers"], "say what to run"),
    "a script that is not there": (["no_such_script.py"], "no_such_script.py"),
    "a trainer that does not exist": (["run_glue", "--trainer", "lightning"], "--trainer takes"),
    "a version of ours": (["run_glue", "--trainer", "minitrainer==4.31.0"], "--environment"),
    "two versions": (["run_glue", "--trainer", "transformers==4.31.0", "--environment", "4.36.2"], "contradict"),
    "no process": (["run_glue", "--nproc", "0"], "whole number from 1"),
    "a place that is a file": (["run_glue", "--out", "file"], "file"),
    "an unknown option of a command": (["show", "--colour", "x"], "see"),
    "a trace that is not there": (["show", "nowhere"], "nowhere"),
    "a file that is no trace": (["verify", "file"], "file"),
    "no version": (["upstream", "add", "newest"], "newest"),
    "a version before ours": (["upstream", "add", "4.0.0"], "4.31"),
}


@pytest.mark.parametrize("case", WRONG_USE)
def test_wrong_use_gets_one_clear_line_and_status_2(case, tmp_path):
    words, said = WRONG_USE[case]
    (tmp_path / "file").write_text("not a trace\n")
    done = trace(*words, cwd=tmp_path)
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert len(lines) == 1 and said in lines[0], done.stderr
    assert "Traceback" not in done.stdout + done.stderr


def test_debug_shows_the_stack(tmp_path):
    done = trace("show", "nowhere", cwd=tmp_path, MINITRAINER_DEBUG="1")
    assert done.returncode == 2 and "Traceback" in done.stderr
    done = trace("--debug", "show", "nowhere", cwd=tmp_path)
    assert done.returncode == 2 and "Traceback" in done.stderr


def test_a_reader_that_closes_the_pipe_is_no_error(tmp_path):
    root = str(Path(__file__).resolve().parents[2])
    done = subprocess.run(
        f"{sys.executable} -m minitrainer.trace --help | head -n 1",
        shell=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": root},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0 and done.stderr == ""
