"""What the cards say to each other: every copy between cards and every collective, by the phase that caused it.

torch.profiler sees each kernel and copy with the moment at which the host started it; markers of our own around the
phases of a micro-batch say which phase that was. The Trainer under observation is the real one, and ours beside it.
"""

from __future__ import annotations

import bisect
import contextlib
import json
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from minitrainer.trace import trace
from tests.parity.run import our_library, real_library

from . import program

if TYPE_CHECKING:
    from .worker import Here

MARK = "phase: "
STEPS, GROUP, LOGGING_STEPS = 4, 2, 2
PER_DEVICE_BATCH = 4
# 14 million parameters: more than two of DDP's buckets of 25 MB
SHAPE: dict[str, Any] = {"hidden": 384, "layers": 6, "tokens": 32, "train_samples": 128}


def between_cards(here: Here) -> dict[str, Any]:
    """Profile a short run of both libraries, without a trace and with one."""
    found: dict[str, Any] = {
        "run": {
            "steps": STEPS,
            "micro_batches_per_step": GROUP,
            "logging_steps": LOGGING_STEPS,
            "samples_per_card_and_micro_batch": PER_DEVICE_BATCH,
            **SHAPE,
        }
    }
    for library in (real_library(), our_library()):
        for traced in (False, True):
            with here.one_run(library) as folder:
                name = library.name + (", traced" if traced else "")
                found[name] = profiled(import_module(library.name), folder, here.rank, traced)
    return found


def profiled(library: Any, folder: Path, rank: int, traced: bool) -> dict[str, Any]:
    """Train under the profiler."""
    trainer = program.trainer(
        library,
        folder / "out",
        marking(library.Trainer),
        max_steps=STEPS,
        gradient_accumulation_steps=GROUP,
        logging_steps=LOGGING_STEPS,
        per_device_train_batch_size=PER_DEVICE_BATCH,
        **SHAPE,
    )
    parameters = [each.numel() for each in trainer.model.parameters() if each.requires_grad]
    activities = [ProfilerActivity.CPU] + [ProfilerActivity.CUDA] * torch.cuda.is_available()
    session = trace(trainer, folder / "trace") if traced else contextlib.nullcontext()
    with session, profile(activities=activities, record_shapes=True) as profiler:
        trainer.train()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
    file = folder / f"profile{rank}.json"
    profiler.export_chrome_trace(str(file))
    timeline = json.loads(file.read_text(encoding="utf-8"))["traceEvents"]
    file.unlink()
    return {"parameters": sum(parameters), "parameter_tensors": len(parameters), "phases": phases_of(timeline)}


def marking(base: type) -> type:
    """A subclass that puts a marker around each phase of a micro-batch, and around each log."""
    state: dict[str, Any] = {"micro": 0, "mean": None, "hooked": False}

    def step_with_markers(self: Any, *args: Any, **kwargs: Any) -> Any:
        if not state["hooked"]:
            state["hooked"] = True
            backward = self.accelerator.backward

            def marked_backward(*given: Any, **named: Any) -> Any:
                state["mean"].__exit__(None, None, None)
                with record_function(f"{MARK}micro-batch {state['micro']}: backward"):
                    return backward(*given, **named)

            self.accelerator.backward = marked_backward
        state["micro"] += 1
        with record_function(f"{MARK}micro-batch {state['micro']}: the rest of training_step"):
            return base.training_step(self, *args, **kwargs)  # type: ignore[attr-defined]

    def loss_with_markers(self: Any, *args: Any, **kwargs: Any) -> Any:
        with record_function(f"{MARK}micro-batch {state['micro']}: forward"):
            loss = base.compute_loss(self, *args, **kwargs)  # type: ignore[attr-defined]
        # from here to backward, training_step does nothing but loss.mean()
        state["mean"] = record_function(f"{MARK}micro-batch {state['micro']}: loss.mean()")
        state["mean"].__enter__()
        return loss

    def log_with_markers(self: Any, *args: Any, **kwargs: Any) -> Any:
        with record_function(f"{MARK}step {self.state.global_step}: log, evaluate, save"):
            return base._maybe_log_save_evaluate(self, *args, **kwargs)  # type: ignore[attr-defined]

    return type(
        "Trainer",
        (base,),
        {
            "training_step": step_with_markers,
            "compute_loss": loss_with_markers,
            "_maybe_log_save_evaluate": log_with_markers,
        },
    )


# -- from the profile to facts ---------------------------------------------------------------------------------------

CALLS = ("Scatter", "Broadcast", "Gather", "BroadcastBackward", "GatherBackward", "ReduceAddCoalesced", "aten::mean")


def phases_of(timeline: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Sum the profile up by phase: kernels by card, copies, collectives, and calls that are about communication."""
    spans = sorted(
        (event["ts"], event["ts"] + event["dur"], event["name"].removeprefix(MARK))
        for event in timeline
        if event.get("cat") == "user_annotation" and event["name"].startswith(MARK)
    )
    begins = [span[0] for span in spans]

    def phase_at(moment: float) -> str:
        at = bisect.bisect_right(begins, moment) - 1
        inside = [span for span in spans[max(0, at - 3) : at + 1] if span[0] <= moment <= span[1]]
        if inside:
            return max(inside)[2]  # the innermost began last
        return "before the first micro-batch" if at < 0 else f"after {spans[at][2]}"

    started = {
        event["args"]["correlation"]: event["ts"]
        for event in timeline
        if event.get("cat") in ("cuda_runtime", "cuda_driver") and "correlation" in event.get("args", {})
    }
    order: dict[str, dict[str, Counter]] = {}

    def count(moment: float, kind: str, what: str) -> None:
        order.setdefault(phase_at(moment), {}).setdefault(kind, Counter())[what] += 1

    for event in sorted((each for each in timeline if "ts" in each), key=lambda each: each["ts"]):
        category, name, given = event.get("cat"), event.get("name", ""), event.get("args", {})
        moment = started.get(given.get("correlation"), event["ts"])
        if category == "kernel" and "nccl" in name.lower():
            count(moment, "nccl kernels", f"{name.split('(')[0]} on card {given.get('device')}")
        elif category == "kernel":
            count(moment, "kernels", f"card {given.get('device')}")
        elif category == "gpu_memcpy":
            ends = "".join(f", {key} {given[key]}" for key in ("fromDevice", "toDevice") if key in given)
            count(moment, "copies", f"{name}, {given.get('bytes')} bytes, on card {given.get('device')}{ends}")
        elif category == "cpu_op" and name == "record_param_comms" and given.get("Collective name"):
            count(event["ts"], "collectives", collective(given))
        elif category == "cpu_op" and name.startswith("c10d::"):
            count(event["ts"], "collective calls", f"{name} {first_shapes(given)}")
        elif category == "cpu_op" and name in CALLS:
            count(event["ts"], "calls", name)
    return [
        {"phase": phase, **{kind: dict(counts) for kind, counts in found.items()}} for phase, found in order.items()
    ]


def collective(given: dict[str, Any]) -> str:
    """One collective in words."""
    return (
        f"{given['Collective name']}: {given.get('In msg nelems')} elements of {given.get('dtype')}, "
        f"{given.get('Group size')} ranks"
    )


def first_shapes(given: dict[str, Any]) -> str:
    """The shapes of the tensors that a call was given."""
    return json.dumps([shape for shape in given.get("Input Dims", []) if shape])


# Read next: tests/gpu/records.py
