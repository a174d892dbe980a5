"""On a card autograd's own thread starts DDP's collectives, without a frame of Python: they are recorded all the same."""

from __future__ import annotations

import _thread
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.distributed as dist

from minitrainer.trace import events
from minitrainer.trace.collectives import Collectives
from tests.parity.ranks import free_port

BROADCAST = torch.ops.c10d.broadcast_.default


@pytest.fixture
def group() -> Any:
    """A group of one rank."""
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{free_port()}", rank=0, world_size=1)
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
    given = torch.ones(7)
    arguments = ([given], group.boxed(), 0, 0)
    try:
        waiting(lambda: void(_thread.start_new_thread(call, arguments)), lambda: bool(written or troubles))
    finally:
        watch.detach()
    assert not troubles
    (record,) = written
    assert (record.collective, record.elements, record.ranks) == ("broadcast", 7, 1)
    assert record.by == "test_the_thread_that_waits_tells_who_asked"
    assert record.part == "gradients, in the backward pass"


def void(anything: Any) -> None:
    """Nothing."""


# Read next: test_launchers.py
