"""The command line on cards: one card, two in one process, one process a card over NCCL, under every launcher.

Each run is a process of its own, as a user starts it. All of them start at once, some at a time; the tests look at what
they left: exit status, trace, what `verify` says of it, and with `--collectives` what the ranks said to each other.
MINITRAINER_GPU_FACTS keeps the traces, and `command-line.json`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from minitrainer.trace import events, ranks, rows
from minitrainer.trace.session import COLLECTIVES_HOOK
from tests.parity.ranks import free_port

from .facts import folder_of_facts, keep
from .places import PRETENDED_CARDS, ROOT, cards, environment_of

pytestmark = [pytest.mark.gpu, pytest.mark.slow]

LIMIT_SECONDS = int(os.environ.get("MINITRAINER_GPU_RUN_LIMIT", "150"))
"""For one run."""

ONLY = os.environ.get("MINITRAINER_GPU_RUNS", "")
"""Leaves out the runs whose name does not contain it; choose tests that need no others."""

TRACE = ("-m", "minitrainer.trace")
TRAIN_SAMPLES, PER_DEVICE_BATCH, GROUP, LOGGING_STEPS = 256, 16, 2, 2
RUN_GLUE = (
    *("run_glue", "--max_train_samples", str(TRAIN_SAMPLES), "--max_eval_samples", "64"),
    *("--max_predict_samples", "33", "--num_train_epochs", "1", "--logging_steps", str(LOGGING_STEPS)),
    *("--gradient_accumulation_steps", str(GROUP)),
)
SCRIPT = "tests/gpu/script.py"
TORCHRUN = ("-m", "torch.distributed.run")
ACCELERATE = (
    *("-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines", "1"),
    *("--mixed_precision", "no", "--dynamo_backend", "no"),
)
LIBRARIES = ("minitrainer", "transformers")
PRECISIONS = ("fp32", "bf16", "fp16")


@dataclass(frozen=True)
class Run:
    """One command.

    Attributes:
        environment: `installed` or `reference`.
        place: `one`, `together` or `apart`.
        words: of the command, `--out` left out.
        launcher: what starts the processes, where it is not the command itself.
    """

    environment: str
    place: str
    words: tuple[str, ...]
    launcher: str = ""

    @property
    def ranks(self) -> int:
        return cards() if self.place == "apart" else 1


def trainer_of(library: str, environment: str) -> tuple[str, str]:
    version = "==4.31.0" if (library, environment) == ("transformers", "reference") else ""
    return ("--trainer", library + version)


def all_runs() -> dict[str, Run]:
    """Every run by its name, those that have to say most first."""
    found: dict[str, Run] = {}
    apart = ("--nproc", str(cards()), "--collectives")
    for environment in ("installed", "reference"):
        for library in LIBRARIES:
            words = (*RUN_GLUE, *trainer_of(library, environment))
            found[f"{environment}, {library}, apart, fp32"] = Run(environment, "apart", (*words, *apart))
    for launcher in ("torchrun", "accelerate"):
        for library in LIBRARIES:
            words = ("--collectives", SCRIPT, library)
            found[f"script, {library}, {launcher}"] = Run("installed", "apart", words, launcher)
            words = (*RUN_GLUE, *trainer_of(library, "installed"), "--collectives")
            found[f"run_glue, {library}, {launcher}"] = Run("installed", "apart", words, launcher)
    found["isolated, transformers, apart"] = Run(
        "installed", "apart", (*RUN_GLUE, "--trainer", "transformers==4.31.0", *apart)
    )
    # the older version: with newer ones' attention, two runs on cards need not agree in the last bit
    found["not watched, minitrainer, apart"] = Run("reference", "apart", (*RUN_GLUE, "--nproc", str(cards())))
    for environment in ("reference", "installed"):
        for library in LIBRARIES:
            words = (*RUN_GLUE, *trainer_of(library, environment))
            found[f"{environment}, {library}, together"] = Run(environment, "together", words)
            for precision in PRECISIONS:
                chosen = words if precision == "fp32" else (*words, f"--{precision}")
                found[f"{environment}, {library}, one, {precision}"] = Run(environment, "one", chosen)
                if precision != "fp32":
                    found[f"{environment}, {library}, apart, {precision}"] = Run(
                        environment, "apart", (*chosen, *apart)
                    )
    if cards() < 2:
        found = {name: run for name, run in found.items() if run.place == "one"}
    if PRETENDED_CARDS:  # DataParallel takes cards; so does fp16
        found = {name: run for name, run in found.items() if run.place != "together" and "fp16" not in name}
    return {name: run for name, run in found.items() if ONLY in name}


RUNS = all_runs()


def named(*parts: str) -> list[str]:
    """Names of the runs that contain all of these."""
    return [name for name in RUNS if all(each in name for each in parts)]


# -- running ---------------------------------------------------------------------------------------------------------


@dataclass
class Ended:
    """What a run left.

    Attributes:
        verified: the exit status and the words of `verify`.
        told: what the trace of each rank says: see `told_by`.
    """

    name: str
    run: Run
    folder: Path
    status: int | str
    printed: str
    seconds: float
    verified: tuple[int | str, str]
    told: list[dict[str, Any]]

    def well(self) -> Ended:
        """Itself, if the run ended well, its trace is whole and every loss follows."""
        assert self.status == 0, self.printed[-6000:]
        assert self.verified[0] == 0 and "all" in self.verified[1], self.verified[1]
        assert [each["rank"] for each in self.told] == list(range(self.run.ranks))
        for each in self.told:
            assert each["world_size"] == self.run.ranks
            assert not each["findings"] and not each["notes"], each
            # later versions lack some of the methods
            assert COLLECTIVES_HOOK not in each["unhooked"]
            assert not each["unhooked"] or each["versions"]["transformers"] != "4.31.0"
            assert each["losses"] and each["steps"] == steps_of(self.run)
        return self

    @property
    def last_line(self) -> str:
        """What the program said last of what went wrong."""
        lines = [line.strip() for line in self.printed.splitlines()]
        said = [line for line in lines if line.startswith("minitrainer.trace: ")]
        return (said or lines or [""])[-1]


def steps_of(run: Run) -> int:
    """Optimizer steps of a run."""
    at_once = cards() if run.place in ("apart", "together") else 1
    if SCRIPT in run.words:
        return 64 // (4 * at_once) // 2
    return TRAIN_SAMPLES // (PER_DEVICE_BATCH * at_once) // GROUP


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Future[Ended]]]:
    """Start all runs, as many at a time as the machine has processors for."""
    folder = tmp_path_factory.mktemp("command-line")
    at_a_time = max(1, min(10, (os.cpu_count() or 1) // 3))
    with ThreadPoolExecutor(at_a_time) as pool:
        futures = {name: pool.submit(perform, name, folder / f"run{at}") for at, name in enumerate(RUNS)}
        yield futures
        for future in futures.values():
            future.cancel()
    ended = [future.result() for future in futures.values() if not future.cancelled() and future.exception() is None]
    keep("command-line", {each.name: facts_of(each) for each in ended})


def command_of(run: Run, folder: Path) -> list[str]:
    """The whole command."""
    out = ("--out", str(folder / "trace"))
    words = [*TRACE, "--quiet", *out, *run.words] if SCRIPT in run.words else [*TRACE, *run.words, "--quiet", *out]
    if SCRIPT in run.words:
        words.append(str(folder / "output"))
    port = str(free_port())
    if run.launcher == "torchrun":
        started = ["--nproc_per_node", str(cards()), "--master_addr", "127.0.0.1", "--master_port", port]
        words = [*TORCHRUN, *started, *words]
    elif run.launcher == "accelerate":
        words = [*ACCELERATE, "--num_processes", str(cards()), "--main_process_port", port, *words]
    return [sys.executable, *words]


def perform(name: str, folder: Path) -> Ended:
    """Run one command, verify its trace, read it."""
    run = RUNS[name]
    folder.mkdir(parents=True)
    variables = environment_of(run.environment)
    given = os.environ.get("MINITRAINER_REFERENCE")
    if given and "MINITRAINER_UPSTREAM_DIR" not in os.environ:
        variables["MINITRAINER_UPSTREAM_DIR"] = str(Path(given).parent)
    if PRETENDED_CARDS:
        variables["CUDA_VISIBLE_DEVICES"] = ""
    elif run.place == "one":
        variables["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    began = time.perf_counter()
    status, printed = call(command_of(run, folder), variables)
    seconds = time.perf_counter() - began
    verified = call([sys.executable, *TRACE, "verify", str(folder / "trace")], environment_of("installed"))
    told = []
    if any((folder / "trace").glob("rank*.rows")):
        opened = ranks.open_run(folder / "trace")
        told = [told_by(reading, opened.findings) for reading in opened.readings.values()]
        for rank, reading in opened.readings.items():
            rows.write_canonical(rows.read(reading.path), folder / f"rank{rank}.jsonl", level="portable")
    ended = Ended(name, run, folder, status, printed, seconds, verified, told)
    if (kept := folder_of_facts()) is not None:
        target = kept / "traces-command-line" / name.replace(", ", "-").replace(" ", "-")
        target.mkdir(parents=True, exist_ok=True)
        (target / "facts.json").write_text(json.dumps(facts_of(ended), indent=1) + "\n", encoding="utf-8")
        for file in folder.glob("rank*.jsonl"):
            shutil.copy(file, target)
    return ended


def call(command: list[str], variables: dict[str, str]) -> tuple[int | str, str]:
    """Exit status and output of a process; what it started is ended with it when the time is over."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    try:
        printed = process.communicate(timeout=LIMIT_SECONDS)[0]
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        return f"no end within {LIMIT_SECONDS} s", process.communicate()[0]
    return process.returncode, printed


