"""What the demo's server really takes, measured by starting it."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pytest

from deployer import serving
from deployer.artifacts import MANIFEST, Bundle
from deployer.home import Home
from deployer.progress import SILENT
from deployer.workflow.footprints import footprint

pytestmark = pytest.mark.integration

MIB = 1 << 20


def with_settings(bundle: Bundle, folder: Path, **serve: Any) -> Bundle:
    """The same bundle with other serve settings, sealed anew; the files are linked."""
    shutil.copytree(bundle.root, folder, copy_function=_link_or_copy)
    manifest = bundle.manifest
    recipe = {**manifest.recipe, "serve": {**manifest.recipe["serve"], **serve}}
    changes = {"recipe": recipe, "serve": {**manifest.serve, **serve}}
    changed = manifest.model_copy(update=changes).sealed()
    (folder / MANIFEST).unlink()
    (folder / MANIFEST).write_text(changed.text(), encoding="utf-8")
    return Bundle(folder, changed)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def test_the_demo_is_measured_once_and_more_context_takes_more(
    own_home: Home, demo_bundle: Bundle, tmp_path: Path
) -> None:
    settings = {"parallel": 2, "threads": 1, "server": "xllamacpp"}
    small = with_settings(demo_bundle, tmp_path / "small", context=256, **settings)
    found = footprint(small, own_home, SILENT, estimate=False)
    weights = small.manifest.weights_bytes
    assert found.measured and found.requests == 2
    assert weights < found.memory_bytes < weights + 700 * MIB
    assert found.ready_seconds and found.stop_seconds and found.stop_seconds < 5
    assert (found.server, found.threads, found.device) == ("xllamacpp", 1, "cpu")
    assert found.version and found.machine
    assert footprint(small, own_home, SILENT, estimate=False) == found, "it was kept"
    assert serving.status(own_home) == [] and list(own_home.servers.iterdir()) == []

    large = with_settings(demo_bundle, tmp_path / "large", context=1024, **settings)
    more = footprint(large, own_home, SILENT, estimate=False)
    cache = 2 * (1024 - 256) * small.manifest.quantization["kv_bytes_per_token"]
    assert more.memory_bytes - found.memory_bytes > 0.5 * cache
