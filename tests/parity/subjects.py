"""The small things that a Case is made of: models, data sets, collators, metrics and callbacks.

Everything here is shared by both sides of a comparison: the same class trains under the real 4.31.0 Trainer and under
ours, so that a difference can only come from the Trainer. All sizes are tiny; a whole run takes a few hundredths of a
second.
"""

from __future__ import annotations

import functools
import zlib
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset

CLASSES = 3
FEATURES = 2
VOCABULARY = 20

# -- models ----------------------------------------------------------------------------------------------------------


class Subject(nn.Module):
    """Base of the models: what comes out, which losses break, and a record of every forward pass.

    Args:
        case: The Case, of which `outputs`, `extras`, `dropout`, `broken_losses` and `oom_above` are read.
    """

    def __init__(self, case: Any) -> None:
        super().__init__()
        self.case = case
        self.dropout = nn.Dropout(case.dropout)
        self.training_forwards = 0
        self.seen: Callable[..., None] | None = None

    def observe(self, **inputs: Any) -> None:
        """Tell the running observation which inputs this forward pass received."""
        if self.seen is not None:
            self.seen(self, inputs)

    def finish(self, loss: torch.Tensor | None, logits: torch.Tensor, mems: torch.Tensor | None = None) -> Any:
        """Give loss and logits the shape that the case asks for.

        Args:
            loss: The mean loss of this micro-batch, or None without labels.
            logits: One row a sample.
            mems: What the previous forward pass left, where the case has `past_index`.
        """
        if self.training:
            self.training_forwards += 1
            if self.case.oom_above is not None and len(logits) > self.case.oom_above:
                raise RuntimeError("CUDA out of memory. Tried to allocate more than this test allows.")
            if loss is not None and self.training_forwards in self.case.broken_losses:
                loss = self.broken(loss)
        fields: dict[str, Any] = {} if loss is None else {"loss": loss}
        fields["logits"] = logits
        if self.case.extras == "hidden":
            fields["hidden"] = (logits * 2, (logits + 1,))
        if self.case.extras == "mems":
            fields["mems"] = logits.detach().flatten(1).mean(1) if mems is None else mems * 0.5
        if self.case.outputs == "tuple":
            return tuple(fields.values())
        if self.case.outputs == "model_output":
            from transformers.modeling_outputs import SequenceClassifierOutput

            return SequenceClassifierOutput(loss=loss, logits=logits)
        return fields

    def broken(self, loss: torch.Tensor) -> torch.Tensor:
        """Break a loss in the case's way: the value alone, or its gradient too."""
        if self.case.broken_kind == "nan":  # the value is lost, the gradient stays: parameters remain finite
            return loss + torch.tensor(float("nan"))
        if self.case.broken_kind == "inf":
            return loss + torch.tensor(float("inf"))
        return loss * float("nan")  # the gradient is lost too: parameters turn NaN at the next step


class Regression(Subject):
    """Two features to one number, mean squared error."""

    def __init__(self, case: Any) -> None:
        super().__init__(case)
        self.norm = nn.LayerNorm(FEATURES)  # a layer whose parameters get no weight decay
        self.head = nn.Linear(FEATURES, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None, mems: torch.Tensor | None = None) -> Any:
        self.observe(x=x, labels=labels, mems=mems)
        logits = self.head(self.dropout(self.norm(x.to(self.head.weight.dtype))))
        loss = None if labels is None else nn.functional.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
        return self.finish(loss, logits, mems)


class Classifier(Subject):
    """Two features to three classes, cross entropy."""

    def __init__(self, case: Any) -> None:
        super().__init__(case)
        self.body = nn.Linear(FEATURES, 4)
        self.norm = nn.LayerNorm(4)
        self.head = nn.Linear(4, CLASSES)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None, mems: torch.Tensor | None = None) -> Any:
        self.observe(x=x, labels=labels, mems=mems)
        hidden = torch.tanh(self.norm(self.body(x.to(self.head.weight.dtype))))
        logits = self.head(self.dropout(hidden))
        loss = None if labels is None else nn.functional.cross_entropy(logits, labels)
        return self.finish(loss, logits, mems)


class Span(Subject):
    """Two label columns, as question answering has them."""

    def __init__(self, case: Any) -> None:
        super().__init__(case)
        self.head = nn.Linear(FEATURES, CLASSES)

    def forward(
        self, x: torch.Tensor, start_labels: torch.Tensor | None = None, end_labels: torch.Tensor | None = None
    ) -> Any:
        self.observe(x=x, start_labels=start_labels, end_labels=end_labels)
        logits = self.head(self.dropout(x.to(self.head.weight.dtype)))
        loss = None
        if start_labels is not None and end_labels is not None:
            loss = nn.functional.cross_entropy(logits, start_labels) + nn.functional.cross_entropy(-logits, end_labels)
        return self.finish(loss, logits)


