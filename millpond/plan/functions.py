"""A user's function as a value: its bytes, to travel; its identity, to be found again.

Functions of the user's own modules travel by value, with the modules that they call, so a
worker needs no copy of them.
The identity covers byte code, constants, defaults, what it captures, and the user's
functions that it calls: an edited function is another function.
"""

import dis
import hashlib
import inspect
import sys
import sysconfig
import types
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import (
    cache,
    cached_property,
    lru_cache,
    partial,
    partialmethod,
    singledispatchmethod,
)
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any

import cloudpickle

from millpond.errors import MillpondError
from millpond.plan.nodes import PythonCall

_LOOKED_INTO = 1_000  # Items of a list that may be functions; a longer one is data.
_Cached = type(lru_cache(len))


class FunctionCannotTravel(MillpondError):
    """A function captured something that cannot be sent to a worker."""


def python_call(
    function: Callable[..., Any], kind: str, where: str, *, key: str | None = None, **rest: Any
) -> PythonCall:
    """`function` as it travels; `FunctionCannotTravel` names what holds it back."""
    if not callable(function):
        what = "SQL text or" if kind in ("row", "flat", "filter") else "no SQL but"
        raise FunctionCannotTravel(
            f"{where}: needs {what} a function, not {type(function).__name__}."
        )
    name = getattr(function, "__qualname__", type(function).__qualname__)
    if isinstance(function, type):
        _check_class(function, name, where)
    identity = f"key {key}" if key is not None else function_identity(function)
    return PythonCall(_pickled(function, where), kind, name, identity, **rest)


def _check_class(given: type, name: str, where: str) -> None:
    """A class is built without arguments, once per worker, and the object called."""
    if not any("__call__" in vars(each) for each in given.__mro__):
        raise FunctionCannotTravel(
            f"{where}: {name} is a class, which is built once per worker, and its objects cannot "
            f"be called. Give it a __call__ method, or pass a function, such as "
            f"`lambda rows: {name}(rows)`."
        )
    try:
        inspect.signature(given).bind()
    except ValueError:  # It does not say what it takes.
        return
    except TypeError as error:
        raise FunctionCannotTravel(
            f"{where}: {name} is a class, which is built once per worker without arguments, but it "
            f"takes some ({error}). Give them defaults, or pass a subclass that has them."
        ) from None


def _pickled(function: Callable[..., Any], where: str) -> bytes:
    called = dict[str, types.ModuleType]()
    _find_modules(function, called, set())
    own = getattr(function, "__module__", None)
    try:
        with suppress(Exception):
            return _by_value(function, called.values())
        # A module may hold what cannot travel, a lock or a connection: then those that are called
        # have to be found where tasks run.
        return _by_value(function, [m for name, m in called.items() if name == own])
    except Exception as error:  # Whatever the captured object's own pickling raises.
        raise FunctionCannotTravel(f"{where}: {_culprit(function)} ({error}).") from error


def _by_value(function: Callable[..., Any], modules: Iterable[types.ModuleType]) -> bytes:
    known = cloudpickle.list_registry_pickle_by_value()
    ours = [module for module in modules if module.__name__ not in known]
    for module in ours:
        cloudpickle.register_pickle_by_value(module)
    try:
        file = BytesIO()
        _Pickler(file).dump(function)
    finally:
        for module in ours:
            cloudpickle.unregister_pickle_by_value(module)
    return file.getvalue()


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Sends the user's cached functions by value, too; the cache is empty where they arrive."""

    def reducer_override(self, item: Any) -> Any:
        if isinstance(item, _Cached) and _is_users(sys.modules.get(item.__module__)):
            return _cached_again, (item.__wrapped__, item.cache_parameters())
        return super().reducer_override(item)


def _cached_again(function: Callable[..., Any], parameters: dict[str, Any]) -> Callable[..., Any]:
    cached: Callable[..., Any] = lru_cache(**parameters)(function)
    return cached


def _inside(item: Any) -> tuple[Any, ...] | None:
    """What a wrapper or a short list holds; None for anything else."""
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
        case _Cached():
            return item.__wrapped__, item.cache_parameters()
        case list() | tuple() if len(item) <= _LOOKED_INTO:
            return tuple(item)
        case dict() | types.MappingProxyType() if len(item) <= _LOOKED_INTO:
            return tuple(chain.from_iterable(item.items()))
    return None


def _find_modules(item: Any, found: dict[str, types.ModuleType], seen: set[int]) -> None:
    """The user's modules that an object needs where it is unpickled."""
    if id(item) in seen:
        return
    seen.add(id(item))
    for held in _inside(item) or ():
        _find_modules(held, found, seen)
    if not isinstance(item, types.ModuleType | types.FunctionType | type):
        _find_modules(type(item), found, seen)
        return
    module = item if isinstance(item, types.ModuleType) else sys.modules.get(item.__module__)
    if module is None or not _is_users(module):
        return
    if module.__name__ != "__main__":
        found[module.__name__] = module
    if isinstance(item, types.FunctionType):
        held = [value for _, value in captured(item)]
    else:
        held = [*getattr(item, "__bases__", ()), *vars(item).values()]
    for value in held:
        _find_modules(value, found, seen)


