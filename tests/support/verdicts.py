"""Specs of Istio's kinds that are good or bad, and the field that is to blame. Shared by our verdict, the API server's and Envoy's."""

from typing import Any

Spec = dict[str, Any]


def http(**route: Any) -> Spec:
    """A VirtualService of one HTTP route, to `a` unless it says otherwise."""
    action = route.keys() & {"redirect", "directResponse", "delegate", "route"}
    return {"hosts": ["a"], "http": [{**route, **({} if action else {"route": [{"destination": {"host": "a"}}]})}]}


def policy(**fields: Any) -> Spec:
    """A DestinationRule of this traffic policy."""
    return {"host": "a", "trafficPolicy": fields}


def entry(**fields: Any) -> Spec:
    """A ServiceEntry of one port."""
    ports = [{"number": 80, "name": "http", "protocol": "HTTP"}]
    return {"hosts": ["a.example.com"], "ports": ports, "resolution": "DNS", **fields}


HTTP_PORT = {"number": 80, "protocol": "HTTP", "name": "http"}

# Kind, spec, and the field that is wrong.
REFUSED_BY_BOTH: list[tuple[str, Spec, str]] = [
    ("VirtualService", http(timeout="500us"), "$.spec.http[0].timeout"),
    ("VirtualService", http(timeout="-1s"), "$.spec.http[0].timeout"),
    ("VirtualService", http(timeout="soon"), "$.spec.http[0].timeout"),
    ("VirtualService", http(retries={"attempts": 1, "perTryTimeout": "1us"}), "$.spec.http[0].retries.perTryTimeout"),
    ("VirtualService", http(retries={"attempts": 1, "backoff": "1us"}), "$.spec.http[0].retries.backoff"),
    ("VirtualService", http(corsPolicy={"maxAge": "-2h"}), "$.spec.http[0].corsPolicy.maxAge"),
    ("VirtualService", http(fault={"delay": {"fixedDelay": "1us", "percent": 1}}), "$.spec.http[0].fault.delay.fixedDelay"),
    ("VirtualService", http(match=[{"uri": {"exact": "/a", "prefix": "/b"}}]), "$.spec.http[0].match[0].uri"),
    ("VirtualService", http(match=[{"headers": {"x-a": {"regex": "a", "prefix": "b"}}}]), "$.spec.http[0].match[0].headers.x-a"),
    ("VirtualService", http(match=[{"port": 2**32}]), "$.spec.http[0].match[0].port"),
    ("VirtualService", http(redirect={"port": 80, "derivePort": "FROM_REQUEST_PORT"}), "$.spec.http[0].redirect"),
    (
        "VirtualService",
        http(directResponse={"status": 200, "body": {"string": "a", "bytes": "YQ=="}}),
        "$.spec.http[0].directResponse.body",
    ),
    (
        "VirtualService",
        http(fault={"abort": {"httpStatus": 500, "grpcStatus": "OK", "percentage": {"value": 1}}}),
        "$.spec.http[0].fault.abort",
    ),
    ("VirtualService", http(directResponse={"status": 200, "body": {"bytes": "!"}}), "$.spec.http[0].directResponse.body.bytes"),
    ("VirtualService", {"hosts": ["a"], "tls": [{"route": [{"destination": {"host": "a"}}]}]}, "$.spec.tls[0].match"),
    (
        "VirtualService",
        {"hosts": ["a"], "tls": [{"match": [{}], "route": [{"destination": {"host": "a"}}]}]},
        "$.spec.tls[0].match[0].sniHosts",
    ),
    ("VirtualService", http(route=[{"destination": {}}]), "$.spec.http[0].route[0].destination.host"),
    (
        "DestinationRule",
        policy(loadBalancer={"simple": "RANDOM", "consistentHash": {"useSourceIp": True}}),
        "$.spec.trafficPolicy.loadBalancer",
    ),
    (
        "DestinationRule",
        policy(connectionPool={"tcp": {"connectTimeout": "1us"}}),
        "$.spec.trafficPolicy.connectionPool.tcp.connectTimeout",
    ),
    ("DestinationRule", policy(outlierDetection={"interval": "-1s"}), "$.spec.trafficPolicy.outlierDetection.interval"),
    (
        "DestinationRule",
        policy(outlierDetection={"outlierDetectionHttpErrorCodes": [99]}),
        "$.spec.trafficPolicy.outlierDetection.outlierDetectionHttpErrorCodes[0]",
    ),
    ("DestinationRule", policy(retryBudget={"percent": 101}), "$.spec.trafficPolicy.retryBudget.percent"),
    (
        "DestinationRule",
        policy(loadBalancer={"warmup": {"duration": "10s", "minimumPercent": 200}}),
        "$.spec.trafficPolicy.loadBalancer.warmup.minimumPercent",
    ),
    ("DestinationRule", {"host": "a", "workloadSelector": {"matchLabels": {"app": "a*"}}}, "$.spec.workloadSelector.matchLabels.app"),
    ("DestinationRule", {"host": "a", "subsets": [{"labels": {}}]}, "$.spec.subsets[0].name"),
    ("Sidecar", {"workloadSelector": {"labels": {"app": "*"}}}, "$.spec.workloadSelector.labels.app"),
    ("Sidecar", {"egress": [{}]}, "$.spec.egress[0].hosts"),
    ("Sidecar", {"ingress": [{"defaultEndpoint": "127.0.0.1:80"}]}, "$.spec.ingress[0].port"),
    ("ServiceEntry", entry(hosts=["*"]), "$.spec.hosts[0]"),
    ("ServiceEntry", entry(hosts=[]), "$.spec.hosts"),
    ("ServiceEntry", entry(addresses=["10.0.0.0/8"]), "$.spec.addresses[0]"),
    ("ServiceEntry", entry(resolution="NONE", endpoints=[{"address": "10.0.0.1"}]), "$.spec.endpoints"),
    ("ServiceEntry", entry(resolution="DNS_ROUND_ROBIN", endpoints=[{"address": "a"}, {"address": "b"}]), "$.spec.endpoints"),
    ("ServiceEntry", entry(endpoints=[{"address": "a"}], workloadSelector={"labels": {"a": "b"}}), "$.spec.endpoints"),
    ("ServiceEntry", entry(endpoints=[{}]), "$.spec.endpoints[0].address"),
    ("ServiceEntry", entry(endpoints=[{"address": "a", "ports": {"http": 0}}]), "$.spec.endpoints[0].ports.http"),
    ("ServiceEntry", entry(endpoints=[{"address": "a", "ports": {"a b": 1}}]), '$.spec.endpoints[0].ports["a b"]'),
    ("ServiceEntry", entry(ports=[{"number": 0, "name": "a"}]), "$.spec.ports[0].number"),
    ("ServiceEntry", entry(ports=[{"number": 80, "name": "a", "targetPort": 70000}]), "$.spec.ports[0].targetPort"),
    ("ServiceEntry", entry(ports=[{"number": 80, "name": "a"}, {"number": 80, "name": "b"}]), "$.spec.ports"),
    ("ServiceEntry", entry(ports=[{"number": 80, "name": "a"}, {"number": 81, "name": "a"}]), "$.spec.ports"),
    ("WorkloadEntry", {}, "$.spec.address"),
    ("WorkloadEntry", {"address": "unix://run/it"}, "$.spec.address"),
    ("WorkloadEntry", {"address": "unix:///run/"}, "$.spec.address"),
    ("WorkloadEntry", {"address": "unix:///run/it", "ports": {"a": 1}}, "$.spec.ports"),
]

