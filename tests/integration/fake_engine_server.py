"""A fake engine for fault tests: no model, the few answers that readiness asks for.

    fake_engine_server.py --port N --model NAME [--behaviour B] [--after S]

Behaviours from the start: ok; exit (prints --say and exits 1); mute (listens, answers nothing);
no-token (answers without one); busy (/metrics reports a running request for --after seconds after
the first token); parent (starts a child that ignores SIGTERM and prints its pid); chatter (writes
1 MB a second to its log).

Behaviours that begin --after seconds after the first token: crash (SIGKILL of itself); once (the
same, and every later start, told by the file --marker, exits 1); grow (takes 200 MiB more);
deaf (answers nothing and rests); drowned (answers nothing and computes); empty (/health and
/metrics are well, and no request ever gets a token); stuck (the same, and /metrics reports a
running request); spin (as stuck, and computes); toil (as spin, but its counters move).
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int)
parser.add_argument("--model")
parser.add_argument("--behaviour", default="ok")
parser.add_argument("--say", default="")
parser.add_argument("--after", type=float, default=0.3)
parser.add_argument("--marker", type=Path)
args = parser.parse_args()
first_token: list[float] = []
kept: list[bytearray] = []
FOR_EVER = 600
STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def begun() -> bool:
    """Whether the time of the late behaviours has come."""
    return bool(first_token) and time.monotonic() - first_token[0] >= args.after


def is_one_of(*behaviours: str) -> bool:
    return args.behaviour in behaviours and begun()


class Handler(BaseHTTPRequestHandler):
    def log_message(self, *_args):
        pass

    def answer(self, body, status=200):
        data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def do_GET(self):
        if args.behaviour == "mute" or is_one_of("deaf", "drowned"):
            time.sleep(FOR_EVER)
        if self.path == "/v1/models":
            return self.answer({"data": [{"id": args.model}]})
        if self.path == "/metrics":
            busy = (args.behaviour == "busy" and first_token and not begun()) or is_one_of(
                "stuck", "spin", "toil"
            )
            steps = time.monotonic_ns() if is_one_of("toil") else len(first_token)
            return self.answer(
                f"llamacpp:requests_processing {int(busy)}\nllamacpp:requests_deferred 0\n"
                f"llamacpp:tokens_predicted_total {len(first_token)}\n"
                f"llamacpp:n_decode_total {steps}\n"
            )
        return self.answer({"status": "ok"})

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        if is_one_of("deaf", "drowned", "empty", "stuck", "spin", "toil"):
            time.sleep(FOR_EVER)
        tokens = 0 if args.behaviour == "no-token" else 1
        self.answer({"choices": [], "usage": {"completion_tokens": tokens}})
        first_token.append(time.monotonic())


def live() -> None:
    """What happens beside the answers."""
    while not begun():
        time.sleep(0.02)
    if args.behaviour in ("crash", "once"):
        os.kill(os.getpid(), signal.SIGKILL)
    if args.behaviour == "grow":
        kept.append(bytearray(b"x") * (200 << 20))
    while args.behaviour in ("drowned", "spin", "toil"):  # a fifth of a core
        until = time.monotonic() + 0.02
        while time.monotonic() < until:
            pass
        time.sleep(0.08)
    while args.behaviour == "chatter":
        print("x" * 9999, flush=True)
        time.sleep(0.01)


print(args.say, flush=True)
if args.behaviour == "exit" or (args.marker and args.marker.exists()):
    sys.exit(1)
if args.marker:
    args.marker.touch()
if args.behaviour == "parent":
    print("child", subprocess.Popen([sys.executable, "-c", STUBBORN]).pid, flush=True)
threading.Thread(target=live, daemon=True).start()
ThreadingHTTPServer(("127.0.0.1", args.port), Handler).serve_forever()
