"""What a function holds besides its own code, and what wrappers and collections hold."""

import dis
import types
from collections import defaultdict, deque
from collections.abc import Callable, Iterator
from functools import cached_property, lru_cache, partial, partialmethod, singledispatchmethod
from itertools import chain
from typing import Any

_LOOKED_INTO = 1_000  # Items of a list that may be functions; a longer one is data.
Cached = type(lru_cache(len))


def captured(function: Callable[..., Any]) -> Iterator[tuple[str, Any]]:
    """What a function holds besides its code: (how to name it, the object)."""
    if not isinstance(function, types.FunctionType):
        yield from sorted(vars(function).items()) if hasattr(function, "__dict__") else ()
        return
    for cell, free in zip(function.__closure__ or (), function.__code__.co_freevars, strict=True):
        try:
            yield repr(free), cell.cell_contents
        except ValueError:
            continue  # A name that is not bound yet.
    for name in sorted(_global_names(function.__code__)):
        if name in function.__globals__:
            yield f"the global {name!r}", function.__globals__[name]


def _global_names(code: types.CodeType) -> set[str]:
    """The globals that code reads, and what a class in it reads while it is made."""
    names = set()
    for each in all_code(code):
        for step in dis.get_instructions(each):
            of_class = step.opname in ("LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")
            if step.opname == "LOAD_GLOBAL" or (of_class and not step.argval.startswith("__")):
                names.add(step.argval)
    return names


def all_code(code: types.CodeType) -> Iterator[types.CodeType]:
    """Code, and that of the functions and classes inside it."""
    yield code
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            yield from all_code(const)


def inside(item: Any) -> tuple[Any, ...] | None:
    """What a wrapper or a short collection holds; None for anything else."""
    match item:
        case types.MethodType():
            return item.__func__, item.__self__
        case staticmethod() | classmethod():
            return (item.__func__,)
        case property():
            return item.fget, item.fset, item.fdel
        case cached_property():
            return (item.func,)
        case partial() | partialmethod():
            return item.func, item.args, item.keywords
        case singledispatchmethod():
            return (item.dispatcher,)
        case Cached():
            return item.__wrapped__, item.cache_parameters()
        case types.SimpleNamespace():
            return (vars(item),)
        case list() | tuple() | deque() if len(item) <= _LOOKED_INTO:
            return tuple(item)
        case defaultdict() if len(item) <= _LOOKED_INTO:
            return item.default_factory, *chain.from_iterable(item.items())
        case dict() | types.MappingProxyType() if len(item) <= _LOOKED_INTO:
            return tuple(chain.from_iterable(item.items()))
    return None
