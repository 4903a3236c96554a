"""A function and the user's modules that it calls: workers have no copy of them."""

import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from millpond.plan.functions import python_call

PROGRAM = """
import pickle, sys
from functools import lru_cache, partial
import cloudpickle
sys.path.insert(0, sys.argv[1])
import rules
from shop.prices import Rounded
from shop import prices
from millpond.plan.functions import python_call

def by_module(row):
    return {"x": rules.twice(row["x"])}

def by_name(row):
    return {"x": int(Rounded(row["x"]).cents())}

@lru_cache(maxsize=7)
def factor(n):
    return 1 if n == 0 else rules.twice(factor(n - 1)) // 2

def by_cache(row):
    return {"x": prices.cached(row["x"]) * factor(2) * factor.cache_parameters()["maxsize"]}

wrapped = prices.checked(by_name)
functions = (
    by_module, by_name, wrapped, rules.twice_row, by_cache, partial(rules.of_a_list, [rules.twice])
)
calls = [python_call(f, "map", "map") for f in functions]
assert not cloudpickle.list_registry_pickle_by_value()
sys.stdout.buffer.write(pickle.dumps(([c.function for c in calls], [c.identity for c in calls])))
"""
WORKER = """
import pickle, sys
functions, identities = pickle.load(sys.stdin.buffer)
print([pickle.loads(f)({"x": 3})["x"] for f in functions], *identities)
"""


def answers(folder: Path, elsewhere: Path) -> tuple[str, list[str]]:
    """What the functions give in a process that cannot import the modules; their identities."""
    program = [sys.executable, "-c", PROGRAM, str(folder)]
    sent = subprocess.run(program, capture_output=True, check=False)
    assert sent.returncode == 0, sent.stderr.decode()
    worker = [sys.executable, "-c", WORKER]
    got = subprocess.run(worker, input=sent.stdout, capture_output=True, cwd=elsewhere, check=False)
    assert got.returncode == 0, got.stderr.decode()
    text, _, identities = got.stdout.decode().partition("] ")
    return text + "]", identities.split()


@pytest.mark.slow
def test_they_travel_with_it_and_an_edit_of_one_makes_another_function(tmp_path: Path) -> None:
    user, elsewhere = tmp_path / "user", tmp_path / "elsewhere"
    (user / "shop").mkdir(parents=True)
    elsewhere.mkdir()
    (user / "rules.py").write_text(
        "import shop.prices as p\n"
        "def twice(x):\n    return p.times(x, 2)\n"
        "def twice_row(row):\n    return {'x': twice(row['x'])}\n"
        "def of_a_list(steps, row):\n    return {'x': steps[0](row['x'])}\n"
    )
    (user / "shop" / "__init__.py").write_text("")
    (user / "shop" / "prices.py").write_text(
        "from functools import cache\n"
        "def times(x, n):\n    return x * n\n"
        "@cache\ndef cached(x):\n    return times(x, 1)\n"
        "class Rounded:\n"
        "    def __init__(self, x):\n        self.x = x\n"
        "    def cents(self):\n        return times(self.x, 100)\n"
        "def checked(f):\n"
        "    def run(row):\n        return f(row)\n"
        "    return run\n"
    )
    before = answers(user, elsewhere)
    assert before[0] == "[6, 300, 300, 6, 21, 6]"
    assert answers(user, elsewhere) == before

    prices = user / "shop" / "prices.py"
    prices.write_text(prices.read_text().replace("return x * n", "return n * x + 1"))
    after = answers(user, elsewhere)
    assert after[0] == "[7, 301, 301, 7, 28, 7]"
    assert not set(after[1]) & set(before[1]), "an edited module is not noticed"


def test_a_module_that_holds_what_cannot_travel_is_left_where_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "with_a_lock.py").write_text(
        "import threading\nlock = threading.Lock()\ndef same(row):\n    return row\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    import with_a_lock

    def by_module(row: dict[str, int]) -> Any:
        return with_a_lock.same(row)

    call = python_call(by_module, "row", "map")
    assert pickle.loads(call.function)({"x": 3}) == {"x": 3}
