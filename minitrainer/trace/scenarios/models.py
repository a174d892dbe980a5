"""Where a scenario's model and tokenizer come from: the package's small ones, or any of the user's or the hub's."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoTokenizer

from ..errors import UsageError
from . import DATA_FOLDER
from .hub import hub_has


def small_model(auto_class: Any, architecture: str, **config_changes: Any) -> tuple[Any, Any]:
    """Build the package's small model from its config, with weights drawn now, and load the tokenizer beside it.

    Set the seed before: the same seed gives the same weights.

    Args:
        auto_class: What the model is for, such as `AutoModelForSequenceClassification`.
        architecture: A folder beside the texts, `bert` or `bart`.
        config_changes: Fields of the config to change, such as `num_labels`.

    Returns:
        The tokenizer and the model.
    """
    config = AutoConfig.from_pretrained(DATA_FOLDER / architecture, **config_changes)
    return AutoTokenizer.from_pretrained(DATA_FOLDER / "tokenizer"), auto_class.from_config(config)


def pretrained_model(auto_class: Any, name: str, instead: str, **config_changes: Any) -> tuple[Any, Any]:
    """Load a pretrained tokenizer and model through the ordinary `from_pretrained`.

    Args:
        auto_class: What the model is for.
        name: A folder, or a name on the hub.
        instead: What the user can do without a network; ends the error's line.
        config_changes: Fields of the config to change.

    Returns:
        The tokenizer and the model.

    Raises:
        UsageError: Neither a folder, the cache nor the network has it.
    """
    only_local = Path(name).is_dir() or not hub_has("model", name)
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=only_local, **config_changes)
        tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=only_local)
        return tokenizer, auto_class.from_pretrained(name, config=config, local_files_only=only_local)
    except (OSError, ValueError, RuntimeError) as error:  # The last: weights that don't fit, such as another head.
        if Path(name).is_dir():
            raise UsageError(f"cannot load a model from the folder {name}: {str(error).splitlines()[0]}") from error
        if not only_local:
            raise UsageError(f"cannot load the model {name}: {str(error).splitlines()[0]}") from error
        raise UsageError(f"cannot load the model {name}: no network, and the cache has no copy; {instead}") from error


# Read next: run_summarization.py, a scenario with a model that writes.
