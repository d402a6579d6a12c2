"""A gateway that cannot work, or that lets everybody in, is refused before anything starts."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest

from deployer.deployments import preflight
from deployer.deployments.preflight import check_address, check_gateway, check_same_door
from deployer.errors import ServerError, UsageError
from deployer.progress import Silent
from deployer.recipe.deployment import Gateway

KEY = {"id": "ops", "sha256": "0" * 64, "created": "2026-01-31T12:00:00Z", "models": None,
       "requests_per_minute": None, "tokens_per_minute": None, "concurrent": None}  # fmt: skip


class Warnings(Silent):
    def __init__(self) -> None:
        self.said: list[str] = []

    def warn(self, message: str) -> None:
        self.said.append(message)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    path = tmp_path / "keys.json"
    path.touch(mode=0o600)
    path.write_text(json.dumps({"version": 1, "keys": [KEY]}), encoding="utf-8")
    return path


def test_beyond_this_machine_keys_are_needed_and_encryption_is_wanted(keys: Path) -> None:
    said = Warnings()
    check_gateway(Gateway(host="127.0.0.1"), said)
    with pytest.raises(UsageError, match=r"0\.0\.0\.0 can be reached from other machines"):
        check_gateway(Gateway(host="0.0.0.0"), said)
    assert said.said == []
    check_gateway(Gateway(host="0.0.0.0", keys=str(keys)), said)
    assert len(said.said) == 1
    assert "unencrypted" in said.said[0]


def test_keys_that_others_can_read_are_warned_of(keys: Path) -> None:
    keys.chmod(0o644)
    said = Warnings()
    check_gateway(Gateway(keys=str(keys)), said)
    assert said.said == [f"others on this machine can use {keys}; run: chmod 600 {keys}"]


def test_keys_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read"):
        check_gateway(Gateway(keys=str(tmp_path / "none.json")), Warnings())
    empty = tmp_path / "empty.json"
    empty.write_text('{"version": 1, "keys": []}', encoding="utf-8")
    with pytest.raises(UsageError, match="holds no key"):
        check_gateway(Gateway(keys=str(empty)), Warnings())


def test_a_certificate_that_is_none(tmp_path: Path) -> None:
    for name in ("certificate.pem", "key.pem"):
        (tmp_path / name).write_text("nothing", encoding="utf-8")
    files = {
        "certificate": str(tmp_path / "certificate.pem"),
        "private_key": str(tmp_path / "key.pem"),
    }
    with pytest.raises(UsageError, match="cannot be used"):
        check_gateway(Gateway(**files), Warnings())
    missing = {**files, "certificate": str(tmp_path / "none.pem")}
    with pytest.raises(UsageError, match="No such file"):
        check_gateway(Gateway(**missing), Warnings())


def test_a_private_key_that_others_can_read_is_warned_of(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "key.pem"
    key.touch(mode=0o600)
    monkeypatch.setattr(preflight, "_check_certificate", lambda *_: None)  # that it is a good one
    said = Warnings()
    gateway = Gateway(certificate="certificate.pem", private_key=str(key))
    check_gateway(gateway, said)
    assert said.said == []
    key.chmod(0o640)
    check_gateway(gateway, said)
    assert said.said == [f"others on this machine can use {key}; run: chmod 600 {key}"]


def test_a_taken_port_is_told_in_the_gateways_terms() -> None:
    check_address(Gateway(port=0))
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(ServerError, match=f"port {port} of 127.0.0.1 is in use by pid") as told:
            check_address(Gateway(port=port))
    assert "--set gateway.port=" in told.value.hint


def test_what_clients_connect_to_stays() -> None:
    check_same_door(Gateway(port=8000), Gateway(port=8000, max_waiting=1, keys="k"))
    for runs, wanted, told in (
        (Gateway(port=8000), Gateway(port=8001), r"gateway\.port is 8000 and cannot become 8001"),
        (Gateway(), Gateway(host="::1"), r"gateway\.host is 127\.0\.0\.1"),
        (Gateway(), Gateway(certificate="c", private_key="k"), "TLS cannot be switched"),
    ):
        with pytest.raises(UsageError, match=told):
            check_same_door(runs, wanted)
