"""`shipping/oci.py`: the layout on disk, its layers, and the same image for the same bundle."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import made_up_bundle
import pytest

from deployer.artifacts import FOLDER, MANIFEST, SIGNATURE, Bundle, list_files
from deployer.errors import StoreError
from deployer.progress import SILENT
from deployer.shipping import oci, plain

FILES = {
    "model.gguf": b"G" * 3000,
    "LICENSE": b"do as you please\n",
    "README.md": b"",
    "deep/er/notes.txt": "größer\n".encode(),
}


def make(root: Path, files: dict[str, bytes] | None = None, **changes: Any) -> Bundle:
    """A bundle of these files on disk; `changes` are fields of its manifest."""
    for name, content in (FILES if files is None else files).items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    manifest = made_up_bundle.manifest(files=list_files(root), **changes)
    (root / MANIFEST).write_text(manifest.text(), encoding="utf-8")
    return Bundle(root, manifest)


def document(layout: Path, digest: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((layout / "blobs" / digest.replace(":", "/")).read_bytes())
    return found


def image(layout: Path) -> dict[str, Any]:
    """The image's manifest, found as a tool finds it."""
    (named,) = json.loads((layout / "index.json").read_bytes())["manifests"]
    return document(layout, named["digest"])


def layers(layout: Path) -> list[tarfile.TarFile]:
    return [
        tarfile.open(layout / "blobs" / layer["digest"].replace(":", "/"), "r:")
        for layer in image(layout)["layers"]
    ]


def unpacked(layout: Path) -> dict[str, bytes]:
    """Every file of the image, a later layer over an earlier one."""
    found: dict[str, bytes] = {}
    for layer in layers(layout):
        with layer:
            for member in layer.getmembers():
                if (stream := layer.extractfile(member)) is not None:
                    found[member.name] = stream.read()
    return found


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    return make(tmp_path / "bundle")


def test_every_blob_is_named_by_its_digest_and_described_with_its_size(
    bundle: Bundle, tmp_path: Path
) -> None:
    written = oci.write(bundle, tmp_path / "layout", SILENT)
    layout = tmp_path / "layout"
    assert json.loads((layout / "oci-layout").read_bytes()) == {"imageLayoutVersion": "1.0.0"}
    (named,) = json.loads((layout / "index.json").read_bytes())["manifests"]
    assert named["digest"] == written.digest
    assert named["annotations"] == {"org.opencontainers.image.ref.name": written.tag}
    assert written.tag == bundle.manifest.digest[:12]
    described = {
        each["digest"]: each["size"]
        for each in (named, image(layout)["config"], *image(layout)["layers"])
    }
    blobs = list((layout / "blobs" / "sha256").iterdir())
    assert {f"sha256:{path.name}": path.stat().st_size for path in blobs} == described
    assert sum(described.values()) == written.bytes
    for path in blobs:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == path.name


def test_the_configuration_names_the_layers_as_they_are(bundle: Bundle, tmp_path: Path) -> None:
    oci.write(bundle, tmp_path / "layout", SILENT)
    made = image(tmp_path / "layout")
    config = document(tmp_path / "layout", made["config"]["digest"])
    assert config["rootfs"]["diff_ids"] == [layer["digest"] for layer in made["layers"]]
    assert len(config["history"]) == len(made["layers"]) == 2
    assert (config["os"], config["architecture"]) == ("linux", "amd64")


def test_the_image_holds_the_bundle_and_nothing_else(bundle: Bundle, tmp_path: Path) -> None:
    (bundle.root / SIGNATURE).write_bytes(b"signed")
    (bundle.root / "left-over.log").write_bytes(b"not of the bundle")
    oci.write(bundle, tmp_path / "layout", SILENT)
    expected = {f"models/{name}": content for name, content in FILES.items()}
    expected[f"models/{MANIFEST}"] = bundle.manifest.text().encode()
    expected[f"models/{SIGNATURE}"] = b"signed"
    assert unpacked(tmp_path / "layout") == expected


def test_weights_are_a_layer_of_their_own_that_other_bundles_share(tmp_path: Path) -> None:
    oci.write(make(tmp_path / "one"), tmp_path / "a", SILENT)
    oci.write(make(tmp_path / "two", {**FILES, "LICENSE": b"other"}), tmp_path / "b", SILENT)
    first, second = (
        [layer["digest"] for layer in image(tmp_path / name)["layers"]] for name in "ab"
    )
    assert first[0] == second[0]
    assert first[1] != second[1]


def test_members_tell_nothing_of_the_machine(bundle: Bundle, tmp_path: Path) -> None:
    oci.write(bundle, tmp_path / "layout", SILENT)
    for layer in layers(tmp_path / "layout"):
        with layer:
            members = layer.getmembers()
        assert members[0].name == "models"
        assert members[0].isdir()
        for member in members:
            assert (member.mtime, member.uid, member.gid, member.uname) == (0, 0, 0, "")
            assert member.mode == (0o755 if member.isdir() else 0o644)
        names = [member.name for member in members]
        folders = {str(Path(name).parent) for name in names if name != "models"}
        assert folders <= set(names)  # no folder is left to the tool that unpacks


