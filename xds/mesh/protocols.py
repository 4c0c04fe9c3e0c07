"""What a port speaks (Istio: "Protocol Selection")."""

from xds.mesh.model import Protocol

_BY_NAME = {
    "http": Protocol.HTTP,
    "http_proxy": Protocol.HTTP,
    "http2": Protocol.HTTP2,
    "grpc": Protocol.GRPC,
    "grpc-web": Protocol.GRPC_WEB,
    "https": Protocol.HTTPS,
    "tls": Protocol.TLS,
    "tcp": Protocol.TCP,
    "mongo": Protocol.MONGO,
    "redis": Protocol.REDIS,
    "mysql": Protocol.MYSQL,
    "udp": Protocol.UDP,
}

# Values that Kubernetes itself defines for `appProtocol`.
_KUBERNETES = {"kubernetes.io/h2c": Protocol.HTTP2, "kubernetes.io/ws": Protocol.HTTP, "kubernetes.io/wss": Protocol.HTTPS}

# SMTP, DNS, MySQL, MongoDB: the server speaks first, so that waiting for the client's first bytes would wait for ever.
SERVER_FIRST = frozenset({25, 53, 3306, 27017})


def declared(name: str) -> Protocol:
    """The protocol called `name` in an Istio object, in any case; AUTO where it is empty or unknown."""
    return _BY_NAME.get(name.lower(), Protocol.AUTO)


def service_port(number: int, name: str = "", transport: str = "TCP", app_protocol: str | None = None) -> Protocol:
    """What a Kubernetes Service's port speaks: its `appProtocol`, else the prefix of its name, else AUTO.

    Of both, what is before the first `-` counts (`http-web`, but `grpc-web` is one word).
    """
    if transport != "TCP":  # SCTP is as little a proxy's
        return Protocol.UDP
    if app_protocol is not None and (standard := _KUBERNETES.get(app_protocol.lower())):
        return standard
    word = (name if app_protocol is None else app_protocol).lower()
    found = declared("grpc-web" if word.startswith("grpc-web") else word.partition("-")[0])
    return Protocol.TCP if found is Protocol.AUTO and number in SERVER_FIRST else found