class Contrastive(Subject):
    """No labels at all: the model itself returns a loss when `return_loss` is true."""

    def __init__(self, case: Any) -> None:
        super().__init__(case)
        self.head = nn.Linear(FEATURES, FEATURES)

    def forward(self, x: torch.Tensor, return_loss: bool = True) -> Any:
        self.observe(x=x, return_loss=return_loss)
        logits = self.head(self.dropout(x.to(self.head.weight.dtype)))
        return self.finish((logits - x.flip(-1).to(logits.dtype)).pow(2).mean() if return_loss else None, logits)


class Tagger(Subject):
    """One class a token, sequences of different lengths: predictions of different widths must be padded to gather."""

    def __init__(self, case: Any) -> None:
        super().__init__(case)
        self.embedding = nn.Embedding(VOCABULARY, 4)
        self.head = nn.Linear(4, CLASSES)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
    ) -> Any:
        self.observe(input_ids=input_ids, attention_mask=attention_mask, labels=labels)
        logits = self.head(self.dropout(self.embedding(input_ids)))
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)
        return self.finish(loss, logits)


class Buffered(Subject):
    """Has a layer that no output depends on, and a buffer that every training forward moves: what DDP must handle."""

    def __init__(self, case: Any) -> None:
        super().__init__(case)
        self.head = nn.Linear(FEATURES, 1)
        self.spare = nn.Linear(FEATURES, 1)
        self.register_buffer("center", torch.zeros(FEATURES))

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        self.observe(x=x, labels=labels, center=self.center)
        if self.training:
            self.center = 0.9 * self.center + 0.1 * x.mean(0).detach().to(self.center.dtype)
        logits = self.head(x.to(self.head.weight.dtype) - self.center)
        loss = None if labels is None else nn.functional.mse_loss(logits.squeeze(-1), labels.to(logits.dtype))
        return self.finish(loss, logits)


class Headless(Subject):
    """A model that never returns a loss: the Trainer must say so."""

    def __init__(self, case: Any) -> None:
        super().__init__(case)
        self.head = nn.Linear(FEATURES, 1)

    def forward(self, x: torch.Tensor, labels: torch.Tensor | None = None) -> Any:
        self.observe(x=x, labels=labels)
        return self.finish(None, self.head(x.to(self.head.weight.dtype)))


@functools.cache
def pretrained_class() -> type:
    """The classifier as a PreTrainedModel, which saves a configuration and counts floating-point operations."""
    from transformers import PretrainedConfig, PreTrainedModel

    class TinyConfig(PretrainedConfig):
        model_type = "tiny-parity"

    class TinyPretrained(PreTrainedModel):
        config_class = TinyConfig
        base_model_prefix = "body"
        main_input_name = "x"
        _no_split_modules: list[str] = []

        def __init__(self, config: Any, case: Any) -> None:
            super().__init__(config)
            self.body = Classifier(case)

        def _init_weights(self, module: nn.Module) -> None:
            del module  # the layers' own initialisation is all this model needs

        def forward(
            self, x: torch.Tensor, labels: torch.Tensor | None = None, mems: torch.Tensor | None = None
        ) -> Any:
            return self.body(x, labels, mems)

    TinyPretrained.__qualname__ = TinyPretrained.__name__
    return lambda case: TinyPretrained(TinyConfig(), case)  # type: ignore[return-value]


def bert(case: Any) -> nn.Module:
    """A BERT of one layer and two heads, small enough for a few hundred steps a second."""
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=VOCABULARY,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=8,
        max_position_embeddings=16,
        num_labels=CLASSES,
        hidden_dropout_prob=case.dropout,
        attention_probs_dropout_prob=case.dropout,
    )
    return BertForSequenceClassification(config)


MODELS: dict[str, Callable[[Any], nn.Module]] = {
    "regression": Regression,
    "classifier": Classifier,
    "span": Span,
    "contrastive": Contrastive,
    "tagger": Tagger,
    "buffered": Buffered,
    "headless": Headless,
    "pretrained": lambda case: pretrained_class()(case),
    "bert": bert,
    "bare_bert": lambda case: bert(case).bert,
}
TOKEN_MODELS = ("tagger", "bert", "bare_bert")