REFUSED_BY_BOTH += [
    ("DestinationRule", policy(**fields), f"$.spec.trafficPolicy.{at}")
    for fields, at in (
        ({"connectionPool": {"tcp": {"connectTimeout": "0s"}}}, "connectionPool.tcp.connectTimeout"),
        ({"connectionPool": {"tcp": {"maxConnectionDuration": "0s"}}}, "connectionPool.tcp.maxConnectionDuration"),
        ({"connectionPool": {"tcp": {"tcpKeepalive": {"time": "0s"}}}}, "connectionPool.tcp.tcpKeepalive.time"),
        ({"connectionPool": {"http": {"http2KeepAlive": {"interval": "0s"}}}}, "connectionPool.http.http2KeepAlive.interval"),
        ({"outlierDetection": {"interval": "0s"}}, "outlierDetection.interval"),
        ({"outlierDetection": {"baseEjectionTime": "0s"}}, "outlierDetection.baseEjectionTime"),
        ({"loadBalancer": {"warmup": {"duration": "0s"}}}, "loadBalancer.warmup.duration"),
        ({"loadBalancer": {"consistentHash": {"useSourceIp": True, "httpHeaderName": "a"}}}, "loadBalancer.consistentHash"),
        ({"loadBalancer": {"consistentHash": {"useSourceIp": True, "maglev": {}, "ringHash": {}}}}, "loadBalancer.consistentHash"),
        ({"loadBalancer": {"consistentHash": {"httpCookie": {"ttl": "1s"}}}}, "loadBalancer.consistentHash.httpCookie.name"),
        ({"tunnel": {"targetHost": "a.test"}}, "tunnel.targetPort"),
        ({"proxyProtocol": {"version": "V3"}}, "proxyProtocol.version"),
    )
]

