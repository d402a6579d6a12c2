"""Verify a bundle, demand that it is whole, and sign it."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from deployer.artifacts import MANIFEST, SIGNATURE, Bundle
from deployer.durable import disk_error, write_atomically
from deployer.errors import SHOWN_PROBLEMS, BundleError, Fault, StageError, UsageError
from deployer.home import Home
from deployer.memo import DigestMemo
from deployer.progress import Progress
from deployer.toolchains.provision import ensure
from deployer.toolchains.worker import run_worker
from deployer.verification import Check, Checked, Examined
from deployer.verification.reading import Unreadable
from deployer.verification.signature import compare, parse_signature
from deployer.workflow.bundles import find_root

TOOLCHAIN = "model-signing"
REBUILD = "Copy it again from where it was made, or build it again."


@dataclass(frozen=True)
class Verification:
    """What `deployer verify` found of the bundle in `root`."""

    root: Path
    checked: Checked

    @property
    def ok(self) -> bool:
        return not self.checked.faults

    @property
    def name(self) -> str:
        manifest = self.checked.manifest
        return manifest.name if manifest else self.root.name

    def as_json(self) -> dict[str, Any]:
        manifest = self.checked.manifest
        return {
            "ok": self.ok,
            "bundle": str(self.root),
            "digest": manifest.digest if manifest else None,
            "signature": self.checked.signature.as_json(),
            "problems": [fault.as_json() for fault in self.checked.faults],
            "checked": {"files": self.checked.files, "bytes": self.checked.bytes},
        }

    def describe(self) -> list[str]:
        """The result in words."""
        checked = self.checked
        count = len(checked.faults)
        verdict = "good" if self.ok else f"{count} problem{'s' if count != 1 else ''}"
        lines = [
            f"{self.name}: {verdict} ({checked.files} files, {checked.bytes / 1e6:.1f} MB compared)"
        ]
        lines += [f"  {fault}" for fault in checked.faults[:SHOWN_PROBLEMS]]
        if count > SHOWN_PROBLEMS:
            lines.append(f"  … and {count - SHOWN_PROBLEMS} more; --json has them all")
        if checked.manifest:
            lines.append(f"Digest: {checked.manifest.digest}")
        return [*lines, f"Signature: {_in_words(checked)}"]


def _in_words(checked: Checked) -> str:
    found = checked.signature
    by = f" by the key {found.key[:16]}…" if found.key else ""
    if found.state == "unchecked":
        tried = "" if checked.faults else "; give --key"
        return f"there is one{by}, not checked{tried}"
    return {"none": "none", "good": f"good,{by}", "bad": f"BAD{',' + by if by else ''}"}[
        found.state
    ]


def verify(
    what: str | Path,
    home: Home,
    progress: Progress,
    *,
    key: Path | None = None,
    full: bool = False,
) -> Verification:
    """Check a bundle, named by its folder or its name, and give all that is wrong with it.

    With `key`, a PEM file with a public key, it must have a good signature by that key. `full`
    hashes files again that were hashed before and seem unchanged. Raises UsageError where there is
    no such bundle, or the key is none; ToolchainError where the library for signatures cannot be
    had.
    """
    root = _root(what, home)
    return Verification(root, _check(home, progress, key, full)(root, progress))


def require_whole(bundle: Bundle, home: Home, progress: Progress, key: Path | None = None) -> None:
    """Raise BundleError, with every problem, unless a bundle is as it was made and fit to be used.

    Files that were hashed before and are unchanged are not read again. Raises as `verify` does.
    """
    checked = _check(home, progress, key)(bundle.root, progress)
    faults = list(checked.faults)
    if checked.manifest is not None and checked.manifest != bundle.manifest:
        faults.append(Fault(MANIFEST, "was replaced while the bundle was being opened"))
    if faults:
        raise BundleError(bundle.root, faults, _hint(checked, key))


def _hint(checked: Checked, key: Path | None) -> str:
    only_signature = all(fault.file == SIGNATURE for fault in checked.faults)
    if key is None or not only_signature:
        return REBUILD
    if checked.signature.state == "none":
        return "Whoever made it can sign it: deployer sign BUNDLE --key PRIVATE.pem"
    return "Give --key the public key of whoever signed it; else do not trust the bundle."


@dataclass(frozen=True)
class Signed:
    """A bundle with its new signature; `key` is the SHA-256 of the public key's PEM text."""

    root: Path
    name: str
    digest: str
    key: str

    @property
    def path(self) -> Path:
        return self.root / SIGNATURE

    def as_json(self) -> dict[str, Any]:
        return {
            "bundle": str(self.root),
            "name": self.name,
            "digest": self.digest,
            "signature": str(self.path),
            "key": self.key,
        }

    def describe(self) -> list[str]:
        """The result in words."""
        return [
            f"Signed {self.name} ({self.digest[:12]}) with the key {self.key[:16]}…: {self.path}",
            f"Check it: deployer verify {self.root} --key PUBLIC.pem",
        ]


