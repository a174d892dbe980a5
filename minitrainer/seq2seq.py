"""Seq2SeqTrainer: a Trainer that evaluates by generating text instead of by reading logits.

It overrides three methods. `evaluate` and `predict` keep the settings for `generate`; `prediction_step` generates
where its parent calls the model, and calls the model once more only for a loss. Training is the parent's.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import Dataset
from transformers import GenerationConfig

from . import compat
from .trainer import Trainer

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from .arguments import TrainingArguments
    from .callbacks import TrainerCallback
    from .parts.outputs import EvalPrediction, PredictionOutput


class Seq2SeqTrainer(Trainer):
    """Needs `Seq2SeqTrainingArguments`; with `predict_with_generate`, metrics get generated token ids.

    **Beware:** a length or a number of beams in the *generation config* is not what evaluation uses. Where neither the
    call nor the arguments give one, `prediction_step` passes the model config's (20 tokens, 1 beam, unless set), and
    what is passed to `generate` wins over the generation config.
    """

    def __init__(
        self,
        model: PreTrainedModel | nn.Module | None = None,
        args: TrainingArguments | None = None,
        data_collator: Any = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Dataset | dict[str, Dataset] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        model_init: Callable[[], PreTrainedModel] | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
        preprocess_logits_for_metrics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    ) -> None:
        """Build the Trainer, then give the model the generation config of the arguments, if there is one.

        **Beware:** with `model_init` that config is lost when `train` makes the model anew.

        Args: those of `Trainer`.

        Writes: model.generation_config
        Source: trainer_seq2seq.py 41-74
        """
        super().__init__(
            model=model,  # type: ignore[arg-type]
            model_init=model_init,
            args=args,  # type: ignore[arg-type]
            data_collator=data_collator,
            tokenizer=tokenizer,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            callbacks=callbacks,
            optimizers=optimizers,
            compute_metrics=compute_metrics,
            preprocess_logits_for_metrics=preprocess_logits_for_metrics,
        )
        if self.args.generation_config is not None:
            self.model.generation_config = self.load_generation_config(self.args.generation_config)

    @staticmethod
    def load_generation_config(gen_config_arg: str | GenerationConfig) -> GenerationConfig:
        """Return a generation config from whatever `args.generation_config` is.

        Args:
            gen_config_arg: a config (a copy is returned), a file, a folder, or a name on the Hub.

        Raises:
            OSError: if it is none of these.

        Source: trainer_seq2seq.py 76-108
        """
        if isinstance(gen_config_arg, GenerationConfig):
            return deepcopy(gen_config_arg)
        path = Path(gen_config_arg)
        if path.is_file():
            return GenerationConfig.from_pretrained(path.parent, path.name)
        return GenerationConfig.from_pretrained(path if path.is_dir() else gen_config_arg)

    def evaluate(  # type: ignore[override]  # upstream's signature: generation settings come on top
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
        **gen_kwargs: Any,
    ) -> dict[str, float]:
        """Evaluate as `Trainer.evaluate` does, with settings for `generate`.

        Evaluation within `train` passes none, so `generation_max_length` and `generation_num_beams` decide there.

        Args:
            eval_dataset: used instead of `self.eval_dataset`.
            ignore_keys: keys of the model's output that are not predictions; used without `predict_with_generate`.
            metric_key_prefix: every metric is named `<prefix>_<name>`.
            gen_kwargs: for `generate`; `max_length` (unless `max_new_tokens` is given) and `num_beams` default to the
                arguments'.

        Returns:
            The metrics.

        Writes: _gen_kwargs
        Source: trainer_seq2seq.py 110-159
        """
        self._gen_kwargs = self._with_defaults(gen_kwargs)
        return super().evaluate(eval_dataset, ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix)

    def predict(  # type: ignore[override]
        self,
        test_dataset: Dataset,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "test",
        **gen_kwargs: Any,
    ) -> PredictionOutput:
        """Predict as `Trainer.predict` does, with settings for `generate`.

        Args:
            test_dataset: the data set.
            ignore_keys: keys of the model's output that are not predictions; used without `predict_with_generate`.
            metric_key_prefix: every metric is named `<prefix>_<name>`.
            gen_kwargs: as for `evaluate`.

        Returns:
            `PredictionOutput`; with `predict_with_generate`, predictions are token ids of shape (samples, longest).

        Writes: _gen_kwargs
        Source: trainer_seq2seq.py 161-221
        """
        self._gen_kwargs = self._with_defaults(gen_kwargs)
        return super().predict(test_dataset, ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix)

    def _with_defaults(self, gen_kwargs: dict[str, Any]) -> dict[str, Any]:
        """Fill in the arguments' length and beams where the call left them open; None stays None."""
        gen_kwargs = gen_kwargs.copy()
        if gen_kwargs.get("max_length") is None and gen_kwargs.get("max_new_tokens") is None:
            gen_kwargs["max_length"] = self.args.generation_max_length
        if gen_kwargs.get("num_beams") is None:
            gen_kwargs["num_beams"] = self.args.generation_num_beams
        return gen_kwargs

    def prediction_step(  # type: ignore[override]
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
        **gen_kwargs: Any,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Generate from one batch, and compute the loss of its labels, without gradients.

        Without `predict_with_generate`, or for the loss alone, it is the parent's.

        **Beware:** generated ids are filled up to the length in the *generation config*, not to the one they were
        generated with: batches may still differ in length, and are then joined with -100.

        Args:
            model: the wrapped model; for the loss. Generation uses `self.model`.
            inputs: one batch, on any device.
            prediction_loss_only: return the loss alone.
            ignore_keys: keys of the output that are not predictions.
            gen_kwargs: for `generate`; if there are none, those that `evaluate` or `predict` has kept.

        Returns:
            (loss, generated ids, labels), ids and labels of shape (batch, length); without labels, loss and labels
            are None.

        Writes: model.generation_config._from_model_config
        Source: trainer_seq2seq.py 223-319
        """
        if not self.args.predict_with_generate or prediction_loss_only:
            return super().prediction_step(
                model, inputs, prediction_loss_only=prediction_loss_only, ignore_keys=ignore_keys
            )

        has_labels = "labels" in inputs
        inputs = self._prepare_inputs(inputs)

        # -- settings ---
        if len(gen_kwargs) == 0 and hasattr(self, "_gen_kwargs"):
            gen_kwargs = self._gen_kwargs.copy()
        if gen_kwargs.get("max_length") is None and gen_kwargs.get("max_new_tokens") is None:
            gen_kwargs["max_length"] = compat.generation_setting(self.model, "max_length")
        if gen_kwargs.get("num_beams") is None:
            gen_kwargs["num_beams"] = compat.generation_setting(self.model, "num_beams")
        if gen_kwargs.get("synced_gpus") is None:
            # Under ZeRO 3 every forward pass is a collective call: all ranks go on until the last one is done.
            gen_kwargs["synced_gpus"] = compat.is_deepspeed_zero3_enabled()

        # -- generate ---
        # Decoder inputs made from the labels would be taken as the beginning of the answer. The loss below has to do
        # without them too: the model makes them from the labels again.
        decoder_input_ids = inputs.get("decoder_input_ids")
        if "labels" in inputs and decoder_input_ids is not None and inputs["labels"].shape == decoder_input_ids.shape:
            inputs = {name: value for name, value in inputs.items() if name != "decoder_input_ids"}
        generated_ids = self.model.generate(**inputs, **gen_kwargs)

        # A generation config that was derived from the model's config is derived again, with a warning, in every
        # call, until it says that it was not.
        generation_config = self.model.generation_config
        if generation_config._from_model_config:
            self.model.generation_config._from_model_config = False
        generated_ids = self._pad_to_generation_length(generated_ids, generation_config)

        # -- loss ---
        loss = None
        if has_labels:
            with torch.no_grad():
                with self.compute_loss_context_manager():
                    outputs = model(**inputs)
                if self.label_smoother is not None:
                    loss = self.label_smoother(outputs, inputs["labels"])
                else:
                    loss = outputs["loss"] if isinstance(outputs, dict) else outputs[0]
                loss = loss.mean().detach()

        if self.args.prediction_loss_only:
            return loss, None, None
        labels = self._pad_to_generation_length(inputs["labels"], generation_config) if has_labels else None
        return loss, generated_ids, labels

    def _pad_to_generation_length(self, token_ids: torch.Tensor, generation_config: GenerationConfig) -> torch.Tensor:
        """Fill ids up to the generation config's length, or to `max_new_tokens` and a start token if that is more."""
        length, new_tokens = token_ids.shape[-1], generation_config.max_new_tokens
        max_length = 20 if generation_config.max_length is None else generation_config.max_length  # None from 5.0 on
        if length < max_length:
            return self._pad_tensors_to_max_len(token_ids, max_length)
        if new_tokens is not None and length < new_tokens + 1:
            return self._pad_tensors_to_max_len(token_ids, new_tokens + 1)
        return token_ids

    def _pad_tensors_to_max_len(self, tensor: torch.Tensor, max_length: int) -> torch.Tensor:
        """Fill rows up on the right with the padding token: the tokenizer's, its end token, or the model's.

        Labels are filled with it too, not with -100.

        Args:
            tensor: ids of shape (batch, length).
            max_length: the new length.

        Returns:
            Ids of shape (batch, max_length).

        Raises:
            ValueError: if there is no tokenizer, and the model's config names no padding token.

        Source: trainer_seq2seq.py 321-339
        """
        if self.tokenizer is not None and hasattr(self.tokenizer, "pad_token_id"):
            pad_token_id = self.tokenizer.pad_token_id
            if pad_token_id is None:
                pad_token_id = self.tokenizer.eos_token_id
        else:
            pad_token_id = getattr(self.model.config, "pad_token_id", None)
            if pad_token_id is None:
                raise ValueError(
                    "Generated rows differ in length and nothing says how to fill them up: set "
                    "model.config.pad_token_id, or pass a tokenizer to the Trainer."
                )
        padded = pad_token_id * torch.ones((tensor.shape[0], max_length), dtype=tensor.dtype, device=tensor.device)
        padded[:, : tensor.shape[-1]] = tensor
        return padded


# Read next: question_answering.py
