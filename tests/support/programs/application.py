"""A small service: it names itself, its version, its caller and what the services that it calls answer. Run in pods, by Python alone.

`application.py NAME VERSION PORT [CALLED_URL…]`. At the port after PORT it answers lines. On SIGTERM it goes on to serve for LINGER
seconds (of the environment; else five), as a service does whose callers have not heard of its end yet, and asks those that it answers
to leave. Then it accepts no more connections, and ends when it has answered what came in. `/held` is answered three seconds after SIGTERM.
"""

import contextlib
import json
import os
import signal
import socketserver
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME, VERSION, PORT, *CALLED = sys.argv[1:]
ending = threading.Event()
working = 0  # requests and lines that are being answered
lock = threading.Lock()


@contextlib.contextmanager
def work():
    global working
    with lock:
        working += 1
    try:
        yield
    finally:
        with lock:
            working -= 1


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True  # head and body are two writes

    def do_GET(self) -> None:
        with work():
            if self.path == "/held":
                ending.wait()
                time.sleep(3)
            peer = self.client_address[0].removeprefix("::ffff:")
            called = [] if self.path == "/healthz" else [call(url, self.headers) for url in CALLED]
            body = json.dumps({"name": NAME, "version": VERSION, "peer": peer, "called": called}).encode()
            self.send_response(200)
            self.send_header("content-length", str(len(body)))
            if ending.is_set():
                self.send_header("connection", "close")
            self.end_headers()
            self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


class Lines(socketserver.StreamRequestHandler):
    def handle(self) -> None:
        for line in self.rfile:
            last = ending.is_set()
            with work():
                self.wfile.write((b"last " if last else b"") + line)
            if last:
                return


class Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


class LineServer(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 128


def call(url: str, headers: object) -> object:
    """What `url` answers; its status where that is an error."""
    request = urllib.request.Request(url, headers={"end-user": headers["end-user"]} if headers["end-user"] else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)
    except urllib.error.HTTPError as e:
        return {"status": e.code}


signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
servers = [Server(("", int(PORT)), Handler), LineServer(("", int(PORT) + 1), Lines)]
for server in servers:
    threading.Thread(target=server.serve_forever, daemon=True).start()
signal.sigwait({signal.SIGTERM})
ending.set()
time.sleep(float(os.environ.get("LINGER", "5")))
for server in servers:
    server.shutdown()
    server.socket.close()
quiet = 0
while quiet < 10:  # half a second: what was accepted has been read
    time.sleep(0.05)
    quiet = 0 if working else quiet + 1
