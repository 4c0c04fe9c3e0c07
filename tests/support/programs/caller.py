"""Calls URLs all the time, and tells at port 9090 how that went. `caller.py URL…`.

`http://HOST:PORT/` is asked for; to `tcp://HOST:PORT` a line is written, and one comes back. Each URL has four callers: two on connections
that stay open until they are told to close them (`connection: close`, or a line that begins with `last`), two that open one for each call.
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
lock = threading.Lock()


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


def forever(url, keep):
    kind = Http if url.scheme == "http" else Lines
    caller = f"{url.geturl()} {'kept' if keep else 'fresh'}"
    connection = None
    while True:
        try:
            if connection is None:
                connection = kind(url.hostname, url.port, url.path or "/")
            failure, open_still = connection.call(keep)
        except (OSError, http.client.HTTPException) as e:
            failure, open_still = repr(e), False
        if connection is not None and not (keep and open_still):
            connection.close()
            connection = None
        with lock:
            if failure:
                failures.append([time.strftime("%H:%M:%S"), caller, failure])
            else:
                answered[caller] += 1
        time.sleep(PAUSE_SECONDS)


class Report(BaseHTTPRequestHandler):
    def do_GET(self):
        with lock:
            body = json.dumps({"answered": answered, "failures": failures}).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


signal.signal(signal.SIGTERM, lambda *_: sys.exit())
for text in sys.argv[1:]:
    for keep in (True, False, True, False):
        threading.Thread(target=forever, args=(urlsplit(text), keep), daemon=True).start()
ThreadingHTTPServer(("", 9090), Report).serve_forever()
