"""What `import minitrainer` offers, what it costs, and that a script needs one word changed."""

from __future__ import annotations

import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

import minitrainer

ROOT = Path(__file__).resolve().parents[2]

# In the shape of upstream's run_glue: the imports, the dataclasses' parser, and the order of calls.
SCRIPT = """
import sys
from dataclasses import dataclass, field

import datasets
import numpy as np

from transformers import (
    AutoConfig,
    AutoModelForSequenceClassification,
    EvalPrediction,
    HfArgumentParser,
    Trainer,
    TrainingArguments,
    default_data_collator,
    set_seed,
)
from transformers.trainer_utils import get_last_checkpoint


@dataclass
class DataArguments:
    samples: int = field(default=24, metadata={"help": "how many samples to make"})


parser = HfArgumentParser((DataArguments, TrainingArguments))
data_args, training_args = parser.parse_args_into_dataclasses()
set_seed(training_args.seed)
config = AutoConfig.for_model(
    "bert", vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
)
model = AutoModelForSequenceClassification.from_config(config)
rng = np.random.default_rng(0)
rows = {
    "input_ids": rng.integers(0, 50, (data_args.samples, 6)).tolist(),
    "sentence": ["not for the model"] * data_args.samples,
    "label": rng.integers(0, 2, data_args.samples).tolist(),
}
data = datasets.Dataset.from_dict(rows)


def compute_metrics(p: EvalPrediction):
    return {"accuracy": float((np.argmax(p.predictions, axis=1) == p.label_ids).mean())}


trainer = Trainer(
    model=model,
    args=training_args,
    train_dataset=data if training_args.do_train else None,
    eval_dataset=data if training_args.do_eval else None,
    compute_metrics=compute_metrics,
    data_collator=default_data_collator,
)
train_result = trainer.train(resume_from_checkpoint=get_last_checkpoint(training_args.output_dir))
metrics = train_result.metrics
metrics["train_samples"] = len(data)
trainer.save_model()
trainer.log_metrics("train", metrics)
trainer.save_metrics("train", metrics)
trainer.save_state()
metrics = trainer.evaluate(eval_dataset=data)
trainer.log_metrics("eval", metrics)
trainer.save_metrics("eval", metrics)
predictions = trainer.predict(data.remove_columns("label"), metric_key_prefix="predict").predictions
assert predictions.shape == (data_args.samples, 2)
losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
print("trained by", type(trainer).__module__, losses)
"""


def run(code: str, *arguments: str) -> str:
    environment = {"OMP_NUM_THREADS": "1", "PATH": "", "PYTHONPATH": f"{_python_path()}", "WANDB_DISABLED": "true"}
    child = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, env=environment, timeout=300
    )
    assert child.returncode == 0, child.stderr[-3000:]
    return child.stdout


def _python_path() -> str:
    # The same transformers as here, which may stand in a folder of its own.
    import transformers

    return f"{Path(transformers.__file__).parents[1]}:{ROOT}"


def test_importing_the_package_imports_neither_torch_nor_transformers() -> None:
    told = run(
        "import sys, minitrainer; dir(minitrainer); print('torch' in sys.modules, 'transformers' in sys.modules)"
    )
    assert told.split() == ["False", "False"]


# The notebook's progress bar needs IPython, which only notebooks have.
NAMES = sorted(set(minitrainer.__all__) - ({"NotebookProgressCallback"} if find_spec("IPython") is None else set()))


@pytest.mark.parametrize("name", NAMES)
def test_every_name_is_there(name: str) -> None:
    value = getattr(minitrainer, name)
    assert getattr(value, "__module__", "minitrainer").startswith("minitrainer")


def test_other_names_come_from_transformers_but_never_its_trainer() -> None:
    import transformers

    assert minitrainer.AutoConfig is transformers.AutoConfig
    for name in ("NoSuchName", "_private", "TFTrainingArguments"):
        with pytest.raises(AttributeError, match=name):
            getattr(minitrainer, name)


def test_a_script_needs_one_word_changed(tmp_path: Path) -> None:
    changed = SCRIPT.replace("from transformers import", "from minitrainer import")
    assert changed != SCRIPT
    arguments = ["--do_train", "--do_eval", "--num_train_epochs", "1", "--logging_steps", "1", "--no_cuda"]
    arguments += ["--report_to", "none", "--disable_tqdm", "True", "--overwrite_output_dir"]
    told = run(changed, "--output_dir", str(tmp_path / "ours"), *arguments)
    assert "trained by minitrainer.trainer" in told
    assert {"all_results.json", "trainer_state.json", "training_args.bin"} <= {
        path.name for path in (tmp_path / "ours").iterdir()
    }


@pytest.mark.reference
def test_a_script_prints_what_it_printed_before(tmp_path: Path) -> None:
    arguments = ["--do_train", "--do_eval", "--num_train_epochs", "1", "--logging_steps", "1", "--no_cuda"]
    arguments += ["--report_to", "none", "--disable_tqdm", "True", "--overwrite_output_dir"]
    ours = run(
        SCRIPT.replace("from transformers import", "from minitrainer import"),
        "--output_dir",
        str(tmp_path / "ours"),
        *arguments,
    )
    real = run(SCRIPT, "--output_dir", str(tmp_path / "real"), *arguments)
    assert losses(ours) == losses(real)
    names = [sorted(path.name for path in (tmp_path / folder).iterdir()) for folder in ("ours", "real")]
    assert names[0] == names[1]


def losses(told: str) -> str:
    (line,) = [line for line in told.splitlines() if line.startswith("trained by")]
    return line[line.index("[") :]


# Read next: source.py
