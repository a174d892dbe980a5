"""Names and order of checkpoint folders, `checkpoint-<step>` below the output folder; and their JSON files."""

import json
import os
import re
import warnings
from pathlib import Path
from typing import Any

# The files beside the weights. They are upstream's names, so either side can resume the other's checkpoints.
TRAINING_ARGS_NAME = "training_args.bin"
TRAINER_STATE_NAME = "trainer_state.json"
OPTIMIZER_NAME = "optimizer.pt"
SCHEDULER_NAME = "scheduler.pt"
SCALER_NAME = "scaler.pt"

PREFIX_CHECKPOINT_DIR = "checkpoint"
LEFT_AS_IT_IS = "The file is left as it is: resume from another checkpoint."
RNG_STATE_NAME = "rng_state.pth"  # of a run in one process; of several, each rank's has its number in the name
_RNG_STATE_FILE = re.compile(r"^rng_state(?:_(\d+))?\.pth$")
_CHECKPOINT_FOLDER = re.compile(rf"^{PREFIX_CHECKPOINT_DIR}-(\d+)$")


def get_last_checkpoint(folder: str) -> str | None:
    """Find the checkpoint with the highest step in one folder.

    The step decides, not the time of writing, and not the alphabet (`checkpoint-1000` is later than
    `checkpoint-500`). Files and folders of any other name are passed over.

    Args:
        folder: an output folder.

    Returns:
        The path of the newest checkpoint, or None if there is none.

    Raises:
        FileNotFoundError: if the folder does not exist.

    Source: trainer_utils.py 163-172.
    """
    last_path, last_step = None, -1
    for name in os.listdir(folder):
        match = _CHECKPOINT_FOLDER.match(name)
        path = os.path.join(folder, name)
        if match and int(match[1]) > last_step and Path(path).is_dir():
            last_path, last_step = path, int(match[1])
    return last_path


def rng_state_files(folder: str) -> dict[str, int]:
    """Find the files of random states in a checkpoint.

    Args:
        folder: a checkpoint, or a path that does not exist.

    Returns:
        Name to the least number of ranks that such a file speaks of: `rng_state_3.pth` means 4 or more.
    """
    matches = map(_RNG_STATE_FILE.match, os.listdir(folder) if os.path.isdir(folder) else ())
    return {match[0]: int(match[1] or 0) + 1 for match in matches if match}


def load_json(path: str) -> Any:
    """Read a JSON file.

    Args:
        path: the file.

    Raises:
        ValueError: if the file is damaged; of the kind that Python raises, with the file's name and the remedy.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except json.JSONDecodeError as error:
        message = f"{path} is damaged ({error.msg}). {LEFT_AS_IT_IS}"
        raise json.JSONDecodeError(message, error.doc, error.pos) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is damaged ({error}). {LEFT_AS_IT_IS}") from error


def reissue_pt_warnings(caught_warnings: list[warnings.WarningMessage]) -> None:
    """Show again the warnings that were caught while a scheduler was saved or loaded.

    **Beware:** a single caught warning is dropped, whatever it says; only two or more come through. Upstream wrote it
    so because torch 1.4 to 1.7 always gave one, telling users to save the optimizer too. No torch since gives it.

    Args:
        caught_warnings: what `warnings.catch_warnings(record=True)` collected.

    Source: trainer_pt_utils.py 227-232.
    Leaves out: the comparison with torch's old text, which torch no longer has.
    """
    if len(caught_warnings) < 2:
        return
    for caught in caught_warnings:
        warnings.warn(caught.message, caught.category, stacklevel=2)


# Read next: ../resuming.py
