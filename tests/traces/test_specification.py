"""The committed traces are what the real 4.31.0 does, and what ours does, byte for byte.

`traces/` was recorded from the real transformers 4.31.0. It is recorded here again: from the real one, and from ours in
the same isolated environment and in the everyday one, with whatever transformers is installed.
"""

import filecmp
import json
import math
import subprocess
from pathlib import Path

import pytest

from minitrainer.trace import specification
from minitrainer.trace.expected import ExpectedEvent, Shape, expected_events
from minitrainer.trace.scenarios import RANKS
from minitrainer.trace.scenarios.flows import COMMON, FLOWS, Flow

TRACES = Path(__file__).resolve().parents[2] / "traces"


def test_every_scenario_is_committed_and_nothing_else():
    folders = {path.name for path in TRACES.iterdir() if path.is_dir()} - {"gpu", "atlas", "book"}
    assert folders == set(specification.SCENARIOS)
    for name in folders:
        files = {path.name for path in (TRACES / name).iterdir()}
        assert files == {"page.md", *(f"rank{rank}.jsonl" for rank in range(RANKS.get(name, 1)))}


@pytest.mark.parametrize("library", ["transformers", "minitrainer"])
def test_4_31_0_gives_the_committed_bytes(library, tmp_path):
    specification.record(FLOWS, tmp_path, library)
    files = [path.relative_to(TRACES) for name in FLOWS for path in sorted((TRACES / name).iterdir())]
    same, different, missing = filecmp.cmpfiles(TRACES, tmp_path, map(str, files), shallow=False)
    assert not different and not missing, first_difference(tmp_path, different + missing)
    assert len(same) == len(FLOWS) * 2 + 1  # a page and a rank each, and one rank more


def test_ours_on_the_installed_version_gives_the_committed_records(tmp_path):
    """Only the first line, which names the versions, may differ."""
    specification.record(FLOWS, tmp_path, "minitrainer", environment="here")
    compared = 0
    for name in FLOWS:
        for committed in sorted((TRACES / name).glob("*.jsonl")):
            ours = tmp_path / name / committed.name
            assert records_of(ours) == records_of(committed), first_difference(tmp_path, [f"{name}/{committed.name}"])
            compared += 1
    assert compared == len(FLOWS) + 1


def test_a_scenario_recorded_alone_gives_the_same_bytes(tmp_path):
    """In `record` the scenarios share a process; none of them may depend on those before it."""
    specification.record(["resume-mid-epoch"], tmp_path, "transformers")
    name = "resume-mid-epoch/rank0.jsonl"
    assert (tmp_path / name).read_bytes() == (TRACES / name).read_bytes()


def test_run_glue_gives_the_committed_records_within_the_machines_arithmetic(tmp_path):
    """Real data and real arithmetic: the numbers may differ in their last digits, and nothing else may."""
    committed = [json.loads(line) for line in records_of(TRACES / "run_glue" / "rank0.jsonl")]
    recorded = {}
    for library in ("transformers", "minitrainer"):
        specification.record(["run_glue"], tmp_path / library, library)
        recorded[library] = records_of(tmp_path / library / "run_glue" / "rank0.jsonl")
    assert recorded["transformers"] == recorded["minitrainer"]  # on one machine, to the last bit
    numbers = sum(
        alike(json.loads(line), expected, "")
        for line, expected in zip(recorded["minitrainer"], committed, strict=True)
    )
    assert numbers > 500


def alike(seen, expected, where: str) -> int:
    """Require equality, of floats up to a thousandth; return how many floats were compared."""
    if isinstance(expected, float) and isinstance(seen, float):
        # A sum rounded to 4 digits may fall to the other side; a metric may lose one row of 400.
        assert math.isclose(seen, expected, rel_tol=1e-3, abs_tol=3e-3), f"{where}: {seen} is not {expected}"
        return 1
    if isinstance(expected, dict) and isinstance(seen, dict):
        assert seen.keys() == expected.keys(), where
        return sum(alike(seen[key], expected[key], f"{where}.{key}") for key in expected)
    if isinstance(expected, list) and isinstance(seen, list):
        assert len(seen) == len(expected), where
        return sum(alike(a, b, f"{where}[{i}]") for i, (a, b) in enumerate(zip(seen, expected, strict=True)))
    assert seen == expected, where
    return 0


def records_of(path: Path) -> list[str]:
    return path.read_text().splitlines()[1:]


def first_difference(recorded: Path, names: list[str]) -> str:
    done = subprocess.run(
        ["diff", "-U", "2", str(TRACES / names[0]), str(recorded / names[0])],
        capture_output=True,
        text=True,
        check=False,
    )
    return f"{len(names)} files differ: {', '.join(names)}; the first:\n" + done.stdout[:3000]


# -- the third witness agrees with the committed traces, without running anything -----------------------


@pytest.mark.parametrize("name", [name for name, flow in FLOWS.items() if flow.actions[0] == "train"])
def test_expected_events_agree_with_the_committed_trace(name):
    recorded = [
        ExpectedEvent(
            line["event"],
            line["step"],
            line.get("epoch"),
            tuple(line.get("lowered", ())),
            tuple(line.get("raised", ())),
        )
        for line in map(json.loads, records_of(TRACES / name / "rank0.jsonl"))
        if line["kind"] == "event"
    ]
    expected = expected_events(shape_of(FLOWS[name]))
    # What follows train (a second trainer, an evaluation by hand) is beyond the shape.
    assert recorded[: len(expected)] == expected
    assert len(expected) > 8
    if FLOWS[name].actions == ("train",):
        assert len(recorded) == len(expected)


def shape_of(flow: Flow) -> Shape:
    arguments = {**COMMON, **flow.arguments}
    counts = (
        flow.eval_rows.values() if isinstance(flow.eval_rows, dict) else [flow.eval_rows] if flow.eval_rows else []
    )
    stop = ((("on_step_end", flow.stop[1], f"should_{flow.stop[0]}_stop"),)) if flow.stop else ()
    return Shape(
        rows=flow.rows,
        eval_rows=tuple(counts),
        ranks=flow.ranks,
        iterable=flow.iterable,
        raises=stop,
        patience=flow.patience,
        # Early stopping looks at the order of the losses only, and the rows' own part of them never changes.
        eval_metric=flow.eval_curve,
        **{name: value for name, value in arguments.items() if name in Shape.__dataclass_fields__},
    )
