"""Runs one Case with one library in a fresh folder and records an Observation.

The library is a module with the Trainer's public names: the real `transformers`, `minitrainer`, or a stand-in with a
planted difference. Both sides get the same seeds, the same relative paths, the same clean singletons and environment.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import gc
import glob
import inspect
import io
import itertools
import logging
import os
import random
import re
import signal
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import torch

from .cases import Case
from .observation import CLOCK, Failure, Observation, digest_of, is_clock, plain, plain_attributes, plain_files
from .subjects import (
    METRICS,
    PREPROCESS,
    PlannedCrash,
    build_collator,
    build_data,
    build_model,
    build_tokenizer,
    nudging_callback,
)

TIME_LIMIT_SECONDS = 30  # a run takes well under one; past this it hangs
FLAGS = ("should_training_stop", "should_epoch_stop", "should_save", "should_evaluate", "should_log")

# The 70 methods of the Trainer, less those whose number of calls nobody can rely on: the two predicates, and
# _prepare_input, which calls itself once for every leaf of a batch.
WATCHED_METHODS = (
    "add_callback",
    "pop_callback",
    "remove_callback",
    "_move_model_to_device",
    "_set_signature_columns_if_needed",
    "_remove_unused_columns",
    "_get_collator_with_removed_columns",
    "_get_train_sampler",
    "get_train_dataloader",
    "_get_eval_sampler",
    "get_eval_dataloader",
    "get_test_dataloader",
    "create_optimizer_and_scheduler",
    "create_optimizer",
    "get_optimizer_cls_and_kwargs",
    "create_scheduler",
    "num_examples",
    "_hp_search_setup",
    "_report_to_hp_search",
    "_tune_save_checkpoint",
    "call_model_init",
    "torch_jit_model_eval",
    "ipex_optimize_model",
    "_wrap_model",
    "train",
    "_inner_training_loop",
    "_get_output_dir",
    "_load_from_checkpoint",
    "_load_best_model",
    "_issue_warnings_after_load",
    "_maybe_log_save_evaluate",
    "_load_rng_state",
    "_save_checkpoint",
    "_load_optimizer_and_scheduler",
    "hyperparameter_search",
    "log",
    "_prepare_inputs",
    "compute_loss_context_manager",
    "autocast_smart_context_manager",
    "training_step",
    "compute_loss",
    "save_model",
    "_save_tpu",
    "_save",
    "store_flos",
    "_sorted_checkpoints",
    "_rotate_checkpoints",
    "evaluate",
    "predict",
    "evaluation_loop",
    "_nested_gather",
    "prediction_step",
    "floating_point_ops",
    "init_git_repo",
    "create_model_card",
    "_push_from_checkpoint",
    "push_to_hub",
    "prediction_loop",
    "_gather_and_numpify",
    "_add_sm_patterns_to_gitignore",
    "create_accelerator_and_postprocess",
    "_get_learning_rate",
    "log_metrics",
    "metrics_format",
    "save_metrics",
    "save_state",
)

RUNS = itertools.count(1)

# -- libraries -------------------------------------------------------------------------------------------------------


@dataclass
class Library:
    """The public names that a run needs, from one library.

    Attributes:
        name: How messages call it.
        trainer_files: Fragments of the paths in which its own exceptions are raised.
        old_loading: Whether it loads its own checkpoints by full unpickling, which newer torch must be told to allow.
    """

    name: str
    Trainer: type
    TrainingArguments: type
    TrainerCallback: type
    CallbackHandler: type
    EarlyStoppingCallback: type
    trainer_files: tuple[str, ...]
    old_loading: bool


@functools.cache
def real_library() -> Library:
    """The real transformers of this environment."""
    module = import_module("transformers")
    return Library(
        name="transformers",
        Trainer=module.Trainer,
        TrainingArguments=module.TrainingArguments,
        TrainerCallback=module.TrainerCallback,
        CallbackHandler=import_module("transformers.trainer_callback").CallbackHandler,
        EarlyStoppingCallback=module.EarlyStoppingCallback,
        trainer_files=("/transformers/trainer", "/transformers/training_args", "/transformers/integrations"),
        old_loading=True,
    )


@functools.cache
def our_library() -> Library:
    """minitrainer."""
    module = import_module("minitrainer")
    return Library(
        name="minitrainer",
        Trainer=module.Trainer,
        TrainingArguments=module.TrainingArguments,
        TrainerCallback=module.TrainerCallback,
        CallbackHandler=import_module("minitrainer.callbacks").CallbackHandler,
        EarlyStoppingCallback=module.EarlyStoppingCallback,
        trainer_files=("/minitrainer/",),
        old_loading=False,
    )


# -- one run ---------------------------------------------------------------------------------------------------------


def run_case(
    case: Case,
    library: Library,
    folder: str | None = None,
    settle: Callable[[], None] | None = None,
) -> Observation:
    """Run a case from a clean state and record what happens.

    Args:
        case: What to run.
        library: With what.
        folder: An existing empty folder to run in; a temporary one without it.
        settle: Called between the run and the look at its files; with several ranks, it waits for all of them.

    Returns:
        The observation. An exception of the run is part of it and is not raised.
    """
    started = time.perf_counter()
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="parity-"))
        stack.enter_context(working_in(folder))
        stack.enter_context(clean_process(library))
        printed = stack.enter_context(contextlib.redirect_stdout(io.StringIO()))
        stack.enter_context(contextlib.redirect_stderr(io.StringIO()))
        stack.enter_context(time_limit())
        run = Run(case, library)
        with run.watching_events():
            run.execute()
        run.flush_writers()
        observation = run.observation
        if settle is not None:
            settle()
        observation.files = plain_files("out") if os.path.isdir("out") else {}
    observation.stdout = plain_stdout(printed.getvalue())
    observation.seconds = time.perf_counter() - started
    runs_so_far = next(RUNS)
    if runs_so_far in (1, 4, 16) or runs_so_far % 64 == 0:
        # Every training run begins with a full garbage collection. Over the hundred thousand objects of the imported
        # libraries that takes 70 ms, most of a tiny run: hide what is alive by now from the collector.
        gc.collect()
        gc.freeze()
    return observation


class Run:
    """One execution: builds the Trainers, calls them, and writes the timeline."""

    def __init__(self, case: Case, library: Library) -> None:
        self.case = case
        self.library = library
        self.observation = Observation()
        self.trainer: Any = None
        self.depth = 0
        self.watched_class = watching_subclass(self)

    def note(self, kind: str, **values: Any) -> None:
        """Append one entry to the timeline."""
        self.observation.timeline.append({"kind": kind, "depth": self.depth, **values})

    # -- phases ------------------------------------------------------------------------------------------------------

    def flush_writers(self) -> None:
        """Let TensorBoard's threads write what they hold: a run that failed has not closed them."""
        for callback in self.trainer.callback_handler.callbacks if self.trainer is not None else ():
            writer = getattr(callback, "tb_writer", None)
            if writer is not None:
                writer.flush()

    def execute(self) -> None:
        """Run the case's calls, then its resumption."""
        case = self.case
        self.phase(case.args, case.calls, build=True)
        if case.resume is not None:
            self.phase(case.args | case.resume_args, ("resume",), build=not case.same_trainer or self.trainer is None)

    def phase(self, args: dict[str, Any], calls: tuple[str, ...], build: bool) -> None:
        """Build a Trainer where asked, make the calls in order, and record what is left of it."""
        set_seeds(self.case.seed)
        try:
            if build:
                self.flush_writers()
                self.trainer = None
                self.trainer = self.build(args)
            for call in calls:
                self.note("begin", call=call)
                self.note("result", call=call, value=plain(CALLS[call](self, self.trainer)))
        except Exception as error:  # every exception is an outcome to compare
            self.note("failure", failure=self.failure(error))
        self.depth = 0
        self.observation.final.append(self.leftovers())

    def build(self, args: dict[str, Any]) -> Any:
        """Build arguments, model, data and Trainer."""
        case = self.case
        values: dict[str, Any] = {"output_dir": "out", "logging_dir": "out/runs", "report_to": "none"}
        values |= {"disable_tqdm": True} | args
        if values["output_dir"].startswith("blocked/"):
            with open("blocked", "w", encoding="utf-8") as stream:
                stream.write("a file where a folder is wanted\n")
        arguments = self.library.TrainingArguments(**values)
        self.note("arguments", values=plain_attributes(arguments))
        options = self.model_options()
        options |= self.optimizer_options(options)
        callbacks = []
        if case.nudges or case.crash:
            callbacks.append(nudging_callback(self.library.TrainerCallback, case.nudges, case.crash))
        if case.early_stopping is not None:
            callbacks.append(self.library.EarlyStoppingCallback(*case.early_stopping))
        return self.watched_class(
            args=arguments,
            data_collator=build_collator(case),
            train_dataset=build_data(case, case.train, case.train_samples, case.seed + 100),
            eval_dataset=self.evaluation_data(),
            tokenizer=build_tokenizer() if case.tokenizer else None,
            compute_metrics=METRICS[case.metrics],
            preprocess_logits_for_metrics=PREPROCESS[case.preprocess],
            callbacks=callbacks or None,
            **options,
        )

    def evaluation_data(self) -> Any:
        """One evaluation set, or a dict of named ones."""
        case = self.case
        sets = [
            build_data(case, case.evaluation, count, case.seed + 200 + n) for n, count in enumerate(case.eval_samples)
        ]
        return sets[0] if len(sets) == 1 else {f"set{index}": each for index, each in enumerate(sets)}

    def model_options(self) -> dict[str, Any]:
        """The Trainer's arguments that say where its model comes from."""

        def fresh() -> Any:
            return build_model(self.case, self.saw_forward)

        def fresh_for(trial: Any) -> Any:
            self.note("model_init", trial=plain(trial))
            return fresh()

        sources: dict[str, dict[str, Any]] = {
            "init": {"model_init": fresh},
            "init_with_trial": {"model_init": fresh_for},
            "init_with_two": {"model_init": lambda one, two: fresh()},
            "init_returns_none": {"model_init": lambda: None},
            "neither": {},
        }
        if self.case.model_source in sources:
            return sources[self.case.model_source]
        options = {"model": fresh()}
        return options | {"model_init": fresh} if self.case.model_source == "both" else options

    def optimizer_options(self, options: dict[str, Any]) -> dict[str, Any]:
        """The `optimizers` that the user passes, if the case says so."""
        if self.case.own_optimizers == "none":
            return {}
        model = options.get("model") or build_model(self.case, self.saw_forward)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.5)
        scheduler = None
        if self.case.own_optimizers == "both":
            scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 0.9**step)
        return {"optimizers": (optimizer, scheduler)}

    # -- what is recorded --------------------------------------------------------------------------------------------

    def saw_forward(self, model: Any, inputs: dict[str, Any]) -> None:
        """Record one forward pass: mode, precision and every input, bit for bit."""
        self.note(
            "forward",
            training=model.training,
            gradients=torch.is_grad_enabled(),
            autocast=torch.is_autocast_cpu_enabled(),
            autocast_on_card=torch.is_autocast_enabled(),
            inputs=plain(inputs),
        )

    @contextlib.contextmanager
    def watching_events(self) -> Iterator[None]:
        """Wrap `CallbackHandler.call_event` for the time of the run: flags before and after the callbacks, and state.

        A flag that the Trainer lowered since the event before shows in `before`.
        """
        handler_class = self.library.CallbackHandler
        original = handler_class.call_event

        def call_event(handler: Any, event: str, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            before = [bool(getattr(control, flag)) for flag in FLAGS]
            entry = {
                "event": event,
                "before": before,
                "state": plain_state(state),
                "given": {key: plain(value) for key, value in kwargs.items()},
                "sees": {
                    name: type(getattr(handler, name)).__name__
                    for name in (
                        "model",
                        "tokenizer",
                        "optimizer",
                        "lr_scheduler",
                        "train_dataloader",
                        "eval_dataloader",
                    )
                },
                "random": random_digest(),
                "parameters": self.parameters_digest(handler.model),
            }
            self.note("event", **entry)
            at = len(self.observation.timeline) - 1
            result = original(handler, event, args, state, control, **kwargs)
            self.observation.timeline[at]["after"] = [bool(getattr(result, flag)) for flag in FLAGS]
            return result

        handler_class.call_event = call_event
        try:
            yield
        finally:
            handler_class.call_event = original

    def parameters_digest(self, model: Any) -> str:
        """One digest over all parameters and gradients."""
        parts = []
        for parameter in model.parameters() if model is not None else ():
            for tensor in (parameter, parameter.grad):
                if tensor is not None:
                    parts.append(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
                else:
                    parts.append(b"none")
        return digest_of(b"|".join(parts))

    def leftovers(self) -> dict[str, Any]:
        """What a Trainer holds at the end of its phase."""
        left: dict[str, Any] = {"random": plain_random()}
        trainer = self.trainer
        if trainer is None:
            return left
        left["state"] = plain(trainer.state) if hasattr(trainer, "state") else None
        left["control"] = [bool(getattr(trainer.control, flag)) for flag in FLAGS]
        left["parameters"] = {name: plain(value) for name, value in trainer.model.state_dict().items()}
        left["training_mode"] = trainer.model.training
        for name in ("optimizer", "lr_scheduler"):
            held = getattr(trainer, name)
            left[name] = None if held is None else {"<type>": type(held).__name__, "state": plain(held.state_dict())}
        left["callbacks"] = [type(each).__name__ for each in trainer.callback_handler.callbacks]
        left["attributes"] = plain_simple_attributes(trainer)
        left["arguments"] = plain_attributes(trainer.args)
        return left

    def failure(self, error: Exception) -> Failure:
        """Record an exception with the place that raised it."""
        if isinstance(error, PlannedCrash):
            return Failure("PlannedCrash", str(error), "test")
        frames = traceback.extract_tb(error.__traceback__)
        innermost = frames[-1].filename
        own = any(fragment in innermost for fragment in self.library.trainer_files)
        place = (
            "trainer" if own else re.sub(r"^.*/site-packages/|^.*/(?=(transformers|accelerate|torch)/)", "", innermost)
        )
        message = str(error)
        if "/gloo/transport/" in message:
            # Ranks that wait for each other give up at about the same moment; the first one to go closes its connections,
            # so that another is told of that, or of its own time-out.
            message = "gloo: another rank is gone, or does not answer"
        return Failure(type(error).__name__, message, place)


# -- calls -----------------------------------------------------------------------------------------------------------


def other_data(run: Run, count: int = 4, labels: bool = True) -> Any:
    """A data set that the Trainer was not built with."""
    case = run.case if labels else dataclasses.replace(run.case, labels=False)
    kind = "map" if run.case.evaluation == "none" else run.case.evaluation
    return build_data(case, kind, count, run.case.seed + 300)


def last_metrics(trainer: Any) -> dict[str, Any]:
    """Metrics as a script would pass them to the reporting methods, with readings that no clock gave."""
    logged = dict(trainer.state.log_history[-1]) if trainer.state.log_history else {}
    fixed = {key: 1.25 for key in logged if key.endswith(("_runtime", "_per_second"))}
    return logged | fixed | {"train_samples": 12, "total_flos": 3e9, "train_mem_gpu_alloc_delta": 5 << 20}


def resume_point(run: Run) -> Any:
    """What to pass as `resume_from_checkpoint`."""
    if run.case.resume == "last":
        return True
    if run.case.resume == "nowhere":
        return "out/checkpoint-999"
    if run.case.resume == "empty":
        os.makedirs("out/checkpoint-777", exist_ok=True)
        return "out/checkpoint-777"
    found = sorted(glob.glob("out/checkpoint-*"), key=lambda path: int(path.rsplit("-", 1)[1]))
    return found[run.case.resume % len(found)] if found else True  # type: ignore[operator]


def one_batch(trainer: Any) -> Any:
    """The first evaluation batch, as prediction_step receives it."""
    return next(iter(trainer.get_eval_dataloader()))


def mapped_by_main_first(run: Run, trainer: Any) -> list[bool]:
    """Map a data set as scripts do: the main process does the work, the others find it done."""
    found_done = []
    for local in (True, False):
        os.makedirs("out", exist_ok=True)
        done = f"out/mapped-{local}"
        with trainer.args.main_process_first(local=local, desc="mapping"):
            found_done.append(os.path.exists(done))
            if trainer.is_world_process_zero():
                with open(done, "w", encoding="utf-8") as stream:
                    stream.write("mapped\n")
    return found_done


CALLS: dict[str, Callable[[Run, Any], Any]] = {
    "train": lambda run, trainer: trainer.train(),
    "resume": lambda run, trainer: trainer.train(resume_from_checkpoint=resume_point(run)),
    "evaluate": lambda run, trainer: trainer.evaluate(),
    "evaluate_other": lambda run, trainer: trainer.evaluate(other_data(run), metric_key_prefix="other"),
    "predict": lambda run, trainer: trainer.predict(other_data(run)),
    "predict_ignoring": lambda run, trainer: trainer.predict(other_data(run), ignore_keys=["hidden"]),
    "predict_unlabelled": lambda run, trainer: trainer.predict(
        other_data(run, 3, labels=False), metric_key_prefix="p"
    ),
    "predict_nothing": lambda run, trainer: trainer.predict(other_data(run, 0)),
    "main_process_first": lambda run, trainer: mapped_by_main_first(run, trainer),
    "prediction_step": lambda run, trainer: trainer.prediction_step(trainer.model, one_batch(trainer), False),
    "save_model": lambda run, trainer: trainer.save_model(),
    "save_state": lambda run, trainer: trainer.save_state(),
    "log_metrics": lambda run, trainer: trainer.log_metrics("train", last_metrics(trainer)),
    "save_metrics": lambda run, trainer: trainer.save_metrics("train", last_metrics(trainer)),
    "create_model_card": lambda run, trainer: trainer.create_model_card(),
    "train_unknown_keyword": lambda run, trainer: trainer.train(surprise=1),
    "train_model_path": lambda run, trainer: trainer.train(model_path="out/checkpoint-999"),
    "train_then_search": lambda run, trainer: trainer.hyperparameter_search(n_trials=1),
}

# -- watching --------------------------------------------------------------------------------------------------------


def watching_subclass(run: Run) -> type:
    """A subclass of the library's Trainer in which each watched method notes its call first.

    It is what a user's overriding subclass would see: which methods run, in which order, one inside which.
    """
    members = {}
    for name in WATCHED_METHODS:
        original = inspect.getattr_static(run.library.Trainer, name)
        is_static = isinstance(original, staticmethod)
        members[name] = watching_method(run, name, original.__func__ if is_static else original, is_static)
    return type("Trainer", (run.library.Trainer,), members)


def watching_method(run: Run, name: str, original: Callable[..., Any], is_static: bool) -> Any:
    """Wrap one method."""

    @functools.wraps(original)
    def method(*args: Any, **kwargs: Any) -> Any:
        run.note("method", method=name)
        run.depth += 1
        if name == "_rotate_checkpoints" and args[0].args.save_total_limit:
            # rotation sorts by modification time, and file systems tick in steps of a few milliseconds
            time.sleep(0.006)
        try:
            return original(*args, **kwargs)
        finally:
            run.depth -= 1

    return staticmethod(method) if is_static else method


def plain_state(state: Any) -> dict[str, Any]:
    """The TrainerState, with the length of its log in place of the log."""
    values = {each.name: getattr(state, each.name) for each in dataclasses.fields(state)}
    return {name: len(value) if name == "log_history" else plain(value) for name, value in values.items()}


def plain_simple_attributes(trainer: Any) -> dict[str, Any]:
    """Every attribute of the Trainer: the value of a simple one, the class of any other."""
    simple = (bool, int, float, str, type(None), torch.Tensor, list)
    return {
        name: CLOCK if is_clock(name, value) else plain(value) if isinstance(value, simple) else type(value).__name__
        for name, value in sorted(vars(trainer).items())
    }


def random_digest() -> str:
    """One digest over all random states."""
    numpy_state: Any = np.random.get_state()
    parts = repr(random.getstate()).encode() + numpy_state[1].tobytes() + repr(numpy_state[2:]).encode()
    parts += b"".join(state.numpy().tobytes() for state in card_random_states())
    return digest_of(parts + torch.get_rng_state().numpy().tobytes())


def plain_random() -> dict[str, Any]:
    """The random states, one by one."""
    return {
        "python": digest_of(repr(random.getstate()).encode()),
        "numpy": plain(np.random.get_state()),
        "torch": plain(torch.get_rng_state()),
        "cards": plain(card_random_states()),
    }


def card_random_states() -> list[torch.Tensor]:
    """The random state of every graphics card that this process has used; none on a machine without."""
    return torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else []


def plain_stdout(text: str) -> list[str]:
    """Printed lines with the clock readings in them replaced."""
    readings = re.compile(r"('\w*(?:_runtime|_per_second|jit_compilation_time|_mem_\w+)': )[-+.\de]+")
    return [readings.sub(rf"\g<1>{CLOCK}", line).rstrip() for line in text.splitlines()]


# -- a clean process -------------------------------------------------------------------------------------------------


def set_seeds(seed: int) -> None:
    """Start all three generators from `seed`."""
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


@contextlib.contextmanager
def working_in(folder: str) -> Iterator[None]:
    """Work in `folder`, so that both sides write the same relative paths."""
    before = os.getcwd()
    os.chdir(folder)
    try:
        yield
    finally:
        os.chdir(before)


@contextlib.contextmanager
def clean_process(library: Library) -> Iterator[None]:
    """Give the run fresh singletons, environment and switches, and put back what it changed."""
    environment = dict(os.environ)
    os.environ.pop("ACCELERATE_MIXED_PRECISION", None)
    os.environ.pop("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", None)
    if library.old_loading:
        os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] = "1"  # it loads only the checkpoints of this very run
    reset_singletons()
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    default_dtype = torch.get_default_dtype()
    verbosity = import_module("transformers.utils.logging").get_verbosity()
    random_states = (random.getstate(), np.random.get_state(), torch.get_rng_state())
    torch.set_num_threads(1)
    logging.disable(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(logging.NOTSET)
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic)
        torch.set_default_dtype(default_dtype)
        import_module("transformers.utils.logging").set_verbosity(verbosity)
        random.setstate(random_states[0])
        np.random.set_state(random_states[1])
        torch.set_rng_state(random_states[2])
        reset_singletons()
        os.environ.clear()
        os.environ.update(environment)


def reset_singletons() -> None:
    """Forget what accelerate remembers for the whole process."""
    state = import_module("accelerate.state")
    state.AcceleratorState._reset_state(reset_partial_state=True)
    state.GradientState._reset_state()


class TimeLimit(BaseException):
    """The run did not end; not an Exception, so that nothing between here and there catches it."""


@contextlib.contextmanager
def time_limit() -> Iterator[None]:
    """Interrupt a run that hangs."""

    def interrupt(number: int, frame: Any) -> None:
        raise TimeLimit(f"the run had not ended after {TIME_LIMIT_SECONDS} s; it stood in {frame.f_code.co_name}")

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.alarm(TIME_LIMIT_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


# Read next: tests/parity/observation.py
