"""One OpenSearch container for all container tests, by testcontainers."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import NoReturn

import pytest

from oskit.errors import OskitError
from oskit.localnode.configuration import SETTINGS
from oskit.localnode.container import OFFICIAL_IMAGE
from oskit.localnode.engine import docker_engine


@pytest.fixture(scope="session")
def container_url() -> Iterator[str]:
    """The address of an OpenSearch container of the image ``OSKIT_OPENSEARCH_IMAGE`` (the official one).

    Without a Docker engine or the image it skips and says why; in CI (``CI`` is set) it fails.
    """
    image = image_name()
    require_image(image)
    # Ryuk's image would have to be pulled; `with` below removes the container without it.
    os.environ.setdefault("TESTCONTAINERS_RYUK_DISABLED", "true")
    from testcontainers.community.opensearch import OpenSearchContainer

    # The official entrypoint insists on a strong one, even with the security plugin off.
    container = OpenSearchContainer(image=image, mem_limit="4g", initial_admin_password="Long-2-Enough!")
    container.with_env("DISABLE_INSTALL_DEMO_CONFIG", "true")
    for name, value in SETTINGS.items():
        container.with_env(name, value if isinstance(value, str) else json.dumps(value))
    with container:
        yield f"http://{container.get_container_host_ip()}:{container.get_exposed_port(9200)}"


def image_name() -> str:
    """The image that the container tests run on."""
    return os.environ.get("OSKIT_OPENSEARCH_IMAGE") or OFFICIAL_IMAGE


def require_image(image: str) -> None:
    """See that there are an engine and the image; else skip with the reason, or fail in CI."""
    try:
        engine = docker_engine()
    except OskitError as error:
        _unavailable(str(error))
    import docker.errors

    try:
        engine.images.get(image)
        return
    except docker.errors.ImageNotFound:
        pass
    try:
        engine.api.pull(image)
    except docker.errors.DockerException as error:
        _unavailable(
            f"the image {image} is not here and cannot be pulled ({error}); "
            "`oskit node image build` makes one, to be named in OSKIT_OPENSEARCH_IMAGE"
        )


def _unavailable(reason: str) -> NoReturn:
    """Skip; in CI, where everything must run, fail."""
    if os.environ.get("CI"):
        pytest.fail(f"no container tests in CI: {reason}", pytrace=False)
    pytest.skip(reason)
