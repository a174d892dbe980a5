"""Saving: the model for its users, and whole checkpoints for `resume_from_checkpoint`.

A checkpoint is a folder `checkpoint-<step>` with all that a run needs to go on as if it had never stopped:

    pytorch_model.bin or model.safetensors   weights (several shards and an index above 10 GB)
    config.json, generation_config.json      where the model has them
    tokenizer files                          where the Trainer has a tokenizer
    training_args.bin                        the arguments, pickled
    optimizer.pt, scheduler.pt, scaler.pt    moments and counts, learning rate, loss scale (the last with fp16 scaling)
    trainer_state.json                       steps, epoch, log history, best metric
    rng_state.pth, rng_state_<rank>.pth      Python's, numpy's and torch's random states, one file a rank

Names and content are 4.31.0's, and either side resumes the other's. `training_args.bin` alone differs: it is a pickle
of `minitrainer.arguments.TrainingArguments`, where upstream's names `transformers.training_args.TrainingArguments`;
same fields, same values. Nothing here ever reads it back. Whoever wants to needs
`torch.load(path, weights_only=False)`, on files of their own only, since unpickling runs what the file says.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from transformers import PreTrainedModel
from transformers.utils import SAFE_WEIGHTS_NAME, WEIGHTS_NAME

from . import compat
from .attributes import Attributes
from .parts.checkpoints import (
    OPTIMIZER_NAME,
    PREFIX_CHECKPOINT_DIR,
    RNG_STATE_NAME,
    SCALER_NAME,
    SCHEDULER_NAME,
    TRAINER_STATE_NAME,
    TRAINING_ARGS_NAME,
    reissue_pt_warnings,
    rng_state_files,
)
from .parts.choices import HPSearchBackend, ParallelMode, ShardedDDPOption
from .parts.logs import get_logger

if TYPE_CHECKING:
    import optuna
    from torch import nn

logger = get_logger(__name__)


class SavingMixin(Attributes):
    """Needs the model, optimizer, scheduler, state, args; `store_flos`, `push_to_hub`, `_push_from_checkpoint`.

    You get: `save_model` for users, `_save_checkpoint` for the loop, `_save` to override what a saved model consists
    of, and the rotation of old checkpoints.
    """

    def _save_checkpoint(
        self, model: nn.Module, trial: optuna.Trial | dict[str, Any] | None, metrics: dict[str, float] | None = None
    ) -> None:
        """Write the folder `checkpoint-<step>`, note the best metric, and delete what is too old.

        **Beware:** the state is written before the rotation and before `on_save`, so it knows nothing of either. And
        metrics are those of *this* moment: where evaluation and saving fall on different steps, the best metric moves
        only on steps that do both (hence the check in `TrainingArguments` with `load_best_model_at_end`). DeepSpeed,
        TPU and SageMaker were never run on the hardware.

        Args:
            model: the wrapped model; not used, since `self.model` is always what is saved.
            trial: the trial of a hyperparameter search; its checkpoints get a folder of their own.
            metrics: what the evaluation of this step returned; None where there was none.

        Raises:
            KeyError: if `metric_for_best_model` names a metric that the evaluation did not return.

        Source: trainer.py 2281-2400
        """
        if self.hp_search_backend is None and trial is None:
            self.store_flos()

        run_dir = self._get_output_dir(trial=trial)
        output_dir = os.path.join(run_dir, f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}")

        # -- weights ---
        self.save_model(output_dir, _internal_call=True)
        if self.is_deepspeed_enabled:
            # DeepSpeed writes its own shards of everything; under ZeRO 3 save_model wrote no usable weights.
            self.model_wrapped.save_checkpoint(output_dir)

        # -- optimizer, scheduler, scaler ---
        self._save_optimizer_and_scheduler(output_dir)

        # -- state ---
        self._note_best_metric(metrics, output_dir)
        if self.args.should_save:
            self.state.save_to_json(os.path.join(output_dir, TRAINER_STATE_NAME))

        # -- random states ---
        self._save_rng_state(output_dir)

        # -- hub and rotation ---
        if self.args.push_to_hub:
            self._push_from_checkpoint(output_dir)
        if self.args.should_save:
            self._rotate_checkpoints(use_mtime=True, output_dir=run_dir)

    def _get_output_dir(self, trial: Any) -> str:
        """Return the folder of this run's checkpoints: `output_dir`, or a folder below it for each trial of a search.

        Args:
            trial: the running trial, or None.

        Returns:
            `output_dir`, `output_dir/run-<id>`, or `output_dir/<hp_name(trial)>`.

        Source: trainer.py 1975-1993
        """
        if self.hp_search_backend is None or trial is None:
            return self.args.output_dir
        if self.hp_search_backend == HPSearchBackend.SIGOPT:
            run_id = trial.id
        elif self.hp_search_backend == HPSearchBackend.OPTUNA:
            run_id = trial.number
        elif self.hp_search_backend == HPSearchBackend.WANDB:
            import wandb

            run_id = wandb.run.id
        else:
            from ray import tune

            run_id = tune.get_trial_id()
        run_name = f"run-{run_id}" if self.hp_name is None else self.hp_name(trial)
        return os.path.join(self.args.output_dir, run_name)

    # -- the model ---

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model so that `from_pretrained` can load it; one process writes, all must call.

        Override `_save` to change what is written, and this one to change who writes. All branches but FSDP's and
        the last were never run on the hardware.

        Args:
            output_dir: where to; None means `args.output_dir`.
            _internal_call: True where a checkpoint or a push asks; a user's own call also pushes, with
                `args.push_to_hub`.

        Source: trainer.py 2720-2773
        Leaves out: the refusal of accelerate 0.20.3 and older.
        """
        output_dir = self.args.output_dir if output_dir is None else output_dir
        sharded_ddp = self.args.sharded_ddp
        shards_weights = ShardedDDPOption.ZERO_DP_2 in sharded_ddp or ShardedDDPOption.ZERO_DP_3 in sharded_ddp

        if compat.is_torch_tpu_available():
            self._save_tpu(output_dir)
        elif compat.is_sagemaker_mp_enabled():
            # The state dict is a collective call on the wrapped model: all processes, before anyone writes.
            os.makedirs(output_dir, exist_ok=True)
            state_dict = self.model_wrapped.state_dict()
            if self.args.should_save:
                self._save(output_dir, state_dict=state_dict)
            if compat.is_sagemaker_mp_post_1_10():
                Path(output_dir, "user_content.pt").touch()  # tells the reader which of two formats this is
        elif shards_weights or self.fsdp is not None or self.is_fsdp_enabled:
            state_dict = self.model.state_dict()
            if self.args.should_save:
                self._save(output_dir, state_dict=state_dict)
            if self.is_fsdp_enabled:
                from accelerate.utils import save_fsdp_model

                save_fsdp_model(self.accelerator.state.fsdp_plugin, self.accelerator, self.model, output_dir)
        elif self.is_deepspeed_enabled:
            try:
                # Collective: all ranks gather, whoever writes.
                state_dict = self.accelerator.get_state_dict(self.deepspeed)
                if self.args.should_save:
                    self._save(output_dir, state_dict=state_dict)
            except ValueError:
                logger.warning(
                    "DeepSpeed does not gather the 16-bit weights (stage3_gather_16bit_weights_on_model_save is"
                    " false): writing its full checkpoint instead. zero_to_fp32.py turns that into weights."
                )
                self.model_wrapped.save_checkpoint(output_dir)
        elif self.args.should_save:
            self._save(output_dir)

        if self.args.push_to_hub and not _internal_call:
            self.push_to_hub(commit_message="Model save")

    def _save(self, output_dir: str | None = None, state_dict: dict[str, torch.Tensor] | None = None) -> None:
        """Write weights, configuration, tokenizer and arguments into one folder.

        Override it to save less or otherwise, for example only the parameters that require gradients. It runs on the
        saving process only.

        Args:
            output_dir: where to; None means `args.output_dir`.
            state_dict: the weights, where they had to be gathered; None means those of `self.model`.

        Source: trainer.py 2803-2835
        """
        output_dir = output_dir if output_dir is not None else self.args.output_dir
        os.makedirs(output_dir, exist_ok=True)
        logger.info(f"Saving model checkpoint to {output_dir}")

        peft_model_class = compat.peft_model_class()
        known_classes = (PreTrainedModel,) if peft_model_class is None else (PreTrainedModel, peft_model_class)

        if isinstance(self.model, known_classes):
            compat.save_pretrained(self.model, output_dir, state_dict, self.args.save_safetensors)
        else:
            if state_dict is None:
                state_dict = self.model.state_dict()
            inner_model = compat.unwrap_model(self.model)
            if isinstance(inner_model, known_classes):
                compat.save_pretrained(inner_model, output_dir, state_dict, self.args.save_safetensors)
            else:
                logger.info("No PreTrainedModel, so no configuration: the state dict alone is saved.")
                if self.args.save_safetensors:
                    import safetensors.torch

                    # Refuses tensors that share memory; save_pretrained would have dropped the copies.
                    safetensors.torch.save_file(state_dict, os.path.join(output_dir, SAFE_WEIGHTS_NAME))
                else:
                    torch.save(state_dict, os.path.join(output_dir, WEIGHTS_NAME))

        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(output_dir)
        torch.save(self.args, os.path.join(output_dir, TRAINING_ARGS_NAME))

    def _save_tpu(self, output_dir: str | None = None) -> None:
        """Write what `_save` writes, from a TPU: every core calls, the first one writes.

        Never run on the hardware. **Beware:** `save_safetensors` is not looked at, weights are always `.bin` files.

        Args:
            output_dir: where to; None means `args.output_dir`.

        Source: trainer.py 2775-2801
        """
        xm = compat.xla_model()
        output_dir = output_dir if output_dir is not None else self.args.output_dir
        logger.info(f"Saving model checkpoint to {output_dir}")

        if xm.is_master_ordinal():
            os.makedirs(output_dir, exist_ok=True)
            torch.save(self.args, os.path.join(output_dir, TRAINING_ARGS_NAME))

        # xm.save moves tensors to the CPU and is itself a meeting point of all cores.
        xm.rendezvous("saving_checkpoint")
        options = {"is_main_process": self.args.should_save, "save_function": xm.save}
        if isinstance(self.model, PreTrainedModel):
            self.model.save_pretrained(output_dir, **options)
        elif isinstance(compat.unwrap_model(self.model), PreTrainedModel):
            inner_model: Any = compat.unwrap_model(self.model)
            inner_model.save_pretrained(output_dir, state_dict=self.model.state_dict(), **options)
        else:
            logger.info("No PreTrainedModel, so no configuration: the state dict alone is saved.")
            xm.save(self.model.state_dict(), os.path.join(output_dir, WEIGHTS_NAME))
        if self.tokenizer is not None and self.args.should_save:
            self.tokenizer.save_pretrained(output_dir)

    # -- all that is not the model ---

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        """Write optimizer.pt, scheduler.pt and, with fp16 loss scaling, scaler.pt.

        DeepSpeed writes its own, in `_save_checkpoint`. All branches but FSDP's and the last were never
        run on the hardware.

        Source: trainer.py 2301-2352
        """
        optimizer_path = os.path.join(output_dir, OPTIMIZER_NAME)

        if self.sharded_ddp == ShardedDDPOption.SIMPLE:
            self.optimizer.consolidate_state_dict()

        # Gathering FSDP's optimizer state is a collective call: all ranks, before should_save picks one.
        full_optimizer_state = None
        if self.is_fsdp_enabled:
            from accelerate.utils import save_fsdp_optimizer

            save_fsdp_optimizer(
                self.accelerator.state.fsdp_plugin, self.accelerator, self.optimizer, self.model, output_dir
            )
        elif self.fsdp:
            full_optimizer_state = self.model.__class__.full_optim_state_dict(self.model, self.optimizer)

        if compat.is_torch_tpu_available():
            xm = compat.xla_model()
            xm.rendezvous("saving_optimizer_states")
            xm.save(self.optimizer.state_dict(), optimizer_path)
            with warnings.catch_warnings(record=True) as caught_warnings:
                xm.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, SCHEDULER_NAME))
                reissue_pt_warnings(caught_warnings)
        elif compat.is_sagemaker_mp_enabled():
            smp = compat.sagemaker()
            optimizer_state = self.optimizer.local_state_dict(gather_if_shard=False)
            smp.barrier()
            if smp.rdp_rank() == 0 or smp.state.cfg.shard_optimizer_state:
                smp.save(optimizer_state, optimizer_path, partial=True, v3=smp.state.cfg.shard_optimizer_state)
            if self.args.should_save:
                self._save_scheduler_and_scaler(output_dir)
        elif self.args.should_save and not self.is_deepspeed_enabled:
            # With accelerate's FSDP this replaces nothing but adds rank 0's own shard, as upstream does.
            state = full_optimizer_state if full_optimizer_state is not None else self.optimizer.state_dict()
            torch.save(state, optimizer_path)
            self._save_scheduler_and_scaler(output_dir)

    def _save_scheduler_and_scaler(self, output_dir: str) -> None:
        """Write the states of the scheduler and, if there is one, of the gradient scaler."""
        with warnings.catch_warnings(record=True) as caught_warnings:
            torch.save(self.lr_scheduler.state_dict(), os.path.join(output_dir, SCHEDULER_NAME))
        reissue_pt_warnings(caught_warnings)
        if self.do_grad_scaling:
            torch.save(self.scaler.state_dict(), os.path.join(output_dir, SCALER_NAME))

    def _note_best_metric(self, metrics: dict[str, float] | None, output_dir: str) -> None:
        """Remember this checkpoint as the best one if its metric beats the best so far.

        A metric that is NaN never beats anything, but the first one counts as best whatever it is: a NaN in the
        first evaluation stays the best to the end.

        Writes: state.best_metric, state.best_model_checkpoint
        Source: trainer.py 2354-2369
        """
        if metrics is None or self.args.metric_for_best_model is None:
            return
        name = self.args.metric_for_best_model
        if not name.startswith("eval_"):
            name = f"eval_{name}"
        if name not in metrics:
            raise KeyError(
                f"metric_for_best_model={self.args.metric_for_best_model!r} asks for {name!r}, which the evaluation "
                f"did not return. It returned {sorted(metrics)}: name one of these, or let compute_metrics return it."
            )
        is_better = np.greater if self.args.greater_is_better else np.less
        if (
            self.state.best_metric is None
            or self.state.best_model_checkpoint is None
            or is_better(metrics[name], self.state.best_metric)
        ):
            self.state.best_metric = metrics[name]
            self.state.best_model_checkpoint = output_dir

    def _save_rng_state(self, output_dir: str) -> None:
        """Write this rank's random states; `_load_rng_state` sets them again in the middle of an epoch.

        The TPU branch was never run on the hardware.

        Source: trainer.py 2375-2397
        """
        rng_states: dict[str, Any] = {"python": random.getstate(), "numpy": np.random.get_state()}
        rng_states["cpu"] = torch.random.get_rng_state()
        if torch.cuda.is_available():
            if self.args.parallel_mode == ParallelMode.DISTRIBUTED:
                rng_states["cuda"] = torch.cuda.random.get_rng_state_all()
            else:
                # The current device only: with several GPUs in one process the others' states are lost.
                rng_states["cuda"] = torch.cuda.random.get_rng_state()
        if compat.is_torch_tpu_available():
            rng_states["xla"] = compat.xla_model().get_rng_state()

        # A rank may arrive here before rank 0 has made the folder.
        os.makedirs(output_dir, exist_ok=True)
        ranks = self.args.world_size
        file_name = RNG_STATE_NAME if ranks <= 1 else f"rng_state_{self.args.process_index}.pth"
        torch.save(rng_states, os.path.join(output_dir, file_name))
        if self.args.should_save:
            # An earlier run of more ranks may have left the same folder: `_check_number_of_ranks` would count its files.
            for name, ranks_at_least in rng_state_files(output_dir).items():
                if ranks_at_least > max(ranks, 1) or (name == RNG_STATE_NAME) != (ranks <= 1):
                    Path(output_dir, name).unlink(missing_ok=True)

    # -- rotation ---

    def _rotate_checkpoints(self, use_mtime: bool = False, output_dir: str | None = None) -> None:
        """Delete the oldest checkpoints beyond `save_total_limit`, never the best one nor the newest.

        **Beware:** with a limit of one and a best model that is not the newest checkpoint, two remain. The comparison
        is one of strings: an `output_dir` such as `./out` makes every best checkpoint look like another one.

        Args:
            use_mtime: order by time of writing instead of by step.
            output_dir: the folder that holds the checkpoints.

        Source: trainer.py 2872-2895
        """
        limit = self.args.save_total_limit
        if limit is None or limit <= 0:
            return

        checkpoints = self._sorted_checkpoints(use_mtime=use_mtime, output_dir=output_dir)
        if len(checkpoints) <= limit:
            return

        # The best one is needed at the end, the newest one to resume: a limit of one yields.
        best = self.state.best_model_checkpoint
        if best is not None and limit == 1 and checkpoints[-1] != best:
            limit = 2

        for checkpoint in checkpoints[: max(0, len(checkpoints) - limit)]:
            logger.info(f"save_total_limit={self.args.save_total_limit}: deleting {checkpoint}")
            shutil.rmtree(checkpoint, ignore_errors=True)

    def _sorted_checkpoints(
        self,
        output_dir: str | None = None,
        checkpoint_prefix: str = PREFIX_CHECKPOINT_DIR,
        use_mtime: bool = False,
    ) -> list[str]:
        """List the checkpoints of a folder, those to delete first at the front.

        Args:
            output_dir: the folder that holds them.
            checkpoint_prefix: how their names start.
            use_mtime: order by time of writing instead of by step.

        Returns:
            Paths, oldest first, but with the best checkpoint moved to the last place but one.

        Raises:
            ValueError: if the best checkpoint is not in that folder (any more).

        Source: trainer.py 2848-2870
        """
        keyed_paths: list[tuple[float, str]] = []
        for folder in Path(output_dir).glob(f"{checkpoint_prefix}-*"):  # type: ignore[arg-type]
            if not folder.is_dir():
                continue
            if use_mtime:
                keyed_paths.append((os.path.getmtime(folder), str(folder)))
            else:
                match = re.match(f".*{checkpoint_prefix}-([0-9]+)", str(folder))
                if match is not None:
                    keyed_paths.append((int(match[1]), str(folder)))
        checkpoints = [path for _, path in sorted(keyed_paths)]

        if self.state.best_model_checkpoint is not None:
            best = str(Path(self.state.best_model_checkpoint))
            if best not in checkpoints:
                raise ValueError(
                    f"The best checkpoint {best} is not in {output_dir}. It was deleted or moved, or this run resumes "
                    "one with another output_dir: restore it, or set state.best_model_checkpoint to None."
                )
            position = checkpoints.index(best)
            # Shifting its successors forward by one leaves the newest in the last place. A best one that already
            # stands last or last but one stays there.
            for i in range(position, len(checkpoints) - 2):
                checkpoints[i], checkpoints[i + 1] = checkpoints[i + 1], checkpoints[i]
        return checkpoints


# Read next: resuming.py
