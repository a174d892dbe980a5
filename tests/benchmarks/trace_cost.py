"""What a trace costs, beside four other tools, on the same work in one run.

    python -m tests.benchmarks.trace_cost                  CPU time a step, size on disk, cost at the end
    python -m tests.benchmarks.trace_cost --instructions   instructions a step instead, counted by valgrind (slow)
    python -m tests.benchmarks.trace_cost --alternate      our trace alone, switched on and off within one run

The work is a real Trainer of transformers with a tiny BERT, or with one linear layer (the worst case: next to nothing to
do but the Trainer's own calls). Every tool runs in a process of its own. CPU time a step is the tenth percentile, which
other load on the machine disturbs least; instructions do not depend on load at all. Two processes differ by chance, in
where their memory lies: on and off within one run is the surest for one tool. There four blocks of steps, off, on, on,
off, make one comparison, and the figure has an interval of 95 %.

The other tools are optional: `pip install viztracer opentelemetry-sdk`. What is not installed is left out, by name.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from tests.benchmarks.estimate import typical

ROOT = Path(__file__).parents[2]
TOOLS = ("none", "minitrainer.trace", "viztracer", "torch.profiler", "cProfile", "OpenTelemetry")
WORK = ("bert", "linear")

WARM_STEPS = 40
ALTERNATING_STEPS, SETTLING_STEPS = 100, 40
"""Of a block with or without the trace, and how many of them do not count: after each change the interpreter adapts."""

TURN = (False, True, True, False)
"""Blocks of one comparison: a machine that becomes slower or faster in the meantime is so for both."""

COUNTED_STEPS = 20
"""Instructions are counted over these, after `WARM_STEPS` and as many steps in which the interpreter settles again."""


# -- the work ------------------------------------------------------------------------------------------


def trainer_for(work: str, steps: int, folder: Path, callbacks: list[Any]) -> Any:
    """A Trainer that trains for `steps` steps and logs every ten."""
    import torch
    import transformers

    from tests.trace import programs

    torch.set_num_threads(1)
    torch.manual_seed(0)
    given = {"max_steps": steps, "logging_steps": 10, "save_strategy": "no", "per_device_train_batch_size": 8}
    if work == "linear":
        return programs.trainer(transformers, folder, rows=8 * 64, callbacks=callbacks, **given)
    config = transformers.BertConfig(
        vocab_size=256,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
    )
    return transformers.Trainer(
        model=transformers.BertForSequenceClassification(config),
        args=programs.arguments(transformers, folder, **given),
        train_dataset=Sentences(8 * 64),
        callbacks=callbacks,
    )


class Sentences:
    """Random token ids, sixteen a sentence."""

    def __init__(self, count: int):
        import torch

        generator = torch.Generator().manual_seed(1)
        self.ids = torch.randint(5, 200, (count, 16), generator=generator)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, position: int) -> dict[str, Any]:
        import torch

        ids = self.ids[position]
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "token_type_ids": torch.zeros_like(ids),
            "labels": ids[0] % 2,
        }


def clock_callback(library: Any, at_step: Callable[[int], None]) -> Any:
    class Clock(library.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            at_step(state.global_step)

    return Clock()


# -- the tools -----------------------------------------------------------------------------------------


@contextlib.contextmanager
def tool_around(tool: str, trainer: Any, folder: Path) -> Iterator[dict[str, float]]:
    """Run the block under a tool; the dict holds what stopping and saving took, in seconds."""
    cost = {"end_s": 0.0}
    output = folder / "output"

    @contextlib.contextmanager
    def timed() -> Iterator[None]:
        begin = time.perf_counter()
        yield
        cost["end_s"] += time.perf_counter() - begin

    if tool == "none":
        yield cost
    elif tool == "minitrainer.trace":
        from minitrainer.trace import trace

        session = trace(trainer, output).start()
        yield cost
        with timed():
            session.stop()
    elif tool == "viztracer":
        from viztracer import VizTracer

        tracer = VizTracer(output_file=str(folder / "output.json"), tracer_entries=5_000_000, verbose=0)
        tracer.start()
        yield cost
        with timed():
            tracer.stop()
            tracer.save()
    elif tool == "torch.profiler":
        from torch.profiler import ProfilerActivity, profile

        profiler = profile(activities=[ProfilerActivity.CPU])
        profiler.__enter__()
        yield cost
        with timed():
            profiler.__exit__(None, None, None)
            profiler.export_chrome_trace(str(folder / "output.json"))
    elif tool == "cProfile":
        import cProfile

        profiler = cProfile.Profile()
        profiler.enable()
        yield cost
        with timed():
            profiler.disable()
            profiler.dump_stats(folder / "output.prof")
    elif tool == "OpenTelemetry":
        yield from spans_around(trainer, folder, cost, timed)


def spans_around(trainer: Any, folder: Path, cost: dict[str, float], timed: Any) -> Iterator[dict[str, float]]:
    """A span for every method of the Trainer's class, written to a file in batches."""
    from opentelemetry.sdk.trace import TracerProvider
    from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter

    provider = TracerProvider()
    with open(folder / "output.json", "w") as file:
        provider.add_span_processor(BatchSpanProcessor(ConsoleSpanExporter(out=file)))
        tracer = provider.get_tracer("trainer")
        cls = next(base for base in type(trainer).__mro__ if base.__name__ == "Trainer")
        for name, function in list(vars(cls).items()):
            if callable(function) and not name.startswith("__") and not isinstance(function, (staticmethod, type)):

                def spanned(*args: Any, _call: Any = function, _name: str = name, **kwargs: Any) -> Any:
                    with tracer.start_as_current_span(_name):
                        return _call(*args, **kwargs)

                setattr(cls, name, functools.wraps(function)(spanned))
        yield cost
        with timed():
            provider.shutdown()


