"""Samples per second on cards: our Trainer, the real 4.31.0, the installed upstream's, and a hand-written loop.

    python -m tests.benchmarks.gpu_speed                          all cards, as a table
    python -m tests.benchmarks.gpu_speed --json speed.json        and as facts

BERT-base with random weights, 32 samples of 128 tokens a card and step, fp32 and bf16, on one card and (DDP over
NCCL) on all. One worker process a card and environment stays alive, and the ways take turns, one block of steps each,
so that whatever the machine does meanwhile slows all of them alike. The ratios are medians over the turns, with intervals
by resampling the turns. On one card each precision has a card of its own, where there are two: they are measured at the
same time. Each process stays on a core of its own, and no garbage is collected within a block.
"""

from __future__ import annotations

import argparse
import copy
import gc
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from random import Random
from typing import Any

from tests.gpu.places import PRETENDED_CARDS, ROOT, cards, environment_of
from tests.parity.ranks import free_port

RESAMPLES, SEED = 4000, 20230718
WARM_UP_STEPS = 6  # of every block: allocator, cuBLAS, the first log
WAYS = {
    "minitrainer on 4.31.0": ("reference", "minitrainer"),
    "transformers 4.31.0": ("reference", "transformers"),
    "minitrainer": ("installed", "minitrainer"),
    "transformers, installed": ("installed", "transformers"),
    "by hand": ("installed", "by hand"),
}

# -- parent ----------------------------------------------------------------------------------------------------------


class Workers:
    """The processes of one environment in one place: they do what they are told, one block at a time."""

    def __init__(self, environment: str, world_size: int, card: int = 0):
        variables = environment_of(environment)
        port = str(free_port())
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
            cores = sorted(os.sched_getaffinity(0))
            # apart, and not the first, which answers interrupts; the two environments never work at once
            core = cores[(2 + 8 * (rank if world_size > 1 else card)) % len(cores)]
            command = [sys.executable, "-m", "tests.benchmarks.gpu_speed", "--worker", str(core)]
            self.processes.append(
                subprocess.Popen(
                    command, cwd=ROOT, env=own, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
                )
            )

    def ask(self, **order: Any) -> Any:
        """Give all ranks one order and return rank 0's answer."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(json.dumps(order) + "\n")
            process.stdin.flush()
        answers = []
        for process in self.processes:
            assert process.stdout is not None
            line = process.stdout.readline()
            if not line:
                raise RuntimeError(f"a worker ended with {process.wait()} at {order}")
            answers.append(json.loads(line))
        return answers[0]

    def end(self) -> None:
        """Let them go."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self.processes:
            process.wait(60)


def main() -> None:
    """Measure in every place and precision, show the table, write the facts."""
    parser = argparse.ArgumentParser(description="samples per second on cards")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--steps", type=int, default=40, help="timed steps of a block")
    parser.add_argument(
        "--seconds",
        type=float,
        default=120,
        help="no further turn of a place and precision after so long, from the third on",
    )
    parser.add_argument("--samples", type=int, default=32, help="on each card, in each step")
    parser.add_argument("--tokens", type=int, default=128, help="in each sample")
    parser.add_argument("--cards", type=int, nargs="+", help="numbers of cards; default: one, and all")
    parser.add_argument("--precisions", nargs="+", default=["bf16", "fp32"])
    parser.add_argument("--layers", type=int, default=12)
    parser.add_argument("--json", type=Path, help="where the facts go")
    parser.add_argument("--worker", type=int, metavar="CORE", help=argparse.SUPPRESS)
    asked = parser.parse_args()
    if asked.worker is not None:
        os.sched_setaffinity(0, {asked.worker})
        return serve()
    if cards() == 0:
        raise SystemExit("gpu_speed needs a CUDA device, and torch finds none here")
    facts: dict[str, Any] = {"samples_per_step_and_card": asked.samples, "tokens": asked.tokens, "places": {}}
    for world_size in asked.cards or sorted({1, cards()}):
        at_once = min(cards(), len(asked.precisions)) if world_size == 1 else 1
        for first in range(0, len(asked.precisions), at_once):
            together = [
                threading.Thread(target=measure, args=(facts, world_size, precision, card, asked))
                for card, precision in enumerate(asked.precisions[first:][:at_once])
            ]
            for thread in together:
                thread.start()
            for thread in together:
                thread.join()
    places = len(asked.cards or sorted({1, cards()}))
    if sum(map(len, facts["places"].values())) < places * len(asked.precisions):
        raise SystemExit("not every place and precision was measured")