# The API server's schema takes these (Istio's webhook or Envoy would not).
REFUSED_BY_US: list[tuple[str, Spec, str]] = [
    ("VirtualService", {"hosts": [], "tcp": [{"route": [{"destination": {"host": "a"}}]}]}, "$.spec.hosts"),
    ("VirtualService", {"hosts": ["a", "a"], "http": http()["http"]}, "$.spec.hosts"),
    ("VirtualService", {"hosts": ["a b"], "http": http()["http"]}, "$.spec.hosts[0]"),
    ("VirtualService", {"hosts": ["a"]}, "$.spec"),
    ("VirtualService", {"hosts": ["a"], "http": [{}]}, "$.spec.http[0]"),
    ("VirtualService", http(redirect={"uri": "/"}, route=[{"destination": {"host": "a"}}]), "$.spec.http[0]"),
    ("VirtualService", http(redirect={"uri": "/", "redirectCode": 200}), "$.spec.http[0].redirect.redirectCode"),
    ("VirtualService", http(redirect={"uri": "/"}, rewrite={"uri": "/"}), "$.spec.http[0].rewrite"),
    ("VirtualService", http(directResponse={"status": 99}), "$.spec.http[0].directResponse.status"),
    ("VirtualService", http(retries={"attempts": -1}), "$.spec.http[0].retries.attempts"),
    ("VirtualService", http(fault={}), "$.spec.http[0].fault"),
    ("VirtualService", http(fault={"abort": {"httpStatus": 42, "percentage": {"value": 1}}}), "$.spec.http[0].fault.abort.httpStatus"),
    (
        "VirtualService",
        http(fault={"abort": {"httpStatus": 500, "percentage": {"value": 101}}}),
        "$.spec.http[0].fault.abort.percentage.value",
    ),
    ("VirtualService", http(mirror={"host": "a b"}), "$.spec.http[0].mirror.host"),
    (
        "VirtualService",
        http(mirrors=[{"destination": {"host": "a"}, "percentage": {"value": -1}}]),
        "$.spec.http[0].mirrors[0].percentage.value",
    ),
    (
        "VirtualService",
        http(route=[{"destination": {"host": "a", "port": {"number": 70000}}}]),
        "$.spec.http[0].route[0].destination.port.number",
    ),
    ("VirtualService", http(route=[{"destination": {"host": "a", "subset": "V_1"}}]), "$.spec.http[0].route[0].destination.subset"),
    ("VirtualService", http(route=[{"destination": {"host": "a"}}, {"destination": {"host": "b"}}]), "$.spec.http[0].route"),
    ("VirtualService", http(route=[{"destination": {"host": "a"}, "weight": -1}]), "$.spec.http[0].route[0].weight"),
    ("VirtualService", http(match=[{"uri": {"regex": "/("}}]), "$.spec.http[0].match[0].uri.regex"),
    ("VirtualService", http(match=[{"headers": {"a": {"regex": "(?=a)"}}}]), "$.spec.http[0].match[0].headers.a.regex"),
    ("VirtualService", http(match=[{"headers": {"": {"exact": "a"}}}]), "$.spec.http[0].match[0].headers"),
    (
        "VirtualService",
        http(rewrite={"uriRegexRewrite": {"match": "a{9999}", "rewrite": "b"}}),
        "$.spec.http[0].rewrite.uriRegexRewrite.match",
    ),
    ("VirtualService", http(headers={"request": {"set": {"x-part": "100%"}}}), "$.spec.http[0].headers.request.set.x-part"),
    ("VirtualService", http(headers={"response": {"add": {"x-it": "%NOTHING%"}}}), "$.spec.http[0].headers.response.add.x-it"),
    ("VirtualService", http(headers={"request": {"set": {"x a": "1"}}}), '$.spec.http[0].headers.request.set["x a"]'),
    ("VirtualService", http(headers={"request": {"set": {"x-a": "1\n2"}}}), "$.spec.http[0].headers.request.set.x-a"),
    ("VirtualService", http(headers={"request": {"remove": ["x\n"]}}), "$.spec.http[0].headers.request.remove[0]"),
    ("VirtualService", {**http(), "exportTo": ["*", "a"]}, "$.spec.exportTo"),
    ("VirtualService", {"hosts": ["a"], "tcp": [{}]}, "$.spec.tcp[0].route"),
    ("VirtualService", {"http": [{"delegate": {"name": "b"}}]}, "$.spec.http[0].delegate"),
    ("VirtualService", http(match=[{"uri": {"regex": ""}}]), "$.spec.http[0].match[0].uri.regex"),
    ("VirtualService", http(match=[{"withoutHeaders": {"x\n": {}}}]), '$.spec.http[0].match[0].withoutHeaders["x\n"]'),
    ("VirtualService", http(match=[{"port": 70000}]), "$.spec.http[0].match[0].port"),
    (
        "VirtualService",
        http(match=[{"headers": {"@request.auth.claims.": {"exact": "a"}}}]),
        '$.spec.http[0].match[0].headers["@request.auth.claims."]',
    ),
    ("VirtualService", http(headers={"request": {"set": {"x-a": "a" * 16385}}}), "$.spec.http[0].headers.request.set.x-a"),
    ("VirtualService", http(redirect={"redirectCode": 302}), "$.spec.http[0].redirect"),
    ("VirtualService", http(redirect={"uri": "/", "port": 70000}), "$.spec.http[0].redirect.port"),
    ("VirtualService", http(redirect={"uri": "/a\nb"}), "$.spec.http[0].redirect.uri"),
    (
        "VirtualService",
        http(match=[{"uri": {"prefix": "/a"}}], redirect={"uri": "/", "prefixRewrite": "/"}),
        "$.spec.http[0].redirect",
    ),
    ("VirtualService", http(redirect={"prefixRewrite": "/"}), "$.spec.http[0].match"),
    ("VirtualService", http(match=[{"uri": {"exact": "/a"}}], redirect={"prefixRewrite": "/"}), "$.spec.http[0].match[0].uri"),
    ("VirtualService", http(rewrite={"authority": "a\nb"}), "$.spec.http[0].rewrite.authority"),
    (
        "VirtualService",
        http(directResponse={"status": 200, "body": {"string": "a" * (2**20 + 1)}}),
        "$.spec.http[0].directResponse.body",
    ),
    (
        "VirtualService",
        http(fault={"abort": {"grpcStatus": "14", "percentage": {"value": 1}}}),
        "$.spec.http[0].fault.abort.grpcStatus",
    ),
    ("VirtualService", http(fault={"delay": {"fixedDelay": "1s", "percent": -1}}), "$.spec.http[0].fault.delay.percent"),
    ("VirtualService", http(mirror={"host": "a"}, mirrorPercent=101), "$.spec.http[0].mirrorPercent"),
    ("VirtualService", http(delegate={"namespace": "a"}), "$.spec.http[0].delegate.name"),
    (
        "VirtualService",
        http(route=[{"destination": {"host": host}, "weight": 2**31 - 1} for host in "abc"]),
        "$.spec.http[0].route",
    ),
    (
        "VirtualService",
        {"hosts": ["a"], "tcp": [{"match": [{"destinationSubnets": ["here"]}], "route": [{"destination": {"host": "a"}}]}]},
        "$.spec.tcp[0].match[0].destinationSubnets[0]",
    ),
    ("DestinationRule", {"host": "a b"}, "$.spec.host"),
    ("DestinationRule", {"host": "a", "subsets": [{"name": "V 1"}]}, "$.spec.subsets[0].name"),
    ("DestinationRule", policy(tls={"mode": "MUTUAL"}), "$.spec.trafficPolicy.tls"),
    ("DestinationRule", policy(outlierDetection={"maxEjectionPercent": 101}), "$.spec.trafficPolicy.outlierDetection.maxEjectionPercent"),
    ("DestinationRule", policy(portLevelSettings=[{"tls": {}}]), "$.spec.trafficPolicy.portLevelSettings[0].port"),
    ("Sidecar", {"egress": [{"hosts": ["a"]}]}, "$.spec.egress[0].hosts[0]"),
    ("Sidecar", {"egress": [{"hosts": []}]}, "$.spec.egress[0].hosts"),
    ("Sidecar", {"ingress": [{"port": {}}]}, "$.spec.ingress[0].port.number"),
    ("Sidecar", {"ingress": [{"port": {**HTTP_PORT, "number": 65536}}]}, "$.spec.ingress[0].port.number"),
    ("Sidecar", {"egress": [{"hosts": ["./*"], "port": {**HTTP_PORT, "number": 65536}}]}, "$.spec.egress[0].port.number"),
    ("Sidecar", {"ingress": [{"port": HTTP_PORT, "defaultEndpoint": f"unix:///{'a' * 108}"}]}, "$.spec.ingress[0].defaultEndpoint"),
    ("ServiceEntry", entry(resolution="STATIC", endpoints=[{"address": f"unix:///{'a' * 108}"}]), "$.spec.endpoints[0].address"),
    ("Sidecar", {"egress": [{"hosts": ["./*"], "bind": "127.0.0.1"}]}, "$.spec.egress[0].port"),
    ("Sidecar", {"egress": [{"hosts": ["./*"], "bind": "localhost", "port": HTTP_PORT}]}, "$.spec.egress[0].bind"),
    (
        "Sidecar",
        {"egress": [{"hosts": ["./*"], "bind": "unix:///run/it", "port": HTTP_PORT, "captureMode": "IPTABLES"}]},
        "$.spec.egress[0].captureMode",
    ),
    ("Sidecar", {"ingress": [{"port": HTTP_PORT}, {"port": HTTP_PORT}]}, "$.spec.ingress[1].port.number"),
    ("Sidecar", {"ingress": [{"port": HTTP_PORT, "bind": "unix:///run/it"}]}, "$.spec.ingress[0].bind"),
    ("Sidecar", {"ingress": [{"port": HTTP_PORT, "defaultEndpoint": "10.0.0.1:80"}]}, "$.spec.ingress[0].defaultEndpoint"),
    ("Sidecar", {"ingress": [{"port": HTTP_PORT, "defaultEndpoint": "127.0.0.1"}]}, "$.spec.ingress[0].defaultEndpoint"),
    ("Sidecar", {"ingress": [{"port": HTTP_PORT, "defaultEndpoint": "127.0.0.1:0"}]}, "$.spec.ingress[0].defaultEndpoint"),
    (
        "Sidecar",
        {"outboundTrafficPolicy": {"mode": "REGISTRY_ONLY", "egressProxy": {"host": "a.b"}}},
        "$.spec.outboundTrafficPolicy.egressProxy",
    ),
    ("ServiceEntry", entry(endpoints=[{"address": "unix:///run/it"}]), "$.spec.endpoints[0].address"),
    ("ServiceEntry", entry(hosts=["*.example.com"]), "$.spec.hosts[0]"),
    ("ServiceEntry", entry(addresses=["a.b"]), "$.spec.addresses[0]"),
    ("ServiceEntry", entry(resolution="STATIC", endpoints=[{"address": "a.b"}]), "$.spec.endpoints[0].address"),
]

