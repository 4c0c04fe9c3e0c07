"""The product as a user runs it, `xds serve` in a process of its own, and clients that speak the protocol to it word by word."""

import json
import os
import queue
import shutil
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

import grpc
from support.ports import free_port

from xds import pb
from xds.discovery.protocol import types as t

SECONDS = 60.0  # the longest that anything may take
TYPE = pb.TYPE_URL_PREFIX
ADS = "envoy.service.discovery.v3.AggregatedDiscoveryService"


class Product:
    """`xds serve` with what is in `directory`; `port` is where proxies connect, `http` the other one."""

    def __init__(self, *args: str, directory: Path | None = None, port: int | None = None) -> None:
        self.root = Path(tempfile.mkdtemp(prefix="xds-serve-"))
        self.directory = directory or self.root / "resources"
        self.directory.mkdir(exist_ok=True)
        self.port = port or free_port()
        self.http = free_port()
        self._args = args or ("--resources", str(self.directory))
        self._log = self.root / "log"
        self._settled = 0

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        shutil.rmtree(self.root, ignore_errors=True)

    def start(self) -> None:
        command = [sys.executable, "-m", "xds", "serve", "--log-json", *self._args]
        command += ["--grpc-address", f"127.0.0.1:{self.port}", "--http-address", f"127.0.0.1:{self.http}"]
        seen = len(self.events("server.listening")) if self._log.exists() else 0
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, "GRPC_VERBOSITY": "ERROR"})
        until(lambda: self.process.poll() is not None or len(self.events("server.listening")) > seen, lambda: self.log)
        assert self.process.poll() is None, self.log

    def stop(self) -> None:
        """SIGTERM; it must end by itself."""
        self.process.terminate()
        try:
            self.process.wait(timeout=SECONDS)
        finally:
            self.kill()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    @property
    def log(self) -> str:
        return self._log.read_text()

    def events(self, name: str) -> list[dict[str, Any]]:
        """What was logged under `name`."""
        lines = [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]
        return [line for line in lines if line["event"] == name]

    def ask(self, path: str) -> Any:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.http}{path}", timeout=SECONDS) as answer:
            return json.loads(answer.read())

    # Files

    def write(self, name: str, *documents: Mapping[str, Any] | str) -> None:
        """Replace a file as careful programs do: at once."""
        text = "\n---\n".join(document if isinstance(document, str) else json.dumps(document) for document in documents)
        path = self.directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        fresh = self.root / "fresh"
        fresh.write_text(text)
        fresh.replace(path)

    def remove(self, *names: str) -> None:
        for name in names:
            (self.directory / name).unlink()

    def publish(self, name: str, *documents: Mapping[str, Any] | str) -> None:
        """Replace a file, and wait until what is in it is served."""
        self.write(name, *documents)
        self.settle()

    def settle(self) -> None:
        """Wait until the files are served as they are."""
        self._settled += 1
        mark = f"settled-{self._settled}"
        with Delta(self.port, node={"id": "witness", "cluster": "witness"}) as client:
            client.ask(t.RUNTIME, mark)
            self.write("settled.json", {"@type": t.RUNTIME, "name": mark})
            client.next(t.RUNTIME)
            self.remove("settled.json")  # removals take a moment longer
            client.next(t.RUNTIME)

    def clear(self) -> None:
        """Remove all files, and wait until nothing of them is served."""
        self.publish("last.json", {"@type": t.RUNTIME, "name": "last"})
        with Delta(self.port, node={"id": "witness", "cluster": "witness"}) as client:
            client.ask(t.RUNTIME, "last")
            for path in self.directory.iterdir():
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
            client.next(t.RUNTIME)


def until(condition: Callable[[], Any], what: Callable[[], Any]) -> Any:
    """The first true answer of `condition`; fails with `what` it was about when that takes too long."""
    deadline = time.monotonic() + SECONDS
    while not (answer := condition()):
        assert time.monotonic() < deadline, what()
        threading.Event().wait(0.01)
    return answer


