"""Two sessions on one data root, at the same time, over the same work."""

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tests.faults.test_local import SORTED, spread_and_sorted
from tests.faults.test_sigkill import EXPECTED, SCRIPT
from tests.support.sessions import Counted, oracle, tuples

pytestmark = pytest.mark.slow


def test_two_sessions_that_compute_the_same_neither_corrupt_nor_wait(
    events_path: str, data_root: str, tmp_path: Path
) -> None:
    target, failed = str(tmp_path / "out"), []
    both = threading.Barrier(2)

    def work() -> None:
        try:
            with Counted(shape="staged", data_root=data_root) as run:
                rows = spread_and_sorted(run.session, events_path)
                both.wait(60)
                assert tuples(rows) == oracle(SORTED, events=events_path)
                rows.write_parquet(target, mode="overwrite")
        except BaseException as error:  # The test's own thread must hear of it.
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []
    files = sorted(Path(target).glob("*.parquet"))
    rows = [row for file in files for row in oracle("FROM f", f=str(file))]
    assert rows == oracle(SORTED, events=events_path)
    assert not list(Path(target).glob(".millpond-*"))


@pytest.mark.full
def test_two_programs_on_one_cluster_and_one_data_root(events_path: str, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    from ray_cluster import cluster

    script, root = tmp_path / "program.py", tmp_path / "root"
    with cluster(2) as found:
        on_ray = f'runtime="ray", address="{found.address}", allow_insecure=True, data_root=root'
        script.write_text(SCRIPT.replace('shape="staged", data_root=root', on_ray))
        targets = [tmp_path / name for name in ("one", "other")]
        commands = [
            [sys.executable, str(script), events_path, str(root), str(target), "", "0"]
            for target in targets
        ]
        both = [
            subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for command in commands
        ]
        said = [program.communicate(timeout=200)[1] for program in both]
    assert [program.returncode for program in both] == [0, 0], said
    for target in targets:
        rows = [r for f in sorted(target.glob("*.parquet")) for r in oracle("FROM f", f=str(f))]
        assert rows == oracle(EXPECTED, events=events_path)
        assert not list(target.glob(".millpond-*"))


def test_one_session_kills_nothing_that_another_reuses(events_path: str, data_root: str) -> None:
    """The second finds the first one's work while that goes on to other work."""
    with Counted(shape="staged", data_root=data_root) as first:
        tuples(spread_and_sorted(first.session, events_path))
        with Counted(shape="staged", data_root=data_root) as second:
            frame = spread_and_sorted(second.session, events_path)
            assert tuples(frame) == oracle(SORTED, events=events_path)
            assert second.tasks == 0
        assert tuples(spread_and_sorted(first.session, events_path)) == oracle(
            SORTED, events=events_path
        )
