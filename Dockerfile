# Three images from one file: --target webhook, workers or node-runner (`make images`). Needs BuildKit.
# Each holds its role's locked packages and the same wheel. For a release pin the base by digest too:
# --build-arg BASE=python:3.11-slim-bookworm@sha256:...
ARG BASE=python:3.11-slim-bookworm

FROM ${BASE} AS base
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore \
    PYTHONDONTWRITEBYTECODE=1 PYTHONSAFEPATH=1 PYTHONUNBUFFERED=1

# The wheel, with the tools that `make setup` builds it with.
FROM base AS build
WORKDIR /src
COPY requirements/dev.lock requirements/
RUN python -m venv /opt/build && /opt/build/bin/pip install --require-hashes -r requirements/dev.lock
COPY pyproject.toml README.md LICENSE ./
COPY egress egress/
COPY webhook webhook/
COPY workers workers/
COPY node_runner node_runner/
RUN /opt/build/bin/python -m build --wheel --no-isolation --outdir /dist .

FROM base AS webhook
RUN --mount=type=bind,source=requirements/webhook.lock,target=/lock \
    --mount=type=bind,from=build,source=/dist,target=/dist \
    pip install --require-hashes -r /lock && pip install --no-deps /dist/*.whl
USER 65532:65532
EXPOSE 8443
CMD ["hawse-webhook"]

# One image, four commands: hawse-worker, hawse-tickets, hawse-beat, hawse-watch.
FROM base AS workers
RUN --mount=type=bind,source=requirements/workers.lock,target=/lock \
    --mount=type=bind,from=build,source=/dist,target=/dist \
    pip install --require-hashes -r /lock && pip install --no-deps /dist/*.whl
USER 65532:65532
CMD ["hawse-worker"]

# Runs as root: NET_ADMIN counts for nobody else without file capabilities, and Open vSwitch's sockets are root's.
FROM base AS node-runner
# openvswitch-common has ovs-ofctl; ovs-vsctl is in openvswitch-switch, whose daemons nothing starts in a container.
RUN apt-get update && apt-get install -y --no-install-recommends openvswitch-common openvswitch-switch iptables \
    && rm -rf /var/lib/apt/lists/*
RUN --mount=type=bind,source=requirements/node-runner.lock,target=/lock \
    --mount=type=bind,from=build,source=/dist,target=/dist \
    pip install --require-hashes -r /lock && pip install --no-deps /dist/*.whl
CMD ["hawse-node-runner"]
