"""On a card autograd's own thread starts DDP's collectives, without a frame of Python: they are recorded all the same."""

from __future__ import annotations

import _thread
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

import minitrainer
from minitrainer.trace import events, ranks, trace
from minitrainer.trace.collectives import Collectives

from . import programs

BROADCAST = torch.ops.c10d.broadcast_.default


@pytest.fixture
def group(tmp_path: Path) -> Any:
    """A group of one rank, that meets in a file."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meeting", rank=0, world_size=1)
    yield dist.group.WORLD
    dist.destroy_process_group()


def _engine_run_backward(start: Callable[[], None], until: Callable[[], bool]) -> None:
    """Waits for another thread, as torch's function of this name does; the module is said to be torch's below."""
    start()
    deadline = time.monotonic() + 30
    while not until() and time.monotonic() < deadline:
        time.sleep(0.001)


@pytest.mark.parametrize("call", [BROADCAST, BROADCAST._op], ids=["with torch's frames alone", "without a frame"])
def test_the_thread_that_waits_tells_who_asked(group: Any, call: Any) -> None:
    written: list[events.Collective] = []
    troubles: list[Exception] = []
    watch = Collectives(written.append, lambda where, error: troubles.append(error))
    assert watch.attach() == ""
    waiting = type(_engine_run_backward)(_engine_run_backward.__code__, {"__name__": "torch.autograd", "time": time})
    arguments = ([torch.ones(7)], group.boxed(), 0, 0)
    references = sys.getrefcount(arguments)

    def ended() -> bool:
        """Whether the thread has let go of the group. If it were the last to hold it, it would take it apart, and wait
        for the group's own threads while they wait for the interpreter that it holds: nothing would ever go on."""
        return bool(written or troubles) and sys.getrefcount(arguments) == references

    try:
        waiting(lambda: void(_thread.start_new_thread(call, arguments)), ended)
    finally:
        watch.detach()
    assert ended() and not troubles
    (record,) = written
    assert (record.collective, record.elements, record.ranks) == ("broadcast", 7, 1)
    assert record.by == "test_the_thread_that_waits_tells_who_asked"
    assert record.part == "gradients, in the backward pass"


def test_a_recording_takes_rows_from_that_thread(group: Any, tmp_path: Path) -> None:
    """The whole way, into the file and out of it again, in the order in which it happened."""
    waiting = type(_engine_run_backward)(_engine_run_backward.__code__, {"__name__": "torch.autograd", "time": time})
    ended: list[bool] = []

    class Asks(minitrainer.TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            def ask() -> None:
                BROADCAST._op([torch.ones(state.global_step + 1)], group.boxed(), 0, 0)
                ended.append(True)

            before = len(ended)
            waiting(lambda: void(_thread.start_new_thread(ask, ())), lambda: len(ended) > before)

    trainer = programs.build(tmp_path)
    trainer.add_callback(Asks)
    with trace(trainer, tmp_path / "trace", collectives=True):
        trainer.train()
    reading = ranks.open_run(tmp_path / "trace").readings[0]
    steps, seen = [], []
    for record in reading:
        if isinstance(record, events.Event) and record.event == "on_step_begin":
            steps.append(record.step)
        elif isinstance(record, events.Collective):
            assert record.part == "" and record.by.endswith("ask")
            seen.append((record.elements, steps[-1] + 1))
        assert not isinstance(record, events.Note), record
    assert len(seen) == trainer.state.global_step > 4 and all(elements == step for elements, step in seen)


def void(anything: Any) -> None:
    """Nothing."""


# Read next: test_launchers.py
