"""Resuming: read a checkpoint back, so that the run goes on as if it had never stopped.

In the order in which `train` comes to them: weights, optimizer and scheduler, random states; at the very end perhaps
the weights of the best checkpoint.

Two things differ from 4.31.0 on purpose: a checkpoint of another number of ranks is refused (`_check_number_of_ranks`),
and so is a file that holds more than data.

**Differs from 4.31.0:** its `torch.load` runs whatever a file's pickle says. Here only tensors, plain containers and
numbers are read, and for the random states numpy's arrays; anything else is refused before it runs, with the file's name
and the remedy. The files themselves stay as they are. That takes torch 2.6: an older one cannot admit numpy's arrays
alone, so there a run that left random states behind is not resumed, and the error says why.
"""

from __future__ import annotations

import glob
import os
import random
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import transformers
from torch import nn
from transformers.utils import (
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    WEIGHTS_INDEX_NAME,
    WEIGHTS_NAME,
)

from . import compat
from .attributes import Attributes
from .parts.checkpoints import (
    OPTIMIZER_NAME,
    SCALER_NAME,
    SCHEDULER_NAME,
    load_json,
    reissue_pt_warnings,
    rng_state_files,
)
from .parts.choices import ParallelMode
from .parts.logs import get_logger
from .parts.reading import NUMPY_STATE_TYPES, load_safetensors, load_tensors

logger = get_logger(__name__)

ADAPTER_FILES = ("adapter_model.bin", "adapter_model.safetensors")  # peft's names