def told_by(reading: rows.Reading, findings: list[str]) -> dict[str, Any]:
    """What one rank's trace says, as facts: device, steps, losses, and every collective with the place it came from."""
    found: dict[str, Any] = {
        "rank": reading.head.rank,
        "world_size": reading.head.world_size,
        "versions": reading.head.versions,
        "unhooked": reading.head.unhooked,
        "findings": findings,
        "notes": [],
        "device": "",
        "steps": 0,
        "skipped_steps": 0,
        "losses": [],
        "samples_of_micro_batches": [],
        "gradients_by_micro_batch": [],
    }
    stack: list[str] = []
    said: Counter[str] = Counter()
    order: list[str] = []
    for record in reading:
        if isinstance(record, events.Call):
            stack.append(record.method)
            if record.method == "training_step":
                found["gradients_by_micro_batch"].append(0)
        elif isinstance(record, events.Return):
            stack.pop()
        elif isinstance(record, events.TrainerBegin):
            found["device"] = record.device
        elif isinstance(record, events.Note):
            found["notes"].append(record.text)
        elif isinstance(record, events.Event) and record.event == "on_step_end":
            found["steps"] = record.step
        elif isinstance(record, events.OptimizerStep):
            found["skipped_steps"] += record.skipped
        elif isinstance(record, events.Loss):
            found["losses"].append(record.logged)
            found["samples_of_micro_batches"] += record.rows
        elif isinstance(record, events.Collective):
            if record.part.startswith("gradients") and record.dtype.startswith(("float", "bfloat")):
                found["gradients_by_micro_batch"][-1] += record.elements
            where = phase(stack)
            what = f"{record.collective} of {record.elements} {record.dtype}, {record.ranks} ranks"
            said[f"{where}: {what}; by {record.by}" + (f" ({record.part})" if record.part else "")] += 1
            order.append(f"{where}: {what}; {record.part}")
    return found | {"collectives": dict(said), "collectives_in_order": order}


