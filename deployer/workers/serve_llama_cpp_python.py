"""Run llama-cpp-python's own server with the arguments deployer uses for every server.

Started by deployer with the `llama-cpp-python` toolchain's Python. It takes API keys from a file
(the server itself would want one in argv or the environment, and knows a single key), and keeps
settings out that stray variables of the environment would make.
"""

import argparse
import os
import sys
from pathlib import Path

KEPT = ("PATH", "HOME", "TMPDIR", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "LLAMA_CPP_LIB_PATH")


def main() -> int:
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--model", required=True)
    parser.add_argument("--alias", required=True)
    parser.add_argument("--host", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--ctx-size", type=int, required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--n-gpu-layers", type=int, default=0)
    parser.add_argument("--api-key-file")
    args = parser.parse_args()
    for name in set(os.environ) - set(KEPT):
        del os.environ[name]

    import uvicorn
    from llama_cpp.server.app import create_app
    from llama_cpp.server.settings import ModelSettings, ServerSettings
    from sse_starlette.sse import AppStatus

    model = ModelSettings(
        model=args.model,
        model_alias=args.alias,
        n_ctx=args.ctx_size,
        n_threads=args.threads,
        n_threads_batch=args.threads,
        n_gpu_layers=args.n_gpu_layers,
        verbose=False,
    )
    server = ServerSettings(
        host=args.host,
        port=args.port,
        api_key=read_key(args.api_key_file) if args.api_key_file else None,
        interrupt_requests=False,  # True cuts a running stream off when another request comes
    )
    app = create_app(server_settings=server, model_settings=[model])
    AppStatus.disable_automatic_graceful_drain()  # else SIGTERM cuts streams off
    uvicorn.run(app, host=args.host, port=args.port)
    return 0


def read_key(path: str) -> str:
    """The file's only key; this server cannot check several."""
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    keys = [line for line in lines if line and not line.startswith("#")]
    if len(keys) != 1:
        sys.exit("serve_llama_cpp_python: error: this server takes exactly one API key")
    return keys[0]


if __name__ == "__main__":
    sys.exit(main())
