"""When a function is the same to a rerun: what it does decides, not where it stands."""

import os
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from millpond.plan.function_identity import function_identity
from millpond.plan.functions import python_call

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
    "one of a set": (
        "def g(r): return r + 1\nALL = {g}\ndef f(r): return [s(r) for s in ALL]",
        "r + 1", "r + 2",
    ),
    "one of a queue": (
        "from collections import deque\ndef g(r): return r + 1\nQ = deque([g])\n"
        "def f(r): return Q[0](r)", "r + 1", "r + 2",
    ),
    "one in a namespace": (
        "from types import SimpleNamespace\ndef g(r): return r + 1\n"
        "N = SimpleNamespace(g=g)\ndef f(r): return N.g(r)", "r + 1", "r + 2",
    ),
    "one in an object of a library": (
        "from collections import UserList\ndef g(r): return r + 1\nL = UserList([g])\n"
        "def f(r): return L[0](r)", "r + 1", "r + 2",
    ),
    "what a dictionary has instead": (
        "from collections import defaultdict\nBY = defaultdict(lambda: 1)\n"
        "def f(r): return BY[r]", "lambda: 1", "lambda: 2",
    ),
    "which of two functions is called again": (
        "def g(r): return r + 1\ndef h(r): return r + 2\nSTEPS = [g, h, g]\n"
        "def f(r): return [s(r) for s in STEPS]", "g, h, g", "g, h, h",
    ),
    "which of two objects is used again": (
        "class C:\n    def __init__(self, n): self.n = n\na, b = C(1), C(2)\nALL = [a, b, b]\n"
        "def f(r): return ALL[r].n", "a, b, b", "a, b, a",
    ),
    "what an object of a kind of dictionary holds": (
        "class D(dict): pass\nD1 = D(a=1)\ndef f(r): return D1['a']", "a=1", "a=2",
    ),
    "what an object of a kind of list holds": (
        "class L(list): pass\nL1 = L([1])\ndef f(r): return L1[0]", "L([1])", "L([2])",
    ),
    "a global that a class inside it reads": (
        "N = 1\ndef f(r):\n    class C:\n        n = N\n    return C.n", "N = 1", "N = 2",
    ),
    "what a try covers": (
        "def g(r): return 1 / r\ndef f(r):\n    try:\n        a = g(r)\n"
        "        b = g(a)\n    except ZeroDivisionError:\n        return 0\n    return b",
        "        b = g(a)\n    except ZeroDivisionError:\n        return 0\n",
        "    except ZeroDivisionError:\n        return 0\n    else:\n        b = g(a)\n",
    ),
    "an argument that takes the rest": (
        "def f(r, a, *b): return b", "*b", "b",
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


PROGRAM = """
import sys
sys.path.insert(0, sys.argv[1])
from collections import defaultdict
import outer, shop
from millpond.plan.function_identity import function_identity

def by_import(row):
    import inner
    return inner.g(row)

def by_name(row):
    from shop.prices import g
    return g(row)

def by_module(row):
    return outer.g(row)

def by_package(row):
    return shop.prices.g(row)

def of_the_environment(row):
    return outer.by_limit(row)

words = {str(i): {str(i), "other"} for i in range(2_000)}
pairs = {("a", frozenset(map(str, range(50))))}

def of_sets(row):
    return words, pairs

every = (by_import, by_name, by_module, by_package, of_the_environment, of_sets)
print(*map(function_identity, every))
assert not {"inner", "deep"} & set(sys.modules), "no module is loaded to look at it"
"""
MODULES = {
    "inner.py": "from deep import h\ndef g(r): return h(r)\n",
    "deep.py": "def h(r): return r\n",
    "outer.py": "import os\nfrom further import h\nLIMIT = os.environ['LIMIT']\n"
    "def g(r): return h(r)\ndef by_limit(r): return LIMIT\n",
    "further.py": "def h(r): return r\n",
    "shop/__init__.py": "from . import prices\n",
    "shop/prices.py": "from .rounding import cents as g\n",
    "shop/rounding.py": "def cents(r): return r\n",
}
READS = {
    "inner.py": {0}, "deep.py": {0}, "outer.py": {2, 4}, "further.py": {2, 4},
    "shop/__init__.py": {1, 3}, "shop/prices.py": {1, 3}, "shop/rounding.py": {1, 3},
}  # fmt: skip


def program(folder: Path, limit: int = 1) -> list[str]:
    """Identities in a process of its own, whose sets are in another order each time."""
    environment = {**os.environ, "LIMIT": str(limit)}
    command = [sys.executable, "-c", PROGRAM, str(folder)]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout.split()


@pytest.mark.slow
def test_the_modules_that_it_imports_when_it_runs_and_those_that_they_do_count(
    tmp_path: Path,
) -> None:
    for name, text in MODULES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    before = program(tmp_path)
    assert program(tmp_path) == before
    for name, readers in READS.items():
        (tmp_path / name).write_text(MODULES[name] + "def more(): return 1\n")
        after = program(tmp_path)
        (tmp_path / name).write_text(MODULES[name])
        assert {i for i, told in enumerate(after) if told != before[i]} == readers, name
    limited = program(tmp_path, limit=2)
    assert {i for i, told in enumerate(limited) if told != before[i]} == {4}


EDITED = """
import sys
import millpond
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from millpond.plan.function_identity import function_identity

def by_import(row):
    import inner
    return inner.g(row)

before = by_import(1), function_identity(by_import)
Path(sys.argv[1], "inner.py").write_text("def g(r): return 2\\n")
after = by_import(1), function_identity(by_import)
print(*before, *after, function_identity(by_import))
"""


@pytest.mark.slow
def test_what_an_old_module_gives_is_not_taken_for_what_its_new_text_gives(tmp_path: Path) -> None:
    """A module that was edited after it was loaded: this process goes on with the old one."""

    def run() -> list[str]:
        command = [sys.executable, "-c", EDITED, str(tmp_path)]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.split()

    (tmp_path / "inner.py").write_text("def g(r): return 1\n")
    gave, old, gives, edited, again = run()
    assert (gave, gives) == ("1", "1")
    assert edited == again != old
    gave, new, _, _, _ = run()
    assert gave == "2"
    assert new not in (old, edited)


def test_a_list_that_holds_itself_has_an_identity(identity: Identity) -> None:
    text = "L = [1]\nL.append(L)\ndef f(r): return L"
    assert identity(text) == identity(text) != identity(text.replace("[1]", "[2]"))


def test_a_key_stands_for_all_of_it() -> None:
    def one(row: Any) -> Any:
        return row

    def other(row: Any) -> Any:
        return {**row}

    def identity(function: Any, key: str | None) -> str:
        return python_call(function, "row", "map", key=key).identity

    assert identity(one, "v1") == identity(other, "v1") != identity(one, "v2")
    assert identity(one, None) != identity(other, None)