def installed(tool: str) -> bool:
    module = {"viztracer": "viztracer", "OpenTelemetry": "opentelemetry"}.get(tool)
    return module is None or importlib.util.find_spec(module) is not None


# -- one measurement, in a process of its own ------------------------------------------------------------


def measure_time(tool: str, work: str, steps: int, folder: Path) -> dict[str, float]:
    import transformers

    ticks: list[float] = []
    trainer = trainer_for(
        work, steps, folder / "out", [clock_callback(transformers, lambda _: ticks.append(time.process_time()))]
    )
    with tool_around(tool, trainer, folder) as cost:
        trainer.train()
    each = [b - a for a, b in zip(ticks[WARM_STEPS:], ticks[WARM_STEPS + 1 :], strict=False)]
    size = sum(path.stat().st_size for path in folder.rglob("output*") if path.is_file())
    size += sum(path.stat().st_size for path in folder.rglob("*.rows"))
    found = {
        "us_per_step": _low(each) * 1e6,
        "median_us": statistics.median(each) * 1e6,
        "end_ms": cost["end_s"] * 1e3,
        "bytes_per_step": size / steps,
    }
    if tool == "minitrainer.trace":
        from minitrainer.trace import read

        end = list(read(next(folder.rglob("*.rows"))))[-1]
        found |= {
            "bytes_per_row": end.bytes / end.rows,
            "rows_per_step": end.rows / steps,
            "stated_us": end.cost_us / steps,
        }
    return found


def measure_alternating(work: str, turns: int, folder: Path) -> list[list[float]]:
    """In one run, turn by turn: microseconds of processor time of a step without the trace, and how many more with it."""
    import transformers

    from minitrainer.trace import trace

    took: list[dict[bool, list[float]]] = [{False: [], True: []} for _ in range(turns)]
    session: Any = None
    last = 0.0

    def at_step(step: int) -> None:
        nonlocal session, last
        took_s = time.thread_time() - last
        block, position = divmod(step, ALTERNATING_STEPS)
        turn, place = divmod(block, len(TURN))
        if position > SETTLING_STEPS:
            took[turn][TURN[place]].append(1e6 * took_s)
        elif position == 0 and TURN[place] and session is None:
            session = trace(trainer, folder / str(step)).start()
        elif position == 0 and not TURN[place] and session is not None:
            session.stop()
            session = None
        last = time.thread_time()

    steps = turns * len(TURN) * ALTERNATING_STEPS
    trainer = trainer_for(work, steps, folder / "out", [clock_callback(transformers, at_step)])
    trainer.train()
    return [
        [
            _low(each[False]),
            _low(each[True]) - _low(each[False]),
            statistics.median(each[True]) - statistics.median(each[False]),
        ]
        for each in took
    ]


