# The gateway. Build: make images, or
#   docker build --tag triton-edge-gateway:0.1.0 .
# The last stage holds an interpreter, the libraries that it is linked to and the gateway: no shell, no pip, no packages
# manager. docs/install/images.md tells how it is run, docs/decisions/0027-images.md why it is built so.

# Pinned: the digest is that of the list for all platforms. Another base needs Debian, Python 3.11 or 3.12, venv and pip.
ARG PYTHON_IMAGE=docker.io/library/python:3.12.13-slim-bookworm@sha256:4766d8b510c428e595d74b9cc5bbb2fae8e26316fffb4adc89908d79aacd58a2

FROM ${PYTHON_IMAGE} AS build
# Each has a lock: requirements/<extra>.txt.
ARG EXTRAS="signing tracing"
WORKDIR /build
COPY requirements/ requirements/
RUN python3 -m venv --without-pip /opt/edge-gateway \
 && python3 -m venv /opt/build \
 && /opt/build/bin/python -m pip install --no-cache-dir --require-hashes --only-binary=:all: \
      -r requirements/build.txt \
 && for name in gateway ${EXTRAS}; do \
      python3 -m pip --python /opt/edge-gateway/bin/python install --no-cache-dir --no-compile --require-hashes \
        --only-binary=:all: -r "requirements/${name}.txt" || exit 1; \
    done
COPY pyproject.toml README.md LICENSE ./
COPY gateway/ gateway/
COPY triton/backends/ triton/backends/
COPY tests/bench/straightforward.py tests/bench/straightforward.py
# Tests of packages and stubs for type checkers run nowhere. What is compiled here is never written or checked again at
# run time, where nothing may be written.
RUN /opt/build/bin/python -m pip wheel --no-cache-dir --no-deps --no-build-isolation --wheel-dir dist . \
 && python3 -m pip --python /opt/edge-gateway/bin/python install --no-cache-dir --no-compile --no-deps --no-index \
      dist/*.whl \
 && find /opt/edge-gateway -depth \( -type d \( -name tests -o -name __pycache__ \) -o -name '*.pyi' \) -exec rm -r {} +

FROM build AS root
ARG UID=10001
COPY compose/images/collect_root.py ./
RUN python3 collect_root.py /opt/edge-gateway /root-of-image "${UID}" \
 && python3 -m compileall -q --invalidation-mode unchecked-hash -s /root-of-image /root-of-image

FROM scratch
COPY --from=root /root-of-image/ /
ENV PATH=/opt/edge-gateway/bin \
    LANG=C.UTF-8 \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    SSL_CERT_FILE=/etc/ssl/certs/ca-certificates.crt \
    MODEL_REPOSITORY=/models \
    MODEL_STATE_DIR=/var/lib/edge-gateway/models
WORKDIR /var/lib/edge-gateway
USER 10001:10001
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 CMD ["python3", "-m", "gateway.probe", "live"]
ENTRYPOINT ["edge-gateway"]
CMD ["serve"]
# Last, for they change with every build.
ARG VERSION=0.1.0
ARG REVISION=unknown
ARG CREATED=1970-01-01T00:00:00Z
ARG SOURCE=unknown
LABEL org.opencontainers.image.title="triton-edge-gateway" \
      org.opencontainers.image.description="Camera snapshots over MQTT, answered by models on NVIDIA Triton" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.source="${SOURCE}" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}" \
      org.opencontainers.image.created="${CREATED}"
