"""What differs between versions of transformers, and what only special hardware has.

Everything else in the Trainer is written once. Here stand the names that moved or vanished between transformers
4.31.0 and today, and the questions "is this library here?" with the modules they guard. The Trainer asks through
this module (`compat.is_torch_tpu_available()`), so a test can put a stand-in for a machine that it does not have in
one place.

Nothing here decides how to train.
"""

import functools
import importlib
import importlib.metadata
import importlib.util
import inspect
import json
import math
import os
import warnings
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import transformers
from accelerate import Accelerator
from accelerate import __version__ as accelerate_version
from accelerate.state import PartialState
from accelerate.utils import GradientAccumulationPlugin
from packaging import version
from torch import nn
from transformers import optimization
from transformers.optimization import Adafactor
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from .parts.logs import get_logger
from .parts.reading import load_safetensors, load_tensors

__all__ = ["Adafactor", "AdamW"]  # the optimizers; the rest is used by its module name

transformers_version: str = transformers.__version__
logger = get_logger(__name__)


# -- accelerate --------------------------------------------------------------------------------------


def build_accelerator(args: Any) -> Accelerator:
    """Build the object that places models, optimizers and data loaders on this run's devices.

    Mixed precision does not pass through here: `TrainingArguments` puts it into the environment variable
    `ACCELERATE_MIXED_PRECISION`, and `Accelerator` reads it there, in every version.

    Args:
        args: the training arguments; `gradient_accumulation_steps` and `deepspeed_plugin` are used.

    Returns:
        An accelerator that synchronises gradients every `gradient_accumulation_steps` calls of `accumulate`.

    Source: trainer.py 3799-3808
    """
    plugin_arguments = {"num_steps": args.gradient_accumulation_steps}
    if not ACCELERATE_LEAVES_SYNC_TO_TRAINER:
        # The Trainer itself decides when a group ends. With True, accelerate would also end one at the last
        # micro-batch of every epoch.
        plugin_arguments["sync_with_dataloader"] = False
    return Accelerator(
        deepspeed_plugin=args.deepspeed_plugin,
        gradient_accumulation_plugin=GradientAccumulationPlugin(**plugin_arguments),
    )


# Up to 0.20.3, `accumulate` never marked the end of a group: the Trainer had to, before every step.
ACCELERATE_LEAVES_SYNC_TO_TRAINER = version.parse(accelerate_version) <= version.parse("0.20.3")


def start_distributed_state(cpu: bool = False, backend: str | None = None, **options: Any) -> PartialState:
    """Find out which rank this process is, start the process group where a launcher asks for one, choose the device.

    accelerate 0.21.0 trains on several CPU ranks whenever a launcher has started them and there is no GPU. Newer ones
    do so only if the CPU is asked for, and otherwise let every process silently train alone; so it is asked for here.
    And they insist on the backend even where there is one process only, or where the old one chose its own.

    Args:
        cpu: stay on the CPU.
        backend: who carries messages between GPU processes; CPU processes use MPI or else gloo.
        **options: what else `PartialState` takes, such as `timeout`.
    """
    if version.parse(accelerate_version) <= version.parse("0.21.0"):
        return PartialState(cpu=cpu, backend=backend, **options)
    has_accelerator = torch.cuda.is_available() or torch.backends.mps.is_available() or is_torch_tpu_available()
    rank_counts = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE", "WORLD_SIZE")
    rank_count = next((int(os.environ[name]) for name in rank_counts if name in os.environ), 1)
    cpu = cpu or (rank_count > 1 and not has_accelerator)
    was_launched_on_gpu = has_accelerator and not cpu and int(os.environ.get("LOCAL_RANK", -1)) != -1
    state = PartialState(cpu=cpu, backend=backend if was_launched_on_gpu else None, **options)
    if state.device.type == "cpu":
        state.device = torch.device("cpu")  # newer ones number it by rank, "cpu:1", as no tensor's device does
    return state


# -- optimizers and schedulers ------------------------------------------------------------------------


