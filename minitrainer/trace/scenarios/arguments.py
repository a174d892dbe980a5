"""From the words of a command line to a scenario's arguments, whichever version of the library takes them.

Every field of the library's own `TrainingArguments` is a flag, as in upstream's example scripts:
`--learning_rate 1e-3`, `--load_best_model_at_end`, `--report_to tensorboard wandb`. A file `args.json` may stand for
any of them.
"""

from __future__ import annotations

import dataclasses
import difflib
import inspect
import json
import os
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any, NoReturn

import torch
from transformers import HfArgumentParser

from ..errors import UsageError

RENAMED = {
    "evaluation_strategy": "eval_strategy",  # 4.41 took the new name, 4.46 dropped the old one.
    "no_cuda": "use_cpu",  # 4.34, and 5.0.
}
"""4.31.0's name of an argument, and the newer name of the same thing with the same values."""

REPLACED = {
    "adafactor": "optim adafactor",
    "group_by_length": "train_sampling_strategy group_by_length",
    "include_inputs_for_metrics": "include_for_metrics inputs",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "push_to_hub_model_id": "hub_model_id",
    "push_to_hub_token": "hub_token",
    "sharded_ddp": "fsdp",
    "torchdynamo": "torch_compile_backend",
    "tpu_metrics_debug": "debug tpu_metrics_debug",
    "warmup_ratio": "warmup_steps",  # From the 5 series on, a value below 1 is a ratio there.
    "xpu_backend": "ddp_backend",
}
"""4.31.0's name of an argument that later versions express in another way, and that way."""


def tokenizer_parameter(trainer_class: type) -> str:
    """What this Trainer calls its parameter for the tokenizer: `tokenizer`, or `processing_class` from 4.46 on."""
    parameters = inspect.signature(trainer_class).parameters
    return "processing_class" if "processing_class" in parameters else "tokenizer"


def translated(defaults: dict[str, Any], known: Collection[str]) -> dict[str, Any]:
    """`defaults`, given by 4.31.0's names, by the names that this version knows; what it no longer has is left out.

    Where a version knows both names, the newer one is used: there the older one, if the user gives it, wins.
    """
    named = {RENAMED[name] if RENAMED.get(name) in known else name: value for name, value in defaults.items()}
    return {name: value for name, value in named.items() if name in known}


def common_defaults() -> dict[str, Any]:
    """What all scenarios ask of a Trainer unless the user says otherwise, by 4.31.0's names."""
    has_card = torch.cuda.is_available()
    return {
        "do_train": True,
        "do_eval": True,
        "do_predict": True,
        "report_to": "none",
        # Without a graphics card, say so: ranks on CPUs find each other only then (from the 5 series on, each of them
        # would otherwise train alone, in silence), and a laptop's other accelerators give other numbers.
        "no_cuda": not has_card,
        # Pinned memory is for copying to a card; without one, torch warns at every loader.
        "dataloader_pin_memory": has_card,
    }


def use_one_thread() -> None:
    """Compute with one thread, unless OMP_NUM_THREADS asks for more.

    A sum over several threads depends on how the work was split, so its last bits differ between machines; and models
    as small as these run faster on one.
    """
    if "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(1)


class _OneLineParser(HfArgumentParser):
    """The library's parser, with one clear line where argparse prints the whole usage and exits."""

    def error(self, message: str) -> NoReturn:
        raise UsageError(message)


