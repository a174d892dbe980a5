"""The optimizer and the scheduler: which class, which parameters decay, and how the learning rate moves.

`create_optimizer_and_scheduler` is what `train` calls. Override `create_optimizer` or `create_scheduler` to bring your
own, or pass a pair as `optimizers`.
"""

import importlib
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import ALL_LAYERNORM_LAYERS

from . import compat
from .attributes import Attributes
from .parts.choices import OptimizerNames, ShardedDDPOption
from .parts.inspection import get_parameter_names
from .parts.logs import get_logger

logger = get_logger(__name__)

# Optimizers of bitsandbytes. All are made from two of its classes and the words in their own names.
_BITSANDBYTES_NAMES = (
    OptimizerNames.ADAMW_BNB,
    OptimizerNames.ADAMW_8BIT,
    OptimizerNames.LION,
    OptimizerNames.LION_8BIT,
    OptimizerNames.PAGED_ADAMW,
    OptimizerNames.PAGED_LION,
    OptimizerNames.PAGED_ADAMW_8BIT,
    OptimizerNames.PAGED_LION_8BIT,
)
_TRUE_WORDS, _FALSE_WORDS = ("y", "yes", "t", "true", "on", "1"), ("n", "no", "f", "false", "off", "0")


class OptimizerMixin(Attributes):
    """Makes the optimizer and the scheduler.

    Requires: `args`, `model`, `model_wrapped`, `sharded_ddp`, and `optimizer` and `lr_scheduler` as passed or None.
    You get: both.
    """

    def create_optimizer_and_scheduler(self, num_training_steps: int):
        """Make both, unless they are there already.

        Override to make the two together; to change only one, override `create_optimizer` or `create_scheduler`.

        Args:
            num_training_steps: updates of the whole run.

        Source: trainer.py 944-958
        """
        self.create_optimizer()
        optimizer = self.optimizer
        if compat.is_sagemaker_mp_post_1_10() and compat.sagemaker().state.cfg.fp16:
            optimizer = optimizer.optimizer  # the scheduler must reach the real one below SageMaker's
        self.create_scheduler(num_training_steps=num_training_steps, optimizer=optimizer)

    def create_optimizer(self):
        """Make the optimizer, with two groups of parameters: those whose weights decay, and those whose do not.

        **Beware:** an optimizer from an earlier `train` is kept, with its moments and its last learning rate. And a
        subclass's own `get_optimizer_cls_and_kwargs` is not consulted: the Trainer class's is.

        Biases and the parameters of layer norms do not decay. Parameters that need no gradient are in neither group.

        Returns:
            The optimizer, also in `self.optimizer`.

        Writes: optimizer
        Source: trainer.py 960-1014
        """
        model = self.model_wrapped if compat.is_sagemaker_mp_enabled() else self.model
        if self.optimizer is None:
            # -- groups ------------------------------------------------------------------------------
            decaying = {name for name in get_parameter_names(model, [*ALL_LAYERNORM_LAYERS]) if "bias" not in name}
            trained = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
            groups = [
                {"params": [p for name, p in trained if name in decaying], "weight_decay": self.args.weight_decay},
                {"params": [p for name, p in trained if name not in decaying], "weight_decay": 0.0},
            ]

            # -- optimizer ---------------------------------------------------------------------------
            from .trainer import Trainer

            optimizer_class, options = Trainer.get_optimizer_cls_and_kwargs(self.args)
            if self.sharded_ddp == ShardedDDPOption.SIMPLE:
                from fairscale.optim import OSS

                self.optimizer = OSS(params=groups, optim=optimizer_class, **options)
            else:
                self.optimizer = optimizer_class(groups, **options)
                if optimizer_class.__name__ == "Adam8bit":
                    _keep_embeddings_in_32_bits(model)
        if compat.is_sagemaker_mp_enabled():
            self.optimizer = compat.sagemaker().DistributedOptimizer(self.optimizer)
        return self.optimizer

    @staticmethod
    def get_optimizer_cls_and_kwargs(args) -> tuple[Any, Any]:
        """Translate `args.optim` into a class and its options.

        **Beware:** SGD and Adagrad get the learning rate only; the Adam settings, `adam_epsilon` too, are not theirs.

        Args:
            args: the training arguments.

        Returns:
            The optimizer's class and a dict of its options, without the parameters.

        Raises:
            ValueError: if the optimizer is unknown, or its library is not installed.

        Leaves out: a second branch for `adamw_bnb` (1103-1110) that the first one shadows.
        Source: trainer.py 1016-1137
        """
        extras = (
            dict(pair.split("=") for pair in args.optim_args.replace(" ", "").split(",")) if args.optim_args else {}
        )
        options: dict[str, Any] = {"lr": args.learning_rate}
        betas = {"betas": (args.adam_beta1, args.adam_beta2)}
        adam_options = {**betas, "eps": args.adam_epsilon}

        # -- from transformers and torch ---------------------------------------------------------------
        if args.optim == OptimizerNames.ADAFACTOR:
            return compat.Adafactor, {**options, "scale_parameter": False, "relative_step": False}
        if args.optim == OptimizerNames.ADAMW_HF:
            return compat.AdamW, {**options, **adam_options}
        if args.optim == OptimizerNames.ADAMW_TORCH:
            return torch.optim.AdamW, {**options, **adam_options}
        if args.optim == OptimizerNames.ADAMW_TORCH_FUSED:
            return torch.optim.AdamW, {**options, **adam_options, "fused": True}
        if args.optim == OptimizerNames.SGD:
            return torch.optim.SGD, options
        if args.optim == OptimizerNames.ADAGRAD:
            return torch.optim.Adagrad, options

        # -- from other libraries: never run on the hardware that most of them need -------------------------
        if args.optim == OptimizerNames.ADAMW_TORCH_XLA:
            missing = "--optim adamw_torch_xla needs `torch_xla`, whose syncfree AdamW cannot be imported."
            return _import_optimizer("torch_xla.amp.syncfree", "AdamW", missing), {**options, **adam_options}
        if args.optim == OptimizerNames.ADAMW_APEX_FUSED:
            missing = "--optim adamw_apex_fused needs the FusedAdam of `apex`, which is not installed."
            return _import_optimizer("apex.optimizers", "FusedAdam", missing), {**options, **adam_options}
        if args.optim in _BITSANDBYTES_NAMES:
            is_lion = "lion" in args.optim
            missing = f"--optim {args.optim.value} needs `bitsandbytes` (bnb): `pip install bitsandbytes`."
            optimizer_class = _import_optimizer("bitsandbytes.optim", "Lion" if is_lion else "AdamW", missing)
            # "adamw_bnb_8bit" and "…_8bit" mean 8 bits; "paged" states may move to the CPU's memory.
            storage = {"is_paged": "paged" in args.optim, "optim_bits": 8 if "8bit" in args.optim else 32}
            return optimizer_class, {**options, **(betas if is_lion else adam_options), **storage}
        if args.optim == OptimizerNames.ADAMW_ANYPRECISION:
            missing = "--optim adamw_anyprecision needs torchdistx: see https://github.com/pytorch/torchdistx"
            optimizer_class = _import_optimizer("torchdistx.optimizers", "AnyPrecisionAdamW", missing)
            return optimizer_class, {
                **options,
                **adam_options,
                "use_kahan_summation": _word_to_bool(extras.get("use_kahan_summation", "False")),
                "momentum_dtype": getattr(torch, extras.get("momentum_dtype", "float32")),
                "variance_dtype": getattr(torch, extras.get("variance_dtype", "float32")),
                "compensation_buffer_dtype": getattr(torch, extras.get("compensation_buffer_dtype", "bfloat16")),
            }
        raise ValueError(f"Trainer cannot instantiate unsupported optimizer: {args.optim}")

    def create_scheduler(self, num_training_steps: int, optimizer: torch.optim.Optimizer = None):  # type: ignore
        """Make the learning-rate scheduler, unless one was passed.

        It steps once for each update of the weights, not for each micro-batch.

        Args:
            num_training_steps: updates of the whole run.
            optimizer: whose rates it sets; `self.optimizer` by default.

        Returns:
            The scheduler, also in `self.lr_scheduler`.

        Writes: lr_scheduler, _created_lr_scheduler
        Source: trainer.py 1139-1155
        """
        if self.lr_scheduler is None:
            self.lr_scheduler = compat.get_scheduler(
                self.args.lr_scheduler_type,
                self.optimizer if optimizer is None else optimizer,
                num_warmup_steps=self.args.get_warmup_steps(num_training_steps),
                num_training_steps=num_training_steps,
            )
            self._created_lr_scheduler = True
        return self.lr_scheduler


