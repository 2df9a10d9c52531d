# The worker's image: `transload`, its dependencies as requirements.lock has them, and nothing to build with.
#
#   docker build -t transload:local .                                           all extras
#   docker build -t transload:local --build-arg EXTRAS=s3,sqs,postgres .        only these (pyproject.toml has the names)
#
# docs/image.md says how it is run. Base images are named by version. For a build that is the same tomorrow give digests:
#   docker buildx imagetools inspect python:3.13.16-slim-trixie --format '{{.Manifest.Digest}}'
#   docker build --build-arg PYTHON_IMAGE=python:3.13.16-slim-trixie@sha256:… .
ARG PYTHON_IMAGE=docker.io/library/python:3.13.16-slim-trixie
ARG UV_IMAGE=ghcr.io/astral-sh/uv:0.13.0

FROM ${UV_IMAGE} AS uv

FROM ${PYTHON_IMAGE} AS build
COPY --from=uv /uv /usr/local/bin/uv
ENV UV_COMPILE_BYTECODE=1 \
    UV_LINK_MODE=copy \
    UV_NO_CONFIG=1 \
    UV_PYTHON_DOWNLOADS=never \
    VIRTUAL_ENV=/opt/transload
# Of a mirror of the package index, without credentials: build arguments stay readable in the image's history.
ARG UV_DEFAULT_INDEX
ARG EXTRAS=all
WORKDIR /src
COPY pyproject.toml requirements.lock ./
# The lock holds all extras and the tools for development. `compile` keeps what these extras need, at the lock's versions and with
# its hashes, and would look up what is not in it.
RUN --mount=type=cache,target=/root/.cache/uv set -eu; \
    IFS=,; for extra in ${EXTRAS}; do set -- "$@" --extra "${extra}"; done; unset IFS; \
    cp requirements.lock chosen.lock; \
    uv pip compile --quiet --generate-hashes --no-annotate --no-header --no-emit-index-url --output-file chosen.lock "$@" pyproject.toml; \
    grep -e '--hash=' chosen.lock > hashes; \
    if grep -vxFf requirements.lock hashes; then echo 'requirements.lock is older than pyproject.toml: make lock' >&2; exit 1; fi; \
    uv venv --quiet "${VIRTUAL_ENV}"; \
    uv pip install --quiet --require-hashes --no-build --requirement chosen.lock
COPY README.md LICENSE ./
COPY backends backends
COPY handlers handlers
COPY worker worker
RUN --mount=type=cache,target=/root/.cache/uv \
    uv build --quiet --wheel --require-hashes --build-constraints requirements.lock --out-dir dist . \
    && uv pip install --quiet --no-deps dist/*.whl

FROM ${PYTHON_IMAGE}
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="transload" \
      org.opencontainers.image.description="Event-driven storage worker: staged payloads in, durable objects and one completion per bundle out." \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
# The user has a name because libraries ask for it. /scratch is the one place that is written to: a mount, where the root is
# read-only. Anybody may write there, for a cluster that gives each namespace a user of its own.
RUN groupadd --gid 65532 transload \
    && useradd --key UID_MAX=65532 --uid 65532 --gid 65532 --no-create-home --home-dir /scratch --shell /usr/sbin/nologin transload \
    && install --directory --mode=1777 /scratch
COPY --from=build /opt/transload /opt/transload
ENV PATH=/opt/transload/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONFAULTHANDLER=1 \
    PYTHONUNBUFFERED=1 \
    TMPDIR=/scratch \
    TRANSLOAD_HOME=/scratch/home
USER 65532:65532
WORKDIR /scratch
EXPOSE 9464
STOPSIGNAL SIGTERM
# /livez and /readyz are for an orchestrator to ask; docker-compose.yml does, Kubernetes knows no other way.
HEALTHCHECK NONE
ENTRYPOINT ["transload"]
CMD ["run"]
