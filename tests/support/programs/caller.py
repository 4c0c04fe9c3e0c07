"""Calls a URL all the time, and tells at port 9090 how that went. `caller.py URL`.

Half of the calls are on a connection that stays open, half each on a new one.
"""

import http.client
import json
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import urlsplit

URL = urlsplit(sys.argv[1])
calls = {"answered": 0, "failures": []}
lock = threading.Lock()


def forever(keep: bool) -> None:
    connection = None
    while True:
        try:
            if connection is None:
                connection = http.client.HTTPConnection(URL.hostname, URL.port, timeout=15)
            connection.request("GET", URL.path or "/", headers={} if keep else {"connection": "close"})
            response = connection.getresponse()
            body = response.read()
            failure = "" if response.status == 200 else f"{response.status} {body[:200]!r}"
            if not keep or response.getheader("connection") == "close":
                connection.close()
                connection = None
        except OSError as e:
            failure, connection = repr(e), None
        except http.client.HTTPException as e:
            failure, connection = repr(e), None
        with lock:
            if failure:
                calls["failures"].append([time.strftime("%H:%M:%S"), failure])
            else:
                calls["answered"] += 1
        time.sleep(0.01)


class Report(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        with lock:
            body = json.dumps(calls).encode()
        self.send_response(200)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


signal.signal(signal.SIGTERM, lambda *_: sys.exit())
for keep in (True, False, True, False):
    threading.Thread(target=forever, args=(keep,), daemon=True).start()
ThreadingHTTPServer(("", 9090), Report).serve_forever()
