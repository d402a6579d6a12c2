"""Images by the tools that use them: layout, registry, serving image, Compose file.

skopeo, umoci, buildah, docker-registry and docker-compose are Debian's; a test that lacks one is
skipped and says how to get it.
"""

from __future__ import annotations

import ctypes
import hashlib
import importlib.util
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from command_line import must

from deployer.artifacts import MANIFEST, Bundle
from deployer.home import Home

pytestmark = pytest.mark.integration

SECONDS = 120.0
STAND_IN = "localhost/python-stand-in"
"""Takes the place of python:3.11-slim-bookworm where no registry can be reached."""
OF_LIBC = ("libdl.so.2", "libm.so.6", "libpthread.so.0", "librt.so.1")
"""Libraries that come with every libc; wheels made for older ones name them."""
NATIVE = ("libstdc++.so.6", "libgomp.so.1")
"""What the server needs beside them. The Dockerfile installs libgomp where its base lacks it, by
apt, which the stand-in has not."""


def need(*programs: str) -> None:
    missing = [name for name in programs if shutil.which(name) is None]
    if missing:
        pytest.skip(f"not installed: apt-get install {' '.join(missing)}")


def run(*argv: str | Path) -> str:
    """Run a tool to its end; its standard output."""
    ran = subprocess.run(
        list(map(str, argv)), capture_output=True, text=True, timeout=SECONDS, check=False
    )
    assert ran.returncode == 0, f"{' '.join(map(str, argv))}\n{ran.stdout}{ran.stderr}"
    return ran.stdout


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port: int = listener.getsockname()[1]
        return port


def sums(folder: Path) -> dict[str, str]:
    """SHA-256 of every file below a folder."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            with path.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
            found[path.relative_to(folder).as_posix()] = digest
    return found


@dataclass(frozen=True)
class Layout:
    """An exported layout: its folder, the image's tag and digest."""

    folder: Path
    tag: str
    digest: str

    @property
    def reference(self) -> str:
        return f"oci:{self.folder}:{self.tag}"


