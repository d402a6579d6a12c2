"""How a worker talks: request file in, response file out, progress lines on standard output.

    python -I WORKER.py REQUEST.json RESPONSE.json

The response is what `main(request)` returns, or {"error": {"message", "hint"}} when it raises
`WorkerError`. A crash leaves no response and its traceback on standard error. So does a full disk,
which the exit status tells, since nothing may be left to write a response to.
"""

import contextlib
import errno
import json
import math
import os
import re
import sys
import traceback
from pathlib import Path

FULL_DISK = errno.ENOSPC
"""Exit status of a worker whose files the disk had no place for."""
_FULL_DISK_NUMBERS = (errno.ENOSPC, errno.EDQUOT)
# Rust (safetensors) and numpy raise errors without a number. What C++ streams say (torch,
# llama.cpp) tells no cause at all: whoever started us looks at the disk then.
_FULL_DISK_WORDS = re.compile(
    r"No space left on device|Disk quota exceeded|\(os error (28|122)\)"
    r"|Not enough free space to write|^\d+ requested and \d+ written"
)


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


def tells_of_a_full_disk(error):
    """Whether an exception, or one that it came from, says that the disk or a quota is full."""
    seen = set()
    while error is not None and id(error) not in seen:
        if isinstance(error, OSError) and error.errno in _FULL_DISK_NUMBERS:
            return True
        if _FULL_DISK_WORDS.search(str(error)):
            return True
        seen.add(id(error))
        error = error.__cause__ or error.__context__
    return False


def run(main):
    """Carry out the request named on the command line."""
    request_path, response_path = map(Path, sys.argv[1:3])
    request = json.loads(request_path.read_text(encoding="utf-8"))
    status = 0
    try:
        try:
            response = main(request)
        except WorkerError as error:
            if tells_of_a_full_disk(error):
                raise
            response = {"error": {"message": error.message, "hint": error.hint}}
        partial = response_path.with_suffix(".partial")
        partial.write_text(json.dumps(response), encoding="utf-8")
        partial.replace(response_path)
    except Exception as error:
        if not tells_of_a_full_disk(error):
            raise
        with contextlib.suppress(OSError):  # the log may lie on the same disk
            traceback.print_exc()
        status = FULL_DISK
    with contextlib.suppress(OSError):
        sys.stdout.flush()
    # Not a usual exit: an engine thread that hangs must not keep a finished worker alive.
    os._exit(status)
