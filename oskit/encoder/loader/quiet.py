"""Loading without the chatter of the libraries underneath: the load report says it all, once."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet_libraries() -> Iterator[None]:
    """No progress bars of transformers, no warnings, no log lines below errors, until the block ends."""
    from transformers import utils

    transformers_logging: Any = utils.logging

    bars = transformers_logging.is_progress_bar_enabled()
    names = ("transformers", "sentence_transformers", "huggingface_hub")
    levels = {name: logging.getLogger(name).level for name in names}
    transformers_logging.disable_progress_bar()
    for name in names:
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if bars:
            transformers_logging.enable_progress_bar()
