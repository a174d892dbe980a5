"""Stands in for Intel's extension: notes what it is asked to optimize and leaves it as it is."""

from calls import note


def optimize(model, dtype, level, inplace, optimizer=None, conv_bn_folding=None):
    note("ipex", dtype=dtype, level=level, inplace=inplace, training=model.training, folding=conv_bn_folding)
    return model if optimizer is None else (model, optimizer)
