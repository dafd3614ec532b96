"""What a run was made with: versions and machine, so that it can be done again."""

from __future__ import annotations

import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import torch

from oskit.versions import installed_versions

PACKAGES = (
    *("oskit", "torch", "transformers", "sentence-transformers", "tokenizers", "datasets", "accelerate"),
    *("numpy", "scipy", "pyarrow", "bm25s"),
)


def describe_environment() -> dict[str, Any]:
    """Versions of Python and of the packages that matter, the processor, the GPUs."""
    gpus = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "gpus": gpus,
        "cuda": torch.version.cuda,
        "packages": installed_versions(PACKAGES),
    }


def write_environment(folder: Path) -> None:
    """Write ``environment.json`` into the run's folder."""
    text = json.dumps(describe_environment(), indent=1)
    (folder / "environment.json").write_text(text + "\n", encoding="utf-8")
