"""What a trace adds to a training step on a card, and how surely that is known.

    python -m tests.benchmarks.gpu_trace_cost                        BERT-base, bf16 and then fp32, on all cards
    python -m tests.benchmarks.gpu_trace_cost --json cost.json       and as facts
    python -m tests.benchmarks.gpu_trace_cost --shapes bf16=128x512 fp32=32x128

One training run a card; within it the trace goes off, on, on, off, block by block. A block is ten steps to settle,
which are left out, and then ten that are timed. The last of each ten holds a log. Attaching and detaching lie between
two blocks. What is compared are neighbours, some twenty steps apart, so the machine's slow changes of pace cancel; and
neighbours that do not differ at all are compared in the same way: that is what the clock can tell. The comparisons of
all cards are put together.

Before the first timed step, before the last one and after it the host waits for the card. Without that a block would
begin when the host is through with a step, and end when the card is; by how much the host leads there is no cost of a
step, but changes with the host's pace.

Why so many steps to settle: attaching makes new wrappers, and the interpreter specialises a function only after some
calls. A run pays for that once; with one step to settle and five that are timed, it was counted in every step.

Three readings of a block: the time of a step, where every tenth has a log; of a step without one; and what the thread
that trains used of its processor (a step of this size is bound by the host). Each process stays on one core.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from tests.benchmarks.estimate import FEWEST, typical
from tests.benchmarks.gpu_shapes import shapes_of, sizes_of
from tests.gpu.places import PRETENDED_CARDS, ROOT, cards, environment_of

EPOCH_STEPS = 100_000  # more than a run takes: a clock ends it
STEPS_A_LOG = 10  # as in the runs that the goal is about
TIMED_STEPS = STEPS_A_LOG  # of a block, after those in which the interpreter settles; the last holds a log
PATTERN = (False, True, True, False)  # whether the trace is on, block by block
WARM_UP_BLOCKS = 4  # whole patterns: the first block that counts is one without a trace
GOAL = 0.005  # of a step
SHAPES = {"bf16": ["64x512"], "fp32": ["32x128"]}  # samples a card and step x tokens


class Block(NamedTuple):
    """One block, in seconds."""

    on: bool
    wall: list[float]  # of each timed step; the last holds a log
    thread: list[float]  # the training thread's processor time in each


READINGS = {
    "a step, every tenth with a log": lambda block: sum(block.wall) / TIMED_STEPS,
    "a step without a log": lambda block: sum(block.wall[:-1]) / (TIMED_STEPS - 1),
    "the thread's own time in a step": lambda block: sum(block.thread) / TIMED_STEPS,
}

# -- parent ----------------------------------------------------------------------------------------------------------


def main() -> None:
    """Measure one precision and shape after the other, on all cards at once, and say what was found."""
    parser = argparse.ArgumentParser(description="what a trace adds to a training step on a card")
    parser.add_argument("--seconds", type=float, default=300, help="of training, for each precision and shape")
    parser.add_argument("--precisions", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument(
        "--shapes", nargs="+", metavar="SHAPE", help="a card and step: 64x512, or bf16=64x512 for one precision"
    )
    parser.add_argument("--way", default="minitrainer", choices=["minitrainer", "transformers"])
    parser.add_argument("--environment", default="installed", choices=["installed", "reference"])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument(
        "--settling",
        type=int,
        default=STEPS_A_LOG,
        help="steps of each block that do not count: more for a small model",
    )
    parser.add_argument("--json", type=Path, help="where the facts go")
    parser.add_argument("--worker", nargs=3, metavar=("PRECISION", "SHAPE", "CORE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        return work(asked)
    if cards() == 0:
        raise SystemExit("gpu_trace_cost needs a CUDA device, and torch finds none here")
    facts: dict[str, Any] = {
        name: vars(asked)[name] for name in ("way", "environment", "layers", "hidden", "seconds")
    } | {
        "cards": cards(),
        "steps_of_a_block": {"to settle": asked.settling, "timed": TIMED_STEPS},
        "precisions": {},
    }
    failed = False
    for precision, shapes in shapes_of(asked.shapes, asked.precisions, SHAPES).items():
        for shape in shapes:
            processes = [start(asked, precision, shape, card) for card in range(cards())]
            answers = [process.communicate()[0] for process in processes]
            if codes := [process.returncode for process in processes if process.returncode != 0]:
                print(f"{precision}, {shape}: ended with {codes}", flush=True)
                failed = True
                continue
            found = put_together([json.loads(each) for each in answers])
            facts["precisions"].setdefault(precision, {})[shape] = found
            show(f"{precision}, {shape}", found, asked.settling)
            if asked.json is not None:
                asked.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
    if failed:
        raise SystemExit(1)


def start(asked: argparse.Namespace, precision: str, shape: str, card: int) -> subprocess.Popen[str]:
    """Start the run of one precision and shape on a card and a core of its own."""
    variables = environment_of(asked.environment)
    visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(cards())))
    variables["CUDA_VISIBLE_DEVICES"] = "" if PRETENDED_CARDS else visible.split(",")[card]
    cores = sorted(os.sched_getaffinity(0))
    core = cores[(2 + 8 * card) % len(cores)]  # apart, and not the first, which answers interrupts
    command = [sys.executable, "-m", "tests.benchmarks.gpu_trace_cost", *sys.argv[1:]]
    command += ["--worker", precision, shape, str(core)]
    return subprocess.Popen(command, cwd=ROOT, env=variables, stdout=subprocess.PIPE, text=True)


def put_together(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """What the processes of one precision and shape have found, each on its card."""
    runs = [[Block(*block) for block in answer["blocks"]] for answer in answers]
    return {
        "surroundings": answers[0]["surroundings"],
        "blocks": sum(map(len, runs)),
        "readings": figures(runs),
        "seconds_of_each_block": [
            {
                "on": [int(block.on) for block in blocks],
                "wall": [[round(step, 6) for step in block.wall] for block in blocks],
                "thread": [[round(step, 6) for step in block.thread] for block in blocks],
            }
            for blocks in runs
        ],
    }


def show(what: str, found: dict[str, Any], settling: int) -> None:
    """Print what was found, with its uncertainty, in words."""
    steps = f"{settling + TIMED_STEPS} steps, {TIMED_STEPS} timed"
    print(f"{what}: {found['blocks']} blocks of {steps}, {found['surroundings']}")
    for name, reading in found["readings"].items():
        added, null = reading["added"], reading["null"]
        print(
            f"  {name:<34}{1e3 * reading['seconds_off']:>9.3f} ms without a trace;  with one "
            f"{1e6 * added['seconds']:+8.1f} µs = {percent(added['share'])} "
            f"(95 %: {percent(added['interval'][0])} to {percent(added['interval'][1])}; {added['groups']} groups)"
        )
        print(
            f"  {'':<34}neighbours that do not differ: {percent(null['share'])} "
            f"(95 %: {percent(null['interval'][0])} to {percent(null['interval'][1])}; {null['groups']} groups)"
        )
        print(f"  {'':<34}{verdict(reading)}")
    sys.stdout.flush()


def percent(share: float) -> str:
    return f"{100 * share:+.3f} %"


def verdict(reading: dict[str, Any]) -> str:
    """The goal, kept, missed or not decided, and what size of effect would have been seen."""
    low, high = reading["added"]["interval"]
    seen = f"known to ±{50 * (high - low):.3f} % of a step"
    if reading["added"]["groups"] < FEWEST:
        return f"only {reading['added']['groups']} groups: too few to say how surely"
    if high <= GOAL:
        return f"{seen}: at most {100 * GOAL} %, as aimed at"
    if low > GOAL:
        return f"{seen}: more than the {100 * GOAL} % aimed at"
    return f"{seen}: too coarse to say whether it is at most {100 * GOAL} %"


# -- from blocks to figures ------------------------------------------------------------------------------------------


def figures(runs: list[list[Block]]) -> dict[str, Any]:
    """Compare neighbours within each run, in groups of four blocks.

    A group, off on on off, gives one comparison: the mean of its two steps from off to on and back. Its middle, and
    the way from it to the next group, are steps between two blocks that do not differ: the mean of these two is the
    null.
    """
    found = {}
    for name, reading in READINGS.items():
        added: list[float] = []
        alike: list[float] = []
        off: list[float] = []
        for blocks in runs:
            values = [reading(block) for block in blocks]
            off += [value for value, block in zip(values, blocks, strict=True) if not block.on]
            for first in range(0, len(blocks) - len(PATTERN) + 1, len(PATTERN)):
                here = values[first : first + len(PATTERN) + 1]
                assert tuple(block.on for block in blocks[first : first + len(PATTERN)]) == PATTERN
                added.append(((here[1] - here[0]) + (here[2] - here[3])) / 2)
                if len(here) > len(PATTERN):
                    alike.append(((here[2] - here[1]) + (here[4] - here[3])) / 2)
        median_off = statistics.median(off)
        found[name] = {
            "seconds_off": median_off,
            "added": share_of(median_off, added),
            "null": share_of(median_off, alike),
        }
    return found


def share_of(step: float, differences: list[float]) -> dict[str, Any]:
    """The typical difference, in seconds and as share of a step, with its interval of 95 %."""
    seconds, low, high = typical(differences)
    quarters = np.quantile(differences, [0.25, 0.75])
    return {
        "seconds": seconds,
        "share": seconds / step,
        "interval": [low / step, high / step],
        "middle_half": [float(quarter / step) for quarter in quarters],
        "groups": len(differences),
    }


# -- worker ----------------------------------------------------------------------------------------------------------


def work(asked: argparse.Namespace) -> None:
    """Train in one process and print what was found."""
    precision, shape, core = asked.worker
    os.sched_setaffinity(0, {int(core)})
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a Trainer prints goes elsewhere
    warnings.filterwarnings("ignore")
    import torch
    import transformers

    from tests.gpu import program

    transformers.logging.set_verbosity_error()
    library = import_module(asked.way)
    samples_a_step, tokens = sizes_of(shape)
    samples = program.samples(64 * samples_a_step, tokens)
    with tempfile.TemporaryDirectory(prefix="gpu-trace-cost-") as folder:
        args = program.arguments(
            library,
            folder,
            max_steps=EPOCH_STEPS,
            logging_steps=STEPS_A_LOG,
            per_device_train_batch_size=samples_a_step,
            bf16=precision == "bf16",
        )
        config = transformers.BertConfig(
            num_hidden_layers=asked.layers,
            hidden_size=asked.hidden,
            num_attention_heads=asked.hidden // 64,
            intermediate_size=4 * asked.hidden,
        )
        torch.manual_seed(0)
        model = transformers.BertForSequenceClassification(config)
        # one long epoch: where one ends, a step takes longer
        trainer = library.Trainer(model, args, train_dataset=samples * (EPOCH_STEPS // 64 + 1))
        trainer.remove_callback(library.PrinterCallback)
        switching = Switching(trainer, library, Path(folder), asked.seconds, asked.settling)
        blocks = switching.trained()
    if len(blocks) < 2 * len(PATTERN):
        raise SystemExit(f"only {len(blocks)} blocks in {asked.seconds:g} s: too few to compare")
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else "a processor"
    facts = {
        "surroundings": f"{device}, torch {torch.__version__}, transformers {transformers.__version__}",
        "blocks": blocks,
    }
    answers.write(json.dumps(facts))
    answers.flush()


class Switching:
    """One training run, within which a trace goes on and off.

    A block begins and ends where the loop clears the gradients: between two steps, outside of everything that a trace
    hooks. The log of a step comes after that, so it is timed with the micro-batch of the next one: the last of a block.
    Each recording is read again, to see that the trace was on for its whole block.
    """

    def __init__(self, trainer: Any, library: Any, folder: Path, seconds: float, settling: int):
        self.trainer = trainer
        self._settling = settling
        self.folder = folder
        self.deadline = time.perf_counter() + seconds
        self._session: Any = None
        self._blocks: list[Block] = []
        self._moments: list[tuple[float, float]] = []
        self._step = 0
        stop = self._stops_in_time
        trainer.add_callback(type("Deadline", (library.TrainerCallback,), {"on_step_end": stop})())

    def trained(self) -> list[Block]:
        """Train until the time is over; return the blocks, whole groups of four alone."""
        import torch

        clear_gradients = torch.nn.Module.zero_grad

        def zero_grad(model: Any, set_to_none: bool = True) -> None:
            clear_gradients(model, set_to_none)
            if model is self.trainer.model and self.trainer.state.global_step + 1 != self._step:
                self._step = self.trainer.state.global_step + 1
                self._between_two_steps()

        torch.nn.Module.zero_grad = zero_grad  # type: ignore[method-assign]
        try:
            self.trainer.train()
        finally:
            torch.nn.Module.zero_grad = clear_gradients  # type: ignore[method-assign]
            self._detach(is_whole_block=False)
        whole = len(self._blocks) - len(self._blocks) % len(PATTERN)
        return self._blocks[:whole]

    def _stops_in_time(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if time.perf_counter() > self.deadline:
            control.should_training_stop = True

    def _between_two_steps(self) -> None:
        number, step_in_block = divmod(self._step - 1, self._settling + TIMED_STEPS)
        if step_in_block == 0:
            wait_for_the_card()
            self._note()
            if number > WARM_UP_BLOCKS:
                self._blocks.append(self._measured(number - 1))
            self._detach(is_whole_block=True)
            if number == WARM_UP_BLOCKS:
                gc.collect()
                gc.freeze()  # what is there by now stays: no later collection walks over it
            gc.collect()  # what the last block left is not for the next one to clear away
            if PATTERN[number % len(PATTERN)]:
                self._attach(number)
            self._moments = []
        if step_in_block in (self._settling, self._settling + TIMED_STEPS - 1):
            wait_for_the_card()
        self._note()

    def _note(self) -> None:
        self._moments.append((time.perf_counter(), time.thread_time()))

    def _measured(self, number: int) -> Block:
        steps = list(zip(self._moments, self._moments[1:], strict=False))[self._settling :]
        assert len(steps) == TIMED_STEPS, len(steps)
        return Block(
            PATTERN[number % len(PATTERN)],
            [end[0] - begin[0] for begin, end in steps],
            [end[1] - begin[1] for begin, end in steps],
        )

    def _attach(self, number: int) -> None:
        from minitrainer.trace import trace

        self._session = trace(self.trainer, self.folder / f"{number}.rows").start()

    def _detach(self, is_whole_block: bool) -> None:
        session, self._session = self._session, None
        if session is None:
            return
        session.stop()
        from minitrainer.trace import events, rows

        steps = sum(isinstance(row, events.OptimizerStep) for row in rows.read(session.path))
        wanted = self._settling + TIMED_STEPS
        assert not is_whole_block or steps == wanted, f"{steps} steps recorded in a block of {wanted}"
        session.path.unlink()


def wait_for_the_card() -> None:
    """Return when the card has done everything."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


if __name__ == "__main__":
    main()

# Read next: ../gpu/places.py
