# Prometheus as Debian packages it, so that profile `observability` needs nothing beyond what Runnel's image needs.
# `PROMETHEUS_IMAGE` puts another in its place (docs/containers.md).
ARG BASE=debian:bookworm-slim
FROM ${BASE}
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends prometheus \
 && rm -rf /var/lib/apt/lists/* \
 && install -d -o prometheus -g prometheus /prometheus
USER prometheus
VOLUME ["/prometheus"]
EXPOSE 9090
ENTRYPOINT ["prometheus"]
