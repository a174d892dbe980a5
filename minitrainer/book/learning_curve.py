"""The learning curve of `run_glue`, drawn from what two recorded runs logged.

    python -m minitrainer.book.learning_curve              record both runs anew from the real 4.31.0 (a minute)

The data is `traces/book/learning-curve/`: for each run the log records of its `trainer_state.json`, without clock times.
`svg` draws them; the page asks for it with a `picture` block, so the picture can't say anything that was not recorded.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

RUNS = {"one-process": 1, "two-ranks": 2}
"""The runs and their number of ranks. Everything else is the same in both, also the batch size of a device."""

REFERENCE = "4.31.0"


# -- the picture ---

WIDTH, PANEL_HEIGHT, LEFT, RIGHT, TOP, GAP = 720.0, 220.0, 56.0, 168.0, 28.0, 56.0


@dataclass(frozen=True)
class Line:
    """One curve: its points, and how to tell it from the others without colour."""

    name: str
    points: list[tuple[float, float]]  # (epoch, value)
    colour: str
    dashes: str
    marker: str  # "circle" or "square"


@dataclass(frozen=True)
class Panel:
    """One pair of axes; the range is chosen so that all points and the grid lines lie in it."""

    title: str
    ticks: tuple[float, ...]
    lines: list[Line]


def svg(folder: str | Path) -> str:
    """Draw loss and accuracy over the epochs for all runs in `folder`.

    Args:
        folder: holds `one-process.json` and `two-ranks.json`.

    Returns:
        An `<svg>` element that takes text colour from the page, so it works on light and on dark ones.

    Raises:
        ValueError: if a run is missing, or logged no loss or no evaluation.
    """
    losses, accuracies = [], []
    for (name, ranks), colour, dashes in zip(RUNS.items(), ("#1f77b4", "#d55e00"), ("", "6 4"), strict=True):
        records = logged(Path(folder), name)
        words = "1 process" if ranks == 1 else f"{ranks} ranks"
        losses.append(Line(f"loss, {words}", _points(records, "loss"), colour, dashes, "circle"))
        losses.append(Line(f"eval_loss, {words}", _points(records, "eval_loss"), colour, dashes, "square"))
        accuracies.append(Line(f"accuracy, {words}", _points(records, "eval_accuracy"), colour, dashes, "square"))
    panels = [
        Panel("loss", (0.2, 0.3, 0.4, 0.5, 0.6, 0.7), losses),
        Panel("accuracy on the held-out sentences", (0.4, 0.5, 0.6, 0.7, 0.8), accuracies),
    ]
    height = TOP + len(panels) * (PANEL_HEIGHT + GAP)
    drawn = "".join(_panel(panel, TOP + index * (PANEL_HEIGHT + GAP)) for index, panel in enumerate(panels))
    return (
        f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(_in_words(losses, accuracies))}" '
        f'style="max-width:100%;height:auto" font-size="13" fill="currentColor">{drawn}</svg>'
    )


def logged(folder: Path, name: str) -> list[dict[str, Any]]:
    """Return the log records of one recorded run."""
    path = folder / f"{name}.json"
    if not path.is_file():
        raise ValueError(f"{path} is missing: record it with python -m minitrainer.book.learning_curve")
    return json.loads(path.read_text(encoding="utf-8"))["log_history"]


def _points(records: list[dict[str, Any]], key: str) -> list[tuple[float, float]]:
    # The evaluation after training repeats the last one within it: same step, same weights, one point.
    points = {record["step"]: (record["epoch"], record[key]) for record in records if key in record}
    if not points:
        raise ValueError(f"the run logged no {key}")
    return list(points.values())


def _panel(panel: Panel, top: float) -> str:
    low, high = panel.ticks[0], panel.ticks[-1]
    values = [value for line in panel.lines for _, value in line.points]
    if min(values) < low or max(values) > high:
        raise ValueError(f"{panel.title} runs from {min(values)} to {max(values)}, the axis from {low} to {high}")
    right = WIDTH - RIGHT
    last_epoch = max(epoch for line in panel.lines for epoch, _ in line.points)

    def x(epoch: float) -> float:
        return round(LEFT + (right - LEFT) * epoch / last_epoch, 1)

    def y(value: float) -> float:
        return round(top + PANEL_HEIGHT * (high - value) / (high - low), 1)

    parts = [f'<text x="{LEFT}" y="{top - 10}" font-weight="bold">{panel.title}</text>']
    for tick in panel.ticks:
        parts.append(
            f'<line x1="{LEFT}" x2="{right}" y1="{y(tick)}" y2="{y(tick)}" stroke="currentColor" opacity="0.2"/>'
            f'<text x="{LEFT - 8}" y="{y(tick) + 4}" text-anchor="end">{tick:.1f}</text>'
        )
    for whole in range(int(last_epoch) + 1):
        parts.append(f'<text x="{x(whole)}" y="{top + PANEL_HEIGHT + 18}" text-anchor="middle">epoch {whole}</text>')
    names = _apart([y(line.points[-1][1]) + 4 for line in panel.lines])
    for line, name_y in zip(panel.lines, names, strict=True):
        places = [(x(epoch), y(value)) for epoch, value in line.points]
        path = " ".join(f"{place_x},{place_y}" for place_x, place_y in places)
        dashes = f' stroke-dasharray="{line.dashes}"' if line.dashes else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{line.colour}" stroke-width="2"{dashes}/>')
        for (place_x, place_y), (epoch, value) in zip(places, line.points, strict=True):
            shape = (
                f'<circle cx="{place_x}" cy="{place_y}" r="3.5" fill="{line.colour}">'
                if line.marker == "circle"
                else f'<rect x="{place_x - 4}" y="{place_y - 4}" width="8" height="8" fill="{line.colour}">'
            )
            end = "</circle>" if line.marker == "circle" else "</rect>"
            parts.append(f"{shape}<title>{line.name}, epoch {epoch:g}: {value:.4f}</title>{end}")
        parts.append(f'<text x="{right + 12}" y="{name_y}">{line.name}</text>')
    return "".join(parts)


def _apart(heights: list[float], least: float = 16) -> list[float]:
    """Move labels down as far as needed for each to have `least` to itself; the order of heights stays."""
    moved = list(heights)
    lowest = float("-inf")
    for index in sorted(range(len(heights)), key=lambda number: heights[number]):
        lowest = moved[index] = max(heights[index], lowest + least)
    return moved


def _in_words(losses: list[Line], accuracies: list[Line]) -> str:
    ends = [f"{line.name} from {line.points[0][1]:.3f} to {line.points[-1][1]:.3f}" for line in losses + accuracies]
    return "Learning curves over three epochs: " + "; ".join(ends)


# -- recording ---


def record(folder: Path) -> None:
    """Run `run_glue` with the real 4.31.0 for each of `RUNS`, and keep what was logged."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, ranks in RUNS.items():
        with tempfile.TemporaryDirectory() as work:
            words = ["run_glue", "--trainer", f"transformers=={REFERENCE}", "--nproc", str(ranks), "--quiet"]
            words += ["--out", f"{work}/run", "--disable_tqdm", "true"]
            subprocess.run([sys.executable, "-m", "minitrainer.trace", *words], check=True)
            state = json.loads(Path(work, "run", "output", "trainer_state.json").read_text(encoding="utf-8"))
        # What a clock says belongs to the machine, not to the run.
        records = [
            {key: value for key, value in record.items() if not key.endswith(("_runtime", "_per_second"))}
            for record in state["log_history"]
        ]
        content = {
            "scenario": "run_glue",
            "transformers": REFERENCE,
            "ranks": ranks,
            "max_steps": state["max_steps"],
            "log_history": records,
        }
        (folder / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    record(Path("traces/book/learning-curve"))

# Read next: ../../chapters/run_glue.md, where the picture stands.