def _culprit(function: Callable[..., Any]) -> str:
    name = getattr(function, "__qualname__", repr(function))
    for what, item in captured(function):
        try:
            cloudpickle.dumps(item)
        except Exception:  # The same, of one object.
            return (
                f"{name} captures {what}, a {type(item).__name__}, which cannot be sent to a "
                "worker process. Make it inside the function, or in the __init__ of a class "
                "given to map_batches"
            )
    return f"{name} cannot be sent to a worker process"


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
    names = {i.argval for i in dis.get_instructions(code) if i.opname.startswith("LOAD_GLOBAL")}
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            names |= _global_names(const)
    return names


def function_identity(function: Callable[..., Any]) -> str:
    """A hash of what the function does, as far as it can be known from here."""
    hasher = hashlib.blake2b(digest_size=16)
    _feed(function, hasher.update, set())
    return hasher.hexdigest()


def _feed(item: Any, update: Callable[[bytes], None], seen: set[int]) -> None:
    if id(item) in seen:
        update(b"again")
        return
    if isinstance(item, types.FunctionType):
        seen.add(id(item))
        update(item.__qualname__.encode())
        if not _is_users(sys.modules.get(item.__module__)):
            update(_library_version(item.__module__))
            return
        _feed_code(item.__code__, update)
        for default in (item.__defaults__, item.__kwdefaults__):
            _feed(default, update, seen)
        attributes = (pair for pair in sorted(vars(item).items()) if not pair[0].startswith("_"))
        for name, held in chain(captured(item), attributes):
            update(name.encode())
            _feed(held, update, seen)
    elif isinstance(item, type):
        seen.add(id(item))
        update(item.__qualname__.encode())
        if _is_users(sys.modules.get(item.__module__)):
            for base in (type(item), *item.__bases__):
                _feed(base, update, seen)
            for name, held in sorted(vars(item).items()):
                if name not in ("__dict__", "__weakref__", "__module__", "__firstlineno__"):
                    update(name.encode())
                    _feed(held, update, seen)
        else:
            update(_library_version(item.__module__))
    elif isinstance(item, types.ModuleType):
        seen.add(id(item))
        if not _is_users(item):
            update(_library_version(item.__name__))
            return
        with suppress(OSError, TypeError):  # Which of its names are called is not known.
            update(Path(item.__file__ or "").read_bytes())
        for _, held in sorted(vars(item).items()):
            if isinstance(held, types.ModuleType) and _is_users(held):
                _feed(held, update, seen)
    elif _is_users_object(item):
        seen.add(id(item))
        _feed(type(item), update, seen)
        _feed_state(item, update, seen)
    elif (inside := _inside(item)) is not None:
        update(f"{type(item).__name__} {len(inside)}".encode())
        for held in inside:
            _feed(held, update, seen)
    else:
        _feed_value(item, update)


def _feed_state(item: Any, update: Callable[[bytes], None], seen: set[int]) -> None:
    """What an object of a user's class holds. Pickled whole, it would name its class, or, of a
    class of the script itself, differ from process to process.
    """
    try:
        state = item.__reduce_ex__(4)[1:3]
    except Exception:  # It may never travel; `python_call` says so.
        state = vars(item) if hasattr(item, "__dict__") else None
    _feed(state, update, seen)


def _feed_code(code: types.CodeType, update: Callable[[bytes], None]) -> None:
    update(code.co_code)
    update(repr((code.co_names, code.co_varnames, code.co_freevars)).encode())
    for const in code.co_consts:
        if isinstance(const, types.CodeType):
            _feed_code(const, update)
        else:
            update(
                repr(sorted(map(repr, const)) if isinstance(const, frozenset) else const).encode()
            )


def _feed_value(item: Any, update: Callable[[bytes], None]) -> None:
    if isinstance(item, set | frozenset):
        item = sorted(map(repr, item))  # A set has no order from run to run.
    try:
        update(cloudpickle.dumps(item))
    except Exception:  # It may never travel; `python_call` says so.
        update(type(item).__qualname__.encode())


def _is_users_object(item: Any) -> bool:
    module = type(item).__module__
    return module != "builtins" and _is_users(sys.modules.get(module))


def _is_users(module: types.ModuleType | None) -> bool:
    """Whether a module is the user's own: neither installed nor the standard library."""
    if module is None or module.__name__ == "__main__":
        return True
    path = getattr(module, "__file__", None)
    if path is None:
        return False
    return not any(path.startswith(folder + "/") for folder in _installed()) and (
        module.__name__.partition(".")[0] != "millpond"
    )


@cache
def _installed() -> frozenset[str]:
    names = ("stdlib", "platstdlib", "purelib", "platlib")
    return frozenset(sysconfig.get_path(name) for name in names)


def _library_version(module: str | None) -> bytes:
    top = sys.modules.get((module or "").partition(".")[0])
    return f"{module} {getattr(top, '__version__', '')}".encode()
