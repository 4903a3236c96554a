"""The examples in docstrings run as they stand; `sp` is a session."""

import doctest
import importlib
import pkgutil

import pytest

import millpond

OPTIONAL = ("millpond.runtime.ray", "millpond.loader.torch", "millpond.storage.object_store")


def modules() -> list[str]:
    # A package whose extra is not installed is passed over.
    found = pkgutil.walk_packages(millpond.__path__, "millpond.", onerror=lambda name: None)
    names = [m.name for m in found if not m.name.endswith("__main__")]
    return [name for name in names if not name.startswith(OPTIONAL)]


@pytest.mark.parametrize("name", modules())
def test_examples(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        if (error.name or "millpond").startswith("millpond"):
            raise
        pytest.skip(f"an extra that is not installed here: {error}")
    tests = [t for t in doctest.DocTestFinder(exclude_empty=True).find(module) if t.examples]
    if not tests:
        return
    with millpond.init() as sp:
        for test in tests:
            test.globs.update(sp=sp, millpond=millpond)
            test.globs.setdefault("df", sp.from_items([{"user_id": i} for i in range(10)]))
            runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
            out: list[str] = []
            runner.run(test, out=out.append)
            assert runner.failures == 0, "".join(out)
