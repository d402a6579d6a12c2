"""A fake engine for fault tests: no model, the few answers that readiness asks for.

    fake_engine_server.py --port N --model NAME [--behaviour B]

Behaviours: ok; exit (prints --say and exits 1); mute (listens, answers nothing); no-token
(answers without one); crash (kills itself with SIGKILL --after seconds after the first token);
busy (/metrics reports a running request for --after seconds after the first token).
"""

import argparse
import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

parser = argparse.ArgumentParser()
parser.add_argument("--port", type=int)
parser.add_argument("--model")
parser.add_argument("--behaviour", default="ok")
parser.add_argument("--say", default="")
parser.add_argument("--after", type=float, default=0.3)
args = parser.parse_args()
first_token: list[float] = []


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
        if args.behaviour == "mute":
            time.sleep(60)
        if self.path == "/v1/models":
            return self.answer({"data": [{"id": args.model}]})
        if self.path == "/metrics":
            busy = (
                args.behaviour == "busy"
                and first_token
                and time.monotonic() - first_token[0] < args.after
            )
            return self.answer(
                f"llamacpp:requests_processing {int(busy)}\nllamacpp:requests_deferred 0\n"
            )
        return self.answer({"status": "ok"})

    def do_POST(self):
        self.rfile.read(int(self.headers.get("Content-Length", 0)))
        tokens = 0 if args.behaviour == "no-token" else 1
        self.answer({"choices": [], "usage": {"completion_tokens": tokens}})
        first_token.append(time.monotonic())
        if args.behaviour == "crash":
            threading.Timer(args.after, os.kill, (os.getpid(), signal.SIGKILL)).start()


print(args.say, flush=True)
if args.behaviour == "exit":
    sys.exit(1)
ThreadingHTTPServer(("127.0.0.1", args.port), Handler).serve_forever()
