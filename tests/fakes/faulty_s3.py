"""A store that speaks just enough S3 for one bucket, and fails as it is told to.

`faults` is a list of names, one for each coming request; when it is used up, requests
succeed. Every name is a disaster that real stores and networks produce:

- `503`, `429`: the store is busy;
- `drop`: the connection ends in the middle of the body;
- `cut`: half of the range is sent, and called complete;
- `hang`: no answer before the client gives up;
- `lost`: the request is carried out, and its answer never arrives;
- `403`: refused with the signed request in the answer, tokens included;
- `301`: the bucket lies in another region;
- `denied`, `expired`, `malformed`, `skewed`: refused as Amazon's refuses them, with its codes;
- `stall`: half of the body, and then silence.

An object is bytes, or anything with a length and slices (see `Vast`). `stale` names keys that
listings do not show yet.
"""

import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

BUSY = "<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>"
REFUSALS = {
    "denied": (403, "AccessDenied", "Access Denied"),
    "expired": (400, "ExpiredToken", "The provided token has expired."),
    "malformed": (400, "AuthorizationHeaderMalformed", "the region 'us-east-1' is wrong"),
    "skewed": (403, "RequestTimeTooSkewed", "The difference is too large."),
}
PAGE = 1000  # Keys in one answer to a listing.
MOVED = "<Error><Code>PermanentRedirect</Code><Message>Use the other endpoint.</Message></Error>"


class Vast:
    """An object that takes no memory: each 8 bytes of it are their own number."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, span: slice) -> bytes:
        start, end, _ = span.indices(self.size)
        first = start - start % 8
        numbers = range(first // 8, -(-end // 8))
        return b"".join(n.to_bytes(8, "little") for n in numbers)[start - first : end - first]


class FaultyS3(ThreadingHTTPServer):
    """The server, its objects (key to bytes and metadata), and what it was asked."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.objects: dict[str, tuple[Any, dict[str, str]]] = {}
        self.stale: set[str] = set()
        self.faults: list[str] = []
        self.asked: list[str] = []
        self.replace_after: dict[str, bytes] = {}  # Key to what it becomes after one GET.
        self.released, self.lock = threading.Event(), threading.Lock()
        self.wanted = threading.Semaphore(0)  # Released by each request that hangs.

    def options(self, **more: object) -> dict[str, object]:
        return {
            "endpoint": f"http://127.0.0.1:{self.server_port}",
            "region": "us-east-1",
            "access_key_id": "AKIA-the-key-id",
            "secret_access_key": "the-secret-key",
            "session_token": "the-session-token",
            "allow_http": True,
            "max_retries": 3,
            **more,
        }


