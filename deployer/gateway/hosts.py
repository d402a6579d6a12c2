"""By which names the gateway may be reached without a key.

A web page whose name is made to point at this machine (DNS rebinding) gets past the browser's
guards; the browser tells that name in the header `Host`. An address there was typed as one, and no
name that ends in `localhost` ever points elsewhere, so that neither can be such a page's.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from ipaddress import ip_address


def are_ours(told: Iterable[str], names: tuple[str, ...]) -> bool:
    """Whether each `Host` that was told is an address, localhost, or one of `names`.

    Programs that tell none are no browsers, and may pass.
    """
    return all(_is_ours(host, names) for host in told)


@lru_cache(256)
def _is_ours(host: str, names: tuple[str, ...]) -> bool:
    host = host.strip().lower()
    name, colon, port = host.rpartition(":") if not host.endswith("]") else (host, "", "")
    if not colon:
        name = host
    elif not port.isdecimal():
        return False
    name = name.removesuffix(".")
    if name == "localhost" or name.endswith(".localhost"):
        return True
    return _is_address(name) or any(name == each.lower() for each in names)


def _is_address(name: str) -> bool:
    bare = name[1:-1] if name.startswith("[") and name.endswith("]") else name
    try:
        return (ip_address(bare).version == 6) == (bare is not name)
    except ValueError:
        return False
