"""Where a scenario's texts come from: the package, two files of the user's, or the hub."""

from __future__ import annotations

import tempfile
from itertools import islice
from pathlib import Path

import datasets

from ..errors import UsageError
from . import DATA_FOLDER
from .hub import hub_has


def shipped_texts(name: str) -> datasets.DatasetDict:
    """The data set `name` that comes with the package, with its splits `train` and `validation`."""
    files = {split: next((DATA_FOLDER / name).glob(f"{split}.*")) for split in ("train", "validation")}
    return texts_from_files(files["train"], files["validation"])


def texts_from_files(
    train_file: str | Path | None, validation_file: str | Path | None, columns: tuple[str, ...] = ()
) -> datasets.DatasetDict:
    """Read two files of one kind: `.csv` with a header line, or `.json` with one object a line.

    The rows stay in memory. What `datasets` writes while it reads goes into a temporary folder, not into the user's
    cache.

    Args:
        train_file: What to learn from.
        validation_file: What to be tested on.
        columns: The columns of text that both must have.

    Raises:
        UsageError: A file is not named, missing, of another kind, unreadable, or without these columns.
    """
    if train_file is None or validation_file is None:
        raise UsageError("--train_file and --validation_file go together: one to learn from, one to be tested on")
    files = {"train": str(train_file), "validation": str(validation_file)}
    for path in files.values():
        if not Path(path).is_file():
            raise UsageError(f"cannot read {path}: there is no such file")
    for path in files.values():
        if not _has_rows(path):
            raise UsageError(f"{path} has no rows")
    datasets.disable_progress_bars()  # For files as small as these a bar says nothing and takes lines.
    kinds = {Path(path).suffix for path in files.values()}
    if kinds not in ({".csv"}, {".json"}):
        raise UsageError(f"cannot read {' and '.join(files.values())}: both must be .csv, or both .json")
    with tempfile.TemporaryDirectory(prefix="minitrainer-") as folder:
        try:
            texts = datasets.load_dataset(
                kinds.pop().removeprefix("."), data_files=files, cache_dir=folder, keep_in_memory=True
            )
        except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
            reason = str(error.__cause__ or error).strip().splitlines()[0]
            raise UsageError(f"cannot read {' and '.join(files.values())}: {reason}") from error
    for split, path in files.items():
        for column in columns:
            if column not in texts[split].column_names:
                raise UsageError(f"{path} has no column {column!r}; it needs {', '.join(columns)}")
            if not all(isinstance(text, str) for text in texts[split][column]):
                raise UsageError(f"{path} has rows without text in the column {column!r}")
    return texts


def _has_rows(path: str) -> bool:
    """Whether a line that says something follows the header; a file of JSON lines has no header."""
    with open(path, "rb") as lines:
        filled = sum(1 for _ in islice((line for line in lines if line.strip()), 2))
    return filled >= (2 if path.endswith(".csv") else 1)


def texts_from_hub(path: str, name: str, instead: str) -> datasets.DatasetDict:
    """Load the data set `path`, configuration `name`, through the ordinary `load_dataset`.

    Args:
        path: The data set's name on the hub.
        name: Which of its configurations.
        instead: What the user can do without a network; ends the error's line.

    Raises:
        UsageError: Neither a network nor the cache has it.
    """
    cached = Path(datasets.config.HF_DATASETS_CACHE) / path.replace("/", "___") / name
    if not hub_has("dataset", path) and not cached.is_dir():
        raise UsageError(f"cannot load the data set {path} ({name}): no network, and the cache has no copy; {instead}")
    try:
        return datasets.load_dataset(path, name)
    except (datasets.exceptions.DatasetsError, OSError, ValueError) as error:
        raise UsageError(f"cannot load the data set {path} ({name}): {str(error).splitlines()[0]}") from error


# Read next: models.py, the model that reads them.