def _import_optimizer(module_name: str, class_name: str, message_if_missing: str) -> Any:
    try:
        return getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise ValueError(message_if_missing) from error


def _word_to_bool(word: str) -> int:
    if word.lower() not in _TRUE_WORDS + _FALSE_WORDS:
        raise ValueError(f"invalid truth value {word.lower()!r}")
    return int(word.lower() in _TRUE_WORDS)


def _keep_embeddings_in_32_bits(model: nn.Module) -> None:
    """Tell bitsandbytes to keep its states for embeddings in 32 bits, where 8 are too few.

    In 4.31.0 no name of `optim` leads to the class `Adam8bit` any more, so only a changed
    `get_optimizer_cls_and_kwargs` gets here.

    Source: trainer.py 997-1009
    """
    import bitsandbytes

    manager = bitsandbytes.optim.GlobalOptimManager.get_instance()
    skipped = 0  # parameters, counted once where they are shared
    for module in model.modules():
        if isinstance(module, nn.Embedding):
            skipped += sum({p.data_ptr(): p.numel() for p in module.parameters()}.values())
            logger.info(f"skipped {module}: {skipped / 2**20}M params")
            manager.register_module_override(module, "weight", {"optim_bits": 32})
    logger.info(f"skipped: {skipped / 2**20}M params")


# Read next: wrapping.py
