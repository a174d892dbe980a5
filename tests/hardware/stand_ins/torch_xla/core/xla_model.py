"""The functions of `xm` that a Trainer with one device calls."""

import torch
from calls import note


def xla_device():
    return torch.device("cpu")


def xla_real_devices(devices):
    return ["CPU:0" for _ in devices]


def mark_step():
    note("xm.mark_step")


def rendezvous(tag):
    note("xm.rendezvous", tag=tag)


def xrt_world_size():
    return 1


def get_ordinal():
    return 0


def is_master_ordinal(local=True):
    return True


def master_print(*values):
    note("xm.master_print", values=values)


def save(content, path, **options):
    note("xm.save", file=path.rsplit("/", 1)[-1])
    torch.save(content, path)


def send_cpu_data_to_device(content, device):
    note("xm.send_cpu_data_to_device")


def get_rng_state():
    return 7


def set_rng_state(state):
    note("xm.set_rng_state", state=state)


def mesh_reduce(tag, data, reduce_function):
    note("xm.mesh_reduce", tag=tag)
    return reduce_function([data])
