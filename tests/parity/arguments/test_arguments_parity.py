"""Our arguments against the real ones of 4.31.0: fields, derived values, warnings, errors, text, command line."""

from __future__ import annotations

import dataclasses
import inspect
import json
import typing
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import example, given, settings
from transformers import HfArgumentParser

from minitrainer import arguments as ours

from ..compare import said_by
from .drawn import INTERESTING, arguments, observe, plain, restored_process

upstream = pytest.importorskip("transformers.training_args")
upstream_seq2seq = pytest.importorskip("transformers.training_args_seq2seq")

pytestmark = pytest.mark.reference

PAIRS = [
    pytest.param(ours.TrainingArguments, upstream.TrainingArguments, 110, id="TrainingArguments"),
    pytest.param(ours.Seq2SeqTrainingArguments, upstream_seq2seq.Seq2SeqTrainingArguments, 115, id="Seq2Seq"),
]


# -- fields ---


@pytest.mark.parametrize(("our_class", "their_class", "count"), PAIRS)
def test_fields_have_the_same_order_defaults_types_and_choices(our_class: Any, their_class: Any, count: int) -> None:
    """Field by field; and no help text is upstream's."""
    our_fields, their_fields = dataclasses.fields(our_class), dataclasses.fields(their_class)
    assert [f.name for f in our_fields] == [f.name for f in their_fields]
    assert len(our_fields) == count
    our_types, their_types = typing.get_type_hints(our_class), typing.get_type_hints(their_class)
    for mine, theirs in zip(our_fields, their_fields, strict=True):
        assert (mine.init, mine.repr, mine.compare) == (theirs.init, theirs.repr, theirs.compare), mine.name
        assert mine.default == theirs.default, mine.name
        assert type(mine.default) is type(theirs.default), mine.name
        assert mine.default_factory is theirs.default_factory is dataclasses.MISSING, mine.name
        assert type_names(our_types[mine.name]) == type_names(their_types[mine.name]), mine.name
        our_choices, their_choices = mine.metadata.get("choices"), theirs.metadata.get("choices")
        assert (our_choices is None) == (their_choices is None), mine.name
        assert list(our_choices or []) == list(their_choices or []), mine.name
        if mine.init:
            assert mine.metadata["help"] != theirs.metadata["help"], mine.name


def type_names(annotation: Any) -> Any:
    """A type in words: our choices are classes of their own, and `X | None` equals `Optional[X]`."""
    parts = typing.get_args(annotation)
    if not parts:
        return getattr(annotation, "__name__", str(annotation))
    origin = typing.get_origin(annotation)
    kind = "list" if origin is list else "union"
    return (kind, *(type_names(part) for part in parts))


@pytest.mark.parametrize(("our_class", "their_class", "count"), PAIRS)
def test_public_methods_have_the_same_signatures(our_class: Any, their_class: Any, count: int) -> None:
    """Every public name of the real class is here, and its methods take the same arguments with the same defaults."""
    names = [name for name in dir(their_class) if not name.startswith("_")]
    assert set(names) - set(dir(our_class)) == set()
    compared = 0
    for name in names:
        theirs, mine = inspect.getattr_static(their_class, name), inspect.getattr_static(our_class, name)
        assert isinstance(mine, property) == isinstance(theirs, property), name
        if inspect.isfunction(theirs):
            shapes = [
                [(p.name, p.kind, p.default) for p in inspect.signature(getattr(c, name)).parameters.values()]
                for c in (our_class, their_class)
            ]
            assert shapes[0] == shapes[1], name
            compared += 1
    assert compared >= 14


@pytest.mark.parametrize("kind", ["OptimizerNames", "ParallelMode"])
def test_choices_declared_beside_the_arguments(kind: str) -> None:
    """The same members in the same order."""
    assert [(m.name, m.value) for m in getattr(ours, kind)] == [(m.name, m.value) for m in getattr(upstream, kind)]


# -- making them ---


def best_by_steps(eval_steps: float, save_steps: float) -> dict[str, Any]:
    """Arguments that track the best model, with two intervals that may not go together."""
    best = {"load_best_model_at_end": True, "evaluation_strategy": "steps"}
    return {"output_dir": "out", "eval_steps": eval_steps, "save_steps": save_steps, **best}


