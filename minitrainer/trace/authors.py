"""Who wrote: from the frame of an assignment to a name that means something to a reader.

The frame itself gives file and line. Walking outwards, the first frame that belongs to a callback, to the callback
handler or to the Trainer gives the author. Frames are recognised by the identity of their code, so no frame's
variables are ever looked at: that would copy all locals of the training loop and keep its tensors alive.

Cost: a site is resolved once. Afterwards it is found by `(id(code), last instruction)`; asking a frame for its line,
or hashing a code object (which hashes all its constants), would cost more than all the rest of the trace together.
"""

from __future__ import annotations

import dis
import os
import sys
from types import CodeType, FrameType, FunctionType
from typing import Any, NamedTuple

from minitrainer.trace.patching import SOURCE_NAME, innermost

CALLBACK, HANDLER, TRAINER = "callback", "handler", "trainer"


class Site(NamedTuple):
    """One place in the code that writes.

    Attributes:
        by: class and method of the author.
        file: file of the writing line, relative to its package or to the working folder.
        line: its number.
        role: CALLBACK, HANDLER or TRAINER; "" for an author that is none of them.
        via_attribute: whether the object was reached through an attribute `control` (as in `trainer.control.x = y`).
    """

    by: str
    file: str
    line: int
    role: str
    via_attribute: bool


class Authors:
    """Known code, and the sites found so far."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[CodeType, str, str, str]] = {}  # id -> code (kept alive), class, method, role
        self._sites: dict[tuple[int, int, str], tuple[CodeType, Site]] = {}

    def know(self, function: Any, cls: str, role: str) -> None:
        """Remember that `function` is a method of `cls`, which plays `role`."""
        function = innermost(function)
        if isinstance(function, FunctionType):
            code = function.__code__
            self._known.setdefault(id(code), (code, cls, function.__name__, role))

    def knows(self, frame: FrameType) -> bool:
        """Whether a frame runs known code itself (and is not a helper of it)."""
        return id(frame.f_code) in self._known

    def site(self, frame: FrameType, callback: str = "") -> Site:
        """Find who writes in `frame`. `callback` is the class of the callback that is running, if any."""
        key = (id(frame.f_code), frame.f_lasti, callback)
        found = self._sites.get(key)
        if found is not None and found[0] is frame.f_code:
            return found[1]
        site = self._resolve(frame, callback)
        if id(frame.f_code) in self._known:  # a helper's author is whoever called it this time
            self._sites[key] = (frame.f_code, site)
        return site

    def caller(self, frame: FrameType | None, role: str) -> str:
        """Name the innermost method of `role` around `frame`; "" where there is none."""
        while frame is not None:
            known = self._known.get(id(frame.f_code))
            if known is not None and known[3] == role:
                return f"{known[1]}.{known[2]}"
            frame = frame.f_back
        return ""

    def _resolve(self, frame: FrameType, callback: str) -> Site:
        writer = frame
        while writer.f_back is not None and writer.f_code.co_filename == "<string>":
            writer = writer.f_back  # the generated __init__ of a dataclass: the author is whoever calls it
        by, role = "", ""
        outer: FrameType | None = writer
        while outer is not None:
            known = self._known.get(id(outer.f_code))
            if known is not None:
                by, role = f"{known[1]}.{known[2]}", known[3]
                if role == CALLBACK and callback:
                    by = f"{callback}.{known[2]}"
                break
            outer = outer.f_back
        if not by:
            by = getattr(writer.f_code, "co_qualname", writer.f_code.co_name)
        via_attribute = role == CALLBACK and _stores_through_control(writer)
        return Site(by, relative_file(writer), writer.f_lineno, role, via_attribute)


def _stores_through_control(frame: FrameType) -> bool:
    """Whether the running instruction is `<something>.control.<name> = …`.

    The object of an attribute store is what the instruction before it loaded.
    """
    previous = None
    for instruction in dis.get_instructions(frame.f_code):
        if instruction.offset == frame.f_lasti:
            stores = instruction.opname == "STORE_ATTR"
            return stores and previous is not None and previous.opname == "LOAD_ATTR" and previous.argval == "control"
        if instruction.opname not in ("CACHE", "EXTENDED_ARG"):
            previous = instruction
    return False


def relative_file(frame: FrameType) -> str:
    """File of a frame, relative to the folder that holds its package, else to the working folder."""
    path = frame.f_code.co_filename
    package = str(frame.f_globals.get("__name__", "")).partition(".")[0]
    module: Any = sys.modules.get(package)
    package_file = getattr(module, "__file__", None)
    if package_file and package != "__main__" and os.path.basename(package_file).startswith("__init__."):
        root = os.path.dirname(os.path.dirname(package_file))
        if path.startswith(root + os.sep):
            return path[len(root) + 1 :].replace(os.sep, "/")
    return short_path(path)


def short_path(path: str) -> str:
    """A path relative to the working folder where it lies in it, else its last part."""
    here = os.getcwd()
    if path.startswith(here + os.sep):
        return path[len(here) + 1 :].replace(os.sep, "/")
    return os.path.basename(path) if os.path.isabs(path) else path.replace(os.sep, "/")


def is_wrapper(frame: FrameType) -> bool:
    """Whether a frame is one of the trace's own wrappers."""
    return frame.f_code.co_filename == SOURCE_NAME


# Read next: batches.py, which samples a micro-batch holds.
