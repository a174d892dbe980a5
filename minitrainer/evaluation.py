"""Evaluation and prediction: one pass over a dataloader without gradients, gathered from all ranks.

`evaluate` and `predict` are the same three moves: get a dataloader, run `evaluation_loop` over it, report speed and
events. The loop calls `prediction_step` for each batch and keeps four growing piles: losses, predictions, labels and,
on request, inputs.

Two flaws of 4.31.0 live here and are kept. The evaluation loss weighs the last batch wrongly on several ranks. And
`eval_accumulation_steps` does not count batches: any value moves the piles to the CPU after every batch.
`evaluation_loop` says more about both.
"""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from . import compat
from .attributes import Attributes
from .parts.choices import ParallelMode
from .parts.gathering import (
    DistributedTensorGatherer,
    distributed_concat,
    find_batch_size,
    nested_concat,
    nested_detach,
    nested_numpify,
    nested_xla_mesh_reduce,
)
from .parts.inspection import has_length
from .parts.logs import get_logger
from .parts.metrics import denumpify_detensorize, speed_metrics
from .parts.outputs import EvalLoopOutput, EvalPrediction, PredictionOutput
from .parts.samplers import IterableDatasetShard, SequentialDistributedSampler

if TYPE_CHECKING:
    from collections.abc import Iterable

logger = get_logger(__name__)

# Shorter rows are filled up with this value before rows of different length are joined; losses ignore it too.
PADDING_INDEX = -100


class _Pile:
    """Everything of one kind (losses, predictions, labels or inputs) that a loop has seen so far.

    New tensors are joined on the device, where that is cheap and needs no synchronisation; `move_to_cpu` brings
    them over and frees the device.
    """

    def __init__(self) -> None:
        self.on_device: Any = None  # tensors of the device, or nests of them
        self.on_cpu: Any = None  # numpy arrays, same nesting

    def add(self, tensors: Any) -> None:
        """Append the rows of one batch (first dimension) behind those already here."""
        if tensors is not None:
            self.on_device = _join(self.on_device, tensors)

    def move_to_cpu(self) -> None:
        """Bring the device's rows to the CPU. Waits for the device."""
        if self.on_device is not None:
            self.on_cpu = _join(self.on_cpu, nested_numpify(self.on_device))
            self.on_device = None


def _join(earlier: Any, later: Any) -> Any:
    return later if earlier is None else nested_concat(earlier, later, padding_index=PADDING_INDEX)


