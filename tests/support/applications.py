"""The applications behind a mesh: they answer any protocol that comes, and say what they were asked.

One listening socket serves a port for all the addresses of its network namespace; which application is meant is told by the address
that was called. What it is asked it remembers, and what it answers may be changed at any time.
"""

import contextlib
import email.message
import http.client
import itertools
import json
import socket
import ssl
import struct
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import h2.config
import h2.connection
import h2.errors
import h2.events
import msgspec

SECONDS = 180  # after which an application stops waiting for anything
MAPPED = "::ffff:"  # before an IPv4 address, on a socket of both families
HTTP2 = b"PRI * HTTP/2.0"
PROXY_1, PROXY_2 = b"PROXY ", b"\r\n\r\n\x00\r\nQUIT\n"

Headers = list[tuple[str, str]]


class Call(msgspec.Struct, kw_only=True):
    """What an application was asked: a request, or the first bytes of a connection (then `protocol` is TCP and `body` has them)."""

    server: str  # the application's name; its address where nobody gave it one
    address: str  # that was called
    port: int
    peer: str  # who called, by the connection
    connection: int  # tells connections apart
    protocol: str  # HTTP/1.0, HTTP/1.1, HTTP/2 or TCP
    method: str = ""
    authority: str = ""
    path: str = ""
    headers: Headers = []  # names in lower case
    body: str = ""
    tls: bool = False
    sni: str = ""
    alpn: str = ""
    identity: tuple[str, ...] = ()  # alternative names of the client's certificate
    proxied: str = ""  # the PROXY protocol's version and the caller that it names: `1 10.1.2.3`

    def header(self, name: str) -> str | None:
        """The values of a header, joined by commas; None where it is not there."""
        found = [value for key, value in self.headers if key == name]
        return ",".join(found) if found else None


class Application:
    """One application at one address. A request with the header `x-hold` is answered when `release` is set."""

    def __init__(self, name: str, address: str) -> None:
        self.name = name
        self.address = address
        self.status = 200
        self.statuses: list[int] = []  # of the next answers, before `status` is that of all others
        self.headers: Headers = []  # of every answer
        self.greeting = b""  # what it says first, on ports where it does
        self.refuses = False  # ends every connection at once
        self.release = threading.Event()
        self.calls: list[Call] = []
        self.open: set[int] = set()  # connections
        self.held = 0  # requests that wait for `release` now
        self._lock = threading.Lock()

    @property
    def connections(self) -> int:
        """How many connections had calls."""
        return len({call.connection for call in self.calls})

    def answer(self, call: Call) -> tuple[int, Headers, bytes]:
        """Status, headers and body of the answer to a request."""
        with self._lock:
            self.calls.append(call)
            status = self.statuses.pop(0) if self.statuses else self.status
            self.held += 1
        if call.header("x-hold") is not None:
            self.release.wait(SECONDS)
        with self._lock:
            self.held -= 1
        return int(call.header("x-status") or status), [*self.headers, *_asked(call)], msgspec.json.encode(call)


def _asked(call: Call) -> Headers:
    """The headers of the answer that the request asks for, as JSON in `x-answer`."""
    return [(k, v) for k, v in json.loads(call.header("x-answer") or "{}").items()]


