"""From a data set to micro-batches: columns, collator, sampler, data loader.

The three `get_*_dataloader` are what `train`, `evaluate` and `predict` call. All other methods here serve only them:
an override of one of the three need not call any.
"""

import inspect
import sys
from collections.abc import Callable
from typing import Any

import torch
from packaging import version
from torch.utils.data import DataLoader, Dataset, IterableDataset, RandomSampler, SequentialSampler

from . import compat
from .attributes import Attributes
from .parts.columns import RemoveColumnsCollator, ignored_columns
from .parts.inspection import has_length
from .parts.logs import get_logger
from .parts.samplers import IterableDatasetShard, LengthGroupedSampler, SequentialDistributedSampler
from .parts.seeding import seed_worker

logger = get_logger(__name__)


class DataMixin(Attributes):
    """Makes the data loaders.

    Requires: `args`, `model`, `data_collator`, `accelerator`, `tokenizer`, `label_names`, the data sets.
    You get: one data loader for each purpose, already cut up for this rank.
    """

    # -- data loaders ----------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """Make the data loader of training: shuffled, or grouped by length, or in the order of an iterable.

        Override to bring your own. Pass it through `self.accelerator.prepare` as this one is, or every rank will see
        all of the data.

        Returns:
            A data loader of micro-batches on the device, with this rank's share of the samples.

        Raises:
            ValueError: if there is no `train_dataset`.

        Source: trainer.py 823-854
        """
        if self.train_dataset is None:
            raise ValueError("no training data: pass train_dataset to Trainer, or override get_train_dataloader")
        return self._build_dataloader(
            self.train_dataset,
            "training",
            batch_size=self._train_batch_size,
            get_sampler=lambda dataset: self._get_train_sampler(),
            worker_init_fn=seed_worker,
        )

    def get_eval_dataloader(self, eval_dataset: Dataset | None = None) -> DataLoader:
        """Make the data loader of an evaluation: in order, every sample once.

        **Beware:** with `dataloader_drop_last` a short last batch is dropped here as well, and is not evaluated.

        Override to bring your own, as for training.

        Args:
            eval_dataset: the data set, or None for the Trainer's own.

        Returns:
            A data loader of batches on the device.

        Raises:
            ValueError: if there is no data set to evaluate.

        Source: trainer.py 878-910
        """
        if eval_dataset is None:
            eval_dataset = self.eval_dataset
        if eval_dataset is None:
            raise ValueError("no data to evaluate on: pass eval_dataset to Trainer, or to evaluate")
        return self._build_dataloader(
            eval_dataset, "evaluation", batch_size=self.args.eval_batch_size, get_sampler=self._get_eval_sampler
        )

    def get_test_dataloader(self, test_dataset: Dataset) -> DataLoader:
        """Make the data loader of a prediction: as for an evaluation.

        Args:
            test_dataset: the data set; it may lack labels.

        Returns:
            A data loader of batches on the device.

        Source: trainer.py 912-942
        """
        return self._build_dataloader(
            test_dataset, "test", batch_size=self.args.eval_batch_size, get_sampler=self._get_eval_sampler
        )

    def _build_dataloader(
        self,
        dataset: Any,
        purpose: str,
        batch_size: int,
        get_sampler: Callable[[Any], Any],
        **map_style_options: Any,
    ) -> DataLoader:
        """Drop what the model does not take, choose the sampler, and hand the data loader to accelerate.

        accelerate cuts it up among the ranks and moves its batches to the device; on one rank the order is untouched.

        Source: trainer.py 848-870
        """
        collator = self.data_collator
        if _is_datasets_dataset(dataset):
            dataset = self._remove_unused_columns(dataset, description=purpose)
        else:
            collator = self._get_collator_with_removed_columns(collator, description=purpose)
        options: dict[str, Any] = {
            "batch_size": batch_size,
            "collate_fn": collator,
            "num_workers": self.args.dataloader_num_workers,
            "pin_memory": self.args.dataloader_pin_memory,
        }
        if not isinstance(dataset, IterableDataset):
            options["sampler"] = get_sampler(dataset)
            options["drop_last"] = self.args.dataloader_drop_last
            options.update(map_style_options)
        return self.accelerator.prepare(DataLoader(dataset, **options))

    # -- columns -----------------------------------------------------------------------------------------

    def _remove_unused_columns(self, dataset: Any, description: str | None = None):
        """Drop the columns of a `datasets.Dataset` that `model.forward` does not name.

        Args:
            dataset: the data set.
            description: its purpose, for the log.

        Returns:
            The data set without them; it is left alone if `remove_unused_columns` is off.

        Source: trainer.py 754-778
        """
        if not self.args.remove_unused_columns:
            return dataset
        self._set_signature_columns_if_needed()
        known = self._signature_columns
        ignored = list(set(dataset.column_names) - set(known))
        if ignored:
            logger.info(ignored_columns(", ".join(ignored), self.model.__class__.__name__, description))

        import datasets

        if version.parse(datasets.__version__) < version.parse("1.4.0"):  # it could only hide them, in place
            format_now = dataset.format
            dataset.set_format(
                type=format_now["type"],
                columns=[name for name in known if name in dataset.column_names],
                format_kwargs=format_now["format_kwargs"],
            )
            return dataset
        return dataset.remove_columns(ignored)

    def _get_collator_with_removed_columns(self, data_collator: Callable, description: str | None = None) -> Callable:
        """Wrap the collator so that it drops the keys that `model.forward` does not name, one example at a time.

        Args:
            data_collator: what makes a batch from a list of examples.
            description: the purpose of the data, for the log.

        Returns:
            The wrapped collator, or the same one if `remove_unused_columns` is off.

        Source: trainer.py 780-796
        """
        if not self.args.remove_unused_columns:
            return data_collator
        self._set_signature_columns_if_needed()
        return RemoveColumnsCollator(
            data_collator=data_collator,
            signature_columns=self._signature_columns,
            logger=logger,
            description=description,
            model_name=self.model.__class__.__name__,
        )

    def _set_signature_columns_if_needed(self):
        """Note once which columns the model takes: the arguments of `forward`, and the names that labels go by.

        Writes: _signature_columns
        Source: trainer.py 746-752
        """
        if self._signature_columns is None:
            # "label" and "label_ids" are not arguments of any model: the default collator renames them to "labels".
            label_columns = {"label", "label_ids", *self.label_names}
            self._signature_columns = [*inspect.signature(self.model.forward).parameters, *label_columns]

    # -- samplers ----------------------------------------------------------------------------------------

    def _get_train_sampler(self) -> torch.utils.data.Sampler | None:
        """Choose the order of training: random, or random among samples of similar length.

        **Beware:** on several ranks `args.seed` does not change the order of the data. The ranks share a generator,
        and accelerate 0.21 makes it with torch's fixed default seed. On one rank the sampler draws its seed from
        torch's global generator each time an epoch begins; that is how `args.seed` and a resumed random state reach
        the order.

        Returns:
            The sampler, or None for a data set without a length.

        Source: trainer.py 798-821
        """
        if self.train_dataset is None or not has_length(self.train_dataset):
            return None
        # Later versions of accelerate would seed it from the global generator. Made here, the order is one in all.
        generator = torch.Generator() if self.args.world_size > 1 else None
        if not self.args.group_by_length:
            return RandomSampler(self.train_dataset, generator=generator)

        lengths = None  # then the sampler measures every sample itself
        length_column = self.args.length_column_name
        if _is_datasets_dataset(self.train_dataset) and length_column in self.train_dataset.column_names:
            lengths = self.train_dataset[length_column]
        return LengthGroupedSampler(
            self.args.train_batch_size * self.args.gradient_accumulation_steps,
            dataset=self.train_dataset,
            lengths=lengths,
            model_input_name=self.tokenizer.model_input_names[0] if self.tokenizer is not None else None,
            generator=generator,
        )

    def _get_eval_sampler(self, eval_dataset: Dataset) -> torch.utils.data.Sampler | None:
        """Choose the order of an evaluation: as the data stand. The TPU and SageMaker branches were never run there.

        Args:
            eval_dataset: a map-style data set.

        Returns:
            The sampler; None on several ranks, where accelerate brings its own.

        Source: trainer.py 856-876
        """
        if self.args.use_legacy_prediction_loop:
            if compat.is_torch_tpu_available():
                xla = compat.xla_model()
                return SequentialDistributedSampler(
                    eval_dataset, num_replicas=xla.xrt_world_size(), rank=xla.get_ordinal()
                )
            if compat.is_sagemaker_mp_enabled():
                ranks = compat.sagemaker()
                return SequentialDistributedSampler(
                    eval_dataset,
                    num_replicas=ranks.dp_size(),
                    rank=ranks.dp_rank(),
                    batch_size=self.args.per_device_eval_batch_size,
                )
            return SequentialSampler(eval_dataset)  # type: ignore[arg-type]
        return SequentialSampler(eval_dataset) if self.args.world_size <= 1 else None  # type: ignore[arg-type]

    # -- counting ----------------------------------------------------------------------------------------

    def num_examples(self, dataloader: DataLoader) -> int:
        """Count the examples behind a data loader.

        **Beware:** without a data set of known length it multiplies batches by the *training* batch size, also for an
        evaluation.

        Args:
            dataloader: any data loader.

        Returns:
            The number of examples, exact or estimated.

        Source: trainer.py 1157-1169
        """
        try:
            dataset = dataloader.dataset
            if isinstance(dataset, IterableDatasetShard):
                return len(dataset.dataset)  # the shard's own length is that of one rank, filled up
            return len(dataset)  # type: ignore[arg-type]
        except (NameError, AttributeError, TypeError):
            return len(dataloader) * self.args.per_device_train_batch_size


def _is_datasets_dataset(dataset: Any) -> bool:
    # Whoever holds a datasets.Dataset has imported the library; importing it here for everyone would take a second.
    datasets = sys.modules.get("datasets")
    return datasets is not None and isinstance(dataset, datasets.Dataset)


# Read next: optimizer.py
