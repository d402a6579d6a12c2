"""What a user can get wrong, or the machine can: one sentence, a hint, the exit code, no debris.

Each case runs the real `deployer` command, as a user would, and where the cause can be mended
runs it again to see that it then succeeds.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from command_line import DEPLOYER, Ran, deployer, environment, gone, home_beside, must
from fake_hub import ABSENT, COMMIT, GATED, NO_REVISION, FakeHub, serve
from guard import REPOSITORY
from model_files import CONFIG, checkpoint, safetensors, tensor_entry

from deployer.home import Home

pytestmark = pytest.mark.integration

CLOSED = "http://127.0.0.1:9"
PACKAGE = "source: {package: some-model==1.0}\nquantization: {scheme: q4_0}\n"
QUICK = "quality: {windows: 1}\n"
"""How much is scored is not what is tested here."""
Write = Callable[..., Path]


@pytest.fixture
def own(home: Home, tmp_path: Path) -> Home:
    """A fresh home with the shared toolchains."""
    return home_beside(home, tmp_path / "home")


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write_recipe(body: str, name: str = "tiny") -> Path:
        path = tmp_path / f"{name}.yaml"
        path.write_text(f"version: 1\nname: {name}\n{body}", encoding="utf-8")
        return path

    return write_recipe


@pytest.fixture(scope="module")
def f16(home: Home, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The demo model as a 16-bit GGUF file of a user's own."""
    root = tmp_path_factory.mktemp("f16") / "home"
    beside = home_beside(home, root, "store", "bundles")
    bundle = must("build", REPOSITORY / "recipes" / "smollm2-f16.yaml", home=beside)["bundle"]
    return Path(bundle) / "model.gguf"


def clean(home: Home) -> bool:
    """Whether nothing half-written lies in the home."""
    leftovers = [*home.root.glob("*/.tmp/*"), *home.root.glob("store/*/.*.json.*")]
    return not leftovers and not home.bundles.exists()


def refused(ran: Ran, code: int, kind: str, *words: str) -> str:
    """Check an error document; gives its hint."""
    assert ran.code == code, ran.out + ran.err
    error = ran.error
    assert error["type"] == kind
    for word in words:
        assert word in error["message"]
    assert error["hint"] or error.get("problems")
    return str(error["hint"])


# The recipe


@pytest.mark.parametrize(
    ("body", "line", "words"),
    [
        (f"{PACKAGE}serve: {{prt: 1}}\n", 5, "did you mean port?"),
        (f"{PACKAGE}serve:\n  port: many\n", 6, "'many'"),
        (f"{PACKAGE}quality: {{text: absent.txt}}\n", 5, "there is no file"),
        ("source: {gguf: absent.gguf}\nquantization: {scheme: q4_0}\n", 3, "absent.gguf"),
        ("source: {path: absent}\nquantization: {scheme: q4_0}\n", 3, "there is no folder"),
        ("source: {package: a==1}\nquantization: {scheme: q4_9}\n", 4, "did you mean q4_"),
        ("source: !!python/object/apply:os.abort []\nquantization: {}\n", 3, "not allowed"),
        (": [", 3, "not valid YAML"),
    ],
)
def test_a_wrong_recipe(own: Home, write: Write, body: str, line: int, words: str) -> None:
    recipe = write(body)
    ran = deployer("build", recipe, "--json", home=own)
    refused(ran, 2, "RecipeError", words)
    assert ran.error["problems"][0]["line"] == line
    assert clean(own)
    ran = deployer("build", recipe, home=own)
    assert (ran.code, ran.out) == (2, "")
    assert ran.err.startswith("error: ")
    assert f"line {line}: " in ran.err
    assert "\nhint: " in ran.err
    assert "\x1b" not in ran.err


def test_a_missing_recipe(own: Home) -> None:
    refused(deployer("build", "absent.yaml", "--json", home=own), 2, "UsageError", "absent.yaml")
    assert clean(own)


