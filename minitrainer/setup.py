"""What stands before any training: the accelerator, the model, how it is sharded, precision, callbacks, ranks.

`Trainer.__init__` calls these in the order in which they stand here; `train` comes back for `call_model_init` and
`_move_model_to_device`.
"""

import warnings
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from packaging import version
from torch import nn
from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

from . import compat
from .attributes import Attributes
from .parts.choices import FSDPOption, ParallelMode, ShardedDDPOption
from .parts.inspection import number_of_arguments
from .parts.logs import get_logger

if TYPE_CHECKING:
    from .arguments import TrainingArguments

logger = get_logger(__name__)


class SetupMixin(Attributes):
    """Gets a Trainer ready.

    Requires: `args`, and `callback_handler` for the callback methods.
    You get: the accelerator, the model on its device, the choice of sharding and precision, and who is which rank.
    """

    # -- accelerator -----------------------------------------------------------------------------------

    def create_accelerator_and_postprocess(self):
        """Make the accelerator, and give its plugins what they need to know of the arguments.

        A search calls it again for every trial, because `gradient_accumulation_steps` is fixed in the accelerator.
        The DeepSpeed branch was never run on the hardware.

        Writes: accelerator, is_deepspeed_enabled, is_fsdp_enabled
        Source: trainer.py 3799-3830
        """
        self.accelerator = compat.build_accelerator(self.args)
        # Two ways lead here: our own arguments, and `accelerate launch`. The state knows of both.
        deepspeed_plugin = getattr(self.accelerator.state, "deepspeed_plugin", None)
        fsdp_plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        self.is_deepspeed_enabled, self.is_fsdp_enabled = deepspeed_plugin is not None, fsdp_plugin is not None

        if fsdp_plugin is not None:
            for option in ("limit_all_gathers", "use_orig_params"):
                setattr(fsdp_plugin, option, self.args.fsdp_config.get(option, getattr(fsdp_plugin, option)))
        if deepspeed_plugin is not None and getattr(self.args, "hf_deepspeed_config", None) is None:
            # `accelerate launch` brought a plain configuration; ours can fill its "auto" values from the arguments.
            config = compat.hf_trainer_deepspeed_config()(deepspeed_plugin.hf_ds_config.config)
            deepspeed_plugin.hf_ds_config, deepspeed_plugin.deepspeed_config = config, config.config
            config.trainer_config_process(self.args)

    # -- model -----------------------------------------------------------------------------------------

    def _take_model(self, model: Any, model_init: Callable[..., Any] | None) -> Any:
        """Settle on the model to begin with.

        Raises: RuntimeError without a model; ValueError for one that cannot be trained as it is.

        Writes: model_init
        Source: trainer.py 349-371
        """
        self.model_init = model_init
        if model is None:
            if model_init is None:
                raise RuntimeError("Trainer has nothing to train: pass a `model`, or a `model_init` that makes one")
            model = self.call_model_init()
        elif model_init is not None:
            warnings.warn(
                "Trainer was given both `model` and `model_init`: `train` will replace the first by what the second"
                " makes. Leave one of them out; upstream means to forbid both.",
                FutureWarning,
                stacklevel=3,
            )
        # Never true in 4.31.0: the keys are model types such as "bert", not class names. Kept as it is, so a model
        # without a head fails later, in `compute_loss`.
        if model.__class__.__name__ in MODEL_MAPPING_NAMES:
            raise ValueError(
                f"`model` is a {model.__class__.__name__}, which has no head: it takes no labels and has no loss. Load"
                " it with the AutoModelForXxx class of your task:"
                " https://huggingface.co/docs/transformers/model_doc/auto."
            )
        return model

    def call_model_init(self, trial=None):
        """Make a model with the user's `model_init`.

        Args:
            trial: the trial of a hyperparameter search, handed on if `model_init` takes an argument.

        Returns:
            The model.

        Raises:
            RuntimeError: if `model_init` takes more than one argument, or returns None.

        Source: trainer.py 1249-1261
        """
        argument_count = number_of_arguments(self.model_init)
        if argument_count > 1:
            raise RuntimeError("model_init should have 0 or 1 argument.")
        model = self.model_init(trial) if argument_count else self.model_init()
        if model is None:
            raise RuntimeError("model_init should not return None.")
        return model

    def _find_model_parallelism(self, model: Any) -> None:
        """Find out whether the model's layers already sit on several devices, and refuse quantized models.

        Writes: is_model_parallel
        Source: trainer.py 373-404
        """
        self.is_model_parallel = bool(getattr(model, "is_parallelizable", False) and model.model_parallel)
        if getattr(model, "hf_device_map", None) is not None:
            devices = {device for device in model.hf_device_map.values() if device not in ("cpu", "disk")}
            if not devices:
                raise IndexError(
                    "list index out of range: the device map of `model` (hf_device_map) names only cpu or disk; load"
                    " the model without `device_map` to train it on the CPU."
                )
            # One device only: parallel just if it is not the Trainer's own, so that nothing is moved there.
            self.is_model_parallel = len(devices) > 1 or self.args.device != torch.device(devices.pop())
            logger.info(
                "The model was loaded with a device map. If it spans several devices, or another one than the"
                " Trainer's, it is left where it is (`is_model_parallel`)."
            )
        if getattr(model, "is_quantized", False):
            if not getattr(model, "_is_quantized_training_enabled", False):
                raise ValueError(
                    "`model` was loaded in 8 bits by a bitsandbytes too old to train it: install `bitsandbytes>=0.37.0`"
                    " and load it again."
                )
            logger.info(
                "The model's own weights are 8-bit numbers, which nothing can train. Add modules that can be, such"
                " as the adapters of the `peft` library, and freeze the rest."
            )

    # -- sharding and precision --------------------------------------------------------------------------

    def _choose_sharding(self, args: "TrainingArguments") -> None:
        """Choose how fairscale or FSDP cut the model up. Never run on the hardware.

        Raises: ValueError for settings that exclude each other; ImportError without fairscale.

        Leaves out: the check for fairscale before 0.3; the import there fails first.
        Writes: sharded_ddp, fsdp, backward_prefetch, forward_prefetch, limit_all_gathers
        Source: trainer.py 406-470
        """
        self.sharded_ddp = self.fsdp = None
        if len(args.sharded_ddp) > 0:
            for other, is_on in (("deepspeed", self.is_deepspeed_enabled), ("fsdp", len(args.fsdp) > 0)):
                if is_on:
                    raise ValueError(f"--sharded_ddp and --{other} exclude each other: leave one of them out.")
            if args.parallel_mode != ParallelMode.DISTRIBUTED:
                raise ValueError("--sharded_ddp shards over processes: start several with `torchrun`.")
            if not compat.is_fairscale_available():
                raise ImportError("--sharded_ddp needs the package fairscale: `pip install fairscale`.")
            for option in (ShardedDDPOption.SIMPLE, ShardedDDPOption.ZERO_DP_2, ShardedDDPOption.ZERO_DP_3):
                if option in args.sharded_ddp:
                    self.sharded_ddp = option
                    break

        if len(args.fsdp) > 0:
            if self.is_deepspeed_enabled:
                raise ValueError("--fsdp and --deepspeed exclude each other: leave one of them out.")
            if not self.args.fsdp_config["xla"] and args.parallel_mode != ParallelMode.DISTRIBUTED:
                raise ValueError("--fsdp shards over processes: start several with `torchrun`.")
            if version.parse(version.parse(torch.__version__).base_version) < version.parse("1.12.0"):
                raise ValueError("--fsdp came with PyTorch 1.12.0, and this one is older")
            from torch.distributed.fsdp.fully_sharded_data_parallel import BackwardPrefetch, ShardingStrategy

            for strategy in (FSDPOption.FULL_SHARD, FSDPOption.SHARD_GRAD_OP, FSDPOption.NO_SHARD):
                if strategy in args.fsdp:
                    self.fsdp = getattr(ShardingStrategy, strategy.name)
                    break
            config = self.args.fsdp_config
            wants_post = "backward_post" in config.get("backward_prefetch", [])
            self.backward_prefetch = BackwardPrefetch.BACKWARD_POST if wants_post else BackwardPrefetch.BACKWARD_PRE
            # Upstream's key is misspelt: "forward_prefect". The rightly spelt one is without effect there and here.
            self.forward_prefetch = bool(config.get("forward_prefect", False))
            self.limit_all_gathers = bool(config.get("limit_all_gathers", False))

    def _choose_precision(self, args: "TrainingArguments") -> None:
        """Choose who computes in half precision.

        Ordinarily accelerate does, by `ACCELERATE_MIXED_PRECISION`, and all four switches here stay off. They are for
        fairscale, apex and SageMaker, none of which was ever run on the hardware.

        Raises: ValueError or ImportError for a combination that cannot work.

        Leaves out: scalers for FSDP and XLA (634-645). Only fairscale's can be reached in 4.31.0.
        Writes: use_apex, use_cuda_amp, use_cpu_amp, do_grad_scaling, amp_dtype, scaler, args.fp16,
            args.half_precision_backend
        Source: trainer.py 582-667
        """
        self.use_apex = self.use_cuda_amp = self.use_cpu_amp = self.do_grad_scaling = False

        # -- SageMaker -------------------------------------------------------------------------------
        if compat.is_sagemaker_mp_enabled():
            if args.bf16:
                raise ValueError(
                    "SageMaker's model parallelism computes in FP16, not in BF16: replace `bf16` by `fp16`."
                )
            config = compat.sagemaker().state.cfg
            if not compat.is_sagemaker_mp_post_1_10():
                if hasattr(config, "fp16"):
                    logger.warning(
                        f"SM_HP_MP_PARAMETERS asks for fp16={config.fp16}, which SageMaker's model parallelism knows"
                        " only from 1.10 on: no effect."
                    )
            elif args.fp16 != config.fp16:
                logger.warning(
                    f"SM_HP_MP_PARAMETERS asks for fp16={config.fp16}, the arguments for fp16={args.fp16}: the first"
                    " counts."
                )
                args.fp16 = config.fp16

        # -- fairscale and apex ------------------------------------------------------------------------
        wants_half = args.fp16 or args.bf16
        if wants_half and self.sharded_ddp is not None:
            if args.half_precision_backend == "auto":
                is_cpu = args.device == torch.device("cpu")
                if is_cpu and args.fp16:
                    raise ValueError("`fp16` needs a GPU, and this run is on the cpu")
                args.half_precision_backend = "cpu_amp" if is_cpu else "cuda_amp"
            logger.info(f"Using {args.half_precision_backend} half precision backend")
        if wants_half and not (self.is_deepspeed_enabled or compat.is_sagemaker_mp_enabled()):
            if self.sharded_ddp is not None:
                if args.half_precision_backend == "cuda_amp":
                    self.use_cuda_amp = True
                    self.amp_dtype = torch.float16 if args.fp16 else torch.bfloat16
                    self.do_grad_scaling = self.amp_dtype == torch.float16  # bfloat16 has the range of float32
                    if self.do_grad_scaling:
                        from fairscale.optim.grad_scaler import ShardedGradScaler

                        self.scaler = ShardedGradScaler()
                elif args.half_precision_backend == "cpu_amp":
                    self.use_cpu_amp, self.amp_dtype = True, torch.bfloat16
            elif args.half_precision_backend == "apex":
                if not compat.is_apex_available():
                    raise ImportError(
                        "half_precision_backend='apex', but apex is missing; how to install it says"
                        " https://www.github.com/nvidia/apex."
                    )
                self.use_apex = True
        clips = args.max_grad_norm is not None and args.max_grad_norm > 0
        if compat.is_sagemaker_mp_enabled() and self.use_cuda_amp and clips:
            raise ValueError(
                "SageMaker's model parallelism cannot clip gradients in mixed precision: set max_grad_norm to 0 among"
                " the hyperparameters."
            )

    def _place_model(self, args: "TrainingArguments", model: nn.Module) -> None:
        """Move the model to its device now, unless something later places it.

        Later means: sharding and model parallelism place it in parts, DeepSpeed by itself, and an evaluation in half
        precision casts it first.

        Writes: place_model_on_device, args._n_gpu
        Source: trainer.py 472-503
        """
        is_half_evaluation = (args.fp16_full_eval or args.bf16_full_eval) and not args.do_train
        is_sharded = (
            self.sharded_ddp in (ShardedDDPOption.ZERO_DP_2, ShardedDDPOption.ZERO_DP_3) or self.fsdp is not None
        )
        self.place_model_on_device = args.place_model_on_device and not (
            self.is_model_parallel
            or self.is_deepspeed_enabled
            or is_half_evaluation
            or is_sharded
            or self.is_fsdp_enabled
        )
        if self.place_model_on_device and not getattr(model, "is_quantized", False):  # a quantized one cannot move
            self._move_model_to_device(model, args.device)
        if self.is_model_parallel:
            self.args._n_gpu = 1  # else the model would be copied to every device by DataParallel

    def _move_model_to_device(self, model, device):
        """Move the model's tensors, in place. On XLA, tie again the weights that moving has untied.

        Source: trainer.py 740-744
        """
        model = model.to(device)
        if self.args.parallel_mode == ParallelMode.TPU and hasattr(model, "tie_weights"):
            model.tie_weights()

    # -- callbacks -----------------------------------------------------------------------------------------

    def add_callback(self, callback):
        """Add a callback after those that are there.

        Args:
            callback: a `TrainerCallback` object, or a class of which one is made.

        Source: trainer.py 702-711
        """
        self.callback_handler.add_callback(callback)

    def pop_callback(self, callback):
        """Remove a callback and hand it back.

        Args:
            callback: the object itself, or a class: then the first object of that class.

        Returns:
            The callback, or None if it was not there.

        Source: trainer.py 713-727
        """
        return self.callback_handler.pop_callback(callback)

    def remove_callback(self, callback):
        """Remove a callback: the object itself, or the first one of a class.

        Args:
            callback: a `TrainerCallback` object or class.

        Raises:
            ValueError: if no such object is there. For a class that is not there, nothing happens.

        Source: trainer.py 729-738
        """
        self.callback_handler.remove_callback(callback)

    # -- ranks ---------------------------------------------------------------------------------------------

    def is_local_process_zero(self) -> bool:
        """Say whether this is the first process on this machine: the one that shows progress.

        Source: trainer.py 2701-2706
        """
        return self.args.local_process_index == 0

    def is_world_process_zero(self) -> bool:
        """Say whether this is the first process of all: the one that writes files and reports.

        Source: trainer.py 2708-2718
        """
        if compat.is_sagemaker_mp_enabled():
            return compat.sagemaker().rank() == 0  # `process_index` counts groups of model parts there
        return self.args.process_index == 0


# Read next: data.py
