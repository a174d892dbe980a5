"""Figures about a stage of the run: how long, how fast, how much memory; and metrics as plain Python numbers."""

import datetime
import gc
import importlib.util
import inspect
import threading
import time
from typing import Any

import numpy as np
import torch


def speed_metrics(
    split: str, start_time: float, num_samples: int | None = None, num_steps: int | None = None
) -> dict[str, float]:
    """Return the runtime since `start_time`, and the throughput where counts are given.

    Call it right after the stage: the clock runs until this call.

    Args:
        split: the prefix of each key, such as `train`.
        start_time: `time.time()` when the stage began.
        num_samples: examples processed, over all ranks.
        num_steps: optimizer updates done (in evaluation: batches).

    Returns:
        `<split>_runtime` in seconds, rounded to 4 places; `<split>_samples_per_second` and
        `<split>_steps_per_second`, rounded to 3 places, neither of them if no time has passed.

    Source: trainer_utils.py 332-354.
    """
    runtime = time.time() - start_time
    metrics = {f"{split}_runtime": round(runtime, 4)}
    for name, count in (("samples", num_samples), ("steps", num_steps)):
        if count is not None and runtime != 0:
            metrics[f"{split}_{name}_per_second"] = round(count / runtime, 3)
    return metrics


def denumpify_detensorize(metrics: Any) -> Any:
    """Turn numpy scalars and one-element tensors into Python numbers, so that metrics can be written as JSON.

    Longer arrays and tensors stay as they are. A tensor on a GPU is waited for.

    Source: trainer_utils.py 596-608.
    """
    if isinstance(metrics, dict):
        return type(metrics)({key: denumpify_detensorize(value) for key, value in metrics.items()})
    if isinstance(metrics, (list, tuple)):
        return type(metrics)(denumpify_detensorize(value) for value in metrics)
    is_one_number = isinstance(metrics, np.generic) or (isinstance(metrics, torch.Tensor) and metrics.numel() == 1)
    return metrics.item() if is_one_number else metrics


def _secs2timedelta(secs: float) -> str:
    """Write seconds as `h:mm:ss.cc`, hundredths cut off, not rounded.

    Source: trainer_pt_utils.py 863-869.
    """
    whole_seconds = int(secs)
    hundredths = int(abs(secs - whole_seconds) * 100)
    return f"{datetime.timedelta(seconds=whole_seconds)}.{hundredths:02d}"


