"""Seconds that `deployer verify` takes: first, unchanged, and with a key; medians of five.

python tests/bench/by_hand/verify.py [BUNDLE]      (default: smollm2-q4_0)

Works on a copy of the bundle, signed with a key of its own, with the toolchains of DEPLOYER_HOME.
"""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from deployer.home import Home, default_home
from deployer.progress import SILENT
from deployer.workflow.bundles import find_bundle
from deployer.workflow.verifying import sign, verify

DEPLOYER = Path(sys.executable).parent / "deployer"
TURNS = 5


def main() -> None:
    shared = default_home()
    bundle = find_bundle(sys.argv[1] if len(sys.argv) > 1 else "smollm2-q4_0", shared)
    with tempfile.TemporaryDirectory() as folder:
        root, home = Path(folder, "bundle"), Home(Path(folder, "home"))
        home.root.mkdir()
        home.toolchains.symlink_to(shared.toolchains)
        shutil.copytree(bundle.root, root)
        (root / "model.sig").unlink(missing_ok=True)
        for path in root.iterdir():
            os.utime(path, (1e9, 1e9))
        key = make_key(Path(folder))
        started = time.monotonic()
        sign(root, key / "private.pem", home, SILENT)
        print(f"sign, first check included: {time.monotonic() - started:.2f} s")
        public = key / "public.pem"
        for name, options in (
            ("full", {"full": True}), ("unchanged", {}), ("unchanged, with --key", {"key": public})
        ):  # fmt: skip
            check = median(verify, root, home, SILENT, **options)
            command = [DEPLOYER, "verify", root, *arguments(options)]
            env = {**os.environ, "DEPLOYER_HOME": str(home.root)}
            whole = median(subprocess.run, command, env=env, check=True, capture_output=True)
            print(f"{name}: {check:.3f} s in the check, {whole:.2f} s of the whole command")


def make_key(folder: Path) -> Path:
    private, public = folder / "private.pem", folder / "public.pem"
    curve = ("-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256")
    subprocess.run(["openssl", "genpkey", *curve, "-out", private], check=True)
    private.chmod(0o600)
    subprocess.run(["openssl", "pkey", "-in", private, "-pubout", "-out", public], check=True)
    return folder


def arguments(options: dict[str, Any]) -> list[str]:
    return ["--full"] * ("full" in options) + (
        ["--key", str(options["key"])] if "key" in options else []
    )


def median(work: Callable[..., Any], *arguments: Any, **options: Any) -> float:
    seconds = []
    for _ in range(TURNS):
        started = time.monotonic()
        work(*arguments, **options)
        seconds.append(time.monotonic() - started)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
