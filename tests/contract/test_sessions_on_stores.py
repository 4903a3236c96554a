"""Whole sessions whose inputs, outputs and data roots lie in object stores."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import servers
from places import Place, remote

import millpond
from millpond.errors import NotAtomic, TargetNotEmpty
from millpond.events import TaskStarted


@pytest.fixture(params=["juicefs_server", "moto_server", "ceph_server"])
def server(request: pytest.FixtureRequest) -> servers.Server:
    found: servers.Server = request.getfixturevalue(request.param)
    return found


@pytest.fixture
def there(server: servers.Server) -> Place:
    return remote(server)


def items(n: int, add: int = 0) -> list[dict[str, int]]:
    return [{"a": i + add} for i in range(n)]


@pytest.mark.slow
@pytest.mark.parametrize("data_root", [None, "here", "there"])
def test_outputs_are_refused_replaced_and_added_to(
    server: servers.Server, there: Place, tmp_path: Path, data_root: str | None
) -> None:
    root = {"here": str(tmp_path), "there": there.path("root"), None: None}[data_root]
    out = there.path("out")
    with millpond.init(storage_options=server.options(), data_root=root) as sp:
        sp.from_items(items(10)).write_parquet(out)
        assert sp.read_parquet(out).count() == 10
        with pytest.raises(TargetNotEmpty, match="already holds files"):
            sp.from_items(items(7, 1)).write_parquet(out)
        sp.from_items(items(5, 100)).write_parquet(out, mode="overwrite")
        assert sp.read_parquet(out).sort("a").take(1) == [{"a": 100}]
        more = sp.from_items(items(4))
        if there.atomic:
            more.write_parquet(out, mode="append")
        else:
            with pytest.raises(NotAtomic, match="ignores conditional writes"):
                more.write_parquet(out, mode="append")
            more.union(sp.read_parquet(out)).write_parquet(out, mode="overwrite")
        assert sp.read_parquet(out).count() == 9
        spread = sp.read_parquet(out).repartition(3, hash_by="a")
        assert spread.filter("a < 100").count() == 4
    assert all(name.startswith("part-") for name in there.names("out") if "/" not in name)
    assert not there.names("out/.millpond-staged")


@pytest.mark.slow
def test_a_rerun_on_a_data_root_in_a_store_finds_the_output_complete(
    server: servers.Server, there: Place, tmp_path: Path
) -> None:
    started: list[Any] = []
    rows = [{"a": i} for i in range(100)]
    for _ in range(2):
        with millpond.init(
            storage_options=server.options(), data_root=there.path("root"), shape="staged"
        ) as sp:
            sp.listen(lambda event: started.append(event))
            written = sp.from_items(rows).write_parquet(there.path("out"), mode="overwrite")
            assert written.rows == 100
            started.append("end")
    ran = [type(event) is TaskStarted for event in started]
    first = started.index("end")
    assert any(ran[:first])
    assert not any(ran[first:])


@pytest.mark.slow
def test_a_data_root_in_a_store_is_cleared_and_who_lives_is_spared(
    server: servers.Server, there: Place
) -> None:
    options, root = server.options(), there.path("root")
    given: dict[str, Any] = {"storage_options": options, "data_root": root, "shape": "staged"}
    with millpond.init(**given) as sp:
        sp.from_items(items(10)).write_parquet(there.path("out.parquet"))
        assert there.names("root/sessions")
        assert "session files" not in millpond.gc(root, storage_options=options).kinds
        assert there.names("root/sessions")
    assert there.names("root/sessions") == []
    told = millpond.gc(root, older_than=-60, storage_options=options, dry_run=True)
    assert {"receipts", "events"} <= set(told.kinds)
    assert millpond.gc(root, older_than=-60, storage_options=options).kinds == told.kinds
    assert there.names("root") == []
    assert there.names("out.parquet")


@pytest.mark.slow
def test_a_training_set_is_written_to_a_store_and_read_from_it(
    server: servers.Server, there: Place
) -> None:
    options = server.options()
    with millpond.init(storage_options=options) as sp:
        sp.from_items(items(100)).random_shuffle(seed=1).write_dataset(there.path("set"))
    ds = millpond.open_dataset(there.path("set"), storage_options=options)
    batches = list(ds.loader(batch_size=30, shuffle="global", seed=3))
    assert sorted(int(a) for batch in batches for a in batch["a"]) == list(range(100))


RANK = """
import json, sys
import millpond
path, options, cache, rank, limit = sys.argv[1:]
ds = millpond.open_dataset(path, json.loads(options), cache=cache, cache_bytes=int(limit))
loader = ds.loader(7, shuffle="global", seed=3, rank=int(rank), world=2)
steps = iter(loader)
rows = [next(steps)["a"].tolist() for _ in range(5)]
print(json.dumps({"rows": rows, "state": loader.state_dict()}))
"""


@pytest.mark.slow
def test_two_processes_of_a_node_share_a_cache_and_a_third_goes_on_alone(
    server: servers.Server, there: Place, tmp_path: Path
) -> None:
    options, path, cache = server.options(), there.path("set"), tmp_path / "cache"
    with millpond.init(storage_options=options) as sp:
        made = sp.from_items(items(200)).write_dataset(path, rows_per_shard=50)
    limit = made.bytes * 3 // 5  # Two of the four shards.
    command = [sys.executable, "-c", RANK, path, json.dumps(options), str(cache)]
    ranks = [
        subprocess.Popen([*command, str(rank), str(limit)], stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    told = [json.loads(rank.communicate()[0]) for rank in ranks]
    steps = zip(*(one["rows"] for one in told), strict=True)
    seen = [row for step in steps for rows in step for row in rows]

    kept = [file.stat().st_size for file in cache.iterdir() if file.name != "lock"]
    assert 0 < sum(kept) <= limit
    ds = millpond.open_dataset(path, options, cache=str(cache), cache_bytes=limit)
    loader = ds.loader(11, shuffle="global", seed=3)
    alone = [int(row) for batch in loader for row in batch["a"]]
    assert sorted(alone) == list(range(200))
    loader.load_state_dict(told[0]["state"])
    assert seen + [int(row) for batch in loader for row in batch["a"]] == alone


def quick_start() -> str:
    """The first program of the README, which reads and writes what paths it names."""
    text = (Path(__file__).parents[2] / "README.md").read_text()
    return text.split("<!-- tested: README -->\n```python\n")[1].split("```")[0]


@pytest.mark.slow
def test_the_quick_start_of_the_readme_runs_with_s3_paths(
    juicefs_server: servers.Server, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """Keys and endpoint come from the environment, as the vendors' tools want it."""
    place = remote(juicefs_server)
    for name, text in {
        "AWS_ACCESS_KEY_ID": servers.USER,
        "AWS_SECRET_ACCESS_KEY": servers.PASSWORD,
        "AWS_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": juicefs_server.endpoint,
        "AWS_ALLOW_HTTP": "true",
    }.items():
        monkeypatch.setenv(name, text)
    flights = [
        {
            "dep_delay": "NA" if i % 7 == 0 else str(i % 60), "arr_delay": str(i % 45),
            "tailnum": f"N{i % 20}", "year": 2013, "month": 1 + i % 12, "day": 1,
            "sched_dep_time": i, "flight": i,
        }
        for i in range(3000)
    ]  # fmt: skip
    with millpond.init() as sp:
        sp.from_items(flights).repartition(3).write_parquet(place.path("flights"))
    program = quick_start().replace("demo-output/input/flights", place.path("flights"))
    assert "s3://" in program
    exec(program, {})
    assert "late_before" in capsys.readouterr().out