class EvaluationMixin(Attributes):
    """Needs a model, the accelerator, dataloaders (data.py), compute_loss and _prepare_inputs (step.py), log.

    You get: `evaluate` and `predict` for users, `evaluation_loop` and `prediction_loop` (its deprecated twin) for one
    dataloader, `prediction_step` for one batch.
    """

    def evaluate(
        self,
        eval_dataset: Dataset | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> dict[str, float]:
        """Run the model over the evaluation set and return its metrics, logged on the way.

        Override it to add metrics that need more than predictions and labels (as question_answering.py does).

        Args:
            eval_dataset: used instead of `self.eval_dataset`; one data set, never a dict of them.
            ignore_keys: keys of the model's output that are not predictions.
            metric_key_prefix: every metric is named `<prefix>_<name>`.

        Returns:
            The metrics: `<prefix>_loss` where the model gives a loss, those of `compute_metrics`, then runtime in
            seconds and speed. `log` adds `epoch` to this same dict.

        Raises:
            ValueError: if there is neither `eval_dataset` nor `self.eval_dataset`.

        Writes: control
        Events: on_evaluate
        Source: trainer.py 2897-2966
        """
        # The tracker starts before the dataloader exists, so that its workers count.
        self._memory_tracker.start()

        eval_dataloader = self.get_eval_dataloader(eval_dataset)
        start_time = time.time()

        loop = self.prediction_loop if self.args.use_legacy_prediction_loop else self.evaluation_loop
        output = loop(
            eval_dataloader,
            description="Evaluation",
            # Without compute_metrics nobody reads the predictions: gathering them would only cost memory.
            # None leaves the choice to args.prediction_loss_only.
            prediction_loss_only=True if self.compute_metrics is None else None,
            ignore_keys=ignore_keys,
            metric_key_prefix=metric_key_prefix,
        )
        self._add_speed_metrics(output, start_time, metric_key_prefix)

        self.log(output.metrics)
        self._print_tpu_metrics()
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, output.metrics)

        # After the log on purpose: memory figures are in the returned metrics, never in log_history.
        self._memory_tracker.stop_and_update_metrics(output.metrics)
        return output.metrics

    def predict(
        self, test_dataset: Dataset, ignore_keys: list[str] | None = None, metric_key_prefix: str = "test"
    ) -> PredictionOutput:
        """Run the model over a data set, with or without labels, and return what it predicts.

        Unlike `evaluate`, it logs nothing, and it gathers predictions even where nothing computes a metric.
        Override it to turn predictions into answers, texts or files.

        Args:
            test_dataset: the data set; columns that the model does not take are dropped.
            ignore_keys: keys of the model's output that are not predictions.
            metric_key_prefix: every metric is named `<prefix>_<name>`.

        Returns:
            `PredictionOutput(predictions, label_ids, metrics)`; arrays of shape (samples, …), rows of different
            length filled up on the right with -100; `label_ids` is None without labels.

        Writes: control
        Events: on_predict
        Source: trainer.py 2968-3028
        """
        self._memory_tracker.start()

        test_dataloader = self.get_test_dataloader(test_dataset)
        start_time = time.time()

        loop = self.prediction_loop if self.args.use_legacy_prediction_loop else self.evaluation_loop
        output = loop(
            test_dataloader, description="Prediction", ignore_keys=ignore_keys, metric_key_prefix=metric_key_prefix
        )
        self._add_speed_metrics(output, start_time, metric_key_prefix)

        self.control = self.callback_handler.on_predict(self.args, self.state, self.control, output.metrics)
        self._memory_tracker.stop_and_update_metrics(output.metrics)
        return PredictionOutput(predictions=output.predictions, label_ids=output.label_ids, metrics=output.metrics)

    def evaluation_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Run the model over one dataloader and gather losses, predictions and labels from all ranks.

        **Beware:** the loss is a mean of batch means, each counted `eval_batch_size` times, cut to the number of
        samples at the end. On one rank all samples weigh alike. On several ranks the last batch is filled up with
        samples from the start, and its mean has taken them in before the cut.
        **Beware:** any `eval_accumulation_steps` but None moves the piles to the CPU after *every* batch: the count
        is left to `accelerator.sync_gradients`, which is True outside an accumulating training step. Within `train`
        it is whatever the last micro-batch left behind.

        Args:
            dataloader: prepared by the accelerator.
            description: `Evaluation` or `Prediction`; only printed.
            prediction_loss_only: keep losses and drop all else; None means `args.prediction_loss_only`.
            ignore_keys: keys of the model's output that are not predictions.
            metric_key_prefix: every metric is named `<prefix>_<name>`.

        Returns:
            `EvalLoopOutput(predictions, label_ids, metrics, num_samples)`, arrays of shape (samples, …).

        Writes: callback_handler.eval_dataloader, control, _past
        Events: on_prediction_step
        Source: trainer.py 3030-3239
        """
        args = self.args
        if prediction_loss_only is None:
            prediction_loss_only = args.prediction_loss_only

        # -- model ---
        model = self._model_for_evaluation(dataloader)

        batch_size = args.eval_batch_size  # per rank
        num_examples = self.num_examples(dataloader) if has_length(dataloader) else "Unknown"
        self._announce(description, num_examples, batch_size)

        model.eval()
        self.callback_handler.eval_dataloader = dataloader
        eval_dataset = getattr(dataloader, "dataset", None)
        if args.past_index >= 0:
            self._past = None

        # -- batches ---
        losses, predictions, labels_seen, inputs_seen = piles = _Pile(), _Pile(), _Pile(), _Pile()
        samples_seen = 0  # on this rank; the fallback where neither data set nor dataloader knows its length

        for inputs in dataloader:
            batch_samples = find_batch_size(inputs)
            if batch_samples is not None:
                samples_seen += batch_samples
                if batch_size is None:
                    batch_size = batch_samples

            loss, logits, labels = self.prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignore_keys)
            input_ids = self._prepare_input(inputs["input_ids"]) if args.include_inputs_for_metrics else None
            self._mark_tpu_step()

            # Every rank must make these collective calls in one and the same order, or all of them hang.
            # gather_for_metrics drops the rows that only pad the last batch.
            gather, pad = self.accelerator.gather_for_metrics, self.accelerator.pad_across_processes
            if loss is not None:
                losses.add(gather(loss.repeat(batch_size)))  # () -> (batch,) -> (ranks * batch,)
            if labels is not None:
                labels = pad(labels, dim=1, pad_index=PADDING_INDEX)
            if input_ids is not None:
                inputs_seen.add(gather(pad(input_ids, dim=1, pad_index=PADDING_INDEX)))
            if logits is not None:
                logits = pad(logits, dim=1, pad_index=PADDING_INDEX)
                if self.preprocess_logits_for_metrics is not None:
                    logits = self.preprocess_logits_for_metrics(logits, labels)
                predictions.add(gather(logits))
            if labels is not None:
                labels_seen.add(gather(labels))

            self.control = self.callback_handler.on_prediction_step(args, self.state, self.control)

            if args.eval_accumulation_steps is not None and self.accelerator.sync_gradients:
                for pile in piles:
                    pile.move_to_cpu()

        self._forget_past()
        for pile in piles:
            pile.move_to_cpu()

        # -- metrics ---
        metrics = self._computed_metrics(predictions.on_cpu, labels_seen.on_cpu, inputs_seen.on_cpu)
        if losses.on_cpu is not None:
            metrics[f"{metric_key_prefix}_loss"] = losses.on_cpu.mean().item()
        if hasattr(self, "jit_compilation_time"):
            metrics[f"{metric_key_prefix}_jit_compilation_time"] = self.jit_compilation_time

        return EvalLoopOutput(
            predictions=predictions.on_cpu,
            label_ids=labels_seen.on_cpu,
            metrics=_with_prefix(metrics, metric_key_prefix),
            num_samples=self._samples_evaluated(eval_dataset, dataloader, samples_seen),
        )

    def prediction_loop(
        self,
        dataloader: DataLoader,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> EvalLoopOutput:
        """Run the model over one dataloader: the older twin of `evaluation_loop`, deprecated.

        It is used where `args.use_legacy_prediction_loop` is True, by default False. Unlike its successor it needs a
        dataloader with a length, counts `eval_accumulation_steps` as batches, and gathers only then. **Beware:**
        `preprocess_logits_for_metrics` is not called. And dataloaders that accelerate has prepared name no batch
        size, so `evaluate` through this loop fails at its first loss, as in 4.31.0; a plain dataloader works.

        Args:
            dataloader: with a length.
            description: `Evaluation` or `Prediction`; only printed.
            prediction_loss_only: keep losses and drop all else; None means `args.prediction_loss_only`.
            ignore_keys: keys of the model's output that are not predictions.
            metric_key_prefix: every metric is named `<prefix>_<name>`.

        Returns:
            `EvalLoopOutput(predictions, label_ids, metrics, num_samples)`.

        Raises:
            ValueError: if the dataloader has no length.
            TypeError: if there is a loss, and the dataloader has no batch size to repeat it by.

        Writes: callback_handler.eval_dataloader, control, _past
        Events: on_prediction_step
        Source: trainer.py 3593-3742
        """
        args = self.args
        if not has_length(dataloader):
            raise ValueError(
                f"prediction_loop needs a dataloader with a __len__, and {type(dataloader).__name__} has none. "
                "Give the data set a length, or leave args.use_legacy_prediction_loop unset."
            )
        if prediction_loss_only is None:
            prediction_loss_only = args.prediction_loss_only

        model = self._model_for_evaluation(dataloader)
        batch_size: Any = dataloader.batch_size
        num_examples = self.num_examples(dataloader)
        self._announce(description, num_examples, batch_size)

        # -- containers of the final size ---
        world_size = max(1, args.world_size)
        # The sampler pads the set to a multiple of its batch size; the gatherers must know which.
        sampler = getattr(dataloader, "sampler", None)
        padded_to = sampler.batch_size if isinstance(sampler, SequentialDistributedSampler) else None
        gatherers = {
            "eval_losses": DistributedTensorGatherer(world_size, num_examples, make_multiple_of=batch_size),
        }
        if not prediction_loss_only:
            for name in ("eval_preds", "eval_label_ids", "eval_inputs_ids"):
                gatherers[name] = DistributedTensorGatherer(world_size, num_examples, make_multiple_of=padded_to)

        model.eval()
        if args.past_index >= 0:
            self._past = None
        self.callback_handler.eval_dataloader = dataloader

        # -- batches ---
        on_device: dict[str, Any] = {}  # what was seen since the last gathering

        def gather_all() -> None:
            for name, gatherer in gatherers.items():
                gatherer.add_arrays(self._gather_and_numpify(on_device.get(name), name))

        for step, inputs in enumerate(dataloader):
            loss, logits, labels = self.prediction_step(model, inputs, prediction_loss_only, ignore_keys=ignore_keys)
            input_ids = self._prepare_input(inputs["input_ids"]) if args.include_inputs_for_metrics else None
            if loss is not None and batch_size is None:
                # What follows fails as it does in 4.31.0, in words that name neither cause nor remedy.
                logger.error(
                    "prediction_loop needs a dataloader with a batch_size; those that accelerate has prepared have "
                    "none: leave args.use_legacy_prediction_loop unset."
                )

            seen = {
                "eval_losses": None if loss is None else loss.repeat(batch_size),
                "eval_preds": logits,
                "eval_label_ids": labels,
                "eval_inputs_ids": input_ids,
            }
            for name, tensors in seen.items():
                if tensors is not None:
                    on_device[name] = _join(on_device.get(name), tensors)
            self.control = self.callback_handler.on_prediction_step(args, self.state, self.control)

            if args.eval_accumulation_steps is not None and (step + 1) % args.eval_accumulation_steps == 0:
                gather_all()
                on_device.clear()

        self._forget_past()
        gather_all()

        # -- metrics ---
        arrays = {name: gatherer.finalize() for name, gatherer in gatherers.items()}
        predictions, label_ids = arrays.get("eval_preds"), arrays.get("eval_label_ids")
        metrics = self._computed_metrics(predictions, label_ids, arrays.get("eval_inputs_ids"))
        if arrays["eval_losses"] is not None:
            metrics[f"{metric_key_prefix}_loss"] = arrays["eval_losses"].mean().item()

        return EvalLoopOutput(
            predictions=predictions,
            label_ids=label_ids,
            metrics=_with_prefix(metrics, metric_key_prefix),
            num_samples=num_examples,
        )

    def _model_for_evaluation(self, dataloader: DataLoader) -> nn.Module:
        """Wrap and prepare the model where `train` has not done so, and cast it for full half-precision evaluation.

        The DeepSpeed and FSDP branches were never run on the hardware.

        Writes: model, model_wrapped, deepspeed
        Source: trainer.py 3048-3079
        """
        args = self.args
        if self.is_deepspeed_enabled and self.deepspeed is None:
            compat.deepspeed_init(self, num_training_steps=0, inference=True)

        model = self._wrap_model(self.model, training=False, dataloader=dataloader)

        if len(self.accelerator._models) == 0 and model is self.model:
            if self.is_deepspeed_enabled:
                model = self.accelerator.prepare(model)
            else:
                model = self.accelerator.prepare_model(model, evaluation_mode=True)
            if self.is_fsdp_enabled:
                self.model = model
            if model is not self.model:
                self.model_wrapped = model
            if self.is_deepspeed_enabled:
                self.deepspeed = self.model_wrapped

        # Within train() the weights must keep their precision. Outside it the cast stays: a later train() finds a
        # half-precision model.
        if not self.is_in_train:
            if args.fp16_full_eval:
                model = model.to(dtype=torch.float16, device=args.device)
            elif args.bf16_full_eval:
                model = model.to(dtype=torch.bfloat16, device=args.device)
        return model

    def _samples_evaluated(self, eval_dataset: Any, dataloader: DataLoader, samples_seen: int) -> int:
        """Count the samples over all ranks: as the data set says, else the dataloader, else what was seen.

        **Beware:** for a data set without length, `samples_seen` counts this rank only.
        """
        if has_length(eval_dataset):
            num_samples = len(eval_dataset)
        # accelerate has a shard class of its own, with the same methods but without this attribute.
        elif isinstance(eval_dataset, IterableDatasetShard) and getattr(eval_dataset, "num_examples", 0) > 0:
            num_samples = eval_dataset.num_examples
        elif has_length(dataloader):
            num_samples = self.num_examples(dataloader)
        else:
            num_samples = samples_seen
        return samples_seen if num_samples == 0 else num_samples

    def prediction_step(
        self,
        model: nn.Module,
        inputs: dict[str, torch.Tensor | Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Run the model over one batch, without gradients.

        Override it to predict in another way, for example by generating (as seq2seq.py does). It can be called alone.
        The SageMaker branch was never run on the hardware.

        Args:
            model: the model as wrapped for evaluation.
            inputs: one batch, on any device.
            prediction_loss_only: return the loss alone.
            ignore_keys: keys of the output that are not predictions; None means the model's own list,
                `config.keys_to_ignore_at_inference`.

        Returns:
            (loss, logits, labels): loss of shape (), averaged over the model's replicas; logits and labels a tensor,
            or a tuple where there are several. Any of them may be None. Without labels the loss is None.

        Writes: _past
        Source: trainer.py 3260-3363
        """
        has_labels = len(self.label_names) > 0 and all(inputs.get(name) is not None for name in self.label_names)
        # Models like CLIP compute a loss without labels when they are asked to, or by default.
        return_loss = inputs.get("return_loss")
        if return_loss is None:
            return_loss = self.can_return_loss
        has_loss = has_labels or (len(self.label_names) == 0 and bool(return_loss))

        inputs = self._prepare_inputs(inputs)
        if ignore_keys is None:
            ignore_keys = []
            if hasattr(self.model, "config"):
                ignore_keys = getattr(self.model.config, "keys_to_ignore_at_inference", [])

        # Labels first: compute_loss takes them out of `inputs` when it smooths them.
        labels = None
        if has_loss:
            labels = _only_or_all(nested_detach(tuple(inputs.get(name) for name in self.label_names)))

        with torch.no_grad():
            if compat.is_sagemaker_mp_enabled():
                loss, logits = _sagemaker_forward(model, inputs, has_loss, ignore_keys)
            elif has_loss:
                with self.compute_loss_context_manager():
                    loss, outputs = self.compute_loss(model, inputs, return_outputs=True)
                loss = loss.mean().detach()  # over the replicas of one process, where there are several
                logits = _predictions_in(outputs, ignore_keys + ["loss"], first=1)
            else:
                loss = None
                with self.compute_loss_context_manager():
                    outputs = model(**inputs)
                logits = _predictions_in(outputs, ignore_keys, first=0)
                # Kept here only: with labels it is compute_loss that keeps the past.
                if self.args.past_index >= 0:
                    self._past = outputs[self.args.past_index - 1]

        if prediction_loss_only:
            return loss, None, None
        return loss, _only_or_all(nested_detach(logits)), labels

    # -- gathering ---

    def _nested_gather(self, tensors: Any, name: str | None = None) -> Any:
        """Join tensors, or nests of them, from all ranks along the first dimension; on one rank return them as is.

        `cadence.py` gathers the summed training loss with it. The TPU and SageMaker branches were never run on the
        hardware.

        Args:
            tensors: a tensor, or lists, tuples and dicts of tensors; None gives None.
            name: a tag for TPUs, where it names the rendezvous.

        Returns:
            The same nest; a tensor of shape (n, …) becomes (ranks * n, …), and one of shape () becomes (ranks,).

        Source: trainer.py 3241-3258
        """
        if tensors is None:
            return None
        if compat.is_torch_tpu_available():
            return nested_xla_mesh_reduce(tensors, name if name is not None else "nested_gather")
        if compat.is_sagemaker_mp_enabled():
            from .parts.sagemaker import smp_gather

            return smp_gather(tensors)
        distributed_state = self.args.distributed_state
        # The kind is an enum whose members equal their names, so the comparison with a string holds.
        if (distributed_state is not None and distributed_state.distributed_type != "NO") or (
            distributed_state is None and self.args.local_rank != -1
        ):
            return distributed_concat(tensors)
        return tensors

    def _gather_and_numpify(self, tensors: Any, name: str) -> Any:
        """Join tensors from all ranks and bring them to the CPU as numpy arrays, for `prediction_loop`.

        The TPU and SageMaker branches were never run on the hardware.

        Args:
            tensors: a tensor, or a nest of them; None gives None.
            name: a tag for TPUs, where it names the rendezvous.

        Returns:
            The same nest, of numpy arrays of shape (ranks * n, …).

        Source: trainer.py 3744-3758
        """
        if tensors is None:
            return None
        if compat.is_torch_tpu_available():
            tensors = nested_xla_mesh_reduce(tensors, name)
        elif compat.is_sagemaker_mp_enabled():
            from .parts.sagemaker import smp_gather

            tensors = smp_gather(tensors)
        elif self.args.parallel_mode == ParallelMode.DISTRIBUTED:
            tensors = distributed_concat(tensors)
        return nested_numpify(tensors)

    # -- shared by the entry points and the loops ---

    def _announce(self, description: str, num_examples: int | str, batch_size: int | None) -> None:
        """Log what is about to run."""
        logger.info(f"***** Running {description} *****")
        logger.info(f"  Num examples = {num_examples}")
        logger.info(f"  Batch size = {batch_size}")

    def _computed_metrics(self, predictions: Any, label_ids: Any, inputs: Any) -> dict[str, Any]:
        """Call `compute_metrics` where there are both predictions and labels; plain Python numbers come back."""
        if self.compute_metrics is None or predictions is None or label_ids is None:
            return {}
        if self.args.include_inputs_for_metrics:
            prediction = EvalPrediction(predictions=predictions, label_ids=label_ids, inputs=inputs)
        else:
            prediction = EvalPrediction(predictions=predictions, label_ids=label_ids)
        # numpy numbers would not go into trainer_state.json
        return denumpify_detensorize(self.compute_metrics(prediction))

    def _add_speed_metrics(self, output: EvalLoopOutput, start_time: float, metric_key_prefix: str) -> None:
        """Add runtime in seconds, samples and steps per second, in place; compiling for jit does not count."""
        start_time += output.metrics.get(f"{metric_key_prefix}_jit_compilation_time", 0)
        steps = math.ceil(output.num_samples / (self.args.eval_batch_size * self.args.world_size))
        output.metrics.update(
            speed_metrics(metric_key_prefix, start_time, num_samples=output.num_samples, num_steps=steps)
        )

    def _forget_past(self) -> None:
        """Drop the model's past at the end of a loop.

        Writes: _past
        Source: trainer.py 3162-3164
        """
        # Truthiness, not `>= 0`, is upstream's: with past_index=0 the past survives the loop.
        if self.args.past_index and hasattr(self, "_past"):
            del self._past

    def _mark_tpu_step(self) -> None:
        """Let a TPU run what was recorded so far. Never run on the hardware."""
        if compat.is_torch_tpu_available():
            compat.xla_model().mark_step()

    def _print_tpu_metrics(self) -> None:
        """Print XLA's counters where `--debug tpu_metrics_debug` asks for them. Never run on the hardware.

        Raises:
            ImportError: without torch_xla; 4.31.0 stumbles over an undefined name here.
        """
        if "tpu_metrics_debug" in self.args.debug:  # the options are an enum whose members equal their names
            try:
                import torch_xla.debug.metrics as met
            except ImportError:
                raise ImportError("--debug tpu_metrics_debug needs a TPU and torch_xla, which is not here.") from None

            compat.xla_model().master_print(met.metrics_report())


