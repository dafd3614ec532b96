"""What a request asks for, by each protocol."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from typing import Any, Literal

import orjson

from oskit.serve.refusals import Refusal
from oskit.serve.writers import Style

Kind = Literal["documents", "queries"]

MAX_NAMES = 32
"""Of a body: no protocol knows as many, and looking whether one is there twice takes a pass through it."""


@dataclass(frozen=True)
class Asked:
    """What is to be encoded, and how to answer.

    Attributes:
        texts: In order; there may be none.
        kind: Whether they are documents or queries.
        style: Of the answer.
        truncate: Whether texts that are too long may be cut off; else they are refused.
    """

    texts: list[str]
    kind: Kind
    style: Style
    truncate: bool = True


def parsed(body: bytes) -> dict[str, Any]:
    """The body as an object.

    Raises:
        Refusal: It is none.
    """
    try:
        found = orjson.loads(body)
        # Of two fields with one name it takes the last. What looks like a name may be a text, too.
        named = isinstance(found, dict) and len(found) <= MAX_NAMES
        if named and any(body.count(orjson.dumps(name)) > 1 for name in found):
            json.loads(body, object_pairs_hook=_once)
    except (ValueError, TypeError, RecursionError):
        try:
            # This takes lone surrogates, which Python and Java write.
            found = json.loads(body, object_pairs_hook=_once)
        except (ValueError, RecursionError) as error:
            raise Refusal("Validation", f"the body is not JSON: {error}", status=400) from None
    if not isinstance(found, dict):
        raise Refusal("Validation", f"the body is {_named(found)}, not a JSON object", status=400)
    if len(found) > MAX_NAMES:
        raise Refusal("Validation", f"the body has {len(found):,} fields", status=400)
    return found


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        name = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise Refusal("Validation", f"`{name[:80]}` is there twice", status=400)
    return found


def ml_commons(body: dict[str, Any], kind: Kind | None, limit: int) -> Asked:
    """``{"texts": […], "sparse_embedding_format": "WORD" or "TOKEN_ID"}``, of at most ``limit`` texts.

    Where no path tells the kind, as with SageMaker, ``"prompt_name": "query"`` does.

    Raises:
        Refusal: It is something else.
    """
    if kind is None:
        body = {**body}
        kind = _prompted(body.pop("prompt_name", None))
    if unknown := body.keys() - {"texts", "sparse_embedding_format"}:
        names = ", ".join(sorted(name[:80] for name in unknown))
        raise Refusal("Validation", f"unknown in the body: {names}")
    style = body.get("sparse_embedding_format", "WORD")
    if style not in ("WORD", "TOKEN_ID"):
        hint = ""
        if isinstance(style, str) and style.startswith("${"):
            hint = ": the connector's body needs a default, ${parameters.sparse_embedding_format:-WORD}"
        raise Refusal(
            "Validation", f"sparse_embedding_format must be WORD or TOKEN_ID, not {_shown(style)}{hint}"
        )
    return Asked(_texts(body, "texts", limit), kind, style)


def tei(body: dict[str, Any], limit: int) -> Asked:
    """TEI's ``{"inputs": "…" or […], "truncate": bool, "prompt_name": "query"}``; nothing else counts.

    Raises:
        Refusal: It is something else.
    """
    if isinstance(body.get("inputs"), str):
        body = {**body, "inputs": [body["inputs"]]}
    texts = _texts(body, "inputs", limit)
    if not texts:
        raise Refusal("Empty", "`inputs` cannot be empty")
    truncate = body.get("truncate")
    if truncate is not None and not isinstance(truncate, bool):
        raise Refusal("Validation", f"`truncate` must be true or false, not {_shown(truncate)}")
    direction = body.get("truncation_direction")
    if direction not in (None, "Right", "right"):
        raise Refusal("Validation", f"`truncation_direction` must be Right, not {_shown(direction)}")
    return Asked(texts, _prompted(body.get("prompt_name")), "TEI", truncate is not False)


def _prompted(prompt: Any) -> Kind:
    kinds: dict[Any, Kind] = {None: "documents", "document": "documents", "query": "queries"}
    if not isinstance(prompt, str | None) or prompt not in kinds:
        raise Refusal("Validation", f"`prompt_name` must be query or document, not {_shown(prompt)}")
    return kinds[prompt]


def _texts(body: dict[str, Any], name: str, limit: int) -> list[str]:
    if name not in body:
        raise Refusal("Validation", f"`{name}` is missing from the body")
    texts = body[name]
    if not isinstance(texts, list):
        raise Refusal("Validation", f"`{name}` must be a list of texts, not {_named(texts)}")
    if len(texts) > limit:
        raise Refusal("Validation", f"batch size {len(texts)} > maximum allowed batch size {limit}")
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise Refusal("Validation", f"`{name}`[{place}] must be a text, not {_named(text)}")
    return texts


def _named(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def _shown(value: Any) -> str:
    return repr(value)[:80]