# Served as they are, with a warning of the field that has no effect.
WITHOUT_EFFECT: list[tuple[str, Spec, str]] = [
    ("VirtualService", http(headers={"request": {"set": {":path": "/"}}}), '$.spec.http[0].headers.request.set[":path"]'),
    ("VirtualService", http(headers={"request": {"remove": ["host"]}}), "$.spec.http[0].headers.request.remove[0]"),
    ("VirtualService", http(headers={"response": {"add": {"host": "b"}}}), "$.spec.http[0].headers.response.add.host"),
    ("VirtualService", http(rewrite={}), "$.spec.http[0].rewrite"),
    ("ServiceEntry", entry(ports=[{"number": 80, "name": "http", "protocol": "HTTPP"}]), "$.spec.ports[0].protocol"),
    ("ServiceEntry", entry(hosts=["*.a.b"], resolution="DYNAMIC_DNS", endpoints=[{"address": "10.0.0.1"}]), "$.spec.endpoints"),
    (
        "ServiceEntry",
        entry(
            hosts=["*.a.b"], resolution="DYNAMIC_DNS", ports=[{"number": 80, "name": "http", "protocol": "HTTP", "targetPort": 8080}]
        ),
        "$.spec.ports[0].targetPort",
    ),
    ("Sidecar", {"ingress": [{"port": {"number": 80, "protocol": "HTTPP", "name": "http"}}]}, "$.spec.ingress[0].port.protocol"),
    ("VirtualService", http(rewrite={"uri": "/", "uriRegexRewrite": {"match": "/a", "rewrite": "/b"}}), "$.spec.http[0].rewrite.uri"),
    ("VirtualService", http(retries={"attempts": 1, "retryOn": "5xx,whenever"}), "$.spec.http[0].retries.retryOn"),
    ("VirtualService", http(retries={"attempts": 1, "retryOn": "999"}), "$.spec.http[0].retries.retryOn"),
    ("VirtualService", http(fault={"abort": {"httpStatus": 500}}), "$.spec.http[0].fault.abort"),
    ("VirtualService", http(fault={"abort": {"http2Error": "a", "percentage": {"value": 1}}}), "$.spec.http[0].fault.abort"),
    ("VirtualService", http(fault={"delay": {"fixedDelay": "1s"}}), "$.spec.http[0].fault.delay"),
    ("VirtualService", http(fault={"delay": {"exponentialDelay": "1s", "percent": 1}}), "$.spec.http[0].fault.delay"),
    ("VirtualService", http(mirrorPercentage={"value": 1}), "$.spec.http[0].mirrorPercentage"),
    ("VirtualService", http(corsPolicy={"maxAge": "1.5s"}), "$.spec.http[0].corsPolicy.maxAge"),
    (
        "VirtualService",
        {"hosts": ["a"], "tcp": [{"match": [{"sourceSubnet": "10.0.0.0/8"}], "route": [{"destination": {"host": "a"}}]}]},
        "$.spec.tcp[0].match[0].sourceSubnet",
    ),
    (
        "VirtualService",
        {"hosts": ["a"], "tls": [{"match": [{"sniHosts": ["b.example.com"]}], "route": [{"destination": {"host": "a"}}]}]},
        "$.spec.tls[0].match[0].sniHosts[0]",
    ),
]
REFUSED_BY_US += [
    ("DestinationRule", policy(**fields), f"$.spec.trafficPolicy.{at}")
    for fields, at in (
        ({"connectionPool": {"tcp": {"maxConnections": -1}}}, "connectionPool.tcp.maxConnections"),
        ({"connectionPool": {"http": {"maxRetries": -1}}}, "connectionPool.http.maxRetries"),
        ({"loadBalancer": {"consistentHash": {"httpHeaderName": "x a"}}}, "loadBalancer.consistentHash.httpHeaderName"),
        ({"loadBalancer": {"consistentHash": {"httpCookie": {"name": ""}}}}, "loadBalancer.consistentHash.httpCookie.name"),
        (
            {"loadBalancer": {"consistentHash": {"useSourceIp": True, "maglev": {"tableSize": 65536}}}},
            "loadBalancer.consistentHash.maglev.tableSize",
        ),
        (
            {"loadBalancer": {"consistentHash": {"useSourceIp": True, "maglev": {"tableSize": 5000077}}}},
            "loadBalancer.consistentHash.maglev.tableSize",
        ),
        (
            {"loadBalancer": {"consistentHash": {"useSourceIp": True, "ringHash": {"minimumRingSize": 8388609}}}},
            "loadBalancer.consistentHash.ringHash.minimumRingSize",
        ),
        ({"loadBalancer": {"localityLbSetting": {"distribute": [{"from": "a/*", "to": {"b/*": 99}}]}}},
         "loadBalancer.localityLbSetting.distribute[0].to"),
        ({"loadBalancer": {"localityLbSetting": {"distribute": [{"from": "a/*/c", "to": {"b/*": 100}}]}}},
         "loadBalancer.localityLbSetting.distribute[0].from"),
        ({"loadBalancer": {"localityLbSetting": {"distribute": [{"from": "*", "to": {"a": 100}}], "failover": [{"from": "a", "to": "b"}]}}},
         "loadBalancer.localityLbSetting"),
        ({"loadBalancer": {"localityLbSetting": {"failover": [{"from": "a", "to": "a"}]}}}, "loadBalancer.localityLbSetting.failover[0]"),
        ({"loadBalancer": {"localityLbSetting": {"failover": [{"from": "a/b", "to": "c"}]}}},
         "loadBalancer.localityLbSetting.failover[0].from"),
        ({"tls": {"mode": "SIMPLE", "credentialName": "a", "caCertificates": "/b"}}, "tls"),
        ({"tls": {"mode": "SIMPLE", "sni": "a" * 256}}, "tls.sni"),
        ({"tunnel": {"targetHost": "a.test", "targetPort": 0}}, "tunnel.targetPort"),
        ({"tunnel": {"targetHost": "*.test", "targetPort": 80}}, "tunnel.targetHost"),
        ({"tunnel": {"targetHost": "a.test", "targetPort": 80, "protocol": "GET"}}, "tunnel.protocol"),
    )
]  # fmt: skip

