# The control plane: docker build -f deploy/image/control-plane.Dockerfile -t xds:0.1.0 .
FROM python:3.11-slim-bookworm AS build
COPY . /src
RUN pip install --no-cache-dir --no-compile --target /packages /src && rm -rf /packages/bin && python -m compileall -q --invalidation-mode unchecked-hash /packages

FROM gcr.io/distroless/python3-debian12:nonroot
COPY --from=build /packages /usr/local/lib/python3.11/dist-packages
ENV PYTHONDONTWRITEBYTECODE=1
USER 65532:65532
ENTRYPOINT ["/usr/bin/python3.11", "-Im", "xds"]
