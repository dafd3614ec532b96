"""What an encoder shall run on, as people ask for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

from oskit.errors import UsageError

if TYPE_CHECKING:
    from oskit.archive.archive import Archive

BackendName = Literal["auto", "onnxruntime", "openvino", "torch"]
Precision = Literal["auto", "fp32", "bf16", "int8"]


@dataclass(frozen=True)
class Runtime:
    """What an encoder shall run on.

    Attributes:
        backend: ``"auto"`` takes the fastest that is installed and fits, found by measurement where a job is
            long enough to gain by it; see :mod:`oskit.archive.backends.auto`.
        precision: None is the archive's own, fp32 or int8; a model is computed as its weights are.
            ``"auto"`` takes a narrower one where that is faster and the ranking stays; with a model bf16 on a
            GPU that has it.
        device: ``"auto"``, ``"cpu"``, or a device of torch such as ``"cuda"`` or ``"cuda:1"``.

    Raises:
        UsageError: A name is unknown, or two do not fit together.
    """

    backend: BackendName = "auto"
    precision: Precision | None = None
    device: str = "auto"

    def __post_init__(self) -> None:
        for name, given, known in (
            ("backend", self.backend, get_args(BackendName)),
            ("precision", self.precision, (None, *get_args(Precision))),
        ):
            if given not in known:
                raise UsageError(
                    f"unknown {name} {given!r}", hint=f"Use one of {', '.join(filter(None, known))}."
                )
        if self.on_gpu and self.backend not in ("auto", "torch"):
            raise UsageError(
                f"{self.backend} runs on the CPU here, not on {self.device}",
                hint="Use --backend torch, with an encoder's folder or a TorchScript archive.",
            )
        if self.precision == "bf16" and self.backend == "onnxruntime":
            raise UsageError("ONNX Runtime has no bf16 on a CPU", hint="Use --backend openvino.")

    @property
    def on_gpu(self) -> bool:
        """Whether another device than the CPU is named."""
        return self.device not in ("auto", "cpu")

    @property
    def format(self) -> str | None:
        """Which folder of an export it needs, if that matters."""
        if self.backend == "torch" or self.on_gpu:
            return "torchscript"
        return None if self.backend == "auto" else "onnx"

    def refuse_unused(self, where: str) -> None:
        """Refuse what was asked for although no encoder runs; ``where`` that is.

        Raises:
            UsageError: Something was.
        """
        if self != Runtime():
            raise UsageError(
                f"--backend, --precision and --device have no effect {where}", hint="Leave them out."
            )

    def check(self, archive: Archive) -> None:
        """Refuse an archive that this does not fit.

        Raises:
            UsageError: Its format, its precision or the device is another.
            MissingDependencyError: The back end is not installed.
        """
        where = f"{archive.path.name} is {'an ONNX' if archive.model_format == 'ONNX' else 'a TorchScript'}"
        if archive.model_format == "ONNX" and self.format == "torchscript":
            wanted = "torch" if self.backend == "torch" else self.device
            raise UsageError(
                f"{where} archive, which does not run on {wanted}",
                hint="Name the export's TorchScript archive, or the encoder's folder.",
            )
        if archive.model_format != "ONNX" and self.format == "onnx":
            raise UsageError(
                f"{where} archive, which {self.backend} does not run",
                hint="Name the ONNX archive of the same export, or use --backend torch.",
            )
        own = own_precision(archive)
        if own == "int8" and self.precision in ("fp32", "bf16"):
            raise UsageError(
                f"{archive.path.name} is quantised to int8 and cannot be computed in {self.precision}",
                hint="Export it without --quantize.",
            )
        if own == "fp32" and self.precision == "int8":
            raise UsageError(
                f"{archive.path.name} is not quantised to int8",
                hint="Make such an archive: oskit export MODEL --quantize int8",
            )
        if self.precision == "bf16":
            self._check_bf16(archive)
        if self.on_gpu:
            check_device(self.device)

    def _check_bf16(self, archive: Archive) -> None:
        if archive.model_format != "ONNX":
            raise UsageError(
                f"{archive.path.name} is a TorchScript archive, which computes in fp32",
                hint="Name the ONNX archive, or the encoder's folder with --device cuda.",
            )
        from oskit.archive.backends.open_vino import has_bf16

        if not has_bf16():
            raise UsageError("this CPU has no bf16", hint="Leave --precision out.")


def own_precision(archive: Archive) -> Literal["fp32", "int8"]:
    """What an archive's weights are."""
    return "int8" if archive.manifest is not None and archive.manifest.quantization else "fp32"


def check_device(device: str) -> None:
    """Make sure that torch has a device.

    Raises:
        MissingDependencyError: torch is not installed.
        UsageError: It has not.
    """
    from oskit.extras import require

    require(f"--device {device}", "export", ["torch"])
    import torch

    try:
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UsageError(f"there is no device {device!r} here: {reason}", hint="Use --device cpu.") from error
