"""One session in several threads, and in processes that did not open it."""

import multiprocessing
import pickle
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import millpond
from millpond.options import options
from millpond.session import Session


def together(work: Callable[[int], Any], n: int = 4) -> list[Any]:
    """What `n` threads give that begin at once; an error of one of them is raised."""
    begin, given = threading.Barrier(n), list[Any]()

    def in_thread(i: int) -> None:
        begin.wait()
        try:
            given.append(work(i))
        except BaseException as error:
            given.append(error)

    threads = [threading.Thread(target=in_thread, args=(i,)) for i in range(n)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for item in given:
        if isinstance(item, BaseException):
            raise item
    return given


@pytest.mark.parametrize("shape", ["auto", "staged"])
@pytest.mark.parametrize("durable", [False, True])
def test_threads_share_a_session(shape: str, durable: bool, tmp_path: Path) -> None:
    root = str(tmp_path / "root") if durable else None
    with Session(options(shape=shape, data_root=root, threads=2, progress=False)) as sp:
        rows = sp.sql("SELECT range AS a, range % 7 AS b FROM range(500)")

        def work(i: int) -> tuple[Any, ...]:
            groups = rows.repartition(3, hash_by="b").group_by("b").agg("sum(a) AS s")
            kept = rows.filter(f"a % 4 = {i}").compute()
            written = kept.write_parquet(tmp_path / f"out-{i}").rows
            return groups.sort("b").take(1)[0]["s"], kept.count(), written

        first = sum(range(0, 500, 7))
        assert together(work) == [(first, 125, 125)] * 4


def test_what_other_threads_run_is_not_told_of_ones_own() -> None:
    with Session(options(shape="staged", threads=2)) as sp:
        rows = sp.from_items(list(range(60))).repartition(4, by_rows=True)
        doubled = sp.partial_sql("SELECT item * 2 AS twice FROM {0}", rows)

        def told(_: int) -> list[str]:
            lines = doubled.explain(analyze=True).splitlines()[-2:]
            return [line.rpartition(",")[0] for line in lines]  # Without the seconds.

        alone = told(0)
        assert "1 tasks" in alone[0]
        assert "4 tasks" in alone[1]
        assert together(told, 6) == [alone] * 6


def in_child(call: Callable[[], Any], say: Any) -> None:
    try:
        say.put(str(call()))
    except Exception as error:
        say.put(f"{type(error).__name__}: {error}")


def test_a_forked_child_is_told_to_open_a_session_of_its_own() -> None:
    with millpond.init(threads=2, progress=False) as sp:
        rows = sp.from_items([1, 2])
        fork = multiprocessing.get_context("fork")
        for call in (rows.count, sp.close, lambda: sp.sql("SELECT 1").columns):
            say = fork.SimpleQueue()
            child = fork.Process(target=in_child, args=(call, say))
            child.start()
            heard = say.get()
            child.join()
            assert heard == "None" or "belongs to the process that opened it" in heard
        assert rows.sort("item").count() == 2


def test_a_frame_does_not_travel_between_processes() -> None:
    with millpond.init(threads=2, progress=False) as sp:
        for held in (sp, sp.from_items([1])):
            with pytest.raises(millpond.MillpondError, match="stay in the process"):
                pickle.dumps(held)
