# The node's agent, with the CNI plugin that it installs: docker build -f deploy/image/cni.Dockerfile -t xds-cni:0.1.0 .
FROM debian:bookworm-slim AS plugin
RUN apt-get update && apt-get install -y --no-install-recommends gcc libc6-dev
COPY deploy/cni/xds-cni.c /src/
RUN gcc -static -Os -s -Wall -Wextra -Werror -o /xds-cni /src/xds-cni.c

FROM python:3.11-slim-bookworm AS build
COPY . /src
RUN pip install --no-cache-dir --no-compile --target /packages /src && rm -rf /packages/bin && python -m compileall -q --invalidation-mode unchecked-hash /packages

FROM debian:bookworm-slim
RUN apt-get update && apt-get install -y --no-install-recommends busybox-static nftables python3 && rm -rf /var/lib/apt/lists/* \
 && for applet in ip nc nsenter; do ln -s /bin/busybox /usr/local/bin/$applet; done
COPY --from=plugin /xds-cni /usr/local/bin/xds-cni
COPY --from=build /packages /usr/local/lib/python3.11/dist-packages
ENV PYTHONDONTWRITEBYTECODE=1
USER 0:0
ENTRYPOINT ["/usr/bin/python3.11", "-Im", "xds", "cni"]