def test_the_same_bundle_gives_the_same_image(bundle: Bundle, tmp_path: Path) -> None:
    first = oci.write(bundle, tmp_path / "first", SILENT)
    copy = shutil.copytree(bundle.root, tmp_path / "copy")
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    second = oci.write(Bundle(copy, bundle.manifest), tmp_path / "second", SILENT)
    assert second == first
    for path in sorted((tmp_path / "first").rglob("*")):
        twin = tmp_path / "second" / path.relative_to(tmp_path / "first")
        assert twin.is_dir() if path.is_dir() else twin.read_bytes() == path.read_bytes()


def test_many_files_of_weights_share_layers(tmp_path: Path) -> None:
    files = {f"model-{number:05}.safetensors": bytes([number]) * 40 for number in range(150)}
    bundle = make(tmp_path / "bundle", {**files, "config.json": b"{}"}, weights=FOLDER)
    oci.write(bundle, tmp_path / "layout", SILENT)
    assert len(image(tmp_path / "layout")["layers"]) <= oci.LAYERS_OF_WEIGHTS + 1
    found = unpacked(tmp_path / "layout")
    assert {name: found[f"models/{name}"] for name in files} == files


def test_a_file_beyond_the_limits_of_the_old_tar_has_a_header(tmp_path: Path) -> None:
    """8 GiB is the end of what the first form of tar can say; nothing so large is written here."""
    header = plain.header("models/" + "n" * 120, tarfile.REGTYPE, 9 << 30, 0o644)
    with tarfile.open(fileobj=io.BytesIO(header + bytes(1024)), mode="r|") as archive:
        member = archive.next()
    assert member is not None
    assert (member.name, member.size) == ("models/" + "n" * 120, 9 << 30)


def test_what_is_known_of_the_model_stands_in_the_image(tmp_path: Path) -> None:
    source = {"repository": "some/model", "revision": "0" * 40, "license": "Apache-2.0"}
    bundle = make(tmp_path / "bundle", source=source)
    oci.write(bundle, tmp_path / "layout", SILENT)
    made = image(tmp_path / "layout")
    assert made["annotations"] == {
        "org.opencontainers.image.title": bundle.manifest.name,
        "org.opencontainers.image.version": bundle.manifest.digest[:12],
        "org.opencontainers.image.revision": "0" * 40,
        "org.opencontainers.image.licenses": "Apache-2.0",
        oci.DIGEST_LABEL: f"sha256:{bundle.manifest.digest}",
    }
    config = document(tmp_path / "layout", made["config"]["digest"])
    assert config["config"]["Labels"] == made["annotations"]  # what `docker inspect` shows
    unknown = oci.described(made_up_bundle.manifest(source={"license": None}))
    assert "org.opencontainers.image.licenses" not in unknown


@pytest.mark.parametrize("content", [b"G" * 2999, b"G" * 2999 + b"H", b"G" * 3001])
def test_a_file_that_changed_is_refused_and_nothing_is_left(
    bundle: Bundle, tmp_path: Path, content: bytes
) -> None:
    (bundle.root / "model.gguf").write_bytes(content)
    with pytest.raises(StoreError, match=r"model\.gguf is not the file"):
        oci.write(bundle, tmp_path / "layout", SILENT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_a_folder_that_is_there_is_kept(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "layout").mkdir()
    (tmp_path / "layout" / "mine").write_text("keep")
    with pytest.raises(StoreError, match="cannot write the image layout"):
        oci.write(bundle, tmp_path / "layout", SILENT)
    assert (tmp_path / "layout" / "mine").read_text() == "keep"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle", "layout"]


def test_what_a_killed_export_left_is_deleted(bundle: Bundle, tmp_path: Path) -> None:
    left = tmp_path / "new" / ".layout.1234.partial"
    left.mkdir(parents=True)
    (left / "blob").write_bytes(b"half")
    oci.write(bundle, tmp_path / "new" / "layout", SILENT)
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["layout"]


def test_a_full_disk_is_told_before_anything_is_written(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _folder: full)
    with pytest.raises(StoreError, match="the image layout takes"):
        oci.write(bundle, tmp_path / "layout", SILENT)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bundle"]


def test_progress_counts_bytes(bundle: Bundle, tmp_path: Path) -> None:
    seen: list[tuple[float | None, float | None]] = []

    class Told(type(SILENT)):  # type: ignore[misc]
        def step(self, title: str) -> Any:
            class Step:
                def __enter__(self) -> Step:
                    return self

                def __exit__(self, *_: object) -> None:
                    return

                def update(
                    self,
                    done: float | None = None,
                    total: float | None = None,
                    note: str | None = None,
                ) -> None:
                    seen.append((done, total))

            return Step()

    oci.write(bundle, tmp_path / "layout", Told())
    done = [each for each, _ in seen if each is not None]
    assert done == sorted(done)
    assert done[-1] >= sum(map(len, FILES.values()))
