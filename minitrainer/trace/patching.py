"""How an attribute is replaced so that nobody notices, and put back.

Only attributes of classes are replaced (and one of a module, see probes.py), never attributes of objects: whoever looks
at, copies or pickles a Trainer or a callback finds it as it was. Code that is not a Trainer's costs nothing at all.

A wrapper has the exact signature of what it wraps, compiled for it. That is faster than `*args, **kwargs` (no tuple, no
dict), and upstream looks at signatures of user code. All wrappers of an attachment share their globals: each runs once
in a step or so, and what it refers to has to come from memory unless another wrapper has just asked for it.
"""

from __future__ import annotations

import inspect
import linecache
import re
from collections.abc import Callable
from types import CodeType, FunctionType, TracebackType
from typing import Any

SOURCE_NAME = "<minitrainer.trace wrapper>"
"""File name of compiled wrappers, by which their frames are known in a traceback."""

_MISSING = object()


class Patches:
    """Replaced attributes, in order, with the way back."""

    def __init__(self) -> None:
        self._undo: list[tuple[Any, str, Any, Any]] = []

    def replace(self, owner: Any, name: str, new: Any) -> None:
        """Set `owner.name` to `new` and remember what was there (also that nothing was)."""
        self._undo.append((owner, name, vars(owner).get(name, _MISSING), new))
        setattr(owner, name, new)

    def undo(self) -> None:
        """Put everything back, the last one first.

        An attribute that somebody replaced again in the meantime is left to them: our wrapper inside theirs passes
        everything through once its recorder is closed.
        """
        while self._undo:
            owner, name, old, new = self._undo.pop()
            if vars(owner).get(name) is not new:
                continue
            if old is _MISSING:
                delattr(owner, name)
            else:
                setattr(owner, name, old)


def innermost(function: Any) -> Any:
    """Follow `__wrapped__` through our own wrappers only: the function that somebody else defined."""
    while isinstance(function, FunctionType) and function.__code__.co_filename == SOURCE_NAME:
        function = function.__wrapped__  # type: ignore[attr-defined]
    return function


_compiled: dict[tuple[str, ...], CodeType] = {}

NOT_GIVEN = type("NotGiven", (), {"__repr__": lambda self: "<not given>"})()
"""Default of a wrapper's parameter that the wrapped function does not have."""


class Own:
    """The names that one wrapper has to itself, in the globals that it shares with all others.

    Args:
        shared: those globals.
        names: what the wrapper's body refers to, by names that start with `_t_`, if no other wrapper does.
    """

    __slots__ = ("_names", "_suffix", "shared")

    def __init__(self, shared: dict[str, Any], **names: Any):
        self.shared = shared
        self._suffix = f"_{len(shared)}"
        self._names: set[str] = set()
        for name, value in names.items():
            self[name] = value

    def __setitem__(self, name: str, value: Any) -> None:
        self._names.add(name)
        self.shared[name + self._suffix] = value

    def spelled(self, body: str) -> str:
        """The body with these names as they stand among the globals."""
        return re.sub(r"\b_t_\w+", lambda name: name[0] + self._suffix if name[0] in self._names else name[0], body)


def shared_globals(**names: Any) -> dict[str, Any]:
    """Globals for many wrappers, with what they have in common."""
    return {"__builtins__": __builtins__, "_t_given": _given, "_t_not_given": NOT_GIVEN, **names}


_OTHER_KEYWORDS = """\
    if {others} or {last} is _t_not_given:
        return {unexpected}
"""


def wrapper_of(
    function: FunctionType,
    template: str,
    own: Own,
    argument: tuple[int, str] = (1, ""),
    keywords: tuple[str, ...] = (),
) -> FunctionType:
    """Compile a wrapper with the signature of `function`.

    Args:
        function: what is wrapped.
        template: body of the wrapper, one statement a line, indented by four. `{call}` becomes the call of the original
            with all its arguments, `{again}` the same call of the wrapper, `{self}` the expression of its first
            argument, `{argument}` that of `argument`, `{unexpected}` a call for a caller who may have passed other
            `keywords` than are expected.
        own: what only this body refers to. The original and, where there are `keywords`, a second wrapper join it.
        argument: position and name of the argument that the body looks at. Position 1 is the one after `self`.
        keywords: what callers are known to pass into the function's `**kwargs`, always together and in this order. The
            wrapper takes them as parameters and hands them on one by one: filling a dict, taking it apart and filling
            another would cost more than the rest of the wrapper. A caller with other keywords gets the dict. One with
            a part of them, the last included, is noticed in `{unexpected}` only: looking at each of them every time
            would cost as much as all rows of the call.
    """
    code = function.__code__
    parameters, arguments, first = _signature(code)
    wanted = _argument(code, *argument)
    own["_t_original"] = function
    call = f"_t_original({arguments})"
    calls = {"call": call, "unexpected": call, "again": f"_t_wrapper({arguments})"}
    own["_t_wrapper"] = None
    wrapper = _compile(function, parameters, template.format(self=first, argument=wanted, **calls), own)
    own["_t_wrapper"] = wrapper
    named = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
    keywords = tuple(name for name in keywords if name not in named)
    if not keywords or not code.co_flags & inspect.CO_VARKEYWORDS or code.co_flags & inspect.CO_VARARGS:
        return wrapper
    others = code.co_varnames[len(named)]
    spelled = ", ".join(f"{name}={name}" for name in keywords)
    arguments = arguments.removesuffix(f"**{others}")
    star = "" if code.co_kwonlyargcount else "*, "
    spelled_parameters = f"{parameters.removesuffix(f'**{others}')}{star}{', '.join(keywords)}, **{others}"
    calls = {
        "call": f"_t_original({arguments}{spelled})",
        "unexpected": f"_t_with_dict({arguments}**_t_given({spelled}), **{others})",
    }
    body = (_OTHER_KEYWORDS + template).format(others=others, last=keywords[-1], self=first, argument=wanted, **calls)
    own["_t_with_dict"] = wrapper
    quick = _compile(function, spelled_parameters, body, own)
    quick.__kwdefaults__ = {**(function.__kwdefaults__ or {}), **dict.fromkeys(keywords, NOT_GIVEN)}
    return quick