def build_model(case: Any, seen: Callable[..., None]) -> nn.Module:
    """Build the case's model and let it report its forward passes to `seen`."""
    model = MODELS[case.model](case)
    subjects = [module for module in model.modules() if isinstance(module, Subject)]
    for subject in subjects:
        # not an attribute of the module in the registered sense: it must reach no state dict and no pickle
        object.__setattr__(subject, "seen", seen)
    if not subjects:
        model.register_forward_pre_hook(lambda module, args, kwargs: seen(module, kwargs), with_kwargs=True)
    return model


# -- data ------------------------------------------------------------------------------------------------------------


def samples(case: Any, count: int, seed: int) -> list[dict[str, Any]]:
    """Draw `count` samples as plain Python values, the same for both sides."""
    source = np.random.RandomState(seed)
    rows = []
    for index in range(count):
        row: dict[str, Any]
        if case.model in TOKEN_MODELS:
            length = int(source.randint(1, 7))
            row = {"input_ids": [int(token) for token in source.randint(1, VOCABULARY, size=length)]}
            if case.model == "tagger":
                row["labels"] = [int(label) for label in source.randint(-1, CLASSES, size=length)]
                row["labels"] = [-100 if label < 0 else label for label in row["labels"]]
            else:
                row["labels"] = int(source.randint(CLASSES))
        else:
            row = {"x": [float(value) for value in source.randn(FEATURES)]}
            if case.model == "span":
                row["start_labels"] = int(source.randint(CLASSES))
                row["end_labels"] = int(source.randint(CLASSES))
            elif case.model in ("regression", "buffered"):
                row["labels"] = float(source.randn())
            elif case.model != "contrastive":
                row["labels"] = int(source.randint(CLASSES))
        if not case.labels:
            row = {key: value for key, value in row.items() if "label" not in key}
        if case.unused_column:
            row["note"] = [index]
        rows.append(row)
    return rows


class MapData(Dataset):
    """A list of samples with a length."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index]


class StreamData(IterableDataset):
    """Samples in a stream; `epochs` notes every `set_epoch` that a loader calls."""

    def __init__(self, rows: list[Any]) -> None:
        self.rows = rows
        self.epochs: list[int] = []

    def set_epoch(self, epoch: int) -> None:
        self.epochs.append(epoch)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.rows)


class SizedStreamData(StreamData):
    """A stream that knows its length."""

    def __len__(self) -> int:
        return len(self.rows)


def build_data(case: Any, kind: str, count: int, seed: int) -> Any:
    """Build one data set of the given kind.

    Args:
        case: The case, of which `sample_form` and `length_column` are read.
        kind: `map`, `iterable`, `iterable_sized`, `datasets`, or `none`.
        count: Number of samples.
        seed: Seed of the samples.
    """
    if kind == "none":
        return None
    rows = samples(case, count, seed)
    if kind == "datasets":
        import datasets

        if case.length_column:
            for row in rows:
                row["length"] = len(row.get("input_ids", row.get("x")))
        columns = list(rows[0]) if rows else ["x", "labels"]
        return datasets.Dataset.from_dict({column: [row[column] for row in rows] for column in columns})
    formed = [form_sample(case, row) for row in rows]
    return {"map": MapData, "iterable": StreamData, "iterable_sized": SizedStreamData}[kind](formed)


def form_sample(case: Any, row: dict[str, Any]) -> Any:
    """Turn plain values into the case's sample form."""
    if case.sample_form == "tensors":
        return {key: torch.tensor(value) for key, value in row.items()}
    if case.sample_form == "arrays":
        return {key: np.array(value, dtype=np.float32 if key == "x" else None) for key, value in row.items()}
    if case.sample_form == "objects":
        return SimpleNamespace(**row)
    return row


# -- collators -------------------------------------------------------------------------------------------------------


def pad_collator(features: list[Any]) -> dict[str, torch.Tensor]:
    """Collate samples of different lengths: ids padded with 0, labels with -100."""
    rows = [vars(feature) if isinstance(feature, SimpleNamespace) else feature for feature in features]
    batch = {}
    for key in rows[0]:
        values = [torch.as_tensor(row[key]) for row in rows]
        if values[0].dim() == 0:
            batch[key] = torch.stack(values)
        else:
            padding = -100 if key == "labels" else 0
            batch[key] = nn.utils.rnn.pad_sequence(values, batch_first=True, padding_value=padding)
    if "input_ids" in batch:
        batch["attention_mask"] = (batch["input_ids"] != 0).long()
    if "x" in batch:
        batch["x"] = batch["x"].float()
    return batch


