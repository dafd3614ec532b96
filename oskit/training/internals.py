"""What training takes of sentence-transformers and transformers beyond their documented names, in one place.

Where something has moved, or a method that is overridden has gone, it is one line that says so.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from oskit.errors import MissingDependencyError

Class = TypeVar("Class", bound=type)

_TROUBLE = "oskit cannot train with the installed sentence-transformers and transformers"
_HINT = "Install those that it was tried with: pip install 'sentence-transformers>=6.0,<7' 'transformers<6'"

try:
    from sentence_transformers.base.evaluation import BaseEvaluator as BaseEvaluator
    from sentence_transformers.base.losses.gradcache import CachedLossMixin as CachedLossMixin
    from sentence_transformers.sparse_encoder.data_collator import (
        SparseEncoderDataCollator as SparseEncoderDataCollator,
    )
    from transformers.trainer_callback import ExportableState as ExportableState
except ImportError as error:
    raise MissingDependencyError(f"{_TROUBLE}: {error}", hint=_HINT) from error


def overriding(*names: str) -> Callable[[Class], Class]:
    """Make sure that the class that is decorated has methods of these names to override.

    Raises:
        MissingDependencyError: It has not, so what ours do would silently not be done.
    """

    def check(made: Class) -> Class:
        for name in names:
            if not any(name in vars(base) for base in made.__mro__[1:]):
                what = f"{made.__mro__[1].__name__} has no method {name}"
                raise MissingDependencyError(f"{_TROUBLE}: {what}", hint=_HINT)
        return made

    return check
