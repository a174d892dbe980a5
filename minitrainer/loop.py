"""`train` from its first line to its last.

Four words carry the whole file. A *micro-batch* is one forward and one backward on one rank. A *step* is one update
of the weights, counted by `global_step`. A *group* is the micro-batches of one step; there are
`gradient_accumulation_steps` of them. An *epoch* is one pass over the data loader.

`_inner_training_loop` is the table of contents: read it first, then the phases below it, which stand in the order in
which it reaches them.
"""

import dataclasses
import math
import os
import shutil
import sys
import time
import warnings
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from accelerate import skip_first_batches
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader
from transformers.debug_utils import DebugOption, DebugUnderflowOverflow

from . import compat
from .attributes import Attributes
from .callbacks import TrainerState
from .parts.batch_size import find_executable_batch_size
from .parts.checkpoints import TRAINER_STATE_NAME, get_last_checkpoint
from .parts.choices import HPSearchBackend, ParallelMode, ShardedDDPOption
from .parts.inspection import get_model_param_count, has_length
from .parts.logs import get_logger
from .parts.metrics import speed_metrics
from .parts.outputs import TrainOutput
from .parts.seeding import enable_full_determinism, set_seed

if TYPE_CHECKING:
    from .arguments import TrainingArguments

logger = get_logger(__name__)


@dataclasses.dataclass(frozen=True)
class RunPlan:
    """The shape of a run, known before its first micro-batch and never changed after.

    Attributes:
        num_examples: examples in one epoch, for the log.
        num_epochs: epochs to begin, the last one perhaps cut short; `sys.maxsize` where only the steps are known.
        max_steps: updates of the weights after which the run ends.
        steps_per_epoch: updates in one epoch, rounded down, at least 1.
        num_samples: samples of the whole run, for the samples-per-second figure; may be a fraction.
        total_batch_size: samples of one step over all ranks.
        loader_has_length: whether the data loader knows its number of micro-batches.
    """

    num_examples: int
    num_epochs: int
    max_steps: int
    steps_per_epoch: int
    num_samples: Any
    total_batch_size: int
    loader_has_length: bool


@dataclasses.dataclass
class Position:
    """Where the run stands between two micro-batches.

    Attributes:
        first_epoch: the epoch to begin with; above 0 after a resume.
        micro_batches_to_skip: micro-batches of the first epoch that were trained before the resume; 0 once skipped.
        micro_batches_skipped: what was skipped of the current epoch.
        micro_batches_in_epoch: length of the current epoch, the skipped part included.
        micro_batches_seen: micro-batches of this call of `train`, over all its epochs.
        rng_is_stale: whether the random states of the checkpoint are still to be loaded, at the next micro-batch.
    """

    first_epoch: int = 0
    micro_batches_to_skip: int = 0
    micro_batches_skipped: int = 0
    micro_batches_in_epoch: int = 0
    micro_batches_seen: int = 0
    rng_is_stale: bool = False

    def share_of_epoch(self, index: int) -> float:
        """How much of the epoch is trained after micro-batch `index`, from 0 to 1; what was skipped counts."""
        return (index + 1 + self.micro_batches_skipped) / self.micro_batches_in_epoch


