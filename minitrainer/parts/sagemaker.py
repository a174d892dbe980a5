"""Forward, backward and gathering where SageMaker spreads one model over several devices.

Never run on that platform here. The module imports `smdistributed`, which only exists there: import it behind
`is_sagemaker_mp_enabled()`.
"""

from typing import Any

import smdistributed.modelparallel.torch as smp
import torch

from .gathering import atleast_1d


@smp.step()
def smp_forward_backward(model: Any, inputs: dict[str, Any], gradient_accumulation_steps: int = 1) -> Any:
    """Run one micro-batch forward and backward; the platform cuts it into its own smaller ones.

    Source: trainer_pt_utils.py 1095-1101.
    """
    output = model(**inputs)
    loss = output["loss"] if isinstance(output, dict) else output[0]
    loss = loss / gradient_accumulation_steps
    model.backward(loss)
    return loss


@smp.step()
def smp_forward_only(model: Any, inputs: dict[str, Any]) -> Any:
    """Run one micro-batch forward.

    Source: trainer_pt_utils.py 1103-1105.
    """
    return model(**inputs)


def smp_gather(tensor: Any) -> Any:
    """Collect nested tensors from all data-parallel ranks, on the CPU.

    Raises:
        TypeError: for a leaf that is no tensor.

    Source: trainer_pt_utils.py 1107-1118.
    """
    if isinstance(tensor, torch.Tensor):
        from_each_rank = smp.allgather(tensor, smp.CommGroup.DP_GROUP)
        return torch.cat([atleast_1d(part).cpu() for part in from_each_rank], dim=0)
    if isinstance(tensor, dict):
        return type(tensor)({key: smp_gather(value) for key, value in tensor.items()})
    if isinstance(tensor, (list, tuple)):
        return type(tensor)(smp_gather(part) for part in tensor)
    raise TypeError(f"{type(tensor)} cannot be gathered: tensors can, and list/tuple/dicts of them.")


def smp_nested_concat(tensor: Any) -> Any:
    """Join what the platform's smaller micro-batches returned, on the CPU.

    Source: trainer_pt_utils.py 1120-1127.
    """
    if isinstance(tensor, dict):
        return type(tensor)({key: smp_nested_concat(value) for key, value in tensor.items()})
    if isinstance(tensor, (list, tuple)):
        return type(tensor)(smp_nested_concat(part) for part in tensor)
    # A leaf is the platform's StepOutput, one part a smaller micro-batch. Its class cannot be imported by name (the
    # decorator `smp.step` hides its module), so it is not checked for.
    return tensor.concat().detach().cpu()


# Read next: logs.py