@pytest.fixture(scope="module")
def layout(demo_bundle: Bundle, home: Home, tmp_path_factory: pytest.TempPathFactory) -> Layout:
    folder = tmp_path_factory.mktemp("oci") / "layout"
    must("export", demo_bundle.root, "--to", "oci-layout", "--output", folder, home=home)
    (named,) = json.loads((folder / "index.json").read_bytes())["manifests"]
    tag = named["annotations"]["org.opencontainers.image.ref.name"]
    return Layout(folder, tag, named["digest"])


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A real registry on the loopback: its host and port."""
    need("docker-registry")
    folder, port = tmp_path_factory.mktemp("registry"), free_port()
    config = {
        "version": 0.1,
        "log": {"level": "error"},
        "storage": {"filesystem": {"rootdirectory": str(folder / "data")}},
        "http": {"addr": f"127.0.0.1:{port}"},
    }
    (folder / "config.yml").write_text(json.dumps(config))  # JSON is YAML
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            ["docker-registry", "serve", str(folder / "config.yml")], stdout=log, stderr=log
        )
    try:
        for _ in range(100):
            if process.poll() is not None:
                pytest.fail((folder / "log").read_text())
            try:
                httpx.get(f"http://127.0.0.1:{port}/v2/", trust_env=False).raise_for_status()
                break
            except httpx.HTTPError:
                time.sleep(0.1)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def test_an_image_goes_through_a_registry_and_comes_back_as_the_same_bundle(
    layout: Layout, registry: str, demo_bundle: Bundle, home: Home, tmp_path: Path
) -> None:
    """Pushed and fetched by skopeo, unpacked by umoci; every digest stays what it was."""
    need("skopeo", "umoci")
    local = json.loads(run("skopeo", "inspect", layout.reference))
    assert local["Digest"] == layout.digest
    assert local["Labels"]["deployer.bundle.digest"] == f"sha256:{demo_bundle.manifest.digest}"

    remote = f"docker://{registry}/models/smollm2:{layout.tag}"
    push = ["--quiet", "--preserve-digests", "--dest-tls-verify=false"]
    run("skopeo", "copy", *push, layout.reference, remote)
    there = json.loads(run("skopeo", "inspect", "--tls-verify=false", remote))
    assert there["Digest"] == layout.digest
    assert there["Layers"] == local["Layers"]

    back = tmp_path / "back"
    pull = ["--quiet", "--preserve-digests", "--src-tls-verify=false"]
    run("skopeo", "copy", *pull, remote, f"oci:{back}:{layout.tag}")
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    unpacked = tmp_path / "unpacked"
    run("umoci", "unpack", *rootless, "--image", f"{back}:{layout.tag}", unpacked)

    models = unpacked / "rootfs" / "models"
    assert [path.name for path in (unpacked / "rootfs").iterdir()] == ["models"]
    assert sums(models) == sums(demo_bundle.root)
    assert must("verify", models, home=home)["ok"] is True


@pytest.fixture(scope="module")
def buildah(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[str]]:
    """`buildah` with a storage of its own; skipped where it can build nothing."""
    need("buildah")
    if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        pytest.skip("buildah needs root and mounts to build without a container daemon")
    root = tmp_path_factory.mktemp("buildah")
    command = ["buildah", "--root", str(root / "root"), "--runroot", str(root / "run"),
               "--storage-driver", "vfs"]  # fmt: skip
    yield command
    run(*command, "rm", "--all")
    run(*command, "rmi", "--all", "--force")


def test_buildah_mounts_the_layout_as_an_image(
    layout: Layout, buildah: list[str], demo_bundle: Bundle
) -> None:
    name = run(*buildah, "from", layout.reference).strip()
    try:
        mounted = Path(run(*buildah, "mount", name).strip())
        assert sums(mounted / "models") == sums(demo_bundle.root)
    finally:
        run(*buildah, "rm", name)


def libraries(*binaries: Path) -> set[Path]:
    """The shared libraries that programs and modules need, the loader included."""
    told = run("ldd", *binaries)
    words = [word for line in told.splitlines() for word in line.split()]
    return {Path(word) for word in words if word.startswith("/") and not word.endswith(":")}


def found(name: str) -> Path:
    """Where this machine has a shared library."""
    ctypes.CDLL(name)
    mapped = Path("/proc/self/maps").read_text().split()
    return next(Path(word) for word in mapped if f"/{name.split('.so')[0]}.so" in word)


def place(path: Path, target: Path) -> None:
    """Copy a program or a library to a place in the stand-in."""
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(path.resolve(), target)
    target.chmod(0o755)


def stand_in(root: Path) -> None:
    """A folder with Python, pip and a shell where python:3.11-slim-bookworm has them."""
    library = Path(sysconfig.get_path("stdlib"))
    python, shell = Path(sys.executable).resolve(), Path("/bin/sh")
    needed = libraries(python, shell, *(library / "lib-dynload").glob("*.so"), *map(found, NATIVE))
    (libc,) = [path for path in needed if path.name == "libc.so.6"]
    for path in (*needed, *(libc.with_name(name) for name in OF_LIBC)):
        place(path, root / path.relative_to("/"))
    for name in NATIVE:
        place(found(name), root / "usr/lib" / f"{os.uname().machine}-linux-gnu" / name)
    place(python, root / "usr/local/bin/python")
    place(shell, root / "bin/sh")
    unused = ("test", "tests", "idlelib", "site-packages", "dist-packages", "__pycache__",
              "config-*", "tkinter")  # fmt: skip
    there = root / "usr/local/lib" / library.name
    shutil.copytree(library, there, ignore=shutil.ignore_patterns(*unused), symlinks=True)
    pip = importlib.util.find_spec("pip")
    assert pip is not None
    assert pip.origin is not None
    shutil.copytree(Path(pip.origin).parent, there / "site-packages" / "pip")
    for name in ("etc", "proc", "sys", "dev", "tmp"):
        (root / name).mkdir(exist_ok=True)
    (root / "tmp").chmod(0o1777)


@pytest.fixture(scope="module")
def base(buildah: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """An image to build upon, made of this machine's own Python; nothing is pulled."""
    root = tmp_path_factory.mktemp("stand-in")
    stand_in(root)
    name = run(*buildah, "from", "scratch").strip()
    run(*buildah, "copy", "--quiet", name, root, "/")
    run(*buildah, "config", "--env", "PATH=/usr/local/bin:/usr/bin:/bin", name)
    run(*buildah, "commit", "--quiet", "--rm", name, STAND_IN)
    return STAND_IN


@pytest.fixture(scope="module")
def wheels(home: Home) -> Path:
    """A folder with the one wheel that the image installs, kept between runs."""
    return home.cache / "tests" / "image-wheels"


def fetch_wheel(requirements: Path, folder: Path) -> None:
    wanted = requirements.read_text().split()[0].split("==")[1]
    if not list(folder.glob(f"xllamacpp-{wanted}-*.whl")):
        run(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes",
            "--only-binary=:all:", "--requirement", requirements, "--dest", folder)  # fmt: skip


def build(
    buildah: Sequence[str], context: Path, bundle: Path, base: str, wheels: Path, name: str
) -> dict[str, Any]:
    """Build the exported Dockerfile with its model; the image's configuration."""
    fetch_wheel(context / "requirements.txt", wheels)
    pip = context.parent / "pip.conf"
    pip.write_text("[install]\nno-index = true\nfind-links = /wheels\n")
    run(*buildah, "bud", "--quiet", "--format", "docker", "--isolation", "chroot", "--pull-never",
        "--build-arg", f"BASE={base}", "--build-context", f"bundle={bundle}",
        "--secret", f"id=pip,src={pip}", "--volume", f"{wheels}:/wheels:ro",
        "--tag", name, context)  # fmt: skip
    inspected = json.loads(run(*buildah, "inspect", "--type", "image", name))
    config: dict[str, Any] = inspected["Docker"]["config"]
    return config


