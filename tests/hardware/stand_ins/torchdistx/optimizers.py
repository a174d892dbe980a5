"""Its one optimizer, with its options noted."""

import torch
from calls import note


class AnyPrecisionAdamW(torch.optim.AdamW):
    """AdamW in one precision only."""

    def __init__(
        self, params, use_kahan_summation, momentum_dtype, variance_dtype, compensation_buffer_dtype, **options
    ):
        dtypes = (momentum_dtype, variance_dtype, compensation_buffer_dtype)
        note("AnyPrecisionAdamW", kahan=use_kahan_summation, dtypes=dtypes)
        super().__init__(params, **options)
