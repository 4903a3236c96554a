"""When a function is the same to a rerun: what it does decides, not where it stands."""

import sys
import types
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from millpond.plan.functions import function_identity, python_call

Identity = Callable[[str], str]
NUMBERS = count()


@pytest.fixture
def identity(tmp_path: Path) -> Iterator[Identity]:
    """The identity of `f` in a user's module of that text; its name is always the same."""
    name = f"users_own_{next(NUMBERS)}"

    def of(text: str) -> str:
        module = types.ModuleType(name)
        module.__file__ = str(tmp_path / "own.py")
        Path(module.__file__).write_text(text)
        sys.modules[name] = module
        exec(compile(text, module.__file__, "exec"), vars(module))
        return function_identity(module.f)

    yield of
    sys.modules.pop(name, None)


CASES = {
    "a constant": ("def f(r): return r + 1", "return r + 1", "return r + 2"),
    "an operator": ("def f(r): return r + 1", "r + 1", "r - 1"),
    "a default": ("def f(r, n=1): return r + n", "n=1", "n=2"),
    "a default by name": ("def f(r, *, n=1): return r + n", "n=1", "n=2"),
    "a global": ("N = 1\ndef f(r): return r + N", "N = 1", "N = 2"),
    "a set": ("N = {1, 5}\ndef f(r): return r in N", "{1, 5}", "{1, 6}"),
    "a closure": (
        "def make(n):\n    def g(r): return r + n\n    return g\nf = make(1)", "make(1)", "make(2)",
    ),
    "a function that it calls": (
        "def g(r): return r + 1\ndef f(r): return g(r)", "r + 1", "r + 2",
    ),
    "one that that calls": (
        "def h(r): return r + 1\ndef g(r): return h(r)\ndef f(r): return g(r)", "r + 1", "r + 2",
    ),
    "one inside it": ("def f(r): return [(lambda x: x + 1)(i) for i in r]", "x + 1", "x + 2"),
    "a method": (
        "class C:\n    def __init__(self): self.n = 1\n    def m(self, r): return r + self.n\n"
        "f = C().m", "r + self.n", "r - self.n",
    ),
    "what its object holds": (
        "class C:\n    def __init__(self): self.n = 1\n    def m(self, r): return r + self.n\n"
        "f = C().m", "self.n = 1", "self.n = 2",
    ),
    "an object that it uses": (
        "class C:\n    def m(self, r): return r + 1\nc = C()\ndef f(r): return c.m(r)",
        "r + 1", "r + 2",
    ),
    "an object with slots": (
        "class C:\n    __slots__ = ('n',)\n    def __init__(self): self.n = 1\n"
        "c = C()\ndef f(r): return r + c.n", "self.n = 1", "self.n = 2",
    ),
    "a class": (
        "class f:\n    def __call__(self, b): return b + 1", "b + 1", "b + 2",
    ),
    "the class before it": (
        "class B:\n    def m(self, b): return b + 1\n"
        "class f(B):\n    def __call__(self, b): return self.m(b)", "b + 1", "b + 2",
    ),
    "a cached function": (
        "from functools import lru_cache\n@lru_cache\ndef g(r): return r + 1\n"
        "def f(r): return g(r)", "r + 1", "r + 2",
    ),
    "a cached function by itself": (
        "from functools import cache\n@cache\ndef f(r): return r + 1", "r + 1", "r + 2",
    ),
    "a cached method": (
        "from functools import cache\nclass f:\n    @cache\n    def m(self, b): return b + 1\n"
        "    def __call__(self, b): return self.m(b)", "b + 1", "b + 2",
    ),
    "a property": (
        "class f:\n    @property\n    def m(self): return 1\n"
        "    def __call__(self, b): return b + self.m", "return 1", "return 2",
    ),
    "a cached property": (
        "from functools import cached_property\nclass f:\n    @cached_property\n"
        "    def m(self): return 1\n    def __call__(self, b): return b + self.m",
        "return 1", "return 2",
    ),
    "a static method": (
        "class f:\n    @staticmethod\n    def m(b): return b + 1\n"
        "    def __call__(self, b): return self.m(b)", "b + 1", "b + 2",
    ),
    "a decorated function": (
        "from functools import wraps\ndef d(g):\n    @wraps(g)\n    def w(r): return g(r) * 2\n"
        "    return w\n@d\ndef f(r): return r + 1", "* 2", "* 3",
    ),
    "one of several by type": (
        "from functools import singledispatch\n@singledispatch\ndef g(r): return r\n"
        "@g.register\ndef _(r: int): return r + 1\ndef f(r): return g(r)", "r + 1", "r + 2",
    ),
    "a partial method": (
        "from functools import partialmethod\nclass f:\n    def m(self, n, b): return b + n\n"
        "    p = partialmethod(m, 1)\n    def __call__(self, b): return self.p(b)",
        "b + n", "b - n",
    ),
    "an item getter": (
        "from operator import itemgetter\ng = itemgetter(1)\ndef f(r): return g(r)",
        "itemgetter(1)", "itemgetter(2)",
    ),
    "a named tuple": (
        "from typing import NamedTuple\nclass T(NamedTuple):\n    a: int = 1\n"
        "    def m(self): return self.a + 1\ndef f(r): return T(r).m()", "self.a + 1", "self.a + 2",
    ),
    "a dataclass's default": (
        "from dataclasses import dataclass\n@dataclass\nclass T:\n    a: int = 1\n"
        "def f(r): return T().a", "= 1", "= 2",
    ),
    "a global that a comprehension reads": (
        "N = 1\ndef f(r): return [x + N for x in r]", "N = 1", "N = 2",
    ),
    "an attribute of a class": (
        "class C:\n    n = 1\ndef f(r): return r + C.n", "n = 1", "n = 2",
    ),
    "a metaclass": (
        "class M(type):\n    def m(cls): return 1\nclass C(metaclass=M): pass\n"
        "def f(r): return C.m()", "return 1", "return 2",
    ),
    "an enum": (
        "from enum import Enum\nclass E(Enum):\n    A = 1\ndef f(r): return E.A.value",
        "A = 1", "A = 2",
    ),
    "a pattern": (
        "import re\np = re.compile('a')\ndef f(r): return p.sub('', r)", "'a'", "'b'",
    ),
    "an attribute of the function": (
        "def f(r): return r + f.n\nf.n = 1", "f.n = 1", "f.n = 2",
    ),
    "a partial": (
        "from functools import partial\ndef g(r, n): return r + n\nf = partial(g, n=1)",
        "n=1", "n=2",
    ),
    "the function of a partial": (
        "from functools import partial\ndef g(r, n): return r + n\nf = partial(g, n=1)",
        "r + n", "r - n",
    ),
    "one of a list": (
        "def g(r): return r + 1\nSTEPS = [g]\ndef f(r): return [s(r) for s in STEPS]",
        "r + 1", "r + 2",
    ),
    "one of a dictionary": (
        "def g(r): return r + 1\nBY = {'g': g}\ndef f(r): return BY['g'](r)", "r + 1", "r + 2",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_an_edit_makes_another_function(identity: Identity, case: str) -> None:
    text, before, after = CASES[case]
    assert text.count(before) == 1
    first = identity(text)
    assert identity(text) == first
    assert identity(text.replace(before, after)) != first


@pytest.mark.parametrize("case", CASES)
def test_comments_and_lines_above_it_do_not(identity: Identity, case: str) -> None:
    text = CASES[case][0]
    assert identity("# What follows was moved.\n\n" + text + "  # As before.") == identity(text)


def test_a_key_stands_for_all_of_it() -> None:
    def one(row: Any) -> Any:
        return row

    def other(row: Any) -> Any:
        return {**row}

    def identity(function: Any, key: str | None) -> str:
        return python_call(function, "row", "map", key=key).identity

    assert identity(one, "v1") == identity(other, "v1") != identity(one, "v2")
    assert identity(one, None) != identity(other, None)
