"""What `train`, `evaluate` and `predict` hand back, and what `compute_metrics` is given."""

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

Arrays = np.ndarray | tuple[np.ndarray, ...]


class EvalPrediction:
    """All predictions of one evaluation, with their labels: the only argument of `compute_metrics`.

    It unpacks like a pair, `logits, labels = prediction`; with `include_inputs_for_metrics` it unpacks like a
    triple, whose third part is the inputs. **Beware:** it has no length, so `len(prediction)` fails.

    Attributes:
        predictions: logits, first dimension the examples; a tuple where the model has several outputs.
        label_ids: the labels in the same order; a tuple where there are several.
        inputs: the main model inputs, or None.

    Source: trainer_utils.py 101-137.
    """

    def __init__(self, predictions: Any, label_ids: Any, inputs: Any = None):
        self.predictions = predictions
        self.label_ids = label_ids
        self.inputs = inputs

    def _parts(self) -> tuple[Any, ...]:
        """The two or three parts, in the order in which they unpack."""
        pair = (self.predictions, self.label_ids)
        return pair if self.inputs is None else (*pair, self.inputs)

    def __iter__(self) -> Iterator[Any]:
        return iter(self._parts())

    def __getitem__(self, idx: int) -> Any:
        # A negative index is refused, as upstream: [-1] would mean labels or inputs, depending on an argument.
        if not 0 <= idx < len(self._parts()):
            raise IndexError("tuple index out of range")
        return self._parts()[idx]


class EvalLoopOutput(NamedTuple):
    """What `evaluation_loop` and `prediction_loop` return.

    `metrics` carries the prefix of the loop (`eval_loss`), and `num_samples` counts examples over all ranks.
    """

    predictions: Arrays | None
    label_ids: Arrays | None
    metrics: dict[str, float]
    num_samples: int


class PredictionOutput(NamedTuple):
    """What `predict` returns: an `EvalLoopOutput` without the count of examples."""

    predictions: Arrays | None
    label_ids: Arrays | None
    metrics: dict[str, float] | None


class TrainOutput(NamedTuple):
    """What `train` returns.

    `training_loss` is the mean loss of a step over the whole run. **Beware:** after a resume it divides the losses
    of the resumed part alone by all steps, those of the first part included.
    """

    global_step: int
    training_loss: float
    metrics: dict[str, float]


class BestRun(NamedTuple):
    """What `hyperparameter_search` returns.

    `run_summary` is Ray's `ExperimentAnalysis`; the other backends leave it None.
    """

    run_id: str
    objective: float
    hyperparameters: dict[str, Any]
    run_summary: Any | None = None


# Read next: seeding.py
