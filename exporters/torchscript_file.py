"""Rewriting a saved TorchScript file so that the same module is the same bytes.

``torch.jit.save`` numbers equally named classes with a counter of the process (``___torch_mangle_217``), so
a second export differs from the first; and its debug records hold the paths of the machine that traced the
module. Here the classes are numbered by themselves, and the debug records, which no runtime needs, are left
out.
"""

from __future__ import annotations

import re
from collections import defaultdict
from pathlib import Path
from zipfile import ZIP_STORED, ZipFile, ZipInfo

_CLASS = re.compile(r"^(?=class \w+\()", re.MULTILINE)
_CLASS_NAME = re.compile(r"class (\w+)\(")
_QUALIFIED = re.compile(r"__torch__(?:\.\w+)+")
_PICKLED = re.compile(rb"c(__torch__(?:\.\w+)*)\n(\w+)\n")
_MANGLE = re.compile(r"^(.*)\.___torch_mangle_(\d+)$")
_EPOCH = (1980, 1, 1, 0, 0, 0)


def normalise(source: Path, target: Path) -> None:
    """Copy the TorchScript file ``source`` to ``target`` with canonical class names and no debug records."""
    with ZipFile(source) as old, ZipFile(target, "w", ZIP_STORED) as new:
        names = {name.split("/", 1)[1]: name for name in old.namelist()}
        code = {
            name: old.read(full).decode()
            for name, full in names.items()
            if name.startswith("code/") and name.endswith(".py")
        }
        classes, renamed = _canonical_names(code)
        entries = [
            name
            for name in names
            if name not in code and not name.endswith(".debug_pkl") and name != ".data/serialization_id"
        ]
        for name in entries:
            content = old.read(names[name])
            if name.endswith(".pkl"):
                content = _PICKLED.sub(lambda match: _rename_pickled(match, renamed), content)
            _write(new, name, content)
        for name, blocks in sorted(_files(classes, renamed).items()):
            _write(new, name, "".join(blocks).encode())


def _canonical_names(code: dict[str, str]) -> tuple[dict[str, str], dict[str, str]]:
    """Source of each class by its qualified name, and the new qualified name of each."""
    classes: dict[str, str] = {}
    groups: dict[tuple[str, str], list[tuple[int, str]]] = defaultdict(list)
    for file, text in code.items():
        module = file.removeprefix("code/").removesuffix(".py").replace("/", ".")
        mangled = _MANGLE.match(module)
        base, number = (mangled[1], int(mangled[2])) if mangled else (module, -1)
        for block in _CLASS.split(text):
            named = _CLASS_NAME.match(block)
            if named is not None:
                classes[f"{module}.{named[1]}"] = block
                groups[base, named[1]].append((number, module))
    renamed = {}
    for (base, name), members in groups.items():
        # The counter only grows, so the order within a group is the order of the modules in the encoder.
        for rank, (_, module) in enumerate(sorted(members)):
            place = base if rank == 0 else f"{base}.___torch_mangle_{rank - 1}"
            renamed[f"{module}.{name}"] = f"{place}.{name}"
    return classes, renamed


def _files(classes: dict[str, str], renamed: dict[str, str]) -> dict[str, list[str]]:
    files: dict[str, list[str]] = defaultdict(list)
    for name in sorted(classes, key=lambda name: renamed[name]):
        module = renamed[name].rpartition(".")[0]
        text = _QUALIFIED.sub(lambda match: renamed.get(match[0], match[0]), classes[name])
        files[f"code/{module.replace('.', '/')}.py"].append(text)
    return files


def _rename_pickled(match: re.Match[bytes], renamed: dict[str, str]) -> bytes:
    qualified = f"{match[1].decode()}.{match[2].decode()}"
    module, _, name = renamed.get(qualified, qualified).rpartition(".")
    return f"c{module}\n{name}\n".encode()


def _write(archive: ZipFile, name: str, content: bytes) -> None:
    archive.writestr(ZipInfo(f"model/{name}", _EPOCH), content)