ONE_SPEAKS = threading.Lock()


def measure(facts: dict[str, Any], world_size: int, precision: str, card: int, asked: argparse.Namespace) -> None:
    """Measure one place and precision with teams of its own, and add what was found to the facts."""
    teams = {name: Workers(name, world_size, card) for name in ("reference", "installed")}
    surroundings = {f"surroundings, {name}": team.ask(do="describe") for name, team in teams.items()}
    found = speeds(teams, precision, asked, world_size)
    for team in teams.values():
        team.end()
    place = "one card" if world_size == 1 else f"{world_size} cards, DDP"
    with ONE_SPEAKS:
        facts |= surroundings
        facts["places"].setdefault(place, {})[precision] = found
        show(place, precision, found)
        if asked.json is not None:
            asked.json.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


def speeds(teams: dict[str, Workers], precision: str, asked: argparse.Namespace, world_size: int) -> dict[str, Any]:
    """Let the ways take turns."""
    for team in teams.values():
        team.ask(do="prepare", layers=asked.layers, samples=asked.samples, tokens=asked.tokens)
    began = time.perf_counter()
    seconds: dict[str, list[float]] = {name: [] for name in WAYS}
    for turn in range(asked.turns + 1):
        spent = time.perf_counter() - began
        if turn > 2 and spent + spent / turn > asked.seconds:
            break
        for name in WAYS if turn % 2 else reversed(WAYS):
            environment, way = WAYS[name]
            steps = asked.steps if turn else 2
            took = teams[environment].ask(do="block", way=way, precision=precision, steps=steps)
            if turn:  # the first turn only warms up
                seconds[name].append(took)
    samples = asked.steps * asked.samples * world_size
    found: dict[str, Any] = {
        "samples_per_second": {name: round(samples / statistics.median(times), 1) for name, times in seconds.items()},
        "seconds_of_a_block": {name: [round(value, 4) for value in times] for name, times in seconds.items()},
        "steps_of_a_block": asked.steps,
        "ratios": {},
        "ratios_intervals": {},
        "ratios_lowest_and_highest": {},
    }
    for ours, other in (
        ("minitrainer on 4.31.0", "transformers 4.31.0"),
        ("minitrainer", "transformers 4.31.0"),
        ("minitrainer", "transformers, installed"),
        ("minitrainer", "by hand"),
    ):
        ratios = [theirs / own for own, theirs in zip(seconds[ours], seconds[other], strict=True)]
        name = f"speed of {ours} to {other}"
        found["ratios"][name] = round(statistics.median(ratios), 4)
        found["ratios_intervals"][name] = interval(ratios)
        found["ratios_lowest_and_highest"][name] = [round(min(ratios), 4), round(max(ratios), 4)]
    return found


def interval(ratios: list[float]) -> list[float]:
    """95 % for the median of the turns' ratios, by resampling the turns."""
    random = Random(SEED)
    medians = sorted(statistics.median(random.choices(ratios, k=len(ratios))) for _ in range(RESAMPLES))
    return [round(medians[int(share * RESAMPLES)], 4) for share in (0.025, 0.975)]


def show(place: str, precision: str, found: dict[str, Any]) -> None:
    """Print one place and precision."""
    turns = len(found["seconds_of_a_block"]["by hand"])
    print(f"{place}, {precision}, {turns} turns of {found['steps_of_a_block']} steps")
    for name, value in found["samples_per_second"].items():
        print(f"  {name:<26}{value:>10.1f} samples per second")
    for name, value in found["ratios"].items():
        low, high = found["ratios_intervals"][name]
        lowest, highest = found["ratios_lowest_and_highest"][name]
        print(f"  {name:<62}{value:>8.4f}   (95 %: {low:.3f} to {high:.3f}; turns: {lowest:.3f} to {highest:.3f})")
    sys.stdout.flush()


# -- worker ----------------------------------------------------------------------------------------------------------


def serve() -> None:
    """Do what the parent says until it hangs up."""
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
    bench = Bench()
    for line in sys.stdin:
        order = json.loads(line)
        answers.write(json.dumps(getattr(bench, order.pop("do"))(**order)) + "\n")
    del bench  # its DDP models must not outlive their group
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


