# The oskit command, without torch: deploy, ingest, search and verify. Build it in the repository's root:
#
#   docker build -f docker/oskit.Dockerfile -t oskit .
#   docker build -f docker/oskit.Dockerfile -t oskit:demo --build-arg EXTRAS=[demo] .    with what the demo needs
#
# PIP_ARGS goes to pip, for example to take torch from an index of builds for CPUs, which are smaller.
ARG BASE_IMAGE=python:3.12-slim

FROM ${BASE_IMAGE} AS build
ARG EXTRAS=
ARG PIP_ARGS=
COPY pyproject.toml README.md LICENSE NOTICE /src/
COPY oskit /src/oskit
COPY exporters /src/exporters
RUN python3 -m venv /opt/oskit \
 && /opt/oskit/bin/pip install --no-cache-dir --no-compile ${PIP_ARGS} "/src${EXTRAS}" \
 && /opt/oskit/bin/pip uninstall --yes --quiet pip

FROM ${BASE_IMAGE}
COPY --from=build /opt/oskit /opt/oskit
RUN useradd --uid 1000 --create-home oskit && mkdir /work && chown oskit /work
ENV PATH=/opt/oskit/bin:$PATH PYTHONDONTWRITEBYTECODE=1
WORKDIR /work
USER 1000
ENTRYPOINT ["oskit"]
CMD ["--help"]
