"""The PyTorch natives, which ML Commons would otherwise download at the first deployment of a model.

They lie in one folder that the environment variable ``PYTORCH_LIBRARY_PATH`` of the server names: DJL's
documented way, and the only one that survives. A JNI library in a data folder's ``ml_cache`` is deleted when
DJL unpacks libtorch there, and its jar is refused because its version (0.32.0) is not the engine's (0.31.1).
"""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path

from oskit.localnode.artifacts import PYTORCH_JNI, PYTORCH_NATIVE, resolve

#: Read by ``ai.djl.pytorch.jni.LibUtils``.
LIBRARY_PATH_VARIABLE = "PYTORCH_LIBRARY_PATH"
_LIBRARIES = "pytorch/cpu/linux-x86_64/"
_JNI_LIBRARY = "jnilib/linux-x86_64/cpu/libdjl_torch.so"


def write_natives(folder: Path) -> None:
    """Unpack libtorch and DJL's JNI library into ``folder``, which must not exist."""
    folder.mkdir(parents=True)
    with zipfile.ZipFile(resolve(PYTORCH_NATIVE)) as archive:
        members = [name for name in archive.namelist() if name.startswith(_LIBRARIES) and name[-1] != "/"]
        _unpack(archive, members, folder)
    with zipfile.ZipFile(resolve(PYTORCH_JNI)) as archive:
        _unpack(archive, [_JNI_LIBRARY], folder)


def _unpack(archive: zipfile.ZipFile, members: list[str], folder: Path) -> None:
    for member in members:
        with archive.open(member) as source, (folder / Path(member).name).open("wb") as target:
            shutil.copyfileobj(source, target)