PHASES = (
    "predict",
    "evaluate",
    "_save_checkpoint",
    "save_model",
    "store_flos",
    "_maybe_log_save_evaluate",
    "training_step",
)


def phase(stack: list[str]) -> str:
    """The part of a run that this stack of the Trainer's calls belongs to."""
    return next((name for name in PHASES if name in stack), stack[-1] if stack else "outside")


def facts_of(ended: Ended) -> dict[str, Any]:
    """A run as JSON."""
    told = [{key: value for key, value in each.items() if key != "collectives_in_order"} for each in ended.told]
    return {
        "command": " ".join(["python", *command_of(ended.run, Path("FOLDER"))[1:]]),
        "environment": ended.run.environment,
        "status": ended.status,
        "seconds": round(ended.seconds, 1),
        "last_line": "" if ended.status == 0 else ended.last_line[:600],
        "end_of_output": "" if ended.status == 0 else ended.printed[-3000:],
        "verify": {"status": ended.verified[0], "said": " ".join(ended.verified[1].split())[-400:]},
        "ranks": told,
    }


# -- every run -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in RUNS if "together" not in name])
def test_a_run_ends_well_and_every_loss_follows(runs: dict[str, Future[Ended]], name: str) -> None:
    """Exit status, `verify`, whole traces of all ranks without a note of trouble.

    A trace names the type of the device alone; that each rank has a card of its own, NCCL sees to: it refuses two on one.
    """
    ended = runs[name].result().well()
    if not PRETENDED_CARDS:
        assert [each["device"] for each in ended.told] == ["cuda"] * ended.run.ranks


@pytest.mark.parametrize("name", named("together"))
def test_two_cards_in_one_process_share_each_micro_batch(runs: dict[str, Future[Ended]], name: str) -> None:
    """DataParallel: half as many steps, twice the samples; where the real Trainer fails, ours ends in the same words."""
    ended = runs[name].result()
    real = runs[name.replace("minitrainer", "transformers")].result()
    if real.status != 0:  # several versions' BERT asks its replicas for parameters, which they have not
        assert "installed" in name
        assert ended.status == real.status and errors_in(ended.printed) == errors_in(real.printed) != []
        return
    (told,) = ended.well().told
    assert told["device"] == "cuda" and not told["collectives"]
    assert set(told["samples_of_micro_batches"]) == {PER_DEVICE_BATCH * cards()}


