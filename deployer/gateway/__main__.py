"""`python -m deployer.gateway FOLDER [--fd N]`: the gateway of the deployment in FOLDER.

FOLDER holds table.json; events.jsonl is written there, and what goes wrong to standard error.
With --fd the listening socket is inherited under that number.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import socket
import sys
from collections.abc import Callable
from pathlib import Path

from deployer.errors import DeployerError
from deployer.gateway.life import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m deployer.gateway")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--fd", type=int)
    given = parser.parse_args()
    logging.basicConfig(format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    try:
        listening = None if given.fd is None else socket.socket(fileno=given.fd)
        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(run(given.folder, listening))
    except DeployerError as error:
        sys.stderr.write(f"{error.message}\n{error.hint}\n")
        return error.exit_code
    return 0


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """uvloop where it is installed, since it costs less; else asyncio's own loop."""
    try:
        import uvloop
    except ImportError:
        return None
    return uvloop.new_event_loop


if __name__ == "__main__":
    sys.exit(main())