# The hub


@pytest.fixture
def hub() -> Iterator[FakeHub]:
    with serve(FakeHub({"config.json": b"{}", "pytorch_model.bin": b"pickle"})) as running:
        yield running


HUB = "source: {huggingface: some/model}\nquantization: {scheme: q4_0}\n"


@pytest.mark.parametrize(
    ("refusal", "words"),
    [(GATED, "is gated"), (ABSENT, "no model repository"), (NO_REVISION, "no revision"),
     ((401, ""), "refuses access")],
)  # fmt: skip
def test_a_hub_that_refuses(
    own: Home, write: Write, hub: FakeHub, refusal: tuple[int, str], words: str
) -> None:
    hub.refusal = refusal
    env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(own.root / "hf")}
    ran = deployer("build", write(HUB), "--json", home=own, env=env)
    refused(ran, 1, "SourceError", words, "some/model")
    assert clean(own)


def test_a_hub_that_cannot_be_reached(own: Home, write: Write) -> None:
    env = {"HF_ENDPOINT": CLOSED, "HF_HOME": str(own.root / "hf")}
    ran = deployer("build", write(HUB), "--json", home=own, env=env)
    hint = refused(ran, 1, "SourceError", "could not be reached", "some/model")
    assert "HF_ENDPOINT" in hint
    assert clean(own)


def test_a_repository_of_pickles(own: Home, write: Write, hub: FakeHub) -> None:
    body = HUB.replace("some/model", f"some/model, revision: {COMMIT}")
    env = {"HF_ENDPOINT": hub.endpoint, "HF_HOME": str(own.root / "hf")}
    ran = deployer("build", write(body), "--json", home=own, env=env)
    refused(ran, 1, "SourceError", "pytorch_model.bin", "can run code")
    fetched = [path for _, path, _ in hub.requests if "/resolve/" in path]
    assert all(path.endswith("/config.json") for path in fetched)  # for the plan's checks
    assert clean(own)


# The package index


@pytest.fixture
def no_index(tmp_path: Path) -> dict[str, str]:
    """The environment of a machine without a network and with an empty cache."""
    hidden = {name: "" for name in os.environ if name.startswith(("PIP_", "UV_"))}
    return {
        **hidden, "UV_CACHE_DIR": str(tmp_path / "empty-cache"), "UV_DEFAULT_INDEX": CLOSED,
        "UV_HTTP_RETRIES": "0", "UV_HTTP_TIMEOUT": "5", "PIP_INDEX_URL": CLOSED,
        "PIP_RETRIES": "0",
    }  # fmt: skip


def test_a_toolchain_without_a_network(tmp_path: Path, no_index: dict[str, str]) -> None:
    bare = Home(tmp_path / "bare")
    ran = deployer("toolchain", "install", "llama-cpp", "--json", home=bare, env=no_index)
    hint = refused(ran, 1, "ToolchainError", "llama-cpp", "the package index cannot be reached")
    assert "PIP_INDEX_URL" in hint
    assert must("toolchain", "list", home=bare)["installed"] == []
    assert not [path for path in bare.toolchains.glob("[!.]*") if path.is_dir()]


def test_a_packaged_model_without_a_network(
    own: Home, write: Write, no_index: dict[str, str]
) -> None:
    ran = deployer("build", write(PACKAGE), "--json", home=own, env=no_index)
    refused(ran, 1, "SourceError", "some-model==1.0", "the package index cannot be reached")
    assert clean(own)


# The model