class _AdamW(torch.optim.Optimizer):
    """AdamW as `optim="adamw_hf"` means it: the weights decay after the step, with the rate of the step.

    transformers removed its class in 5.0; scripts and checkpoints that name it keep working through this one. Its
    arithmetic is that of 4.31.0, operation by operation, so that continuing such a checkpoint gives the same bits.

    It differs from `torch.optim.AdamW` in three ways: the decay comes last, `eps` is added before the bias
    correction, and the state counts its steps in a Python integer.
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        correct_bias: bool = True,
        no_deprecation_warning: bool = False,
    ) -> None:
        if not no_deprecation_warning:
            message = "transformers' own AdamW is deprecated: choose optim='adamw_torch', which is torch.optim.AdamW."
            warnings.warn(message, FutureWarning, stacklevel=2)
        if lr < 0.0:
            raise ValueError(f"learning rate: {lr}, but it cannot be below 0.0")
        for beta in betas:
            if not 0.0 <= beta < 1.0:
                raise ValueError(f"beta: {beta}, but it lies from 0.0 to below 1.0")
        if eps < 0.0:
            raise ValueError(f"epsilon: {eps}, but it cannot be below 0.0")
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "correct_bias": correct_bias}
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Update every parameter that has a gradient.

        Args:
            closure: computes the loss again; called once, before the update.

        Returns:
            What the closure returned, or None.

        Raises:
            RuntimeError: for a sparse gradient.
        """
        loss = None if closure is None else closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._step_one(parameter, group)
        return loss

    def _step_one(self, parameter: torch.Tensor, group: dict[str, Any]) -> None:
        gradient, state, (beta1, beta2) = parameter.grad, self.state[parameter], group["betas"]
        assert gradient is not None
        if gradient.is_sparse:
            raise RuntimeError("AdamW needs dense gradients; for sparse ones there is torch.optim.SparseAdam")
        if not state:
            state["step"] = 0
            state["exp_avg"] = torch.zeros_like(parameter)
            state["exp_avg_sq"] = torch.zeros_like(parameter)
        state["step"] += 1
        state["exp_avg"].mul_(beta1).add_(gradient, alpha=1.0 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(gradient, gradient, value=1.0 - beta2)
        step_size = group["lr"]
        if group["correct_bias"]:
            # This order of the three factors is what the bits depend on.
            step_size = step_size * math.sqrt(1.0 - beta2 ** state["step"]) / (1.0 - beta1 ** state["step"])
        root = state["exp_avg_sq"].sqrt().add_(group["eps"])
        parameter.addcdiv_(state["exp_avg"], root, value=-step_size)
        if group["weight_decay"] > 0.0:
            parameter.add_(parameter, alpha=-group["lr"] * group["weight_decay"])


# 4.31.0's own class where it exists: then a checkpoint's optimizer has the very type that upstream's would have.
AdamW: Any = getattr(optimization, "AdamW", _AdamW)


def get_scheduler(name: Any, optimizer: Any, num_warmup_steps: int, num_training_steps: int) -> Any:
    """Build the learning-rate scheduler called `name` from transformers.

    Newer versions know more names and take more arguments; what 4.31.0 knows they still build in the same way.

    Args:
        name: a `SchedulerType` or its word.
        optimizer: the optimizer whose rates the scheduler sets.
        num_warmup_steps: steps over which the rate rises from zero.
        num_training_steps: steps after which the rate has fallen to its end.

    Returns:
        The scheduler, freshly made: its first rate is already set in `optimizer`.

    Source: optimization.py 335-375
    """
    # The word, not our enum member: another class's enum does not find a member of ours by its hash.
    word = getattr(name, "value", name)
    return optimization.get_scheduler(
        word, optimizer, num_warmup_steps=num_warmup_steps, num_training_steps=num_training_steps
    )


# -- models -------------------------------------------------------------------------------------------


def unwrap_model(model: nn.Module) -> nn.Module:
    """Take off every wrapper (DataParallel, DistributedDataParallel, DeepSpeed …) that keeps its model in `.module`.

    Source: modeling_utils.py 3939-3950
    """
    while hasattr(model, "module"):
        model = model.module  # type: ignore[assignment]
    return model


def load_sharded_checkpoint(model: nn.Module, folder: str, strict: bool = True, prefer_safe: bool = True) -> Any:
    """Load weights that were saved in several files, one file at a time to spare memory.

    Unlike 4.31.0, only tensors are read from the files (`weights_only`): nothing in them is executed.

    Args:
        model: the model whose weights are replaced.
        folder: the folder with the index file and the shards that it names.
        strict: whether names that only one side has are an error.
        prefer_safe: whether to read safetensors where both kinds of file are there.

    Returns:
        A tuple with `missing_keys` and `unexpected_keys`.

    Raises:
        ValueError: if there is no index file.
        RuntimeError: if `strict` and the names differ.

    Source: modeling_utils.py 352-441
    """
    index_file, safe_index_file = Path(folder, WEIGHTS_INDEX_NAME), Path(folder, SAFE_WEIGHTS_INDEX_NAME)
    if not index_file.is_file() and not safe_index_file.is_file():
        names = f"{WEIGHTS_INDEX_NAME} nor {SAFE_WEIGHTS_INDEX_NAME}"
        raise ValueError(f"{folder} holds no index of shards: neither {names}.")
    is_safe = safe_index_file.is_file() and (prefer_safe or not index_file.is_file())
    weight_map = json.loads((safe_index_file if is_safe else index_file).read_text(encoding="utf-8"))["weight_map"]

    model_keys = model.state_dict().keys()
    missing_keys = [key for key in model_keys if key not in weight_map]
    unexpected_keys = [key for key in weight_map if key not in model_keys]
    if strict and (missing_keys or unexpected_keys):
        message = f"the shards do not have the state_dict of a {model.__class__.__name__}"
        for kind, keys in (("Missing", missing_keys), ("Unexpected", unexpected_keys)):
            if keys:
                message += f"\n{kind} key(s): " + ",".join(f'"{key}"' for key in keys) + "."
        raise RuntimeError(message)

    for shard_file in sorted(set(weight_map.values())):
        shard = Path(folder, shard_file)
        state_dict = load_safetensors(str(shard)) if is_safe else load_tensors(str(shard), map_location="cpu")
        model.load_state_dict(state_dict, strict=False)
        del state_dict  # before the next shard is read: only one of them is in memory
    return torch.nn.modules.module._IncompatibleKeys(missing_keys, unexpected_keys)


def peft_model_class() -> type | None:
    """Return peft's model class, or None where peft is not installed."""
    if not is_peft_available():
        return None
    from peft import PeftModel

    return PeftModel


# -- DeepSpeed ----------------------------------------------------------------------------------------
# Never run on the hardware: these hand over to transformers' own DeepSpeed functions, which moved between versions.


def _deepspeed_module() -> ModuleType:
    moved = importlib.util.find_spec("transformers.deepspeed") is None
    return importlib.import_module("transformers.integrations.deepspeed" if moved else "transformers.deepspeed")


def deepspeed_init(trainer: Any, num_training_steps: int, inference: bool = False) -> tuple[Any, Any]:
    """Fill the Trainer's values into the DeepSpeed configuration; return optimizer and scheduler, real or dummy."""
    return _deepspeed_module().deepspeed_init(trainer, num_training_steps=num_training_steps, inference=inference)


def deepspeed_load_checkpoint(engine: Any, checkpoint_path: str) -> None:
    """Load model, optimizer and scheduler into a DeepSpeed engine from the folder of a checkpoint."""
    _deepspeed_module().deepspeed_load_checkpoint(engine, checkpoint_path)


def is_deepspeed_zero3_enabled() -> bool:
    """Whether a live DeepSpeed configuration asks for ZeRO stage 3, where each rank holds a slice of every tensor."""
    return bool(_deepspeed_module().is_deepspeed_zero3_enabled())


def hf_trainer_deepspeed_config() -> Any:
    """Return the class that holds a DeepSpeed configuration with `auto` values to be filled from the arguments."""
    return _deepspeed_module().HfTrainerDeepSpeedConfig


# -- is it here? --------------------------------------------------------------------------------------


@functools.lru_cache
def _is_installed(module_name: str, needs_version: bool = False) -> bool:
    """Whether a module is there; with `needs_version`, as an installed package and not just a folder of its name."""
    if importlib.util.find_spec(module_name) is None:
        return False
    try:
        return not needs_version or bool(importlib.metadata.version(module_name))
    except importlib.metadata.PackageNotFoundError:
        return False


def is_apex_available() -> bool:
    """Whether NVIDIA's apex is installed."""
    return _is_installed("apex", needs_version=True)


def remakes_optimizer_over_shards(accelerator: Any) -> bool:
    """Whether this accelerate, once FSDP has cut the parameters up, makes the optimizer anew over the pieces.

    Later versions expect an optimizer that was made over the pieces; one made before would update parameters that the
    model no longer uses.
    """
    return hasattr(accelerator, "_prepare_fsdp")


def is_datasets_available() -> bool:
    """Whether the datasets library is installed."""
    return _is_installed("datasets", needs_version=True)


def is_fairscale_available() -> bool:
    """Whether fairscale is installed."""
    return _is_installed("fairscale")


def is_peft_available() -> bool:
    """Whether peft is installed."""
    return _is_installed("peft", needs_version=True)


def is_ipex_available() -> bool:
    """Whether Intel's extension is installed in the release that belongs to this torch."""
    if not _is_installed("intel_extension_for_pytorch", needs_version=True):
        return False
    release = ".".join(importlib.metadata.version("intel_extension_for_pytorch").split(".")[:2])
    if release == ".".join(torch.__version__.split(".")[:2]):
        return True
    logger.warning(
        f"intel_extension_for_pytorch {release} is left alone: it belongs to PyTorch {release}, and PyTorch"
        f" {torch.__version__} is installed."
    )
    return False


@functools.lru_cache
def is_torch_tpu_available(check_device: bool = True) -> bool:
    """Whether torch_xla is installed and, with `check_device`, whether it finds a device. Asked once a process."""
    if not _is_installed("torch_xla"):
        return False
    if check_device:
        try:
            xla_model().xla_device()
        except RuntimeError:
            return False
    return True


def is_torch_neuroncore_available() -> bool:
    """Whether AWS Neuron cores are driven through torch_xla."""
    return _is_installed("torch_neuronx") and is_torch_tpu_available()


def _sagemaker_flag(variable: str, flag: str) -> bool:
    # Absent almost everywhere: leave before any parsing, since this is asked for every micro-batch.
    text = os.environ.get(variable)
    if text is None:
        return False
    try:
        return bool(json.loads(text).get(flag, False))
    except json.JSONDecodeError:
        return False


def is_sagemaker_dp_enabled() -> bool:
    """Whether SageMaker's data parallelism runs this process."""
    in_use = _sagemaker_flag("SM_FRAMEWORK_PARAMS", "sagemaker_distributed_dataparallel_enabled")
    return in_use and _is_installed("smdistributed")


def is_sagemaker_mp_enabled() -> bool:
    """Whether SageMaker's model parallelism runs this process."""
    text = os.environ.get("SM_HP_MP_PARAMETERS")
    if text is None or not _sagemaker_flag("SM_FRAMEWORK_PARAMS", "sagemaker_mpi_enabled"):
        return False
    try:
        # `partitions` only has to be there; its value is the library's own business.
        return "partitions" in json.loads(text) and _is_installed("smdistributed")
    except json.JSONDecodeError:
        return False


def is_sagemaker_mp_post_1_10() -> bool:
    """Whether SageMaker's model parallelism is on, in version 1.10 or later (other checkpoints, its own fp16)."""
    if not is_sagemaker_mp_enabled():
        return False
    library = importlib.import_module("smdistributed.modelparallel")
    return version.parse(library.__version__) >= version.parse("1.10")


def xla_model() -> ModuleType:
    """Return `torch_xla.core.xla_model`, which upstream's code calls `xm`."""
    return importlib.import_module("torch_xla.core.xla_model")


def sagemaker() -> ModuleType:
    """Return SageMaker's model-parallel library, which upstream's code calls `smp`."""
    return importlib.import_module("smdistributed.modelparallel.torch")


# -- asked by parts and arguments -----------------------------------------------------------------------


def is_tf_available() -> bool:
    """Whether transformers sees a TensorFlow that it would use. Its version 5 dropped TensorFlow: then never."""
    return bool(getattr(transformers.utils, "is_tf_available", lambda: False)())


def is_safetensors_available() -> bool:
    """Whether safetensors is installed. Newer versions of transformers require it and stopped asking."""
    return _is_installed("safetensors")


def is_torch_bf16_cpu_available() -> bool:
    """Whether torch can run bfloat16 autocast on the CPU: since its 1.10."""
    return hasattr(torch.cpu, "amp") and hasattr(torch.cpu.amp, "autocast")


def is_optimum_neuron_available() -> bool:
    """Whether the library that trains on AWS Trainium is installed."""
    return _is_installed("optimum") and _is_installed("optimum.neuron")


def get_full_repo_name(model_id: str, organization: str | None = None, token: str | None = None) -> str:
    """Put an owner before the name of a Hub repository: the organization, or whom the token belongs to.

    Raises:
        OSError: without an organization, if the Hub does not know the token or cannot be reached.

    Source: utils/hub.py 731-736
    """
    if organization is None:
        import huggingface_hub

        organization = huggingface_hub.whoami(token)["name"]
    return f"{organization}/{model_id}"


# -- saved models, generation and the Hub ---------------------------------------------------------------


def save_pretrained(model: Any, folder: str, state_dict: dict[str, Any] | None, save_safetensors: bool) -> None:
    """Write a model with its configuration, the weights as safetensors or as `.bin`.

    From 5.0 on transformers writes safetensors only. There the `.bin` files are written here, with 4.31.0's names,
    shards of 10 GB at most and all tied weights, after `save_pretrained` has written everything but weights.

    Args:
        model: a `PreTrainedModel` or peft's model.
        folder: where to; created if needed.
        state_dict: the weights, where they had to be gathered; None means the model's own.
        save_safetensors: `model.safetensors` instead of `pytorch_model.bin`.

    Source: modeling_utils.py 1648-1862
    """
    stock_method = inspect.signature(transformers.PreTrainedModel.save_pretrained)
    can_choose = "safe_serialization" in stock_method.parameters
    if save_safetensors or can_choose or not isinstance(model, transformers.PreTrainedModel):
        model.save_pretrained(folder, state_dict=state_dict, safe_serialization=save_safetensors)
        return

    # Adapters keep their one format; of a whole model, an empty state dict saves everything but the weights.
    if getattr(model, "_hf_peft_config_loaded", False):
        model.save_pretrained(folder, state_dict=state_dict)
        return
    model.save_pretrained(folder, state_dict={})
    if state_dict is None:
        state_dict = unwrap_model(model).state_dict()
    for name in model._keys_to_ignore_on_save or []:
        state_dict.pop(name, None)

    from huggingface_hub import split_torch_state_dict_into_shards

    pattern = WEIGHTS_NAME.replace(".bin", "{suffix}.bin")
    split = split_torch_state_dict_into_shards(state_dict, filename_pattern=pattern, max_shard_size="10GB")
    for shard_file, names in split.filename_to_tensors.items():
        torch.save({name: state_dict[name] for name in names}, Path(folder, shard_file))
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        Path(folder, WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2, sort_keys=True) + "\n", "utf-8")


