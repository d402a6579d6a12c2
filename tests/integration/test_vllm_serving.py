"""vLLM that cannot start: the cause is named and the log's telling line is shown."""

from __future__ import annotations

import json
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

AWQ = {"quant_method": "awq", "bits": 4, "group_size": 64, "zero_point": True, "version": "gemm"}


def bundle_of(root: Path) -> Bundle:
    manifest = Manifest(
        name="demo", digest="0", engine="vllm", weights=FOLDER, size_bytes=0,
        bits_per_weight=4.0, files=(), recipe={}, serve={}, source={},
        quantization={"kv_bytes_per_token": 23040}, quality={}, parity={}, tools={},
        created_by="test",
    )  # fmt: skip
    return Bundle(root, manifest)


def test_a_checkpoint_that_is_not_what_it_says_ends_with_the_cause_and_the_log(
    home: Home, demo_checkpoint: Path, tmp_path: Path
) -> None:
    """Its config says AWQ, its tensors are plain 16-bit ones."""
    provision.ensure(CPU, home)
    broken = tmp_path / "bundle"
    shutil.copytree(demo_checkpoint, broken, copy_function=lambda a, b: Path(b).symlink_to(a))
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").unlink()
    (broken / "config.json").write_text(json.dumps({**config, "quantization_config": AWQ}))
    own = Home(tmp_path / "home")
    own.root.mkdir()
    (own.root / "toolchains").symlink_to(home.toolchains)
    serve = Serve(port=0, context=256, parallel=1, vllm=Vllm(eager=True))
    with pytest.raises(ServerExited, match="could not load the model") as caught:
        serving.start(bundle_of(broken), serve, own, device="cpu", detach=True)
    assert "  | " in caught.value.message
    assert "Error: " in caught.value.message
    assert "deployer verify" in caught.value.hint
    (record,) = serving.status(own)
    assert (record.state, record.restarts) == ("failed", 0)
    assert not psutil.pid_exists(record.supervisor_pid)