class Bench:
    """One process of a team."""

    def __init__(self) -> None:
        self.model: Any = None
        self.samples: list[Any] = []
        self.per_step = 0
        self.folder = tempfile.TemporaryDirectory(prefix="gpu-speed-")

    def describe(self) -> dict[str, Any]:
        """Versions and card."""
        import torch

        found = {name: import_module(name).__version__ for name in ("torch", "transformers", "accelerate")}
        if torch.cuda.is_available():
            found["card"] = torch.cuda.get_device_name()
        return found

    def prepare(self, layers: int, samples: int, tokens: int) -> bool:
        """Make the data and BERT-base: every block begins with a copy of the same random weights."""
        from transformers import BertConfig, BertForSequenceClassification

        from tests.gpu import program

        if self.model is None:
            self.model = BertForSequenceClassification(BertConfig(num_hidden_layers=layers))
            self.samples = program.samples(64 * samples, tokens) * 8  # no block reaches the end of an epoch
            self.per_step = samples
        return True

    def trainer(self, way: str, precision: str, steps: int, logging_steps: int) -> Any:
        """A Trainer of either library."""
        from tests.gpu.program import arguments

        # accelerate remembers the precision of the first Trainer for the whole process
        accelerate = import_module("accelerate.state")
        accelerate.AcceleratorState._reset_state(reset_partial_state=True)
        accelerate.GradientState._reset_state()
        os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
        library = import_module(way)
        args = arguments(
            library,
            self.folder.name,
            max_steps=steps,
            logging_steps=logging_steps,
            per_device_train_batch_size=self.per_step,
            bf16=precision == "bf16",
            # every parameter is used: nobody, nor the loop by hand, is to search for others
            ddp_find_unused_parameters=False if "RANK" in os.environ else None,
        )
        trainer = library.Trainer(copy.deepcopy(self.model), args, train_dataset=self.samples)
        trainer.remove_callback(library.PrinterCallback)
        return trainer, library

    def block(self, way: str, precision: str, steps: int) -> float:
        """Seconds that one way takes for the timed steps."""
        gc.collect()
        gc.disable()
        if way == "by hand":
            took = train_by_hand(copy.deepcopy(self.model), self.samples, self.per_step, precision, steps)
        else:
            trainer, library = self.trainer(way, precision, steps + WARM_UP_STEPS, logging_steps=steps)
            clock = Clock({WARM_UP_STEPS, WARM_UP_STEPS + steps})
            trainer.add_callback(clock.callback(library))
            trainer.train()
            took = clock.moments[1] - clock.moments[0]
        gc.enable()
        free_cards()
        return took


class Clock:
    """Notes the time at the beginning of given steps, once the cards have done what was asked of them before."""

    def __init__(self, at_steps: set[int]):
        self.at_steps = at_steps
        self.moments: list[float] = []

    def callback(self, library: Any) -> Any:
        def note(callback: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step in self.at_steps and len(self.moments) < 2:
                wait_for_cards()
                if not self.moments:
                    meet()
                self.moments.append(time.perf_counter())

        members: dict[str, Callable[..., None]] = {"on_step_begin": note, "on_train_end": note}
        return type("Clock", (library.TrainerCallback,), members)()


def train_by_hand(model: Any, samples: list[Any], per_step: int, precision: str, steps: int) -> float:
    """Seconds of a plain loop: same loader, optimizer, clipping, schedule, autocast, DDP; one loss read."""
    import torch
    import transformers
    from torch import nn
    from torch.utils.data import DataLoader, DistributedSampler, RandomSampler

    device = torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
    model = model.to(device)
    decaying = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    others = [parameter for parameter in model.parameters() if parameter.dim() <= 1]
    optimizer = torch.optim.AdamW([{"params": decaying}, {"params": others}], lr=5e-5, weight_decay=0.0)
    total = steps + WARM_UP_STEPS
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: max(0.0, 1 - step / total))
    sampler: Any = RandomSampler(samples)
    if torch.distributed.is_initialized():
        sampler = DistributedSampler(samples)
        model = nn.parallel.DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)
    loader: DataLoader[Any] = DataLoader(
        samples,  # type: ignore[arg-type]
        batch_size=per_step,
        sampler=sampler,
        collate_fn=transformers.default_data_collator,
        pin_memory=device.type == "cuda",
        drop_last=True,
    )
    done, loss_sum, began = 0, torch.zeros((), device=device), 0.0
    while True:
        for batch in loader:
            if done == WARM_UP_STEPS:
                wait_for_cards()
                meet()
                began = time.perf_counter()
            if done == total:
                loss_sum.item()
                wait_for_cards()
                return time.perf_counter() - began
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
            done += 1


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
    """Give memory back before the next block."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


if __name__ == "__main__":
    main()

# Read next: gpu_trace_cost.py