def parse(
    library: ModuleType,
    argv: list[str],
    own_types: tuple[Any, ...],
    training_type: Any,
    choose_defaults: Callable[..., dict[str, Any]],
    name: str,
    description: str | None,
) -> tuple[Any, ...]:
    """Read `argv` into one object of each of `own_types`, and one of `training_type` as the last.

    Args:
        library: Whose Trainer will run; only its name and version are used here, for messages.
        argv: Flags, with or without a file of arguments (`args.json`) among them; of two values the later one holds.
        own_types: The scenario's dataclasses.
        training_type: The library's `TrainingArguments`, or a subclass.
        choose_defaults: Takes the objects of `own_types` and returns the scenario's defaults for fields of
            `training_type`, by 4.31.0's names; `output_dir` among them.
        name: The scenario's name, as the user typed it.
        description: What `--help` shows first.

    Raises:
        UsageError: An argument is unknown, has an impossible value, or contradicts another.
    """
    words = _with_file_unfolded(argv)

    # -- the scenario's own arguments: the defaults of the others may depend on them ---
    own_parser = _OneLineParser(own_types, add_help=False, allow_abbrev=False)
    *own, _ = own_parser.parse_args_into_dataclasses(words, return_remaining_strings=True, look_for_args_file=False)

    # -- all of them ---
    parser = _OneLineParser(
        (*own_types, training_type),
        prog=name,
        usage="%(prog)s [args.json] [--name value ...]",  # argparse would list 130 flags before the first sentence.
        description=description,
        epilog=_EPILOG,
        allow_abbrev=False,
    )
    known = {field.name for each in (*own_types, training_type) for field in dataclasses.fields(each) if field.init}
    defaults = translated(choose_defaults(*own), known)
    parser.set_defaults(**defaults)
    # 4.31.0 requires an output folder in words.
    words = ["--output_dir", defaults["output_dir"], *words]
    _, unknown = parser.parse_known_args(words)
    if unknown:
        raise UsageError(_explain_unknown(unknown, known, library))
    try:
        parsed = parser.parse_args_into_dataclasses(words, look_for_args_file=False)
    except ValueError as error:  # TrainingArguments found a contradiction; its message says which.
        raise UsageError(" ".join(str(error).split())) from error
    checkpoint = parsed[-1].resume_from_checkpoint
    if checkpoint is not None and not Path(checkpoint).is_dir():
        raise UsageError(f"there is no folder {checkpoint} to resume from")
    return parsed


def _with_file_unfolded(argv: list[str]) -> list[str]:
    """`argv` with an arguments file, if it names one, replaced by the flags that say the same."""
    for index, (before, word) in enumerate(zip(["", *argv], argv, strict=False)):
        # After a flag it is that flag's value (`--train_file mine.json`).
        if word.endswith(".json") and not word.startswith("--") and not before.startswith("--"):
            return [*argv[:index], *_as_flags(_read_arguments_file(word)), *argv[index + 1 :]]
    return argv


def _read_arguments_file(path: str) -> dict[str, Any]:
    try:
        values = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"cannot read arguments from {path}: {error}") from error
    if not isinstance(values, dict):
        raise UsageError(f"cannot read arguments from {path}: it must hold one JSON object, names to values")
    return values


def _as_flags(values: dict[str, Any]) -> Iterator[str]:
    """`values` as the words that say the same on a command line; what is null or empty is not said."""
    for key, value in values.items():
        if value is None or value == []:
            continue
        yield f"--{key}"
        if isinstance(value, list):
            yield from map(str, value)
        else:
            yield json.dumps(value) if isinstance(value, dict) else str(value)


def _explain_unknown(unknown: list[str], known: set[str], library: ModuleType) -> str:
    """One line about the first of the `unknown` words, with the name that was probably meant."""
    flag = next((word for word in unknown if word.startswith("--")), None)
    if flag is None:
        return f"unexpected word {unknown[0]!r}; arguments are written --name value"
    name = flag[2:].partition("=")[0].replace("-", "_")
    owner = f"{library.__name__} {getattr(library, '__version__', '')}".strip()
    newer = RENAMED | REPLACED
    older = {ways.split()[0]: name for name, ways in newer.items()}
    for other in (newer.get(name), older.get(name)):
        if other is not None and other.split()[0] in known:
            return f"{owner} has no --{name}; there it is --{other}"
    near = difflib.get_close_matches(name, known, n=1)
    return f"{owner} has no --{name}" + (f"; did you mean --{near[0]}?" if near else "")


_EPILOG = """The flags after the scenario's own are the library's TrainingArguments and mean what its documentation
says. A file stands for flags too: {"max_steps": 20, "logging_steps": 5} in args.json is --max_steps 20 --logging_steps
5; of two words about the same thing the later one holds. Computing uses one thread unless OMP_NUM_THREADS says
otherwise, so that runs repeat."""

# Read next: texts.py, where the data comes from.
