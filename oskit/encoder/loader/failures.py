"""What makes loading fail, each cause in its own words, whichever library met it and wherever."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from oskit.errors import BrokenEncoderError, EncoderError, MissingDependencyError, OskitError, first_line
from oskit.extras import is_installed

_ASKS_FOR = re.compile(r"pip install (?:-\S+ )*([\w.-]*\w)|requires? the (\w+) library|need to have (\w+)")


@contextmanager
def named_errors(folder: Path) -> Iterator[None]:
    """Whatever goes wrong while an encoder is made of a folder, as one line that names the folder.

    torch, transformers, safetensors and tokenizers raise nearly everything for broken files (OSError,
    RuntimeError, ValueError, KeyError, TypeError, SafetensorError, a bare Exception of tokenizers), so what
    has no cause in the machine is taken for a broken file.
    """
    try:
        yield
    except OskitError:
        raise
    except Exception as error:
        reason = _tokenizers_reason(error) or error
        raise _of_the_machine(reason, str(folder)) or _of_the_files(reason, folder) from error


@contextmanager
def machine_errors(what: str) -> Iterator[None]:
    """Memory, packages, permissions and devices that fail are no fault of the files; other errors pass.

    Args:
        what: What is loaded.

    Raises:
        EncoderError: Memory ran out, a file cannot be read, or the device failed.
        MissingDependencyError: A package that the encoder needs is not installed.
    """
    try:
        yield
    except OskitError:
        raise
    except Exception as error:
        named = _of_the_machine(error, what)
        if named is None:
            raise
        raise named from error


def _tokenizers_reason(error: Exception) -> Exception | None:
    """Why a tokenizer does not open: transformers' AutoProcessor tries it, but keeps that to itself."""
    folder = re.search(r"Unrecognized processing class in (.+)\. Can't instantiate", str(error))
    if folder is None:
        return None
    from transformers import AutoTokenizer

    try:
        AutoTokenizer.from_pretrained(folder[1], local_files_only=True)
    except Exception as reason:
        return reason
    return None


def _of_the_files(error: Exception, folder: Path) -> EncoderError:
    text = " ".join((str(error).strip() or type(error).__name__).split())[:300]
    if "trust_remote_code" in str(error):
        return EncoderError(
            f"{folder} needs its own Python code to run, which is not done unless asked for",
            hint="Read that code, then allow it with trust_remote_code=True (--trust-remote-code).",
        )
    return BrokenEncoderError(f"{folder} cannot be loaded: {text}", hint=_hint(error))


def _of_the_machine(error: Exception, what: str) -> OskitError | None:
    return out_of_memory(error, what) or _of_a_package(error, what) or _of_the_system(error, what)


def out_of_memory(error: Exception, what: str) -> EncoderError | None:
    """The error in our words where memory ran out, and torch's on how much is free; None for another."""
    # torch has a type for it only where its own allocator of a device met it.
    text = str(error) if isinstance(error, RuntimeError) else ""
    if isinstance(error, MemoryError) or "can't allocate memory" in text:
        hint = "Stop other programs, or use a machine with more memory or a smaller encoder."
    elif isinstance(error, torch.OutOfMemoryError) or "out of memory" in text:
        hint = (
            "Free the device or use another (--device, device=); in Python also half as large, by way of the "
            "CPU: from_pretrained(..., device='cpu').half().to('cuda')."
        )
    else:
        return None
    return EncoderError(f"no memory left to load {what}: {first_line(error)}", hint=hint)


def _of_a_package(error: Exception, what: str) -> OskitError | None:
    """transformers asks for packages in ImportErrors, and in ValueErrors for those that read tokenizers."""
    if not isinstance(error, (ImportError, ValueError)):
        return None
    asked = _ASKS_FOR.search(" ".join(str(error).split()))
    if asked is not None:
        package = next(filter(None, asked.groups())).lower()
    else:
        package = (getattr(error, "name", None) or "").partition(".")[0]
    if package == "tiktoken" and not isinstance(error, ImportError):
        package = "sentencepiece"  # for want of it transformers takes the file for one of tiktoken's
    if package and not is_installed(package):
        return MissingDependencyError(
            f"{what} needs the package {package!r}, which is not installed",
            hint=f"Install it with: pip install {package}",
        )
    if isinstance(error, ImportError):
        return EncoderError(
            f"{what} needs other packages than those installed: {first_line(error)}",
            hint="Install the versions that it was made with.",
        )
    return None


def _of_the_system(error: Exception, what: str) -> EncoderError | None:
    if isinstance(error, OSError) and error.errno is not None and not isinstance(error, FileNotFoundError):
        return EncoderError(
            f"{error.filename or what} cannot be read: {error.strerror}",
            hint="Check its permissions and the disk; what is in the files was not looked at.",
        )
    if isinstance(error, getattr(torch, "AcceleratorError", ())):  # from torch 2.8 on
        return EncoderError(
            f"the device failed while {what} was loaded: {first_line(error)}",
            hint="Use another device (--device cpu, device='cpu'), or look after this one.",
        )
    return None


def _hint(error: Exception) -> str:
    text = str(error)
    if type(error).__name__ == "SafetensorError" or "safetensors" in text:
        return "The weights are truncated or damaged: copy or download them again."
    if "model_type" in text or "Unrecognized" in text:
        return "config.json names no architecture that this version of transformers knows."
    if "okenizer" in text:
        return "Save the tokenizer it was trained with there: tokenizer.save_pretrained(folder)."
    return "Copy or download the encoder again."
