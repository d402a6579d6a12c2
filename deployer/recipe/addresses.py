"""Addresses as recipes and commands write them. Pure."""

from __future__ import annotations

import ipaddress


def on_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens on `host`; no name is looked up."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
