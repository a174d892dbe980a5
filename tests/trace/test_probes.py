"""What the probes see: authors of flags, samples, loss arithmetic, files, exceptions, on transformers and on ours."""

from __future__ import annotations

import contextlib
import copy
import os
import subprocess
import sys
import threading
import traceback
from pathlib import Path
from typing import Any

import pytest
import torch

from minitrainer.trace import events, read, run_script, trace, trace_library
from minitrainer.trace.errors import UsageError
from minitrainer.trace.rows import portable

from . import programs

pytestmark = pytest.mark.parametrize("name", programs.LIBRARIES)
HERE = Path(__file__).name


def recorded(path: Path) -> list[Any]:
    folder = path / "rank0.rows" if path.is_dir() else path
    reading = read(folder)
    records = list(reading)
    assert reading.complete and not reading.torn_bytes
    assert records[-1].rows == len(records) - 1
    assert not [record.text for record in records if type(record) is events.Note and "failed" in record.text]
    return records


def of(records: list[Any], kind: type) -> list[Any]:
    return [record for record in records if type(record) is kind]


# -- who changed a flag --------------------------------------------------------------------------------


def author_cases(library: Any) -> dict[str, Any]:
    """Twelve ways to change a flag: name to (callback, flag, expected `by`, expected `how`, whether a line is known)."""

    class Base(library.TrainerCallback):
        trainer: Any = None

    class Direct(Base):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_save = control.should_save or state.global_step == 1

    class Returning(Base):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_evaluate = control.should_evaluate or state.global_step == 1
            return control

    class Helper(Base):
        def _decide(self, control):
            control.should_save = True

        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 1:
                self._decide(control)

    def raise_save(control):
        control.should_save = True

    class Function(Base):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 1:
                raise_save(control)

    class Setattr(Base):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 1:
                setattr(control, "should_save", True)  # noqa: B010  (this spelling is the case)

    class Copied(Base):
        def on_step_end(self, args, state, control, **kwargs):
            new = copy.copy(control)
            new.should_save = new.should_save or state.global_step == 1
            return new

    class Built(Base):
        def on_step_end(self, args, state, control, **kwargs):
            return library.TrainerControl(should_save=True) if state.global_step == 1 else control

    class Through(Base):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 1:
                self.trainer.control.should_save = True

    class Bypassed(Base):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 1:
                control.__dict__["should_save"] = True

    class Stopping(Base):
        def on_substep_end(self, args, state, control, **kwargs):
            if state.global_step == 1:
                control.should_epoch_stop = True

    class Inherited(Direct):
        pass

    class Calling(Direct):
        def on_step_end(self, args, state, control, **kwargs):
            super().on_step_end(args, state, control, **kwargs)

    return {
        "direct": (Direct, "should_save", "Direct.on_step_end", "set", True),
        "returned": (Returning, "should_evaluate", "Returning.on_step_end", "set", True),
        "helper method": (Helper, "should_save", "Helper._decide", "set", True),
        "helper function": (Function, "should_save", "Function.on_step_end", "set", True),
        "setattr": (Setattr, "should_save", "Setattr.on_step_end", "set", True),
        "copied control": (Copied, "should_save", "Copied.on_step_end", "replaced", True),
        "new control": (Built, "should_save", "Built.on_step_end", "replaced", True),
        "trainer.control": (Through, "should_save", "Through.on_step_end", "trainer.control", True),
        "__dict__": (Bypassed, "should_save", "Bypassed.on_step_end", "__dict__", False),
        "other event": (Stopping, "should_epoch_stop", "Stopping.on_substep_end", "set", True),
        "inherited": (Inherited, "should_save", "Inherited.on_step_end", "set", True),
        "super": (Calling, "should_save", "Calling.on_step_end", "set", True),
    }


CASES = list(author_cases(programs.library_named("minitrainer")))


