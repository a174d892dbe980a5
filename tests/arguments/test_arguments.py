"""Arguments as a script uses them, on whatever version of transformers is installed."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import pytest
import yaml
from transformers import HfArgumentParser

from minitrainer.arguments import Seq2SeqTrainingArguments, TrainingArguments
from minitrainer.parts.choices import IntervalStrategy, OptimizerNames, ParallelMode, SchedulerType

VALUES = {"output_dir": "out", "evaluation_strategy": "epoch", "learning_rate": 0.001, "report_to": ["none"]}


@dataclass
class ScriptArguments:
    """What a script adds."""

    task: str = field(default="polarity", metadata={"help": "The task."})


# -- making them ---


def test_words_become_members_and_members_are_words() -> None:
    """`args.evaluation_strategy == "epoch"` holds, and so does the comparison with the member."""
    args = TrainingArguments("out", evaluation_strategy="epoch", report_to="none", optim="sgd")
    assert args.evaluation_strategy is IntervalStrategy.EPOCH
    assert args.evaluation_strategy == "epoch"
    assert args.lr_scheduler_type is SchedulerType.LINEAR
    assert args.optim is OptimizerNames.SGD
    assert args.do_eval is True
    assert args.report_to == []


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (
            {"evaluation_strategy": "hourly"},
            r"hourly is not a valid IntervalStrategy: it is one of \['no', 'st",
        ),
        ({"optim": "adamax"}, "adamax is not a valid OptimizerNames"),
        ({"evaluation_strategy": "steps", "logging_steps": 0}, "needs a number of steps: set --eval_steps"),
        ({"logging_steps": 0}, "needs --logging_steps above 0"),
        ({"logging_steps": 2.5}, "--logging_steps=2.5: above 1 it counts steps"),
        ({"load_best_model_at_end": True}, "evaluation_strategy is no and save_strategy is steps"),
        (
            {"lr_scheduler_type": "reduce_lr_on_plateau"},
            "reduce_lr_on_plateau follows a metric: set evaluation_strategy",
        ),
        ({"warmup_ratio": 1.5}, "warmup_ratio=1.5 is no share of the run"),
        ({"fp16": True, "bf16": True}, "fp16 and bf16 exclude each other"),
        ({"fsdp": "offload"}, "`--fsdp offload` is an addition to another mode"),
        ({"debug": "everything"}, "everything is not a valid DebugOption"),
    ],
)
def test_wishes_that_cannot_work_are_refused(wrong: dict[str, Any], message: str) -> None:
    """With the name of the argument."""
    with pytest.raises(ValueError, match=message):
        TrainingArguments("out", report_to=[], **wrong)


def test_eval_steps_follow_logging_steps() -> None:
    """And whole numbers lose their decimal point."""
    args = TrainingArguments("out", evaluation_strategy="steps", logging_steps=5.0, save_steps=10.0, report_to=[])
    assert (args.logging_steps, args.eval_steps, args.save_steps) == (5, 5.0, 10)
    assert [type(n) for n in (args.logging_steps, args.eval_steps, args.save_steps)] == [int, int, int]


def test_every_field_has_a_help_text_of_its_own() -> None:
    """One that ends like a sentence and that argparse can print."""
    texts = [f.metadata["help"] for f in fields(Seq2SeqTrainingArguments) if f.init]
    assert len(texts) == 114
    assert all(text.endswith(".") and "%" not in text for text in texts)
    assert len(set(texts)) >= 110  # the two deprecated names of FSDP settings share one


# -- from the command line, JSON, YAML and a dict ---


def test_the_command_line_of_a_script() -> None:
    """Beside the script's own arguments, with switches in both forms."""
    parser = HfArgumentParser((TrainingArguments, ScriptArguments))
    words = "--output_dir out --do_train --no_dataloader_pin_memory --evaluation_strategy epoch --learning_rate 1e-3"
    args, script = parser.parse_args_into_dataclasses((words + " --report_to none --task pairs").split())
    assert (args.do_train, args.dataloader_pin_memory, args.learning_rate) == (True, False, 0.001)
    assert args.evaluation_strategy is IntervalStrategy.EPOCH
    assert script.task == "pairs"


def test_an_unknown_word_is_refused_by_the_parser(capsys: pytest.CaptureFixture[str]) -> None:
    """Before the arguments are made, with the words that are known."""
    with pytest.raises(SystemExit):
        HfArgumentParser(TrainingArguments).parse_args_into_dataclasses(["--output_dir", "o", "--optim", "best"])
    assert "invalid choice: 'best'" in capsys.readouterr().err


@pytest.mark.parametrize("arguments_class", [TrainingArguments, Seq2SeqTrainingArguments])
@pytest.mark.parametrize("kind", ["json", "yaml", "dict"])
def test_files_and_dicts(arguments_class: Any, kind: str, tmp_path: Path) -> None:
    """The same object from each."""
    parser, path = HfArgumentParser(arguments_class), tmp_path / f"arguments.{kind}"
    if kind == "json":
        path.write_text(json.dumps(VALUES))
        (args,) = parser.parse_json_file(str(path))
    elif kind == "yaml":
        path.write_text(yaml.safe_dump(VALUES))
        (args,) = parser.parse_yaml_file(str(path))
    else:
        (args,) = parser.parse_dict(VALUES)
    assert (args.learning_rate, args.evaluation_strategy, args.report_to) == (0.001, "epoch", [])


