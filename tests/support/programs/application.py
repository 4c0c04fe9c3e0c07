"""A small service: it names itself, its version, its caller and what the services that it calls answer. Run in pods, by Python alone.

`application.py NAME VERSION PORT [CALLED_URL…]`. On SIGTERM it goes on to serve for five seconds, as a service does whose callers
have not heard of its end yet.
"""

import json
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

NAME, VERSION, PORT, *CALLED = sys.argv[1:]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        peer = self.client_address[0].removeprefix("::ffff:")
        called = [] if self.path == "/healthz" else [call(url, self.headers) for url in CALLED]
        body = json.dumps({"name": NAME, "version": VERSION, "peer": peer, "called": called}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


def call(url: str, headers: object) -> object:
    """What `url` answers; its status where that is an error."""
    request = urllib.request.Request(url, headers={"end-user": headers["end-user"]} if headers["end-user"] else {})
    try:
        with urllib.request.urlopen(request, timeout=10) as response:
            return json.load(response)
    except urllib.error.HTTPError as e:
        return {"status": e.code}


signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
server = ThreadingHTTPServer(("", int(PORT)), Handler)
server.daemon_threads = True
threading.Thread(target=server.serve_forever, daemon=True).start()
signal.sigwait({signal.SIGTERM})
time.sleep(5)