def test_a_killed_write_is_not_read_and_is_cleared(server: servers.Server, there: Place) -> None:
    with millpond.init(storage_options=server.options()) as sp:
        sp.from_items(items(10)).write_parquet(there.path("out"))
        there.put("out/part-00000.mp-0123456789abcdef.parquet", b"of a write that was killed")
        with pytest.warns(UserWarning, match="1 files beside those that were committed") as told:
            assert sp.read_parquet(there.path("out")).count() == 10
        assert told[0].filename == __file__  # The user's line, not one of ours.
        young = millpond.gc(there.path("out"), storage_options=server.options())
        swept = millpond.gc(there.path("out"), older_than=-60, storage_options=server.options())
        assert (young.files, swept.kinds) == (0, {"files of no manifest": (1, 26)})
        assert sp.read_parquet(there.path("out")).count() == 10


KILLED = """
import json, os, signal, sys
import millpond
from millpond import events
from millpond.storage import ObjectStorage

options, root, out, kind, k = json.loads(sys.argv[1])
finished = seen = 0

def die(*_):
    global seen
    seen += 1
    if seen == k:
        os.kill(os.getpid(), signal.SIGKILL)

def hear(event):
    global finished
    finished += isinstance(event, events.TaskFinished)
    if kind == type(event).__name__:
        die()

if kind == "copy":
    copy = ObjectStorage._copy
    def copy_or_die(self, staged):
        if staged.path.endswith(".parquet"):
            die()
        copy(self, staged)
    ObjectStorage._copy = copy_or_die

with millpond.init(storage_options=options, data_root=root, shape="staged", threads=2) as sp:
    sp.listen(hear)
    rows = sp.from_items([{"a": i} for i in range(1000)]).repartition(4, hash_by="a")
    rows.write_parquet(out)
print(finished)
"""


