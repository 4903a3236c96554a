"""What lies in an object store gives the same rows and types as a local file."""

import io
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import clouds
import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import servers
from faulty_s3 import faulty_s3
from places import Place, remote

import millpond
from millpond.engine.duckdb import Engine
from millpond.errors import MillpondError, PathNotFound, SchemaMismatch, StorageError
from millpond.storage import (
    FileInfo,
    LocalStorage,
    ObjectStorage,
    RemoteFile,
    RemoteFiles,
    open_file,
)
from millpond.storage.looks import Look, Looks
from millpond.storage.object_client import ObjectClient


@pytest.fixture
def there(juicefs_server: servers.Server) -> Place:
    return remote(juicefs_server)


@pytest.fixture
def session(juicefs_server: servers.Server) -> Iterator[Any]:
    with millpond.init(storage_options=juicefs_server.options(), threads=2) as sp:
        yield sp


WRITE = {
    "parquet": "COPY ({}) TO '{}' (FORMAT parquet, ROW_GROUP_SIZE 2048)",
    "csv": "COPY ({}) TO '{}' (FORMAT csv, HEADER)",
    "csv.gz": "COPY ({}) TO '{}' (FORMAT csv, HEADER, COMPRESSION gzip)",
    "json": "COPY ({}) TO '{}' (FORMAT json)",
}
ROWS = (
    "SELECT i, i::DOUBLE / 3 AS d, 'text ' || i AS t, DATE '2026-01-01' + i::INTEGER AS day, "
    "[i, NULL] AS l, CASE WHEN i % 7 > 0 THEN i::DECIMAL(18,3) END AS m FROM range({}, {}) r(i)"
)


@pytest.mark.slow
@pytest.mark.parametrize("ending", WRITE)
def test_each_format_reads_alike_from_a_store_and_from_this_machine(
    session: Any, there: Place, tmp_path: Path, ending: str
) -> None:
    for part in range(3):
        rows = ROWS.format(part * 10_000, part * 10_000 + 10_000)
        duckdb.execute(WRITE[ending].format(rows, tmp_path / f"{part}.{ending}"))
        there.put(f"d/{part}.{ending}", (tmp_path / f"{part}.{ending}").read_bytes())
    read = getattr(session, f"read_{ending.split('.')[0]}")
    here, remote_ = read(f"{tmp_path}/*.{ending}"), read(there.path(f"d/*.{ending}"))
    assert remote_.schema == here.schema
    query = "SELECT * FROM t WHERE i % 3 = 1 ORDER BY i"
    assert session.sql(query, t=remote_).to_arrow() == session.sql(query, t=here).to_arrow()


@pytest.mark.slow
def test_a_frame_is_written_to_a_store_and_read_back_in_parts(session: Any, there: Place) -> None:
    session.from_arrow(pa.table({"a": range(50_000)})).repartition(4, by_rows=True).write_parquet(
        there.path("out")
    )
    assert len(there.names("out")) == 4
    frame = session.read_parquet(there.path("out")).repartition(3, hash_by="a")
    assert frame.filter("a % 2 = 0").count() == 25_000


def test_a_missing_path_is_named(session: Any, there: Place) -> None:
    with pytest.raises(PathNotFound, match=r"nothing/\*\.parquet"):
        session.read_parquet(there.path("nothing/*.parquet"))


class Counted:
    """A storage that counts the bytes that are read from it."""

    def __init__(self, storage: ObjectStorage) -> None:
        self.storage, self.asked = storage, 0
        self.looks = Looks(self.peek, self.read_same)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.storage, name)

    def read_same(self, info: FileInfo, offset: int, length: int) -> memoryview:
        view = self.storage.read_same(info, offset, length)
        self.asked += len(view)
        return view

    def peek(self, path: str, offset: int, length: int) -> Look:
        look = self.storage.peek(path, offset, length)
        self.asked += len(look.data)
        return look


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    running = Engine(threads=4, memory_limit_bytes=1 << 30, scratch=str(tmp_path))
    yield running
    running.close()


