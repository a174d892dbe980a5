"""Find a batch size that fits: halve it after each out-of-memory error and start over."""

import functools
from collections.abc import Callable
from typing import Any

from accelerate.utils import find_executable_batch_size as halve_until_it_fits


def find_executable_batch_size(
    function: Callable[..., Any] | None = None,
    starting_batch_size: int = 128,
    auto_find_batch_size: bool = False,
) -> Callable[..., Any]:
    """Give a function its `batch_size`; with `auto_find_batch_size`, call it again with half after a memory error.

    **Beware:** each retry runs the function from its beginning. accelerate passes the size as the first positional
    argument, the plain way passes it by keyword.

    Args:
        function: takes `batch_size` as its first parameter. Without it, a decorator is returned.
        starting_batch_size: the first size to try.
        auto_find_batch_size: whether to retry at all.

    Source: trainer_utils.py 629-657.
    """
    if function is None:
        options: dict[str, Any] = {"starting_batch_size": starting_batch_size}
        options["auto_find_batch_size"] = auto_find_batch_size
        return functools.partial(find_executable_batch_size, **options)
    if auto_find_batch_size:
        return halve_until_it_fits(function=function, starting_batch_size=starting_batch_size)
    return functools.partial(function, batch_size=starting_batch_size)


# Read next: processes.py