class Stream:
    """One stream of a client. Nothing happens on it that the test does not say."""

    request: Any
    response: Any

    def __init__(self, port: int, method: str, *, node: Mapping[str, Any] | None) -> None:
        self._channel = grpc.insecure_channel(
            f"127.0.0.1:{port}", options=[("grpc.use_local_subchannel_pool", 1), ("grpc.max_receive_message_length", -1)]
        )
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._responses: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._node = node
        call = self._channel.stream_stream(
            f"/{method}", request_serializer=lambda m: m.SerializeToString(), response_deserializer=self.response.FromString
        )
        self.call = call(iter(self._requests.get, None), wait_for_ready=True)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        self._fences = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._requests.put(None)
        self.call.cancel()
        self._thread.join(SECONDS)
        self._channel.close()

    def _read(self) -> None:
        try:
            for response in self.call:
                self._responses.put(response)
        except grpc.RpcError as e:
            self._responses.put(e)
        else:
            self._responses.put(None)

    def send(self, **fields: Any) -> None:
        """Send a request; the node goes with the first."""
        node, self._node = self._node, None
        self._requests.put(self.request(**fields) if node is None else self.request(node=node, **fields))

    def receive(self) -> Any:
        """The next response."""
        answer = self._responses.get(timeout=SECONDS)
        assert not isinstance(answer, grpc.RpcError), f"the stream has ended: {answer}"
        assert answer is not None, "the server has ended the stream"
        return answer

    def ask(self, kind: str, *names: str, **fields: Any) -> Any:
        """Subscribe, and the next response, acknowledged."""
        self.subscribe(kind, *names, **fields)
        return self.next(kind)

    def next(self, kind: str = "") -> Any:
        """The next response, acknowledged."""
        response = self.receive()
        assert not kind or response.type_url == kind, response
        self.ack(response)
        return response

    def end(self) -> tuple[str, str]:
        """The status that the server ends the stream with, and its words. Responses before that are passed over."""
        while not isinstance(answer := self._responses.get(timeout=SECONDS), grpc.RpcError):
            if answer is None:
                return "OK", ""
        return answer.code().name, answer.details()

    def between(self) -> list[Any]:
        """The responses that have come, or were due, before the answer to a question asked now, as far as they are known by then.

        Types that come last are answered last, so what is due of any other type has come by then.
        """
        self._fences += 1
        fence = f"fence-{self._fences}"
        self.ask_for(fence)
        found = []
        while not self.answers(response := self.receive(), fence):
            found.append(response)
        self.ack(response)
        return found

    def subscribe(self, kind: str, *names: str, **fields: Any) -> None:
        raise NotImplementedError

    def ask_for(self, fence: str) -> None:
        raise NotImplementedError

    def answers(self, response: Any, fence: str) -> bool:
        raise NotImplementedError

    def ack(self, response: Any) -> None:
        raise NotImplementedError


class Delta(Stream):
    """A stream of differences."""

    request = pb.DeltaDiscoveryRequest
    response = pb.DeltaDiscoveryResponse

    def __init__(self, port: int, method: str = f"{ADS}/DeltaAggregatedResources", *, node: Any = {"id": "client"}) -> None:  # noqa: B006
        super().__init__(port, method, node=node)

    def subscribe(self, kind: str, *names: str, **fields: Any) -> None:
        self.send(type_url=kind, resource_names_subscribe=names, **fields)

    def unsubscribe(self, kind: str, *names: str, **fields: Any) -> None:
        self.send(type_url=kind, resource_names_unsubscribe=names, **fields)

    def ack(self, response: Any) -> None:
        self.send(type_url=response.type_url, response_nonce=response.nonce)

    def nack(self, response: Any, message: str) -> None:
        self.send(type_url=response.type_url, response_nonce=response.nonce, error_detail={"code": 13, "message": message})

    def ask_for(self, fence: str) -> None:
        self.subscribe(t.RUNTIME, fence)

    def answers(self, response: Any, fence: str) -> bool:
        return response.type_url == t.RUNTIME and fence in response.removed_resources