def _predictions_in(outputs: Any, ignore_keys: Iterable[str], first: int) -> Any:
    """Pick the predictions out of a model's output: a dict's but for the ignored keys, a tuple's from `first` on."""
    if isinstance(outputs, dict):
        return tuple(value for key, value in outputs.items() if key not in ignore_keys)
    return outputs[first:] if first else outputs


def _only_or_all(tensors: Any) -> Any:
    """Unpack a tuple of one. A bare tensor of one row loses its first dimension likewise, as upstream's does."""
    return tensors[0] if len(tensors) == 1 else tensors


def _sagemaker_forward(
    model: nn.Module, inputs: dict[str, Any], has_loss: bool, ignore_keys: list[str]
) -> tuple[torch.Tensor | None, Any]:
    """Run the model under SageMaker's model parallelism and join its micro-batches. Never run on the hardware."""
    from .parts.sagemaker import smp_forward_only, smp_nested_concat

    raw_outputs = smp_forward_only(model, inputs)
    if not has_loss:
        return None, smp_nested_concat(_predictions_in(raw_outputs, ignore_keys, first=0))
    loss = raw_outputs["loss"] if isinstance(raw_outputs, dict) else raw_outputs[0]
    logits = _predictions_in(raw_outputs, ignore_keys + ["loss"], first=1)
    return loss.reduce_mean().detach().cpu(), smp_nested_concat(logits)


def _with_prefix(metrics: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Rename every metric to `<prefix>_<name>`; renamed ones move to the end, as in upstream's reports."""
    for key in list(metrics):
        if not key.startswith(f"{prefix}_"):
            metrics[f"{prefix}_{key}"] = metrics.pop(key)
    return metrics


# Read next: saving.py
