"""The learning curve is drawn from what was recorded: every point, and nothing else."""

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from minitrainer.book.learning_curve import RUNS, logged, svg

RECORDED = Path(__file__).resolve().parents[2] / "traces" / "book" / "learning-curve"


def test_every_logged_value_is_a_point_with_its_number():
    drawn = ElementTree.fromstring(svg(RECORDED))
    titles = [title.text for title in drawn.iter("title")]
    expected = 0
    for name, ranks in RUNS.items():
        words = "1 process" if ranks == 1 else f"{ranks} ranks"
        for key, label in (("loss", "loss"), ("eval_loss", "eval_loss"), ("eval_accuracy", "accuracy")):
            points = {r["step"]: (r["epoch"], r[key]) for r in logged(RECORDED, name) if key in r}
            assert points
            expected += len(points)
            for epoch, value in points.values():
                assert f"{label}, {words}, epoch {epoch:g}: {value:.4f}" in titles
    assert len(titles) == expected


def test_a_run_that_logged_no_loss_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"one-process\.json is missing: record it"):
        svg(tmp_path)
    (tmp_path / "one-process.json").write_text(
        json.dumps({"log_history": [{"step": 1, "epoch": 1.0, "eval_loss": 0.5}]})
    )
    with pytest.raises(ValueError, match="logged no loss"):
        svg(tmp_path)


def test_a_point_outside_the_axes_is_refused(tmp_path):
    for name in RUNS:
        content = json.loads((RECORDED / f"{name}.json").read_text())
        content["log_history"][0]["loss"] = 7.0
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match="from .* to 7.0, the axis from 0.2 to 0.7"):
        svg(tmp_path)


# Read next: test_site.py