class Sotw(Stream):
    """A stream of the state of the world. It keeps what the protocol wants said again: names, versions and nonces."""

    request = pb.DiscoveryRequest
    response = pb.DiscoveryResponse

    def __init__(self, port: int, method: str = f"{ADS}/StreamAggregatedResources", *, node: Any = {"id": "client"}) -> None:  # noqa: B006
        super().__init__(port, method, node=node)
        self.names: dict[str, tuple[str, ...]] = {}
        self.versions: dict[str, str] = {}
        self.nonces: dict[str, str] = {}

    def subscribe(self, kind: str, *names: str, **fields: Any) -> None:
        """Ask for just these names from now on."""
        self.names[kind] = names
        own = {"version_info": self.versions.get(kind, ""), "response_nonce": self.nonces.get(kind, "")}
        self.send(type_url=kind, resource_names=names, **{**own, **fields})

    def ack(self, response: Any) -> None:
        self.versions[response.type_url] = response.version_info
        self.nonces[response.type_url] = response.nonce
        self.subscribe(response.type_url, *self.names.get(response.type_url, ()))

    def nack(self, response: Any, message: str) -> None:
        kind = response.type_url
        self.nonces[kind] = response.nonce
        self.subscribe(kind, *self.names.get(kind, ()), error_detail={"code": 13, "message": message})

    def ask_for(self, fence: str) -> None:
        self.subscribe(t.RUNTIME, fence)

    def answers(self, response: Any, fence: str) -> bool:
        return response.type_url == t.RUNTIME and any(e.resource_name.name == fence for e in response.resource_errors)


# Resources, as people write them


def cluster(name: str, *, timeout: str = "5s", eds: bool = False) -> dict[str, Any]:
    source = {"eds_config": {"ads": {}, "resource_api_version": "V3"}}
    return {
        "@type": t.CLUSTER, "name": name, "connect_timeout": timeout,
        **({"type": "EDS", "eds_cluster_config": source} if eds else {"type": "STATIC"}),
    }  # fmt: skip


def assignment(name: str, port: int = 80) -> dict[str, Any]:
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    return {"@type": t.ENDPOINTS, "cluster_name": name, "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address}}]}]}


def listener(name: str, port: int = 80) -> dict[str, Any]:
    return {"@type": t.LISTENER, "name": name, "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}}}


def routes(name: str, cluster: str = "c") -> dict[str, Any]:
    host = {"name": "all", "domains": ["*"], "routes": [{"match": {"prefix": "/"}, "route": {"cluster": cluster}}]}
    return {"@type": t.ROUTE, "name": name, "virtual_hosts": [host]}


def secret(name: str, text: str = "s") -> dict[str, Any]:
    return {"@type": t.SECRET, "name": name, "generic_secret": {"secret": {"inline_string": text}}}


def names_of(response: Any) -> set[str]:
    """The names of a response's resources."""
    if isinstance(response, pb.DeltaDiscoveryResponse):
        return {resource.name for resource in response.resources}
    return {_name(each) for each in response.resources}


def _name(packed: Any) -> str:
    message: Any = pb.message_class(packed.type_url.rpartition("/")[2]).FromString(packed.value)
    return getattr(message, "name", "") or message.cluster_name


def message_of(response: Any, name: str) -> Any:
    """The resource of this name, decoded."""
    for resource in response.resources:
        packed = getattr(resource, "resource", resource)
        if _name(packed) == name:
            return pb.message_class(packed.type_url.rpartition("/")[2]).FromString(packed.value)
    raise AssertionError(f"no {name} in {response}")


def versions_of(responses: Iterable[Any]) -> dict[str, str]:
    """Name and version of everything in these Delta responses."""
    return {resource.name: resource.version for response in responses for resource in response.resources}


@contextmanager
def serving(*args: str, **fields: Any) -> Iterator[Product]:
    with Product(*args, **fields) as product:
        yield product
