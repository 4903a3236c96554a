"""A user's function as a value: its bytes, to travel; its identity, to be found again.

Functions of the user's own modules travel by value, with the modules that they call, so a
worker needs no copy of them.
"""

import inspect
import sys
import types
from collections.abc import Callable, Iterable
from contextlib import suppress
from functools import lru_cache
from io import BytesIO
from typing import Any

import cloudpickle

from millpond.errors import MillpondError
from millpond.plan.captured import Cached, captured, inside
from millpond.plan.function_identity import function_identity
from millpond.plan.nodes import PythonCall
from millpond.plan.users_modules import is_users


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
        if isinstance(item, Cached) and is_users(sys.modules.get(item.__module__)):
            return _cached_again, (item.__wrapped__, item.cache_parameters())
        return super().reducer_override(item)


def _cached_again(function: Callable[..., Any], parameters: dict[str, Any]) -> Callable[..., Any]:
    cached: Callable[..., Any] = lru_cache(**parameters)(function)
    return cached


def _find_modules(item: Any, found: dict[str, types.ModuleType], seen: set[int]) -> None:
    """The user's modules that an object needs where it is unpickled."""
    if id(item) in seen:
        return
    seen.add(id(item))
    for held in inside(item) or ():
        _find_modules(held, found, seen)
    if not isinstance(item, types.ModuleType | types.FunctionType | type):
        _find_modules(type(item), found, seen)
        return
    module = item if isinstance(item, types.ModuleType) else sys.modules.get(item.__module__)
    if module is None or not is_users(module):
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
