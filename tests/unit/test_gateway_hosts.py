"""Names that a page made to point at this machine cannot have, and all others."""

from __future__ import annotations

import pytest

from deployer.gateway.hosts import are_ours

NAMES = ("127.0.0.1", "Chat.internal")
OURS = (
    "localhost", "localhost:8000", "LOCALHOST:1", "localhost.", "api.localhost:8000", "127.0.0.1",
    "127.0.0.1:8000", "10.0.0.7:80", "[::1]", "[::1]:8000", "[fe80::1]:1", "chat.internal",
    "chat.internal:8000", "CHAT.INTERNAL.",
)  # fmt: skip
OTHERS = (
    "evil.example", "evil.example:8000", "127.0.0.1.evil.example", "notlocalhost",
    "localhost.evil.example", "localhost:evil", "localhost:80:80", "::1", "[::1", "[127.0.0.1]",
    "127.1", "0x7f000001", "2130706433", "user@localhost", "localhost/evil", "evil.chat.internal",
    "", ":8000", "[]", "localhost evil.example",
)  # fmt: skip


@pytest.mark.parametrize("host", OURS)
def test_addresses_localhost_and_the_given_names_are_ours(host: str) -> None:
    assert are_ours([host], NAMES)


@pytest.mark.parametrize("host", OTHERS)
def test_all_others_are_not(host: str) -> None:
    assert not are_ours([host], NAMES)
    assert not are_ours(["localhost", host], NAMES)


def test_who_tells_none_is_no_browser() -> None:
    assert are_ours([], ())