def errors_in(printed: str) -> list[str]:
    """Names of the errors that a program speaks of."""
    return sorted(set(re.findall(r"\b[A-Z]\w*(?:Error|Iteration)\b", printed)))


# -- equal -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", named("reference", "minitrainer"))
def test_ours_and_the_real_4_31_0_leave_one_trace(runs: dict[str, Future[Ended]], name: str) -> None:
    """Byte for byte on every rank, the collectives of DDP runs included."""
    ours = runs[name].result().well()
    real = runs[name.replace("minitrainer", "transformers")].result().well()
    for rank in range(ours.run.ranks):
        sides = [(each.folder / f"rank{rank}.jsonl").read_text(encoding="utf-8").splitlines() for each in (ours, real)]
        assert len(sides[0]) > 200
        first = next((pair for pair in zip(*sides, strict=False) if pair[0] != pair[1]), None)
        assert first is None and len(sides[0]) == len(sides[1]), first


@pytest.mark.skipif(cards() < 2, reason="takes two cards")
def test_watching_the_collectives_changes_nothing_else(runs: dict[str, Future[Ended]]) -> None:
    watched = runs["reference, minitrainer, apart, fp32"].result().well()
    plain = runs["not watched, minitrainer, apart"].result().well()
    for rank in range(cards()):
        lines, others = (
            (each.folder / f"rank{rank}.jsonl").read_text(encoding="utf-8").splitlines() for each in (watched, plain)
        )
        # the last row counts those before it
        assert without(lines, "collective", "end") == without(others, "end")
        assert len(lines) > len(others) > 200


def without(lines: list[str], *kinds: str) -> list[str]:
    """The rows of other kinds."""
    return [line for line in lines if json.loads(line)["kind"] not in kinds]


@pytest.mark.skipif(cards() < 2, reason="takes two cards")
def test_an_isolated_version_started_from_here_is_the_same_run(runs: dict[str, Future[Ended]]) -> None:
    here = runs["reference, transformers, apart, fp32"].result().well()
    isolated = runs["isolated, transformers, apart"].result().well()
    for rank in range(cards()):
        sides = [(each.folder / f"rank{rank}.jsonl").read_bytes() for each in (here, isolated)]
        assert sides[0] == sides[1]


# -- collectives -----------------------------------------------------------------------------------------------------

WATCHED = [name for name, run in RUNS.items() if "--collectives" in run.words]


@pytest.mark.parametrize("name", WATCHED)
def test_what_the_ranks_say_to_each_other(runs: dict[str, Future[Ended]], name: str) -> None:
    """Each gradient once a step and none while accumulating; one number for the loss and one for the operations a log."""
    ended = runs[name].result().well()
    said = [each["collectives_in_order"] for each in ended.told]
    assert all(each == said[0] for each in said) and len(said[0]) > 3 * steps_of(ended.run)
    for told in ended.told:
        counts: Counter[str] = Counter()
        parameters = 0
        for words, count in told["collectives"].items():
            assert f", {cards()} ranks; " in words and "; by " in words and not words.endswith("; by "), words
            counts[words.partition(":")[0]] += count
            if "broadcast" in words and "parameters and buffers" in words and " float32, " in words:
                parameters += count * int(words.partition(" of ")[2].partition(" ")[0])
        assert parameters > 10_000
        assert told["gradients_by_micro_batch"] == [0, parameters] * steps_of(ended.run)
        logs = [words for words in told["collectives"] if "allgather" in words and " of 1 float32, " in words]
        by_phase = {
            phase: sum(told["collectives"][each] for each in logs if each.startswith(phase + ":")) for phase in PHASES
        }
        expected = steps_of(ended.run) // LOGGING_STEPS
        assert by_phase["_maybe_log_save_evaluate"] == expected, "the ranks' sums of losses, at each log"
        assert by_phase["store_flos"] == expected, "their counts of operations, at each log"
        assert not by_phase["training_step"]
        assert counts["evaluate"] > 0


# -- precision -------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(bool(PRETENDED_CARDS), reason="takes cards")
@pytest.mark.parametrize("name", [name for name in named("fp32") if name.replace("fp32", "bf16") in RUNS])
def test_precisions_differ_from_each_other(runs: dict[str, Future[Ended]], name: str) -> None:
    """The flags reach the model: three precisions, three courses of the loss, and close to each other."""
    losses = [runs[name.replace("fp32", each)].result().well().told[0]["losses"] for each in PRECISIONS]
    assert losses[0] != losses[1] and losses[0] != losses[2] and losses[1] != losses[2]
    for course in losses[1:]:
        assert max(abs(one - other) for one, other in zip(losses[0], course, strict=True)) < 0.2


# Read next: tests/gpu/script.py
