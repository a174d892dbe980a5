"""Optimizers that never wait for the device."""

import torch


class AdamW(torch.optim.AdamW):
    """AdamW under torch_xla's name."""