def generation_setting(model: Any, name: str) -> int:
    """Return `max_length` or `num_beams` of a model: from its config up to 4.x, from its generation config since."""
    for config in (model.config, model.generation_config):
        value = getattr(config, name, None)
        if value is not None:
            return value
    return {"max_length": 20, "num_beams": 1}[name]  # what the config said before it lost these fields


class CardView:
    """A Trainer as transformers' model card wants to see it: with *its* `ParallelMode`, not an equal one of ours.

    Everything else is the Trainer's own.
    """

    def __init__(self, trainer: Any) -> None:
        self._trainer = trainer
        self.args = _ArgumentsView(trainer.args)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)


class _ArgumentsView:
    def __init__(self, args: Any) -> None:
        from transformers import modelcard

        self._args = args
        self.parallel_mode = modelcard.ParallelMode(args.parallel_mode.value)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._args, name)


def hub_repository_class() -> Any:
    """Return `huggingface_hub.Repository`, the wrapper of git that 4.31.0's pushes are made with.

    Raises:
        ImportError: with huggingface_hub 1.0 and later, which dropped it.
    """
    import huggingface_hub

    repository_class = getattr(huggingface_hub, "Repository", None)
    if repository_class is None:
        raise ImportError(
            f"push_to_hub needs huggingface_hub.Repository, which huggingface_hub {huggingface_hub.__version__} does "
            "not have. Install `huggingface_hub<1.0` (with a transformers that goes with it), or leave push_to_hub "
            "unset and upload the output folder yourself: `hf upload REPO_ID OUTPUT_DIR`."
        )
    return repository_class


# Read next: loop.py
