# The image of `dispatcher serve`: only the service and its interpreter, for a numeric user and a read-only root file
# system (/tmp must be writable for `--workers`). The health check is for gRPC in clear on port 50051; elsewhere say
# DISPATCHER_CLIENT_TARGET and DISPATCHER_CLIENT_…, or leave it to probes of /readyz. The base is an argument; for
# production say it by its digest:
#
#   docker build --build-arg PYTHON_IMAGE=python@sha256:… --build-arg REVISION="$(git rev-parse HEAD)" -t dispatcher .
#
# `make test-image` follows the steps of the first two stages where no container engine is.
ARG PYTHON_IMAGE=python:3.11-slim-bookworm

FROM ${PYTHON_IMAGE} AS wheel
WORKDIR /build
COPY requirements-dev.txt ./
RUN python -m venv /tools \
    && /tools/bin/python -m pip install --no-cache-dir --require-hashes -r requirements-dev.txt
COPY pyproject.toml README.md LICENSE ./
COPY src ./src
RUN /tools/bin/python -m hatchling build -t wheel -d /wheel

FROM ${PYTHON_IMAGE} AS install
WORKDIR /build
COPY requirements.txt ./
RUN python -m venv --without-pip /opt/dispatcher \
    && python -m pip --python /opt/dispatcher/bin/python install --no-cache-dir --require-hashes -r requirements.txt
COPY --from=wheel /wheel /wheel
RUN python -m pip --python /opt/dispatcher/bin/python install --no-cache-dir --no-index --no-deps /wheel/*.whl

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="dispatcher" \
      org.opencontainers.image.description="Webhook delivery for the service mesh" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# The user is in /etc/passwd for libraries that ask for its name; nothing that installs or builds is left.
RUN groupadd --gid 65532 dispatcher \
    && useradd --uid 65532 --gid 65532 --no-create-home --home-dir /tmp --shell /usr/sbin/nologin dispatcher \
    && python -m pip uninstall --yes --root-user-action ignore setuptools wheel pip \
    && rm -rf /usr/local/lib/python3.*/ensurepip
COPY --from=install /opt/dispatcher /opt/dispatcher
ENV PATH=/opt/dispatcher/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
USER 65532:65532
# Callers' gRPC, KEDA's scaler where it is on, /livez, /readyz and /metrics. Operators' gRPC (50052) is on loopback.
EXPOSE 50051 50053 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=10s --start-period=30s CMD ["dispatcher", "health", "--timeout", "5"]
ENTRYPOINT ["dispatcher"]
CMD ["serve"]