@pytest.mark.slow
def test_only_the_columns_and_row_groups_that_a_query_needs_are_moved(
    there: Place, engine: Engine, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    table = pa.table({f"c{i:02}": rng.integers(0, 1 << 62, 300_000) for i in range(16)})
    table = table.set_column(0, "c00", pa.array(np.arange(300_000)))
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=20_000, use_dictionary=False)
    there.put("a.parquet", (tmp_path / "a.parquet").read_bytes())

    meta = pq.read_metadata(tmp_path / "a.parquet")
    needed = sum(
        meta.row_group(g).column(c).total_compressed_size for g in range(5) for c in (0, 5, 9)
    )
    counted = Counted(there.storage)
    engine.read_through(RemoteFiles(counted, "s3"))  # type: ignore[arg-type]
    query = "SELECT sum(c05), sum(c09), count(*) FROM read_parquet('{}') WHERE c00 < 100000"
    with engine.cursor() as cursor:
        found = cursor.rows(query.format(there.path("a.parquet")))
        assert found == cursor.rows(query.format(tmp_path / "a.parquet"))
    footer = 300_000  # DuckDB reads the end of a file before it knows how long its footer is.
    assert counted.asked - footer <= 1.1 * needed


@pytest.mark.slow
def test_many_threads_read_one_file_each_at_its_own_place(there: Place) -> None:
    data = bytes(range(256)) * 1000
    file = open_file(there.storage, there.put("a.bin", data))
    assert isinstance(file, RemoteFile)
    together = threading.Barrier(8)

    def some(i: int) -> bool:
        good = True
        for k in range(10):
            file.seek(i * 1000 + k * 37)
            together.wait()  # All have moved before any reads.
            good &= file.read(50) == data[i * 1000 + k * 37 :][:50]
        return good

    with ThreadPoolExecutor(8) as threads:
        assert all(threads.map(some, range(8)))


def test_a_file_to_read_behaves_as_pythons_own(there: Place, tmp_path: Path) -> None:
    data = bytes(range(100))
    (tmp_path / "a.bin").write_bytes(data)
    ours = open_file(there.storage, there.put("a.bin", data))
    assert isinstance(ours, RemoteFile)
    with open(tmp_path / "a.bin", "rb") as theirs:
        for file in (ours, theirs):
            assert file.read(10) == data[:10]
            assert file.tell() == 10
            assert file.seek(-5, 2) == 95
            assert file.read() == data[95:]
            assert file.read(3) == b""
            assert file.seek(-20, 1) == 80
            assert file.read(None) == data[80:]
    assert open_file(LocalStorage(), str(tmp_path / "a.bin")) == str(tmp_path / "a.bin")
    with pytest.raises(PathNotFound, match=r"none\.bin"):
        open_file(there.storage, there.path("none.bin"))


def test_a_replaced_object_is_read_anew_even_within_a_second(
    there: Place, engine: Engine, tmp_path: Path
) -> None:
    class Fixed(Counted):
        """A store by whose clock no time passes."""

        def list(self, prefix: str) -> Any:
            return (replace(info, modified_s=1_700_000_000) for info in self.storage.list(prefix))

        def peek(self, path: str, offset: int, length: int) -> Look:
            look = super().peek(path, offset, length)
            return look._replace(info=replace(look.info, modified_s=1_700_000_000))

    engine.read_through(RemoteFiles(Fixed(there.storage), "s3"))  # type: ignore[arg-type]
    for first in (5000, 7000, 8000):
        pq.write_table(pa.table({"a": range(first, first + 1000)}), tmp_path / "a.parquet")
        path = there.put("a.parquet", (tmp_path / "a.parquet").read_bytes())
        with engine.cursor() as cursor:
            rows = cursor.rows(f"SELECT min(a + 0), max(a + 0) FROM read_parquet('{path}')")
        assert rows == [(first, first + 999)]


