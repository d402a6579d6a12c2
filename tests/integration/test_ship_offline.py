"""A bundle runs elsewhere: with deployer and without a network, or without deployer."""

from __future__ import annotations

import json
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from command_line import deployer, home_beside, must

from deployer.artifacts import Bundle
from deployer.home import Home
from deployer.progress import SILENT
from deployer.shipping import tar
from deployer.toolchains.provision import ensure

pytestmark = pytest.mark.integration
STRANGER = "65534"  # nobody
QUESTION = {
    "messages": [{"role": "user", "content": "What is the capital of France?"}],
    "max_tokens": 24,
    "temperature": 0,
}
PYTHON = f"python{sys.version_info.major}.{sys.version_info.minor}"
ASK = f"""
import json, socket, urllib.request
endpoint = json.load(open("serve.json"))["endpoint"]
body = {json.dumps(QUESTION)!r}.encode()
request = urllib.request.Request(endpoint + "/v1/chat/completions", body,
                                 {{"Content-Type": "application/json"}})
with urllib.request.urlopen(request, timeout=60) as answer:
    text = json.load(answer)["choices"][0]["message"]["content"]
try:
    socket.create_connection(("192.0.2.1", 80), 2)
    route = "there is one"
except OSError as error:
    route = error.strerror
print(json.dumps({{"text": text, "route": route}}))
"""


def confined() -> list[str]:
    """The beginning of a command line: a network of its own with a loopback alone, and nobody.

    Without root it is a user namespace, and the same user.
    """
    for program in ("unshare", "ip", "setpriv"):
        if shutil.which(program) is None:
            pytest.skip(f"no {program}: apt-get install util-linux iproute2")
    root = os.geteuid() == 0
    become = f"setpriv --reuid={STRANGER} --regid={STRANGER} --clear-groups" if root else ""
    alone = ["unshare", "--net", *([] if root else ["--map-root-user"])]
    argv = [*alone, "sh", "-c", f'ip link set lo up && exec {become} "$@"', "sh"]
    tried = subprocess.run([*argv, "true"], capture_output=True, text=True, check=False)
    if tried.returncode != 0:
        pytest.skip(f"no network namespaces here: {tried.stderr.strip()}")
    return argv


def python_for(argv: list[str]) -> str:
    """A Python of our version that the other user may run, with venv and pip to hand."""
    found = [shutil.which(PYTHON, path=folder) for folder in os.defpath.split(":")]
    found += [shutil.which(PYTHON, path="/usr/local/bin"), getattr(sys, "_base_executable", None)]
    for python in filter(None, found):
        tried = [*argv, python, "-I", "-c", "import ensurepip, venv"]
        if subprocess.run(tried, capture_output=True, check=False).returncode == 0:
            return python
    pytest.skip(f"no {PYTHON} with venv that another user may run: apt-get install {PYTHON}-venv")


@pytest.fixture
def elsewhere() -> Iterator[Path]:
    """An empty folder that belongs to the other user."""
    folder = Path(tempfile.mkdtemp(prefix="deployer-elsewhere-"))
    if os.geteuid() == 0:
        os.chown(folder, int(STRANGER), int(STRANGER))
    try:
        yield folder
    finally:
        shutil.rmtree(folder)


def test_another_user_serves_it_without_a_network(
    home: Home, demo_bundle: Bundle, elsewhere: Path, tmp_path: Path
) -> None:
    argv = confined()
    python = python_for(argv)
    own = home_beside(home, tmp_path / "home")
    archive = elsewhere / "demo.tar"
    must("export", demo_bundle.root, "--to", "tar", "--offline", "--output", archive, home=own)
    (elsewhere / "ask.py").write_text(ASK, encoding="utf-8")
    name = demo_bundle.manifest.name
    script = f"""
        set -eu
        sha256sum --check demo.tar.sha256
        tar xf demo.tar
        sh {name}-{demo_bundle.manifest.digest[:12]}/install.sh
        deployer=$HOME/deployer/bin/deployer
        $deployer import {name}-* --json > again.json
        $deployer verify {name} --json > verify.json
        $deployer serve {name} --set serve.port=0 --detach --json > serve.json
        {python} ask.py > answer.json
        $deployer stop --all --json > stop.json
    """
    user = {"HOME": str(elsewhere), "PATH": os.defpath, "PYTHON": python}
    ran = subprocess.run(
        [*argv, "sh", "-c", script], cwd=elsewhere, env=user, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
    assert ran.returncode == 0, ran.stdout + ran.stderr

    def said(file: str) -> Any:
        return json.loads((elsewhere / f"{file}.json").read_text(encoding="utf-8"))

    assert said("again")["there"]
    assert said("verify")["ok"]
    assert said("verify")["digest"] == demo_bundle.manifest.digest
    assert said("serve")["bundle"].startswith(str(elsewhere))
    assert said("answer") == {"text": said("answer")["text"], "route": "Network is unreachable"}
    assert "Paris" in said("answer")["text"]
    assert said("stop")["servers"][0]["state"] == "stopped"
    if os.geteuid() == 0:
        assert Path(said("again")["bundle"]).stat().st_uid == int(STRANGER)


@pytest.fixture(scope="module")
def plain(demo_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo bundle as a tar file."""
    return tar.write(demo_bundle, tmp_path_factory.mktemp("tar") / "demo.tar", SILENT).path


def test_it_runs_without_deployer(home: Home, plain: Path, tmp_path: Path) -> None:
    """`tar xf`, and the command of the bundle's README."""
    subprocess.run(["tar", "xf", plain], cwd=tmp_path, check=True)
    (folder,) = tmp_path.glob("smollm2-*")
    launch = json.loads((folder / "manifest.json").read_text(encoding="utf-8"))["launch"][0]
    argv = [*launch["program"], *launch["arguments"]]
    readme = (folder / "README.md").read_text(encoding="utf-8")
    assert shlex.join(argv) in " ".join(readme.replace("\\\n", " ").split())
    argv[argv.index("--port") + 1] = "8479"
    server = ensure("llama-cpp-native", home).program("llama-server")
    env = {**launch["env"], "PATH": f"{server.parent}:{os.defpath}"}
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(argv, cwd=folder, env=env, stdout=log, stderr=log)
    try:
        assert "Paris" in answer_of("http://127.0.0.1:8479", process)
    finally:
        process.kill()
        process.wait()


def answer_of(endpoint: str, process: subprocess.Popen[bytes]) -> str:
    """What a server says once it is up."""
    for _ in range(300):
        assert process.poll() is None
        try:
            if httpx.get(f"{endpoint}/health").status_code == 200:
                break
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    answer = httpx.post(f"{endpoint}/v1/chat/completions", json=QUESTION, timeout=60)
    return str(answer.json()["choices"][0]["message"]["content"])


def test_a_changed_byte_is_not_imported(home: Home, plain: Path, tmp_path: Path) -> None:
    own = home_beside(home, tmp_path / "home")
    changed = Path(shutil.copyfile(plain, tmp_path / "changed.tar"))
    with changed.open("r+b") as stream:
        stream.seek(changed.stat().st_size // 2)
        byte = stream.read(1)[0]
        stream.seek(-1, os.SEEK_CUR)
        stream.write(bytes([byte ^ 1]))
    refused = deployer("import", changed, "--json", home=own)
    assert refused.code == 1
    assert refused.error["type"] == "BundleError"
    assert [each["file"] for each in refused.error["problems"]] == ["model.gguf"]
    assert not [path for path in own.bundles.rglob("*") if path.is_file() and path.stat().st_size]
    assert must("import", plain, home=own)["there"] is False
    assert must("import", plain, home=own)["there"] is True