@pytest.mark.parametrize("case", CASES)
def test_every_change_of_a_flag_has_its_author(name: str, case: str, tmp_path: Path) -> None:
    library = programs.library_named(name)
    cls, flag, by, how, line_is_known = author_cases(library)[case]
    callback = cls()
    trainer = programs.trainer(
        library,
        tmp_path / "out",
        callbacks=[callback],
        gradient_accumulation_steps=2,
        logging_strategy="no",
        max_steps=2,
    )
    callback.trainer = trainer
    with trace(trainer, tmp_path / "trace"):
        trainer.train()
    records = recorded(tmp_path / "trace")
    found = [r for r in of(records, events.Flag) if r.by.startswith(cls.__name__)][:1]
    assert [(r.flag, r.old, r.new, r.by, r.how) for r in found] == [(flag, False, True, by, how)]
    if line_is_known:
        assert found[0].file.endswith(HERE)
        source = Path(__file__).read_text().splitlines()[found[0].line - 1]
        assert "should_" in source, source
    else:
        assert (found[0].file, found[0].line) == ("", 0)
    # the flags at the end of the event are what the Trainer then acts on
    event = next(r for r in of(records, events.EventEnd) if flag in r.raised)
    assert event.event in ("on_step_end", "on_substep_end")


def test_the_handler_and_the_flow_are_named(name: str, tmp_path: Path) -> None:
    library = programs.library_named(name)
    trainer = programs.trainer(library, tmp_path / "out", evaluation_strategy="steps", eval_steps=2, save_steps=2)
    with trace(trainer, tmp_path / "trace"):
        trainer.train()
    records = recorded(tmp_path / "trace")
    changes = {(r.flag, r.new, r.by) for r in of(records, events.Flag)}
    assert {
        ("should_log", True, "DefaultFlowCallback.on_step_end"),
        ("should_log", False, "CallbackHandler.on_log"),
        ("should_evaluate", False, "CallbackHandler.on_evaluate"),
        ("should_save", False, "CallbackHandler.on_save"),
    } <= changes
    lowered = {(r.event, tuple(r.lowered)) for r in of(records, events.Event) if r.lowered}
    assert ("on_log", ("should_log",)) in lowered and ("on_save", ("should_save",)) in lowered
    steps = [r for r in of(records, events.State) if r.field == "global_step"]
    assert [(r.old, r.new) for r in steps] == [(0, 1), (1, 2), (2, 3), (3, 4)]
    flat = list(portable(records))
    assert all(
        r.by.startswith("Trainer._inner_training_loop") for r in flat if getattr(r, "field", "") == "global_step"
    )


# -- numbers ---------------------------------------------------------------------------------------------


def test_the_loss_is_derived_from_its_micro_batches(name: str, tmp_path: Path) -> None:
    library = programs.library_named(name)
    trainer = programs.trainer(
        library,
        tmp_path / "out",
        rows=22,
        gradient_accumulation_steps=3,
        evaluation_strategy="epoch",
        num_train_epochs=2,
    )
    with trace(trainer, tmp_path / "trace"):
        outcome = trainer.train()
    records = recorded(tmp_path / "trace")
    losses, (total,) = of(records, events.Loss), of(records, events.TrainLoss)
    assert losses and all(record.verified for record in losses) and total.verified
    assert all(len(r.micro) == len(r.losses) == len(r.rows) for r in losses)
    assert total.logged == outcome.training_loss
    evaluations = of(records, events.EvalLoss)
    assert len(evaluations) == 2 and all(r.verified and r.kept == 6 for r in evaluations)
    assert [r.what for r in of(records, events.Gather)][:2] == ["loss", "loss"] or of(records, events.Gather)
    norms = of(records, events.GradNorm)
    assert len(norms) == len(of(records, events.OptimizerStep)) == len(of(records, events.SchedulerStep)) > 0
    assert all(r.clipped is (r.norm > r.max_norm) for r in norms)


def test_losses_that_are_not_finite_are_followed(name: str, tmp_path: Path) -> None:
    library = programs.library_named(name)
    labels = [0.5] * 4 + [float("nan")] * 4 + [0.25] * 4 + [float("inf")] * 4

    class Sequential(library.Trainer):
        def _get_train_sampler(self, *args):
            return torch.utils.data.SequentialSampler(self.train_dataset)

    trainer = programs.trainer(
        library,
        tmp_path / "out",
        cls=Sequential,
        labels=labels,
        model=programs.Scripted(),
        gradient_accumulation_steps=2,
        logging_steps=1,
    )
    with trace(trainer, tmp_path / "trace"):
        trainer.train()
    first, second = of(recorded(tmp_path / "trace"), events.Loss)
    assert (first.micro, first.filtered, first.filter_divisors) == ([0.25, "nan"], [1], [1])
    assert (second.micro, second.filtered) == ([0.125, "inf"], [1])
    assert first.verified and second.verified
    assert first.rank_sum == 0.5


