"""Wrapping: what is put around the model so that several devices can work on it.

On one CPU or one GPU nothing is wrapped and `_wrap_model` returns the very model that it was given.
"""

import copy
import functools
import os
import time
from typing import Any

import torch
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn
from transformers import PreTrainedModel

from . import compat
from .attributes import Attributes
from .parts.choices import ParallelMode, ShardedDDPOption
from .parts.inspection import get_module_class_from_name
from .parts.logs import get_logger

logger = get_logger(__name__)


class WrappingMixin(Attributes):
    """Wraps the model.

    Requires: `args`, `model`, `model_wrapped`, `optimizer`, `accelerator`, and the choices of setup.py.
    You get: the model to call, for training or for evaluation.
    """

    def _wrap_model(self, model, training=True, dataloader=None):
        """Put around the model what the arguments ask for and accelerate does not do by itself.

        DistributedDataParallel is not put on here: only its options are left with accelerate, which puts it on. The
        branches for IPEX, SageMaker, apex, fairscale and XLA were never run on the hardware.

        Args:
            model: the model, perhaps wrapped before: then it is returned as it is.
            training: whether gradients will be wanted; an evaluation needs no more than DataParallel.
            dataloader: the evaluation's data, which compiling with `jit_mode_eval` takes one batch from.

        Returns:
            The wrapped model, or the same object.

        Writes: optimizer, jit_compilation_time, accelerator.ddp_handler
        Source: trainer.py 1329-1458
        """
        # -- whole-model optimizers --------------------------------------------------------------------
        if self.args.use_ipex:
            dtype = torch.bfloat16 if self.use_cpu_amp else torch.float32
            model = self.ipex_optimize_model(model, training, dtype=dtype)
        if compat.is_sagemaker_mp_enabled():
            library = compat.sagemaker()
            if isinstance(self.model_wrapped, library.model.DistributedModel):
                return self.model_wrapped
            return library.DistributedModel(model, backward_passes_per_step=self.args.gradient_accumulation_steps)
        if compat.unwrap_model(model) is not model:
            return model  # wrapped by an earlier call of `train`, `evaluate` or `predict`

        # -- one process, several devices ----------------------------------------------------------------
        if self.use_apex and training:
            from apex import amp

            model, self.optimizer = amp.initialize(model, self.optimizer, opt_level=self.args.fp16_opt_level)
        if self.args.n_gpu > 1 and not getattr(model, "is_loaded_in_8bit", False):
            model = nn.DataParallel(model)  # after apex: apex cannot see through it
        if self.args.jit_mode_eval:
            start_time = time.time()
            model = self.torch_jit_model_eval(model, dataloader, training)
            self.jit_compilation_time = round(time.time() - start_time, 4)  # seconds; taken off the evaluation's
        if not training:
            return model

        # -- several processes -------------------------------------------------------------------------
        if self.sharded_ddp is not None:
            return self._wrap_with_fairscale(model)
        if self.fsdp is not None and self.args.fsdp_config["xla"]:
            return self._wrap_with_xla_fsdp(model)
        if compat.is_sagemaker_dp_enabled():
            device_ids = [int(os.getenv("SMDATAPARALLEL_LOCAL_RANK"))]  # type: ignore[arg-type]
            return nn.parallel.DistributedDataParallel(model, device_ids=device_ids)
        if self.args.parallel_mode == ParallelMode.DISTRIBUTED and not compat.is_torch_neuroncore_available():
            finds_unused = self.args.ddp_find_unused_parameters
            if finds_unused is None:
                # Looking for unused parameters visits them twice under gradient checkpointing, which DDP refuses.
                finds_unused = not (isinstance(model, PreTrainedModel) and model.is_gradient_checkpointing)
            options: dict[str, Any] = {"find_unused_parameters": finds_unused}
            if self.args.ddp_bucket_cap_mb is not None:
                options["bucket_cap_mb"] = self.args.ddp_bucket_cap_mb
            if self.args.ddp_broadcast_buffers is not None:
                options["broadcast_buffers"] = self.args.ddp_broadcast_buffers
            self.accelerator.ddp_handler = DistributedDataParallelKwargs(**options)
        return model

    def ipex_optimize_model(self, model, training=False, dtype=torch.float32):
        """Let Intel's extension rewrite the model, and for training the optimizer. Never run on the hardware.

        Args:
            model: the model.
            training: whether gradients will be wanted.
            dtype: the precision to optimize for; `bf16_full_eval` overrides it outside of `train`.

        Returns:
            The rewritten model.

        Raises:
            ImportError: if the extension is missing or made for another torch.

        Writes: optimizer
        Source: trainer.py 1306-1327
        """
        if not compat.is_ipex_available():
            raise ImportError(
                "use_ipex needs the IPEX release that belongs to the installed PyTorch; see"
                " https://github.com/intel/intel-extension-for-pytorch."
            )
        import intel_extension_for_pytorch as ipex

        if training:
            if not model.training:
                model.train()
            model, self.optimizer = ipex.optimize(
                model, dtype=dtype, optimizer=self.optimizer, inplace=True, level="O1"
            )
            return model
        model.eval()
        if self.args.bf16_full_eval and not self.is_in_train:
            dtype = torch.bfloat16
        # Folding convolutions into batch norms needs symbolic tracing, which most of our models defeat.
        return ipex.optimize(model, dtype=dtype, level="O1", conv_bn_folding=False, inplace=not self.is_in_train)

    def torch_jit_model_eval(self, model, dataloader, training=False):
        """Compile the model with `torch.jit.trace` for an evaluation; keep the model if that fails.

        Args:
            model: the model.
            dataloader: where the one batch to trace with comes from.
            training: if True, nothing is done.

        Returns:
            The traced and frozen model, or the same one, after a warning, if tracing failed.

        Leaves out: tracing by position for torch before 2.0 (1287-1293).
        Writes: use_cpu_amp, use_cuda_amp
        Source: trainer.py 1263-1304
        """
        if training:
            return model
        if dataloader is None:
            logger.warning("jit_mode_eval has no data loader to take an example from: the model stays as it is.")
            return model
        example_batch = self._prepare_inputs(next(iter(dataloader)))
        try:
            traced: Any = copy.copy(model)
            traced.eval()
            # accelerate hides the model's own forward under this name while it casts inputs and outputs.
            own_forward = traced.__dict__.pop("_original_forward", None)
            if own_forward:
                traced.forward = own_forward
            with self.accelerator.autocast(cache_enabled=False), torch.no_grad():
                inputs = {key: example_batch[key] for key in example_batch}
                traced = torch.jit.trace(traced, example_kwarg_inputs=inputs, strict=False)
            traced = torch.jit.freeze(traced)
            with torch.no_grad():
                for _ in range(2):  # the first call profiles, the second compiles: neither belongs into the timing
                    traced(**example_batch)
            self.use_cpu_amp, self.use_cuda_amp = False, False
            return traced
        except (RuntimeError, TypeError, ValueError, NameError, IndexError) as error:
            logger.warning(f"jit_mode_eval could not trace the model, which stays as it is: {error}.")
            return model

    def _wrap_with_fairscale(self, model: nn.Module) -> nn.Module:
        """Shard gradients, and for the ZeRO modes parameters too, with fairscale. Never run on the hardware.

        The one place where `self.model` becomes a wrapped model.

        Writes: model
        Source: trainer.py 1363-1379
        """
        from fairscale.nn.data_parallel import FullyShardedDataParallel, ShardedDataParallel
        from fairscale.nn.wrap import auto_wrap

        if self.sharded_ddp == ShardedDDPOption.SIMPLE:
            return ShardedDataParallel(model, self.optimizer)
        if ShardedDDPOption.AUTO_WRAP in self.args.sharded_ddp:
            model = auto_wrap(model)
        self.model = FullyShardedDataParallel(
            model,
            mixed_precision=self.args.fp16 or self.args.bf16,
            reshard_after_forward=self.sharded_ddp == ShardedDDPOption.ZERO_DP_3,
            cpu_offload=ShardedDDPOption.OFFLOAD in self.args.sharded_ddp,
        ).to(self.args.device)
        return self.model

    def _wrap_with_xla_fsdp(self, model: nn.Module) -> nn.Module:
        """Shard the model with torch_xla's FSDP. Never run on the hardware.

        It also replaces `xm.optimizer_step`, for the whole process: the gradients of shards must not be reduced.

        Raises: ImportError without torch-xla 2.0; Exception for a layer class that the model does not have.

        Writes: model
        Source: trainer.py 1380-1432
        """
        try:
            from torch_xla.distributed.fsdp import XlaFullyShardedDataParallel as FSDP
            from torch_xla.distributed.fsdp import checkpoint_module
            from torch_xla.distributed.fsdp.wrap import size_based_auto_wrap_policy, transformer_auto_wrap_policy
        except ImportError:
            raise ImportError("FSDP on XLA came with torch-xla >= 2.0, which is not installed.") from None

        config, policy, wrapper = self.args.fsdp_config, None, None
        if config["fsdp_min_num_params"] > 0:
            policy = functools.partial(size_based_auto_wrap_policy, min_num_params=config["fsdp_min_num_params"])
        elif config.get("fsdp_transformer_layer_cls_to_wrap", None) is not None:
            layer_classes = set()
            for layer_name in config["fsdp_transformer_layer_cls_to_wrap"]:
                layer_class = get_module_class_from_name(model, layer_name)
                if layer_class is None:
                    raise Exception(
                        f"fsdp_transformer_layer_cls_to_wrap: the model has no layer of class {layer_name}."
                    )
                layer_classes.add(layer_class)
            policy = functools.partial(transformer_auto_wrap_policy, transformer_layer_cls=layer_classes)
        if config["xla_fsdp_grad_ckpt"]:

            def wrapper(module, *args, **kwargs):
                return FSDP(checkpoint_module(module), *args, **kwargs)

        self.model = FSDP(model, auto_wrap_policy=policy, auto_wrapper_callable=wrapper, **self.args.xla_fsdp_config)
        xla: Any = compat.xla_model()

        def step_without_reducing(optimizer, barrier=False, optimizer_args=None):
            loss = optimizer.step(**(optimizer_args or {}))
            if barrier:
                xla.mark_step()
            return loss

        xla.optimizer_step = step_without_reducing
        return self.model


# Read next: step.py
