"""One micro-batch: inputs to the device, forward, loss, backward.

`training_step` is called once for each micro-batch on each rank; the update of the weights comes later, in loop.py,
once the group is complete. `compute_loss` serves evaluations too.
"""

import contextlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from . import compat
from .attributes import Attributes

# Where labels stand one position to the left of the logits that predict them.
_CAUSAL_MODEL_NAMES = frozenset(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())


class StepMixin(Attributes):
    """Turns a micro-batch into gradients.

    Requires: `args`, `accelerator`, `label_smoother`, the precision switches of setup.py, and a model to call.
    You get: the loss of the micro-batch, detached; its gradients are added to those of its group.
    """

    def training_step(self, model: nn.Module, inputs: dict[str, torch.Tensor | Any]) -> torch.Tensor:
        """Add the gradients of one micro-batch to those of its group.

        The gradient of a group is the *mean of the means*: each micro-batch counts the same, however many samples
        or tokens it has.

        Override to look at a micro-batch, or to change how its gradients come about.

        Args:
            model: the model to call, wrapped as it is for training.
            inputs: the micro-batch: name to tensor, as the collator made it.

        Returns:
            The loss of this micro-batch on this rank, divided by `gradient_accumulation_steps`: 0-dim, detached, on
            the device. Dividing here is for the log; accelerate divides for the gradient.

        Raises:
            RuntimeError: if the loss is not a single number.
            TypeError: if there is none.

        Source: trainer.py 2628-2667
        """
        model.train()  # an evaluation may have come between
        inputs = self._prepare_inputs(inputs)

        # -- SageMaker -------------------------------------------------------------------------------
        if compat.is_sagemaker_mp_enabled():  # forward and backward in one, over the parts; never run on the hardware
            from .parts.sagemaker import smp_forward_backward

            micro_losses = smp_forward_backward(model, inputs, self.args.gradient_accumulation_steps)
            return micro_losses.reduce_mean().detach().to(self.args.device)

        # -- forward ---------------------------------------------------------------------------------
        with self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs)
        if self.args.n_gpu > 1:
            loss = loss.mean()  # DataParallel gives one loss a device; they lie on the first one by now
        _check_loss(loss, inputs)

        # -- backward --------------------------------------------------------------------------------
        if self.do_grad_scaling:
            self.scaler.scale(loss).backward()  # not divided by the group's length: a flaw of fairscale's path
        elif self.use_apex:
            from apex import amp

            with amp.scale_loss(loss, self.optimizer) as scaled_loss:
                scaled_loss.backward()
        else:
            self.accelerator.backward(loss)  # divides by the group's length, then runs backward
        return loss.detach() / self.args.gradient_accumulation_steps

    def _prepare_inputs(self, inputs: dict[str, torch.Tensor | Any]) -> dict[str, torch.Tensor | Any]:
        """Put a batch on the device and add the memory that a recurrent model returned for the batch before.

        Override if your batches are not made of tensors, lists and dicts.

        Args:
            inputs: name to tensor.

        Returns:
            The same structure, on the device.

        Raises:
            ValueError: if the batch is empty: the model takes none of the columns of the data set.
            TypeError: if there is no batch at all.

        Source: trainer.py 2590-2604
        """
        inputs: Any = self._prepare_input(inputs)  # type: ignore[no-redef]
        if inputs is None:
            raise TypeError(
                "object of type 'NoneType' has no len(): the data loader gave no batch. With `dataloader_drop_last` a"
                " data set needs at least one full batch."
            )
        if len(inputs) == 0:
            raise ValueError(
                "Nothing is left of the batch: no key of the examples is an argument of the model's forward, which takes"
                f" {','.join(self._signature_columns or [])}. Rename the columns, or set remove_unused_columns=False."
            )
        if self.args.past_index >= 0 and self._past is not None:
            inputs["mems"] = self._past
        return inputs

    def _prepare_input(self, data: torch.Tensor | Any) -> torch.Tensor | Any:
        """Put a tensor, or every tensor in nested dicts, lists and tuples, on the device.

        Args:
            data: a tensor, a container, or anything else, which is left alone.

        Returns:
            The same structure; a tensor that is on the device already is not copied.

        Source: trainer.py 2572-2588
        """
        if isinstance(data, Mapping):
            return type(data)({key: self._prepare_input(value) for key, value in data.items()})  # type: ignore[call-arg]
        if isinstance(data, (tuple, list)):
            return type(data)(self._prepare_input(value) for value in data)
        if not isinstance(data, torch.Tensor):
            return data
        if self.is_deepspeed_enabled and (torch.is_floating_point(data) or torch.is_complex(data)):
            # Ids become floats in the model's own embedding. Inputs that are floats already, such as audio, have to
            # be cast to its precision here.
            dtype = self.accelerator.state.deepspeed_plugin.hf_ds_config.dtype()
            return data.to(device=self.args.device, dtype=dtype)
        return data.to(device=self.args.device)

    def compute_loss_context_manager(self):
        """Make the context that `compute_loss` runs in.

        Override to add a context of your own around the forward pass.

        Returns:
            A context manager.

        Source: trainer.py 2606-2610
        """
        return self.autocast_smart_context_manager()

    def autocast_smart_context_manager(self, cache_enabled: bool | None = True):
        """Make the context of mixed precision, if the Trainer itself is in charge of it.

        Ordinarily it is not: accelerate has put autocast around the model's `forward`, so this does nothing. A loss
        that is computed outside of `forward` is in full precision then.

        Args:
            cache_enabled: whether autocast keeps the weights that it has cast until the context ends.

        Returns:
            A context manager.

        Source: trainer.py 2612-2626
        """
        if self.use_cpu_amp:
            return torch.autocast("cpu", cache_enabled=cache_enabled, dtype=self.amp_dtype)
        if self.use_cuda_amp:
            return torch.autocast("cuda", cache_enabled=cache_enabled, dtype=self.amp_dtype)
        return contextlib.nullcontext()

    def compute_loss(self, model, inputs, return_outputs=False):
        """Call the model and take its loss, or smooth the labels and compute it here.

        **Beware:** with label smoothing the labels are taken out of `inputs`, so a model that needs them for more
        than its loss (to make decoder inputs, say) fails; and the classes of the loss are the last dimension of the
        first output.

        Override for another loss.

        Args:
            model: the model to call.
            inputs: the batch, on the device.
            return_outputs: whether to return the model's output as well.

        Returns:
            The loss, 0-dim (one number a device under DataParallel); with `return_outputs` a tuple of it and the
            model's output.

        Raises:
            ValueError: if the model returned a dict without a loss.

        Writes: _past
        Source: trainer.py 2669-2699
        """
        labels = inputs.pop("labels") if self.label_smoother is not None and "labels" in inputs else None
        outputs = model(**inputs)
        if self.args.past_index >= 0:
            self._past = outputs[self.args.past_index]

        if labels is not None:
            if compat.unwrap_model(model)._get_name() in _CAUSAL_MODEL_NAMES:
                loss = self.label_smoother(outputs, labels, shift_labels=True)
            else:
                loss = self.label_smoother(outputs, labels)
        elif not isinstance(outputs, dict):
            loss = outputs[0]
        elif "loss" in outputs:
            loss = outputs["loss"]
        else:
            raise ValueError(
                f"No loss came from the model, only {','.join(outputs.keys())}. It was given"
                f" {','.join(inputs.keys())}: are the labels among them, under a name that its forward takes?"
            )
        return (loss, outputs) if return_outputs else loss


def _check_loss(loss: Any, inputs: Any) -> None:
    """Refuse what has no gradient to give, here rather than in the backward pass, where the model is out of sight."""
    advice = f" Models return a loss only if the batch has labels (here: {', '.join(inputs)})."
    if loss is None:
        raise TypeError(
            "unsupported operand type(s) for /: 'NoneType' and 'int': the loss of the `model` is None." + advice
        )
    if loss.numel() != 1:
        raise RuntimeError(
            "grad can be implicitly created only for scalar outputs, but the loss of the `model` has shape"
            f" {tuple(loss.shape)}. If the model returns a tuple, its first element must be the loss.{advice}"
        )


# Read next: cadence.py
