"""vLLM that cannot start: the cause is named and the log's telling line is shown."""

from __future__ import annotations

import shutil
from pathlib import Path

import psutil
import pytest

from deployer import serving
from deployer.artifacts import FOLDER, Bundle, Manifest
from deployer.engines.vllm import CPU
from deployer.errors import ServerExited
from deployer.home import Home
from deployer.recipe import Serve, Vllm
from deployer.toolchains import provision

pytestmark = pytest.mark.integration


def bundle_of(root: Path) -> Bundle:
    manifest = Manifest(
        name="demo", digest="0", engine="vllm", weights=FOLDER, size_bytes=0,
        bits_per_weight=4.0, files=(), recipe={}, serve={}, source={},
        quantization={"kv_bytes_per_token": 23040}, quality={}, parity={}, tools={},
        created_by="test",
    )  # fmt: skip
    return Bundle(root, manifest)


def test_a_damaged_checkpoint_ends_with_the_cause_and_the_log(
    home: Home, demo_checkpoint: Path, tmp_path: Path
) -> None:
    """Right length, a tensor under another name: only the engine can tell."""
    provision.ensure(CPU, home)
    broken = tmp_path / "bundle"
    shutil.copytree(demo_checkpoint, broken)
    name = b'"model.norm.weight"'
    with (broken / "model.safetensors").open("r+b") as stream:
        at = stream.read(1 << 20).index(name)
        stream.seek(at)
        stream.write(name.replace(b"norm", b"lost"))
    own = Home(tmp_path / "home")
    own.root.mkdir()
    (own.root / "toolchains").symlink_to(home.toolchains)
    serve = Serve(port=0, context=256, parallel=1, vllm=Vllm(eager=True))
    try:
        with pytest.raises(ServerExited, match="could not load the model") as caught:
            serving.start(bundle_of(broken), serve, own, device="cpu", detach=True)
        (record,) = serving.status(own)
    finally:
        for left in serving.status(own):
            serving.stop(own, left.name)
    assert "lost" in caught.value.message  # the log's line that names it
    assert "deployer verify" in caught.value.hint
    assert (record.state, record.restarts) == ("failed", 0)
    assert not psutil.pid_exists(record.supervisor_pid)
