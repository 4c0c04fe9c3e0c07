# The proxy, and what captures traffic for it: docker build -f deploy/image/proxy.Dockerfile -t xds-proxy:0.1.0 .
FROM envoyproxy/envoy:v1.40.0 AS envoy

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends busybox-static nftables && rm -rf /var/lib/apt/lists/* \
 && for applet in ip nc wget; do ln -s /bin/busybox /usr/local/bin/$applet; done
COPY --from=envoy /usr/local/bin/envoy /usr/local/bin/envoy
USER 1337:1337
ENTRYPOINT ["/usr/local/bin/envoy"]
