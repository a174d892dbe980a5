"""Every scenario runs on minitrainer too, and in the reference environment its log equals the real one's."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import transformers

import minitrainer

from .support import log_history, results, run

SHORT = ("--max_steps", "6", "--logging_steps", "2", "--max_eval_samples", "20", "--max_predict_samples", "10")
NAMES = ("run_glue", "run_summarization", "run_qa")


@pytest.mark.parametrize("name", NAMES)
def test_minitrainer_runs_it(name: str, tmp_path: Path) -> None:
    out = run(name, tmp_path, *SHORT, library=minitrainer)
    assert [record["step"] for record in log_history(out) if "loss" in record] == [2, 4, 6]
    assert "train_loss" in results(out)


@pytest.mark.reference
@pytest.mark.parametrize("name", NAMES)
def test_the_log_equals_the_real_4_31_0s_to_the_last_bit(name: str, tmp_path: Path) -> None:
    ours = run(name, tmp_path / "ours", *SHORT, library=minitrainer)
    real = run(name, tmp_path / "real", *SHORT, library=transformers)
    assert json.dumps(log_history(ours)) == json.dumps(log_history(real))
    assert len(log_history(ours)) == 3 + 1 + 1
    assert {path.name for path in ours.iterdir()} == {path.name for path in real.iterdir()}
    for predictions in real.glob("*predict*.*"):
        if predictions.name != "predict_results.json":  # It holds clock times.
            assert (ours / predictions.name).read_text() == predictions.read_text()


# Read next: ../trace, where the same runs are watched.