def test_an_architecture_nobody_knows(own: Home, write: Write, tmp_path: Path) -> None:
    folder = checkpoint(tmp_path / "model")
    unknown = {**CONFIG, "architectures": ["NoSuchForCausalLM"], "model_type": "no-such"}
    (folder / "config.json").write_text(json.dumps(unknown), encoding="utf-8")
    recipe = write("source: {path: model}\nquantization: {scheme: q4_0}\n")
    ran = deployer("build", recipe, "--json", home=own)
    refused(ran, 1, "StageError", "NoSuchForCausalLM")
    assert clean(own)


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_a_weight_that_is_no_number(own: Home, write: Write, tmp_path: Path, value: str) -> None:
    folder = checkpoint(tmp_path / "model")
    data = struct.pack("<5f", 0.0, 1.0, -1.0, float(value), 2.0)
    header = {"model.good": tensor_entry((2,), 0, 8, "F32"),
              "model.bad": tensor_entry((3,), 8, 20, "F32")}  # fmt: skip
    (folder / "model.safetensors").write_bytes(safetensors(header, data))
    recipe = write("source: {path: model}\nquantization: {scheme: q4_0}\n")
    ran = deployer("build", recipe, "--json", home=own)
    refused(ran, 1, "StageError", "model.bad", "model.safetensors", "no finite")
    assert clean(own)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda path: os.truncate(path, 1000), "no usable GGUF"),
        (lambda path: path.write_bytes(b"version https://git-lfs"), "letters GGUF"),
    ],
)
def test_a_damaged_file(
    own: Home, write: Write, f16: Path, tmp_path: Path, damage: Any, words: str
) -> None:
    path = tmp_path / "model.gguf"
    shutil.copyfile(f16, path)
    damage(path)
    recipe = write("source: {gguf: model.gguf}\nquantization: {method: none}\n")
    refused(deployer("build", recipe, "--json", home=own), 1, "SourceError", words, str(path))
    assert clean(own)


# The machine


@pytest.fixture
def served(home: Home, tmp_path: Path) -> Home:
    """A home with the shared bundles and servers of its own."""
    return home_beside(home, tmp_path / "serving", "store", "bundles")


def test_a_port_in_use(served: Home, f16: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        options = ("serve", f16.parent, "--detach", "--set", f"serve.port={port}", "--json")
        ran = deployer(*options, home=served)
        hint = refused(ran, 1, "ServerError", f"port {port}", f"pid {os.getpid()}")
        assert "serve.port" in hint
    assert must("status", home=served)["servers"] == []
    record = must(*options[:-1], "--name", "freed", home=served)
    assert record["endpoint"].endswith(f":{port}")
    must("stop", "freed", home=served)


def test_too_little_memory(served: Home, f16: Path) -> None:
    greedy = ("--set", "serve.context=8192", "--set", "serve.parallel=1024")
    ran = deployer("serve", f16.parent, "--detach", *greedy, "--json", home=served)
    assert ran.code in (1, 2)
    assert "memory" in ran.error["message"]
    assert "GB" in ran.error["message"] or "GiB" in ran.error["message"]
    assert ran.error["hint"]
    assert must("status", home=served)["servers"] == []


@pytest.fixture
def small_disk(home: Home, tmp_path: Path) -> Iterator[Home]:
    """A home on a file system of 400 MB."""
    mounted = tmp_path / "disk"
    mounted.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=400m", "tmpfs", str(mounted)],
        check=False, capture_output=True,
    ).returncode:  # fmt: skip
        pytest.skip("a small file system can be mounted by root only")
    try:
        yield home_beside(home, mounted / "home")
    finally:
        subprocess.run(["umount", "-l", str(mounted)], check=True)


def test_too_small_a_disk(small_disk: Home, write: Write, f16: Path) -> None:
    """The copy of 271 MB fits, the quantizing after it does not."""
    recipe = write(f"source: {{gguf: {f16}}}\nquantization: {{scheme: q8_0}}\n")
    ran = deployer("build", recipe, "--json", home=small_disk)
    hint = refused(ran, 1, "StoreError", "quantizing needs about 0.3 GB", "free")
    assert "DEPLOYER_HOME" in hint
    assert clean(small_disk)
    subprocess.run(["mount", "-o", "remount,size=2g", str(small_disk.root.parent)], check=True)
    document = must("build", recipe, home=small_disk)
    assert document["stages"][0]["cached"] is True