def test_a_failure_of_the_store_comes_through_the_engine_as_it_is(engine: Engine) -> None:
    with faulty_s3() as server:
        server.objects["a.csv"] = (b"a,b\n" + b"1,2\n" * 1000, {})
        storage = ObjectStorage("s3", server.options(max_retries=0))
        engine.read_through(RemoteFiles(storage, "s3"))
        with engine.cursor() as cursor:
            assert cursor.rows("SELECT count(*) FROM 's3://bucket/a.csv'") == [(1000,)]
            server.faults = ["403"] * 20
            with pytest.raises(StorageError, match=r"s3://bucket/b\.csv.*403 Forbidden") as caught:
                cursor.rows("SELECT count(*) FROM read_csv('s3://bucket/b.csv')")
            assert "the-session-token" not in str(caught.value)
            server.faults = []
            with pytest.raises(MillpondError, match=r"b\.csv"):
                cursor.rows("SELECT count(*) FROM read_csv('s3://bucket/b.csv')")


def test_files_of_a_list_cost_no_listing_each(gs_cloud: Any, tmp_path: Path) -> None:
    pq.write_table(pa.table({"i": [1]}), tmp_path / "one")
    for i in range(30):
        gs_cloud.objects[f"many/{i:02}.parquet"] = ((tmp_path / "one").read_bytes(), {})
    with (
        pytest.MonkeyPatch.context() as patch,
        millpond.init(storage_options=gs_cloud.options(), threads=2, progress=False) as sp,
    ):
        listed, below = [], ObjectClient.below
        patch.setattr(ObjectClient, "below", lambda *at: listed.append(at) or below(*at))
        assert sp.read_parquet("gs://contract/many/*.parquet").count() == 30
    assert len(listed) <= 3


class Requests:
    """A store of many small Parquet files, and how many requests it answered since `clear`."""

    def __init__(self, cloud: clouds.Clouds, n: int, patch: pytest.MonkeyPatch) -> None:
        self.cloud, self.n, self.count = cloud, n, 0
        for i in range(n):
            self.put(i, pa.table({"i": [i], "t": [f"row {i}"]}))
        handler: Any = cloud.RequestHandlerClass
        parse = handler.parse

        def counted(request: Any) -> Any:
            found = parse(request)
            with cloud.lock:
                self.count += 1
            return found

        patch.setattr(handler, "parse", counted)

    def put(self, i: int, table: pa.Table, **how: Any) -> None:
        made = io.BytesIO()
        pq.write_table(table, made, **how)
        self.cloud.objects[f"many/{i:05}.parquet"] = (made.getvalue(), {})

    def of(self, work: Callable[[], Any]) -> int:
        self.count = 0
        work()
        return self.count


@pytest.fixture
def requests_of(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Requests]]:
    with clouds.clouds("gs") as cloud:
        monkeypatch.setattr(clouds, "PAGE", 1000)
        yield lambda n: Requests(cloud, n, monkeypatch)


MANY = "gs://contract/many/*.parquet"


@pytest.mark.slow
@pytest.mark.parametrize("n", [150, pytest.param(10_000, marks=pytest.mark.full)])
def test_each_of_many_small_files_costs_one_request_a_run(
    requests_of: Callable[[int], Requests], n: int
) -> None:
    store = requests_of(n)
    with millpond.init(storage_options=store.cloud.options(), threads=2, progress=False) as sp:
        frames = []
        at_the_call = store.of(lambda: frames.append(sp.read_parquet(MANY)))
        # Up to 1,000 files all footers are looked at; a listing has pages of 1,000.
        assert at_the_call <= (n if n <= 1000 else 1) + n // 1000 + 4
        (df,) = frames
        runs: dict[str, Callable[[], Any]] = {
            "count": lambda: df.count() == n,
            "collect": lambda: sorted(df.to_arrow()["i"].to_pylist()) == list(range(n)),
            "sort": lambda: df.sort("i DESC").to_arrow()["i"].to_pylist() == [*range(n)][::-1],
            "groups": lambda: len(df.group_by("t").agg("count(*) AS n").take_all()) == n,
            "staged": lambda: df.repartition(3, hash_by="i").count() == n,
        }
        for name, work in runs.items():
            right: list[bool] = []
            asked = store.of(lambda: right.append(work()))  # noqa: B023
            assert (right, asked <= n + 10) == ([True], True), (name, asked)
        written = sp.read_parquet(MANY)
        beside = store.of(lambda: written.write_parquet("gs://contract/out", mode="overwrite"))
        assert beside <= n + 60
        assert sp.read_parquet("gs://contract/out").count() == n


