"""API keys: a file with their digests, and the ring of keys that the gateway lets in.

    {"version": 1, "keys": [{"id": "ops", "sha256": "…", "created": "2026-01-31T12:00:00Z",
                             "models": null, "requests_per_minute": 60,
                             "tokens_per_minute": null, "concurrent": 4}]}

The file never holds a secret. `deployer key` writes it; the gateway only reads it.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from deployer.durable import hold_lock, write_atomically
from deployer.errors import DeployerError, UsageError
from deployer.gateway.events import OnEvent
from deployer.progress import Progress

ANONYMOUS = "anonymous"
"""The id of whoever asks where no key is needed."""
MAX_FILE = 16 << 20
"""Bytes of a keys file beyond which it is not read."""
MAX_KEYS = 10_000
_SHOWN = 80
"""Characters that are told of the place of a problem: names in a file have any length."""
_LONGEST = 512
"""Characters of a secret beyond which it is not even hashed."""
_ID = r"^[A-Za-z0-9][A-Za-z0-9._-]*$"
_SECRET_BYTES = 32

Limit = Annotated[int, Field(ge=1, le=1_000_000_000)]
Model = Annotated[str, Field(pattern=r"^[A-Za-z0-9][\w./:-]*$", max_length=128)]


class Key(BaseModel):
    """Who asks, and what is allowed; None is no limit. `models` are names of routes."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    id: Annotated[str, Field(pattern=_ID, max_length=64)]
    models: tuple[Model, ...] | None = None
    requests_per_minute: Limit | None = None
    tokens_per_minute: Limit | None = None
    concurrent: Limit | None = None

    @classmethod
    def anonymous(cls) -> Key:
        """The key of everybody, where the deployment has no keys."""
        return cls(id=ANONYMOUS)

    def allows(self, model: str) -> bool:
        """Whether requests for the route `model` may come with this key."""
        return self.models is None or model in self.models


class StoredKey(Key):
    """A key as the file holds it. `sha256` is the digest of the whole secret, hexadecimal."""

    # No slow hash and no salt: they make guessing dear, and 256 random bits cannot be guessed.
    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$", repr=False)]
    created: Annotated[str, Field(max_length=40)]

    @field_validator("id")
    @classmethod
    def _not_everybody(cls, value: str) -> str:
        if value == ANONYMOUS:
            raise ValueError(f"{ANONYMOUS} is the name of those without a key")
        return value


class KeyFile(BaseModel):
    """What a keys file holds."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    version: Literal[1] = 1
    keys: Annotated[tuple[StoredKey, ...], Field(max_length=MAX_KEYS)] = ()

    @model_validator(mode="after")
    def _each_once(self) -> KeyFile:
        for values in ([key.id for key in self.keys], [key.sha256 for key in self.keys]):
            if len(set(values)) < len(values):
                raise ValueError("two keys have the same id or digest")
        return self


def read_keys(path: Path) -> KeyFile:
    """Read a keys file; raises UsageError, which never shows what stands in the file."""
    try:
        if path.exists() and not path.is_file():  # a pipe would be waited for, for ever
            raise OSError(errno.EINVAL, "it is no file")
        with path.open("rb") as stream:
            raw = stream.read(MAX_FILE + 1)
    except OSError as error:
        raise UsageError(
            f"the keys file {path} cannot be read: {error.strerror}",
            "Make one: deployer key add NAME --file FILE",
        ) from error
    try:
        if len(raw) > MAX_FILE:
            raise ValueError(f"it is larger than {MAX_FILE >> 20} MiB")
        return KeyFile.model_validate_json(raw)
    except ValueError as error:
        raise UsageError(
            f"{path} is no keys file: {_first_problem(error)}",
            "Only `deployer key` writes keys files; restore a copy or make a new one.",
        ) from error


def _first_problem(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    where = ".".join(map(str, first["loc"]))[:_SHOWN]
    text = f"{where}: {first['msg']}" if where else first["msg"]
    return "".join(each if each.isprintable() else "?" for each in text)


def others_reach(path: Path) -> bool:
    """Whether other users of this machine may read or change the file."""
    return bool(path.stat().st_mode & 0o066)


def warn_of_others(path: Path, progress: Progress) -> None:
    """Warn where others may read a file of secrets, or worse, put their own into it."""
    if others_reach(path):
        progress.warn(f"others on this machine can use {path}; run: chmod 600 {path}")


def _new_secret() -> str:
    text = base64.b32encode(secrets.token_bytes(_SECRET_BYTES)).decode()
    return "dk-" + text.rstrip("=").lower()


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).hexdigest()


class KeyRing:
    """The keys that are let in. A changed file holds from the next request on.

    Without a file (`path` None) the ring is `open`: everybody is let in. With a file that cannot
    be read, what was read before stays; at the start that is nobody.
    """

    def __init__(self, path: Path | None, on_event: OnEvent) -> None:
        self._on_event = on_event
        self._path: Path | None = None
        self._seen: tuple[int, ...] | None = None
        self._keys: dict[str, StoredKey] = {}
        self.use(path)

    @property
    def open(self) -> bool:
        return self._path is None

    @property
    def ids(self) -> frozenset[str]:
        """The ids of all keys."""
        return frozenset({ANONYMOUS} if self.open else (key.id for key in self._keys.values()))

    def use(self, path: Path | None) -> None:
        """Take the keys from another file, or from none; those of the old one are forgotten."""
        if path != self._path:
            self._path, self._seen, self._keys = path, (), {}
            self.check()

    def check(self) -> bool:
        """Read the file again if it is another one; tells whether new keys hold now.

        A file that is bad or gone is refused by an event, once, and changes nothing.
        """
        if self._path is None:
            return False
        seen = _look(self._path)
        if seen == self._seen:
            return False
        self._seen = seen
        try:
            stored = read_keys(self._path).keys
            loose = others_reach(self._path)
        except (DeployerError, OSError) as error:
            self._on_event("keys_refused", reason=str(error), keys=len(self._keys))
            return False
        self._keys = {key.sha256: key for key in stored}
        self._on_event("keys_applied", keys=len(stored), reachable_by_others=loose)
        return True

    def find(self, authorization: str | None) -> Key | None:
        """The key of an Authorization header, None where it opens nothing."""
        if self._path is None:
            return _EVERYBODY
        self.check()
        scheme, _, secret = (authorization or "").partition(" ")
        if scheme.lower() != "bearer" or len(secret) > _LONGEST:
            return None
        # How long this takes may depend on the digest, which tells nothing about any secret.
        return self._keys.get(_digest(secret.strip(" ")))


_EVERYBODY = Key.anonymous()


def _look(path: Path) -> tuple[int, ...] | None:
    """What changes with the file, its rights too; None where there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return (
        status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns,
    )  # fmt: skip