def run_killed(
    server: servers.Server, there: Place, kind: str, k: int
) -> subprocess.CompletedProcess[str]:
    given = [server.options(), there.path("root"), there.path("out"), kind, k]
    command = [sys.executable, "-c", KILLED, json.dumps(given)]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "k", "again"),
    [("StageFinished", 1, 4), ("RunFinished", 1, 0), ("copy", 3, 0), ("Published", 1, 0)],
)
def test_a_write_that_was_killed_between_upload_and_commit_uploads_nothing_twice(
    server: servers.Server, there: Place, kind: str, k: int, again: int
) -> None:
    assert run_killed(server, there, kind, k).returncode == -signal.SIGKILL
    ended = run_killed(server, there, "", 0)
    assert ended.returncode == 0
    assert int(ended.stdout) == again
    with millpond.init(storage_options=server.options()) as sp:
        rows = sp.read_parquet(there.path("out")).take_all()
    assert sorted(row["a"] for row in rows) == list(range(1000))
    assert there.names("out/.millpond-staged") == []
    assert len(there.names("out")) == 4


@pytest.mark.slow
def test_an_upload_whose_bytes_are_others_is_written_again(
    server: servers.Server, there: Place
) -> None:
    """Its name and its size are right, as after a torn or a forged upload; its checksum is not."""
    assert run_killed(server, there, "RunFinished", 1).returncode == -signal.SIGKILL
    client, prefix = server.client(), there.root.removeprefix(f"s3://{server.bucket}/")
    listed = client.list_objects_v2(Bucket=server.bucket, Prefix=f"{prefix}/out/")["Contents"]
    staged = [one for one in listed if one["Key"].endswith(".parquet") or "part-" in one["Key"]]
    assert len(staged) == 4
    client.put_object(Bucket=server.bucket, Key=staged[1]["Key"], Body=bytes(staged[1]["Size"]))
    ended = run_killed(server, there, "", 0)
    assert ended.returncode == 0
    assert 1 <= int(ended.stdout) <= 4  # Those whose uploads are sound are not run again.
    with millpond.init(storage_options=server.options()) as sp:
        rows = sp.read_parquet(there.path("out")).take_all()
    assert sorted(row["a"] for row in rows) == list(range(1000))
    assert there.names("out/.millpond-staged") == []