def test_a_disk_that_fills_up(small_disk: Home, write: Write, f16: Path) -> None:
    filler = small_disk.root / "filler"
    with filler.open("wb") as stream:
        stream.write(b"\0" * (200 << 20))
    recipe = write(f"source: {{gguf: {f16}}}\nquantization: {{method: none}}\n")
    ran = deployer("build", recipe, "--json", home=small_disk)
    refused(ran, 1, "StoreError", "copying model.gguf needs about 0.3 GB")
    assert clean(small_disk)
    filler.unlink()
    assert must("build", recipe, home=small_disk)["name"] == "tiny"


def test_a_home_that_cannot_be(tmp_path: Path, write: Write, f16: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    recipe = write(f"source: {{gguf: {f16}}}\nquantization: {{method: none}}\n")
    ran = deployer("build", recipe, "--json", home=Home(tmp_path / "file" / "home"))
    assert ran.code == 1
    assert "DEPLOYER_HOME" in ran.error["hint"]


# Interrupted


class Build:
    """A build under way, which is sent a signal when it says a certain word."""

    def __init__(self, recipe: Path, home: Home) -> None:
        self.popen = subprocess.Popen(
            [str(DEPLOYER), "build", str(recipe)], env=environment(home), cwd=REPOSITORY,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            # Shells start background work, this test run perhaps, with SIGINT ignored.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )  # fmt: skip
        self.said: list[str] = []

    def signal_at(self, word: str, number: int) -> list[int]:
        """Wait for the word, and for a worker where one runs; gives the pids of its children."""
        assert self.popen.stderr
        for line in self.popen.stderr:
            self.said.append(line)
            if word in line:
                break
        else:
            raise AssertionError(f"it never said {word!r}: {self.said}")
        # Its work is under way a moment later, rather than about to begin.
        threading.Event().wait(0.5)
        children = [child.pid for child in psutil.Process(self.popen.pid).children(recursive=True)]
        self.popen.send_signal(number)
        return children

    def end(self) -> int:
        out, err = self.popen.communicate(timeout=60)
        self.said += [out, err]
        assert "Traceback" not in "".join(self.said)
        return self.popen.returncode


@pytest.mark.parametrize(
    ("word", "number", "code"),
    [
        ("quantize to q8_0", signal.SIGINT, 130),
        ("score the finished", signal.SIGKILL, -9),
        pytest.param("score the finished", signal.SIGINT, 130, marks=pytest.mark.faults),
        pytest.param("quantize to q8_0", signal.SIGKILL, -9, marks=pytest.mark.faults),
    ],
)
def test_an_interrupted_build(
    own: Home, write: Write, f16: Path, word: str, number: int, code: int
) -> None:
    recipe = write(f"source: {{gguf: {f16}}}\nquantization: {{scheme: q8_0}}\n{QUICK}")
    build = Build(recipe, own)
    children = build.signal_at(word, number)
    assert build.end() == code, build.said
    assert all(gone(pid) for pid in children)
    assert not own.bundles.exists()
    if number == signal.SIGINT:
        assert "Interrupted." in build.said[-1]
        assert clean(own)
    document = must("build", recipe, home=own)
    assert document["stages"][0]["cached"] is True  # what was done is not done again
    assert not document["cached"]
    assert not list(own.store.glob(".tmp/*"))


def test_two_builds_at_once(own: Home, write: Write, f16: Path) -> None:
    recipe = write(f"source: {{gguf: {f16}}}\nquantization: {{method: none}}\n{QUICK}")
    builds = [Build(recipe, own), Build(recipe, own)]
    assert [build.end() for build in builds] == [0, 0], [build.said for build in builds]
    assert len(list(own.bundles.glob("tiny/*.json"))) == 1
    said = "".join(builds[0].said + builds[1].said)
    assert said.count("✓ fetch") == 1
