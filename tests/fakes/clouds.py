"""Google's and Azure's stores for tests: as much of both as Millpond asks for, in memory.

Written from the published interfaces (Google's XML API, Azure's Blob service): conditional
creation, copies on the server, uploads in pieces, listings in pages, 404 and 409 as there.
Signatures are not checked.
"""

import hashlib
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from email.utils import format_datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import count
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit
from xml.sax.saxutils import escape

PAGE = 100  # Keys in one answer to a listing.
BUCKET = "contract"
WRITTEN = datetime.now(UTC)  # All objects, as their headers say: when the tests began.
# An account and a key as Azure's own emulator has them: base64, and no secret.
ACCOUNT, ACCOUNT_KEY = "devaccount", "bm8gc2VjcmV0IGF0IGFsbA=="
SERVICE_ACCOUNT = (
    '{"gcs_base_url": "%s", "disable_oauth": true, "client_email": "", "private_key": "", '
    '"private_key_id": ""}'
)


class Clouds(ThreadingHTTPServer):
    """One server for both dialects, and the objects (key to bytes and metadata) in its bucket."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self, kind: str) -> None:
        super().__init__(("127.0.0.1", 0), _Google if kind == "gs" else _Azure)
        self.kind = kind
        self.objects: dict[str, tuple[bytes, dict[str, str]]] = {}
        self.pieces: dict[tuple[str, str], bytes] = {}
        self.numbers, self.lock = count(1), threading.Lock()

    def options(self) -> dict[str, object]:
        endpoint = f"http://127.0.0.1:{self.server_port}"
        if self.kind == "gs":
            return {"service_account_key": SERVICE_ACCOUNT % endpoint, "allow_http": True}
        return {
            "endpoint": endpoint,
            "account_name": ACCOUNT,
            "account_key": ACCOUNT_KEY,
            "allow_http": True,
        }


@contextmanager
def clouds(kind: str) -> Iterator[Clouds]:
    server = Clouds(kind)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    """What both have in common: reading, and objects that are put whole."""

    server: Clouds
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # Else each answer waits 40 ms for the client to confirm.
    meta = ""  # How the names of headers with metadata begin.

    def log_message(self, *args: Any) -> None:
        pass

    def parse(self) -> tuple[str, str, dict[str, str]]:
        parts = urlsplit(self.path)
        bucket, _, key = unquote(parts.path).lstrip("/").partition("/")
        return bucket, key, dict(parse_qsl(parts.query, keep_blank_values=True))

    def body(self) -> bytes:
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self) -> None:
        bucket, key, asked = self.parse()
        if bucket != BUCKET:
            self.fail(404, self.no_bucket)
        elif not key:
            self.answer(200, self.listing(asked).encode())
        elif key not in self.server.objects:
            self.fail(404, self.no_key)
        else:
            self.send_object(*self.server.objects[key])

    do_HEAD = do_GET

    def send_object(self, data: bytes, marks: dict[str, str]) -> None:
        headers = {**{self.meta + name: mark for name, mark in marks.items()}, **stamp(data)}
        found = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
        if found is None:
            self.answer(200, data, headers)
        elif int(found[1]) >= len(data):
            self.fail(416, "InvalidRange")
        else:
            start, end = int(found[1]), min(int(found[2]) + 1, len(data))
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{len(data)}"
            self.answer(206, data[start:end], headers)

    def store(self, key: str, data: bytes, *, new: bool) -> bool:
        marks = {name.lower().removeprefix(self.meta): mark for name, mark in self.headers.items()
                 if name.lower().startswith(self.meta)}  # fmt: skip
        with self.server.lock:
            if new and key in self.server.objects:
                return False
            self.server.objects[key] = (data, marks)
            return True

    def do_DELETE(self) -> None:
        _, key, _ = self.parse()
        with self.server.lock:
            gone = self.server.objects.pop(key, None) is None
        self.fail(404, self.no_key) if gone else self.answer(self.deleted, b"")

    def page(self, asked: dict[str, str], after: str) -> tuple[list[str], str]:
        """The keys of one answer, and where the next one goes on."""
        with self.server.lock:
            keys = sorted(self.server.objects)
        found = [key for key in keys if key.startswith(asked.get("prefix", "")) and key > after]
        return found[:PAGE], found[PAGE - 1] if len(found) > PAGE else ""

    def fail(self, status: int, code: str) -> None:
        self.answer(status, f"<Error><Code>{code}</Code><Message>No.</Message></Error>".encode())

    def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, text in (headers or {}).items():
            self.send_header(name, text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def put_asked(self) -> tuple[str, dict[str, str], bytes] | None:
        """What a PUT says: key, query, body; None after it was told that there is no bucket."""
        bucket, key, asked = self.parse()
        data = self.body()
        if bucket != BUCKET:
            self.fail(404, self.no_bucket)
            return None
        return key, asked, data


class _Google(_Handler):
    meta, deleted, no_bucket, no_key = "x-goog-meta-", 204, "NoSuchBucket", "NoSuchKey"

    def do_PUT(self) -> None:
        if (told := self.put_asked()) is None:
            return
        key, asked, data = told
        if "uploadId" in asked:
            self.server.pieces[asked["uploadId"], f"{int(asked['partNumber']):05}"] = data
            self.answer(200, b"", stamp(data))
            return
        if source := self.headers.get("x-goog-copy-source"):
            name = unquote(source.lstrip("/")).removeprefix(f"{BUCKET}/")
            if name not in self.server.objects:
                self.fail(404, self.no_key)
                return
            data = self.server.objects[name][0]
        new = self.headers.get("x-goog-if-generation-match") == "0"
        if not self.store(key, data, new=new):
            self.fail(412, "PreconditionFailed")
            return
        self.answer(200, b"", stamp(data))

    def do_POST(self) -> None:
        _, key, asked = self.parse()
        self.body()
        if "uploads" in asked:
            text = f"<UploadId>{next(self.server.numbers)}</UploadId>"
            text = f"<InitiateMultipartUploadResult>{text}</InitiateMultipartUploadResult>"
        else:
            mine = sorted(n for id, n in self.server.pieces if id == asked["uploadId"])
            data = b"".join(self.server.pieces.pop((asked["uploadId"], n)) for n in mine)
            self.store(key, data, new=False)
            text = f"<ETag>{stamp(data)['ETag']}</ETag>"
            text = f"<CompleteMultipartUploadResult>{text}</CompleteMultipartUploadResult>"
        self.answer(200, text.encode())

    def listing(self, asked: dict[str, str]) -> str:
        keys, more = self.page(asked, asked.get("continuation-token", ""))
        entries = ""
        for key in keys:
            data = self.server.objects[key][0]
            entries += (
                f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size>"
                f"<ETag>{escape(stamp(data)['ETag'])}</ETag>"
                f"<LastModified>{WRITTEN:%Y-%m-%dT%H:%M:%S.000Z}</LastModified></Contents>"
            )
        if more:
            entries += f"<NextContinuationToken>{escape(more)}</NextContinuationToken>"
        return f"<ListBucketResult>{entries}</ListBucketResult>"


class _Azure(_Handler):
    meta, deleted, no_bucket, no_key = "x-ms-meta-", 202, "ContainerNotFound", "BlobNotFound"

    def do_PUT(self) -> None:
        if (told := self.put_asked()) is None:
            return
        key, asked, data = told
        if asked.get("comp") == "block":
            self.server.pieces[key, asked["blockid"]] = data
            self.answer(201, b"", stamp(data))
            return
        status = 201
        if asked.get("comp") == "blocklist":
            ids = re.findall(r"<Uncommitted>([^<]*)</Uncommitted>", data.decode())
            data = b"".join(self.server.pieces.pop((key, id)) for id in ids)
        elif source := self.headers.get("x-ms-copy-source"):
            name = unquote(urlsplit(source).path).lstrip("/").partition("/")[2]
            if name not in self.server.objects:
                self.fail(404, self.no_key)
                return
            data, status = self.server.objects[name][0], 202
        if not self.store(key, data, new=self.headers.get("If-None-Match") == "*"):
            self.fail(409, "BlobAlreadyExists")
            return
        self.answer(status, b"", stamp(data))

    def do_POST(self) -> None:
        """Delete many at once: one request in each part of the body, one answer for each."""
        answers = ""
        for i, path in enumerate(re.findall(rb"DELETE (\S+) HTTP", self.body())):
            key = unquote(urlsplit(path.decode()).path).lstrip("/").partition("/")[2]
            with self.server.lock:
                gone = self.server.objects.pop(key, None) is None
            status = f"404 {self.no_key}" if gone else "202 Accepted"
            answers += "--answers\r\nContent-Type: application/http\r\n"
            answers += f"Content-ID: {i}\r\n\r\nHTTP/1.1 {status}\r\nx-ms-version: 1\r\n\r\n"
        headers = {"Content-Type": "multipart/mixed; boundary=answers"}
        self.answer(202, f"{answers}--answers--\r\n".encode(), headers)

    def listing(self, asked: dict[str, str]) -> str:
        keys, more = self.page(asked, asked.get("marker", ""))
        entries = ""
        for key in keys:
            data = self.server.objects[key][0]
            found = stamp(data)
            entries += (
                f"<Blob><Name>{escape(key)}</Name><Properties>"
                f"<Last-Modified>{found['Last-Modified']}</Last-Modified>"
                f"<Etag>{escape(found['ETag'])}</Etag><Content-Length>{len(data)}</Content-Length>"
                "<Content-Type>application/octet-stream</Content-Type>"
                "<BlobType>BlockBlob</BlobType></Properties></Blob>"
            )
        page = f"<Blobs>{entries}</Blobs><NextMarker>{escape(more)}</NextMarker>"
        return f"<EnumerationResults>{page}</EnumerationResults>"


def stamp(data: bytes) -> dict[str, str]:
    """The headers that say which version of an object this is."""
    digest = hashlib.md5(data, usedforsecurity=False).hexdigest()
    return {"ETag": f'"{digest}"', "Last-Modified": format_datetime(WRITTEN, usegmt=True)}
