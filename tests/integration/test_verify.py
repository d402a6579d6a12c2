"""Verify and sign with the real library, real keys and the real demo bundle.

The claim is that a changed byte anywhere is refused: 500 of them in the demo bundle, and 500 in a
small one, where every byte is as likely as any other.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from bundle_files import write_bundle
from command_line import DEPLOYER, Ran, deployer, environment, home_beside, must

from deployer import memo as memo_module
from deployer.artifacts import SIGNATURE, Bundle, file_identity
from deployer.errors import UsageError
from deployer.home import Home
from deployer.memo import DigestMemo
from deployer.process import clean_environment
from deployer.progress import SILENT
from deployer.toolchains.provision import ensure
from deployer.toolchains.worker import WORKERS
from deployer.verification import Check, Examined
from deployer.verification.templates import render_apart
from deployer.workflow.verifying import sign, verify

pytestmark = [
    pytest.mark.integration,
    pytest.mark.skipif(
        shutil.which("openssl") is None, reason="needs openssl: apt install openssl"
    ),
]

PLACES = 500
SEED = 20261122


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def make_key(folder: Path, name: str, curve: str = "P-256", *more: str) -> tuple[Path, Path]:
    """(private key, public key), made as docs/verify.md says."""
    private, public = folder / f"{name}.pem", folder / f"{name}-public.pem"
    wanted = ("-pkeyopt", f"ec_paramgen_curve:{curve}")
    openssl("genpkey", "-algorithm", "EC", *wanted, *more, "-out", private)
    private.chmod(0o600)
    opening = ("-passin", more[-1]) if more else ()
    openssl("pkey", "-in", private, *opening, "-pubout", "-out", public)
    return private, public


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("verify")


@pytest.fixture(scope="module")
def own(home: Home, folder: Path) -> Home:
    return home_beside(home, folder / "home")


@pytest.fixture(scope="module")
def keys(folder: Path) -> tuple[Path, Path]:
    return make_key(folder, "key")


@pytest.fixture(scope="module")
def signed(demo_bundle: Bundle, own: Home, folder: Path, keys: tuple[Path, Path]) -> Path:
    """A copy of the demo bundle, signed by the command."""
    root = folder / "bundle"
    shutil.copytree(demo_bundle.root, root)
    (root / SIGNATURE).unlink(missing_ok=True)
    for path in root.iterdir():
        path.chmod(0o644)
    document = must("sign", root, "--key", keys[0], home=own)
    assert document["digest"] == demo_bundle.manifest.digest
    return root


def test_a_signed_bundle_is_good_and_says_by_whom(
    signed: Path, own: Home, keys: tuple[Path, Path]
) -> None:
    checked = must("verify", signed, "--key", keys[1], home=own)
    assert (checked["ok"], checked["problems"]) == (True, [])
    assert checked["signature"]["state"] == "good"
    # The key's name is what sha256sum says of the file that openssl writes.
    summed = subprocess.run(["sha256sum", keys[1]], check=True, capture_output=True, text=True)
    assert checked["signature"]["key"] == summed.stdout.split()[0]
    assert must("verify", signed, home=own)["signature"]["state"] == "unchecked"
    again = deployer("sign", signed, "--key", keys[0], home=own)
    assert (again.code, "is signed already" in again.err) == (2, True)


def test_another_key_is_refused(signed: Path, own: Home, folder: Path) -> None:
    _, other = make_key(folder, "other")
    ran = deployer("verify", signed, "--key", other, "--json", home=own)
    assert ran.code == 1
    (problem,) = ran.document["problems"]
    assert problem["file"] == SIGNATURE
    assert "was made with another key" in problem["problem"]
    assert ran.document["signature"]["state"] == "bad"


@pytest.fixture(scope="module")
def small(folder: Path) -> Path:
    return write_bundle(folder / "small")


def test_a_key_of_the_longest_curve_signs(small: Path, own: Home, tmp_path: Path) -> None:
    private, public = make_key(tmp_path, "key", "P-521")
    sign(small, private, own, SILENT, replace=True)
    assert verify(small, own, SILENT, key=public).checked.signature.state == "good"


def test_a_key_may_have_a_password(small: Path, own: Home, tmp_path: Path) -> None:
    word = tmp_path / "password"
    word.write_text("a long password\nnot this\n", encoding="utf-8")
    private, public = make_key(tmp_path, "key", "P-384", "-aes-256-cbc", "-pass", f"file:{word}")
    must("sign", small, "--key", private, "--password-file", word, "--replace", home=own)
    assert verify(small, own, SILENT, key=public).ok
    with pytest.raises(UsageError, match="is encrypted"):
        sign(small, private, own, SILENT, replace=True)
    word.write_text("another password\n", encoding="utf-8")
    with pytest.raises(UsageError, match="the password is wrong"):
        sign(small, private, own, SILENT, password_file=word, replace=True)


def test_a_key_of_another_kind_is_refused(
    small: Path, own: Home, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    sign(small, keys[0], own, SILENT, replace=True)
    openssl("genpkey", "-algorithm", "ed25519", "-out", tmp_path / "ed.pem")
    (tmp_path / "junk.pem").write_text("junk", encoding="utf-8")
    for name, words in (("ed.pem", "no elliptic-curve key on P-256"), ("junk.pem", "no PEM text")):
        (tmp_path / name).chmod(0o600)
        with pytest.raises(UsageError, match=words) as caught:
            sign(small, tmp_path / name, own, SILENT, replace=True)
        assert "openssl genpkey" in caught.value.hint
    with pytest.raises(UsageError, match="is no public key in PEM form"):
        verify(small, own, SILENT, key=tmp_path / "junk.pem")


def test_the_key_is_checked_without_a_network(
    signed: Path, own: Home, keys: tuple[Path, Path]
) -> None:
    alone = ["unshare", "--map-root-user", "--net"]
    if subprocess.run([*alone, "true"], capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody make a network namespace (unshare --net)")
    command = [*alone, str(DEPLOYER), "verify", str(signed), "--key", str(keys[1]), "--full"]
    ran = subprocess.run(
        [*command, "--json"], env=environment(own), capture_output=True, text=True, check=False
    )
    assert ran.returncode == 0, ran.stderr + ran.stdout
    document = json.loads(ran.stdout)
    assert (document["ok"], document["signature"]["state"]) == (True, "good")


# With the library's own program


def library(home: Home, *arguments: str | Path) -> int:
    program = ensure("model-signing", home).program("model_signing")
    ran = subprocess.run(
        [str(program), *map(str, arguments)], capture_output=True, text=True, check=False,
        env=clean_environment(),
    )  # fmt: skip
    return ran.returncode


def test_others_can_check_our_signature_and_we_can_check_theirs(
    home: Home, own: Home, tmp_path: Path, keys: tuple[Path, Path]
) -> None:
    private, public = keys
    root = write_bundle(tmp_path / "bundle")
    sign(root, private, own, SILENT)
    theirs = ("verify", "key", root, "--signature", root / SIGNATURE, "--public_key", public)
    assert library(home, *theirs) == 0
    license_text = (root / "LICENSE").read_bytes()
    (root / "LICENSE").write_bytes(b"another")
    assert library(home, *theirs) != 0
    (root / "LICENSE").write_bytes(license_text)

    (root / SIGNATURE).unlink()
    made = ("sign", "key", root, "--signature", root / SIGNATURE, "--private_key", private)
    assert library(home, *made) == 0
    assert verify(root, own, SILENT, key=public).checked.signature.state == "good"


# 500 changed bytes


class Asked:
    """The worker that checks signatures, in one process for all of a test's questions."""

    PROGRAM = (
        "import json, sys; sys.path.insert(0, sys.argv[1]); import verify_signature\n"
        "for line in sys.stdin:\n"
        "    print(json.dumps(verify_signature.main(json.loads(line))), flush=True)\n"
    )

    def __init__(self, python: Path, key: Path) -> None:
        self.key, self.count = key, 0
        self.process = subprocess.Popen(
            [str(python), "-I", "-c", self.PROGRAM, str(WORKERS)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=clean_environment(),
        )  # fmt: skip

    def __call__(self, raw: bytes, digests: Mapping[str, str]) -> str | None:
        """As `workflow.verifying` asks it."""
        assert self.process.stdin
        assert self.process.stdout
        request = {
            "name": "bundle", "digests": dict(digests), "signature": raw.decode("utf-8"),
            "key": str(self.key),
        }  # fmt: skip
        self.count += 1
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer: str | None = json.loads(self.process.stdout.readline())["bad"]
        return answer


@pytest.fixture
def asked(home: Home, keys: tuple[Path, Path]) -> Iterator[Asked]:
    made = Asked(ensure("model-signing", home).python, keys[1])
    yield made
    made.process.kill()
    made.process.communicate()


def change(path: Path, place: int, bit: int) -> None:
    with path.open("r+b") as stream:
        stream.seek(place)
        (value,) = stream.read(1)
        stream.seek(place)
        stream.write(bytes([value ^ bit]))


def refusals(check: Check, root: Path, places: Iterator[tuple[Path, int]]) -> dict[str, int]:
    """Change one bit at each place, check, change it back; gives refusals by file."""
    bits = random.Random(SEED)
    found: dict[str, int] = {}
    for path, place in places:
        times = path.stat().st_atime_ns, path.stat().st_mtime_ns
        bit = 1 << bits.randrange(8)
        change(path, place, bit)
        faults = check(root).faults  # never an error, whatever was hit
        assert faults, f"a changed bit was accepted: {path.name}, byte {place}, {bit:08b}"
        change(path, place, bit)
        os.utime(path, ns=times)
        found[path.name] = found.get(path.name, 0) + 1
    return found


@pytest.mark.faults
def test_500_changed_bits_in_the_demo_bundle_are_refused(
    signed: Path, own: Home, asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """First a file is chosen, each as likely as any other, then a byte of it, then a bit: else
    nearly all places would lie in the weights, whose digest is the simplest of the checks.

    A file that was changed back gets its old time, and here is believed to be the old one by that:
    else the weights would be hashed at every place.
    """
    monkeypatch.setattr(memo_module, "_identity", file_identity)
    monkeypatch.setattr(memo_module, "_touched", lambda path: path.stat().st_mtime)
    check = Check(
        DigestMemo(tmp_path / "digests.json"), Examined(tmp_path / "v.json"), authentic=asked
    )
    assert check(signed).faults == ()
    numbers = random.Random(SEED)
    files = sorted(signed.iterdir())
    sizes = {path: path.stat().st_size for path in files}
    chosen = (numbers.choice(files) for _ in range(PLACES))
    places = ((path, numbers.randrange(sizes[path])) for path in chosen)
    found = refusals(check, signed, places)
    assert sum(found.values()) == PLACES
    assert set(found) == {path.name for path in files}
    after = check(signed)
    assert (after.faults, after.signature.state) == ((), "good")


def test_500_changed_bits_in_a_small_bundle_are_refused(
    own: Home, asked: Asked, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    """Here every byte of the bundle is as likely as any other; a third lies in the signature."""
    root = write_bundle(tmp_path / "bundle")
    sign(root, keys[0], own, SILENT)
    for path in root.iterdir():
        path.chmod(0o644)
    check = Check(
        DigestMemo(tmp_path / "digests.json"), Examined(tmp_path / "v.json"), authentic=asked
    )
    assert check(root).faults == ()
    numbers = random.Random(SEED)
    every = [(path, place) for path in sorted(root.iterdir()) for place in range(_size(path))]
    before = asked.count
    found = refusals(check, root, iter(numbers.sample(every, PLACES)))
    assert sum(found.values()) == PLACES
    assert found[SIGNATURE] > 20
    assert asked.count > before, "no change needed the key to be seen"
    after = check(root)
    assert (after.faults, after.signature.state) == ((), "good")


def _size(path: Path) -> int:
    return path.stat().st_size


# Chat templates in a process of their own

LOOP = "{% for a in range(99999) %}"
ENDLESS = {
    "loops": LOOP * 4 + "{% endfor %}" * 4,
    "powers": "{{ 9 ** (9 ** 9) }}",
    "a long text": "{{ 'x' * 10 ** 10 }}",
    "doubling": "{% set ns = namespace(x='aaaaaaaa') %}{% for i in range(99) %}"
    "{% set ns.x = ns.x ~ ns.x %}{% endfor %}",
    "wide numbers": "{{ '%0999999999d' % 1 }}",
    "deep brackets": "{{ " + "[" * 60_000 + " }}",
}


@pytest.mark.parametrize("name", ENDLESS)
def test_a_template_that_never_ends_is_ended(name: str) -> None:
    started = time.monotonic()
    why = render_apart(ENDLESS[name], True)
    assert why is not None
    assert time.monotonic() - started < 15  # 2 s of processor time


def test_a_usual_template_is_rendered(signed: Path) -> None:
    text = (signed / "chat_template.jinja").read_text(encoding="utf-8")
    assert render_apart(text, True) is None


# Serve


def test_serve_takes_what_is_whole_and_signed_alone(
    signed: Path, own: Home, keys: tuple[Path, Path]
) -> None:
    def serve() -> Ran:
        asked = ("--detach", "--key", keys[1], "--set", "serve.port=0", "--json")
        return deployer("serve", signed, *asked, home=own)

    change(signed / "model.gguf", 5_000_000, 1)
    try:
        ran = serve()
    finally:
        change(signed / "model.gguf", 5_000_000, 1)
    assert (ran.code, ran.error["type"]) == (1, "BundleError")
    assert [each["file"] for each in ran.error["problems"]] == ["model.gguf"]
    assert must("status", home=own)["servers"] == []

    ran = serve()
    assert ran.code == 0, ran.err
    assert ran.document["state"] == "ready"
    must("stop", "--all", home=own)


def test_an_unchanged_bundle_is_checked_at_once(
    signed: Path, own: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memo_module, "SETTLED_SECONDS", -1.0)  # as if it had been there for long
    memory = Check(DigestMemo(tmp_path / "d.json"), Examined(tmp_path / "v.json"))
    assert memory(signed).faults == ()
    again = replace(
        memory,
        memo=DigestMemo.load(tmp_path / "d.json"),
        examined=Examined.load(tmp_path / "v.json"),
    )
    started = time.monotonic()
    assert again(signed).faults == ()
    assert time.monotonic() - started < 0.2
