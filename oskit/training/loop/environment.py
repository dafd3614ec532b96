"""What a run was made with: versions and machine, so that it can be done again."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path

import torch

from oskit.data.atomic import write_whole
from oskit.versions import installed_versions

PACKAGES = (
    *("oskit", "torch", "transformers", "sentence-transformers", "tokenizers", "datasets", "accelerate"),
    *("numpy", "scipy", "pyarrow", "bm25s"),
)


def write_environment(folder: Path) -> None:
    """Write ``environment.json`` into the run's folder: versions of Python and packages, processor, GPUs."""
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    found = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "gpus": gpus,
        "cuda": torch.version.cuda,
        "packages": installed_versions(PACKAGES),
    }
    write_whole(folder / "environment.json", json.dumps(found, indent=1) + "\n")
