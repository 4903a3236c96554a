"""Ceph's RADOS Gateway on loopback addresses: an S3 server that means what it says.

It honours conditional writes and checks signatures. From Debian's packages ceph-mon,
ceph-mgr, ceph-osd, radosgw and ceph-common: one monitor, one manager, one store in
memory, one gateway, in a temporary folder; ready after about 20 seconds.
"""

import shutil
import subprocess
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from servers import PASSWORD, USER, Server, free_port, wait_for

PROGRAMS = ("ceph-mon", "ceph-mgr", "ceph-osd", "radosgw", "radosgw-admin", "ceph", "monmaptool")


def missing() -> list[str]:
    """The programs that are needed and not there."""
    return [name for name in PROGRAMS if shutil.which(name) is None]


@contextmanager
def ceph(folder: Path) -> Iterator[Server]:
    """A running gateway, with the bucket of the tests in it."""
    fsid, mon, gateway = str(uuid.uuid4()), free_port(), free_port()
    conf = folder / "ceph.conf"
    conf.write_text(_conf(folder, fsid, mon, gateway))
    for name in ("mon", "mgr", "osd"):
        (folder / name).mkdir()

    def tool(*command: str) -> str:
        given = [command[0], "-c", str(conf), *command[1:]]
        done = subprocess.run(given, check=True, capture_output=True, text=True, timeout=120)
        return done.stdout

    with ExitStack() as stack:

        def start(*command: str) -> "subprocess.Popen[bytes]":
            log = stack.enter_context(open(folder / f"{command[0]}.out", "wb"))
            process = subprocess.Popen(
                [command[0], "-c", str(conf), "-f", *command[1:]], stdout=log, stderr=log
            )
            stack.callback(process.wait, 60)
            stack.callback(process.terminate)
            return process

        address = f"[v1:127.0.0.1:{mon}]"
        map_ = str(folder / "monmap")
        tool("monmaptool", "--create", "--addv", "a", address, "--fsid", fsid, map_)
        tool("ceph-mon", "--mkfs", "-i", "a", "--monmap", map_)
        wait_for(mon, start("ceph-mon", "-i", "a"))
        start("ceph-mgr", "-i", "x")
        osd = str(uuid.uuid4())
        tool("ceph", "osd", "create", osd)
        tool("ceph-osd", "-i", "0", "--mkfs", "--osd-uuid", osd)
        start("ceph-osd", "-i", "0")
        _wait(lambda: "1 up" in tool("ceph", "osd", "stat"))
        keys = ("--access-key", USER, "--secret-key", PASSWORD)
        tool("radosgw-admin", "user", "create", "--uid", "test", "--display-name", "test", *keys)
        wait_for(gateway, start("radosgw", "-n", "client.rgw"))
        server = Server(f"http://127.0.0.1:{gateway}")
        server.make_bucket(server.bucket)
        yield server


def _wait(is_so: Callable[[], bool]) -> None:
    pause = threading.Event()
    for _ in range(300):
        if is_so():
            return
        pause.wait(0.2)
    raise AssertionError("the store did not come up within a minute")


def _conf(folder: Path, fsid: str, mon: int, gateway: int) -> str:
    return f"""
[global]
fsid = {fsid}
mon host = [v1:127.0.0.1:{mon}]
public addr = 127.0.0.1
cluster addr = 127.0.0.1
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd pool default pg autoscale mode = off
mon allow pool size one = true
mon warn on pool no redundancy = false
osd crush chooseleaf type = 0
osd objectstore = memstore
memstore device bytes = 4294967296
mgr initial modules =
run dir = {folder}
admin socket = {folder}/$name.asok
pid file = {folder}/$name.pid
log file = {folder}/$name.log
mon data = {folder}/mon
mgr data = {folder}/mgr
osd data = {folder}/osd
keyring = {folder}/keyring
rgw frontends = beast endpoint=127.0.0.1:{gateway}
rgw enable usage log = false
"""