WITHOUT_EFFECT += [
    ("DestinationRule", policy(**fields), f"$.spec.trafficPolicy.{at}")
    for fields, at in (
        ({"tls": {"mode": "ISTIO_MUTUAL"}}, "tls"),
        ({"tls": {"mode": "SIMPLE", "credentialName": "a"}}, "tls.credentialName"),
        ({"portLevelSettings": [{"port": {"number": 80}, "tls": {"mode": "ISTIO_MUTUAL"}}]}, "portLevelSettings[0].tls"),
        ({"loadBalancer": {"consistentHash": {"maglev": {}}}}, "loadBalancer.consistentHash"),
        ({"loadBalancer": {"simple": "RANDOM", "warmup": {"duration": "1s"}}}, "loadBalancer.warmup"),
        ({"outlierDetection": {"consecutiveErrors": 5}}, "outlierDetection.consecutiveErrors"),
        ({"outlierDetection": {"consecutiveLocalOriginFailures": 5}}, "outlierDetection.consecutiveLocalOriginFailures"),
        ({"retryBudget": {"budgetInterval": "10s"}}, "retryBudget.budgetInterval"),
        ({"connectionPool": {"http": {"http1MaxPending": 1}}}, "connectionPool.http.http1MaxPending"),
    )
] + [
    ("DestinationRule", {"host": "a", "subsets": [{"name": "v1"}, {"name": "v1"}]}, "$.spec.subsets[1].name"),
    (
        "DestinationRule",
        {"host": "a", "workloadSelector": {}, "trafficPolicy": {"tls": {"mode": "MUTUAL", "credentialName": "a"}}},
        "$.spec.trafficPolicy.tls.credentialName",
    ),
    (
        "DestinationRule",
        {"host": "a", "subsets": [{"name": "v1", "trafficPolicy": {"tls": {"mode": "ISTIO_MUTUAL"}}}]},
        "$.spec.subsets[0].trafficPolicy.tls",
    ),
]

