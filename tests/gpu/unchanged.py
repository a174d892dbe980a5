"""A trace changes nothing on a card: not a bit of the result, and no step off the log waits for the card once more."""

from __future__ import annotations

import contextlib
import re
import warnings
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from minitrainer.trace import rows, trace
from tests.parity.observation import digest_of, plain, plain_files
from tests.parity.run import our_library, plain_random, real_library

from . import program

if TYPE_CHECKING:
    from .worker import Here

STEPS, LOGGING_STEPS = 20, 5

VARIANTS: dict[str, dict[str, Any]] = {
    "fp32": {},
    # without the look for broken losses the Trainer itself waits less often between two logs
    "fp32, losses not filtered": {"logging_nan_inf_filter": False},
    "bf16, groups of 2": {"bf16": True, "gradient_accumulation_steps": 2},
    "fp16": {"fp16": True},
}


def by_the_trace(here: Here) -> dict[str, Any]:
    """Run every variant with both libraries, without a trace and with one."""
    answers: dict[str, Any] = {}
    for library in (real_library(), our_library()):
        module = import_module(library.name)
        for name, chosen in VARIANTS.items():
            if "fp16" in chosen and not torch.cuda.is_available():
                continue
            runs = []
            for traced in (False, True):
                with here.one_run(library) as folder:
                    runs.append(observed(module, folder, here, chosen, traced))
            without, within = runs
            answers[f"{library.name}, {name}"] = {
                "changed": [key for key in without["left"] if without["left"][key] != within["left"][key]],
                "compared": sorted(without["left"]),
                "waits_without": without["waits"],
                "waits_with": within["waits"],
                "log_steps": list(range(LOGGING_STEPS, STEPS + 1, LOGGING_STEPS)),
                "rows_of_the_trace": within["rows"],
            }
    return answers


def observed(library: Any, folder: Path, here: Here, chosen: dict[str, Any], traced: bool) -> dict[str, Any]:
    """Train once."""
    waits = Waits()
    trainer = program.trainer(
        library,
        folder / "out",
        # several versions' BERT asks its replicas for parameters, which they have not
        model="dense" if here.meeting is None and torch.cuda.device_count() > 1 else "bert",
        max_steps=STEPS,
        logging_steps=LOGGING_STEPS,
        per_device_train_batch_size=2,
        save_strategy="steps",
        save_steps=STEPS,
        **chosen,
    )
    trainer.add_callback(waits.callback(library))
    rows_of_the_trace = 0
    session = trace(trainer, folder / "trace") if traced else contextlib.nullcontext()
    with session, waits.counted():
        trainer.train()
    if traced:
        rows_of_the_trace = sum(1 for _ in rows.read(session.path))  # type: ignore[union-attr]
    here.wait_for_all()
    history = [
        {key: value for key, value in entry.items() if not is_clock(key)} for entry in trainer.state.log_history
    ]
    # paths differ from run to run, so files that hold them are compared by what else they hold
    files = {name: value for name, value in plain_files(str(folder / "out")).items() if "training_args" not in name}
    left = {
        "weights": {name: str(plain(value)) for name, value in trainer.model.state_dict().items()},
        "optimizer": digest_of(repr(plain(trainer.optimizer.state_dict())).encode()),
        "random states": repr(plain_random()),
        "logs": repr(history),
        "files": repr({name: value for name, value in files.items() if not name.endswith("trainer_state.json")}),
    }
    return {"left": left, "waits": waits.by_step, "rows": rows_of_the_trace}


def is_clock(key: str) -> bool:
    """Whether a logged value was read from a clock."""
    return bool(re.search(r"_runtime$|_per_second$", key))


class Waits:
    """Counts, step by step, how often the host waited for a card.

    A step reaches from its `on_step_begin` to the next one's, its log included.
    """

    def __init__(self) -> None:
        self.count = 0
        self.marks: list[int] = []

    @property
    def by_step(self) -> list[int]:
        """Waits in each step."""
        return [after - before for before, after in zip(self.marks, self.marks[1:], strict=False)]

    def callback(self, library: Any) -> Any:
        """What tells one step from the next."""

        def mark(callback: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.marks.append(self.count)

        return type("Marks", (library.TrainerCallback,), {"on_step_begin": mark, "on_train_end": mark})()

    @contextlib.contextmanager
    def counted(self) -> Iterator[None]:
        """Let torch warn at every wait, and count the warnings."""

        def note(message: Any, *rest: Any, **more: Any) -> None:
            self.count += "synchroniz" in str(message)

        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = note
            if torch.cuda.is_available():
                torch.cuda.set_sync_debug_mode("warn")
            try:
                yield
            finally:
                if torch.cuda.is_available():
                    torch.cuda.set_sync_debug_mode("default")


# Read next: tests/gpu/talk.py
