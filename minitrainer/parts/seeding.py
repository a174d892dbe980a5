"""One seed for every random generator that a run may draw from."""

import os
import random

import numpy as np
import torch

from ..compat import is_tf_available

# CUDA reads both only when a handle is created, so they work if set before the first kernel that needs them.
_DETERMINISTIC_CUDA = {"CUDA_LAUNCH_BLOCKING": "1", "CUBLAS_WORKSPACE_CONFIG": ":16:8"}


def set_seed(seed: int) -> None:
    """Seed the generators of Python, numpy, torch (CPU and every GPU) and, if it is installed, TensorFlow.

    The same seed gives the same numbers only on the same library versions and device kinds.

    Args:
        seed: any integer that numpy accepts, 0 to 2**32 - 1.

    Source: trainer_utils.py 84-98.
    """
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)  # remembered until CUDA starts, and without a GPU it does nothing
    if is_tf_available():
        import tensorflow

        tensorflow.random.set_seed(seed)


def enable_full_determinism(seed: int, warn_only: bool = False) -> None:
    """Seed everything, then forbid the algorithms whose result depends on timing. Slower; meant for debugging.

    Args:
        seed: as in `set_seed`.
        warn_only: warn instead of raising where torch has no deterministic version of an operation.

    Raises:
        RuntimeError: later, from torch, at the first operation that has no deterministic version.

    Source: trainer_utils.py 59-81.
    """
    set_seed(seed)
    os.environ.update(_DETERMINISTIC_CUDA)
    torch.use_deterministic_algorithms(True, warn_only=warn_only)
    torch.backends.cudnn.benchmark = False  # its timing decides which kernel wins
    torch.backends.cudnn.deterministic = True
    if is_tf_available():
        import tensorflow

        tensorflow.config.experimental.enable_op_determinism()


def seed_worker(_: int) -> None:
    """Seed Python and numpy inside one dataloader worker; torch has seeded itself there already.

    Args:
        _: the worker's number. Not needed: `torch.initial_seed()` differs by worker and by epoch.

    Source: trainer_utils.py 51-56.
    """
    set_seed(torch.initial_seed() % 2**32)  # numpy takes 32 bits, torch's seed has 64


# Read next: samplers.py
