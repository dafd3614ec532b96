# oskit serve, without torch and not as root. Build it in the repository's root:
#
#   docker build -f docker/serve.Dockerfile -t oskit-serve .
#   docker build -f docker/serve.Dockerfile -t oskit-serve --build-arg EXTRAS=[serve,openvino] .
#
# The archive is a volume, or copied into an image of its own (FROM oskit-serve, COPY out /archive):
#
#   docker run --rm -p 127.0.0.1:8080:8080 -v ./out:/archive:ro -e OSKIT_SERVE_TOKEN=… oskit-serve
ARG BASE_IMAGE=python:3.12-slim

FROM ${BASE_IMAGE} AS build
ARG EXTRAS=[serve]
ARG PIP_ARGS=
COPY pyproject.toml README.md LICENSE NOTICE /src/
COPY oskit /src/oskit
COPY exporters /src/exporters
RUN python3 -m venv /opt/oskit \
 && /opt/oskit/bin/pip install --no-cache-dir --no-compile ${PIP_ARGS} "/src${EXTRAS}" \
 && /opt/oskit/bin/pip uninstall --yes --quiet pip

FROM ${BASE_IMAGE}
COPY --from=build /opt/oskit /opt/oskit
RUN useradd --uid 1000 --create-home oskit
ENV PATH=/opt/oskit/bin:$PATH PYTHONDONTWRITEBYTECODE=1
USER 1000
EXPOSE 8080
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=30s --start-period=2m \
  CMD ["python3", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8080/health', timeout=25)"]
ENTRYPOINT ["oskit", "serve", "--host", "0.0.0.0"]
CMD ["/archive"]
