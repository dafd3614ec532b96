# OpenSearch, ready for sparse encoders: the PyTorch natives and the ML settings are in place, so the first
# deployment of a model needs no network. Build it in the repository's root:
#
#   docker build -f docker/opensearch.Dockerfile -t oskit-opensearch:3.6.0 .
#
# It is for x86-64; on another machine add --platform linux/amd64, which emulates one.
# `oskit node image build` makes the same image where the official one cannot be pulled.
ARG OPENSEARCH_VERSION=3.6.0
ARG BASE_IMAGE=opensearchproject/opensearch:${OPENSEARCH_VERSION}
ARG PYTHON_IMAGE=python:3.12-slim

FROM ${PYTHON_IMAGE} AS natives
RUN python3 -m venv /venv && /venv/bin/pip install --no-cache-dir 'jgo>=3.0' platformdirs tenacity
COPY oskit /src/oskit
# Fetched by coordinates and checked against the checksums that oskit pins.
RUN PYTHONPATH=/src /venv/bin/python -m oskit.localnode.image.fetch_natives /out

FROM ${BASE_IMAGE}
COPY --from=natives --chown=1000:1000 /out/natives /usr/share/opensearch/natives
COPY --from=natives --chown=1000:1000 /out/opensearch.yml /tmp/oskit/settings.yml
# The image's own settings stay, except for those that are given here.
RUN cd /usr/share/opensearch/config \
 && names=$(cut -d: -f1 /tmp/oskit/settings.yml) \
 && kept=$(grep -v -F "$names" opensearch.yml || true) \
 && { echo "$kept"; cat /tmp/oskit/settings.yml; } > opensearch.yml
ENV PYTORCH_LIBRARY_PATH=/usr/share/opensearch/natives
