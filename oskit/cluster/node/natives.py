"""The PyTorch natives: where ML Commons looks for them before it would download them.

``python -m oskit.cluster.node.natives DIR`` fetches them for the build of a container image.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import zipfile
from pathlib import Path

from oskit.cluster.node.artifacts import PYTORCH_JNI, PYTORCH_NATIVE, resolve
from oskit.cluster.node.config import ML_SETTINGS

_JNI_LIBRARY = "jnilib/linux-x86_64/cpu/libdjl_torch.so"


def install_natives(home: Path) -> None:
    """Complete the OpenSearch in ``home``: jars into the plugin, ``natives/`` for each node's data folder.

    The names are those of ``ai.djl.pytorch.jni.LibUtils``: the JNI library's carries the engine's version.
    """
    plugin = home / "plugins" / "opensearch-ml"
    engine = next(plugin.glob("pytorch-engine-*.jar")).stem.removeprefix("pytorch-engine-")
    folder = write_natives(plugin, home / "natives")
    (folder / "libdjl_torch.so").rename(folder / f"{engine}-libdjl_torch.so")


def write_natives(plugin: Path, data: Path) -> Path:
    """Copy the jars into ``plugin`` and the JNI library under ``data``; returns the library's folder."""
    native, jni = resolve(PYTORCH_NATIVE), resolve(PYTORCH_JNI)
    for jar in (native, jni):
        shutil.copyfile(jar, plugin / jar.name)
    with zipfile.ZipFile(native) as archive:
        text = archive.read("native/lib/pytorch.properties").decode()
    properties = dict(re.findall(r"^(\w+)=(.*)$", text, flags=re.MULTILINE))
    folder = data / "ml_cache" / "pytorch" / "{version}-{flavor}-{classifier}".format_map(properties)
    folder.mkdir(parents=True)
    with zipfile.ZipFile(jni) as archive:
        (folder / "libdjl_torch.so").write_bytes(archive.read(_JNI_LIBRARY))
    return folder


def main(target: Path) -> None:
    """Write ``plugin/``, ``data/`` and the ML settings as ``opensearch.yml`` into ``target``."""
    (target / "plugin").mkdir(parents=True)
    write_natives(target / "plugin", target / "data")
    settings = "".join(f"{key}: {json.dumps(value)}\n" for key, value in ML_SETTINGS.items())
    (target / "opensearch.yml").write_text(settings)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
