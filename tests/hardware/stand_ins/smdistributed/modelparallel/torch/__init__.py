"""One rank that holds all parts."""

import functools
import types

import torch
from calls import note

state = types.SimpleNamespace(
    cfg=types.SimpleNamespace(fp16=False, prescaled_batch=False, shard_optimizer_state=False)
)
CommGroup = types.SimpleNamespace(DP_GROUP="dp")


def init():
    note("smp.init")


def _answer(name, value):
    def asked():
        return value

    asked.__name__ = name
    return asked


rank, local_rank, dp_rank, rdp_rank = (_answer(name, 0) for name in ("rank", "local_rank", "dp_rank", "rdp_rank"))
size, dp_size, rdp_size = (_answer(name, 1) for name in ("size", "dp_size", "rdp_size"))


def barrier():
    note("smp.barrier")


def allgather(tensor, group):
    note("smp.allgather", group=group)
    return [tensor]


def save(content, path, partial=True, v3=False):
    note("smp.save", partial=partial, v3=v3)
    torch.save(content, f"{path}_0")


def load(path, partial=True, **options):
    note("smp.load", partial=partial, options=options)
    return torch.load(f"{path}_0")


def resume_from_checkpoint(path, tag, partial, load_optimizer):
    note("smp.resume", tag=tag, partial=partial, load_optimizer=load_optimizer)


class StepOutput:
    """What a step gives back: one entry for each of the platform's micro-batches, here one."""

    def __init__(self, outputs):
        self.outputs = outputs

    def reduce_mean(self):
        return self.outputs[0]

    def concat(self):
        return self.outputs[0]


def step():
    def decorate(function):
        @functools.wraps(function)
        def run(*args, **kwargs):
            note("smp.step", function=function.__name__)
            result = function(*args, **kwargs)
            if isinstance(result, dict):
                return {key: StepOutput([value]) for key, value in result.items()}
            return StepOutput([result])

        return run

    return decorate


class DistributedModel(torch.nn.Module):
    """Wraps the model as the platform's class does; `backward` belongs to it there."""

    def __init__(self, model, backward_passes_per_step=1):
        note("smp.DistributedModel", passes=backward_passes_per_step)
        super().__init__()
        self.module = model
        self.hooks = []

    def forward(self, *args, **kwargs):
        return self.module(*args, **kwargs)

    def backward(self, loss):
        loss.backward()

    def load_state_dict(self, state_dict, strict=True):
        note("smp.load_state_dict", is_partial=state_dict.pop("_smp_is_partial"), strict=strict)
        return super().load_state_dict(state_dict, strict)

    def register_post_step_hook(self, hook):
        note("smp.post_step_hook")
        self.hooks.append(hook)


model = types.SimpleNamespace(DistributedModel=DistributedModel)


class DistributedOptimizer(torch.optim.Optimizer):
    """Hands everything on to the optimizer that it wraps."""

    def __init__(self, optimizer):
        note("smp.DistributedOptimizer", optimizer=type(optimizer).__name__)
        self.optimizer = optimizer

    def __getattr__(self, name):
        return getattr(self.__dict__["optimizer"], name)

    @property
    def param_groups(self):
        return self.optimizer.param_groups

    @property
    def state(self):
        return self.optimizer.state

    @property
    def defaults(self):
        return self.optimizer.defaults

    def step(self, closure=None):
        return self.optimizer.step(closure)

    def zero_grad(self, set_to_none=True):
        return self.optimizer.zero_grad(set_to_none)

    def state_dict(self):
        return self.optimizer.state_dict()

    def local_state_dict(self, gather_if_shard=False):
        note("smp.local_state_dict", gather_if_shard=gather_if_shard)
        return self.optimizer.state_dict()

    def load_state_dict(self, state_dict):
        self.optimizer.load_state_dict(state_dict)