def test_the_serving_image_is_built_answers_and_drains(
    buildah: list[str], base: str, wheels: Path, demo_bundle: Bundle, home: Home, tmp_path: Path
) -> None:
    """The exported Dockerfile, built as it is on this machine's Python, and one real answer."""
    context, port = tmp_path / "docker", free_port()
    must("export", demo_bundle.root, "--to", "docker", "--estimate", "--port", str(port),
         "--output", context, home=home)  # fmt: skip
    config = build(buildah, context, demo_bundle.root, base, wheels, "localhost/serving")
    assert config["User"] not in ("", "0", "root")
    assert config["StopSignal"] == "SIGTERM"
    name = run(*buildah, "from", "--pull-never", "localhost/serving").strip()
    argv = [*config["Entrypoint"], *config["Cmd"]]
    with (tmp_path / "server.log").open("wb") as log:
        process = subprocess.Popen(
            [*buildah, "run", "--isolation", "chroot", name, "--", *argv], stdout=log, stderr=log
        )
    try:
        wait_until_healthy(port, process, tmp_path / "server.log")
        probe = config["Healthcheck"]["Test"]
        assert probe[0] == "CMD"
        run(*buildah, "run", "--isolation", "chroot", name, "--", *probe[1:])
        answer = httpx.post(
            f"http://127.0.0.1:{port}/v1/chat/completions", trust_env=False, timeout=60,
            json={"messages": [{"role": "user", "content": "What is the capital of France?"}],
                  "max_tokens": 24, "temperature": 0},
        )  # fmt: skip
        assert answer.status_code == 200
        assert "Paris" in answer.json()["choices"][0]["message"]["content"]
        server = server_below(process.pid)
        assert server.uids().real == int(config["User"].split(":")[0])
        server.send_signal(signal.SIGTERM)
        assert process.wait(20) == 0  # drained, and ended by itself
    finally:
        if process.poll() is None:
            for each in psutil.Process(process.pid).children(recursive=True):
                each.kill()
            process.kill()
            process.wait(10)
        run(*buildah, "rm", name)


def wait_until_healthy(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text(errors="replace")
        try:
            if httpx.get(f"http://127.0.0.1:{port}/health", trust_env=False).status_code == 200:
                return
        except httpx.HTTPError:
            pass
        time.sleep(0.2)
    pytest.fail(log.read_text(errors="replace"))


def server_below(pid: int) -> psutil.Process:
    """The process that serves: the one whose program is the exported worker."""
    (found,) = [
        each
        for each in psutil.Process(pid).children(recursive=True)
        if "/opt/llama-server/serve_xllamacpp.py" in each.cmdline()
        and each.cmdline()[0].endswith("python")
    ]
    return found


@pytest.mark.parametrize(
    "more", [[], ["--key-secret", "chat-keys", "--host", "0.0.0.0"]], ids=["loopback", "keys"]
)
def test_compose_takes_the_file(
    more: list[str], demo_bundle: Bundle, home: Home, tmp_path: Path
) -> None:
    """docker-compose checks it against its own schema of the specification."""
    need("docker-compose")
    folder = tmp_path / "compose"
    must("export", demo_bundle.root, "--to", "compose", "--estimate", *more,
         "--output", folder, home=home)  # fmt: skip
    file = folder / "compose.yaml"
    # The one key that is younger than Debian's docker-compose.
    younger = "      bind:\n        create_host_path: false\n"
    assert younger in file.read_text()
    file.write_text(file.read_text().replace(younger, ""))
    assert "/models/model.gguf" in run("docker-compose", "--file", file, "config")
    file.write_text(file.read_text().replace("mem_limit:", "mem_limt:"))
    refused = subprocess.run(
        ["docker-compose", "--file", str(file), "config"],
        capture_output=True, text=True, timeout=SECONDS, check=False,
    )  # fmt: skip
    assert refused.returncode != 0  # the tool does look
    assert "mem_limt" in refused.stderr


def test_the_manifest_of_the_image_is_small(layout: Layout, demo_bundle: Bundle) -> None:
    """What a registry hands out first; the weights are a layer that it keeps once."""
    path = layout.folder / "blobs" / layout.digest.replace(":", "/")
    assert path.stat().st_size < 4096
    layers = json.loads(path.read_bytes())["layers"]
    assert len(layers) == 2
    assert layers[0]["size"] > demo_bundle.weights.stat().st_size
    assert (demo_bundle.root / MANIFEST).is_file()
