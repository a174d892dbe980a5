"""The classes that the Trainer asks for, with their options noted."""

import torch
from calls import note


class AdamW(torch.optim.AdamW):
    """AdamW with bitsandbytes' options."""

    def __init__(self, params, is_paged=False, optim_bits=32, **options):
        note("bnb.AdamW", is_paged=is_paged, optim_bits=optim_bits, options=sorted(options.items()))
        super().__init__(params, **options)


class Lion(torch.optim.SGD):
    """Anything that steps will do: what counts is the options."""

    def __init__(self, params, betas=(0.9, 0.99), is_paged=False, optim_bits=32, **options):
        note("bnb.Lion", betas=betas, is_paged=is_paged, optim_bits=optim_bits, options=sorted(options.items()))
        super().__init__(params, **options)