def new_key(
    id: str,
    *,
    models: tuple[str, ...] | None = None,
    requests_per_minute: int | None = None,
    tokens_per_minute: int | None = None,
    concurrent: int | None = None,
) -> Key:
    """A key with its limits; raises UsageError for a name or a limit that cannot be."""
    try:
        key = StoredKey(
            id=id,
            models=models,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            concurrent=concurrent,
            sha256="0" * 64,
            created="",
        )
    except ValidationError as error:
        raise UsageError(
            f"there can be no such key: {_first_problem(error)}",
            "Names have letters, digits, dots, dashes and underscores, 64 characters at most.",
        ) from error
    return Key(**key.model_dump(exclude={"sha256", "created"}))


def add_key(path: Path, key: Key, progress: Progress) -> str:
    """Add a key to a file, which is made where there is none; returns the secret.

    This is the only time that anybody sees it. Raises UsageError where the id is taken.
    """
    secret = _new_secret()
    created = datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z")
    with _changing(path, progress) as (target, stored):
        if any(other.id == key.id for other in stored):
            raise UsageError(
                f"{path} has a key {key.id} already",
                f"Choose another name, or first: deployer key revoke {key.id} --file {path}",
            )
        if len(stored) >= MAX_KEYS:
            raise UsageError(
                f"{path} has {len(stored)} keys, and there can be no more",
                f"Revoke one: deployer key revoke NAME --file {path}",
            )
        new = StoredKey(**key.model_dump(), sha256=_digest(secret), created=created)
        _save(target, (*stored, new))
    return secret


def revoke_key(path: Path, id: str, progress: Progress) -> None:
    """Take a key out of a file; raises UsageError where there is none of that id."""
    read_keys(path)  # must be there: nothing is made for a wrong name
    with _changing(path, progress) as (target, stored):
        left = tuple(key for key in stored if key.id != id)
        if len(left) == len(stored):
            raise UsageError(
                f"{path} has no key {id}", f"List them: deployer key list --file {path}"
            )
        _save(target, left)


@contextmanager
def _changing(path: Path, progress: Progress) -> Iterator[tuple[Path, tuple[StoredKey, ...]]]:
    """The file itself, where `path` is a link to it, and its keys, while nobody else writes it."""
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise UsageError(f"there is no folder {target.parent}", "Make it first.")
    if target.exists():
        _require_ours(target)
    lock = target.with_name(f".{target.name}.lock")
    with hold_lock(lock, f"another command changes {path}", progress):
        yield target, read_keys(target).keys if target.exists() else ()


def _require_ours(path: Path) -> None:
    """A file of another user's would become ours, and he could read it no more."""
    if path.stat().st_uid != os.geteuid():
        raise UsageError(
            f"{path} belongs to another user", "Run this command as the user who owns the file."
        )


def _save(path: Path, keys: tuple[StoredKey, ...]) -> None:
    text = KeyFile(keys=keys).model_dump_json(indent=2) + "\n"
    try:
        write_atomically(path, text, mode=0o600)
    except OSError as error:
        raise UsageError(
            f"cannot write {path}: {error.strerror}",
            "Check free space, and who may write to its folder.",
        ) from error
