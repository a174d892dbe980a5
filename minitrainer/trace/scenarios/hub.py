"""One question, asked once, before anything is downloaded: does the hub answer?

The ordinary loaders retry for half a minute and then raise an error of thirty lines. A scenario asks first, gets its
answer in at most a few seconds, and can then say in one line what is missing.
"""

from __future__ import annotations

from huggingface_hub import HfApi
from huggingface_hub.utils import RepositoryNotFoundError

from ..errors import UsageError

SECONDS_TO_ANSWER = 8
"""How long a slow connection may take."""


def hub_has(kind: str, name: str) -> bool:
    """Whether the hub answers and has `name`; False means that it cannot be reached, so only a cached copy can help.

    Args:
        kind: `model` or `dataset`.
        name: A repository's name there.

    Raises:
        UsageError: The hub answers that there is no such repository.
    """
    try:
        if kind == "model":
            HfApi().model_info(name, timeout=SECONDS_TO_ANSWER)
        else:
            HfApi().dataset_info(name, timeout=SECONDS_TO_ANSWER)
    except RepositoryNotFoundError as error:
        raise UsageError(f"the hub has no {kind} {name!r}, or keeps it private") from error
    except Exception:
        # Which class "no network" is depends on the HTTP client of the installed version, of which there have been
        # three; and a hub that is up but failing helps the user no more than none.
        return False
    return True


# Read next: run_glue.py, which asks.
