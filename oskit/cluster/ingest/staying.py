"""During a load and after it: what is loaded is still what the name stands for, and encodes as it did."""

from __future__ import annotations

from typing import TYPE_CHECKING

from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.index.existing import look
from oskit.cluster.index.mapping import index_uuid
from oskit.cluster.index.meta import change_own_meta
from oskit.cluster.index.names import Target, resolve
from oskit.cluster.index.pipeline import pipeline_name
from oskit.cluster.ingest.plan import LoadPlan, new_generation
from oskit.errors import IndexingError

if TYPE_CHECKING:
    from opensearchpy import OpenSearch


def check_that_it_stayed(client: OpenSearch, target: Target, uuid: str | None) -> None:
    """Raises IndexingError if what was loaded is not behind the name any more."""
    if target.parts:  # whose indexes come and go
        if resolve(client, target.asked, writing=True) is None:
            raise IndexingError(f"{target} is gone: it was deleted while it was loaded")
        return
    if index_uuid(client, target.index) != uuid:
        now = look(client, target.index)
        if now is not None and now.is_own:
            raise IndexingError(
                f"another load has replaced the index {target.index!r} (--recreate) while it was loaded, and "
                "what was sent before that is gone",
                hint="Run the same command again when the other one has ended",
            )
        if now is None:
            raise IndexingError(
                f"the index {target.index!r} is gone: it was deleted while it was loaded",
                hint="Run the same command again",
            )
        # A bulk request to an index that is gone makes the cluster create another one.
        raise IndexingError(
            f"the index {target.index!r} was deleted while it was loaded, and what came later is in another "
            "one of that name, without a mapping for vectors",
            hint=f"Delete that one (DELETE {target.index}), and run the same command again",
        )
    if not target.is_alias:
        return
    try:
        now_behind = resolve(client, target.asked, writing=True)
    except IndexingError as error:
        where, why = "", f": {error.message}"
    else:
        if now_behind is not None and now_behind.index == target.index:
            return
        where, why = (f" to {now_behind.index!r}" if now_behind is not None else " away"), ""
    raise IndexingError(
        f"the alias {target.asked!r} was moved{where} while {target.index!r} was loaded, where all the "
        f"documents are{why}",
        hint=f"Move it back, or load {target.asked} again",
    )


def check_pipeline(client: OpenSearch, plan: LoadPlan) -> None:
    """Raises IndexingError if somebody has changed what encodes: documents may have no vectors, or others."""
    try:
        if (change := plan.pipeline_change(client)) is None or not change.matters:
            return
        why, hint = "", "Run the same command again, which puts it right and encodes them anew"
    except IndexingError as error:
        why, hint = f": {error.message}", error.hint or ""
    with cluster_errors(f"update the index {plan.info.name!r}", IndexingError):
        change_own_meta(client, plan.info.name, {"generation": new_generation()})  # or they would be known
    raise IndexingError(
        f"somebody has changed the ingest pipeline {pipeline_name(plan.info.name)!r} during the load, so "
        f"documents of {plan.info.name!r} may lack vectors, or have others{why}",
        hint=hint,
    )
