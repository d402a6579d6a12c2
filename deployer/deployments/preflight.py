"""What is checked of a gateway before it is started or changed, with the sentences for a user."""

from __future__ import annotations

import ssl
from pathlib import Path

from deployer.errors import UsageError
from deployer.gateway.keys import read_keys, warn_of_others
from deployer.gateway.tracing import check_packages
from deployer.progress import Progress
from deployer.recipe.deployment import Gateway
from deployer.serving.listening import is_loopback, listen


def check_gateway(gateway: Gateway, progress: Progress) -> None:
    """Its files can be used, and nobody is let in by an oversight; raises UsageError."""
    _check_exposure(gateway, progress)
    if gateway.keys is not None:
        _check_keys(gateway.keys, progress)
    if gateway.certificate is not None and gateway.private_key is not None:
        _check_certificate(gateway.certificate, gateway.private_key)
        warn_of_others(Path(gateway.private_key), progress)
    if gateway.traces is not None:
        check_packages()


def check_address(gateway: Gateway) -> None:
    """Nobody listens there yet; raises ServerError naming who does, UsageError for no address."""
    listen(gateway.host, gateway.port, "gateway").close()


def check_same_door(runs: Gateway, wanted: Gateway) -> None:
    """What clients connect to cannot change while they are connected; raises UsageError."""
    for name in ("host", "port"):
        before, after = getattr(runs, name), getattr(wanted, name)
        if before != after:
            raise UsageError(
                f"gateway.{name} is {before} and cannot become {after} while the gateway runs",
                "Stop the deployment and serve it again.",
            )
    if (runs.certificate is None) != (wanted.certificate is None):
        raise UsageError(
            "TLS cannot be switched on or off while the gateway runs",
            "Stop the deployment and serve it again.",
        )


def _check_exposure(gateway: Gateway, progress: Progress) -> None:
    if is_loopback(gateway.host, "gateway"):
        return
    if gateway.keys is None:
        raise UsageError(
            f"gateway.host {gateway.host} can be reached from other machines, and it has no keys",
            "Make some (deployer key add NAME --file keys.json) and set gateway.keys, or set "
            "gateway.host to 127.0.0.1.",
        )
    if gateway.certificate is None:
        progress.warn(
            f"keys and prompts reach {gateway.host} unencrypted: set gateway.certificate and "
            "gateway.private_key, or let a proxy in front do TLS"
        )


def _check_keys(name: str, progress: Progress) -> None:
    path = Path(name)
    if not read_keys(path).keys:
        raise UsageError(
            f"the keys file {path} holds no key", f"Add one: deployer key add NAME --file {path}"
        )
    warn_of_others(path, progress)


def _check_certificate(certificate: str, private_key: str) -> None:
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(
            certificate,
            private_key,
            password="",  # else it would ask for one on the terminal
        )
    except (OSError, ssl.SSLError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise UsageError(
            f"the certificate {certificate} and the key {private_key} cannot be used: {reason}",
            "Give PEM files that belong together, and a key without a passphrase.",
        ) from error
