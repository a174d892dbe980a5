"""Makes what `traces/gpu/` shows from what a run on cards left.

    python -m tests.gpu.publish runs/gpu                  writes anew every file for which there are facts
    python -m tests.gpu.publish runs/gpu --into OTHER     … of another folder

The prose in `traces/gpu/README.md` is written by hand: read both again afterwards, and the chapters that cite them
(`python -m minitrainer.book check` names those whose quoted traces have changed).
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PLACES = ("one", "together", "apart")
KEPT_COMMAND_LINES = {  # of all runs of the command line, the traces that are kept
    "reference-minitrainer-apart-fp32": "run_glue-apart",
    "reference-minitrainer-together": "run_glue-together",
}


def main() -> None:
    """Write the files, and name those whose facts are missing."""
    parser = argparse.ArgumentParser(description="makes traces/gpu/ from the facts of a run on cards")
    parser.add_argument("facts", type=Path)
    parser.add_argument("--into", type=Path, default=ROOT / "traces" / "gpu")
    asked = parser.parse_args()
    facts, target = asked.facts, asked.into
    target.mkdir(parents=True, exist_ok=True)
    ranks = {
        (environment, place): ranks_of(facts / f"{environment}-{place}.json")
        for environment in ("reference", "installed", "talk")
        for place in (*PLACES, "shards")
    }
    made = {
        "equal": of_every_rank(ranks, "reference", "equal"),
        "equal-to-the-installed": of_every_rank(ranks, "installed", "newest"),
        "unchanged": unchanged(ranks),
        "communication-together": communication(ranks["talk", "together"], ("transformers", "minitrainer")),
        "communication-apart": communication(ranks["talk", "apart"], ("transformers",)),
        "shards": shards(ranks),
        "command-line": command_lines(facts / "command-line.json", target / "command-line.json"),
        "speed": measurements(facts, target / "speed.json"),
        "trace-cost": measurements(facts, target / "trace-cost.json"),
    }
    for name, found in made.items():
        if found:
            (target / f"{name}.json").write_text(folded(found) + "\n", encoding="utf-8")
        print(f"{name}.json: " + ("written" if found else "no facts"))
    for place in ("together", "apart"):
        copy_trace(facts / f"traces-reference-{place}" / "transformers", target / f"cards-{place}")
    for source, name in KEPT_COMMAND_LINES.items():
        copy_trace(facts / "traces-command-line" / source, target / name)


def read(file: Path) -> Any:
    """A JSON file, or None."""
    return json.loads(file.read_text(encoding="utf-8")) if file.exists() else None


def ranks_of(file: Path) -> list[dict[str, Any]]:
    """Facts of each rank of a group; none where it left none."""
    found = read(file)
    if found is None:
        return []
    return found if isinstance(found, list) else [found]


def surroundings_of(found: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in found["surroundings"].items() if not key.startswith(("seconds of ", "part "))}


def of_every_rank(ranks: dict[tuple[str, str], list[dict[str, Any]]], environment: str, part: str) -> dict[str, Any]:
    """One part in every place, rank by rank where the ranks do not say the same."""
    made: dict[str, Any] = {}
    for place in PLACES:
        for rank, found in enumerate(ranks[environment, place]):
            if "error" in found.get(part, {"error": ""}):
                print(f"{environment}, {place}, rank {rank}: no answer to {part!r}")
                continue
            made["surroundings"] = surroundings_of(found)
            if found[part] != made.setdefault(place, found[part]):
                made[f"{place}, rank {rank}"] = found[part]
    return made


def unchanged(ranks: dict[tuple[str, str], list[dict[str, Any]]]) -> dict[str, Any]:
    """What a trace changed, as rank 0 saw it: the names of what was compared are the same everywhere."""
    return {
        f"{environment}, {place}": {
            name: {key: value for key, value in answer.items() if key != "compared"}
            for name, answer in found[0]["unchanged"].items()
        }
        for (environment, place), found in ranks.items()
        if place in PLACES
        and found
        and environment != "talk"
        and "error" not in found[0].get("unchanged", {"error": ""})
    }


def communication(found: list[dict[str, Any]], libraries: tuple[str, ...]) -> dict[str, Any]:
    """Phases and what went between cards in them, without the trace."""
    if not found or "run" not in found[0].get("talk", {}):
        return {}
    first = found[0]["talk"]
    made = {"surroundings": surroundings_of(found[0]), "run": first["run"]}
    made |= {key: first["transformers"][key] for key in ("parameters", "parameter_tensors")}
    for rank, each in enumerate(found):
        made |= {f"rank {rank}, {library}": each["talk"][library]["phases"] for library in libraries}
    return made


def shards(ranks: dict[tuple[str, str], list[dict[str, Any]]]) -> dict[str, Any]:
    """FSDP as rank 0 saw it, and whether every rank's resumed shards are those of the unbroken run."""
    made: dict[str, Any] = {}
    for environment in ("reference", "installed"):
        all_ranks = ranks[environment, "shards"]
        found = [each["shards"]["libraries"] for each in all_ranks if "libraries" in each.get("shards", {})]
        for library in found[0] if found else ():
            answer: dict[str, Any] = {"error": found[0][library]["error"]}
            for name in ("unbroken", "resumed"):
                run = found[0][library][name]
                answer[name] = run and {key: value for key, value in run.items() if key != "shards"}
            runs = [(each[library]["resumed"], each[library]["unbroken"]) for each in found]
            whole = all(resumed and unbroken for resumed, unbroken in runs)
            answer["resumed_shards_equal_unbroken"] = (
                all(resumed["shards"] == unbroken["shards"] for resumed, unbroken in runs) if whole else None
            )
            made[f"{environment}, {library}"] = answer
    return made


