"""Writing an archive: the zip, its register body and its manifest, whole or not at all."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from tempfile import mkdtemp
from zipfile import ZIP_STORED, ZipFile, ZipInfo

from oskit.archive.archive import REGISTER_BODY_NAME, Archive
from oskit.archive.manifest import MANIFEST_NAME, Manifest
from oskit.errors import ExportError, UsageError

_EPOCH = (1980, 1, 1, 0, 0, 0)
_BLOCK = 1 << 22


def write_zip(path: Path, files: Mapping[str, bytes | Path]) -> None:
    """Zip ``files`` (contents, or paths of them) so that the same files are the same bytes.

    Nothing is compressed: weights hardly shrink, and a compressor's output differs between its versions.
    """
    with ZipFile(path, "w", ZIP_STORED) as archive:
        for name, content in sorted(files.items()):
            entry = ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            entry.create_system = 3
            if isinstance(content, bytes):
                archive.writestr(entry, content)
                continue
            entry.file_size = content.stat().st_size
            with content.open("rb") as source, archive.open(entry, "w") as target:
                shutil.copyfileobj(source, target, _BLOCK)


def write_beside(archive: Archive, manifest: Manifest) -> None:
    """Write the register body and the manifest beside the zip."""
    body = json.dumps(archive.register_body(), indent=2, ensure_ascii=False) + "\n"
    archive.path.with_name(REGISTER_BODY_NAME).write_text(body, encoding="utf-8")
    archive.path.with_name(MANIFEST_NAME).write_text(manifest.to_json(), encoding="utf-8")


def check_replaceable(folder: Path) -> None:
    """Refuse to write an archive where something else than an archive of ours lies.

    An archive of any version of oskit may be replaced, even one whose manifest cannot be read any more.

    Raises:
        UsageError: The folder holds something that no export wrote.
    """
    if not folder.is_symlink() and not folder.exists():
        return
    others: list[str] = []
    if folder.is_dir() and not folder.is_symlink():
        names = {path.name for path in folder.iterdir()}
        zips = {name for name in names if name.endswith(".zip")}
        others = sorted(names - zips - {MANIFEST_NAME, REGISTER_BODY_NAME})
        described = (folder / MANIFEST_NAME).is_file()
        if not names or (not others and len(zips) <= 1 and described):
            return
    found = f": {', '.join(others[:3])}" if others else ""
    raise UsageError(
        f"{folder} is in the way and was not written by an export{found}",
        hint="Choose another folder with -o; nothing was changed.",
    )


@contextmanager
def replacing(output_dir: Path) -> Iterator[Path]:
    """A folder to write an export to, which takes the place of its namesakes in ``output_dir`` at the end.

    Only the folders that were written are replaced, all of them or none: after an error nothing has changed.

    Raises:
        ExportError: The output cannot be written.
        UsageError: A folder that would be replaced holds something that no export wrote.
    """
    is_new = not output_dir.exists()
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        staging = Path(mkdtemp(prefix=".export-", dir=output_dir))
    except OSError as error:
        raise ExportError(
            f"cannot write to {output_dir}: {error.strerror}", hint="Choose another folder with -o."
        ) from error
    try:
        yield staging
        with ExitStack() as undo:
            for folder in sorted(staging.iterdir()):
                target = output_dir / folder.name
                check_replaceable(target)  # someone may have put files there in the meantime
                if target.exists():
                    _move(target, staging / f".old-{folder.name}", undo)
                _move(folder, target, undo)
            undo.pop_all()
    except OSError as error:
        raise ExportError(
            f"cannot write the export to {output_dir}: {error.strerror or error}",
            hint="Is the disk full? Choose another folder with -o.",
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if is_new:
            with suppress(OSError):  # an export is in it
                output_dir.rmdir()


def _move(source: Path, target: Path, undo: ExitStack) -> None:
    source.rename(target)
    undo.callback(target.rename, source)


def file_stem(name: str, version: str, kind: str) -> str:
    """Name of the zip, without its suffix; what a file name cannot hold becomes ``-``.

    Raises:
        UsageError: Name or version is empty.
    """
    safe = [re.sub(r"[^\w.+-]+", "-", text).strip("-.") for text in (name, version)]
    if not all(safe):
        raise UsageError(
            f"the name {name!r} with the version {version!r} does not make a file name",
            hint="Give both letters or digits.",
        )
    return "-".join([*safe, kind])
