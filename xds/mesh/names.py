"""Host names as Istio's APIs write them: short names, wildcards, and which of two is the more specific."""

from collections.abc import Iterator

DOMAIN = "cluster.local"


def kubernetes_host(name: str, namespace: str) -> str:
    """The fully qualified name of a Kubernetes Service: `reviews.default.svc.cluster.local`."""
    return f"{name}.{namespace}.svc.{DOMAIN}"


def kubernetes_name(hostname: str) -> tuple[str, str] | None:
    """Name and namespace of the Kubernetes Service that `hostname` would be; None where it has another form."""
    parts = hostname.split(".", 2)
    if len(parts) == 3 and parts[2] == f"svc.{DOMAIN}" and parts[0] != "*":
        return parts[0], parts[1]
    return None


def qualified(host: str, namespace: str) -> str:
    """`host` in full, lower case. Only names without a dot are short: they mean a Service in the rule's `namespace`.

    Istio: VirtualService `hosts`: "reviews" is short, but "reviews.default" is taken as it stands.
    """
    host = host.lower().rstrip(".")
    return host if not host or "." in host or host == "*" or ":" in host else kubernetes_host(host, namespace)


def covers(pattern: str, hostname: str) -> bool:
    """Whether every name that `hostname` stands for (many, if it is a wildcard itself) is one that `pattern` stands for."""
    return pattern == hostname or (pattern.startswith("*") and hostname.endswith(pattern[1:]))


def patterns(hostname: str) -> Iterator[str]:
    """What a rule may call `hostname`, most specific first: itself, then `*.` before each of its suffixes, then `*`."""
    yield hostname
    rest = hostname
    while "." in rest:
        rest = rest.partition(".")[2]
        if (wildcard := f"*.{rest}") != hostname:
            yield wildcard
    if hostname != "*":
        yield "*"
