"""Where a pod finds the bundle and the server's image."""

from __future__ import annotations

import pytest
from made_up_bundle import deployment

from deployer.errors import PlanError
from deployer.exporting import places


def test_a_pushed_image_is_mounted_with_the_bundle_in_its_folder() -> None:
    found = places.place(deployment(options={"model": "oci://registry:5000/team/demo:1"}))
    assert found.folder == "/bundle/models"
    assert found.volume and found.volume.image
    assert found.volume.image.reference == "registry:5000/team/demo:1"
    assert found.mount and found.mount.read_only and found.mount.mount_path == "/bundle"


@pytest.mark.parametrize(
    ("model", "sub_path"), [("pvc://models", None), ("pvc://models/team/demo/", "team/demo")]
)
def test_a_claim_is_mounted_read_only_at_its_path(model: str, sub_path: str | None) -> None:
    found = places.place(deployment(options={"model": model}))
    assert found.folder == "/bundle"
    assert found.volume and found.volume.persistent_volume_claim
    assert found.volume.persistent_volume_claim.claim_name == "models"
    assert found.volume.persistent_volume_claim.read_only
    assert found.mount and found.mount.read_only and found.mount.sub_path == sub_path


def test_an_image_named_alone_has_the_bundle_in_it() -> None:
    found = places.place(deployment(options={"image": "team/demo:1"}))
    assert (found.folder, found.volume, found.mount) == ("/models", None, None)


@pytest.mark.parametrize(
    "model",
    [
        None, "/srv/bundle", "hf://team/demo", "oci://", "oci://UPPER/case", "oci://a b", "pvc://",
        "pvc://Models", "pvc://models/../etc", "pvc://models/a b", "pvc:///x",
    ],
)  # fmt: skip
def test_what_no_pod_can_find_is_refused(model: str | None) -> None:
    with pytest.raises(PlanError) as caught:
        places.place(deployment(options={"model": model}))
    assert caught.value.hint


def test_the_image_is_the_one_asked_for_then_the_public_one() -> None:
    asked = deployment(options={"image": "team/server:1"})
    assert places.image(asked, "vllm/vllm-openai:v1") == "team/server:1"
    assert places.image(deployment(), "vllm/vllm-openai:v1") == "vllm/vllm-openai:v1"
    with pytest.raises(PlanError, match="no public image"):
        places.image(deployment(), None)


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "a" * 64, "a.b"])
def test_names_that_a_cluster_refuses(name: str) -> None:
    with pytest.raises(PlanError):
        places.checked_name(name, "a secret")
