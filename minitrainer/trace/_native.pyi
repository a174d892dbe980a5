"""What _native.c offers: see pen.py and batches.py, where the same stands in Python, and probes.py."""

from collections.abc import Callable
from typing import Any

from minitrainer.trace.batches import Layout
from minitrainer.trace.pen import PythonPen

class Pen(PythonPen): ...

class IfChanged:
    def __init__(self, hook: Callable[[Any, str, Any], None]): ...

def identify(
    inputs: Any, layouts: dict[Any, Layout], label_name: str, tensor_class: type, digest_of: Callable[[Any, int], int]
) -> tuple[int | None, int | None, int, Any] | None: ...
