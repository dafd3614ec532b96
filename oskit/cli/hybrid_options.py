"""The options of a hybrid search, which `oskit search`, `verify` and `tune` have in common."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

import click

from oskit.cli.options import with_options
from oskit.errors import UsageError

Function = TypeVar("Function", bound=Callable[..., Any])

DEPTH_OPTION = click.option(
    "--pagination-depth",
    type=click.IntRange(1, 10_000),
    default=100,
    show_default=True,
    help="Hits of each side that are fused; scores depend on it, not on --size.",
)
DENSE_OPTIONS = [
    click.option("--dense-model", metavar="NAME|ID", help="Deployed model of the dense side's queries."),
    click.option("--dense-field", metavar="PATH", help="Its vectors' field.  [the only one of that type]"),
]
_OPTIONS = [
    click.option(
        "--hybrid",
        "sides",
        metavar="bm25=0.3,sparse=0.7",
        help="Search in several ways at once, fused by these weights; sides are bm25, sparse and dense, and "
        "bm25:FIELD or dense:FIELD.",
    ),
    click.option(
        "--fusion",
        metavar="NAME",
        help="min_max, l2 (both also with :geometric or :harmonic), z_score, or rrf:60.  [min_max]",
    ),
    DEPTH_OPTION,
    *DENSE_OPTIONS,
]
_VECTOR = click.option(
    "--dense-vector", metavar="JSON|FILE", help="The query's dense vector, in the place of a model."
)


def hybrid_options(*, vector: bool = True) -> Callable[[Function], Function]:
    """Add ``--hybrid`` and what belongs to it; the command receives ``hybrid: Hybrid | None``.

    Args:
        vector: Whether to add ``--dense-vector``, which is that of one query.
    """

    def add(function: Function) -> Function:
        @functools.wraps(function)
        def with_hybrid(*args: Any, sides: str | None, **kwargs: Any) -> Any:
            names = ("fusion", "pagination_depth", "dense_model", "dense_field", "dense_vector")
            given = {name: kwargs.pop(name, None) for name in names}
            return function(*args, hybrid=_hybrid(sides, **given), **kwargs)

        return with_options(with_hybrid, [*_OPTIONS, _VECTOR] if vector else _OPTIONS)  # type: ignore[no-any-return]

    return add


def _hybrid(
    sides: str | None,
    *,
    fusion: str | None,
    pagination_depth: int,
    dense_model: str | None,
    dense_field: str | None,
    dense_vector: str | None,
) -> Any:
    if sides is None:
        given = click.get_current_context().get_parameter_source("pagination_depth")
        options = {
            "--fusion": fusion,
            "--pagination-depth": given is click.core.ParameterSource.COMMANDLINE or None,
            "--dense-model": dense_model,
            "--dense-field": dense_field,
            "--dense-vector": dense_vector,
        }
        if unused := [name for name, value in options.items() if value is not None]:
            raise UsageError(f"{unused[0]} goes with --hybrid", hint="Leave it out, or give --hybrid")
        return None
    from oskit.cluster.search.hybrid import Hybrid, given_vector

    if dense_vector is not None and dense_model is not None:
        raise UsageError("--dense-model and --dense-vector both give a vector", hint="Leave one out")
    return Hybrid.parse(
        sides,
        fusion=fusion or "min_max",
        depth=pagination_depth,
        dense_field=dense_field,
        dense_model=dense_model,
        embed=given_vector(dense_vector) if dense_vector is not None else None,
    )
