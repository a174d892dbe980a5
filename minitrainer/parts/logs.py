"""Loggers that obey the verbosity of transformers.

The Trainer sets one verbosity for the whole run (`log_level`, `log_level_replica`), and it does so through
`transformers.utils.logging`, which governs the logger named `transformers` and everything below it. A logger named
after our own modules would ignore that setting, so ours hang below the same root.
"""

from typing import Any

from transformers.utils import logging as transformers_logging


def get_logger(module_name: str) -> Any:
    """Return the logger of one module, placed below transformers' root logger.

    Args:
        module_name: the module's `__name__`, for example `minitrainer.loop`.

    Returns:
        The logger `transformers.minitrainer.loop`; it inherits level and handlers from `transformers`. Typed loosely:
        newer versions return a subclass of `logging.Logger` with methods of its own.
    """
    return transformers_logging.get_logger(f"transformers.{module_name}")


# Read next: samplers.py
