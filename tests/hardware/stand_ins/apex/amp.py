"""Mixed precision that changes nothing but says that it was asked."""

import contextlib

from calls import note


def initialize(model, optimizer, opt_level="O1"):
    note("amp.initialize", model=type(model).__name__, optimizer=type(optimizer).__name__, opt_level=opt_level)
    return model, optimizer


@contextlib.contextmanager
def scale_loss(loss, optimizer):
    note("amp.scale_loss")
    yield loss * 1.0


def master_params(optimizer):
    note("amp.master_params")
    return [parameter for group in optimizer.param_groups for parameter in group["params"]]
