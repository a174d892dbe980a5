"""Drop, batch by batch, the columns that the model's `forward` does not take."""

import logging
from collections.abc import Callable
from typing import Any


class RemoveColumnsCollator:
    """A data collator around another: it first removes from each example the keys that nobody would read.

    Used for streams, where columns cannot be removed once and for all before training.

    Args:
        data_collator: gets the cleaned examples.
        signature_columns: the keys to keep.
        logger: says once what was ignored; silent without it.
        model_name: for that message; without it there is none.
        description: `training`, `evaluation` or `test`, for that message.

    Source: trainer_utils.py 668-704.
    """

    def __init__(
        self,
        data_collator: Callable[[list[Any]], Any],
        signature_columns: list[str],
        logger: logging.Logger | None = None,
        model_name: str | None = None,
        description: str | None = None,
    ):
        self.data_collator, self.signature_columns = data_collator, signature_columns
        self.logger, self.model_name, self.description = logger, model_name, description
        self.message_logged = False

    def __call__(self, features: list[Any]) -> Any:
        """Clean the examples and collate them. Examples that are not dicts pass through."""
        return self.data_collator([self._remove_columns(feature) for feature in features])

    def _remove_columns(self, feature: Any) -> Any:
        """Return one example without the keys that nobody would read."""
        if not isinstance(feature, dict):
            return feature
        if self.logger and self.model_name and not self.message_logged:
            self._log_ignored(", ".join(set(feature) - set(self.signature_columns)))
        return {key: value for key, value in feature.items() if key in self.signature_columns}

    def _log_ignored(self, ignored: str) -> None:
        """Say once which keys go, if any do."""
        if not ignored:
            return
        assert self.logger is not None
        self.logger.info(ignored_columns(ignored, str(self.model_name), self.description))
        self.message_logged = True


def ignored_columns(names: str, model_name: str, description: str | None) -> str:
    """What is logged about columns that the model does not take."""
    where = "" if description is None else f" of the {description} set"
    return f"Columns{where} left out, because `{model_name}.forward` has no argument of that name: {names}."


# Read next: label_smoothing.py
