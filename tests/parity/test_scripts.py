"""Scripts in the form of upstream's examples run alike when their imports say minitrainer instead of transformers.

Each script of scripts/ is written for the real Trainer. It runs as it is; then once more with every `from transformers
import` and `import transformers` replaced. Both leave the same files with the same content, and print the same figures.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import re
import shutil
import sys
import types
import warnings
from pathlib import Path
from typing import Any

import pytest

from minitrainer.trace.scenarios import DATA_FOLDER

from .compare import differences, show
from .observation import plain_files

pytestmark = pytest.mark.reference

SCRIPTS = Path(__file__).parent / "scripts"
COMMON = "--report_to none --logging_dir logs --no_cuda --seed 7 --num_train_epochs 2 --logging_steps 2".split()
COMMON += "--per_device_train_batch_size 4 --per_device_eval_batch_size 4 --disable_tqdm True".split()
COMMON += "--do_train --do_eval --do_predict".split()
EACH_EPOCH = "--evaluation_strategy epoch --save_strategy epoch".split()
BEST = [*EACH_EPOCH, *"--load_best_model_at_end --metric_for_best_model accuracy --save_total_limit 1".split()]
GENERATES = (
    "--predict_with_generate --generation_max_length 8 --evaluation_strategy epoch --label_smoothing 0.1".split()
)
DATA = ["--data_folder", str(DATA_FOLDER)]
RUNS = [
    ("classify", [*DATA, *BEST]),
    (
        "classify",
        [*DATA, "--pad_to_max_length", "--gradient_accumulation_steps", "2", "--lr_scheduler_type", "cosine"],
    ),
    ("language_model", [*DATA, "--model_type", "gpt2", *BEST]),
    ("language_model", [*DATA, "--model_type", "gpt2", "--streaming", "--max_steps", "6"]),
    ("language_model", [*DATA, "--model_type", "bert", "--group_by_length", "--gradient_checkpointing"]),
    ("language_model", [*DATA, "--model_type", "xlnet", "--optim", "adafactor"]),
    ("words_and_choices", [*DATA, "--task", "words", *BEST]),
    ("words_and_choices", [*DATA, "--task", "choices", "--bf16"]),
    ("writers", [*DATA, *GENERATES]),
    ("writers", [*DATA, *GENERATES, "--answers", "--save_safetensors", "--save_steps", "5"]),
    ("writers", [*DATA, "--pad_to_max_length"]),
    ("pointers", [*DATA, *EACH_EPOCH]),
    ("pointers", [*DATA, "--beam_search"]),
    ("frames", ["--kind", "sound", "--remove_unused_columns", "False", *BEST]),
    ("frames", ["--kind", "speech", "--remove_unused_columns", "False", "--length_column_name", "number"]),
    ("frames", ["--kind", "picture", "--remove_unused_columns", "False", "--eval_accumulation_steps", "1"]),
    ("frames", ["--kind", "hidden_picture", "--remove_unused_columns", "False", "--label_names", "pixel_values"]),
]

# What a script gets from minitrainer itself; all other names are lent by transformers.
OURS = {"Trainer", "TrainingArguments", "Seq2SeqTrainer", "Seq2SeqTrainingArguments", "EarlyStoppingCallback"}
OURS |= {"EvalPrediction", "set_seed"}


def text_of(script: str, library: str) -> str:
    """A script, with its imports from transformers itself turned to another library."""
    text = (SCRIPTS / f"{script}.py").read_text(encoding="utf-8")
    text, count = re.subn(r"^from transformers import", f"from {library} import", text, flags=re.MULTILINE)
    assert count == 1
    alias = f"import {library} as transformers"
    return re.sub(r"^import transformers$", alias, text, flags=re.MULTILINE)


def run_script(
    script: str, library: str, arguments: list[str], folder: Path, monkeypatch: Any
) -> tuple[Any, list[str]]:
    """Run a script as a module of its own, and return all its files and all that it prints, clocks taken out."""
    for old in (folder, Path(f"{folder}-texts")):  # what datasets keeps would spare the second run its tokenizing
        shutil.rmtree(old, ignore_errors=True)
    name = f"minitrainer_tests_{script}"
    module = types.ModuleType(name)
    monkeypatch.setitem(sys.modules, name, module)  # where pickle looks for the script's own classes
    monkeypatch.setattr(sys, "argv", [f"{script}.py", "--output_dir", str(folder), *COMMON, *arguments])
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        exec(compile(text_of(script, library), f"{script}.py", "exec"), vars(module))
        module.main()
    files = plain_files(str(folder))
    without_clock = re.sub(r"(runtime|per_second\w*)(\W+)[\d.:]+", r"\1\2<clock>", printed.getvalue())
    return files, [" ".join(line.split()) for line in without_clock.split("\n")]  # columns are as wide as clocks are


@pytest.mark.parametrize(
    ("script", "arguments"), RUNS, ids=[f"{name}-{number}" for number, (name, _) in enumerate(RUNS)]
)
def test_a_script_runs_alike_with_its_import_changed(
    script: str, arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "out"
    real_files, real_lines = run_script(script, "transformers", arguments, folder, monkeypatch)
    our_files, our_lines = run_script(script, "minitrainer", arguments, folder, monkeypatch)
    assert {"trainer_state.json", "training_args.bin", "all_results.json"} <= set(real_files)
    found = [
        f"{path}: real {show(real)}, ours {show(ours)}" for path, real, ours in differences(real_files, our_files)
    ]
    assert not found, found[:5]
    assert our_lines == real_lines


def test_every_imported_name_is_there_and_is_whose_it_should_be() -> None:
    """Those of the Trainer are ours; the rest are the very objects of transformers."""
    import transformers

    import minitrainer

    names: set[str] = set()
    for path in sorted(SCRIPTS.glob("*.py")):
        (block,) = re.findall(
            r"^from transformers import \(\n(.*?)^\)", path.read_text("utf-8"), re.MULTILINE | re.DOTALL
        )
        names |= set(re.findall(r"\w+", block))
    assert len(names) >= 50
    for name in sorted(names):
        value = getattr(minitrainer, name)
        if name in OURS:
            assert value.__module__.startswith("minitrainer"), name
            assert value is not getattr(transformers, name), name
        else:
            assert value is getattr(transformers, name), name
    assert names >= OURS


def test_submodules_are_lent_too() -> None:
    """`import minitrainer as transformers` goes on: logging, versions and the rest of utils are those of transformers."""
    ours, real = importlib.import_module("minitrainer"), importlib.import_module("transformers")
    assert ours.utils is real.utils
    assert ours.utils.logging.get_verbosity() == real.utils.logging.get_verbosity()


# Read next: scripts/classify.py