class TrainerMemoryTracker:
    """Measures how much memory each stage of a run takes: what it kept, and what it used besides at its peak.

    The Trainer calls `start()` first thing in `__init__`, `train`, `evaluate` and `predict`, and
    `stop_and_update_metrics(metrics)` last thing. Off by default (`skip_memory_metrics`), because the peak of the
    CPU's memory is found by a thread that reads it without pause, which slows training down.

    **Beware:** stages do not nest. An evaluation inside training counts as training, because torch keeps one peak
    counter only. And silently nothing is measured unless `psutil` is installed.

    Args:
        skip_memory_metrics: measure nothing.

    Source: trainer_utils.py 368-582.
    """

    # Which method of the Trainer opens which stage.
    stages = {
        "__init__": "init",
        **dict.fromkeys(("train", "_inner_training_loop"), "train"),
        "evaluate": "eval",
        "predict": "test",
    }

    def __init__(self, skip_memory_metrics: bool = False):
        self.skip_memory_metrics = skip_memory_metrics or importlib.util.find_spec("psutil") is None
        if self.skip_memory_metrics:
            return
        import psutil

        self.process = psutil.Process()
        self.gpu_is_tracked = torch.cuda.is_available()
        self.cur_stage: str | None = None
        # For each finished stage, in bytes: begin, end, alloc (what it kept), peaked (what it used besides).
        self.cpu: dict[str, dict[str, int]] = {}
        self.gpu: dict[str, dict[str, int]] = {}
        self.init_reported = False

    # -- a stage begins and ends ---

    def start(self) -> None:
        """Begin the caller's stage, unless another stage is under way."""
        if self.skip_memory_metrics:
            return
        stage = self.derive_stage()
        if self._is_nested_in_another(stage):
            return
        self.cur_stage = stage

        gc.collect()
        if self.gpu_is_tracked:
            torch.cuda.reset_peak_memory_stats()
            torch.cuda.empty_cache()
            self.gpu_mem_used_at_start = torch.cuda.memory_allocated()
        self.cpu_mem_used_at_start = self.cpu_mem_used()
        self.peak_monitoring = True
        threading.Thread(target=self.peak_monitor_func, daemon=True).start()

    def stop_and_update_metrics(self, metrics: dict[str, Any] | None = None) -> None:
        """End the caller's stage and put its figures into `metrics`; without it, keep them for the next stage."""
        if self.skip_memory_metrics:
            return
        stage = self.derive_stage()
        self.stop(stage)
        if metrics is not None:
            self.update_metrics(stage, metrics)

    def stop(self, stage: str) -> None:
        """End a stage and keep its figures, unless another stage is under way."""
        if self._is_nested_in_another(stage):
            return
        self.peak_monitoring = False
        gc.collect()

        # The stage that began is named, not the argument: after a stop without a start both are None here.
        if self.gpu_is_tracked:
            torch.cuda.empty_cache()
            self.gpu_mem_used_now, self.gpu_mem_used_peak = (
                torch.cuda.memory_allocated(),
                torch.cuda.max_memory_allocated(),
            )
            self.gpu[self.cur_stage] = _byte_counts(  # type: ignore[index]
                self.gpu_mem_used_at_start, self.gpu_mem_used_now, self.gpu_mem_used_peak
            )
        self.cpu_mem_used_now = self.cpu_mem_used()
        self.cpu[self.cur_stage] = _byte_counts(  # type: ignore[index]
            self.cpu_mem_used_at_start, self.cpu_mem_used_now, self.cpu_mem_used_peak
        )
        self.cur_stage = None

    def update_metrics(self, stage: str, metrics: dict[str, Any]) -> None:
        """Write a stage's figures, in bytes, as `<stage>_mem_<cpu or gpu>_<alloc or peaked>_delta`.

        Construction has no metrics of its own, so its figures come out with the first stage that has some, together
        with what was in use before it (`before_init_mem_cpu`).
        """
        if self.skip_memory_metrics or self._is_nested_in_another(stage):
            return
        reports_init, self.init_reported = not self.init_reported, True
        devices = {"cpu": self.cpu} | ({"gpu": self.gpu} if self.gpu_is_tracked else {})
        for reported in ["init", stage] if reports_init else [stage]:
            for kind in ("alloc", "peaked"):
                for device, byte_counts in devices.items():
                    if reported in byte_counts:
                        metrics[f"{reported}_mem_{device}_{kind}_delta"] = byte_counts[reported][kind]
        if reports_init:
            for device, byte_counts in devices.items():
                metrics[f"before_init_mem_{device}"] = byte_counts["init"]["begin"]

    def _is_nested_in_another(self, stage: str) -> bool:
        """Whether a different stage is under way."""
        return self.cur_stage is not None and self.cur_stage != stage

    # -- what is measured ---

    def derive_stage(self) -> str:
        """Name the stage after the nearest Trainer method among the callers.

        Upstream looks at one caller only. Here the phases of a method stand in methods of their own, so the search
        goes on outwards.

        Raises:
            ValueError: if no Trainer method is among the callers.
        """
        # Two frames out: past this method and past start or stop_and_update_metrics.
        frame = inspect.currentframe()
        frame = frame.f_back.f_back if frame is not None and frame.f_back is not None else None
        nearest_name = None if frame is None else frame.f_code.co_name
        while frame is not None:
            if frame.f_code.co_name in self.stages:
                return self.stages[frame.f_code.co_name]
            frame = frame.f_back
        raise ValueError(f"{nearest_name} is no stage whose memory is measured: those are {self.stages.keys()}")

    def cpu_mem_used(self) -> int:
        """The memory of this process that is resident, in bytes: what is swapped out does not count."""
        return self.process.memory_info().rss

    def peak_monitor_func(self) -> None:
        """Read the memory in use again and again, and keep the highest value, until the stage ends."""
        self.cpu_mem_used_peak = -1
        # No pause between two readings: any sleep would miss short peaks.
        while True:
            self.cpu_mem_used_peak = max(self.cpu_mem_used_peak, self.cpu_mem_used())
            if not self.peak_monitoring:
                return


def _byte_counts(begin: int, end: int, peak: int) -> dict[str, int]:
    """Split a peak into what stayed and what came on top of it; the sum of both is what the stage needed."""
    return {"begin": begin, "end": end, "alloc": end - begin, "peaked": max(0, peak - end)}


# Read next: inspection.py
