"""What is checked before a server is started, each with the sentence the user gets."""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket
from pathlib import Path

import psutil

from deployer.artifacts import FOLDER, Bundle
from deployer.engines import Memory
from deployer.errors import PlanError, ServerError, UsageError
from deployer.progress import Progress
from deployer.recipe import Serve


def read_key(path: Path, progress: Progress) -> str:
    """The first API key of a key file; raises UsageError where no server could use the file."""
    try:
        lines = path.read_bytes().decode("utf-8").split("\n")
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
        raise UsageError(
            f"the API key file {path} cannot be read: {reason}",
            "serve.api_key_file names a file with one key a line.",
        ) from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise UsageError(
            f"the API key file {path} holds no key", "Write one key a line; # starts a comment."
        )
    if any(key != key.strip() or not key.isascii() or not key.isprintable() for key in keys):
        raise UsageError(
            f"a key of {path} has spaces at its ends or characters no header can carry",
            "Write one key a line, in ASCII, with Unix line ends.",
        )
    if mode & 0o044:
        progress.warn(f"others on this machine can read {path}; run: chmod 600 {path}")
    return keys[0]


def check_exposure(host: str, has_key: bool) -> None:
    """Refuse to listen beyond this machine without an API key; raises UsageError."""
    if not has_key and not _is_loopback(host):
        raise UsageError(
            f"serve.host {host} can be reached from other machines, and there is no API key",
            "Set serve.api_key_file, or serve.host to 127.0.0.1.",
        )


def _is_loopback(host: str) -> bool:
    return all(ipaddress.ip_address(address).is_loopback for _, address in _addresses(host))


def _addresses(host: str) -> list[tuple[socket.AddressFamily, str]]:
    with contextlib.suppress(ValueError):
        version = ipaddress.ip_address(host).version
        return [(socket.AF_INET if version == 4 else socket.AF_INET6, host)]
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(
            f"serve.host {host} is no address of this machine: {error.strerror}",
            "Use 127.0.0.1, or an address that `ip address` lists.",
        ) from error
    return [(family, str(address[0]).split("%")[0]) for family, _, _, _, address in found]


def take_port(host: str, port: int) -> int:
    """The port to listen on: `port` where it is free, any free one for 0.

    Raises ServerError naming who holds it, UsageError where it cannot be used at all. The engine
    binds it later, so this is a check and no promise.
    """
    family, address = _addresses(host)[0]
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((address, port))
            probe.listen(1)  # two sockets may be bound with SO_REUSEADDR, but only one can listen
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise port_in_use(host, port) from error
            raise UsageError(
                f"cannot listen on {host}:{port}: {error.strerror}",
                "Use a port of 1024 or above, and an address of this machine.",
            ) from error
        return int(probe.getsockname()[1])


def port_in_use(host: str, port: int) -> ServerError:
    """The error for a port that somebody else listens on."""
    return ServerError(
        f"port {port} of {host} is in use{_holder(port)}",
        f"Use another one (--set serve.port={port + 1 if port < 65535 else 8080}, or 0 for any "
        "free one); `deployer status` lists the servers deployer runs.",
    )


def _holder(port: int) -> str:
    """` by pid N (NAME)` where the process can be found, else ""."""
    try:
        for connection in psutil.net_connections(kind="tcp"):
            listens = connection.status == psutil.CONN_LISTEN
            if listens and getattr(connection.laddr, "port", 0) == port and connection.pid:
                return f" by pid {connection.pid} ({psutil.Process(connection.pid).name()})"
    except psutil.Error:
        pass
    return ""


def check_memory(needed: Memory, serve: Serve, available: int) -> None:
    """Refuse a server that cannot fit; raises PlanError with the arithmetic (bytes in)."""
    if needed.total <= available:
        return
    raise PlanError(
        f"serving needs {_gib(needed.total)} of memory and {_gib(available)} are available: "
        f"weights {_gib(needed.weights)} + cache {_gib(needed.cache)} ({serve.parallel} slots of "
        f"{serve.context} tokens) + buffers {_gib(needed.buffers)}",
        _what_fits(needed, serve, available),
    )


def _what_fits(needed: Memory, serve: Serve, available: int) -> str:
    room = available - needed.weights - needed.buffers
    slots = room * serve.parallel // needed.cache if needed.cache and room > 0 else 0
    if slots >= 1 and serve.vllm.kv_cache_gib is not None:
        return f"With --set serve.vllm.kv_cache_gib={room * 10 // (1 << 30) / 10:g} it fits."
    if slots >= 1:
        return f"With --set serve.parallel={slots} it fits; a smaller serve.context helps as well."
    return "Free memory, or build a bundle with fewer bits per weight."


def _gib(size: int) -> str:
    return f"{size / (1 << 30):.2f} GiB"


def check_weights(bundle: Bundle) -> None:
    """The weights are there and as long as the manifest says; raises ServerError."""
    weights = bundle.manifest.weights
    if not bundle.weights.exists():
        raise _absent(bundle, weights)
    for entry in bundle.manifest.files:
        checkpoint = weights == FOLDER and entry.path.endswith((".safetensors", ".json"))
        if entry.path != weights and not checkpoint:
            continue
        path = bundle.root / entry.path
        try:
            size = path.stat().st_size
        except OSError as error:
            raise _absent(bundle, entry.path) from error
        if entry.size != size:
            raise ServerError(
                f"{path} has {size} bytes, its manifest says {entry.size}: it is damaged",
                "Build it again with `deployer build`.",
            )


def _absent(bundle: Bundle, name: str) -> ServerError:
    return ServerError(
        f"the bundle {bundle.root} has no {name}", "Build it again with `deployer build`."
    )


def check_lora(serve: Serve) -> None:
    """Every LoRA adapter is a folder with its two files; raises UsageError."""
    for adapter in serve.vllm.lora:
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            if not (Path(adapter.path) / name).is_file():
                raise UsageError(
                    f"the LoRA adapter {adapter.name} has no {name} in {adapter.path}",
                    "serve.vllm.lora names the folder the adapter was saved to; relative to the "
                    "recipe.",
                )
