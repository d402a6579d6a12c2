"""The address a server listens on: whom it lets in, whether it is free, and who holds it.

`section` is the part of the recipe or deployment that names the address, for the user's sake.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import socket

import psutil

from deployer.errors import ServerError, UsageError

BACKLOG = 4096
"""Connections the kernel keeps until they are accepted; its own limit may be lower."""


def is_loopback(host: str, section: str = "serve") -> bool:
    """Whether only this machine can reach `host`; raises UsageError where it is no address."""
    found = _addresses(host, section)
    return all(ipaddress.ip_address(address).is_loopback for _, address in found)


def listen(host: str, port: int, section: str = "serve") -> socket.socket:
    """A socket that listens at `port`, any free one for 0.

    Raises ServerError naming who holds the port, UsageError where it cannot be used at all.
    """
    family, address = _addresses(host, section)[0]
    listening = socket.socket(family, socket.SOCK_STREAM)
    try:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind((address, port))
        listening.listen(BACKLOG)  # two may be bound with SO_REUSEADDR, but only one can listen
    except OSError as error:
        listening.close()
        if error.errno == errno.EADDRINUSE:
            raise port_in_use(host, port, section) from error
        raise UsageError(
            f"cannot listen on {host}:{port}: {error.strerror}",
            "Use a port of 1024 or above, and an address of this machine.",
        ) from error
    return listening


def port_in_use(host: str, port: int, section: str = "serve") -> ServerError:
    """The error for a port that somebody else listens on."""
    other = port + 1 if port < 65535 else 8080
    return ServerError(
        f"port {port} of {host} is in use{_holder(port)}",
        f"Use another one (--set {section}.port={other}, or 0 for any free one); "
        "`deployer status` lists the servers deployer runs.",
    )


def _addresses(host: str, section: str) -> list[tuple[socket.AddressFamily, str]]:
    with contextlib.suppress(ValueError):
        version = ipaddress.ip_address(host).version
        return [(socket.AF_INET if version == 4 else socket.AF_INET6, host)]
    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise UsageError(
            f"{section}.host {host} is no address of this machine: {error.strerror}",
            "Use 127.0.0.1, or an address that `ip address` lists.",
        ) from error
    return [(family, str(address[0]).split("%")[0]) for family, _, _, _, address in found]


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
