"""Taking models out of memory, and away: the one place that does it, after a look at who uses them.

Undeploying an ONNX model while it encodes kills the OpenSearch process (SIGSEGV in ``OrtSession.run``), so
no option here does that: it is waited for, or all local models are paused, or it is refused. TorchScript and
tokenizers survive it (their running requests fail), and remote models are not in a node's memory.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from opensearchpy import OpenSearch
from opensearchpy.exceptions import NotFoundError, TransportError

from oskit.cluster.client.calls import Call
from oskit.cluster.client.failures import cluster_errors
from oskit.cluster.client.retry import impatient, is_transient
from oskit.cluster.models.activity import LOOK_S, Watch
from oskit.cluster.models.connectors import delete_connector
from oskit.cluster.models.pause import local_models_paused, pause_calls
from oskit.cluster.models.registry import (
    IN_MEMORY_STATES,
    ModelInfo,
    delete_empty_group,
    existing_model,
    get_model,
    has_own_group,
    quoted,
    request,
    wait_until,
)
from oskit.cluster.models.usage import References, Usage
from oskit.errors import ClusterAuthError, ModelError

Notify = Callable[[str], None]

UNDEPLOY_AGAIN_S = 10.0
"""After the restart of a node the cluster can lose an undeployment without a word."""

PAUSED_QUIET_S = 1.0
"""A request that was let in before the pause began is listed as running within that time."""

_SHOWN = 8


@dataclass(frozen=True)
class Retirement:
    """What taking one model away means.

    Attributes:
        model: The model.
        in_memory: Whether it has to be taken out of memory.
        users: What refers to it.
        unseen: Where we may not look.
        doing: What it is doing, as in ``the model ...``; empty if it is idle.
        being_deployed: Whether a node is loading it.
        unwatched: Whether the cluster calls it deployed and the nodes' profile does not know it: a node was
            restarted, or we may not see the profile, which is empty then.
    """

    model: ModelInfo
    in_memory: bool
    users: tuple[str, ...] = ()
    unseen: tuple[str, ...] = ()
    doing: str = ""
    being_deployed: bool = False
    unwatched: bool = False

    @property
    def not_seen(self) -> str:
        """That nobody can tell whether it is idle, in a sentence; empty if it was seen."""
        if not self.unwatched:
            return ""
        risk = ", and undeploying an ONNX model that encodes kills the node" if self.dies_encoding else ""
        return _sentence(
            f"{self.shown} is not in the nodes' profile, so nobody saw whether it is encoding{risk}: a node "
            "was restarted, or you may not see that (cluster:admin/opensearch/ml/profile/nodes)"
        )

    @property
    def dies_encoding(self) -> bool:
        """Whether undeploying it while it encodes kills the node."""
        return self.in_memory and self.model.format == "ONNX"

    @property
    def shown(self) -> str:
        """For messages."""
        return f"the model {self.model.name!r} ({self.model.model_id})"

    def objections(self, *, force: bool = False, pause: bool = False, drain: bool = False) -> list[str]:
        """Why it stays; empty if nothing speaks against taking it away."""
        found = []
        if not force and self.users:
            more = f" and {len(self.users) - _SHOWN} more" if len(self.users) > _SHOWN else ""
            found.append(f"is used by {', '.join(self.users[:_SHOWN])}{more}")
        if not force and self.unseen:
            found.append(f"may be used where we may not look: {', '.join(self.unseen)}")
        if not force and self.being_deployed:
            found.append("is being deployed right now")
        # What encodes is waited for, or stops where all local models are paused.
        paused = pause and not self.model.is_remote
        if self.doing and not (paused or force or drain):
            found.append(self.doing)
        return found

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model_id": self.model.model_id,
            "name": self.model.name,
            "state": self.model.state,
            "users": list(self.users),
            "unseen": list(self.unseen),
            "doing": self.doing,
            "unwatched": self.unwatched,
        }


def look_at(
    client: OpenSearch,
    models: Sequence[ModelInfo],
    *,
    delete: bool,
    own: bool = False,
    quiet_s: float = LOOK_S,
) -> tuple[list[Retirement], Watch | None]:
    """Who uses the models and what they are doing; changes nothing.

    Args:
        delete: They are to be deleted, so that it matters who refers to one that is not in memory.
        own: Nobody can refer to them yet.
        quiet_s: How long they are watched, in seconds.

    Returns:
        A finding for each, and the watch that was kept; None where we may not see what models do.

    Raises:
        ClusterError: The cluster cannot be asked.
    """
    watch, refused = _watch(client, models)
    in_memory = {
        model.model_id
        for model in models
        if model.state in IN_MEMORY_STATES | {"DEPLOY_FAILED"}
        or (watch is not None and model.model_id in watch.in_memory)
    }
    concerned = in_memory | {model.model_id for model in models if delete}
    references = References(client) if concerned and not own else None
    busy = watch.until_quiet(quiet_s=quiet_s) if watch is not None and in_memory else {}
    found = []
    for model in models:
        usage = references.of(model, models) if references and model.model_id in concerned else Usage()
        there = model.model_id in in_memory
        found.append(
            Retirement(
                model,
                there,
                usage.users,
                (*usage.unseen, refused) if refused and there else usage.unseen,
                busy.get(model.model_id, ""),
                watch is not None and model.model_id in watch.being_deployed,
                watch is not None
                and model.is_deployed
                and not model.is_remote
                and model.model_id not in watch.seen,
            )
        )
    return found, watch


def _watch(client: OpenSearch, models: Sequence[ModelInfo]) -> tuple[Watch | None, str]:
    try:
        return Watch(client, [model.model_id for model in models]), ""
    except ClusterAuthError as error:
        return None, f"requests in flight ({error.message})"


def retire(
    client: OpenSearch,
    models: Sequence[ModelInfo],
    *,
    delete: bool,
    force: bool = False,
    pause: bool = False,
    drain: bool = False,
    own: bool = False,
    wait_s: float = 60,
    quiet_s: float = LOOK_S,
    notify: Notify | None = None,
) -> list[ModelInfo]:
    """Undeploy models, or undeploy and delete them, if nobody uses them; all are looked at first.

    Args:
        force: Take them away even if something refers to them. An ONNX model that encodes is waited for all
            the same; another one ends in the middle of its requests.
        pause: Switch all local models of the cluster off while these are taken out of memory.
        drain: Wait for models that answer requests, as force does, but not for what refers to them.
        own: They are this run's own, so that nobody can know them: it is only seen to that they are idle.
        wait_s: Limit for becoming quiet, for another pause, and for undeploying one, in seconds.
        quiet_s: How long a model must have done nothing, in seconds.
        notify: Told what a person should know.

    Returns:
        The models as they are once they are out of memory.

    Raises:
        ModelError: A model is in use, or still deployed after ``wait_s`` seconds.
    """
    tell = notify or _silent
    force, quiet_s = force or own, 0.0 if own else quiet_s
    found, watch = look_at(client, models, delete=delete, own=own, quiet_s=quiet_s)
    _refuse(found, force=force, pause=pause, drain=drain)
    leaving = [one for one in found if one.in_memory]
    waited_for = [one for one in leaving if one.dies_encoding or drain]
    if watch is None and any(one.dies_encoding for one in leaving):
        raise ModelError(
            f"It cannot be seen whether {leaving[0].shown} is encoding, and undeploying an ONNX model that "
            f"encodes kills the node: {leaving[0].unseen[-1]}",
            hint="Ask the cluster's administrator for cluster:admin/opensearch/ml/profile/nodes",
        )
    for one in found:
        if one.users:
            tell(_sentence(f"{one.shown} is taken away from {', '.join(one.users)}"))
        if one.not_seen and not own:
            tell(one.not_seen)
        if one.doing and one not in waited_for:
            tell(_sentence(f"{one.shown} {one.doing}: those requests fail"))
    busy = [one.shown for one in waited_for if one.doing]
    if busy and not pause:
        tell(f"Waiting up to {wait_s:g} s until {', '.join(busy)} is quiet")
    left = {model.model_id: model for model in models}
    with _paused(client, pause and bool(leaving), wait_s, tell):
        if watch is not None:
            watch.keep(one.model.model_id for one in waited_for)
            idle_s = PAUSED_QUIET_S if pause else quiet_s if busy else 0.0
            _refuse_encoding(watch.until_quiet(quiet_s=idle_s, wait_s=wait_s if busy or pause else 0.0))
        for one in leaving:
            left[one.model.model_id] = _undeploy(client, one, wait_s, watch)
    for model in models if delete else ():
        _delete(client, model)
    return list(left.values())


def _paused(
    client: OpenSearch, pause: bool, wait_s: float, notify: Notify
) -> contextlib.AbstractContextManager[None]:
    return local_models_paused(client, wait_s=wait_s, notify=notify) if pause else contextlib.nullcontext()


def _silent(_told: str) -> None:
    return None


def _refuse(found: Sequence[Retirement], **options: bool) -> None:
    """Raise if anything speaks against taking one of the models away."""
    objections = {one.shown: said for one in found if (said := one.objections(**options))}
    if not objections:
        return
    told = "; ".join(f"{shown} {' and '.join(said)}" for shown, said in objections.items())
    hints = []
    if any(one.users for one in found):
        hints.append(
            "Point its pipelines, indexes and searches to another model first (documents have to be encoded "
            "anew by that one), or take it away all the same with --force"
        )
    elif any(one.unseen for one in found):
        hints.append("Look with more permissions, or take it away all the same with --force")
    if any(one.doing for one in found):
        hints.append(
            "Stop its requests or send them to another model, or pause all local models of the cluster for a "
            "moment with --pause-models"
        )
    raise ModelError(_sentence(told), hint=". ".join(hints))


def _sentence(words: str) -> str:
    return words[:1].upper() + words[1:]


def _refuse_encoding(busy: Mapping[str, str]) -> None:
    for model_id, doing in busy.items():
        raise ModelError(
            f"The model {model_id} {doing}, and undeploying an ONNX model that encodes kills the node",
            hint="Stop its requests, wait longer with --wait, or pause all local models of the cluster for a "
            "moment with --pause-models",
        )


def _undeploy(client: OpenSearch, one: Retirement, wait_s: float, watch: Watch | None) -> ModelInfo:
    """Take a model out of memory, after one more look at an ONNX model."""
    model_id = one.model.model_id

    def gone() -> ModelInfo | None:
        now = existing_model(client, model_id)
        return None if now.state in IN_MEMORY_STATES else now

    end = time.monotonic() + wait_s
    while True:
        if watch is not None and one.dies_encoding:
            watch.look()
            _refuse_encoding({model_id: doing} if (doing := watch.doing[model_id]) else {})
        # Not sent again by the transport: before each attempt stands a look.
        with cluster_errors(f"undeploy the model {model_id}", ModelError), impatient(client):
            try:
                request(client, "POST", f"/models/{quoted(model_id)}/_undeploy")
            except TransportError as failure:
                if not is_transient(failure):
                    raise
        left = wait_until(gone, wait_s=min(UNDEPLOY_AGAIN_S, end - time.monotonic()), first_pause_s=0.1)
        if left:
            return left
        if time.monotonic() >= end:
            raise ModelError(f"The model {model_id} is still deployed after {wait_s:g} s", hint="Try again")


def _delete(client: OpenSearch, model: ModelInfo) -> None:
    """Delete a model that is out of memory, its chunks, and its group if that was made for it alone."""
    # 404: there was a first attempt whose answer was lost
    with cluster_errors(f"delete the model {model.model_id}", ModelError), contextlib.suppress(NotFoundError):
        request(client, "DELETE", f"/models/{quoted(model.model_id)}")
    if model.connector_id is not None:
        delete_connector(client, model.connector_id)
    if model.group_id and has_own_group(client, model.group_id, model.name):
        delete_empty_group(client, model.group_id)


def planned_calls(
    client: OpenSearch, found: Sequence[Retirement], *, delete: bool, pause: bool
) -> list[Call]:
    """What :func:`retire` would send."""
    ml = "_plugins/_ml"
    calls = [
        Call("POST", f"{ml}/models/{quoted(one.model.model_id)}/_undeploy") for one in found if one.in_memory
    ]
    if pause and calls:
        first, last = pause_calls(client)
        calls = [*first, *calls, *last]
    for one in found if delete else ():
        calls.append(Call("DELETE", f"{ml}/models/{quoted(one.model.model_id)}"))
        group_id = one.model.group_id
        if group_id and has_own_group(client, group_id, one.model.name):
            group = f"{ml}/model_groups/{quoted(group_id)}"
            calls.append(Call("DELETE", group, note="if it has no other model"))
    return calls


def undeploy_model(client: OpenSearch, model_id: str, **options: Any) -> ModelInfo:
    """Take one model out of memory; does nothing if it is not in it.

    Args:
        options: As of :func:`retire`.

    Raises:
        ModelError: There is no such model, it is in use, or it is still deployed after ``wait_s`` seconds.
    """
    return retire(client, [existing_model(client, model_id)], delete=False, **options)[0]


def delete_model(client: OpenSearch, model_id: str, **options: Any) -> None:
    """Undeploy and delete one model, its chunks, and its group if that was made for it alone.

    Args:
        options: As of :func:`retire`.

    Raises:
        ModelError: There is no such model, or it is in use.
    """
    retire(client, [existing_model(client, model_id)], delete=True, **options)


def delete_own(client: OpenSearch, model_id: str, state: str = "") -> None:
    """Delete a model that this run has made, if it is there, and in this state.

    Raises:
        ModelError: The cluster refuses.
    """
    model = get_model(client, model_id)
    if model is not None and state in ("", model.state):
        retire(client, [model], delete=True, own=True)