class Applications:
    """All applications in one network namespace."""

    def __init__(self, listen: Any, certificate: tuple[Path, Path], authority: Path) -> None:
        """`listen(address, port)` opens a socket there. Callers' certificates are asked for, and must be by `authority`."""
        self._listen = listen
        self._at: dict[str, Application] = {}
        self._ports: dict[int, socket.socket] = {}
        self._sockets: list[socket.socket] = []
        self._numbers = itertools.count(1)
        self._tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._tls.load_cert_chain(*certificate)
        self._tls.load_verify_locations(authority)
        self._tls.verify_mode = ssl.CERT_OPTIONAL
        self._tls.set_alpn_protocols(["h2", "http/1.1"])
        self._names: dict[int, str] = {}  # server names by id of the socket, while it shakes hands
        self._tls.sni_callback = self._named

    def add(self, name: str, address: str, ports: Iterable[int] = ()) -> Application:
        """An application at `address`, and listening on `ports` at all addresses."""
        found = Application(name, address)
        self.put(found, address)
        for port in ports:
            self.open(port)
        return found

    def put(self, application: Application, address: str) -> None:
        """`application` answers at `address`."""
        self._at[address] = application

    def remove(self, application: Application) -> None:
        """Whatever `application` answered at answers without a name."""
        for address in [a for a, found in self._at.items() if found is application]:
            del self._at[address]

    def open(self, port: int, address: str = "::") -> None:
        """Listen on `port`, if nobody does yet."""
        if port not in self._ports:
            listening = self._ports[port] = self._listen(address, port)
            threading.Thread(target=self._accept, args=(listening,), daemon=True).start()

    def listen(self, application: Application, listening: socket.socket) -> None:
        """`application` answers on a socket of its own, a Unix one say."""
        self.put(application, str(listening.getsockname()))
        self._sockets.append(listening)
        threading.Thread(target=self._accept, args=(listening,), daemon=True).start()

    def close(self) -> None:
        for listening in (*self._ports.values(), *self._sockets):
            listening.close()

    def _named(self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, _: Any) -> None:
        self._names[id(connection)] = name or ""

    def _accept(self, listening: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, peer = listening.accept()
                caller = str(peer[0]).removeprefix(MAPPED) if connection.family != socket.AF_UNIX else ""
                threading.Thread(target=self._serve, args=(connection, caller), daemon=True).start()

    def _serve(self, connection: socket.socket, peer: str) -> None:
        connection.settimeout(SECONDS)
        name = connection.getsockname()
        address, port = (str(name), 0) if connection.family == socket.AF_UNIX else (name[0].removeprefix(MAPPED), name[1])
        application = self._at.get(address) or Application(address, address)
        call = Call(server=application.name, address=address, port=port, peer=peer, connection=next(self._numbers), protocol="TCP")
        application.open.add(call.connection)
        with connection, contextlib.suppress(OSError, h2.connection.ProtocolError, EOFError):
            if not application.refuses:
                self._talk(connection, application, call)
        application.open.discard(call.connection)

    def _talk(self, connection: socket.socket, application: Application, call: Call) -> None:
        if application.greeting:
            connection.sendall(application.greeting)
        first = connection.recv(16, socket.MSG_PEEK)
        if first.startswith((PROXY_1, PROXY_2)):
            call.proxied = _proxied(connection)
            first = connection.recv(16, socket.MSG_PEEK)
        if first[:1] == b"\x16":
            wrapped = self._tls.wrap_socket(connection, server_side=True)
            call.tls, call.alpn, call.sni = True, wrapped.selected_alpn_protocol() or "", self._names.pop(id(wrapped), "")
            certificate = wrapped.getpeercert() or {}
            call.identity = tuple(str(name) for _, name in certificate.get("subjectAltName", ()))
            connection = wrapped
        with connection:
            stream = connection.makefile("rb")
            first = stream.peek(16)
            if first.startswith(HTTP2):
                _http2(connection, stream, application, call)
            elif _is_http(first):
                _http1(connection, stream, application, call)
            elif first:
                _bytes(connection, stream, application, call)


def _is_http(first: bytes) -> bool:
    return first.split(b" ")[0] in (b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH", b"CONNECT")


def _proxied(connection: socket.socket) -> str:
    """Reads the PROXY protocol's header."""
    if connection.recv(6, socket.MSG_PEEK) == PROXY_1:
        line = b""
        while not line.endswith(b"\r\n"):
            line += connection.recv(1)
        return f"1 {line.split()[2].decode()}"
    head = connection.recv(16, socket.MSG_WAITALL)
    rest = connection.recv(struct.unpack("!H", head[14:])[0], socket.MSG_WAITALL)
    return f"2 {socket.inet_ntoa(rest[:4])}"


def _bytes(connection: socket.socket, stream: Any, application: Application, call: Call) -> None:
    """Answers each line, or whatever comes in one piece, with what it was asked, as a line of JSON."""
    while data := stream.read1(65536):
        asked = msgspec.structs.replace(call, body=data.decode(errors="replace"))
        application.calls.append(asked)
        connection.sendall(msgspec.json.encode(asked) + b"\n")


def _http1(connection: socket.socket, stream: Any, application: Application, call: Call) -> None:
    while line := stream.readline().decode().split():
        method, path, version = line
        message: email.message.Message = http.client.parse_headers(stream)
        headers = [(name.lower(), str(value)) for name, value in message.items()]
        asked = msgspec.structs.replace(
            call, protocol=version, method=method, path=path, headers=headers, authority=message.get("host", "")
        )
        if method == "CONNECT":
            application.calls.append(asked)
            connection.sendall(b"HTTP/1.1 200 OK\r\n\r\n")
            return _bytes(connection, stream, application, asked)
        if message.get("upgrade", "").lower() == "websocket":
            application.calls.append(asked)
            connection.sendall(b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
            return _bytes(connection, stream, application, asked)
        asked.body = _body(stream, message).decode(errors="replace")
        status, more, body = application.answer(asked)
        lines = [f"HTTP/1.1 {status} {http.client.responses.get(status, 'Unknown')}", f"content-length: {len(body)}"]
        lines += [f"{name}: {value}" for name, value in (("content-type", "application/json"), *more)]
        head = "\r\n".join((*lines, "", "")).encode()
        connection.sendall(head if method == "HEAD" else head + body)
        if version == "HTTP/1.0" or message.get("connection", "").lower() == "close":
            return None
    return None


def _body(stream: Any, message: email.message.Message) -> bytes:
    if message.get("transfer-encoding", "").lower() != "chunked":
        return bytes(stream.read(int(message.get("content-length", "0"))))
    parts = []
    while size := int(stream.readline().split(b";")[0], 16):
        parts.append(stream.read(size))
        stream.readline()
    while stream.readline().strip():
        pass
    return b"".join(parts)


def _http2(connection: socket.socket, stream: Any, application: Application, call: Call) -> None:
    """Each request is answered by a thread of its own, so that some may wait while others are answered."""
    state = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False, header_encoding="utf-8"))
    lock = threading.Lock()
    asked: dict[int, Call] = {}

    def answer(number: int) -> None:
        status, more, body = application.answer(asked[number])
        grpc = (asked[number].header("content-type") or "").startswith("application/grpc")
        headers = [(":status", str(status)), ("content-type", "application/grpc" if grpc else "application/json"), *more]
        with lock, contextlib.suppress(OSError, h2.connection.ProtocolError):
            state.send_headers(number, headers)
            state.send_data(number, b"\x00" + struct.pack("!I", len(body)) + body if grpc else body, end_stream=not grpc)
            if grpc:
                state.send_headers(number, [("grpc-status", "0")], end_stream=True)
            connection.sendall(state.data_to_send())

    state.initiate_connection()
    connection.sendall(state.data_to_send())
    while data := stream.read1(65536):
        with lock:
            events = state.receive_data(data)
        for event in events:
            if isinstance(event, h2.events.RequestReceived):
                headers = [(str(k), str(v)) for k, v in event.headers]
                pseudo = dict(headers)
                asked[event.stream_id] = msgspec.structs.replace(
                    call,
                    protocol="HTTP/2",
                    method=pseudo.get(":method", ""),
                    path=pseudo.get(":path", ""),
                    authority=pseudo.get(":authority", ""),
                    headers=[(k, v) for k, v in headers if not k.startswith(":")],
                )
            elif isinstance(event, h2.events.DataReceived):
                asked[event.stream_id].body += event.data.decode(errors="replace")
                with lock:
                    state.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.StreamEnded):
                threading.Thread(target=answer, args=(event.stream_id,), daemon=True).start()
        with lock:
            connection.sendall(state.data_to_send())
