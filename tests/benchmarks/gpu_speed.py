"""Samples per second on cards: our Trainer, the real 4.31.0, the installed upstream's, and a hand-written loop.

    python -m tests.benchmarks.gpu_speed                          all cards, as a table
    python -m tests.benchmarks.gpu_speed --json speed.json        and as facts
    python -m tests.benchmarks.gpu_speed --ways minitrainer "by hand" --shapes bf16=64x512 bf16=128x512

BERT-base with random weights, fp32 and bf16, on one card and (DDP over NCCL) on all, with batches of two shapes a
precision: 32 samples of 128 tokens, where in bf16 a fast card waits for the host, and BERT's full length of 512
tokens, in batches meant to be large enough for the host to wait. In bf16 64 of them are not always: on two H200 two
processes of the same way differ by up to a fifth in a turn, with 128 by one per cent (`traces/gpu/speed.json`).

Each way is a process of its own, one a card, and trains *one* run: nothing is built or warmed up anew in between. It
pauses where a step begins until the parent asks for a block: two steps to settle, then ten that are timed, the last of
them with a log. The ways take turns, there and back again, half a second each; while one works, the others sleep and
hold no more than weights and optimizer. What is compared are two blocks of one turn, so the machine's slow changes of
pace cancel. Our Trainer runs in two processes: their ratio, which should be 1, is what the clock can tell. With fewer
ways (`--ways`) there are more turns in the same time, and the blocks of a turn are closer together.

On one card each card has a share of the precisions and shapes, and all cards measure at the same time. All ways of a
rank share one core, and no garbage is collected within a block.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from tests.benchmarks.estimate import FEWEST, typical_ratio
from tests.benchmarks.gpu_shapes import shapes_of, sizes_of
from tests.gpu.places import PRETENDED_CARDS, ROOT, cards, environment_of
from tests.parity.ranks import free_port

SETTLING_STEPS, TIMED_STEPS = 2, 10
BLOCK_STEPS = SETTLING_STEPS + TIMED_STEPS  # the Trainer logs as often
EPOCH_STEPS = 10_000  # more than any run takes: no block meets the end of an epoch, or of the schedule

SHAPES = {  # samples a card and step x tokens
    "bf16": ["32x128", "64x512"],
    "fp32": ["32x128", "8x512"],
}
WAYS = {  # in the order of a turn
    "minitrainer": ("installed", "minitrainer"),
    "transformers, installed": ("installed", "transformers"),
    "by hand": ("installed", "by hand"),
    "minitrainer on 4.31.0": ("reference", "minitrainer"),
    "transformers 4.31.0": ("reference", "transformers"),
    "minitrainer, again": ("installed", "minitrainer"),
}
GOALS = {  # how many times as fast the first is to be as the second
    ("minitrainer on 4.31.0", "transformers 4.31.0"): 1.0,
    ("minitrainer", "transformers 4.31.0"): 1.0,
    ("minitrainer", "transformers, installed"): 1.0,
    ("minitrainer", "by hand"): 0.97,
    ("minitrainer", "minitrainer, again"): None,  # no goal: what the clock can tell
}

# -- parent ----------------------------------------------------------------------------------------------------------


class Way:
    """The processes of one way in one place, one a rank.

    Args:
        name: in WAYS.
        world_size: number of ranks.
        card: of the only rank.
    """

    def __init__(self, name: str, world_size: int, card: int = 0):
        environment, library = WAYS[name]
        variables = environment_of(environment) | {"PYTHONHASHSEED": "0"}
        port = str(free_port())
        cores = sorted(os.sched_getaffinity(0))
        self.name = name
        self.processes = []
        for rank in range(world_size):
            own = dict(variables)
            if PRETENDED_CARDS:
                own["CUDA_VISIBLE_DEVICES"] = ""
            elif world_size == 1:
                visible = os.environ.get("CUDA_VISIBLE_DEVICES") or ",".join(map(str, range(cards())))
                own["CUDA_VISIBLE_DEVICES"] = visible.split(",")[card]
            if world_size > 1:
                own |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
                own |= {"WORLD_SIZE": str(world_size), "LOCAL_WORLD_SIZE": str(world_size)}
            # ranks apart, and none on the first core, which answers interrupts; two ways never work at once
            core = cores[(2 + 8 * (rank if world_size > 1 else card)) % len(cores)]
            command = [sys.executable, "-m", "tests.benchmarks.gpu_speed", "--worker", library, str(core)]
            self.processes.append(
                subprocess.Popen(
                    command, cwd=ROOT, env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
                )
            )

    def tell(self, **order: Any) -> None:
        """Give all ranks one order."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()

    def hear(self) -> list[Any]:
        """Wait for each rank's answer.

        Raises:
            RuntimeError: a rank has ended; the others are ended too.
        """
        answers = []
        for rank, process in enumerate(self.processes):
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                code = process.wait()
                self.end(0)
                raise RuntimeError(f"{self.name}: rank {rank} ended with {code}")
            answers.append(json.loads(line))
        return answers

    def end(self, seconds: float = 60) -> None:
        """Hang up; whoever has not ended after so long is killed."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self.processes:
            try:
                process.wait(seconds)
            except subprocess.TimeoutExpired:
                process.kill()


def main() -> None:
    """Measure in every place, precision and shape, show the tables, write the facts."""
    parser = argparse.ArgumentParser(description="samples per second on cards")
    parser.add_argument("--seconds", type=float, default=600, help="all of it: divided among what is to be measured")
    parser.add_argument("--cards", type=int, nargs="+", help="numbers of cards; default: one, and all")
    parser.add_argument(
        "--ways", nargs="+", default=list(WAYS), choices=list(WAYS), metavar="WAY", help=", ".join(WAYS)
    )
    parser.add_argument("--precisions", nargs="+", default=list(SHAPES), choices=list(SHAPES))
    parser.add_argument(
        "--shapes", nargs="+", metavar="SHAPE", help="a card and step: 64x512, or bf16=64x512 for one precision"
    )
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--hidden", type=int, default=768)
    parser.add_argument("--json", type=Path, help="where the facts go")
    parser.add_argument("--worker", nargs=2, metavar=("LIBRARY", "CORE"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker:
        return work(asked.worker[0], int(asked.worker[1]))
    if cards() == 0:
        raise SystemExit("gpu_speed needs a CUDA device, and torch finds none here")

    # -- what is measured at once, and what after it ---
    shapes = shapes_of(asked.shapes, asked.precisions, SHAPES)
    runs = [(precision, shape) for precision, some in shapes.items() for shape in some]
    names = [name for name in WAYS if name in asked.ways]  # in the order of a turn, whatever the order asked for
    stages = []
    for world_size in asked.cards or sorted({1, cards()}):
        if world_size == 1:
            at_once = min(cards(), len(runs))
            edges = [len(runs) * card // at_once for card in range(at_once + 1)]
            shares = [runs[first:end] for first, end in itertools.pairwise(edges)]
            stages.append([Team(1, names, share, card) for card, share in enumerate(shares)])
        else:
            stages.append([Team(world_size, names, runs)])
    deadline = time.monotonic() + asked.seconds
    facts: dict[str, Any] = {
        "layers": asked.layers,
        "hidden": asked.hidden,
        "ways": names,
        "steps_of_a_block": {"to settle": SETTLING_STEPS, "timed": TIMED_STEPS},
        "places": {},
    }
    for at, stage in enumerate(stages):
        left = sum(max(len(team.runs) for team in each) for each in stages[at:])
        threads = [threading.Thread(target=team.measure, args=(facts, asked, deadline, left)) for team in stage]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    measured = sum(len(shapes) for place in facts["places"].values() for shapes in place.values())
    if measured < sum(len(team.runs) for stage in stages for team in stage):
        raise SystemExit("not every place, precision and shape was measured")


ONE_SPEAKS = threading.Lock()


class Team:
    """The ways in one place: they stay alive for several runs, one a precision and shape.

    Args:
        world_size: number of ranks.
        names: of the ways.
        runs: pairs of precision and shape.
        card: of the only rank.
    """

    def __init__(self, world_size: int, names: list[str], runs: list[tuple[str, str]], card: int = 0):
        self.world_size, self.names, self.runs, self.card = world_size, names, runs, card

    def measure(self, facts: dict[str, Any], asked: argparse.Namespace, deadline: float, left: int) -> None:
        """Do the runs and add what was found to the facts.

        Args:
            deadline: of everything, by time.monotonic.
            left: runs that share the time until then, these and those of later stages.
        """
        ways = [Way(name, self.world_size, self.card) for name in self.names]
        place = "one card" if self.world_size == 1 else f"{self.world_size} cards, DDP"
        try:
            # once all have started: what is left of the time is shared evenly
            surroundings = {WAYS[way.name][0]: way.hear()[0] for way in ways}
            for at, (precision, shape) in enumerate(self.runs):
                now = time.monotonic()
                until = now + (deadline - now) / (left - at)
                samples, tokens = sizes_of(shape)
                sizes = {"samples": samples, "tokens": tokens, "layers": asked.layers, "hidden": asked.hidden}
                found = self.one_run(ways, until, precision=precision, **sizes)
                with ONE_SPEAKS:
                    facts.setdefault("surroundings", {}).update(surroundings)
                    facts["places"].setdefault(place, {}).setdefault(precision, {})[shape] = found
                    show(f"{place}, {precision}, {shape}", found)
                    if asked.json is not None:
                        asked.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")
        finally:
            for way in ways:
                way.end()

    def one_run(self, ways: list[Way], until: float, **run: Any) -> dict[str, Any]:
        """Let the ways take turns until the time is over, there and back again."""
        for way in ways:
            way.tell(do="run", **run)
        for way in ways:
            way.hear()  # it stands before its first step
        seconds: dict[str, list[float]] = {way.name: [] for way in ways}
        by_step: dict[str, list[list[float]]] = {way.name: [] for way in ways}
        longest_turn = 0.0
        for turn in range(EPOCH_STEPS // BLOCK_STEPS - 1):
            began = time.monotonic()
            if turn > 1 and began + longest_turn > until:
                break
            for way in ways if turn % 2 else reversed(ways):
                way.tell(do="block")
                answers = way.hear()
                if turn:  # the first turn only warms up
                    # a step is done when all ranks have done it
                    seconds[way.name].append(max(answer["block"] for answer in answers))
                    by_step[way.name].append(answers[0]["steps"])
            if turn:
                longest_turn = max(longest_turn, time.monotonic() - began)
        gigabytes = {}
        for way in ways:  # one after the other: a Trainer that is to stop does one more step
            way.tell(do="end")
            gigabytes[way.name] = max(way.hear())
        found = figures(seconds)
        of_a_block = run["samples"] * self.world_size * TIMED_STEPS
        return {
            "samples_per_second": {
                name: round(of_a_block / statistics.median(times), 1) for name, times in seconds.items()
            },
            "gigabytes_at_most": gigabytes,
            "speed_of_one_to_another": found,
            "seconds_of_a_step_by_its_place_in_the_block": {
                name: [round(statistics.median(times), 5) for times in zip(*blocks, strict=True)]
                for name, blocks in by_step.items()
            },
            "seconds_of_each_block": {name: [round(value, 4) for value in times] for name, times in seconds.items()},
        }


# -- from blocks to figures ------------------------------------------------------------------------------------------


def figures(seconds: dict[str, list[float]]) -> dict[str, Any]:
    """Compare each pair of ways that was there, turn by turn: typical ratio, interval, extreme turns, verdict."""
    found: dict[str, Any] = {}
    for (ours, other), goal in GOALS.items():
        if ours not in seconds or other not in seconds:
            continue
        ratios = [theirs / own for own, theirs in zip(seconds[ours], seconds[other], strict=True)]
        ratio, low, high = typical_ratio(seconds[ours], seconds[other])
        found[f"{ours} to {other}"] = {
            "goal": goal,
            "typical": round(ratio, 4),
            "interval": [round(low, 4), round(high, 4)],
            "lowest_and_highest_turn": [round(min(ratios), 4), round(max(ratios), 4)],
            "turns": len(ratios),
            "verdict": None if goal is None else verdict(goal, low, high, len(ratios)),
        }
    return found


def verdict(goal: float, low: float, high: float, turns: int) -> str:
    """Whether a goal is met, if there are turns enough and the interval lies on one side of it."""
    if turns < FEWEST or low < goal <= high:
        return "not settled"
    return "met" if low >= goal else "missed"


def show(what: str, found: dict[str, Any]) -> None:
    """Print one run."""
    print(f"{what}: blocks of {TIMED_STEPS} steps")
    for name, value in found["samples_per_second"].items():
        gigabytes = found["gigabytes_at_most"][name]
        print(f"  {name:<26}{value:>10.1f} samples per second, {gigabytes:.1f} GB at most")
    for name, each in found["speed_of_one_to_another"].items():
        (low, high), (lowest, highest) = each["interval"], each["lowest_and_highest_turn"]
        said = "what the clock can tell" if each["goal"] is None else f"at least {each['goal']:g}: {each['verdict']}"
        print(
            f"  {name:<48}{each['typical']:>8.4f}   95 %: {low:.4f} to {high:.4f}; "
            f"{each['turns']} turns: {lowest:.3f} to {highest:.3f}; {said}"
        )
    sys.stdout.flush()


# -- worker ----------------------------------------------------------------------------------------------------------


def work(library: str, core: int) -> None:
    """Do the runs that the parent asks for, until it hangs up."""
    import torch

    warnings.filterwarnings("ignore")
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # whatever a Trainer prints goes elsewhere
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    if "RANK" in os.environ:
        torch.distributed.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    import transformers

    transformers.logging.set_verbosity_error()
    answers.write(json.dumps(surroundings()) + "\n")
    everywhere = os.sched_getaffinity(0)
    orders = map(json.loads, sys.stdin)
    for order in orders:
        del order["do"]  # "run": nothing else comes between two runs
        stay_on(everywhere)  # the ways prepare themselves at the same time
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        one_run(library, Gate(orders, answers, core), **order)
        gc.unfreeze()
        free_cards()
        gigabytes = torch.cuda.max_memory_reserved() / 1e9 if torch.cuda.is_available() else 0.0
        answers.write(json.dumps(round(gigabytes, 1)) + "\n")
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class Gate:
    """Where a run comes by at the beginning of each step, and sleeps until the parent asks for a block.

    Attributes:
        step_of_block: steps of this block that have begun.
        began: when the first timed step of this block did; None before the first block.
        moments: at which the host began each step of this block.
    """

    def __init__(self, orders: Iterator[dict[str, Any]], answers: Any, core: int):
        self.orders, self.answers, self.core = orders, answers, core
        self.step_of_block = BLOCK_STEPS
        self.began: float | None = None
        self.moments: list[float] = []

    @property
    def block_is_complete(self) -> bool:
        """Whether the step that has begun is the last of its block."""
        return self.step_of_block == BLOCK_STEPS

    def lets_pass(self) -> bool:
        """Return when there is a step to do, or False if there is none any more."""
        if self.block_is_complete:
            answer = None
            if self.began is None:  # no block has been done yet
                gc.collect()
                gc.freeze()  # what is there by now stays: no later collection walks over it
            else:
                wait_for_cards()
                ended = time.perf_counter()
                steps = [end - begin for begin, end in itertools.pairwise([*self.moments, ended])]
                answer = {"block": ended - self.began, "steps": steps}
                gc.enable()
            free_cards()
            self.answers.write(json.dumps(answer) + "\n")
            order = next(self.orders, {"do": "end"})
            if order["do"] == "end":
                return False
            if self.began is None:
                stay_on({self.core})
            gc.disable()
            self.step_of_block, self.moments = 0, []
        if self.step_of_block == SETTLING_STEPS:
            wait_for_cards()
            meet()
            self.began = time.perf_counter()
        self.moments.append(time.perf_counter())
        self.step_of_block += 1
        return True


def one_run(library: str, gate: Gate, precision: str, samples: int, tokens: int, layers: int, hidden: int) -> None:
    """Train BERT-base until the gate lets no further step pass."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification

    from tests.gpu import program

    torch.manual_seed(0)
    config = BertConfig(
        num_hidden_layers=layers,
        hidden_size=hidden,
        num_attention_heads=hidden // 64,
        intermediate_size=4 * hidden,
    )
    model = BertForSequenceClassification(config)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    distinct = program.samples(64 * samples, tokens)
    data = distinct * (EPOCH_STEPS * world_size // 64 + 1)
    if library == "by hand":
        train_by_hand(model, data, samples, precision, gate)
    else:
        with tempfile.TemporaryDirectory(prefix="gpu-speed-") as folder:
            train_with(import_module(library), model, data, samples, precision, gate, folder)


def train_with(
    library: Any, model: Any, data: list[Any], samples: int, precision: str, gate: Gate, folder: str
) -> None:
    """Train with a Trainer of either library."""
    from tests.gpu import program

    # accelerate remembers the precision of the first Trainer for the whole process
    accelerate = import_module("accelerate.state")
    accelerate.AcceleratorState._reset_state(reset_partial_state=True)
    accelerate.GradientState._reset_state()
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    args = program.arguments(
        library,
        folder,
        max_steps=EPOCH_STEPS,
        logging_steps=BLOCK_STEPS,
        per_device_train_batch_size=samples,
        bf16=precision == "bf16",
        # every parameter is used: nobody, nor the loop by hand, is to search for others
        ddp_find_unused_parameters=False if "RANK" in os.environ else None,
    )
    trainer = library.Trainer(model, args, train_dataset=data)
    trainer.remove_callback(library.PrinterCallback)

    def on_step_begin(callback: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        control.should_training_stop = not gate.lets_pass()

    trainer.add_callback(type("AtTheGate", (library.TrainerCallback,), {"on_step_begin": on_step_begin})())
    trainer.train()


def train_by_hand(model: Any, data: list[Any], samples: int, precision: str, gate: Gate) -> None:
    """Train with a plain loop: same loader, optimizer, clipping, schedule, autocast, DDP; a loss read a block."""
    import torch
    import transformers
    from torch import nn
    from torch.utils.data import DataLoader, DistributedSampler, RandomSampler

    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    model = model.to(device)
    decaying = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    optimizer = torch.optim.AdamW([{"params": decaying}, {"params": others}], lr=5e-5, weight_decay=0.0)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / EPOCH_STEPS))
    sampler: Any = RandomSampler(data)
    if torch.distributed.is_initialized():
        sampler = DistributedSampler(data)  # type: ignore[arg-type]
        model = nn.parallel.DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    loader: DataLoader[Any] = DataLoader(
        data,  # type: ignore[arg-type]
        batch_size=samples,
        sampler=sampler,
        collate_fn=transformers.default_data_collator,
        pin_memory=device.type == "cuda",
        drop_last=True,
    )
    loss_sum = torch.zeros((), device=device)
    for batch in loader:
        if not gate.lets_pass():
            return
        model.train()
        batch = {key: value.to(device) for key, value in batch.items()}
        with torch.autocast(device.type, torch.bfloat16) if precision == "bf16" else nullcontext():
            loss = model(**batch).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        scheduler.step()
        model.zero_grad()
        loss_sum += loss.detach()
        if gate.block_is_complete:
            loss_sum.item()
            loss_sum.zero_()


def surroundings() -> dict[str, Any]:
    """Versions and card."""
    import torch

    found = {name: import_module(name).__version__ for name in ("torch", "transformers", "accelerate")}
    if torch.cuda.is_available():
        found["card"] = torch.cuda.get_device_name()
    return found


def stay_on(cores: set[int]) -> None:
    """Keep every thread of this process on these cores, those too that backward and NCCL have started."""
    for thread in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # it has ended meanwhile
            os.sched_setaffinity(int(thread), cores)


def wait_for_cards() -> None:
    """Return when the card has done everything."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def meet() -> None:
    """Return when all ranks have come here."""
    import torch

    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def free_cards() -> None:
    """Give the memory back that only a working way needs."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

# Read next: estimate.py
