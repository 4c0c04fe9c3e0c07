"""A gRPC client without a proxy, grpcio's own xDS in a process of its own, and gRPC servers that answer with their names."""

import json
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc

# A client in a process of its own: GRPC_XDS_BOOTSTRAP is read once. A line in is a JSON list of headers, a line out is the answer.
CLIENT = """
import json, sys, grpc
channel = grpc.insecure_channel(sys.argv[1])
call = channel.unary_unary('/test.Echo/Say')
for line in sys.stdin:
    asked = json.loads(line)
    try:
        answer = call(b'', metadata=[tuple(pair) for pair in asked['headers']], timeout=asked['timeout'], wait_for_ready=False).decode()
    except grpc.RpcError as e:
        answer = e.code().name
    print(json.dumps(answer), flush=True)
"""


class Backend:
    """A gRPC server that answers every call with its name, and those with the header `fail-there` with a failure."""

    def __init__(self, name: str) -> None:
        self.server = grpc.server(ThreadPoolExecutor(4), options=[("grpc.so_reuseport", 0)])

        def answer(_: bytes, context: grpc.ServicerContext) -> bytes:
            if dict(context.invocation_metadata()).get("fail-there"):
                context.abort(grpc.StatusCode.INTERNAL, "as asked")
            return name.encode()

        handler = grpc.unary_unary_rpc_method_handler(answer)
        self.server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("test.Echo", {"Say": handler})])
        self.port = self.server.add_insecure_port("127.0.0.1:0")
        self.server.start()


class Client:
    """The client's process."""

    def __init__(self, bootstrap: Path, target: str) -> None:
        env = {**os.environ, "GRPC_XDS_BOOTSTRAP": str(bootstrap), "GRPC_VERBOSITY": "ERROR"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", CLIENT, target], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env
        )

    def say(self, *headers: tuple[str, str], timeout: float = 60) -> str:
        """The name of the server that answered, or the code of the failure."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"headers": headers, "timeout": timeout}) + "\n")
        self.process.stdin.flush()
        answer: str = json.loads(self.process.stdout.readline())
        return answer

    def stop(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(60)
        assert self.process.stdout is not None
        self.process.stdout.close()
