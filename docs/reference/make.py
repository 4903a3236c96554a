"""Write api.md from the docstrings of the public names: `python docs/reference/make.py`."""

import inspect
import re
from pathlib import Path
from typing import Any

import millpond
from millpond.dataframe import DataFrame, Grouped
from millpond.loader import Dataset, Loader, Mixture
from millpond.session import Session

PAGE = Path(__file__).with_name("api.md")
HEAD = """# Reference

Every public name, from its docstring (`python docs/reference/make.py` writes this page, and a test
holds it against the code). Examples run in the tests; `sp` is a session, `df` a frame.
"""
CLASSES = {
    "Session": Session, "DataFrame": DataFrame, "Grouped": Grouped, "Dataset": Dataset,
    "Mixture": Mixture, "Loader": Loader,
}  # fmt: skip
FUNCTIONS = ("init", "open_dataset", "mix", "gc")


def page() -> str:
    parts = [HEAD, "## Functions\n"]
    parts += [entry(f"millpond.{name}", getattr(millpond, name)) for name in FUNCTIONS]
    for name, kind in CLASSES.items():
        parts.append(f"## {name}\n\n{text(kind)}\n")
        parts += [entry(f"{name}.{key}", item) for key, item in public(kind)]
    return "\n".join(parts)


def public(kind: type) -> list[tuple[str, Any]]:
    """Methods and properties in the order in which they are written, bases first."""
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__[:-1]):
        if base.__module__.startswith("millpond."):
            found.update({k: v for k, v in vars(base).items() if not k.startswith("_")})
    told = (property, staticmethod, classmethod)
    return [(k, v) for k, v in found.items() if inspect.isfunction(v) or isinstance(v, told)]


def entry(name: str, item: Any) -> str:
    return f"### `{name}{signature(item)}`\n\n{text(item)}\n"


def signature(item: Any) -> str:
    if isinstance(item, property):
        return ""
    called = item.__func__ if isinstance(item, staticmethod | classmethod) else item
    parameters = inspect.signature(called).parameters.values()
    taken = [p for p in parameters if p.name not in ("self", "cls")]
    return str(inspect.Signature([p.replace(annotation=inspect.Parameter.empty) for p in taken]))


def text(item: Any) -> str:
    """A docstring as Markdown: its examples become blocks of code."""
    doc = inspect.getdoc(item) or ""
    blocks = re.split(r"\n\n", doc)
    return "\n\n".join(f"```python\n{b}\n```" if b.startswith(">>>") else b for b in blocks)


if __name__ == "__main__":
    PAGE.write_text(page())