def _given(**keywords: Any) -> dict[str, Any]:
    """Those keywords that the caller has given."""
    return {name: value for name, value in keywords.items() if value is not NOT_GIVEN}


def _compile(function: FunctionType, parameters: str, body: str, own: Own) -> FunctionType:
    """A function that looks like `function`, with this body."""
    body = own.spelled(body)
    key = (parameters, body, function.__name__)
    code = _compiled.get(key)
    if code is None:
        module = compile(f"def wrapper({parameters}):\n{body}", SOURCE_NAME, "exec")
        code = next(constant for constant in module.co_consts if isinstance(constant, CodeType))
        _compiled[key] = code = code.replace(co_name=function.__name__)
    wrapper = FunctionType(code, own.shared, function.__name__)
    wrapper.__defaults__ = function.__defaults__
    wrapper.__kwdefaults__ = function.__kwdefaults__
    wrapper.__qualname__ = function.__qualname__
    wrapper.__module__ = function.__module__
    wrapper.__doc__ = function.__doc__
    wrapper.__dict__.update(function.__dict__)
    wrapper.__annotations__ = function.__annotations__
    wrapper.__wrapped__ = function  # type: ignore[attr-defined]
    return wrapper


def _signature(code: CodeType) -> tuple[str, str, str]:
    """Parameters and arguments of a code object, as text, and the expression of its first argument.

    Default values are not in the text. They come from `__defaults__`, which CPython looks at when it calls.
    """
    names = list(code.co_varnames)
    positional, keyword_only = code.co_argcount, code.co_kwonlyargcount
    parameters: list[str] = []
    arguments: list[str] = []
    for i, name in enumerate(names[:positional]):
        parameters.append(name)
        arguments.append(name)
        if code.co_posonlyargcount and i + 1 == code.co_posonlyargcount:
            parameters.append("/")
    next_name = positional + keyword_only
    variadic = ""
    if code.co_flags & inspect.CO_VARARGS:
        variadic = names[next_name]
        parameters.append(f"*{variadic}")
        arguments.append(f"*{variadic}")
        next_name += 1
    elif keyword_only:
        parameters.append("*")
    for name in names[positional : positional + keyword_only]:
        parameters.append(name)
        arguments.append(f"{name}={name}")
    if code.co_flags & inspect.CO_VARKEYWORDS:
        parameters.append(f"**{names[next_name]}")
        arguments.append(f"**{names[next_name]}")
    first = names[0] if positional else f"({variadic} or (None,))[0]" if variadic else "None"
    return ", ".join(parameters), ", ".join(arguments), first


def _argument(code: CodeType, position: int, name: str) -> str:
    """Expression of one argument inside a wrapper; "None" where this signature can't hold it."""
    names = code.co_varnames
    named = names[: code.co_argcount + code.co_kwonlyargcount]
    if name in named:
        return name
    if position < code.co_argcount:
        return names[position]
    expression = "None"
    next_name = len(named)
    if code.co_flags & inspect.CO_VARARGS:
        variadic, index = names[next_name], position - code.co_argcount
        expression = f"({variadic}[{index}] if len({variadic}) > {index} else None)"
        next_name += 1
    if code.co_flags & inspect.CO_VARKEYWORDS:
        expression = f"({names[next_name]}[{name!r}] if {name!r} in {names[next_name]} else {expression})"
    return expression


def unlink_wrappers(traceback: TracebackType | None) -> None:
    """Take the frames of our wrappers out of a traceback, so that it reads as it would without the trace.

    The first entry can't be taken out from inside (it is the one that is being raised through).
    """
    while traceback is not None:
        following = traceback.tb_next
        while following is not None and following.tb_frame.f_code.co_filename == SOURCE_NAME:
            following = following.tb_next
        if following is not traceback.tb_next:
            traceback.tb_next = following
        traceback = following


linecache.cache[SOURCE_NAME] = (1, None, ["the original is called here\n"], SOURCE_NAME)


def is_plain_function(value: Any) -> bool:
    """Whether a class attribute is a function whose call can be wrapped (no generator, no coroutine)."""
    return isinstance(value, FunctionType) and not value.__code__.co_flags & (
        inspect.CO_COROUTINE | inspect.CO_ASYNC_GENERATOR | inspect.CO_GENERATOR
    )


Hook = Callable[..., Any]

# Read next: authors.py, who wrote a flag.