def sign(
    what: str | Path,
    key: Path,
    home: Home,
    progress: Progress,
    *,
    password_file: Path | None = None,
    replace: bool = False,
) -> Signed:
    """Sign a bundle that is whole with a private key, a PEM file.

    Every file is covered, the manifest too. Raises UsageError where it is signed already and
    `replace` is not set, and for keys that cannot be used; BundleError where it is not whole.
    """
    root = _root(what, home)
    if os.path.lexists(root / SIGNATURE) and not replace:
        raise UsageError(f"{root} is signed already", "Sign it anew with --replace.")
    _warn_of_readers(key, progress)
    checked = _check(home, progress, None)(root, progress)
    faults = [fault for fault in checked.faults if fault.file != SIGNATURE]
    if faults or checked.manifest is None:
        raise BundleError(root, faults, "Only a bundle that is whole is signed. " + REBUILD)
    request = {
        "key": str(key.absolute()),
        "password_file": str(password_file.absolute()) if password_file else None,
    }
    response = _ask_library("sign_bundle", checked.manifest.name, checked.digests, request, home,
                            progress)  # fmt: skip
    hint = _publish(root, response["signature"], checked.digests, home)
    return Signed(root, checked.manifest.name, checked.manifest.digest, hint)


def _publish(root: Path, text: str, digests: Mapping[str, str], home: Home) -> str:
    """Write the signature, which must be of these files; gives the key it names."""
    try:
        signature = parse_signature(text.encode())
    except Unreadable as error:
        raise StageError(
            f"the library made a signature that {error}", "This is a bug; please report it."
        ) from error
    if compare(signature, digests):
        raise StageError(
            "the library made a signature of other files", "This is a bug; please report it."
        )
    try:
        write_atomically(root / SIGNATURE, text)
        (root / SIGNATURE).chmod(stat.S_IRUSR | stat.S_IRGRP | stat.S_IROTH)
    except OSError as error:
        raise disk_error(error, root) from error
    return signature.key


def _root(what: str | Path, home: Home) -> Path:
    """The bundle's folder, absolute; raises UsageError where there is none."""
    found = Path(what) if Path(what).is_dir() else find_root(str(what), home)
    return found.absolute()


def _check(home: Home, progress: Progress, key: Path | None, full: bool = False) -> Check:
    if key is not None and not key.is_file():
        raise UsageError(f"there is no key {key}", "Name a PEM file with a public key.")
    return Check(
        DigestMemo.load(home.cache / "digests.json"),
        Examined.load(home.cache / "verified.json"),
        authentic=partial(_authentic, key.absolute(), home, progress) if key else None,
        full=full,
    )


def _authentic(
    key: Path, home: Home, progress: Progress, raw: bytes, digests: Mapping[str, str]
) -> str | None:
    """Why a signature of these files is not by this key; None where it is."""
    request = {"key": str(key), "signature": raw.decode("utf-8")}
    response = _ask_library("verify_signature", "bundle", digests, request, home, progress)
    bad = response["bad"]
    return None if bad is None else str(bad)


def _ask_library(
    worker: str,
    name: str,
    digests: Mapping[str, str],
    request: Mapping[str, Any],
    home: Home,
    progress: Progress,
) -> dict[str, Any]:
    """Run a worker of the library's toolchain; what it explains is about the key it was given."""
    toolchain = ensure(TOOLCHAIN, home, progress)
    log = home.logs / "signatures" / f"{worker}.log"
    try:
        return run_worker(
            toolchain, worker, {**request, "name": name, "digests": dict(digests)}, log_path=log
        )
    except StageError as error:
        raise UsageError(error.message, error.hint) from error


def _warn_of_readers(key: Path, progress: Progress) -> None:
    try:
        mode = key.stat().st_mode
    except OSError as error:
        raise UsageError(
            f"the key {key} cannot be read: {error.strerror}",
            "Name a PEM file with a private key; docs/verify.md says how one is made.",
        ) from error
    if mode & 0o077:
        progress.warn(f"others on this machine can use {key}; run: chmod 600 {key}")
