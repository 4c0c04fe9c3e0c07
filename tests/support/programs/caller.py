"""Calls URLs all the time, and tells at port 9090 how that went. `caller.py URL…`.

`http://HOST:PORT/` is asked for; to `tcp://HOST:PORT` a line is written, and one comes back. Each URL has four callers: two on connections
that stay open until they are told to close them (`connection: close`, or a line that begins with `last`), two that open one for each call.
`/pause` is answered when all of them have finished and hung up, and until `/resume` nobody calls. On SIGTERM it goes on for three
seconds, then prints what it would tell, and ends.
"""

import http.client
import json
import signal
import socket
import sys
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

PAUSE_SECONDS = 0.02
answered = Counter()  # by caller
failures = []
counting = threading.Lock()
going = threading.Event()


class Http:
    def __init__(self, host, port, path):
        self.connection = http.client.HTTPConnection(host, port, timeout=15)
        self.path = path

    def call(self, keep):
        """Why this failed, if it did, and whether the connection may be used again."""
        self.connection.request("GET", self.path, headers={} if keep else {"connection": "close"})
        response = self.connection.getresponse()
        body = response.read()
        failure = "" if response.status == 200 else f"{response.status} {body[:200]!r}"
        return failure, response.getheader("connection") != "close"

    def close(self):
        self.connection.close()


class Lines:
    def __init__(self, host, port, _):
        self.socket = socket.create_connection((host, port), timeout=15)
        self.lines = self.socket.makefile("rb")

    def call(self, _):
        self.socket.sendall(b"hello\n")
        line = self.lines.readline()
        return "" if line.endswith(b"\n") else f"the connection ended after {line!r}", not line.startswith(b"last")

    def close(self):
        self.lines.close()
        self.socket.close()


class Caller(threading.Thread):
    def __init__(self, url, keep):
        super().__init__(daemon=True)
        self.url = url
        self.keep = keep
        self.name = f"{url.geturl()} {'kept' if keep else 'fresh'}"
        self.connection = None
        self.calling = threading.Lock()  # held from a call's beginning to its end

    def run(self):
        while True:
            going.wait()
            with self.calling:
                if going.is_set():
                    self.call()
            time.sleep(PAUSE_SECONDS)

    def call(self):
        try:
            if self.connection is None:
                kind = Http if self.url.scheme == "http" else Lines
                self.connection = kind(self.url.hostname, self.url.port, self.url.path or "/")
            failure, open_still = self.connection.call(self.keep)
        except (OSError, http.client.HTTPException) as e:
            failure, open_still = repr(e), False
        if not (self.keep and open_still):
            self.hang_up()
        with counting:
            if failure:
                failures.append([time.strftime("%H:%M:%S"), self.name, failure])
            else:
                answered[self.name] += 1

    def hang_up(self):
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def pause():
    going.clear()
    for caller in callers:
        with caller.calling:
            caller.hang_up()


def report():
    with counting:
        return json.dumps({"answered": answered, "failures": failures})


class Report(BaseHTTPRequestHandler):
    def do_GET(self):
        if self.path == "/pause":
            pause()
        elif self.path == "/resume":
            going.set()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(report().encode())

    def log_message(self, *_):
        pass


signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
callers = [Caller(urlsplit(url), keep) for url in sys.argv[1:] for keep in (True, False, True, False)]
going.set()
for caller in callers:
    caller.start()
threading.Thread(target=ThreadingHTTPServer(("", 9090), Report).serve_forever, daemon=True).start()
signal.sigwait({signal.SIGTERM})
time.sleep(3)
pause()
print(report(), flush=True)
