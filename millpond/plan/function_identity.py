"""What a function does, as a hash: a rerun finds what the same function gave.

It covers byte code, constants, defaults, what the function captures, and the user's functions,
classes and modules that it calls: an edited function is another function. Comments and lines
do not count, but in a module that is looked up while the function runs: that counts by its
text, and so do those that it imports.
"""

import hashlib
import sys
import types
from collections.abc import Callable, Iterable, Iterator
from io import BytesIO
from itertools import chain
from typing import Any

import cloudpickle

from millpond.plan.captured import all_code, captured, inside
from millpond.plan.users_modules import imports, is_users, texts

_PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes, type(...)})
# Of a class: where it stands, and what is made anew for each.
_OF_NO_CLASS = ("__dict__", "__weakref__", "__module__", "__firstlineno__")
_Seen = dict[int, tuple[int, Any]]


def function_identity(function: Callable[..., Any]) -> str:
    """A hash of what the function does, as far as it can be known from here."""
    return _identity(function, {})


def _identity(item: Any, seen: _Seen) -> str:
    told = _Told(seen)
    told.feed(item)
    return told.digest()


class _Told:
    """A hash over objects. What may hold itself is told once, and then by its number.

    `seen` has these numbers by id, and keeps the objects alive: else another might get its id.
    """

    def __init__(self, seen: _Seen) -> None:
        self._hash = hashlib.blake2b(digest_size=16)
        self._seen = dict(seen)

    def digest(self) -> str:
        return self._hash.hexdigest()

    def feed(self, item: Any) -> None:
        if type(item) in _PLAIN:
            self._tell(repr(item))
            return
        if id(item) in self._seen:
            self._tell(f"again {self._seen[id(item)][0]}")
            return
        held = inside(item)
        # Equal constants of several functions may be one object in one process, two in another.
        if not isinstance(item, tuple | frozenset) and (held is not None or _is_told(item)):
            self._seen[id(item)] = len(self._seen), item
        if isinstance(item, types.FunctionType):
            self._function(item)
        elif isinstance(item, type):
            self._class(item)
        elif isinstance(item, types.ModuleType):
            self._module(item)
        elif isinstance(item, set | frozenset):  # It has no order from run to run.
            self._tell(f"set {sorted(self.inner(each) for each in item)}")
        elif _is_told(item):
            self._object(item)
        elif held is not None:
            self._tell(f"{type(item).__name__} {len(held)}")
            for each in held:
                self.feed(each)
        else:
            self._value(item)

    def inner(self, item: Any) -> str:
        """The identity of one of several, whatever comes before or after it."""
        return repr(item) if type(item) in _PLAIN else _identity(item, self._seen)

    def _tell(self, text: str) -> None:
        data = text.encode("utf-8", "surrogatepass")
        self._hash.update(b"%d:%b" % (len(data), data))

    def _function(self, function: types.FunctionType) -> None:
        self._tell(function.__qualname__)
        if not is_users(sys.modules.get(function.__module__)):
            self._tell(_library(function.__module__))
            return
        self._code(function.__code__)
        self.feed(function.__defaults__)
        self.feed(function.__kwdefaults__)
        words = set(chain.from_iterable(code.co_names for code in all_code(function.__code__)))
        attributes = (pair for pair in sorted(vars(function).items()) if pair[0][0] != "_")
        for name, held in chain(captured(function), attributes):
            self._tell(name)
            self.feed(held)
            self._named(held, words, set())
        package = function.__globals__.get("__package__") or ""
        self._modules(imports(function.__code__, package))

    def _code(self, code: types.CodeType) -> None:
        # What a `try` covers is told by its table alone.
        self._tell(f"{code.co_code!r} {code.co_exceptiontable!r}")
        self._tell(repr((code.co_names, code.co_varnames, code.co_freevars, code.co_flags)))
        self._tell(repr((code.co_argcount, code.co_kwonlyargcount)))
        in_class = "__firstlineno__" in code.co_names  # From 3.13 on; one that moved is the same.
        for const in code.co_consts:
            if in_class and type(const) is int and const == code.co_firstlineno:
                continue
            if isinstance(const, types.CodeType):
                self._code(const)
            else:
                self.feed(const)

    def _named(self, module: Any, words: set[str], met: set[str]) -> None:
        """What a function may look up in a module of the user's, and in those within."""
        if not isinstance(module, types.ModuleType) or not is_users(module):
            return
        if module.__name__ in met:
            return
        met.add(module.__name__)
        for word in sorted(words & vars(module).keys()):
            self._tell(word)
            self.feed(vars(module)[word])
            self._named(vars(module)[word], words, met)

    def _class(self, given: type) -> None:
        self._tell(given.__qualname__)
        if not is_users(sys.modules.get(given.__module__)):
            self._tell(_library(given.__module__))
            return
        for base in (type(given), *given.__bases__):
            self.feed(base)
        for name, held in sorted(vars(given).items()):
            if name not in _OF_NO_CLASS:
                self._tell(name)
                self.feed(held)

    def _module(self, module: types.ModuleType) -> None:
        self._tell(module.__name__)
        if not is_users(module):
            self._tell(_library(module.__name__))
            return
        # Which of its names are called is not known, nor what it loaded by a name it made up.
        held = (each for each in vars(module).values() if isinstance(each, types.ModuleType))
        self._modules([module.__name__, *(each.__name__ for each in held)])

    def _modules(self, names: Iterable[str]) -> None:
        for name, text in sorted(texts(names).items()):
            self._tell(f"{name} {hashlib.blake2b(text, digest_size=16).hexdigest()}")

    def _object(self, item: Any) -> None:
        """What an object of a user's class is, and holds. Pickled whole, it would name its
        class, or, of a class of the script itself, differ from process to process.
        """
        self.feed(type(item))
        try:
            how = item.__reduce_ex__(4)
        except Exception:  # It may never travel; `python_call` says so.
            how = ""
        if isinstance(how, str):
            how = (vars(item) if hasattr(item, "__dict__") else None,)
        self.feed([list(part) if isinstance(part, Iterator) else part for part in how])

    def _value(self, item: Any) -> None:
        file = BytesIO()
        try:
            _Pickler(file, self).dump(item)
        except Exception:  # It may never travel; `python_call` says so.
            self._tell(type(item).__qualname__)
        else:
            self._tell(hashlib.blake2b(file.getbuffer()).hexdigest())


class _Pickler(cloudpickle.Pickler):  # type: ignore[misc]
    """Pickles a value of a library; what is the user's in it goes by its identity."""

    def __init__(self, file: BytesIO, told: _Told) -> None:
        super().__init__(file)
        self._told = told

    def persistent_id(self, item: Any) -> str | None:
        if type(item) in _PLAIN or not _is_told(item):
            return None
        return self._told.inner(item)


def _is_told(item: Any) -> bool:
    """Does a pickle not tell what it is? Functions, classes, modules, sets, users' objects."""
    if isinstance(item, types.FunctionType | type | types.ModuleType | set | frozenset):
        return True
    module = type(item).__module__
    return module != "builtins" and is_users(sys.modules.get(module))


def _library(module: str | None) -> str:
    top = sys.modules.get((module or "").partition(".")[0])
    return f"{module} {getattr(top, '__version__', '')}"
