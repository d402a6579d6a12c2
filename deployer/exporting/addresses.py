"""Where servers listen and where their bundle lies, as far as several targets ask. Pure."""

from __future__ import annotations

from deployer.errors import PlanError
from deployer.exporting.deployment import Options

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def url(host: str, port: int) -> str:
    """Where this machine reaches what listens on `host`."""
    reachable = _EVERYWHERE.get(host, host)
    return f"http://[{reachable}]:{port}" if ":" in reachable else f"http://{reachable}:{port}"


def require_folder(options: Options) -> None:
    """Raise PlanError where the bundle's place is a reference that no file system knows."""
    if options.model and "://" in options.model:
        raise PlanError(
            f"a server without containers cannot read {options.model}",
            "Name the folder on that machine where the bundle lies.",
        )
