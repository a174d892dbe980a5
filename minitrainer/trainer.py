"""The class `Trainer`, and its construction.

The methods stand in one file for each theme, and the files in the order in which `train` reaches them. The docstring
of the class is the walk through them.
"""

import os
from collections.abc import Callable
from typing import Any, Union

import torch
import torch.distributed as dist
from torch import nn
from torch.utils.data import Dataset, IterableDataset
from transformers import PreTrainedModel
from transformers.data.data_collator import DataCollator, DataCollatorWithPadding, default_data_collator
from transformers.tokenization_utils_base import PreTrainedTokenizerBase
from transformers.utils import can_return_loss, find_labels
from transformers.utils import logging as transformers_logging

from . import compat
from .arguments import TrainingArguments
from .cadence import CadenceMixin
from .callbacks import (
    CallbackHandler,
    DefaultFlowCallback,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    default_progress_callback,
)
from .data import DataMixin
from .evaluation import EvaluationMixin
from .hub import HubMixin
from .loop import LoopMixin
from .optimizer import OptimizerMixin
from .parts.choices import ParallelMode
from .parts.inspection import has_length
from .parts.label_smoothing import LabelSmoother
from .parts.logs import get_logger
from .parts.metrics import TrainerMemoryTracker
from .parts.outputs import EvalPrediction
from .parts.seeding import enable_full_determinism, set_seed
from .reporters import get_reporting_integration_callbacks
from .reporting import ReportingMixin
from .resuming import ResumingMixin
from .saving import SavingMixin
from .search import SearchMixin
from .setup import SetupMixin
from .step import StepMixin
from .wrapping import WrappingMixin

logger = get_logger(__name__)

DEFAULT_CALLBACKS: list[Any] = [DefaultFlowCallback]
"""What every Trainer has, before the reporters, the user's callbacks and the progress bar, in this order."""


