"""``python -m oskit.localnode.image.fetch_natives DIR``: what an OpenSearch image needs to have added.

It is for ``docker/opensearch.Dockerfile``, and needs jgo, platformdirs and tenacity only.
"""

from __future__ import annotations

import sys
from pathlib import Path

from oskit.localnode.configuration import ML_SETTINGS, to_yaml
from oskit.localnode.natives import write_natives


def main(target: Path) -> None:
    """Write the PyTorch natives to ``target/natives`` and the ML settings to ``target/opensearch.yml``."""
    write_natives(target / "natives")
    (target / "opensearch.yml").write_text(to_yaml(ML_SETTINGS))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
