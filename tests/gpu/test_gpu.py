"""On real cards: ours equals the real 4.31.0, a trace changes nothing, and who talks to whom about the loss.

    pytest -m gpu           or, with the speed measurements: make gpu

All work runs in groups of worker processes, some at a time (see places.py); the tests read what they found.
MINITRAINER_GPU_FACTS names a folder in which the facts and the recorded traces are kept.
"""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from .equal import CASES, CHANGED_TOGETHER, NOT_TOGETHER, PLAIN
from .facts import Facts, part
from .places import PRETENDED_CARDS, ROOT, Schedule, Wave, cards, places
from .unchanged import VARIANTS

pytestmark = [pytest.mark.gpu, pytest.mark.slow]


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Facts]:
    """Start the work; gives the facts of one group, rank by rank."""
    parts = {"reference": ["equal", "unchanged", "records"], "installed": ["newest", "unchanged"]}
    first = ("apart", "together", "one")  # the longest
    together = {
        (environment, place): (environment, place, parts[environment])
        for environment in parts
        for place in first
        if place in places()
    }
    # The profiler has processes of its own, since one that it has once watched runs slower, and the cards to itself.
    alone = {("talk", place): ("reference", place, ["talk"]) for place in first[:2] if place in places()}
    schedule = Schedule(tmp_path_factory.mktemp("gpu"), [Wave(3, together), Wave(1, alone)])
    found = Facts(schedule)
    yield found
    schedule.end()
    found.keep_what_is_done()


# -- equal -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", places())
def test_ours_equals_the_real_4_31_0(facts: Facts, place: str) -> None:
    """No rank sees a difference in any case, and the cases train."""
    for found in facts("reference", place):
        assert found["surroundings"]["transformers"] == "4.31.0"
        answers = part(found, "equal")
        assert set(answers) == set(CASES) - set(NOT_TOGETHER if place == "together" else ())
        differing = [answer["difference"] for answer in answers.values() if answer["difference"] is not None]
        assert not differing, f"{len(differing)} differ\n\n" + "\n\n".join(differing)
        if PRETENDED_CARDS:
            continue
        failures = {name: answer["failure"] for name, answer in answers.items() if answer["failure"] is not None}
        assert not failures
        assert sum(answer["steps"] for answer in answers.values()) > 3 * len(answers)
        if place != "together":
            assert answers["dense fp16, gradients that are lost"]["skipped_steps"] >= 1


@pytest.mark.parametrize("place", places())
def test_ours_equals_the_installed_one_where_nothing_has_changed_since(facts: Facts, place: str) -> None:
    """One dense model whose loss no later version treats specially: weights, optimizer and losses."""
    for found in facts("installed", place):
        answers = part(found, "newest")
        assert len(answers) == len(PLAIN) - ("fp16" in PLAIN) * bool(PRETENDED_CARDS)
        for name, answer in answers.items():
            if place == "together" and name in CHANGED_TOGETHER:
                assert not answer["weights_equal"], f"{name} has become equal: say so"
                continue
            assert answer["weights_equal"], (name, answer)
            assert answer["optimizer_equal"], name
            assert answer["losses"] == answer["losses_of_ours"], name
            assert answer["eval_losses"] == answer["eval_losses_of_ours"], name


# -- unchanged -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", places())
@pytest.mark.parametrize("environment", ["reference", "installed"])
def test_a_trace_changes_nothing(facts: Facts, environment: str, place: str) -> None:
    """Weights, optimizer, random states, logs and files are equal; no step without a log waits once more."""
    for found in facts(environment, place):
        answers = part(found, "unchanged")
        assert len(answers) == 2 * (len(VARIANTS) - ("fp16" in VARIANTS) * bool(PRETENDED_CARDS))
        for name, answer in answers.items():
            assert len(answer["compared"]) == 5
            assert not answer["changed"], name
            assert answer["rows_of_the_trace"] > 200
            assert len(answer["waits_without"]) == len(answer["waits_with"]) == 20
            quiet = [step for step in range(1, 21) if step not in answer["log_steps"]]
            added = {step: answer["waits_with"][step - 1] - answer["waits_without"][step - 1] for step in quiet}
            assert not any(added.values()), (name, added)
        if not PRETENDED_CARDS:
            filtered, plain = (
                {name: answers[f"{name}, {variant}"]["waits_without"] for name in ("minitrainer", "transformers")}
                for variant in ("fp32", "fp32, losses not filtered")
            )
            # the counting counts: looking for broken losses makes the real Trainer wait in every step, and not ours
            assert all(more > less for more, less in zip(filtered["transformers"], plain["transformers"], strict=True))
            assert filtered["minitrainer"] == plain["minitrainer"]


# -- talk ------------------------------------------------------------------------------------------------------------


def talk_of(found: dict[str, Any], library: str) -> dict[str, dict[str, Any]]:
    """Phase by name."""
    return {each["phase"]: each for each in part(found, "talk")[library]["phases"]}


def between(phase: dict[str, Any]) -> dict[str, int]:
    """What went from one card to another in a phase, and how often."""
    copies = {name: count for name, count in phase.get("copies", {}).items() if "PtoP" in name}
    return copies | phase.get("nccl kernels", {})


