"""The KubeRay manifest of the how-to page is whole, and as the page says."""

import tomllib
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).parents[2] / "docs" / "how-to"


@pytest.fixture(scope="module")
def spec() -> Any:
    yaml = pytest.importorskip("yaml")
    manifest = yaml.safe_load((FOLDER / "kuberay.yaml").read_text())
    assert (manifest["apiVersion"], manifest["kind"]) == ("ray.io/v1", "RayCluster")
    return manifest["spec"]


def groups(spec: Any) -> list[Any]:
    return [spec["headGroupSpec"], *spec["workerGroupSpecs"]]


def test_the_cluster_has_a_token(spec: Any) -> None:
    assert spec["authOptions"] == {"mode": "token"}


def test_its_ray_is_one_that_we_run_on_and_that_has_tokens(spec: Any) -> None:
    """KubeRay makes the token only where it is told a version of Ray that takes one: 2.52."""
    wanted = tomllib.loads((FOLDER.parents[1] / "pyproject.toml").read_text())
    (least,) = wanted["project"]["optional-dependencies"]["ray"]
    given, least = (
        tuple(map(int, text.split(".")[:2]))
        for text in (spec["rayVersion"], least.removeprefix("ray>="))
    )
    assert given >= least >= (2, 52)


def test_nodes_may_come_and_go_within_bounds(spec: Any) -> None:
    (workers,) = spec["workerGroupSpecs"]
    assert 1 <= workers["minReplicas"] <= workers["replicas"] <= workers["maxReplicas"]


def test_the_head_takes_no_tasks(spec: Any) -> None:
    assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


def test_every_node_mounts_what_it_declares_and_has_scratch(spec: Any) -> None:
    for group in groups(spec):
        pod = group["template"]["spec"]
        (container,) = pod["containers"]
        mounted = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
        assert set(mounted) == {volume["name"] for volume in pod["volumes"]}
        assert mounted["scratch"] == "/tmp"
        assert container["resources"]["limits"] == container["resources"]["requests"]


def test_the_images_are_one(spec: Any) -> None:
    """Versions must agree on all nodes."""
    images = {group["template"]["spec"]["containers"][0]["image"] for group in groups(spec)}
    assert len(images) == 1