def encoding_collator(features: list[Any]) -> Any:
    """Return a mapping that is not a dict, as tokenizers do."""
    from transformers import BatchEncoding

    return BatchEncoding(pad_collator(features))


class OldStyleCollator:
    """Not callable: the form that the Trainer refuses by name."""

    def collate_batch(self, features: list[Any]) -> dict[str, torch.Tensor]:
        return pad_collator(features)


def build_collator(case: Any) -> Any:
    """The collator of the case, or None for the Trainer's own default."""
    if case.collator == "default":
        return pad_collator if case.model in TOKEN_MODELS and not case.tokenizer else None
    return {"pad": pad_collator, "encoding": encoding_collator, "old_style": OldStyleCollator()}[case.collator]


@functools.cache
def build_tokenizer() -> Any:
    """A word-level tokenizer made in memory; saving it writes its real files."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"[PAD]": 0, "[UNK]": 1} | {f"w{index}": index for index in range(2, VOCABULARY)}
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]")


# -- metrics ---------------------------------------------------------------------------------------------------------


def digest_metrics(prediction: Any) -> dict[str, Any]:
    """Metrics in which any change of any prediction or label shows, in the number types that scripts return."""
    flat = [np.asarray(part) for part in flatten((prediction.predictions, prediction.label_ids))]
    inputs = [np.asarray(part) for part in flatten(getattr(prediction, "inputs", None))]
    return {
        "mean": np.mean([part.astype(np.float64).mean() for part in flat]),
        "crc": zlib.crc32(b"".join(part.tobytes() for part in flat)),
        "rows": np.int64(flat[0].shape[0]),
        "width": torch.tensor(float(sum(part.size for part in flat))),
        "inputs": sum(part.size for part in inputs),
        "accuracy": 1.0 / (1 + (zlib.crc32(flat[0].tobytes()) % 3)),  # with ties, for the best-model choice
        "eval_prefixed": 1.5,
    }


def flatten(value: Any) -> list[Any]:
    """The arrays within nested tuples, in order."""
    if value is None:
        return []
    if isinstance(value, (tuple, list)):
        return [part for item in value for part in flatten(item)]
    return [value]


def broken_metrics(prediction: Any) -> dict[str, Any]:
    """A user's metric that fails."""
    raise ZeroDivisionError("the metric of this test divides by zero")


METRICS: dict[str, Any] = {"none": None, "digest": digest_metrics, "broken": broken_metrics}


def argmax_logits(logits: Any, labels: Any) -> Any:
    """Keep the best class only, as `run_clm` does."""
    del labels
    first = logits[0] if isinstance(logits, tuple) else logits
    return first.argmax(dim=-1)


def pair_logits(logits: Any, labels: Any) -> Any:
    """Return two tensors, so that the gathering must nest."""
    first = logits[0] if isinstance(logits, tuple) else logits
    return first, first.sum(dim=-1) if labels is None else first * 2


PREPROCESS: dict[str, Any] = {"none": None, "argmax": argmax_logits, "pair": pair_logits}


# -- callbacks -------------------------------------------------------------------------------------------------------


class PlannedCrash(Exception):
    """Raised from a callback at a planned moment: the run dies and may be resumed."""


EVENTS = (
    "on_init_end",
    "on_train_begin",
    "on_train_end",
    "on_epoch_begin",
    "on_epoch_end",
    "on_step_begin",
    "on_substep_end",
    "on_step_end",
    "on_evaluate",
    "on_predict",
    "on_save",
    "on_log",
    "on_prediction_step",
)


def nudging_callback(base: type, nudges: tuple, crash: tuple | None) -> Any:
    """A callback that raises or lowers flags, or raises an exception, at given occurrences of given events.

    Args:
        base: The library's TrainerCallback.
        nudges: Tuples (event, occurrence counted from 1, flag, value).
        crash: (event, occurrence) at which to raise PlannedCrash, or None.
    """

    def handler(event: str) -> Callable[..., Any]:
        def handle(self: Any, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            self.counts[event] = self.counts.get(event, 0) + 1
            moment = (event, self.counts[event])
            if moment == crash:
                raise PlannedCrash(f"{event} number {moment[1]}")
            flags = {flag: value for at, count, flag, value in nudges if (at, count) == moment}
            for flag, value in flags.items():
                setattr(control, flag, value)
            return control if flags else None

        return handle

    members: dict[str, Any] = {event: handler(event) for event in EVENTS}
    return type("Nudge", (base,), members | {"counts": {}})()


# Read next: tests/parity/cases.py