def test_samples_are_known_by_their_positions(name: str, tmp_path: Path) -> None:
    library = programs.library_named(name)
    trainer = programs.trainer(library, tmp_path / "out", rows=10)
    with trace(trainer, tmp_path / "trace"):
        trainer.train()
        trainer.evaluate()
    samples = of(recorded(tmp_path / "trace"), events.Samples)
    trained = [r for r in samples if r.split == "train"]
    assert [r.rows for r in trained] == [4, 4, 2]
    assert sorted(i for r in trained for i in r.indices) == list(range(10))
    assert [r.indices for r in samples if r.split == "eval"] == [[0, 1, 2, 3], [4, 5]]
    assert len({r.digest for r in samples}) == 5 and all(r.labels == r.rows for r in samples)


@pytest.mark.parametrize("as_on_a_card", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_workers_do_not_disturb_the_positions(
    name: str, workers: int, as_on_a_card: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = programs.library_named(name)
    trainer = programs.trainer(library, tmp_path / "out", rows=40, dataloader_num_workers=workers)
    with monkeypatch.context() as patch:
        if as_on_a_card:
            patch.setattr("torch.cuda.is_available", lambda: True)  # it decides what is hooked
        recording = trace(trainer, tmp_path / "trace").start()
    trainer.train()
    recording.stop()
    data = programs.Numbers(40)
    for record in of(recorded(tmp_path / "trace"), events.Samples):
        assert len(record.indices) == record.rows
        x, labels = data.x[record.indices], data.labels[record.indices]
        from minitrainer.trace.batches import Batches

        digest = Batches(torch).identify({"x": x, "labels": labels}, "labels")[2]
        assert f"{digest:08x}" == record.digest


def test_an_optimizer_that_accelerate_has_not_prepared_is_seen(name: str, tmp_path: Path) -> None:
    """With DataParallel (which on a processor only passes through) the Trainer keeps its optimizer to itself."""
    library = programs.library_named(name)

    class Wrapping(library.Trainer):
        def _wrap_model(self, model, training=True, dataloader=None):  # type: ignore[no-untyped-def]
            return torch.nn.DataParallel(model) if training else model

    trainer = programs.trainer(library, tmp_path / "out", cls=Wrapping)
    with trace(trainer, tmp_path / "trace"):
        trainer.train()
    records = recorded(tmp_path / "trace")
    steps, schedule = of(records, events.OptimizerStep), of(records, events.SchedulerStep)
    assert len(steps) == trainer.state.global_step > 1 and not of(records, events.Note)
    rates = [schedule[0].lr, *(step.lr for step in schedule)]
    assert [step.lr for step in steps[1:]] == rates[1:-1]
    from torch.optim import optimizer as torchs

    assert not torchs._global_optimizer_post_hooks  # gone with the trace


# -- files, resuming, exceptions --------------------------------------------------------------------------


def test_files_and_random_states(name: str, tmp_path: Path) -> None:
    library = programs.library_named(name)
    settings = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}
    trainer = programs.trainer(library, tmp_path / "out", **settings)
    with trace(trainer, tmp_path / "trace"):
        trainer.train()
    files = of(recorded(tmp_path / "trace"), events.File)
    written = {r.path for r in files if r.action == "write"}
    there = {str(p.relative_to(tmp_path / "out")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    removed = {r.path for r in files if r.action == "remove"}
    assert written - removed == there and any(path.startswith("checkpoint-1/") for path in removed)
    sizes = {r.path: r.size for r in files if r.action == "write"}
    assert all(sizes[path] == (tmp_path / "out" / path).stat().st_size for path in there)

    again = programs.trainer(library, tmp_path / "out", num_train_epochs=2, **settings)
    with trace(again, tmp_path / "again"):
        again.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    (restored,) = list(of(recorded(tmp_path / "again"), events.Rng))[:1]
    assert restored.source == "checkpoint-4" and len(restored.digest) == 8


class Trouble(Exception):
    pass


def test_an_exception_is_recorded_and_passes_untouched(name: str, tmp_path: Path) -> None:
    library = programs.library_named(name)

    class Failing(library.Trainer):
        def compute_loss(self, model, inputs, *args, **kwargs):
            if self.state.global_step == 2:
                raise trouble
            return super().compute_loss(model, inputs, *args, **kwargs)

    trouble = Trouble(f"no such file: {tmp_path}/secret/data.txt")

    def frames(traced: bool) -> list[str]:
        trainer = programs.trainer(library, tmp_path / "out", cls=Failing)
        trouble.__traceback__ = None
        try:
            if traced:
                with trace(trainer, tmp_path / "trace"):
                    trainer.train()
            else:
                trainer.train()
        except Trouble as error:
            assert error is trouble and error.__context__ is None and error.__cause__ is None
            return [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        raise AssertionError("it did not raise")

    assert frames(traced=True) == frames(traced=False)
    records = recorded(tmp_path / "trace")
    raised = of(records, events.Raise)
    assert [r.method for r in raised if not r.method.startswith("_run")][0] == "compute_loss"
    assert raised[-1].method == "train" and {r.error for r in raised} == {"Trouble"}
    assert all(r.message == "no such file: data.txt" for r in raised)


def test_a_callback_gets_the_keywords_that_its_caller_passed(name: str, tmp_path: Path) -> None:
    """Whether the handler calls it or somebody else, in a callback or outside, with all of them, some or none."""
    library = programs.library_named(name)
    calls = ({}, {"eval_dataloader": 1}, {"model": 2, "eval_dataloader": None}, {"other": 3}, {"model": 4, "other": 5})

    class Called(library.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            seen.append(kwargs)

    class Calling(library.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            for keywords in calls:
                called.on_step_end(args, state, control, **keywords)

    found = []
    for path in (None, tmp_path / "a.rows"):
        seen: list[dict[str, Any]] = []
        called = Called()
        trainer = programs.trainer(library, tmp_path / "out", max_steps=1, callbacks=[Calling(), called])
        with trace(trainer, path) if path else contextlib.nullcontext():
            trainer.train()
            for keywords in calls:
                called.on_step_end(trainer.args, trainer.state, trainer.control, **keywords)
        handlers = seen.pop(len(calls))
        assert seen == [*calls, *calls]
        found.append({key: type(value) for key, value in handlers.items()})
    assert found[0] == found[1] and len(found[0]) > 4
    recorded(tmp_path / "a.rows")


def test_an_exception_in_a_callback_closes_its_scopes(name: str, tmp_path: Path) -> None:
    library = programs.library_named(name)

    class Failing(library.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            raise Trouble("here")

    trainer = programs.trainer(library, tmp_path / "out", callbacks=[Failing()])
    with pytest.raises(Trouble), trace(trainer, tmp_path / "trace"):
        trainer.train()
    raised = of(recorded(tmp_path / "trace"), events.Raise)
    assert [(r.scope, r.method) for r in raised[:2]] == [("callback", "Failing"), ("event", "on_step_end")]
    assert raised[-1].method == "train" and raised[-1].depth == 0


# -- which Trainers ---------------------------------------------------------------------------------------


def test_overridden_methods_and_their_supers_nest(name: str, tmp_path: Path) -> None:
    library = programs.library_named(name)

    class Mixin:
        def extra(self):
            return 1

    class Mine(Mixin, library.Trainer):
        def training_step(self, *args, **kwargs):
            self.extra()
            return super().training_step(*args, **kwargs)

        def compute_loss(self, model, inputs, return_outputs=False, **kwargs):
            return super().compute_loss(model, inputs, return_outputs=return_outputs, **kwargs)

    trainer = programs.trainer(library, tmp_path / "out", cls=Mine, rows=4, max_steps=1)
    with trace(trainer, tmp_path / "trace"):
        trainer.train()
    records = recorded(tmp_path / "trace")
    calls = [(r.cls, r.method) for r in of(records, events.Call)]
    i = calls.index(("Mine", "training_step"))
    assert calls[i : i + 3] == [("Mine", "training_step"), ("Mixin", "extra"), ("Trainer", "training_step")]
    assert ("Mine", "compute_loss") in calls and ("Trainer", "compute_loss") in calls
    assert len(of(records, events.Samples)) == 1 and len(of(records, events.TrainLoss)) == 1
    begun = of(records, events.TrainerBegin)[0]
    assert [c.rpartition(".")[2] for c in begun.classes][0] == "Mine" and begun.classes[-1].endswith("Trainer")


def test_two_trainers_in_one_process_do_not_mix(name: str, tmp_path: Path) -> None:
    library = programs.library_named(name)
    one = programs.trainer(library, tmp_path / "one", rows=4)
    two = programs.trainer(library, tmp_path / "two", rows=12)
    with trace(one, tmp_path / "a"), trace(two, tmp_path / "b"):
        two.train()
        one.train()
    with trace(one, tmp_path / "c"):
        two.train()
    assert len(of(recorded(tmp_path / "a"), events.OptimizerStep)) == 1
    assert len(of(recorded(tmp_path / "b"), events.OptimizerStep)) == 3
    assert [type(r) for r in recorded(tmp_path / "c")] == [events.Head, events.TrainerBegin, events.End]


def test_a_library_trace_sees_construction_and_every_trainer(name: str, tmp_path: Path) -> None:
    library = programs.library_named(name)
    with trace_library(name, tmp_path / "trace", scenario="two"):

        class Defined(library.Trainer):
            def floating_point_ops(self, inputs):
                return super().floating_point_ops(inputs)

        programs.trainer(library, tmp_path / "one", rows=4).train()
        second = programs.trainer(library, tmp_path / "two", rows=4, cls=Defined)
        second.train()
    records = recorded(tmp_path / "trace")
    assert records[0].scenario == "two"
    assert [r.trainer for r in of(records, events.TrainerBegin)] == [0, 1]
    assert [r.trainer for r in of(records, events.Focus)] == [1]
    calls = [(r.cls, r.method) for r in of(records, events.Call)]
    assert calls[0] == ("Trainer", "__init__") and ("Defined", "floating_point_ops") in calls
    assert any(r.event == "on_init_end" for r in of(records, events.Event))


def test_fields_of_two_states_do_not_mix(name: str, tmp_path: Path) -> None:
    """The same line of code writes a field of one Trainer's state and then of another's, which did not have it."""
    library = programs.library_named(name)
    with trace_library(name, tmp_path / "trace"):

        class Counting(library.Trainer):
            def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
                self.state.evaluations = getattr(self.state, "evaluations", 0.0) + 0.5
                return super().evaluate(*args, **kwargs)

        one, two = (programs.trainer(library, tmp_path / folder, cls=Counting) for folder in ("one", "two"))
        for trainer in (one, one, two, one):
            trainer.evaluate()
    assert (one.state.evaluations, two.state.evaluations) == (1.5, 0.5)
    written = [(r.old, r.new) for r in of(recorded(tmp_path / "trace"), events.State) if r.field == "evaluations"]
    assert written == [(None, 0.5), (0.5, 1.0), (None, 0.5), (1.0, 1.5)]


def test_a_hook_that_fails_says_so_once_and_leaves_the_training_alone(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    library = programs.library_named(name)
    without = programs.trainer(library, tmp_path / "without").train().training_loss
    monkeypatch.setattr("minitrainer.trace.probes.keep", lambda tensor: 1 / 0)
    trainer = programs.trainer(library, tmp_path / "with")
    with trace(trainer, tmp_path / "trace"):
        assert trainer.train().training_loss == without
    records = list(read(tmp_path / "trace" / "rank0.rows"))
    failed = "the hook at {} failed (ZeroDivisionError: division by zero); its rows are missing"
    hooks = ("compute_loss_ends", "training_step_ends")
    assert [r.text for r in of(records, events.Note)] == [failed.format(hook) for hook in hooks]
    calls = [r.method for r in of(records, events.Call)]
    assert calls.count("compute_loss") == calls.count("training_step") == 4


def test_other_threads_leave_no_rows(name: str, tmp_path: Path) -> None:
    library = programs.library_named(name)

    class Asking(library.TrainerCallback):
        trainer: Any = None

        def on_step_end(self, args, state, control, **kwargs):
            thread = threading.Thread(target=self.trainer.is_world_process_zero)
            thread.start()
            thread.join()

    callback = Asking()
    trainer = programs.trainer(library, tmp_path / "out", callbacks=[callback])
    callback.trainer = trainer
    with trace(trainer, tmp_path / "trace"):
        trainer.train()
    calls = [r.method for r in of(recorded(tmp_path / "trace"), events.Call)]
    assert calls.count("is_world_process_zero") <= 3


def test_what_is_not_a_trainer_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="not a Trainer"):
        trace(object(), tmp_path).start()


def test_attaching_and_detaching_is_quick(name: str, tmp_path: Path) -> None:
    import time

    trainer = programs.trainer(programs.library_named(name), tmp_path / "out")
    times = []
    for i in range(5):
        begin = time.process_time()
        with trace(trainer, tmp_path / str(i)):
            pass
        times.append(time.process_time() - begin)
    assert min(times) < 0.03  # seconds of this process; the first compiles the wrappers


# -- scripts and ranks -------------------------------------------------------------------------------------

SCRIPT = """
import sys
from pathlib import Path
from {library} import Trainer, TrainingArguments
sys.path.insert(0, {root!r})
import {library} as library
from tests.trace import programs
assert __name__ == "__main__" and sys.argv[0].endswith("user.py")
class Mine(Trainer):
    def compute_loss(self, *args, **kwargs):
        return super().compute_loss(*args, **kwargs)
programs.trainer(library, Path(sys.argv[1]), cls=Mine, rows=int(sys.argv[2])).train()
"""
ROOT = str(Path(__file__).parents[2])


def script(folder: Path, name: str) -> Path:
    path = folder / "user.py"
    path.write_text(SCRIPT.format(library=name, root=ROOT))
    return path


def run_under(folder: Path, name: str, rank: int | None = None, port: int = 0) -> subprocess.Popen[bytes]:
    code = (
        "import sys; sys.path.insert(0, {root!r})\n"
        "from minitrainer.trace import run_script\n"
        "from minitrainer.trace.worker import leave_group\n"
        "status = run_script({script!r}, [{out!r}, '20'], {trace!r})\n"
        "leave_group()\n"
        "sys.exit(status)"
    ).format(root=ROOT, script=str(script(folder, name)), out=str(folder / "out"), trace=str(folder / "trace"))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    if rank is not None:
        environment |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": "2",
            "LOCAL_WORLD_SIZE": "2",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
            "CUDA_VISIBLE_DEVICES": "",
        }
    return subprocess.Popen([sys.executable, "-c", code], env=environment, cwd=folder)


def test_an_unchanged_script_is_traced(name: str, tmp_path: Path) -> None:
    assert run_under(tmp_path, name).wait(timeout=300) == 0
    records = recorded(tmp_path / "trace")
    assert records[0].scenario == "user.py"
    assert ("Mine", "compute_loss") in [(r.cls, r.method) for r in of(records, events.Call)]
    assert all(r.verified for r in of(records, events.Loss)) and of(records, events.Loss)


@pytest.mark.slow
def test_two_ranks_write_a_file_each_and_agree(name: str, tmp_path: Path) -> None:
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    script(tmp_path, name)
    ranks = [run_under(tmp_path, name, rank, port) for rank in (0, 1)]
    assert [process.wait(timeout=500) for process in ranks] == [0, 0]
    zero, one = (recorded(tmp_path / "trace" / f"rank{rank}.rows") for rank in (0, 1))
    assert (zero[0].rank, one[0].rank, one[0].world_size) == (0, 1, 2)
    for mine, theirs in zip(of(zero, events.Loss), of(one, events.Loss), strict=True):
        assert mine.verified and theirs.verified
        assert mine.gathered == theirs.gathered and len(mine.gathered) == 2
        assert (mine.rank_sum, theirs.rank_sum) == tuple(mine.gathered)
    seen = [i for records in (zero, one) for r in of(records, events.Samples) for i in r.indices]
    assert set(seen) == set(range(20))
    assert of(zero, events.Loss)


def test_a_script_without_a_trainer_is_told_so(name: str, tmp_path: Path) -> None:
    (tmp_path / "empty.py").write_text("import sys\nsys.argv\n")
    if "transformers.trainer" not in sys.modules and "minitrainer.trainer" not in sys.modules:
        with pytest.raises(UsageError, match="imported no Trainer"):
            run_script(tmp_path / "empty.py", [], tmp_path / "trace")
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit(7)\n")
    assert run_script(tmp_path / "leaving.py", [], tmp_path / "trace") == 7
    with pytest.raises(UsageError, match="no such script"):
        run_script(tmp_path / "missing.py", [], tmp_path / "trace")


# Read next: ../benchmarks/trace_cost.py, what all this costs.


def test_a_callback_may_end_the_trace(name, tmp_path):
    """What was entered before the end returns through its wrapper; the training goes on to its end."""
    library = programs.library_named(name)
    sessions = []

    class Ends(library.TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if state.global_step == 2:
                sessions[0].stop()

    trainer = programs.trainer(library, tmp_path / "out", max_steps=4, callbacks=[Ends()])
    sessions.append(trace(trainer, tmp_path / "trace").start())
    trainer.train()
    assert trainer.state.global_step == 4
    steps = [record.step for record in of(recorded(tmp_path / "trace"), events.Event) if record.event == "on_step_end"]
    assert steps == [1, 2]