class ResumingMixin(Attributes):
    """Needs the model, optimizer, scheduler and scaler of the run that goes on, and the folder of a checkpoint.

    You get: five methods that each read back one kind of state. None of them writes to the checkpoint.
    """

    # -- number of ranks ---

    def _check_number_of_ranks(self, checkpoint: str) -> None:
        """Refuse a checkpoint that was saved by more or fewer ranks than there are now.

        The number follows from the files of random states, one a rank; where they were deleted nothing is refused.
        `train` comes here before it loads anything, and every rank comes to the same answer: a rank that went on
        alone would wait for the others until the time-out.

        **Differs from 4.31.0:** it goes on with other data and does not mention it. Ours refuses on every rank; with
        `ignore_data_skip`, which gives up the position in the data, it goes on too, and warns.

        Args:
            checkpoint: the folder.

        Raises:
            ValueError: if the numbers differ and `ignore_data_skip` is off; on every rank.
        """
        ranks_now = self.args.world_size
        ranks_before = max(rng_state_files(checkpoint).values(), default=0)
        on_one_machine = int(os.environ.get("LOCAL_WORLD_SIZE", 0)) == ranks_now
        if dist.is_available() and dist.is_initialized() and not on_one_machine:
            # Perhaps no machine sees all files: without a shared disk (`save_on_each_node`) each has its own ranks'.
            seen = [0] * dist.get_world_size()
            dist.all_gather_object(seen, ranks_before)
            ranks_before = max(seen)
        if ranks_before in (0, ranks_now):
            return

        numbers = f"{checkpoint} was saved by {ranks_before} rank(s), and this run has {ranks_now}"
        if not self.args.ignore_data_skip:
            raise ValueError(
                f"{numbers}: that cannot be the same run. The samples are dealt to the ranks anew, so each would skip "
                "other micro-batches than it has trained, and random states are one file a rank. Start "
                f"{ranks_before} process(es), or pass ignore_data_skip=True to give up the position in the data."
            )
        if self.args.process_index == 0:
            logger.warning(f"{numbers}. Data, steps and random states go on differently from the unbroken run.")

    # -- weights ---

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        """Load the weights of a checkpoint into the model: a plain file, adapters, FSDP's or SageMaker's, or shards.

        **Beware:** names that only one side has are a warning, not an error: a checkpoint of another model of the
        same shapes loads. With `save_safetensors=False`, a folder that holds nothing but `model.safetensors` fails,
        because the `.bin` file is then the only one looked for. SageMaker and adapters were never run on the
        hardware.

        Args:
            resume_from_checkpoint: the folder.
            model: the model; None means `self.model`.

        Raises:
            ValueError: if the folder holds no weights.
            RuntimeError: if a weight's shape differs, that is, the checkpoint belongs to another model.
            pickle.UnpicklingError: if the file holds more than weights.

        Source: trainer.py 1995-2090
        """
        if model is None:
            model = self.model
        folder = resume_from_checkpoint

        if not _has_any(
            folder, WEIGHTS_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_INDEX_NAME, *ADAPTER_FILES
        ):
            raise ValueError(
                f"{folder} is no checkpoint: it holds none of {WEIGHTS_NAME}, {SAFE_WEIGHTS_NAME}, their index files, "
                "or adapter weights. Pass a folder checkpoint-<step> as resume_from_checkpoint."
            )
        logger.info(f"Loading model from {folder}.")
        _warn_about_other_version(folder)

        if _has_any(folder, WEIGHTS_NAME, SAFE_WEIGHTS_NAME):
            if compat.is_sagemaker_mp_enabled():
                self._load_sagemaker_weights(model, folder, prefer_safetensors=False)
            elif self.is_fsdp_enabled:
                self._load_fsdp_weights(model, folder)
            else:
                self._load_plain_weights(model, folder)
        elif self._is_peft_model(model):
            if not (hasattr(model, "active_adapter") and hasattr(model, "load_adapter")):
                logger.warning("Could not load the adapter: this peft is too old, install peft>=0.3.0.")
            elif os.path.exists(folder):
                model.load_adapter(folder, model.active_adapter, is_trainable=True)  # type: ignore[operator]
            else:
                logger.warning(_adapters_missing(folder))
        else:
            is_sagemaker = compat.is_sagemaker_mp_enabled()
            load_result = compat.load_sharded_checkpoint(
                model, folder, strict=is_sagemaker, prefer_safe=self.args.save_safetensors
            )
            if not is_sagemaker:
                self._issue_warnings_after_load(load_result)

    def _load_best_model(self) -> None:
        """Load the weights of the best checkpoint, at the end of `train` with `load_best_model_at_end`.

        Optimizer and scheduler keep their last state. **Beware:** where the best model cannot be found there is only a
        warning, and the last weights stay. That happens with shards in safetensors: only the index of `.bin` shards
        is looked for. DeepSpeed, FSDP, SageMaker and adapters were never run on the hardware.

        Raises:
            RuntimeError: if a weight's shape differs.
            pickle.UnpicklingError: if the file holds more than weights.

        Source: trainer.py 2092-2177
        """
        folder = str(self.state.best_model_checkpoint)  # train calls this only where there is one
        logger.info(f"Loading best model from {folder} (score: {self.state.best_metric}).")
        is_sagemaker = compat.is_sagemaker_mp_enabled()
        model = self.model_wrapped if is_sagemaker else self.model

        if _has_any(folder, WEIGHTS_NAME, SAFE_WEIGHTS_NAME, *ADAPTER_FILES):
            if self.is_deepspeed_enabled:
                compat.deepspeed_load_checkpoint(self.model_wrapped, folder)
            elif is_sagemaker:
                self._load_sagemaker_weights(model, folder, prefer_safetensors=self.args.save_safetensors)
            elif self.is_fsdp_enabled:
                # Upstream goes on to warn about the result of a load that FSDP does not report: a NameError there.
                self._load_fsdp_weights(model, folder)
            elif self._is_peft_model(model):
                if not (hasattr(model, "active_adapter") and hasattr(model, "load_adapter")):
                    logger.warning("Could not load the adapter: this peft is too old, install peft>=0.3.0.")
                elif _has_any(folder, *ADAPTER_FILES):
                    model.load_adapter(folder, model.active_adapter)
                else:
                    logger.warning(_adapters_missing(folder))
            else:
                self._load_plain_weights(model, folder)
        elif _has_any(folder, WEIGHTS_INDEX_NAME):
            load_result = compat.load_sharded_checkpoint(model, folder, strict=is_sagemaker)
            if not is_sagemaker:
                self._issue_warnings_after_load(load_result)
        else:
            logger.warning(
                f"The best model is not loaded, there is no {os.path.join(folder, WEIGHTS_NAME)}: the last weights stay."
                " A run on several nodes without a common disk needs `--save_on_each_node`."
            )

    def _load_plain_weights(self, model: nn.Module, folder: str) -> None:
        """Load one file of weights, through the CPU's memory so that the device need not hold them twice."""
        state_dict = self._read_weights(folder, prefer_safetensors=self.args.save_safetensors)
        try:
            # By position: FSDP's override takes *args where torch's takes `strict=`.
            load_result = model.load_state_dict(state_dict, False)
        except RuntimeError as error:
            raise RuntimeError(
                f"The checkpoint in {folder} does not fit {type(model).__name__}: was it written by another model, or "
                f"with another configuration? Pass its own model, or another checkpoint. {error}"
            ) from error
        del state_dict  # before anything else allocates
        self._issue_warnings_after_load(load_result)

    def _load_fsdp_weights(self, model: nn.Module, folder: str) -> None:
        """Let accelerate load FSDP's weights, full or sharded. Never run on the hardware."""
        from accelerate.utils import load_fsdp_model

        load_fsdp_model(self.accelerator.state.fsdp_plugin, self.accelerator, model, folder)

    def _load_sagemaker_weights(self, model: nn.Module, folder: str, prefer_safetensors: bool) -> None:
        """Load weights under SageMaker's model parallelism, in the format of before or after 1.10.

        Never run on the hardware.
        """
        if os.path.isfile(os.path.join(folder, "user_content.pt")):
            compat.sagemaker().resume_from_checkpoint(
                path=folder, tag=WEIGHTS_NAME, partial=False, load_optimizer=False
            )
            return
        if getattr(self.args, "fp16", False) is True:
            logger.warning(
                "fp16 together with a checkpoint of SageMaker's model parallelism before 1.10: unsupported."
            )
        state_dict: dict[str, Any] = self._read_weights(folder, prefer_safetensors)
        # Names are those of the wrapped model already; without this entry the library would translate them again.
        state_dict["_smp_is_partial"] = False
        model.load_state_dict(state_dict, strict=True)

    def _is_peft_model(self, model: nn.Module) -> bool:
        """Say whether only adapters are trained and saved."""
        peft_model_class = compat.peft_model_class()
        return peft_model_class is not None and isinstance(model, peft_model_class)

    def _read_weights(self, folder: str, prefer_safetensors: bool) -> dict[str, torch.Tensor]:
        """Read one file of weights, safetensors first if they are preferred and there."""
        safe_weights_file = os.path.join(folder, SAFE_WEIGHTS_NAME)
        if prefer_safetensors and os.path.isfile(safe_weights_file):
            return load_safetensors(safe_weights_file)
        return load_tensors(os.path.join(folder, WEIGHTS_NAME), map_location="cpu")

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """Warn about weights that the model or the checkpoint lacks; tie weights that are never saved.

        Args:
            load_result: has `missing_keys` and `unexpected_keys`.

        Raises:
            AttributeError: if weights are missing and the model is no PreTrainedModel.

        Source: trainer.py 2179-2190
        """
        missing, unexpected = load_result.missing_keys, load_result.unexpected_keys
        if len(missing) != 0:
            if not hasattr(self.model, "_keys_to_ignore_on_save"):
                raise AttributeError(
                    f"'{type(self.model).__name__}' object has no attribute '_keys_to_ignore_on_save', so nothing excuses"
                    f" what the checkpoint lacks: {missing}. Is it another model's?"
                )
            never_saved = self.model._keys_to_ignore_on_save
            if never_saved is not None and set(missing) == set(never_saved):
                self.model.tie_weights()
            else:
                logger.warning(f"The checkpoint lacks weights, which keep their values: {missing}.")
        if len(unexpected) != 0:
            logger.warning(f"The checkpoint holds weights that the model lacks: {unexpected}.")

    # -- optimizer, scheduler, scaler ---

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Set optimizer, scheduler and loss scale back to the checkpoint's, if it holds the first two.

        **Beware:** if either file is missing, both start afresh, without a word. TPU and SageMaker were
        never run on the hardware.

        Args:
            checkpoint: the folder, or None for a run that does not resume.

        Raises:
            pickle.UnpicklingError: if a file holds more than tensors, containers and numbers.

        Source: trainer.py 2402-2478
        """
        if checkpoint is None:
            return
        if self.is_deepspeed_enabled:
            return  # its engine has loaded them together with the weights

        optimizer_file = os.path.join(checkpoint, OPTIMIZER_NAME)
        scheduler_file = os.path.join(checkpoint, SCHEDULER_NAME)
        scaler_file = os.path.join(checkpoint, SCALER_NAME)
        if compat.is_sagemaker_mp_enabled():
            has_optimizer = bool(glob.glob(f"{optimizer_file}_*"))  # one file a rank
        else:
            has_optimizer = os.path.isfile(optimizer_file)
        if not (has_optimizer and os.path.isfile(scheduler_file)):
            return

        if compat.is_torch_tpu_available():
            optimizer_state = load_tensors(optimizer_file, map_location="cpu")
            with _scheduler_warnings():
                scheduler_state = load_tensors(scheduler_file, map_location="cpu")
            compat.xla_model().send_cpu_data_to_device(optimizer_state, self.args.device)
            compat.xla_model().send_cpu_data_to_device(scheduler_state, self.args.device)
            self.optimizer.load_state_dict(optimizer_state)
            self.lr_scheduler.load_state_dict(scheduler_state)
            return

        if compat.is_sagemaker_mp_enabled():
            # The library splits the model in its first step; only then is there an optimizer to load into.
            self.model_wrapped.register_post_step_hook(_sagemaker_load_hook(checkpoint, optimizer_file))
        elif self.is_fsdp_enabled:
            from accelerate.utils import load_fsdp_optimizer

            load_fsdp_optimizer(
                self.accelerator.state.fsdp_plugin, self.accelerator, self.optimizer, self.model, checkpoint
            )
        elif self.fsdp:
            # Rank 0 reads the full state; scattering it is a collective call.
            full_state = load_tensors(optimizer_file) if self.args.process_index == 0 else None
            self.optimizer.load_state_dict(self.model.__class__.scatter_full_optim_state_dict(full_state, self.model))
        else:
            # One process: through the CPU, to spare the GPU. Several: straight onto each GPU, since the CPU's memory
            # would hold one copy a rank.
            map_location = self.args.device if self.args.world_size > 1 else "cpu"
            self.optimizer.load_state_dict(load_tensors(optimizer_file, map_location=map_location))

        with _scheduler_warnings():
            self.lr_scheduler.load_state_dict(load_tensors(scheduler_file))
        if self.do_grad_scaling and os.path.isfile(scaler_file):
            self.scaler.load_state_dict(load_tensors(scaler_file))

    # -- random states ---

    def _load_rng_state(self, checkpoint: str | None) -> None:
        """Set the random states of Python, numpy and torch back to where the checkpoint was written.

        The loop calls it once the batches before the checkpoint have been skipped, because skipping draws numbers.
        **Beware:** each rank reads a file of its own, and one that has none goes on with whatever random state it has;
        a line in the log says so. The TPU branch was never run on the hardware.

        Args:
            checkpoint: the folder, or None for a run that does not resume.

        Raises:
            pickle.UnpicklingError: if the file holds more than random states.

        Source: trainer.py 2240-2279
        """
        if checkpoint is None:
            return

        if self.args.world_size > 1:
            rank = self.args.process_index
            rng_file = os.path.join(checkpoint, f"rng_state_{rank}.pth")
            missing = f"No random state of process {rank} in {checkpoint}: was it written by a single process?"
        else:
            rng_file = os.path.join(checkpoint, "rng_state.pth")
            missing = f"No random state in {checkpoint}: was it written by several processes?"
        if not os.path.isfile(rng_file):
            logger.info(f"{missing} The run cannot be reproduced exactly.")
            return

        states = load_tensors(rng_file, also_allowed=NUMPY_STATE_TYPES)
        random.setstate(states["python"])
        np.random.set_state(states["numpy"])
        torch.random.set_rng_state(states["cpu"])
        if torch.cuda.is_available():
            if self.args.parallel_mode == ParallelMode.DISTRIBUTED:
                torch.cuda.random.set_rng_state_all(states["cuda"])
            else:
                try:
                    torch.cuda.random.set_rng_state(states["cuda"])
                except Exception as error:
                    # Whatever it is (no "cuda" in the file, another kind of device): the run can go on.
                    logger.info(
                        f"Could not set the random state of the GPU: {error}\n"
                        "The run will not be the one that it would have been without the interruption."
                    )
        if compat.is_torch_tpu_available():
            compat.xla_model().set_rng_state(states["xla"])


@contextmanager
def _scheduler_warnings() -> Iterator[None]:
    with warnings.catch_warnings(record=True) as caught_warnings:
        yield
    reissue_pt_warnings(caught_warnings)


def _has_any(folder: str, *names: str) -> bool:
    return any(os.path.isfile(os.path.join(folder, name)) for name in names)


def _warn_about_other_version(folder: str) -> None:
    """Warn if another version of transformers wrote the checkpoint's config.json."""
    config_file = os.path.join(folder, CONFIG_NAME)
    if not os.path.isfile(config_file):
        return
    saved_with = load_json(config_file).get("transformers_version")
    if saved_with is not None and saved_with != transformers.__version__:
        logger.warning(
            f"This checkpoint was written with transformers {saved_with}, and this is {transformers.__version__}: "
            "resuming across versions may fail or give other results."
        )


def _adapters_missing(folder: str) -> str:
    return (
        f"No adapter weights in {folder}: peft may not have saved them there. Save them from a callback of your own, "
        "on_save."
    )


def _sagemaker_load_hook(checkpoint: str, optimizer_file: str) -> Callable[[Any, Any], None]:
    """Make the hook that loads the optimizer after SageMaker's first step. Never run on the hardware."""
    smp = compat.sagemaker()
    is_new_format = os.path.isfile(os.path.join(checkpoint, "user_content.pt"))

    def load(_model: Any, optimizer: Any) -> None:
        if not is_new_format and compat.is_sagemaker_mp_post_1_10():
            optimizer.load_state_dict(smp.load(optimizer_file, partial=True, back_compat=True))
        else:
            optimizer.load_state_dict(smp.load(optimizer_file, partial=True))

    return load


# Read next: reporting.py