@pytest.mark.slow
def test_row_counts_of_many_files_are_asked_for_together(
    requests_of: Callable[[int], Requests],
) -> None:
    store = requests_of(120)
    with millpond.init(storage_options=store.cloud.options(), threads=2, progress=False) as sp:
        df = sp.read_parquet(MANY).repartition(5, by_rows=True)
        plan = store.of(lambda: df.explain(physical=True))
        assert plan <= 120 + 5
        assert df.count() == 120


def test_a_file_of_other_columns_is_named_among_many_of_a_store(
    requests_of: Callable[[int], Requests],
) -> None:
    store = requests_of(40)
    store.put(33, pa.table({"i": [1.5]}))
    with (
        millpond.init(storage_options=store.cloud.options(), progress=False) as sp,
        pytest.raises(SchemaMismatch, match=r"00033\.parquet lacks t VARCHAR and has other"),
    ):
        sp.read_parquet(MANY)


def test_a_file_that_vanishes_after_the_listing_is_named(
    requests_of: Callable[[int], Requests],
) -> None:
    store = requests_of(20)
    with millpond.init(storage_options=store.cloud.options(), progress=False) as sp:
        df = sp.read_parquet(MANY)
        del store.cloud.objects["many/00013.parquet"]
        with pytest.raises(MillpondError, match=r"gs://contract/many/00013\.parquet"):
            df.count()


def test_a_file_that_was_replaced_between_call_and_run_is_read_as_it_is(
    requests_of: Callable[[int], Requests],
) -> None:
    store = requests_of(20)
    with millpond.init(storage_options=store.cloud.options(), progress=False) as sp:
        df = sp.read_parquet(MANY)
        store.put(7, pa.table({"i": range(100, 50_000), "t": ["x" * 20] * 49_900}))
        assert df.count() == 19 + 49_900
        store.put(7, pa.table({"i": [7], "t": ["short"]}))
        assert df.count() == 20


def test_a_file_replaced_after_its_footer_was_read_is_an_error_and_never_a_mixture(
    requests_of: Callable[[int], Requests],
) -> None:
    store = requests_of(1)
    of = [
        pa.table({"i": pa.array(np.arange(100_000) * 2 + odd), "t": ["x"] * 100_000})
        for odd in (0, 1)
    ]
    plain = {"compression": "none", "use_dictionary": False}
    store.put(0, of[0], **plain)
    storage = ObjectStorage("gs", store.cloud.options())
    file = open_file(storage, "gs://contract/many/00000.parquet")
    assert pq.read_metadata(file).num_rows == 100_000
    before = len(store.cloud.objects["many/00000.parquet"][0])
    store.put(0, of[1], **plain)
    assert len(store.cloud.objects["many/00000.parquet"][0]) == before  # Nothing else tells.
    with pytest.raises(StorageError, match=r"00000\.parquet: it was replaced"):
        pq.read_table(file)
    assert isinstance(file, RemoteFile)
    store.put(0, pa.table({"i": [1]}))
    file.seek(0)
    with pytest.raises(StorageError, match=r"00000\.parquet: it was replaced"):
        file.read()