@settings(max_examples=300)
@given(values=arguments())
@example(values={"output_dir": "out"})
@example(values={"output_dir": None})
@example(values=best_by_steps(0.3, 500))
@example(values=best_by_steps(0.3, 0.5))
@example(values=best_by_steps(0.1, 0.3))
@example(values=best_by_steps(0.25, 0.5))
@example(values=best_by_steps(3, 500))
@example(values=best_by_steps(4, 8))
@example(values={"output_dir": "out", "push_to_hub_model_id": "x", "push_to_hub_organization": "we"})
@example(values={"output_dir": "out", "deepspeed": "no/such/config.json"})
@example(values={"output_dir": "out", "fsdp": ["full_shard", "auto_wrap"], "fsdp_min_num_params": 3})
@example(values={"output_dir": "out", "tpu_metrics_debug": True, "debug": []})
@example(values={"output_dir": "out", "log_level": "loud"})
def test_the_same_arguments_give_the_same_object_or_the_same_error(values: dict[str, Any]) -> None:
    """Attributes, answers, texts, warnings and environment agree; or both refuse, in equivalent words."""
    if values["output_dir"] is None or values.get("log_level") == "loud":
        assert_both_raise_alike(values)
        return
    mine, theirs = observe(ours.TrainingArguments, values), observe(upstream.TrainingArguments, values)
    if "deepspeed" in values:  # only the kind of the error: what it says depends on what is installed
        assert mine["error"] == theirs["error"]
        return
    assert mine == theirs


def assert_both_raise_alike(values: dict[str, Any]) -> None:
    """Where the real class fails obscurely, ours may say it in other words, but fails at the same moment."""
    failures = []
    for arguments_class in (ours.TrainingArguments, upstream.TrainingArguments):
        with restored_process():
            try:
                made = arguments_class(**values)
                made.get_process_log_level()
            except Exception as error:
                failures.append(type(error))
            else:
                failures.append(None)
    assert failures[0] == failures[1]


def test_every_single_interesting_value_agrees() -> None:
    """Each value alone, whatever hypothesis draws."""
    tried = 0
    for name, candidates in INTERESTING.items():
        for value in candidates:
            values = {"output_dir": "out", name: value}
            assert observe(ours.TrainingArguments, values) == observe(upstream.TrainingArguments, values), values
            tried += 1
    assert tried > 140


def test_an_evaluation_strategy_of_the_old_kind_is_accepted_with_a_warning() -> None:
    """Each side with its own old enum."""
    from transformers.trainer_utils import EvaluationStrategy as TheirStrategy

    from minitrainer.parts.choices import EvaluationStrategy as OurStrategy

    mine = observe(ours.TrainingArguments, {"output_dir": "out", "evaluation_strategy": OurStrategy.EPOCH})
    theirs = observe(upstream.TrainingArguments, {"output_dir": "out", "evaluation_strategy": TheirStrategy.EPOCH})
    assert mine == theirs
    assert len(mine["warnings"]) == 1


def test_a_bf16_object_leaks_its_precision_to_later_ones_as_upstream() -> None:
    """The flaw that the docstring warns of."""
    import os

    for arguments_class in (ours.TrainingArguments, upstream.TrainingArguments):
        with restored_process():
            arguments_class("out", bf16=True, report_to=[])
            arguments_class("out", report_to=[])
            assert os.environ["ACCELERATE_MIXED_PRECISION"] == "bf16"


def test_an_fsdp_configuration_is_read_from_a_file(tmp_path: Path) -> None:
    """And completed."""
    path = tmp_path / "fsdp.json"
    path.write_text(json.dumps({"fsdp_transformer_layer_cls_to_wrap": "BertLayer"}))
    values = {"output_dir": "out", "fsdp": "full_shard auto_wrap", "fsdp_config": str(path)}
    mine, theirs = observe(ours.TrainingArguments, values), observe(upstream.TrainingArguments, values)
    assert mine == theirs
    assert mine["environment"]["FSDP_TRANSFORMER_CLS_TO_WRAP"] == "BertLayer"


# -- setting them by theme ---

THEMES: list[tuple[str, dict[str, Any]]] = [
    ("set_training", {}),
    ("set_training", {"learning_rate": 1e-4, "batch_size": 2, "max_steps": 7, "gradient_checkpointing": True}),
    ("set_evaluate", {}),
    ("set_evaluate", {"strategy": "steps", "steps": 3, "delay": 1, "loss_only": True, "accumulation_steps": 2}),
    ("set_evaluate", {"strategy": "steps", "steps": 0}),
    ("set_testing", {"batch_size": 3, "jit_mode": True}),
    ("set_save", {"strategy": "epoch", "total_limit": 2, "on_each_node": True}),
    ("set_save", {"steps": 0}),
    ("set_logging", {}),
    ("set_logging", {"strategy": "epoch", "report_to": ["tensorboard"], "level": "info", "first_step": True}),
    ("set_logging", {"steps": 0}),
    ("set_push_to_hub", {"model_id": "we/model", "strategy": "end", "token": "secret", "private_repo": True}),
    ("set_optimizer", {"name": "sgd", "beta1": 0.8, "args": "a=b"}),
    ("set_optimizer", {"name": "best"}),
    ("set_lr_scheduler", {"name": "cosine", "warmup_ratio": 0.05, "num_epochs": 2}),
    ("set_dataloader", {"train_batch_size": 4, "num_workers": 2, "pin_memory": False, "sampler_seed": 3}),
]