def command_lines(file: Path, earlier: Path) -> dict[str, Any]:
    """Each command, how it ended, what `verify` said, and what its ranks said to each other.

    Runs that were not made this time stay as they are in the earlier file.
    """
    runs = read(file) or {}
    made = (read(earlier) or {}) if runs else {}
    print(f"command lines: {len(runs)} new, {len(made.keys() - runs.keys())} as before")
    for name, run in runs.items():
        first = run["ranks"][0] if run["ranks"] else {}
        made[name] = {key: run[key] for key in ("command", "environment", "status", "verify")}
        if run["status"] != 0:
            made[name]["last_line"] = run["last_line"]
        made[name] |= {
            "devices": [each["device"] for each in run["ranks"]],
            **{key: first.get(key) for key in ("steps", "skipped_steps", "losses", "collectives")},
        }
    return made


def measurements(facts: Path, earlier: Path) -> dict[str, Any]:
    """What each measurement of a kind has found, `speed.json` and those named after it, without the seconds of a trace's
    single blocks.

    Measurements that were not made this time stay as they are in the earlier file: take out by hand what is superseded.
    """
    files = sorted(facts.glob(f"{earlier.stem}*.json"))
    made = (read(earlier) or {}) if files else {}
    for file in files:
        made[file.stem] = found = read(file)
        for shapes in found.get("precisions", {}).values():
            for each in shapes.values():
                each.pop("seconds_of_each_block", None)
    return made


def copy_trace(source: Path, target: Path) -> None:
    """Copy the ranks' files, and write their page."""
    if not source.is_dir():
        print(f"{target.name}: no trace")
        return
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in source.glob("rank*.jsonl"):
        shutil.copy(file, target)
    command = [sys.executable, "-m", "minitrainer.trace", "export", "--to", "markdown"]
    subprocess.run([*command, "--out", str(target / "page.md"), str(target)], cwd=ROOT, check=True)
    print(f"{target.name}: written")


def folded(found: Any) -> str:
    """JSON with lists of plain values on one line each."""

    def on_one_line(match: re.Match[str]) -> str:
        if "\n" not in match[0]:
            return match[0]
        return re.sub(r"\s*\n\s*", " ", match[0]).replace("[ ", "[", 1).removesuffix(" ]").removesuffix("]") + "]"

    text = re.sub(r"\[[^\[\]{}]*\]", on_one_line, json.dumps(found, indent=2))
    assert json.loads(text) == found
    return text


if __name__ == "__main__":
    main()

# Read next: tests/benchmarks/gpu_speed.py