class Trainer(
    LoopMixin,
    SetupMixin,
    DataMixin,
    OptimizerMixin,
    WrappingMixin,
    StepMixin,
    CadenceMixin,
    EvaluationMixin,
    SavingMixin,
    ResumingMixin,
    ReportingMixin,
    SearchMixin,
    HubMixin,
):
    """Trains, evaluates and predicts with a PyTorch model; equal to transformers 4.31.0, method by method.

    The walk, one file after the other:

        trainer.py      construction: what a Trainer holds before it does anything
        attributes.py   the ledger of everything that it holds
        loop.py         train, and `_inner_training_loop`, the table of contents of all that follows
        setup.py        accelerator, sharding, precision, callbacks, ranks
        data.py         data loaders                                  get_train_dataloader, …
        optimizer.py    optimizer and scheduler                       create_optimizer_and_scheduler, …
        wrapping.py     what goes around the model                    _wrap_model
        step.py         one micro-batch                               training_step, compute_loss
        cadence.py      log, evaluate, save when it is time           _maybe_log_save_evaluate, log
        evaluation.py   evaluate and predict                          evaluation_loop, prediction_step
        saving.py       checkpoints and their rotation                _save_checkpoint
        resuming.py     back from a checkpoint                        _load_from_checkpoint, …
        reporting.py    metrics on the screen and in files            log_metrics, save_metrics
        search.py       hyperparameter search                         hyperparameter_search
        hub.py          pushing to the Hub                            push_to_hub, create_model_card

    Change it in two ways: subclass it and override a method (all are made for that), or pass callbacks. No method is
    defined twice, so whatever a subclass overrides is all there is under that name.

    Args:
        model: the model to train; a `torch.nn.Module` whose forward returns a loss if it gets labels.
        args: the arguments; by default with the output folder `tmp_trainer`.
        data_collator: makes a batch from a list of examples. By default it pads with the tokenizer, if there is one.
        train_dataset: what to train on: with `__len__` and `__getitem__`, or an `IterableDataset`.
        eval_dataset: what to evaluate on, or a dict of several: their names go into those of the metrics.
        tokenizer: pads batches, and is saved beside the model.
        model_init: makes the model. Then every call of `train` begins with a fresh one. It takes no argument, or the
            trial of a hyperparameter search.
        compute_metrics: gets an `EvalPrediction`, returns a dict of name to number.
        callbacks: objects or classes, called after the default ones.
        optimizers: an optimizer and a scheduler, or None for either.
        preprocess_logits_for_metrics: gets logits and labels of a batch, returns what to keep of the logits.

    Raises:
        RuntimeError: without a model, or with settings that exclude each other.
        ValueError: for a value that cannot work, such as an iterable data set without `max_steps`.
    """

    def __init__(
        self,
        model: Union[PreTrainedModel, nn.Module] = None,  # type: ignore[assignment]
        args: TrainingArguments = None,  # type: ignore[assignment]
        data_collator: DataCollator | None = None,
        train_dataset: Dataset | None = None,
        eval_dataset: Union[Dataset, dict[str, Dataset]] | None = None,
        tokenizer: PreTrainedTokenizerBase | None = None,
        model_init: Callable[[], PreTrainedModel] | None = None,
        compute_metrics: Callable[[EvalPrediction], dict] | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[torch.optim.Optimizer, torch.optim.lr_scheduler.LambdaLR] = (None, None),  # type: ignore
        preprocess_logits_for_metrics: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] | None = None,
    ):
        """Hold everything, move the model to its device, and fire the first event.

        **Beware:** it sets the global seeds (`args.seed`) and transformers' verbosity, for the whole process.

        Writes: args, hp_name, deepspeed, is_in_train, _memory_tracker, data_collator, train_dataset, eval_dataset,
            tokenizer, model_wrapped, model, compute_metrics, preprocess_logits_for_metrics, optimizer, lr_scheduler,
            callback_handler, _loggers_initialized, _signature_columns, label_smoother, state, control, current_flos,
            hp_search_backend, use_tune_checkpoints, label_names, can_return_loss, _train_batch_size,
            _created_lr_scheduler
        Events: on_init_end
        Source: trainer.py 311-700
        """
        # -- arguments and randomness ------------------------------------------------------------------
        if args is None:
            logger.info("No `TrainingArguments` passed, using `output_dir=tmp_trainer`.")
            args = TrainingArguments(output_dir="tmp_trainer")
        self.args = args
        if self.args.full_determinism:
            enable_full_determinism(self.args.seed)
        else:
            set_seed(self.args.seed)  # before `model_init` draws the weights
        self.hp_name = self.deepspeed = None
        self.is_in_train = False

        self.create_accelerator_and_postprocess()
        self._memory_tracker = TrainerMemoryTracker(self.args.skip_memory_metrics)
        self._memory_tracker.start()  # after the accelerator: what that allocates is nobody's
        transformers_logging.set_verbosity(args.get_process_log_level())
        args._setup_devices  # noqa: B018 - a property; reading it joins the process group

        # -- model and data ----------------------------------------------------------------------------
        model = self._take_model(model, model_init)
        self._find_model_parallelism(model)
        self._choose_sharding(args)
        default_collator = default_data_collator if tokenizer is None else DataCollatorWithPadding(tokenizer)
        self.data_collator = data_collator if data_collator is not None else default_collator
        self.train_dataset = train_dataset
        self.eval_dataset = eval_dataset
        self.tokenizer = tokenizer
        self._place_model(args, model)
        self.model = self.model_wrapped = model  # they stay the same object until something wraps the model
        self.compute_metrics = compute_metrics
        self.preprocess_logits_for_metrics = preprocess_logits_for_metrics
        self.optimizer, self.lr_scheduler = optimizers
        self._check_optimizers(model_init)

        # -- callbacks ---------------------------------------------------------------------------------
        all_callbacks: list[Any] = DEFAULT_CALLBACKS + get_reporting_integration_callbacks(self.args.report_to)
        if callbacks is not None:
            all_callbacks = all_callbacks + callbacks
        self.callback_handler = CallbackHandler(
            all_callbacks, self.model, self.tokenizer, self.optimizer, self.lr_scheduler
        )
        self.add_callback(PrinterCallback if self.args.disable_tqdm else default_progress_callback())
        self._loggers_initialized = False

        # -- output folder -----------------------------------------------------------------------------
        if self.args.push_to_hub:
            self.init_git_repo(at_init=True)
            # The first rank may have pulled; the others wait for it.
            if compat.is_torch_tpu_available():
                compat.xla_model().rendezvous("init git repo")
            elif args.parallel_mode == ParallelMode.DISTRIBUTED:
                dist.barrier()
        if self.args.should_save:
            self._make_output_folder()
        self._check_data(args)

        # -- precision and loss ------------------------------------------------------------------------
        self._signature_columns = None
        self._choose_precision(args)
        smoothing = self.args.label_smoothing_factor
        self.label_smoother = LabelSmoother(epsilon=smoothing) if smoothing != 0 else None

        # -- state -------------------------------------------------------------------------------------
        self.state = TrainerState(
            is_local_process_zero=self.is_local_process_zero(), is_world_process_zero=self.is_world_process_zero()
        )
        self.control = TrainerControl()
        self.current_flos, self.hp_search_backend, self.use_tune_checkpoints = 0, None, False
        default_label_names = find_labels(self.model.__class__)
        self.label_names = default_label_names if self.args.label_names is None else self.args.label_names
        self.can_return_loss = can_return_loss(self.model.__class__)
        self.control = self.callback_handler.on_init_end(self.args, self.state, self.control)
        self._train_batch_size = args.train_batch_size
        self._created_lr_scheduler = False
        self._memory_tracker.stop_and_update_metrics()
        if args.torch_compile and not hasattr(torch, "compile"):
            raise RuntimeError("torch_compile needs torch.compile, which came with PyTorch 2.0.")

    # -- checks ------------------------------------------------------------------------------------------

    def _check_optimizers(self, model_init: Any) -> None:
        """Refuse an optimizer whose parameters will not be those of the model.

        Source: trainer.py 512-538
        """
        if self.optimizer is None and self.lr_scheduler is None:
            return
        if model_init is not None:
            raise RuntimeError(
                "`optimizers` were made for another model than the one that `model_init` will make: leave one of them"
                " out, or override `create_optimizer_and_scheduler` in a subclass of Trainer."
            )
        if compat.is_torch_tpu_available() and self.optimizer is not None:
            model_device = next(self.model.parameters()).device
            groups = [group["params"] for group in self.optimizer.param_groups if group["params"]]
            if model_device != groups[0][0].device:
                raise ValueError(
                    f"The optimizer in `optimizers` updates parameters on {groups[0][0].device}, the model is on"
                    f" {model_device}: the move made new parameters. Move the model first, with"
                    " `model.to(torch_xla.core.xla_model.xla_device())`, and make the optimizer after it."
                )
        if self.sharded_ddp is not None or self.is_deepspeed_enabled or self.fsdp is not None:
            raise RuntimeError(
                "`optimizers` would miss the parameters that fairscale, DeepSpeed or FSDP make when they wrap the"
                " model: override `create_optimizer_and_scheduler` in a subclass of Trainer, which is called later."
            )

    def _make_output_folder(self) -> None:
        """Make `args.output_dir`.

        Raises: OSError, with the argument's name, if it cannot be made.

        Source: trainer.py 558-559
        """
        try:
            os.makedirs(self.args.output_dir, exist_ok=True)
        except OSError as error:
            reason = f"{error.strerror}: `output_dir` cannot be made; pass a folder that this process may write to"
            raise type(error)(error.errno, reason, self.args.output_dir) from None

    def _check_data(self, args: TrainingArguments) -> None:
        """Refuse collators and data sets that would fail only later.

        Source: trainer.py 561-578
        """
        if not callable(self.data_collator) and callable(getattr(self.data_collator, "collate_batch", None)):
            raise ValueError(
                "`data_collator` cannot be called: pass a function, or rename `collate_batch` to `__call__`."
            )
        if args.max_steps > 0:
            logger.info(f"max_steps={args.max_steps} counts, num_train_epochs does not.")
        if self.train_dataset is None:
            return
        if not has_length(self.train_dataset) and args.max_steps <= 0:
            raise ValueError(
                "train_dataset has no __len__, so nobody knows how many steps the learning rate has to last: set"
                " max_steps."
            )
        if isinstance(self.train_dataset, IterableDataset) and args.group_by_length:
            raise ValueError(
                "`--group_by_length` takes examples by their index, which an `IterableDataset` does not have."
            )


# Read next: attributes.py