def _low(values: list[float]) -> float:
    """The tenth percentile."""
    return sorted(values)[len(values) // 10]


def measure_instructions(tool: str, work: str, folder: Path) -> None:
    """Runs under callgrind; its counters are switched by the Trainer's own steps."""
    import transformers

    def control(*words: str) -> None:
        subprocess.run(["callgrind_control", *words, str(os.getpid())], stdout=subprocess.DEVNULL, check=True)

    def at_step(step: int) -> None:
        if step == WARM_STEPS:
            control("-i", "on")
        elif step == WARM_STEPS + COUNTED_STEPS:
            control("-z")
        elif step == WARM_STEPS + 2 * COUNTED_STEPS:
            control("-d", "counted")
            control("-i", "off")

    steps = WARM_STEPS + 2 * COUNTED_STEPS + 2
    trainer = trainer_for(work, steps, folder / "out", [clock_callback(transformers, at_step)])
    with tool_around(tool, trainer, folder):
        trainer.train()


def instructions_of(tool: str, work: str, folder: Path) -> float:
    command = ["valgrind", "--tool=callgrind", "--instr-atstart=no", f"--callgrind-out-file={folder}/callgrind"]
    child(tool, work, folder, prefix=command, mode="instructions")
    text = (folder / "callgrind.1").read_text(errors="replace")
    return int(text.split("\nsummary: ")[1].split()[0]) / COUNTED_STEPS


def child(
    tool: str, work: str, folder: Path, prefix: list[str] | None = None, mode: str = "time", steps: int = 0
) -> str:
    words = [
        sys.executable,
        "-W",
        "ignore",
        "-m",
        "tests.benchmarks.trace_cost",
        "--child",
        mode,
        tool,
        work,
        str(folder),
    ]
    done = subprocess.run(
        [*(prefix or []), *words, "--steps", str(steps)],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{tool} on {work} failed:\n{done.stderr[-2000:]}")
    return done.stdout


# -- all of them -----------------------------------------------------------------------------------------


def alternate(works: list[str], turns: int) -> None:
    """Say how much longer a step is with the trace: a quick one (the tenth percentile), and the median."""
    for work in works:
        with tempfile.TemporaryDirectory() as folder:
            steps = turns * len(TURN) * ALTERNATING_STEPS
            output = child("minitrainer.trace", work, Path(folder), None, "alternate", steps)
        off, low, middle = zip(*json.loads(output.splitlines()[-1]), strict=True)
        added = ", ".join(
            "{:+.1f} us ({:.1f} to {:.1f}) at {}".format(*typical(differences), name)
            for differences, name in ((low, "the tenth percentile"), (middle, "the median"))
        )
        print(f"{work:7} {statistics.median(off):9.0f} us a step, with the trace {added}; {turns} comparisons")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--instructions", action="store_true", help="count instructions with valgrind")
    parser.add_argument("--alternate", action="store_true", help="our trace alone, on and off within one run")
    parser.add_argument("--steps", type=int, default=300, help="steps of each timed run")
    parser.add_argument("--turns", type=int, default=50, help="comparisons with --alternate, of 400 steps each")
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--work", nargs="+", choices=WORK, default=list(WORK))
    parser.add_argument("--child", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        mode, tool, work, folder = options.child
        warnings.simplefilter("ignore")
        if mode == "alternate":
            turns = options.steps // (len(TURN) * ALTERNATING_STEPS)
            print("\n" + json.dumps(measure_alternating(work, turns, Path(folder))))
            return
        if mode == "time":
            print("\n" + json.dumps(measure_time(tool, work, options.steps, Path(folder))))
        else:
            measure_instructions(tool, work, Path(folder))
        return
    if options.instructions and shutil.which("valgrind") is None:
        raise SystemExit("--instructions needs valgrind, which is not installed")
    if options.alternate:
        return alternate(options.work, options.turns)
    tools = [tool for tool in options.tools if installed(tool)]
    for tool in set(options.tools) - set(tools):
        print(f"{tool}: not installed, left out")
    for work in options.work:
        baseline: dict[str, float] = {}
        for tool in tools:
            with tempfile.TemporaryDirectory() as folder:
                if options.instructions:
                    count = instructions_of(tool, work, Path(folder))
                    baseline.setdefault("count", count)
                    print(f"{work:7} {tool:18} {count:12,.0f} instructions a step, x {count / baseline['count']:.4f}")
                else:
                    found = json.loads(child(tool, work, Path(folder), steps=options.steps).splitlines()[-1])
                    baseline = baseline or found
                    added = found["us_per_step"] - baseline["us_per_step"]
                    extra = "".join(
                        f", {k} {v:.1f}"
                        for k, v in found.items()
                        if k in ("bytes_per_row", "rows_per_step", "stated_us")
                    )
                    print(
                        f"{work:7} {tool:18} {found['us_per_step']:9.0f} us a step ({added:+.0f}),"
                        f" end {found['end_ms']:.1f} ms, {found['bytes_per_step']:,.0f} bytes a step{extra}"
                    )
            sys.stdout.flush()


if __name__ == "__main__":
    main()

# Read next: ../trace/test_recorder.py
