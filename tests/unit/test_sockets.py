"""Millpond opens no port and makes no connection of its own."""

import subprocess
import sys
import textwrap

import pytest

SCRIPT = """
import sys
opened = []
def audit(event, arguments):
    if event in ("socket.bind", "socket.connect", "socket.listen", "socket.__new__"):
        opened.append((event, arguments[1:]))
sys.addaudithook(audit)
import millpond

def double(row):
    return {"x": row["item"] * 2}

if __name__ == "__main__":
    with millpond.init(shape="staged") as sp:
        frame = sp.from_items(list(range(1000))).map(double).repartition(3, hash_by="x")
        assert sp.partial_sql("SELECT sum(x) AS s FROM {0}", frame).count() == 3
    print(opened)
"""


@pytest.mark.slow
def test_no_socket_is_opened(tmp_path) -> None:
    script = tmp_path / "script.py"
    script.write_text(textwrap.dedent(SCRIPT))
    ended = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, check=True
    )
    assert ended.stdout.strip() == "[]"
