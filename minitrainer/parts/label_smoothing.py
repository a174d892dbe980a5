"""Label smoothing: the target is no longer one class for certain, but a little of every class."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn


@dataclass
class LabelSmoother:
    """Compute a smoothed cross-entropy from logits that the model has already produced.

    **Beware:** the target keeps `1 - epsilon` and *every* class, the right one too, gets `epsilon / classes` on top;
    and if every label is ignored, the mean over no elements is NaN.

    Attributes:
        epsilon: the share of the target that is spread over all classes.
        ignore_index: labels with this value count neither in the sum nor in the mean.

    Source: trainer_pt_utils.py 472-512.
    """

    epsilon: float = 0.1
    ignore_index: int = -100

    def __call__(self, model_output: Any, labels: torch.Tensor, shift_labels: bool = False) -> torch.Tensor:
        """Return the smoothed loss of one micro-batch, a scalar tensor.

        Args:
            model_output: a dict with `logits`, or a tuple that starts with them; shape (…, classes).
            labels: class numbers, shape (…) or (…, 1).
            shift_labels: for causal models, compare the logits of one position with the label of the next.
        """
        logits = model_output["logits"] if isinstance(model_output, dict) else model_output[0]
        if shift_labels:
            # The last position has no next label, the first label no earlier position.
            logits, labels = logits[..., :-1, :].contiguous(), labels[..., 1:].contiguous()

        surprise = -nn.functional.log_softmax(logits, dim=-1)  # (…, classes), in nats
        if labels.dim() == surprise.dim() - 1:
            labels = labels.unsqueeze(-1)
        is_ignored = labels.eq(self.ignore_index)

        # gather fails on a negative class number; what it fetches for class 0 instead is masked out right below.
        target_loss = surprise.gather(dim=-1, index=torch.clamp(labels, min=0))
        # The sum over all classes overflows in half precision, so it is taken in float32.
        uniform_loss = surprise.sum(dim=-1, keepdim=True, dtype=torch.float32)
        target_loss.masked_fill_(is_ignored, 0.0)
        uniform_loss.masked_fill_(is_ignored, 0.0)

        # Order of the operations kept: the mean is a sum divided by a count, not torch's mean, to the last bit.
        counted = is_ignored.numel() - is_ignored.long().sum()
        target_loss = target_loss.sum() / counted
        uniform_loss = uniform_loss.sum() / (counted * surprise.shape[-1])
        return (1 - self.epsilon) * target_loss + self.epsilon * uniform_loss


# Read next: gathering.py
