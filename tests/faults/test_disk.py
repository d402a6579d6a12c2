"""A disk that is full at the worst moment: while weights are being written by a real quantizer."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from command_line import DEPLOYER, environment, home_beside, must
from guard import REPOSITORY

from deployer.home import Home

pytestmark = pytest.mark.faults
SIZE = "1600m"
RECIPE = """\
version: 1
name: tiny
source: {{gguf: {gguf}}}
quantization: {{scheme: {scheme}}}
quality: {{windows: 1}}
"""


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(mounted)]
    if subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a small file system can be mounted by root only")
    try:
        yield mounted
    finally:
        subprocess.run(["umount", "-l", str(mounted)], check=True)


class Filler:
    """Fills the disk as soon as the quantizer has begun to write."""

    def __init__(self, home: Home) -> None:
        self.path = home.root / "filler"
        self.begun = False
        self._home = home
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Filler:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(60)

    def _run(self) -> None:
        while not self._stop.wait(0.005):
            if any(path.stat().st_size for path in self._written()):
                self.begun = True
                break
        with suppress(OSError), self.path.open("wb", buffering=0) as stream:
            while self.begun:
                stream.write(b"\0" * (4 << 20))

    def _written(self) -> list[Path]:
        found = self._home.store.glob(".tmp/quantize-*/*")
        return [path for path in found if path.is_file()]


@pytest.mark.parametrize(
    ("scheme", "program"), [("q8_0", "quantize_gguf"), ("q4_k_m", "llama-quantize")]
)
def test_a_disk_that_fills_while_weights_are_quantized(
    home: Home, disk: Path, tmp_path: Path, scheme: str, program: str
) -> None:
    beside = home_beside(home, tmp_path / "shared", "store", "bundles")
    whole = Path(must("build", REPOSITORY / "recipes" / "smollm2-f16.yaml", home=beside)["bundle"])
    own = home_beside(home, disk / "home")
    recipe = tmp_path / "tiny.yaml"
    recipe.write_text(RECIPE.format(gguf=whole / "model.gguf", scheme=scheme), encoding="utf-8")
    with Filler(own) as filler:
        started = time.monotonic()
        ran = subprocess.run(
            [str(DEPLOYER), "build", str(recipe), "--json"], env=environment(own),
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        took = time.monotonic() - started
    assert filler.begun, ran.stdout + ran.stderr
    assert ran.returncode == 1, ran.stdout + ran.stderr
    error = json.loads(ran.stdout)["error"]
    print(f"\nafter {took:.1f} s: {error['message']}")
    assert error["type"] == "StoreError"
    # The second is said of the log, where that was the first to find no room.
    said = (f"the disk filled up while {program} was at work", "No space left on device")
    assert any(words in error["message"] for words in said)
    assert "DEPLOYER_HOME" in error["hint"]
    assert not list(own.root.glob("*/.tmp/*"))
    assert not own.bundles.exists()
    filler.path.unlink()
    document = must("build", recipe, home=own)
    assert document["stages"][0]["cached"] is True  # the copy of the source was left as it was