@pytest.mark.parametrize(("method", "values"), THEMES)
def test_methods_by_theme_set_the_same_fields(method: str, values: dict[str, Any]) -> None:
    """They return the object, or raise the same error."""
    outcomes = []
    for arguments_class in (ours.TrainingArguments, upstream.TrainingArguments):
        with restored_process():
            made = arguments_class("out", logging_dir="logs", report_to=[])
            try:
                assert getattr(made, method)(**values) is made
            except ValueError as error:
                outcomes.append(said_by(error))
            else:
                outcomes.append({f.name: plain(getattr(made, f.name)) for f in dataclasses.fields(made)})
    assert outcomes[0] == outcomes[1]


# -- from the command line and from files ---

COMMAND_LINES = [
    ["--output_dir", "out"],
    ["--output_dir", "out", "--do_train", "--no_dataloader_pin_memory", "--evaluation_strategy", "epoch"],
    ["--output_dir", "out", "--report_to", "none", "--label_names", "a", "b", "--learning_rate", "1e-3"],
    ["--output_dir", "out", "--debug", "underflow_overflow", "--optim", "sgd", "--logging_steps", "0.1"],
    ["--output_dir", "out", "--load_best_model_at_end", "False", "--greater_is_better", "true", "--tf32", "no"],
    ["--output_dir", "out", "--fsdp", "full_shard auto_wrap", "--save_total_limit", "3"],
    ["--output_dir", "out", "--optim", "unheard"],
    ["--do_train"],
]


@pytest.mark.parametrize(("our_class", "their_class", "count"), PAIRS)
@pytest.mark.parametrize("words", COMMAND_LINES, ids=lambda words: " ".join(words[2:]) or "only the folder")
def test_the_command_line_is_read_alike(
    our_class: Any, their_class: Any, count: int, words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The same values, or the same refusal."""
    outcomes = []
    for arguments_class in (our_class, their_class):
        with restored_process():
            parser = HfArgumentParser(arguments_class, prog="script")
            try:
                (made,) = parser.parse_args_into_dataclasses(words)
            except SystemExit as refusal:
                outcomes.append((refusal.code, capsys.readouterr().err.splitlines()[-1]))
            else:
                outcomes.append({name: plain(value) for name, value in made.to_dict().items()})
    assert outcomes[0] == outcomes[1]


@pytest.mark.parametrize(("our_class", "their_class", "count"), PAIRS)
def test_files_and_dicts_are_read_alike(our_class: Any, their_class: Any, count: int, tmp_path: Path) -> None:
    """JSON, YAML and a dict."""
    values = {
        "output_dir": "out",
        "learning_rate": 0.001,
        "report_to": ["tensorboard"],
        "evaluation_strategy": "epoch",
    }
    (tmp_path / "a.json").write_text(json.dumps(values))
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(values))
    for method, source in (
        ("parse_json_file", str(tmp_path / "a.json")),
        ("parse_yaml_file", str(tmp_path / "a.yaml")),
        ("parse_dict", values),
    ):
        texts = []
        for arguments_class in (our_class, their_class):
            with restored_process():
                (made,) = getattr(HfArgumentParser(arguments_class), method)(source)
                texts.append(plain(made.to_dict()))
        assert texts[0] == texts[1], method


def test_generation_configuration_is_written_as_a_dict() -> None:
    """The one field of the Seq2Seq arguments that JSON could not hold."""
    from transformers import GenerationConfig

    texts = []
    for arguments_class in (ours.Seq2SeqTrainingArguments, upstream_seq2seq.Seq2SeqTrainingArguments):
        with restored_process():
            made = arguments_class(
                "out", logging_dir="x", generation_config=GenerationConfig(num_beams=3), report_to=[]
            )
            texts.append(made.to_json_string())
    assert texts[0] == texts[1]
    assert json.loads(texts[0])["generation_config"]["num_beams"] == 3


# -- helpers ---


def test_helpers_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    """The functions that scripts import from the module."""
    monkeypatch.setenv("FIRST", "-3")
    monkeypatch.setenv("SECOND", "4")
    for names in (["FIRST", "SECOND"], ["FIRST"], []):
        assert ours.get_int_from_env(names, 9) == upstream.get_int_from_env(names, 9)
    assert ours.default_logdir()[:5] == upstream.default_logdir()[:5]
    assert ours.get_xla_device_type("cpu") is upstream.get_xla_device_type("cpu") is None
    assert ours.trainer_log_levels == upstream.trainer_log_levels


# Read next: ../callbacks/test_callbacks_parity.py
