"""A traced run and an untraced one are the same run: weights, optimizer, random states, logs, every byte of every file."""

from __future__ import annotations

import hashlib
import inspect
import json
import random
import re
import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from minitrainer.trace import read, trace, trace_library
from minitrainer.trace.rows import canonical, encode_canonical

from . import programs

CLOCK = re.compile(r"_runtime|_per_second")


def run(library: Any, folder: Path, traced: Path | None, **given: Any) -> dict[str, Any]:
    """Train, evaluate and predict; return all that came of it, as digests and numbers."""
    shutil.rmtree(folder, ignore_errors=True)
    random.seed(5)
    numpy.random.seed(5)
    torch.manual_seed(5)
    trainer = programs.trainer(library, folder, **given)
    if traced is None:
        outcome, metrics = trainer.train(), trainer.evaluate()
        predictions = trainer.predict(programs.Numbers(5, seed=3)).predictions
    else:
        with trace(trainer, traced):
            outcome, metrics = trainer.train(), trainer.evaluate()
            predictions = trainer.predict(programs.Numbers(5, seed=3)).predictions
    return {
        "weights": {name: value.tolist() for name, value in trainer.model.state_dict().items()},
        "optimizer": str(trainer.optimizer.state_dict()),
        "scheduler": str(trainer.lr_scheduler.state_dict()),
        "random": digest(str(random.getstate())),
        "numpy": digest(str(numpy.random.get_state())),
        "torch": torch.get_rng_state().tolist(),
        "loss": outcome.training_loss,
        "metrics": without_clock(metrics),
        "predictions": predictions.tolist(),
        "logs": [without_clock(entry) for entry in trainer.state.log_history],
        "files": files(folder),
        "attributes": sorted(vars(trainer)),
        "callbacks": [sorted(vars(callback)) for callback in trainer.callback_handler.callbacks],
    }


def without_clock(entry: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in entry.items() if not CLOCK.search(key)}


def digest(text: str | bytes) -> str:
    return hashlib.sha256(text.encode() if isinstance(text, str) else text).hexdigest()


def files(folder: Path) -> dict[str, str]:
    """Digest of every file; clock values are taken out of the state."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            content: str | bytes = path.read_bytes()
            if path.name == "trainer_state.json":
                state = json.loads(content)
                state["log_history"] = [without_clock(entry) for entry in state["log_history"]]
                content = json.dumps(state)
            found[str(path.relative_to(folder))] = digest(content)
    return found


@pytest.mark.parametrize("name", programs.LIBRARIES)
@settings(max_examples=6)
@given(data=st.data())
def test_a_traced_run_is_the_same_run(name: str, data: st.DataObject) -> None:
    import tempfile

    library = programs.library_named(name)
    draw = data.draw
    given: dict[str, Any] = {
        "rows": draw(st.integers(3, 20)),
        "eval_rows": draw(st.integers(1, 9)),
        "gradient_accumulation_steps": draw(st.integers(1, 3)),
        "per_device_train_batch_size": draw(st.integers(1, 4)),
        "logging_steps": draw(st.integers(1, 3)),
        "evaluation_strategy": draw(st.sampled_from(["no", "epoch"])),
        "save_strategy": "epoch",
        "max_grad_norm": draw(st.sampled_from([0.0, 0.1, 1.0])),
        "num_train_epochs": draw(st.sampled_from([1, 1.5, 2])),
        "lr_scheduler_type": draw(st.sampled_from(["linear", "cosine", "constant"])),
        "logging_nan_inf_filter": draw(st.booleans()),
    }
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "out"
        plain_run = run(library, folder, None, **given)
        traced_run = run(library, folder, Path(place) / "trace", **given)
        for key, value in plain_run.items():
            assert traced_run[key] == value, key
        assert plain_run["files"]
        reading = read(Path(place) / "trace" / "rank0.rows")
        assert len(list(reading)) > 50 and reading.complete


@pytest.mark.parametrize("name", programs.LIBRARIES)
def test_two_runs_give_the_same_canonical_trace(name: str, tmp_path: Path) -> None:
    library = programs.library_named(name)
    traces = []
    for i in range(2):
        folder = tmp_path / f"out{i}"
        run(
            library,
            folder,
            tmp_path / f"trace{i}",
            evaluation_strategy="epoch",
            save_strategy="epoch",
            num_train_epochs=2,
        )
        records = read(tmp_path / f"trace{i}" / "rank0.rows")
        traces.append(b"\n".join(map(encode_canonical, canonical(records))))
    assert traces[0] == traces[1]
    assert str(tmp_path).encode() not in traces[0] and traces[0].count(b"\n") > 100


def everything_patched(library: Any) -> dict[tuple[str, str], Any]:
    """Every attribute of every class that the trace touches, as it is now."""
    import accelerate
    import torch.utils.data.dataloader as loader
    from accelerate.optimizer import AcceleratedOptimizer

    root = library.Trainer
    handler = inspect.getmodule(next(c for c in root.__mro__ if c.__name__ == "Trainer"))
    owners: list[Any] = [*root.__mro__[:-1], accelerate.Accelerator, AcceleratedOptimizer, loader._BaseDataLoaderIter]
    owners += [
        library.TrainerCallback,
        library.TrainerControl,
        library.TrainerState,
        torch.optim.lr_scheduler.LRScheduler,
    ]
    owners += [
        library.Trainer.__init__.__globals__["CallbackHandler"],
        library.Trainer.__init__.__globals__["DefaultFlowCallback"],
    ]
    assert handler is not None
    return {(owner.__name__, name): value for owner in owners for name, value in vars(owner).items()} | {
        (handler.__name__, name): value for name, value in vars(handler).items() if callable(value)
    }


@pytest.mark.parametrize("name", programs.LIBRARIES)
def test_detaching_restores_every_attribute(name: str, tmp_path: Path) -> None:
    library = programs.library_named(name)
    trainer = programs.trainer(library, tmp_path / "out")
    before = everything_patched(library)
    with trace(trainer, tmp_path / "a"):
        assert everything_patched(library) != before
        trainer.train()
    assert _same(everything_patched(library), before)
    with trace_library(library, tmp_path / "b"):
        programs.trainer(library, tmp_path / "out").train()
    assert _same(everything_patched(library), before)


def _same(one: dict[Any, Any], other: dict[Any, Any]) -> bool:
    assert one.keys() == other.keys()
    for key, value in one.items():
        assert value is other[key] or key[1] in ("__dict__", "__weakref__", "__doc__"), key
    return True


@pytest.mark.parametrize("name", programs.LIBRARIES)
def test_signatures_and_names_of_hooked_methods_are_the_originals(name: str, tmp_path: Path) -> None:
    library = programs.library_named(name)
    trainer = programs.trainer(library, tmp_path / "out")
    methods = [m for m in dir(trainer) if not m.startswith("__") and inspect.ismethod(getattr(trainer, m))]
    before = {m: (inspect.signature(getattr(trainer, m)), getattr(trainer, m).__qualname__) for m in methods}
    with trace(trainer, tmp_path / "a"):
        after = {m: (inspect.signature(getattr(trainer, m)), getattr(trainer, m).__qualname__) for m in methods}
        with pytest.raises(TypeError, match=r"training_step\(\) missing"):
            trainer.training_step()
    assert after == before and len(before) >= 60


# Read next: test_probes.py