GOOD: list[tuple[str, Spec]] = [
    ("VirtualService", http()),
    ("VirtualService", {"http": http()["http"]}),
    ("VirtualService", http(timeout="1ms", retries={"attempts": 0})),
    ("VirtualService", http(match=[{"uri": {"regex": "*"}, "headers": {"a": {}}, "queryParams": {"q": {"exact": ""}}}])),
    (
        "VirtualService",
        http(headers={"request": {"set": {"x-a": "100%% of %REQ(:PATH)%", "Host": "b", ":authority": "c"}, "remove": ["x-b"]}}),
    ),
    ("VirtualService", http(fault={"delay": {"fixedDelay": "5s", "percentage": {"value": 0.1}}})),
    ("VirtualService", http(retries={"attempts": 2, "retryOn": "503, gateway-error,unavailable"})),
    ("VirtualService", http(directResponse={"status": 200, "body": {"bytes": "AP8="}})),
    ("VirtualService", http(match=[{"uri": {"prefix": "/a"}}], redirect={"prefixRewrite": "/", "derivePort": "FROM_REQUEST_PORT"})),
    ("VirtualService", http(match=[{"headers": {"@request.auth.claims[a][b]": {"exact": "c"}, "@request.auth.claims.a.b": {}}}])),
    (
        "VirtualService",
        {
            "hosts": ["a", "*.example.com"],
            "tls": [
                {
                    "match": [{"sniHosts": ["a", "a.default.svc.cluster.local", "B.Example.com", "*.b.example.com"]}],
                    "route": [{"destination": {"host": "a"}}],
                }
            ],
        },
    ),
    ("VirtualService", {"hosts": ["*.example.com", "10.0.0.1"], "tcp": [{"route": [{"destination": {"host": "a"}}]}]}),
    ("DestinationRule", {"host": "*.example.com"}),
    ("DestinationRule", policy(connectionPool={"tcp": {"idleTimeout": "0s", "maxConnections": 0}, "http": {"idleTimeout": "1ms"}})),
    ("DestinationRule", policy(loadBalancer={"consistentHash": {"useSourceIp": True, "maglev": {"tableSize": 5000011}}})),
    (
        "DestinationRule",
        policy(loadBalancer={"localityLbSetting": {"distribute": [{"from": "*", "to": {"a/b/*": 60, "c": 40}}]}}),
    ),
    (
        "DestinationRule",
        policy(loadBalancer={"localityLbSetting": {"failover": [{"from": "a", "to": "b"}], "failoverPriority": ["tier"]}}),
    ),
    ("DestinationRule", policy(tunnel={"targetHost": "10.0.0.1", "targetPort": 443, "protocol": "POST"})),
    ("DestinationRule", policy(loadBalancer={"consistentHash": {"httpCookie": {"name": "a", "ttl": "0s"}}})),
    ("DestinationRule", policy(portLevelSettings=[{"port": {"number": 80}, "tls": {"mode": "SIMPLE"}}])),
    ("Sidecar", {}),
    ("Sidecar", {"egress": [{"hosts": ["./*", "~/*", "*/a.b"]}], "ingress": [{"port": {"number": 80, "protocol": "HTTP", "name": "a"}}]}),
    ("ServiceEntry", entry()),
    ("ServiceEntry", entry(hosts=["*.example.com"], resolution="DYNAMIC_DNS")),
    ("ServiceEntry", entry(hosts=["*.example.com"], resolution="DYNAMIC_DNS", location="MESH_INTERNAL")),
    ("ServiceEntry", entry(addresses=["10.0.0.0/8", "fd00::1"], resolution="STATIC", endpoints=[{"address": "unix:///run/it"}])),
    ("ServiceEntry", entry(workloadSelector={"labels": {"app": "a"}}, resolution="STATIC")),
    ("WorkloadEntry", {"network": "far"}),
    ("WorkloadEntry", {"address": "unix://@name"}),
    ("WorkloadEntry", {"address": "10.0.0.1", "ports": {"http": 8080}, "weight": 3, "locality": "a/b/c"}),
]
