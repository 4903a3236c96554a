"""Keys with odd characters work, and are shown and stored nowhere."""

import base64
import html
import json
import os
import subprocess
import sys
from pathlib import Path
from urllib.parse import quote

import pytest
import servers
from places import remote

from millpond.storage.object_errors import Secrets

# What text may hold that goes through addresses, JSON, XML, SQL and a command line.
ODD = "/+%41=\"'<&>{0}\\n$(x)`;#?@:,"
SECRET = f"the-secret{ODD}é\n\tend"
TOKEN = f"the-token{ODD}end"

PROGRAM = """
import json, logging, os, sys, traceback
logging.basicConfig(level=logging.DEBUG)
import millpond
options, root, out = json.loads(sys.stdin.read()), sys.argv[1], sys.argv[2]

def seen(row):
    texts = [open(f"/proc/{who}/{what}").read() for who in ("self", os.getppid())
             for what in ("cmdline", "environ")]
    return {"a": row["a"], "seen": "".join(texts)}

def shown(work):
    try:
        print(work())
    except millpond.MillpondError:
        traceback.print_exc()

with millpond.init(storage_options=options, data_root=root, threads=2) as sp:
    frame = sp.from_items([{"a": i, "k": f"x{i % 2}"} for i in range(40)])
    frame.write_parquet(f"{out}/plain", partition_by="k")
    frame.write_delta(f"{out}/delta")
    back = sp.read_parquet(f"{out}/plain").repartition(3, hash_by="a").map(seen)
    back.write_json(f"{out}/seen")
    for what in (sp, sp.options if hasattr(sp, "options") else sp, back, frame):
        print(repr(what), str(what), vars(what) if hasattr(what, "__dict__") else "")
    for how in ({}, {"optimized": False}, {"physical": True}, {"analyze": True}):
        print(back.explain(**how))
    shown(lambda: sp.read_parquet("s3://nobody/here"))
    shown(lambda: sp.read_parquet(f"{out}/none"))
    shown(lambda: sp.read_delta(f"{out}/none"))
    shown(lambda: sp.read_csv(f"{out}/plain").count())
    shown(lambda: frame.write_parquet(f"{out}/plain"))
    shown(lambda: back.map(lambda row: 1 / 0).take_all())
for name in ("endpoint", "region", "allow_http", "session_token", "secret_access_key"):
    given = millpond.init(storage_options={**options, name: object()}, name=f"bad {name}")
    shown(lambda given=given: given.read_parquet(f"{out}/plain"))
print(millpond.gc(root, storage_options=options, older_than=-60))
"""


def forms(secret: str) -> set[str]:
    """Ways in which a text may hold a secret."""
    return {
        secret,
        repr(secret)[1:-1],
        json.dumps(secret)[1:-1],
        html.escape(secret),
        quote(secret),
        quote(secret, safe=""),
        base64.b64encode(secret.encode()).decode(),
        secret.split("/")[0],  # Its beginning alone would be bad enough.
    }


@pytest.mark.slow
@pytest.mark.parametrize("place", ["here", "there"])
def test_odd_secrets_show_nowhere(moto_server: servers.Server, tmp_path: Path, place: str) -> None:
    there = remote(moto_server)
    root = there.path("root") if place == "there" else str(tmp_path / "root")
    options = moto_server.options(secret_access_key=SECRET, session_token=TOKEN)
    (tmp_path / "tmp").mkdir()
    (tmp_path / "program.py").write_text(PROGRAM)
    environ = {**os.environ, "TMPDIR": str(tmp_path / "tmp")}
    ran = subprocess.run(
        [sys.executable, str(tmp_path / "program.py"), root, there.root],
        input=json.dumps(options),  # Neither arguments nor environment: those are looked at.
        env=environ,
        capture_output=True,
        text=True,
        timeout=120,
    )
    said = ran.stdout + ran.stderr
    assert ran.returncode == 0, said
    for proof in ("NoSuchBucket", "already holds files", "TaskError", "DataSource", "OptionError"):
        assert proof in said, said
    cleared = subprocess.run(
        [sys.executable, "-m", "millpond", "gc", "s3://nobody/root"],
        env={**environ, "AWS_SECRET_ACCESS_KEY": SECRET, "AWS_SESSION_TOKEN": TOKEN,
             "AWS_ACCESS_KEY_ID": "A", "AWS_ENDPOINT_URL": moto_server.endpoint,
             "AWS_ALLOW_HTTP": "true", "AWS_REGION": "us-east-1"},
        capture_output=True,
        text=True,
        timeout=60,
    )  # fmt: skip
    assert cleared.returncode == 1
    said += cleared.stdout + cleared.stderr
    kept = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    # All keys, hidden ones too: by the vendor's own client.
    client = moto_server.client()
    prefix = there.root.removeprefix(f"s3://{moto_server.bucket}/")
    listed = client.list_objects_v2(Bucket=moto_server.bucket, Prefix=prefix)["Contents"]
    for one in listed:
        body = client.get_object(Bucket=moto_server.bucket, Key=one["Key"])["Body"]
        kept += [one["Key"].encode(), body.read()]
    assert any(b'"seen"' in data for data in kept)  # Command lines and environments are there.
    assert len(kept) > 20
    for secret in forms(SECRET) | forms(TOKEN):
        assert secret not in said
        assert not [data for data in kept if secret.encode() in data]


def test_texts_of_others_are_struck_in_every_form() -> None:
    given = {"secret_access_key": SECRET, "sas_key": "sv=2024&sig=ab%2Fcd%2Be%3D", "region": "here"}
    secrets = Secrets(given, {"AWS_SESSION_TOKEN": TOKEN})
    for secret in (SECRET, TOKEN):
        for form in (
            secret,
            quote(secret),
            quote(secret, safe=""),
            json.dumps(secret),
            repr(secret),
        ):
            assert "the-" not in secrets.strike(f"for url (http://here/?x={form}&y=1)")
    assert "ab" not in secrets.strike("error for url (http://here/b?sig=ab%2Fcd%2Be%3D&sv=2024)")
    assert secrets.strike("here") == "here"
    assert "the-" not in repr(secrets)
