"""How a worker talks: request file in, response file out, progress lines on standard output.

    python -I WORKER.py REQUEST.json RESPONSE.json

The response is what `main(request)` returns, or {"error": {"message", "hint"}} when it raises
`WorkerError`. A crash leaves no response and its traceback on standard error.
"""

import json
import math
import os
import sys
from pathlib import Path


class WorkerError(Exception):
    """A failure that can be explained to the user: one sentence, and what to do next."""

    def __init__(self, message, hint=""):
        super().__init__(message)
        self.message = message
        self.hint = hint


def progress(done=None, total=None, note=None):
    """Tell how far the work is."""
    message = {"note": note} if note else {}
    if done is not None:
        message["progress"] = [done, total]
    print(json.dumps(message), flush=True)


def finite(value, what):
    """`value` as a float; WorkerError where it is no finite number (a garbage model)."""
    if value is None or not math.isfinite(value):
        raise WorkerError(
            f"{what} is not a finite number", "The weights are damaged or were converted wrongly."
        )
    return float(value)


def peak_memory():
    """The most bytes of memory this process has held so far; None where nothing tells (no Linux).

    Not getrusage: that counts the memory of the process that started this one as well.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return None
    kibibytes = (line.split()[1] for line in lines if line.startswith("VmHWM:"))
    return next((int(number) * 1024 for number in kibibytes), None)


def run(main):
    """Carry out the request named on the command line."""
    request_path, response_path = map(Path, sys.argv[1:3])
    request = json.loads(request_path.read_text(encoding="utf-8"))
    try:
        response = main(request)
    except WorkerError as error:
        response = {"error": {"message": error.message, "hint": error.hint}}
    partial = response_path.with_suffix(".partial")
    partial.write_text(json.dumps(response), encoding="utf-8")
    partial.replace(response_path)
    sys.stdout.flush()
    # Not a usual exit: an engine thread that hangs must not keep a finished worker alive.
    os._exit(0)
