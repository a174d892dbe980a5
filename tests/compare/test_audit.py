"""The audit knows a right loss from a wrong one, and says by which factor and what the factor equals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

from minitrainer.trace.audit import Audit, Check, audit_run, sentence
from minitrainer.trace.audit_probe import unit_losses
from minitrainer.trace.errors import UsageError

SCRIPT = Path(__file__).with_name("audited.py")
COUNTS = {"ranks": 1.0, "accumulation steps": 2.0}


def check(should: list[float], was: list[float], **rules: list[float]) -> Check:
    made = Check("the loss", "the mean")
    for i, (right, seen) in enumerate(zip(should, was, strict=True)):
        made.add(i + 1, right, seen, **{rule: numbers[i] for rule, numbers in rules.items()})
    return made


def test_a_right_number_is_right_also_when_rounded():
    assert check([0.69314, 0.5], [0.6931, 0.5]).is_right
    assert sentence(check([0.69314], [0.6931]), COUNTS).startswith("right: the loss is the mean")


def test_a_factor_is_named_by_what_it_equals():
    said = sentence(check([0.7, 0.6], [1.4, 1.2]), COUNTS)
    assert said.startswith("wrong: ") and said.endswith("It is 2.000 × what it should be = accumulation steps")
    assert sentence(check([0.7], [1.4]), {"ranks": 2.0}).endswith("= ranks")
    assert sentence(check([0.8], [3.2]), {"ranks": 2.0, "accumulation steps": 2.0}).endswith(
        "= ranks × accumulation steps"
    )
    assert sentence(check([0.7], [2.1]), COUNTS).endswith("It is 3.000 × what it should be")
    assert "no constant: 1.5000 to 2.0000" in sentence(check([1.0, 1.0], [1.5, 2.0]), COUNTS)


def test_a_mean_of_means_is_not_exact_rather_than_wrong():
    said = sentence(check([0.7, 0.6], [0.75, 0.61], mean_of_micro_batch_means=[0.75, 0.61]), COUNTS)
    assert said.startswith("not exact: ") and "mean of the micro-batches' means" in said


def test_a_sum_in_the_place_of_a_mean_is_recognised():
    made = check([0.7, 0.7], [2.8, 1.4], sum_of_micro_batch_means=[2.8, 1.4], mean_of_micro_batch_means=[0.7, 0.7])
    assert "the sum of the micro-batches' means, where their mean belongs" in sentence(made, COUNTS)


def test_a_small_factor_is_not_named():
    assert "=" not in sentence(check([1.0, 1.0], [1.001, 1.001]), {"ranks": 2.0, "accumulation steps": 2.0})


def test_an_audit_without_checks_does_not_pass():
    assert not Audit([], {}, []).passed
    assert Audit([check([1.0], [1.0])], {}, []).passed
    assert not Audit([check([1.0], [1.0]), check([1.0], [2.0])], {}, []).passed


def test_losses_of_samples_and_tokens_average_to_the_models_own():
    torch.manual_seed(1)
    sizes = {"vocab_size": 20, "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    bert = BertForSequenceClassification(BertConfig(**sizes, intermediate_size=8)).eval()
    inputs = {"input_ids": torch.randint(0, 20, (3, 5)), "labels": torch.tensor([0, 1, 1])}
    output = bert(**inputs)
    losses = unit_losses(bert, inputs, output)
    assert losses is not None and losses.losses.shape == (3,) and losses.rows.tolist() == [0, 1, 2]
    torch.testing.assert_close(losses.losses.mean(), output.loss)
    gpt = GPT2LMHeadModel(GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=8)).eval()
    labels = torch.randint(0, 20, (2, 6))
    labels[0, :4] = -100
    inputs = {"input_ids": torch.randint(0, 20, (2, 6)), "labels": labels}
    output = gpt(**inputs)
    losses = unit_losses(gpt, inputs, output)
    assert losses is not None and losses.losses.shape == (7,)  # the first token of each row is predicted from nothing
    torch.testing.assert_close(losses.losses.mean(), output.loss)
    assert losses.rows.tolist() == [0] * 2 + [1] * 5 and losses.labels == 8
    assert unit_losses(gpt, {"input_ids": labels}, output) is None


@pytest.fixture(scope="module")
def audited(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("audit")
    words = ["audit", "--out", str(folder / "trace"), "--json", str(SCRIPT), "classification", str(folder / "output")]
    done = subprocess.run([sys.executable, "-m", "minitrainer.trace", *words], capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    (folder / "audit.json").write_text(done.stdout)
    return folder


def test_the_installed_trainer_is_audited(audited):
    """What the audit says follows from the trace: a factor of two exactly where the loss was not divided."""
    document = json.loads((audited / "audit.json").read_text())
    whats = [one["what"] for one in document["checks"]]
    assert whats == ["the logged training loss", "train_loss", "the gradient's norm", "eval_loss"]
    from minitrainer.trace import events
    from minitrainer.trace.ranks import open_run

    losses = [row for row in open_run(audited / "trace").first if type(row) is events.Loss]
    assert len(losses) == 3
    undivided = all(divisor == 1 for row in losses for divisor in row.divided_by)
    first = document["checks"][0]
    ratio = first["was"][0] / first["should"][0]
    assert ratio == pytest.approx(2.0 if undivided else 1.0, rel=1e-3)
    assert document["checks"][3]["right"]
    assert "22 were trained on in 1 epoch, 22 different ones in each, none twice" in document["notes"][0]


def test_a_trace_without_the_probe_is_refused_in_one_line(audited):
    for file in (audited / "trace").glob("audit-rank*.jsonl"):
        file.rename(audited / file.name)
    with pytest.raises(UsageError, match="minitrainer.trace audit audited.py"):
        audit_run(audited / "trace")
    for file in audited.glob("audit-rank*.jsonl"):
        file.rename(audited / "trace" / file.name)