@contextmanager
def faulty_s3() -> Iterator[FaultyS3]:
    server = FaultyS3()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.released.set()
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: FaultyS3
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # Else each answer waits 40 ms for the client to confirm.

    def log_message(self, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        fault = self._fault()
        if not self._refused(fault):
            self._get(fault)

    do_HEAD = do_GET

    def _get(self, fault: str) -> None:
        key = unquote(self.path.split("?")[0].removeprefix("/bucket").lstrip("/"))
        if key not in self.server.objects:
            missing = b"<Error><Code>NoSuchKey</Code></Error>"
            self._answer(404 if key else 200, missing if key else self._listing())
            return
        with self.server.lock:
            data, meta = self.server.objects[key]
            if key in self.server.replace_after and self.command == "GET":
                self.server.objects[key] = (self.server.replace_after.pop(key), {})
        headers = {f"x-amz-meta-{name}": value for name, value in meta.items()}
        headers |= {"ETag": f'"{hash(data)}"', "Last-Modified": "Sat, 21 Nov 2026 10:00:00 GMT"}
        body, status = data, 200
        if found := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            start, end = int(found[1]), min(int(found[2]) + 1, len(data))
            body, status = data[start:end], 206
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
        if fault == "cut":
            body = body[: len(body) // 2]
        self._answer(status, body, headers, dropped=fault == "drop", stalled=fault == "stall")

    def _listing(self) -> bytes:
        asked = dict(parse_qsl(urlsplit(self.path).query))
        prefix, after = asked.get("prefix", ""), asked.get("continuation-token", "")
        with self.server.lock:
            shown = sorted(key for key in self.server.objects if key not in self.server.stale)
        keys = [key for key in shown if key.startswith(prefix) and key > after]
        entries = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(self.server.objects[key][0])}</Size>"
            f"<ETag>&quot;{hash(self.server.objects[key][0])}&quot;</ETag>"
            "<LastModified>2026-11-21T10:00:00.000Z</LastModified></Contents>"
            for key in keys[:PAGE]
        )
        if len(keys) > PAGE:
            token = escape(keys[PAGE - 1])
            entries += f"<NextContinuationToken>{token}</NextContinuationToken>"
        truncated = "true" if len(keys) > PAGE else "false"
        text = f"<IsTruncated>{truncated}</IsTruncated>{entries}"
        return f"<ListBucketResult>{text}</ListBucketResult>".encode()

    def do_PUT(self) -> None:
        fault = self._fault()
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if self._refused(fault):
            return
        key = unquote(self.path.removeprefix("/bucket/"))
        if source := self.headers.get("x-amz-copy-source"):
            data = self.server.objects[unquote(source.lstrip("/")).removeprefix("bucket/")][0]
            self.server.objects[key] = (data, {})
            copied = f'<CopyObjectResult><ETag>"{hash(data)}"</ETag></CopyObjectResult>'
            self._answer(200, copied.encode())
            return
        if self.headers.get("If-None-Match") == "*" and key in self.server.objects:
            self._answer(412, b"<Error><Code>PreconditionFailed</Code></Error>")
            return
        marks = {n[11:]: v for n, v in self.headers.items() if n.lower().startswith("x-amz-meta-")}
        self.server.objects[key] = (data, marks)
        if fault == "lost":
            self.close_connection = True
            return
        self._answer(200, b"", {"ETag": f'"{hash(data)}"'})

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        self._answer(405, b"<Error><Code>MethodNotAllowed</Code></Error>")

    def do_DELETE(self) -> None:
        self.server.objects.pop(unquote(self.path.removeprefix("/bucket/")), None)
        self._answer(204, b"")

    def _fault(self) -> str:
        self.server.asked.append(f"{self.command} {self.path}")
        return self.server.faults.pop(0) if self.server.faults else ""

    def _refused(self, fault: str) -> bool:
        if fault in ("503", "429"):
            self._answer(int(fault), BUSY.encode())
        elif fault in REFUSALS:
            status, code, message = REFUSALS[fault]
            said = f"<Error><Code>{code}</Code><Message>{message}</Message></Error>"
            self._answer(status, said.encode())
        elif fault == "301":
            self._answer(301, MOVED.encode())
        elif fault == "403":
            token = self.headers.get("x-amz-security-token", "")
            said = (
                "<Error><Code>SignatureDoesNotMatch</Code><Message>It differs.</Message>"
                f"<CanonicalRequest>x-amz-security-token:{token}</CanonicalRequest>"
                "<AWSAccessKeyId>AKIA-the-key-id</AWSAccessKeyId></Error>"
            )
            self._answer(403, said.encode())
        elif fault == "hang":
            self.server.wanted.release()
            self.server.released.wait(60)
            self.close_connection = True
        else:
            return False
        return True

    def _answer(
        self,
        status: int,
        body: bytes,
        headers: dict[str, str] | None = None,
        *,
        dropped: bool = False,
        stalled: bool = False,
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        self.wfile.write(body[: len(body) // 2] if dropped or stalled else body)
        if stalled:
            self.wfile.flush()
            self.server.wanted.release()
            self.server.released.wait(60)
            dropped = True
        self.close_connection = self.close_connection or dropped