@pytest.mark.filterwarnings("ignore:`--push_to_hub_token`:FutureWarning")
def test_saved_json_makes_the_same_arguments_again(tmp_path: Path) -> None:
    """to_json_string is what parse_json_file reads. The deprecated token's placeholder counts as one that is set."""
    args = TrainingArguments("out", evaluation_strategy="steps", eval_steps=3, label_names=["labels"], report_to=[])
    (tmp_path / "args.json").write_text(args.to_json_string())
    (again,) = HfArgumentParser(TrainingArguments).parse_json_file(str(tmp_path / "args.json"))
    assert again.to_dict() == args.to_dict()
    assert again.hub_token == "<PUSH_TO_HUB_TOKEN>"  # the flaw that the docstring warns of


# -- as text and as bytes ---


def test_tokens_are_never_written() -> None:
    """Neither as JSON nor as text."""
    args = TrainingArguments("out", hub_token="secret", report_to=[])
    assert args.hub_token == "secret"
    for text in (args.to_json_string(), str(args), str(args.to_sanitized_dict())):
        assert "secret" not in text
        assert "<HUB_TOKEN>" in text


def test_trackers_get_plain_values() -> None:
    """And both batch sizes."""
    values = TrainingArguments(
        "out", label_names=["a"], per_device_eval_batch_size=3, report_to=[]
    ).to_sanitized_dict()
    assert {type(value) for value in values.values()} <= {bool, int, float, str}
    assert (values["train_batch_size"], values["eval_batch_size"], values["label_names"]) == (8, 3, "['a']")


def test_arguments_can_be_pickled() -> None:
    """As training_args.bin needs it."""
    args = TrainingArguments("out", report_to=[])
    again = pickle.loads(pickle.dumps(args))
    assert again.to_dict() == args.to_dict()
    assert again.device == args.device


# -- device and ranks ---


def test_one_process_on_the_cpu() -> None:
    """What the Trainer asks."""
    args = TrainingArguments("out", no_cuda=True, report_to=[], ddp_backend="gloo")
    assert (args.device.type, args.n_gpu, args.world_size, args.process_index, args.local_rank) == ("cpu", 0, 1, 0, 0)
    assert args.parallel_mode is ParallelMode.NOT_PARALLEL
    assert (args.should_save, args.should_log, args.train_batch_size) == (True, True, 8)


RANKS = """
import sys
from pathlib import Path
from minitrainer.arguments import TrainingArguments
args = TrainingArguments(sys.argv[1], report_to=[], save_on_each_node=False, **{switches})
with args.main_process_first(desc="writing"):
    file = Path(sys.argv[1], "first")
    if args.process_index == 0:
        import time; time.sleep(0.5)
        file.write_text("here")
    assert file.exists(), "the others must find what the first has written"
said = (f"rank {{args.process_index}} of {{args.world_size}} {{args.device}} {{args.parallel_mode.value}} "
        f"{{args.n_gpu}} {{args.should_save}} {{args.local_rank}} {{args.distributed_state.backend}}\\n")
import os
os.write(1, said.encode())  # in one piece: both ranks write into one pipe
import torch.distributed as dist
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
@pytest.mark.parametrize("switches", [{}, {"no_cuda": True}, {"no_cuda": True, "ddp_backend": "nccl"}], ids=str)
def test_two_ranks_on_the_cpu(switches: dict[str, Any], tmp_path: Path) -> None:
    """torchrun starts two processes; with or without `no_cuda` they join, as they do at 4.31.0 where no GPU is."""
    import torch

    if torch.cuda.is_available() and not switches:
        pytest.skip("with a GPU the ranks go there")
    script = tmp_path / "script.py"
    script.write_text(RANKS.format(switches=repr(switches)))
    run = subprocess.run(
        [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc_per_node=2",
            str(script),
            str(tmp_path),
        ],
        capture_output=True,
        text=True,
        timeout=240,
        cwd=Path(__file__).resolve().parents[2],
        env=environment(),
    )
    assert run.returncode == 0, run.stderr[-3000:]
    n_gpu = 0 if switches else 1  # without `no_cuda` upstream counts one GPU even where there is none
    expected = [f"rank {r} of 2 cpu distributed {n_gpu} {r == 0} {r} gloo" for r in (0, 1)]
    assert sorted(line for line in run.stdout.splitlines() if line.startswith("rank")) == expected


def environment() -> dict[str, str]:
    """One thread a rank, and this repository on the path."""
    import os

    root = str(Path(__file__).resolve().parents[2])
    paths = [path for path in (os.environ.get("PYTHONPATH"), root) if path]
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}


# Read next: ../callbacks/test_callbacks.py
