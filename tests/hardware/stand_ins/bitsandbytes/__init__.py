"""Stands in for bitsandbytes: its optimizers keep 32 bits."""

from . import optim  # noqa: F401
