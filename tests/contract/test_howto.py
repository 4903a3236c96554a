"""The examples of the how-to pages on storage run."""

import re
from pathlib import Path

import clouds
import pytest
import servers
from faulty_s3 import faulty_s3

import millpond

PAGES = Path(__file__).parents[2] / "docs/how-to"
BLOCK = re.compile(r"```python\n(.*?)```", re.DOTALL)


def run(page: str, **names: object) -> int:
    """Run the Python blocks of a page one after the other, as one program."""
    blocks = BLOCK.findall((PAGES / page).read_text())
    exec("\n".join(blocks), names)
    return len(blocks)


@pytest.mark.parametrize(
    "page", ["shared-file-systems.md", "3fs.md", "tables.md", "delta.md", "iceberg.md"]
)
def test_the_examples_about_file_systems_and_tables_run(page: str, tmp_path: Path) -> None:
    assert run(page, folder=str(tmp_path)) == 1


def test_the_examples_about_s3_run(moto_server: servers.Server) -> None:
    assert run("object-stores.md", endpoint=moto_server.endpoint) == 2
    assert run("s3.md", endpoint=moto_server.endpoint) == 1


def test_the_example_about_google_runs(
    gs_cloud: clouds.Clouds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")  # The fake has no https://, which the page has.
    assert run("gcs.md", key=gs_cloud.options()["service_account_key"]) == 1


def test_the_example_about_azure_runs(az_cloud: clouds.Clouds) -> None:
    given = az_cloud.options()
    names = {"account": given["account_name"], "key": given["account_key"]}
    assert run("azure.md", endpoint=given["endpoint"], **names) == 1


def test_the_example_about_web_servers_runs(tmp_path: Path) -> None:
    with millpond.init() as sp:
        for i, (city, km) in enumerate([("Oslo", 3), ("Rome", 5)]):
            out = f"{tmp_path}/trips-{i}"
            sp.from_items([{"city": city, "km": km}]).write_parquet(out)
    with faulty_s3() as server:
        for i in range(2):
            (file,) = (tmp_path / f"trips-{i}").glob("*.parquet")
            server.objects[f"trips-{i}.parquet"] = (file.read_bytes(), {})
        assert run("http.md", address=f"http://127.0.0.1:{server.server_port}/bucket") == 1


def test_every_store_has_a_page_and_every_page_is_linked() -> None:
    pages = {page.name for page in PAGES.glob("*.md")}
    stores = {"s3.md", "gcs.md", "azure.md", "http.md", "3fs.md", "shared-file-systems.md"}
    assert stores | {"delta.md", "iceberg.md"} <= pages
    texts = [page.read_text() for page in (*PAGES.glob("*.md"), PAGES.parents[1] / "README.md")]
    links = {
        link for text in texts for link in re.findall(r"\]\((?:docs/how-to/)?([\w.-]+\.md)", text)
    }
    assert pages <= links
