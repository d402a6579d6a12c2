"""API keys from a file, so that none stands in argv, and the check of them in front of a server."""

import hashlib
import hmac
import json
from pathlib import Path

OPEN_PATHS = ("/health",)
REFUSAL = json.dumps(
    {"error": {"message": "Invalid API key", "type": "authentication_error", "code": 401}}
).encode()
KEY_DIGESTS = []
"""SHA-256 of every key that opens the server."""


def accept_keys_of(path):
    """Let the keys of a file open the server."""
    KEY_DIGESTS.extend(hashlib.sha256(key.encode()).digest() for key in read_keys(path))


def read_keys(path):
    """One key a line; empty lines and lines that start with # are none."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


class RequireKey:
    """ASGI middleware: answers 401 unless a request carries one of the keys."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan" or scope["path"] in OPEN_PATHS or _has_key(scope):
            await self.app(scope, receive, send)
            return
        if scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        headers = [(b"content-type", b"application/json"), (b"www-authenticate", b"Bearer")]
        await send({"type": "http.response.start", "status": 401, "headers": headers})
        await send({"type": "http.response.body", "body": REFUSAL})


def _has_key(scope):
    scheme, _, key = dict(scope["headers"]).get(b"authorization", b"").partition(b" ")
    digest = hashlib.sha256(key).digest()
    # Every digest is compared, so that the time tells nothing about which one fits.
    matches = [hmac.compare_digest(digest, known) for known in KEY_DIGESTS]
    return scheme.lower() == b"bearer" and any(matches)
