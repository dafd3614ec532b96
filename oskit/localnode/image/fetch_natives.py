"""``python -m oskit.localnode.image.fetch_natives DIR``: what an OpenSearch image needs to have added.

It is for ``docker/opensearch.Dockerfile``, and needs jgo, platformdirs and tenacity only.
"""

from __future__ import annotations

import sys
from pathlib import Path

from oskit.errors import NodeError
from oskit.localnode.configuration import ML_SETTINGS, to_yaml
from oskit.localnode.distribution import check_platform
from oskit.localnode.natives import write_natives


def main(target: Path) -> None:
    """Write the PyTorch natives to ``target/natives`` and the ML settings to ``target/opensearch.yml``."""
    check_platform("Build the image with: docker build --platform linux/amd64")
    write_natives(target / "natives")
    (target / "opensearch.yml").write_text(to_yaml(ML_SETTINGS))


if __name__ == "__main__":
    try:
        main(Path(sys.argv[1]))
    except NodeError as error:
        sys.exit(f"Error: {error}")
