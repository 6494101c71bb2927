# One image for every role: `docker run runnel gateway|ingest|query|start|...`. docs/containers.md says how to use it.
#
# Needs no BuildKit, and builds with it too. Stages: `build` has the dependencies, `wheel` Runnel itself, `runtime` is
# the image; `s3` is the image with a small S3 server for trying things out (docker-compose.yml, profile s3), `ray` the
# image with Ray.
ARG BASE=debian:bookworm-slim

# -- what the other stages of the build begin with ----------------------------------------------------------------
FROM ${BASE} AS tools
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_CERT=/etc/ssl/certs/ca-certificates.crt
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ca-certificates python3 python3-venv \
 && rm -rf /var/lib/apt/lists/*
# Certificate authorities of your own network, if its proxy signs HTTPS again. They stay out of the image.
COPY deploy/certs/ /usr/local/share/ca-certificates/
RUN update-ca-certificates

# -- the dependencies: this changes only with requirements/run.txt ------------------------------------------------
FROM tools AS build
COPY requirements/run.txt /build/requirements/
RUN python3 -m venv /opt/runnel \
 && /opt/runnel/bin/pip install -q --require-hashes -r /build/requirements/run.txt

# -- Runnel as a wheel ---------------------------------------------------------------------------------------------
FROM tools AS wheel
COPY requirements/build.txt /build/requirements/
RUN python3 -m venv /opt/build \
 && /opt/build/bin/pip install -q --require-hashes -r /build/requirements/build.txt
WORKDIR /build
COPY pyproject.toml README.md LICENSE ./
COPY protos protos
COPY wire wire
COPY storage storage
COPY cluster cluster
COPY engine engine
COPY nodes nodes
RUN /opt/build/bin/pip wheel -q --no-deps --no-build-isolation --wheel-dir /build/dist .

# -- the image -----------------------------------------------------------------------------------------------------
FROM ${BASE} AS runtime
RUN apt-get update -qq \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends ca-certificates python3 \
 && rm -rf /var/lib/apt/lists/* \
 && groupadd --gid 10001 runnel \
 && useradd --uid 10001 --gid runnel --create-home --shell /usr/sbin/nologin runnel \
 # A named volume takes owner and mode from the folder it is first mounted on.
 && install -d -o runnel -g runnel -m 0750 /data /store \
 && install -d -o runnel -g runnel -m 0700 /trust \
 && install -d -o runnel -g runnel -m 0755 /opt/numba
# Compiled kernels are kept where the process may write: on a CPU of another kind they are compiled again, once.
ENV PATH=/opt/runnel/bin:$PATH LANG=C.UTF-8 PYTHONDONTWRITEBYTECODE=1 \
    NUMBA_CACHE_DIR=/opt/numba \
    RUNNEL_DATA__DIR=/data
# What costs nothing stands before what is large, so that a change of code repeats only the last three steps.
WORKDIR /home/runnel
VOLUME ["/data"]
EXPOSE 8181 50051 7946 7946/udp 7947
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=10s --start-period=120s --retries=3 CMD ["runnel", "health", "--timeout", "8"]
ENTRYPOINT ["runnel"]
CMD ["--help"]
COPY --from=build /opt/runnel /opt/runnel
COPY --from=wheel /build/dist/ /opt/dist/
RUN /opt/runnel/bin/pip install -q --no-index --no-deps --no-cache-dir --compile /opt/dist/*.whl \
 && runuser -u runnel -- python3 -m wire.lineprotocol.warm
USER runnel

# -- the image with moto, an S3 server that keeps everything in memory: for trying profile s3, never for data -----
FROM tools AS s3build
COPY requirements/s3.txt /build/requirements/
RUN python3 -m venv /opt/s3 \
 && /opt/s3/bin/pip install -q --require-hashes -r /build/requirements/s3.txt

FROM runtime AS s3
COPY --from=s3build /opt/s3 /opt/s3
COPY deploy/s3server.py /opt/dist/
EXPOSE 5000
HEALTHCHECK --interval=5s --timeout=10s --retries=12 CMD ["/opt/s3/bin/python", "/opt/dist/s3server.py", "--check"]
ENTRYPOINT ["/opt/s3/bin/python", "/opt/dist/s3server.py"]
CMD []

# -- the image with Ray, for workers that large queries run on (docker-compose.ray.yml) ---------------------------
FROM tools AS raybuild
COPY requirements/ray.txt /build/requirements/
RUN python3 -m venv /opt/build \
 && /opt/build/bin/pip install -q --require-hashes --target /opt/ray -r /build/requirements/ray.txt

FROM runtime AS ray
COPY --from=raybuild /opt/ray /opt/ray
COPY deploy/ray-node.sh /opt/dist/
ENV PYTHONPATH=/opt/ray

# What `docker build .` makes without --target.
FROM runtime
