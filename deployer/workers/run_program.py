"""Run one generated program where it can do nothing but compute, and say how it ended.

    python -I -S run_program.py REQUEST.json

Request: {program, word, cpu_seconds, memory_mb}; the file is deleted before the program starts. The
last line on standard output is the verdict, {"word", "verdict", "detail"}; `word` proves that this
script wrote it, and `verdict` is passed, failed, memory, forbidden or unprotected (no seccomp: the
program was not run). A program that is killed leaves no verdict.

The program runs in this process, after a seccomp filter that allows what an interpreter needs for
computing and answers EPERM to everything else: it can open no file, no socket, start no process or
thread, and signal nobody. So modules must be imported before: `MODULES` are. Resource limits bound
memory, processor time and what may be written to the descriptors that are open already. The filter
and the limits are given up by nothing the program can do.
"""

import ctypes
import json
import os
import platform
import resource
import struct
import sys
from pathlib import Path

MODULES = (
    "_strptime", "abc", "array", "ast", "bisect", "builtins", "calendar", "cmath", "collections",
    "collections.abc", "copy", "dataclasses", "datetime", "decimal", "enum", "fractions",
    "functools", "hashlib", "heapq", "inspect", "io", "itertools", "json", "locale", "math",
    "numbers", "operator", "os", "queue", "random", "re", "socket", "statistics", "string",
    "struct", "subprocess", "sys", "textwrap", "threading", "time", "types", "typing",
    "unicodedata", "unittest",
)  # fmt: skip
ENCODINGS = ("ascii", "latin-1", "utf-8", "utf-16", "utf-32", "idna", "cp1252", "unicode_escape")

# System call numbers (x86_64, aarch64); None where the architecture has no such call. Numbers of
# calls that are not listed are denied, so what a new kernel adds is denied too.
CALLS = {
    "read": (0, 63), "write": (1, 64), "close": (3, 57), "stat": (4, None), "fstat": (5, 80),
    "lstat": (6, None), "poll": (7, None), "lseek": (8, 62), "mmap": (9, 222),
    "mprotect": (10, 226), "munmap": (11, 215), "brk": (12, 214), "rt_sigaction": (13, 134),
    "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "ioctl": (16, 29),
    "writev": (20, 66), "select": (23, None), "sched_yield": (24, 124), "mremap": (25, 216),
    "madvise": (28, 233), "pause": (34, None), "nanosleep": (35, 101), "getpid": (39, 172),
    "exit": (60, 93), "uname": (63, 160), "getcwd": (79, 17), "gettimeofday": (96, 169),
    "getrusage": (98, 165), "sysinfo": (99, 179), "times": (100, 153), "getuid": (102, 174),
    "getgid": (104, 176), "geteuid": (107, 175), "getegid": (108, 177), "getppid": (110, 173),
    "sigaltstack": (131, 132), "gettid": (186, 178), "time": (201, None), "futex": (202, 98),
    "sched_getaffinity": (204, 123), "restart_syscall": (219, 128), "clock_gettime": (228, 113),
    "clock_getres": (229, 114), "clock_nanosleep": (230, 115), "exit_group": (231, 94),
    "newfstatat": (262, 79), "pselect6": (270, 72), "ppoll": (271, 73),
    "getrandom": (318, 278), "statx": (332, 291), "rseq": (334, 293),
}  # fmt: skip
MACHINES = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06  # classic BPF
_ALLOW, _DENY, _KILL = 0x7FFF0000, 0x00050001, 0x80000000  # _DENY: errno 1, EPERM
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4  # offsets in struct seccomp_data
_X32 = 0x40000000  # x86_64's second table of calls starts here
_PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _MODE_FILTER = 38, 22, 2


def filter_code(machine):
    """The BPF program for `machine` as bytes; KeyError for an unknown architecture."""
    column, architecture = MACHINES[machine]
    numbers = [row[column] for row in CALLS.values() if row[column] is not None]
    steps = [
        (_LOAD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _KILL),
        (_LOAD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, 0, 1, _X32),
        (_RETURN, 0, 0, _DENY),
    ]
    for number in numbers:
        steps += [(_EQUAL, 0, 1, number), (_RETURN, 0, 0, _ALLOW)]
    steps.append((_RETURN, 0, 0, _DENY))
    return b"".join(struct.pack("=HBBI", *step) for step in steps)


class _FilterProgram(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("code", ctypes.c_void_p))


def confine():
    """Install the filter for good; OSError or KeyError where this machine cannot."""
    code = filter_code(platform.machine())
    buffer = ctypes.create_string_buffer(code, len(code))
    program = _FilterProgram(len(code) // 8, ctypes.cast(buffer, ctypes.c_void_p))
    libc = ctypes.CDLL(None, use_errno=True)
    arguments = (
        (_PR_SET_NO_NEW_PRIVS, 1, None),
        (_PR_SET_SECCOMP, _MODE_FILTER, ctypes.byref(program)),
    )
    for option, value, pointer in arguments:
        if libc.prctl(option, ctypes.c_ulong(value), pointer, ctypes.c_ulong(0), ctypes.c_ulong(0)):
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number))


def limit(request):
    """Bound what the filter does not: time, memory, output. The hard limits cannot be raised."""
    cpu, memory = request["cpu_seconds"], request["memory_mb"] << 20
    for what, soft, hard in (
        (resource.RLIMIT_AS, memory, memory),
        (resource.RLIMIT_CPU, cpu, cpu + 1),
        (resource.RLIMIT_FSIZE, 1 << 20, 1 << 20),
        (resource.RLIMIT_NOFILE, 16, 16),
        (resource.RLIMIT_NPROC, 0, 0),
        (resource.RLIMIT_CORE, 0, 0),
    ):
        resource.setrlimit(what, (soft, hard))


def outcome(program):
    """(verdict, detail) of running `program` as a script."""
    try:
        exec(compile(program, "<program>", "exec"), {"__name__": "__main__"})
    except MemoryError:
        return "memory", "it wanted more memory than it may have"
    except PermissionError as error:
        return "forbidden", str(error)
    except BaseException as error:  # SystemExit too: the checks behind it were not run
        if "can't start new thread" in str(error):
            return "forbidden", str(error)
        return "failed", f"{type(error).__name__}: {error}"[:300]
    return "passed", ""


def _silence():
    """Keep standard output for the verdict alone; the program's own output goes nowhere."""
    verdict = os.dup(1)
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1, 2):
        os.dup2(nowhere, descriptor)
    return verdict


def main():
    path = Path(sys.argv[1])
    request = json.loads(path.read_text(encoding="utf-8"))
    path.unlink()
    for name in MODULES:
        __import__(name)
    for name in ENCODINGS:
        "".encode(name)
    sys.path.clear()  # what was not imported is not there, rather than there and forbidden
    sys.argv[1:] = []
    sys.setrecursionlimit(3000)
    verdict = _silence()
    try:
        limit(request)
        confine()
    except (OSError, KeyError) as error:
        said = "unprotected", f"no seccomp filter on {platform.machine()}: {error}"
    else:
        said = outcome(request["program"])
    line = json.dumps({"word": request["word"], "verdict": said[0], "detail": said[1]})
    os.write(verdict, f"\n{line}\n".encode())
    os._exit(0)


if __name__ == "__main__":
    main()
