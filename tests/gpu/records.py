"""Traces to keep: one run of the real Trainer and one of ours, in the portable form that two equal runs share."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from minitrainer.trace import rows, session
from tests.parity.run import our_library, real_library

from . import program

if TYPE_CHECKING:
    from .worker import Here


def of_both(here: Here) -> dict[str, Any]:
    """Record the run with both libraries into `traces/LIBRARY/rankN.jsonl` of this group's folder."""
    found = {}
    scenario = "cards-apart" if here.meeting is not None else "cards-together"
    for library in (real_library(), our_library()):
        module = import_module(library.name)
        target = here.folder / "traces" / library.name
        target.mkdir(parents=True, exist_ok=True)
        with here.one_run(library) as folder:
            with session.trace_library(library.name, folder / "trace", scenario=scenario) as recording:
                trainer = program.trainer(
                    module,
                    folder / "out",
                    hidden=32,
                    layers=1,
                    train_samples=13,
                    eval_samples=5,
                    num_train_epochs=2,
                    per_device_train_batch_size=2,
                    per_device_eval_batch_size=2,
                    gradient_accumulation_steps=2,
                    logging_steps=1,
                    evaluation_strategy="epoch",
                    save_strategy="epoch",
                )
                trainer.train()
            here.wait_for_all()
        kept = target / f"rank{here.rank}.jsonl"
        rows.write_canonical(rows.read(recording.path), kept, level="portable")
        found[library.name] = {"file": str(kept), "steps": trainer.state.global_step}
    return found


# Read next: tests/gpu/shards.py
