"""apex's fused optimizer, unfused."""

import torch


class FusedAdam(torch.optim.AdamW):
    """AdamW under apex's name."""
