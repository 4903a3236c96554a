"""A head that does not answer is an error soon, and not an hour of waiting."""

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import millpond
from millpond.errors import OptionError

pytest.importorskip("ray")
reach = pytest.importorskip("millpond.runtime.ray.reach")
cluster = pytest.importorskip("millpond.runtime.ray.cluster")

pytestmark = pytest.mark.slow  # Importing ray takes a second.

Listens = Callable[[Callable[[socket.socket], None] | None], str]


@pytest.fixture
def listens() -> Iterator[Listens]:
    """Starts a server that does this with a connection, or (None) accepts it and no more."""
    opened: list[socket.socket] = []

    def start(answer: Callable[[socket.socket], None] | None) -> str:
        server = socket.create_server(("127.0.0.1", 0))
        opened.append(server)

        def serve() -> None:
            connection, _ = server.accept()
            opened.append(connection)
            if answer:
                answer(connection)

        threading.Thread(target=serve, daemon=True).start()
        host, port = server.getsockname()
        return f"{host}:{port}"

    yield start
    for each in opened:
        each.close()


def test_a_head_that_says_nothing(listens: Listens) -> None:
    address = listens(None)
    with pytest.raises(OptionError, match=rf"{address}.* in 0\.2 s: accepts .* says nothing"):
        reach.check_answers(address, 0.2)


def test_a_port_where_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(OptionError, match=r"Connection refused.*`ray status`"):
        reach.check_answers(f"127.0.0.1:{port}", 0.2)


def test_an_address_of_another_kind_is_left_to_ray() -> None:
    for address in ("auto", "ray://no.such.host:10001"):
        reach.check_answers(address, 0.0)


def test_one_that_speaks_http_2_or_wants_tls_is_there(listens: Listens) -> None:
    settings = bytes([0, 0, 0, 4, 0, 0, 0, 0, 0])
    reach.check_answers(listens(lambda connection: connection.sendall(settings)), 5)
    reach.check_answers(listens(lambda connection: connection.close()), 5)


def test_one_that_comes_up_meanwhile_is_waited_for(listens: Listens) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        host, port = server.getsockname()
    began = threading.Event()

    def late() -> None:
        began.wait()
        with socket.create_server((host, port)) as again:
            again.accept()[0].close()

    thread = threading.Thread(target=late)
    thread.start()
    asked = reach._ask

    def ask(*given: object) -> None:
        try:
            asked(*given)
        finally:
            began.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reach, "_ask", ask)
        reach.check_answers(f"{host}:{port}", 60)
    thread.join()


def test_init_says_so_and_leaves_nothing(
    listens: Listens, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    address, root = listens(None), tmp_path / "root"
    check = reach.check_answers
    monkeypatch.setattr(cluster, "check_answers", lambda found: check(found, 0.2))
    with pytest.raises(OptionError, match="no cluster answers at"):
        millpond.init(runtime="ray", address=address, data_root=str(root), allow_insecure=True)
    assert not root.exists()
    root.mkdir()
    with pytest.raises(OptionError, match="no cluster answers at"):
        millpond.init(runtime="ray", address=address, data_root=str(root), allow_insecure=True)
    assert list(tmp_path.rglob("*")) == [root], "it was there before"


def test_what_takes_too_long_ends_at_its_next_line() -> None:
    def tries_again() -> None:
        while True:
            try:
                time.sleep(0.01)
            except Exception:
                continue

    with pytest.raises(reach.NotInTime), reach.within(0.05):
        tries_again()


def test_what_ends_in_time_is_left_alone() -> None:
    for _ in range(100):
        with reach.within(0.02):
            time.sleep(0.001)
    with reach.within(0.05):
        pass
    time.sleep(0.1)
    assert not [each for each in threading.enumerate() if isinstance(each, threading.Timer)]


def test_a_start_that_takes_too_long_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    ended = []

    def hangs(**_: object) -> None:
        while True:
            time.sleep(0.01)

    monkeypatch.setattr(cluster, "INIT_S", 0.1)
    monkeypatch.setattr(cluster.ray, "init", hangs)
    monkeypatch.setattr(cluster.ray, "shutdown", lambda: ended.append(True))
    with pytest.raises(OptionError, match=r"at 'this machine': it took more than 0\.1 s"):
        cluster.connect(None, 1)
    assert ended == [True]
