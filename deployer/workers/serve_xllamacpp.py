"""Run llama.cpp's native HTTP server out of the xllamacpp wheel, with llama-server's arguments.

Started by deployer with the `llama-cpp` toolchain's Python; needs xllamacpp only.

SIGTERM drains: from then on no new connection is accepted, running and queued requests are
finished for up to `--drain-timeout` seconds, then the process exits with status 0. A second
SIGTERM or SIGINT exits at once with status 1.
"""

import argparse
import os
import re
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path

POLL_SECONDS = 0.1


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--alias", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ctx-size", type=int, required=True)
    parser.add_argument("--parallel", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--threads-batch", type=int)
    parser.add_argument("--threads-http", type=int)
    parser.add_argument("--batch-size", type=int)
    parser.add_argument("--ubatch-size", type=int)
    parser.add_argument("--n-gpu-layers", type=int)
    parser.add_argument("--cache-ram", type=int)
    parser.add_argument("--cors-origins")
    parser.add_argument("--api-key-file")
    parser.add_argument("--drain-timeout", type=float, default=30.0)
    for flag in ("--metrics", "--slots", "--no-webui", "--no-context-shift", "--jinja"):
        parser.add_argument(flag, action="store_true")
    return parser.parse_args(argv)


def read_keys(path: str) -> list[str]:
    """One key a line; empty lines and lines that start with # are none (as in llama-server)."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line and not line.startswith("#")]


def api_keys(path: str | None, environ: Mapping[str, str]) -> list[str]:
    """The keys of the file, else those of the variable that llama-server reads, if any."""
    if path:
        return read_keys(path)
    return [key for key in environ.get("LLAMA_API_KEY", "").split(",") if key]


def parameters(args: argparse.Namespace):
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = args.model
    params.model_alias = {args.alias}
    params.hostnames = [args.host]
    params.port = args.port
    params.n_ctx = args.ctx_size
    params.n_parallel = args.parallel
    params.kv_unified = False
    params.cpuparams.n_threads = args.threads
    params.cpuparams_batch.n_threads = args.threads_batch or args.threads
    params.ctx_shift = not args.no_context_shift
    params.use_jinja = args.jinja
    params.endpoint_metrics = args.metrics
    params.endpoint_slots = args.slots
    params.ui = not args.no_webui
    params.offline = True
    if keys := api_keys(args.api_key_file, os.environ):
        params.api_keys = keys
    if args.cors_origins:
        params.cors_origins = args.cors_origins
        params.cors_origins_explicit = True
    optional = {
        "n_gpu_layers": args.n_gpu_layers,
        "cache_ram_mib": args.cache_ram,
        "n_threads_http": args.threads_http,
        "n_batch": args.batch_size,
        "n_ubatch": args.ubatch_size,
    }
    for name, value in optional.items():
        if value is not None:
            setattr(params, name, value)
    return params


def listening_descriptors(port: int) -> list[int]:
    """This process's listening TCP sockets on `port`."""
    found = []
    for entry in Path("/proc/self/fd").iterdir():
        try:
            copy = socket.socket(fileno=os.dup(int(entry.name)))
        except OSError:  # not a socket, or the descriptor of this very listing
            continue
        with copy:
            if copy.family not in (socket.AF_INET, socket.AF_INET6):
                continue
            listens = copy.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
            if listens and copy.getsockname()[1] == port:
                found.append(int(entry.name))
    return found


def refuse_new_connections(host: str, port: int) -> None:
    """Put a socket that nobody can reach in the place of the listening one.

    Closing or shutting down the server's socket is no way: the server takes that for its own
    end and cuts every stream. It accepts on the descriptor's number, so another socket under that
    number leaves it waiting for good. The kernel keeps the old socket alive inside the accept
    call that is under way; one last connection ends that call, and with it the old socket.
    """
    mute = socket.socket(socket.AF_UNIX)
    mute.bind("")  # an address of the kernel's choice, in no folder
    mute.listen(1)
    for descriptor in listening_descriptors(port):
        os.dup2(mute.fileno(), descriptor)
    reachable = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    try:
        socket.create_connection((reachable, port), timeout=1.0).close()
    except OSError:
        return  # already refused


def busy(server) -> bool:
    """Whether a request is running or waiting for a slot."""
    text = server.handle_metrics()
    text = text.decode() if isinstance(text, bytes) else str(text)
    counts = re.findall(r"^llamacpp:requests_(?:processing|deferred) (\S+)", text, re.MULTILINE)
    return not counts or any(float(count) > 0 for count in counts)


def drain(server, args: argparse.Namespace) -> None:
    """Finish what runs; idle twice in a row, since a request on its way in is not counted."""
    deadline = time.monotonic() + args.drain_timeout
    refuse_new_connections(args.host, args.port)
    idle = 0
    while idle < 2 and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
        idle = 0 if busy(server) else idle + 1


def main() -> int:
    args = parse(sys.argv[1:])
    try:
        params = parameters(args)
    except (ImportError, OSError) as error:
        print(f"serve_xllamacpp: {type(error).__name__}: {error}", file=sys.stderr)
        return 1
    import xllamacpp

    stop = threading.Event()

    def on_signal(_number: int, _frame: object) -> None:
        if stop.is_set():
            os._exit(1)
        stop.set()

    signal.signal(signal.SIGTERM, on_signal)
    signal.signal(signal.SIGINT, on_signal)
    try:
        server = xllamacpp.Server(params)
    except Exception as error:
        print(f"serve_xllamacpp: the server did not start: {error}", file=sys.stderr)
        return 1
    while not stop.wait(1.0):  # wakes up at a signal, since handlers run between waits
        pass
    drain(server, args)
    sys.stderr.flush()
    del server  # stops the server and joins its threads
    return 0


if __name__ == "__main__":
    sys.exit(main())