@pytest.mark.skipif(cards() < 2 or bool(PRETENDED_CARDS), reason="takes two cards in one process")
@pytest.mark.parametrize("library", ["transformers", "minitrainer"])
def test_the_mean_of_the_losses_of_several_cards_is_taken_on_the_first(facts: Facts, library: str) -> None:
    """DataParallel's cards talk in forward and in backward; `loss.mean()` between the two makes none of them talk."""
    (found,) = facts("talk", "together")
    phases = talk_of(found, library)
    run = part(found, "talk")["run"]
    micro_batches = run["steps"] * run["micro_batches_per_step"]
    for number in range(1, micro_batches + 1):
        mean = phases[f"micro-batch {number}: loss.mean()"]
        assert not between(mean), mean
        assert set(mean["kernels"]) == {"card 0"}
        assert set(mean["calls"]) == {"aten::mean"}
        assert between(phases[f"micro-batch {number}: forward"])
        assert between(phases[f"micro-batch {number}: backward"])


@pytest.mark.skipif(cards() < 2, reason="takes two ranks")
@pytest.mark.parametrize("library", ["transformers", "minitrainer"])
def test_ddp_sums_gradients_once_a_step_and_losses_once_a_log(facts: Facts, library: str) -> None:
    """All-reduces come in the last micro-batch of a group only, and carry each gradient once."""
    for found in facts("talk", "apart"):
        phases = talk_of(found, library)
        run, answer = part(found, "talk")["run"], part(found, "talk")[library]
        for number in range(1, run["steps"] * run["micro_batches_per_step"] + 1):
            backward = phases.get(f"micro-batch {number}: backward", {}).get("collective calls", {})
            reduced = {name: count for name, count in backward.items() if "allreduce" in name}
            if number % run["micro_batches_per_step"]:
                assert not reduced, "a micro-batch that only accumulates must not communicate"
            else:
                # several buckets, and one number a tensor: which of them any rank has used (find_unused_parameters)
                assert elements_of(reduced) == answer["parameters"] + answer["parameter_tensors"]
                assert sum(reduced.values()) > 2
            assert "collective calls" not in phases.get(f"micro-batch {number}: loss.mean()", {})
        # a log gathers the ranks' loss sums, and their counts of floating-point operations
        logs = {name: phase for name, phase in phases.items() if name.startswith("step ")}
        gathers = {name: collectives_of(phase, "allgather") for name, phase in logs.items()}
        assert gathers == {f"step {step}: log, evaluate, save": 2 for step in (2, 4)}


def collectives_of(phase: dict[str, Any], kind: str) -> int:
    """How many collectives of a kind a phase called."""
    return sum(count for name, count in phase.get("collective calls", {}).items() if kind in name)


def elements_of(calls: dict[str, int]) -> int:
    """Elements that these calls carry, all together."""

    def elements(shape: list[Any]) -> int:
        if isinstance(shape[0], list):  # a list of tensors, or of such lists
            return sum(map(elements, shape))
        return math.prod(shape)

    return sum(count * elements(json.loads(name[name.index("[") :])) for name, count in calls.items())


@pytest.mark.skipif(cards() < 2, reason="takes two cards")
@pytest.mark.parametrize("place", [place for place in places() if place != "one"])
@pytest.mark.parametrize("library", ["transformers", "minitrainer"])
def test_a_trace_adds_no_communication(facts: Facts, place: str, library: str) -> None:
    """With and without a trace the same collectives and copies between cards happen in the same phases."""
    for found in facts("talk", place):
        without, within = talk_of(found, library), talk_of(found, f"{library}, traced")
        counted = 0
        for phase in [*without, *(each for each in within if each not in without)]:
            for kind in ("collective calls", "collectives"):
                assert without.get(phase, {}).get(kind) == within.get(phase, {}).get(kind), (phase, kind)
                counted += len(without.get(phase, {}).get(kind, {}))
            assert between(without.get(phase, {})) == between(within.get(phase, {})), phase
            counted += len(between(without.get(phase, {})))
        assert counted > 10


# -- traces ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", places())
def test_the_two_traces_are_one_and_every_loss_follows(facts: Facts, place: str) -> None:
    """Ours and the real Trainer leave the same portable trace, and its losses are derived again over all ranks."""
    found = facts("reference", place)
    folder = facts.folder("reference", place) / "traces"
    for rank, each in enumerate(found):
        assert part(each, "records")["transformers"]["steps"] > 2
        sides = [(folder / name / f"rank{rank}.jsonl").read_bytes() for name in ("transformers", "minitrainer")]
        assert sides[0] == sides[1]
        assert len(sides[0].splitlines()) > 100
    for name in ("transformers", "minitrainer"):
        command = [sys.executable, "-m", "minitrainer.trace", "verify", str(folder / name)]
        said = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        assert said.returncode == 0, said.stdout + said.stderr


# -- left out --------------------------------------------------------------------------------------------------------


def test_without_a_card_they_are_left_out_in_one_line() -> None:
    """Where torch finds no card, `pytest -m gpu` deselects them and says why."""
    variables = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "PYTEST_ADDOPTS": ""}
    variables.pop("MINITRAINER_PRETEND_CARDS", None)
    command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider", str(Path(__file__).parent)]
    said = subprocess.run(command, cwd=ROOT, env=variables, capture_output=True, text=True, timeout=300)
    assert re.search(r"^\d+ GPU tests need a CUDA device, and torch finds none here$", said.stdout, re.MULTILINE)
    assert "skipped" not in said.stdout


# Read next: tests/gpu/test_shards.py