class LoopMixin(Attributes):
    """Trains the model.

    Requires: everything that `Trainer.__init__` sets, and the methods of all other mixins.
    You get: `train`, and `_inner_training_loop` with its phases.
    """

    def train(
        self,
        resume_from_checkpoint: str | bool | None = None,
        trial: Any = None,
        ignore_keys_for_eval: list[str] | None = None,
        **kwargs: Any,
    ) -> TrainOutput:
        """Train, from the beginning or from a checkpoint.

        **Beware after a resume:** the loss returned sums only what was trained since the resume, yet is divided by
        all steps since the very beginning, so it comes out too small. And a resume in the middle of any epoch but the
        first shuffles what is left of that epoch anew, if the model draws random numbers (see `_skip_trained`).

        Override to put something around a whole run; for one micro-batch override `training_step`, for the loss
        `compute_loss`, for moments within the run write a callback.

        Args:
            resume_from_checkpoint: folder of a checkpoint, or True for the newest one in `args.output_dir`.
            trial: one trial of a hyperparameter search; its values are written into `args` first.
            ignore_keys_for_eval: keys of the model's output that evaluations during training leave out.
            **kwargs: only `model_path`, the old name of `resume_from_checkpoint`.

        Returns:
            `TrainOutput(global_step, training_loss, metrics)`: steps done, mean loss of a micro-batch, and the summary
            that was logged last.

        Raises:
            TypeError: for any other keyword.
            ValueError: if there is no `train_dataset`, no checkpoint where one was asked for, one that another number
                of ranks has saved (unless `ignore_data_skip` is set), or no way to know the number of steps.

        Writes: is_in_train, _train_batch_size, model_wrapped
        Source: trainer.py 1460-1544
        """
        if resume_from_checkpoint is False:
            resume_from_checkpoint = None

        # -- preparation -----------------------------------------------------------------------------
        self._memory_tracker.start()  # as early as possible, so that it sees everything that train allocates
        args = self.args
        self.is_in_train = True
        if (args.fp16_full_eval or args.bf16_full_eval) and not args.do_train:
            # __init__ left the model where it was, expecting an evaluation in half precision. It was wrong.
            self._move_model_to_device(self.model, args.device)
        if "model_path" in kwargs:
            resume_from_checkpoint = kwargs.pop("model_path")
            warnings.warn("`model_path` is deprecated, use `resume_from_checkpoint`.", FutureWarning, stacklevel=2)
        if kwargs:
            raise TypeError(f"train() has no such keyword arguments: {', '.join(kwargs)}.")
        self._hp_search_setup(trial)  # may change the seed: nothing random may come before it
        self._train_batch_size = self.args.train_batch_size

        # -- model -----------------------------------------------------------------------------------
        model_is_new = self.model_init is not None
        if model_is_new:
            self._build_new_model(trial)
        if resume_from_checkpoint is True:
            resume_from_checkpoint = get_last_checkpoint(args.output_dir)
            if resume_from_checkpoint is None:
                raise ValueError(
                    f"resume_from_checkpoint=True, but output_dir ({args.output_dir}) holds no checkpoint-<step> folder"
                )
        if resume_from_checkpoint is not None:
            self._check_number_of_ranks(resume_from_checkpoint)
        # once the model is wrapped
        loads_later = compat.is_sagemaker_mp_enabled() or self.is_deepspeed_enabled or self._fsdp_wraps_first()
        if resume_from_checkpoint is not None and not loads_later:
            self._load_from_checkpoint(resume_from_checkpoint)
        if model_is_new:
            if self.place_model_on_device:
                self._move_model_to_device(self.model, args.device)
            self.model_wrapped = self.model

        # -- loop ------------------------------------------------------------------------------------
        # With auto_find_batch_size the loop starts again with half the batch after each out-of-memory error: with
        # the weights that the failed attempt left behind, but a new state.
        inner_training_loop = find_executable_batch_size(
            self._inner_training_loop, self._train_batch_size, args.auto_find_batch_size
        )
        return inner_training_loop(
            args=args,
            trial=trial,
            resume_from_checkpoint=resume_from_checkpoint,
            ignore_keys_for_eval=ignore_keys_for_eval,
        )

    def _build_new_model(self, trial: Any) -> None:
        """Make a model with `model_init`, from the run's seed, and forget optimizer and scheduler of the old one.

        Writes: model, optimizer, lr_scheduler
        Source: trainer.py 1513-1519
        """
        seed_everything: Callable[[int], None] = enable_full_determinism if self.args.full_determinism else set_seed
        seed_everything(self.args.seed)
        self.model = self.call_model_init(trial)
        self.optimizer, self.lr_scheduler = None, None

    def _inner_training_loop(
        self, batch_size=None, args=None, resume_from_checkpoint=None, trial=None, ignore_keys_for_eval=None
    ):
        """Run all epochs: the table of contents of training. Arguments and result are those of `train`.

        **Beware:** groups are counted through, so one that an epoch's end cuts off is finished by the next epoch.

        Writes: _train_batch_size, control, current_flos, state.global_step, state.epoch
        Events: on_train_begin, on_epoch_begin, on_step_begin, on_step_end, on_substep_end, on_epoch_end, on_train_end
        Source: trainer.py 1546-1973
        """
        # -- plan and preparation ---------------------------------------------------------------------
        self.accelerator.free_memory()  # what an earlier run prepared; and groups are counted from 0 again
        self._train_batch_size = batch_size  # halved since the last attempt, if that ran out of memory
        train_dataloader = self.get_train_dataloader()
        plan = self._plan_run(args, train_dataloader)
        model = self._prepare_model_and_optimizer(args, plan, resume_from_checkpoint, trial)
        self._announce_run(args, plan, model)
        start_time, position = time.time(), self._find_position(args, plan, resume_from_checkpoint)
        loss_sum = self._begin_run(args, plan, trial, train_dataloader)  # since the last log; on the device, unread
        model.zero_grad()
        self.control = self.callback_handler.on_train_begin(args, self.state, self.control)
        self._replay_finished_epochs(args, position, train_dataloader)

        # -- epochs -----------------------------------------------------------------------------------
        for epoch in range(position.first_epoch, plan.num_epochs):
            self._enter_epoch(args, plan, position, train_dataloader)
            self.control = self.callback_handler.on_epoch_begin(args, self.state, self.control)
            micro_batches = self._skip_trained(epoch, position, train_dataloader, resume_from_checkpoint)
            index = -1  # stays so if the epoch is empty
            for index, inputs in enumerate(micro_batches):
                # -- micro-batch ----------------------------------------------------------------------
                self._count_micro_batch(position, resume_from_checkpoint)
                if index % args.gradient_accumulation_steps == 0:
                    self.control = self.callback_handler.on_step_begin(args, self.state, self.control)
                with self.accelerator.accumulate(model):  # ranks exchange gradients once a group, at its end
                    micro_loss = self.training_step(model, inputs)  # already divided by the group's length
                self._add_to_loss_sum(loss_sum, micro_loss)
                self.current_flos += float(self.floating_point_ops(inputs))  # of this rank alone
                # -- step, or not yet -----------------------------------------------------------------
                if self._group_is_complete(args, position, index):
                    self._clip_gradients(args, model)
                    self._step_optimizer_and_scheduler()
                    model.zero_grad()  # before the callbacks: in `on_step_end` no gradient is left to look at
                    self.state.global_step += 1
                    self.state.epoch = epoch + position.share_of_epoch(index)
                    self.control = self.callback_handler.on_step_end(args, self.state, self.control)
                    self._maybe_log_save_evaluate(loss_sum, model, trial, epoch, ignore_keys_for_eval)
                else:
                    self.control = self.callback_handler.on_substep_end(args, self.state, self.control)
                if self.control.should_epoch_stop or self.control.should_training_stop:
                    break  # perhaps inside a group: its gradients stay, and join those of the next group
            # -- end of the epoch ---------------------------------------------------------------------
            self._stop_if_epoch_was_empty(plan, index)
            self.control = self.callback_handler.on_epoch_end(args, self.state, self.control)
            self._maybe_log_save_evaluate(loss_sum, model, trial, epoch, ignore_keys_for_eval)
            self._print_tpu_counters()
            if self.control.should_training_stop:  # `should_epoch_stop` ends here: the next epoch lowers it
                break

        # -- end of the run ---------------------------------------------------------------------------
        self._finish_model(args)
        train_loss, metrics = self._summarise_run(plan, start_time, loss_sum)
        self._delete_all_but_best(trial)
        self.control = self.callback_handler.on_train_end(args, self.state, self.control)
        return TrainOutput(self.state.global_step, train_loss, metrics)

    # -- phases: plan and preparation -----------------------------------------------------------------

    def _plan_run(self, args: "TrainingArguments", train_dataloader: DataLoader) -> RunPlan:
        """Work out how many epochs, steps and samples the run has; turn ratios among the intervals into steps.

        **Beware:** `steps_per_epoch` leaves out the group that an epoch's end cuts off. Since groups are counted
        through, a long run makes its `max_steps` a little before its last epoch's end.

        Writes: args.logging_steps, args.eval_steps, args.save_steps
        Source: trainer.py 1555-1598
        """
        total_batch_size = self._train_batch_size * args.gradient_accumulation_steps * args.world_size
        loader_has_length = has_length(train_dataloader)
        if loader_has_length:
            steps_per_epoch = max(len(train_dataloader) // args.gradient_accumulation_steps, 1)
            num_examples = self.num_examples(train_dataloader)
            if args.max_steps > 0:
                max_steps, num_epochs = args.max_steps, math.ceil(args.max_steps / steps_per_epoch)
                num_samples = args.max_steps * total_batch_size  # too many where an epoch's last batch is short
            else:
                max_steps = math.ceil(args.num_train_epochs * steps_per_epoch)
                num_epochs = math.ceil(args.num_train_epochs)
                num_samples = self.num_examples(train_dataloader) * args.num_train_epochs
        elif args.max_steps > 0:
            # Epochs of unknown length: begin as many as the steps take. One step counts as one "epoch's" worth.
            max_steps, num_epochs, steps_per_epoch = args.max_steps, sys.maxsize, args.max_steps
            num_examples = num_samples = args.max_steps * total_batch_size
        else:
            raise ValueError(
                f"args.max_steps is {args.max_steps}, but a data loader without a length needs it above 0: the number"
                " of steps is not to be known otherwise"
            )

        # A value below 1 is a share of all steps. It is overwritten in `args`: a second `train` finds whole steps.
        args.logging_steps = _as_steps(args.logging_steps, max_steps)
        args.eval_steps = _as_steps(args.eval_steps, max_steps)
        args.save_steps = _as_steps(args.save_steps, max_steps)
        return RunPlan(
            num_examples, num_epochs, max_steps, steps_per_epoch, num_samples, total_batch_size, loader_has_length
        )

    def _prepare_model_and_optimizer(
        self, args: "TrainingArguments", plan: RunPlan, resume_from_checkpoint: str | None, trial: Any
    ) -> nn.Module:
        """Make optimizer, scheduler and a fresh state; wrap the model; load what a checkpoint holds of them.

        After it `self.model` is the core model and `self.model_wrapped` is the outermost wrapper around it.

        Writes: lr_scheduler, optimizer, _created_lr_scheduler, state, state.is_hyper_param_search, model,
            model_wrapped, deepspeed
        Source: trainer.py 1600-1679
        """
        if DebugOption.UNDERFLOW_OVERFLOW in self.args.debug:
            if self.args.n_gpu > 1:
                raise ValueError(
                    "--debug underflow_overflow does not work with several GPUs in one process (DP): start one"
                    " process for each GPU with `torchrun`."
                )
            DebugUnderflowOverflow(self.model)  # stays alive through the hooks that it hangs on the model

        # -- optimizer and scheduler -----------------------------------------------------------------
        shards_fully = self.sharded_ddp is not None and self.sharded_ddp != ShardedDDPOption.SIMPLE
        # These replace the parameters when they wrap the model: an optimizer made before would update the old ones.
        optimizer_comes_last = shards_fully or compat.is_sagemaker_mp_enabled() or self.fsdp is not None
        if self._created_lr_scheduler:
            # Ours, from an earlier `train`: its length would be wrong. One that the user passed is kept. The old
            # optimizer is kept too, with its moments.
            self.lr_scheduler = None
            self._created_lr_scheduler = False
        if self.is_deepspeed_enabled:
            self.optimizer, self.lr_scheduler = compat.deepspeed_init(self, num_training_steps=plan.max_steps)
        if not optimizer_comes_last:
            self.create_optimizer_and_scheduler(num_training_steps=plan.max_steps)

        self.state = TrainerState()
        self.state.is_hyper_param_search = trial is not None

        # -- wrapping --------------------------------------------------------------------------------
        if args.gradient_checkpointing:
            self.model.gradient_checkpointing_enable()
        model = self._wrap_model(self.model_wrapped)
        if compat.is_sagemaker_mp_enabled() and resume_from_checkpoint is not None:
            self._load_from_checkpoint(resume_from_checkpoint, model)
        accelerate_wraps = model is self.model  # else DataParallel, fairscale, SageMaker or IPEX has done it
        if accelerate_wraps and self._fsdp_wraps_first():
            model = self.model = self.accelerator.prepare(self.model)
            if resume_from_checkpoint is not None:
                self._load_from_checkpoint(resume_from_checkpoint, model)
            self.create_optimizer_and_scheduler(num_training_steps=plan.max_steps)
            self.optimizer = self.accelerator.prepare(self.optimizer)
            accelerate_wraps = False
        elif optimizer_comes_last:
            self.create_optimizer_and_scheduler(num_training_steps=plan.max_steps)
        if accelerate_wraps:
            model = self._let_accelerate_wrap()
        if self.is_fsdp_enabled:
            self.model = model
        if model is not self.model:
            self.model_wrapped = model
        if self.is_deepspeed_enabled:
            self.deepspeed = self.model_wrapped
            if resume_from_checkpoint is not None:
                compat.deepspeed_load_checkpoint(self.model_wrapped, resume_from_checkpoint)
        self._load_optimizer_and_scheduler(resume_from_checkpoint)
        return model

    def _fsdp_wraps_first(self) -> bool:
        """Whether FSDP must wrap the model before the optimizer is made and a checkpoint is loaded."""
        return self.is_fsdp_enabled and not compat.remakes_optimizer_over_shards(self.accelerator)

    def _let_accelerate_wrap(self) -> nn.Module:
        """Hand model and optimizer to accelerate, which wraps both for the devices of this run.

        The scheduler stays unwrapped: accelerate's wrapper would advance it by one for each rank, at every step.

        Writes: optimizer, lr_scheduler
        Source: trainer.py 1650-1661
        """
        self.model.train()
        if not hasattr(self.lr_scheduler, "step"):
            # The dummy that stands for a scheduler from DeepSpeed's own configuration: only accelerate can resolve it.
            model, self.optimizer, self.lr_scheduler = self.accelerator.prepare(
                self.model, self.optimizer, self.lr_scheduler
            )
        elif self.use_apex:
            model = self.accelerator.prepare(self.model)
        else:
            model, self.optimizer = self.accelerator.prepare(self.model, self.optimizer)
        return model

    def _announce_run(self, args: "TrainingArguments", plan: RunPlan, model: nn.Module) -> None:
        """Log the shape of the run.

        Source: trainer.py 1685-1695
        """
        per_device = self.args.per_device_train_batch_size
        facts = {
            "Num examples": plan.num_examples,
            "Num Epochs": plan.num_epochs,
            "Instantaneous batch size per device": per_device,
            "Batch size per process (DataParallel)": self._train_batch_size,
            "Total train batch size (w. parallel, distributed & accumulation)": plan.total_batch_size,
            "Gradient Accumulation steps": args.gradient_accumulation_steps,
            "Total optimization steps": plan.max_steps,
            "Number of trainable parameters": get_model_param_count(model, trainable_only=True),
        }
        if per_device == self._train_batch_size:
            del facts["Batch size per process (DataParallel)"]
        logger.info("***** Running training *****")
        for name, value in facts.items():
            logger.info(f"  {name} = {value:,}")

    def _find_position(self, args: "TrainingArguments", plan: RunPlan, resume_from_checkpoint: str | None) -> Position:
        """Find where to begin: at the start, or where the checkpoint's state says.

        **Beware:** the epoch is taken from `global_step` and the rounded-down `steps_per_epoch`. If groups ran across
        epochs before, that lands on a later micro-batch than the one where training had stopped.

        Writes: state, state.epoch
        Source: trainer.py 1697-1722
        """
        self.state.epoch = 0
        position = Position()
        if resume_from_checkpoint is None:
            return position
        state_file = os.path.join(resume_from_checkpoint, TRAINER_STATE_NAME)
        if not os.path.isfile(state_file):
            return position  # only weights: a run from the start with these weights

        self.state = TrainerState.load_from_json(state_file)
        position.first_epoch, steps_into_epoch = divmod(self.state.global_step, plan.steps_per_epoch)
        logger.info("  Going on from a checkpoint")
        logger.info(f"    epochs done = {position.first_epoch}")
        logger.info(f"    global_step = {self.state.global_step}")
        if not args.ignore_data_skip:
            position.micro_batches_to_skip = steps_into_epoch * args.gradient_accumulation_steps
            logger.info(f"    micro-batches to skip in the epoch begun = {position.micro_batches_to_skip}")
        return position

    def _begin_run(
        self, args: "TrainingArguments", plan: RunPlan, trial: Any, train_dataloader: DataLoader
    ) -> torch.Tensor:
        """Show the run's objects to the callbacks, complete the state, and open the books of the loss.

        Writes: callback_handler.model, callback_handler.optimizer, callback_handler.lr_scheduler,
            callback_handler.train_dataloader, state.trial_name, state.trial_params, state.max_steps,
            state.num_train_epochs, state.is_local_process_zero, state.is_world_process_zero, _total_loss_scalar,
            _globalstep_last_logged
        Source: trainer.py 1724-1749
        """
        self.callback_handler.model = self.model
        self.callback_handler.optimizer = self.optimizer
        self.callback_handler.lr_scheduler = self.lr_scheduler
        self.callback_handler.train_dataloader = train_dataloader

        if self.hp_name is not None and self._trial is not None:
            # The trial comes from the attribute: on ranks other than the first, `train` is called without it.
            self.state.trial_name = self.hp_name(self._trial)
        self.state.trial_params = None
        if trial is not None:
            from .reporters import hp_params

            uses_sigopt = self.hp_search_backend == HPSearchBackend.SIGOPT
            self.state.trial_params = hp_params(trial.assignments if uses_sigopt else trial)
        # A loaded state has these too, but the arguments may have changed since it was saved.
        self.state.max_steps = plan.max_steps
        self.state.num_train_epochs = plan.num_epochs
        self.state.is_local_process_zero = self.is_local_process_zero()
        self.state.is_world_process_zero = self.is_world_process_zero()

        self._total_loss_scalar = 0.0  # also after a resume, although train_loss divides by all steps
        self._globalstep_last_logged = self.state.global_step
        return torch.tensor(0.0).to(args.device)

    def _replay_finished_epochs(
        self, args: "TrainingArguments", position: Position, train_dataloader: DataLoader
    ) -> None:
        """Open the data loader once for each finished epoch, so that its random draws stand where they stood.

        Source: trainer.py 1754-1758
        """
        if not args.ignore_data_skip:
            for _ in range(position.first_epoch):
                for _ in train_dataloader:  # one micro-batch is read and dropped; the permutation is what counts
                    break

    # -- phases: one epoch -----------------------------------------------------------------------------

    def _enter_epoch(
        self, args: "TrainingArguments", plan: RunPlan, position: Position, train_dataloader: DataLoader
    ) -> None:
        """Forget the recurrent memory of the last epoch and measure this one.

        Without a length, an epoch counts as long as the whole run, so `state.epoch` stays below 1 until the data
        really begin again.

        Writes: _past
        Source: trainer.py 1764-1773
        """
        if args.past_index >= 0:
            self._past = None
        position.micro_batches_skipped, position.rng_is_stale = 0, False
        position.micro_batches_in_epoch = (
            len(train_dataloader) if plan.loader_has_length else args.max_steps * args.gradient_accumulation_steps
        )

    def _skip_trained(
        self, epoch: int, position: Position, train_dataloader: DataLoader, resume_from_checkpoint: str | None
    ) -> Iterable[Any]:
        """Leave out the micro-batches that were trained before the resume.

        **Beware:** past the first epoch, what is left of the epoch comes in another order than in an unbroken run if
        the model draws random numbers, as dropout does: some examples are trained twice in that epoch, others not at
        all. Its order is drawn here, from a generator that `_replay_finished_epochs` has moved on by the draws of the
        data loaders alone. The next epoch is as it would have been.

        Skipping draws from the random generators, so their states are loaded after it: at the first micro-batch that
        is trained, or here and now if none is skipped.

        Source: trainer.py 1775-1784
        """
        if position.micro_batches_to_skip > 0:
            micro_batches = skip_first_batches(train_dataloader, position.micro_batches_to_skip)
            position.micro_batches_skipped = position.micro_batches_to_skip
            position.micro_batches_to_skip = 0
            position.rng_is_stale = True
            return micro_batches
        if epoch == position.first_epoch and resume_from_checkpoint is not None:
            self._load_rng_state(resume_from_checkpoint)
        return train_dataloader

    def _count_micro_batch(self, position: Position, resume_from_checkpoint: str | None) -> None:
        """Count the micro-batch; load the checkpoint's random states if it is the first after a skip.

        Leaves out: the old way of skipping, one micro-batch at a time with a progress bar (1793-1803). Nothing in
            4.31.0 can reach it any more.
        Source: trainer.py 1788-1803
        """
        position.micro_batches_seen += 1
        if position.rng_is_stale:
            self._load_rng_state(resume_from_checkpoint)
            position.rng_is_stale = False

    def _add_to_loss_sum(self, loss_sum: torch.Tensor, micro_loss: torch.Tensor) -> None:
        """Add one micro-batch's loss to the running sum, in place.

        **Beware:** with `logging_nan_inf_filter` (the default) a NaN or infinite loss is not added. In its place
        comes a share of the sum so far, divided by steps although the sum is over micro-batches. The weights are
        updated from the bad gradient all the same.

        Source: trainer.py 1810-1819
        """
        filters = self.args.logging_nan_inf_filter and not compat.is_torch_tpu_available()
        if filters and not (micro_loss.is_cpu and math.isfinite(micro_loss.item())):
            # A card chooses by itself: 4.31.0 asks for the number, so there every micro-batch waits here.
            share = loss_sum / (1 + self.state.global_step - self._globalstep_last_logged)
            micro_loss = torch.where(torch.isfinite(micro_loss), micro_loss, share)
        loss_sum += micro_loss

    def _group_is_complete(self, args: "TrainingArguments", position: Position, index: int) -> bool:
        """Say whether this micro-batch is the last of its group, and tell accelerate where it cannot know.

        The count runs on through the epochs: with 5 micro-batches and groups of 2, the fifth is completed by the
        first of the next epoch. Only an epoch that is shorter than one group (or just as long) completes its group
        at its own end; the mean is then over fewer micro-batches but still divided by the full number.

        Source: trainer.py 1823-1838
        """
        in_group = position.micro_batches_seen % args.gradient_accumulation_steps
        is_last_of_short_epoch = (
            position.micro_batches_in_epoch <= args.gradient_accumulation_steps
            and index + 1 == position.micro_batches_in_epoch
        )
        is_complete = in_group == 0 or is_last_of_short_epoch
        if is_complete and (is_last_of_short_epoch or compat.ACCELERATE_LEAVES_SYNC_TO_TRAINER):
            # Else its optimizer would take the step for one inside a group, and do nothing.
            self.accelerator.gradient_state._set_sync_gradients(True)
        return is_complete

    # -- phases: one step ------------------------------------------------------------------------------

    def _clip_gradients(self, args: "TrainingArguments", model: Any) -> None:
        """Scale the gradient of the group down to a norm of at most `max_grad_norm`; 0 or None leaves it alone.

        The branches for TPU, SageMaker, apex and fairscale were never run on the hardware.

        Source: trainer.py 1840-1870
        """
        if args.max_grad_norm is None or args.max_grad_norm <= 0:
            return
        if self.do_grad_scaling:
            if compat.is_torch_tpu_available():
                xla = compat.xla_model()
                gradients = xla._fetch_gradients(self.optimizer)
                xla.all_reduce("sum", gradients, scale=1.0 / xla.xrt_world_size())
            self.scaler.unscale_(self.optimizer)  # a norm means nothing while the loss scale is in the gradient

        if compat.is_sagemaker_mp_enabled() and args.fp16:
            self.optimizer.clip_master_grads(args.max_grad_norm)
        elif hasattr(self.optimizer, "clip_grad_norm"):
            self.optimizer.clip_grad_norm(args.max_grad_norm)  # sharded optimizers: the norm spans all ranks
        elif hasattr(model, "clip_grad_norm_"):
            model.clip_grad_norm_(args.max_grad_norm)  # sharded models, likewise
        elif self.use_apex:
            from apex import amp

            nn.utils.clip_grad_norm_(amp.master_params(self.optimizer), args.max_grad_norm)
        else:
            self.accelerator.clip_grad_norm_(model.parameters(), args.max_grad_norm)

    def _step_optimizer_and_scheduler(self) -> None:
        """Update the weights, and the learning rate unless the update was left out.

        A gradient scaler leaves out the update if a gradient is infinite or NaN; `global_step` counts it all the same.
        A `ReduceLROnPlateau` waits for the metric of the next evaluation.

        Source: trainer.py 1872-1894
        """
        optimizer_was_run = True
        if not self.do_grad_scaling:
            self.optimizer.step()  # on a TPU, accelerate's wrapper reduces the gradients here
            if not compat.is_torch_tpu_available():
                optimizer_was_run = not self.accelerator.optimizer_step_was_skipped
        else:
            scale_before = self.scaler.get_scale()
            self.scaler.step(self.optimizer)
            self.scaler.update()
            if not compat.is_torch_tpu_available():
                optimizer_was_run = scale_before <= self.scaler.get_scale()  # a smaller scale: it found an infinity

        if optimizer_was_run and not isinstance(self.lr_scheduler, ReduceLROnPlateau):
            self.lr_scheduler.step()

    # -- phases: ends ----------------------------------------------------------------------------------

    def _stop_if_epoch_was_empty(self, plan: RunPlan, index: int) -> None:
        """End the run if the data loader gave not one micro-batch.

        Writes: control.should_training_stop
        Source: trainer.py 1907-1913
        """
        if index < 0:
            logger.warning(
                f"The data loader gave nothing in this epoch, so training ends at step {self.state.global_step} of"
                f" {plan.max_steps}. An IterableDataset that is used up does that: make it longer, or `max_steps` lower."
            )
            self.control.should_training_stop = True

    def _print_tpu_counters(self) -> None:
        """Print the compiler's counters if `--debug tpu_metrics_debug` asks for them. Never run on the hardware.

        Source: trainer.py 1918-1926
        """
        if DebugOption.TPU_METRICS_DEBUG not in self.args.debug:
            return
        if compat.is_torch_tpu_available():
            import torch_xla.debug.metrics

            compat.xla_model().master_print(torch_xla.debug.metrics.metrics_report())
        else:
            logger.warning(
                "`--debug tpu_metrics_debug` prints the counters of PyTorch/XLA, but there is no TPU here: nothing"
                " is printed."
            )

    def _finish_model(self, args: "TrainingArguments") -> None:
        """Drop the recurrent memory; with `load_best_model_at_end`, put the best weights into the model.

        **Beware:** the best weights are loaded, the optimizer stays that of the last step.

        Writes: _past
        Source: trainer.py 1930-1944
        """
        if args.past_index and hasattr(self, "_past"):
            del self._past
        logger.info("***** Training is done *****")
        if not (args.load_best_model_at_end and self.state.best_model_checkpoint is not None):
            return
        # Every rank waits until the first one has written the checkpoint that all are about to read.
        if compat.is_torch_tpu_available():
            compat.xla_model().rendezvous("load_best_model_at_end")
        elif args.parallel_mode == ParallelMode.DISTRIBUTED:
            dist.barrier()
        elif compat.is_sagemaker_mp_enabled():
            compat.sagemaker().barrier()
        self._load_best_model()

    def _summarise_run(
        self, plan: RunPlan, start_time: float, loss_sum: torch.Tensor
    ) -> tuple[float, dict[str, float]]:
        """Close the books of the loss, and log the run's figures.

        **Beware:** the rest since the last log is this rank's own; the sums logged before are means over ranks. The
        total is divided by all steps, also those from before a resume.

        Writes: _total_loss_scalar, is_in_train
        Source: trainer.py 1946-1959
        """
        self._total_loss_scalar += loss_sum.item()
        if self.state.global_step == 0:
            raise ZeroDivisionError(
                "float division by zero: no step was made, so there is no train_loss. Check that `train_dataset` is"
                " not empty and that each of its epochs has at least one batch (see `dataloader_drop_last`)."
            )
        train_loss = self._total_loss_scalar / self.state.global_step
        metrics = speed_metrics("train", start_time, num_samples=plan.num_samples, num_steps=self.state.max_steps)
        self.store_flos()
        metrics.update(total_flos=self.state.total_flos, train_loss=train_loss)
        self.is_in_train = False
        self._memory_tracker.stop_and_update_metrics(metrics)
        self.log(metrics)
        return train_loss, metrics

    def _delete_all_but_best(self, trial: Any) -> None:
        """With `save_total_limit=1`, delete the last checkpoint too if another one is the best.

        While training it was kept, so that the run could be resumed.

        Source: trainer.py 1961-1969
        """
        checkpoints = self._sorted_checkpoints(use_mtime=False, output_dir=self._get_output_dir(trial))
        best = self.state.best_model_checkpoint
        if self.args.should_save and best is not None and self.args.save_total_limit == 1:
            for checkpoint in checkpoints:
                if checkpoint != best:
                    logger.info(f"save_total_limit=1: deleting {checkpoint}, which is not the best")
                    shutil.rmtree(checkpoint)


def _as_steps(interval: Any, max_steps: int) -> Any:
    return math.ceil(max_steps * interval) if interval and interval < 1 else interval


# Read next: setup.py
