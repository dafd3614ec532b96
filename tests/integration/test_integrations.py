"""The retrievers of LangChain, LlamaIndex and Haystack find what `Searcher` finds, filtered as each says."""

from __future__ import annotations

import asyncio
import pickle
import random
import re
import uuid
from collections.abc import Callable, Iterator
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import pytest
from archives import WORDS
from haystack import Document as HaystackDocument
from haystack import Pipeline
from haystack.utils.filters import document_matches_filter
from langchain_core.callbacks import BaseCallbackHandler
from langchain_core.language_models.fake_chat_models import FakeListChatModel
from llama_index.core.callbacks import CallbackManager, CBEventType, LlamaDebugHandler
from llama_index.core.llms.mock import MockLLM
from llama_index.core.vector_stores import MetadataFilter, MetadataFilters
from llama_index.core.vector_stores.utils import build_metadata_filter_fn
from opensearchpy import OpenSearch
from tiny_models import QUERIES, TinyModels, tiny

from oskit import Chunking, Document, Hybrid, IndexSettings, OskitError, Searcher, ingest
from oskit.cluster.index.mapping import delete_index
from oskit.integrations import haystack, langchain, llama_index

__all__ = ["tiny"]

pytestmark = pytest.mark.integration

KINDS = ("rank_features", "sparse_vector")
FRAMEWORKS = ("langchain", "llama_index", "haystack")
Row = tuple[str, str, float, dict[str, Any], int | None]


def documents() -> list[Document]:
    """With fields of all types, some of them missing, of many values or empty; some longer than a chunk."""
    draw = random.Random(2)
    made = []
    for number in range(30):
        sentences = [" ".join(draw.choices(WORDS, k=8)) + "." for _ in range(1 + 2 * (number % 4))]
        fields = {
            "n": number,
            "lang": ["de", "en", "nl"][number % 3],
            "year": 2015 + number % 9,
            "price": number / 4,
            "day": str(date(2024, 1, 1) + timedelta(days=number)),
            "open": number % 2 == 0,
            "tags": draw.sample(["a", "b", "c", "d e"], k=1 + number % 3),
            "meta": {"page": number % 5},
            "score": number,
            "dense": [float(number), 1.0],
        }
        gone = [name for name in ("lang", "year", "tags", "open", "day") if draw.random() < 0.2]
        kept = {name: value for name, value in fields.items() if name not in gone}
        title = "fox permit" if number % 5 == 0 else ""
        made.append(Document(f"d{number}", "fox building " + " ".join(sentences), title, kept))
    return made


MAPPINGS = {
    "lang": {"type": "keyword"},
    "tags": {"type": "keyword"},
    "day": {"type": "date"},
    "dense": {"type": "knn_vector", "dimension": 2},
}


@pytest.fixture(scope="module")
def indexes(client: OpenSearch, tiny: TinyModels) -> Iterator[dict[tuple[str, bool], str]]:
    """An index of each kind, in chunks and not, with an alias that hides a half."""
    names = {(kind, cut): f"ingtest-tools-{uuid.uuid4().hex[:8]}" for kind in KINDS for cut in (False, True)}
    for (kind, cut), name in names.items():
        chunking = Chunking(24, 4) if cut else None
        ingest(client, name, documents(), encoder=tiny.encoder,
               settings=IndexSettings(kind, mappings=MAPPINGS, chunking=chunking))  # fmt: skip
        client.indices.put_alias(
            index=name, name=f"{name}-early", body={"filter": {"range": {"n": {"lt": 15}}}}
        )
    yield names
    for name in names.values():
        delete_index(client, name)


def made(framework: str, index: str, top: int = 4, filter: Any = None, **how: Any) -> Any:
    """A retriever."""
    if framework == "langchain":
        return langchain.OskitRetriever(index=index, k=top, filter=filter, **how)
    if framework == "llama_index":
        return llama_index.OskitRetriever(index, similarity_top_k=top, filters=filter, **how)
    return haystack.OskitRetriever(index, top_k=top, filters=filter, **how)


def rows(found: Any) -> list[Row]:
    """What a framework was given, as id, text, score, other fields, and where the passage begins."""
    if isinstance(found, dict):
        return [
            (one.id, one.content, one.score, {k: v for k, v in one.meta.items() if k != "split_idx_start"},
             one.meta.get("split_idx_start"))
            for one in found["documents"]
        ]  # fmt: skip
    if found and hasattr(found[0], "node"):
        assert all(one.node.ref_doc_id == one.node.node_id for one in found)
        return [(one.node_id, one.text, one.score, one.metadata, one.node.start_char_idx) for one in found]
    own = ("_score", "start_index")
    return [
        (one.id, one.page_content, one.metadata["_score"],
         {k: v for k, v in one.metadata.items() if k not in own}, one.metadata.get("start_index"))
        for one in found
    ]  # fmt: skip


def ask(retriever: Any, query: str) -> list[Row]:
    for name in ("invoke", "retrieve", "run"):
        if hasattr(retriever, name):
            return rows(getattr(retriever, name)(query))
    raise AssertionError(retriever)


async def ask_later(retriever: Any, query: str) -> list[Row]:
    for name in ("ainvoke", "aretrieve", "run_async"):
        if hasattr(retriever, name):
            return rows(await getattr(retriever, name)(query))
    raise AssertionError(retriever)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("cut", [False, True])
@pytest.mark.parametrize("framework", FRAMEWORKS)
def test_they_find_what_a_searcher_finds(client, cluster_url, tiny, indexes, kind, cut, framework):
    """By archive, model, BM25 and both, through an alias; later, side by side, and out of a pickle."""
    docs = {document.id: document for document in documents()}
    index = indexes[kind, cut]
    both = {"sides": "bm25=0.3,sparse=0.7", "fusion": "rrf:60"}
    for name, how, asked in (
        (index, {"archive": str(tiny.archive)}, {"encoder": tiny.encoder}),
        (f"{index}-early", {"model_id": tiny.encoder_id}, {"model_id": tiny.encoder_id}),
        (f"{index}-early", {"archive": str(tiny.archive), "hybrid": both}, {"encoder": tiny.encoder}),
        (index, {"by": "bm25", "search_kwargs": {"offset": 2}}, {"by": "bm25"}),
    ):
        wanted = {"size": 4, **how.get("search_kwargs", {})}
        if "hybrid" in how:
            wanted["hybrid"] = Hybrid.parse(both["sides"], fusion="rrf:60")
        due = Searcher(client, name, **asked).search_many(QUERIES[:2], **wanted)
        retriever = pickle.loads(pickle.dumps(made(framework, name, url=cluster_url, **how)))
        one_by_one = [ask(retriever, query) for query in QUERIES[:2]]

        async def side_by_side(retriever: Any = retriever) -> list[list[Row]]:
            return await asyncio.gather(*(ask_later(retriever, query) for query in QUERIES[:2]))

        assert asyncio.run(side_by_side()) == one_by_one
        for found, result in zip(one_by_one, due, strict=True):
            assert [(row[0], row[2]) for row in found] == [(hit.id, hit.score) for hit in result.hits]
            assert len(found) == 4
            for (id_, text, _, fields, start), hit in zip(found, result.hits, strict=True):
                own = docs[id_]
                title = {"title": own.title} if own.title else {}
                assert fields == {
                    key: value for key, value in {**title, **own.fields}.items() if key != "dense"
                }
                if cut and how.get("by") != "bm25":
                    assert own.text[start : start + len(text)] == text and len(text) < 200
                    assert (text, start) == (hit.passage.text, hit.passage.start)
                else:
                    assert (text, start) == (own.text, None)


def haystack_filters() -> list[dict[str, Any]]:
    def of(field: str, operator: str, value: Any) -> dict[str, Any]:
        return {"field": field, "operator": operator, "value": value}

    def all_of(operator: str, *conditions: dict[str, Any]) -> dict[str, Any]:
        return {"operator": operator, "conditions": list(conditions)}

    return [
        of("meta.lang", "==", "de"), of("meta.lang", "!=", "de"), of("lang", "in", ["de", "nl"]),
        of("meta.lang", "not in", ["de", "nl"]), of("meta.lang", "in", []), of("meta.lang", "not in", []),
        of("meta.lang", "==", None), of("meta.lang", "!=", None), of("meta.lang", "in", ["de", None]),
        of("meta.year", ">", 2018), of("meta.year", "<=", 2018), of("meta.year", "==", 2018.0),
        of("meta.year", ">=", None), of("meta.price", "<", 3.25), of("meta.meta.page", "==", 3),
        of("meta.open", "==", True), of("meta.open", "!=", True), of("meta.day", ">=", "2024-01-12"),
        of("id", "in", ["d3", "d4", "nobody"]),
        all_of("AND", of("meta.year", ">=", 2017), of("meta.lang", "==", "en")),
        all_of("OR", of("meta.year", "<", 2017), of("meta.lang", "==", "en")),
        all_of("NOT", of("meta.year", ">=", 2017), of("meta.lang", "==", "en")),
        all_of("AND", all_of("NOT", of("meta.open", "==", False)),
               all_of("OR", of("meta.lang", "!=", "nl"), of("meta.year", "in", [2016, 2019]))),
    ]  # fmt: skip


def llama_filters() -> list[MetadataFilters]:
    single = [
        ("lang", "de", "=="), ("lang", "de", "!="), ("lang", ["de", "nl"], "in"), ("lang", ["de"], "nin"),
        ("year", 2018, ">"), ("year", 2018, "<="), ("price", 3.25, ">="), ("price", 3.25, "<"),
        ("tags", ["a", "d e"], "any"), ("tags", ["a", "b"], "all"), ("tags", "d e", "contains"),
        ("tags", None, "is_empty"), ("lang", [], "nin"),
    ]  # fmt: skip
    parts = [MetadataFilter(key=key, value=value, operator=how) for key, value, how in single]
    groups = [([part], "and") for part in parts]
    groups += [(parts[i : i + 3], how) for i in (0, 3, 6, 9) for how in ("and", "or", "not")]
    return [MetadataFilters(filters=each, condition=how) for each, how in groups]


@pytest.mark.parametrize(("kind", "cut"), [("rank_features", False), ("sparse_vector", True)])
def test_filters_let_through_what_the_framework_itself_lets_through(cluster_url, tiny, indexes, kind, cut):
    """Judged by Haystack's and LlamaIndex's own functions for documents in memory."""
    how = {"url": cluster_url, "archive": str(tiny.archive), "hybrid": "bm25=0.5,sparse=0.5"}
    docs = {document.id: dict(document.fields) for document in documents()}
    index = indexes[kind, cut]

    def check(framework: str, given: Any, passes: Callable[[str], bool]) -> None:
        found = {row[0] for row in ask(made(framework, index, 30, given, **how), "fox building")}
        assert found == {each for each in docs if passes(each)}, given

    check("langchain", None, lambda _: True)
    for given in haystack_filters():
        check("haystack", given, lambda each, given=given: document_matches_filter(
            given, HaystackDocument(id=each, content="", meta=docs[each])))  # fmt: skip
    for filters in llama_filters():
        check("llama_index", filters, build_metadata_filter_fn(docs.__getitem__, filters))
    inner = MetadataFilters(filters=llama_filters()[0].filters + llama_filters()[4].filters, condition="or")
    nested = MetadataFilters(filters=[inner, MetadataFilter(key="open", value="true")])
    check("llama_index", nested, lambda each: docs[each].get("open") is True
          and (docs[each].get("lang") == "de" or docs[each].get("year", 0) > 2018))  # fmt: skip
    check("langchain", ["lang=de", "year>=2018"], lambda each: docs[each].get("lang") == "de"
          and docs[each].get("year", 0) >= 2018)  # fmt: skip
    clause = {"prefix": {"lang": "e"}}
    for framework in FRAMEWORKS:
        check(framework, clause, lambda each: docs[each].get("lang") == "en")


class Told(BaseCallbackHandler):
    """What LangChain tells its tracers."""

    def __init__(self) -> None:
        self.said: list[str] = []

    def on_retriever_start(self, serialized: Any, query: str, **_: Any) -> None:
        self.said.append(f"start {query}")

    def on_retriever_end(self, documents: Any, **_: Any) -> None:
        self.said.append(f"end {len(documents)}")

    def on_retriever_error(self, error: BaseException, **_: Any) -> None:
        self.said.append(f"error {error}")


def test_what_a_question_asks_for_and_what_tracers_are_told(cluster_url, tiny, indexes):
    index = indexes["rank_features", False]
    retriever = made("langchain", index, url=cluster_url, archive=str(tiny.archive), filter="lang=de")
    told = Told()
    asked = {"callbacks": [told]}
    few = retriever.invoke("fox", asked, k=2, filter="lang=en", two_phase=True)
    assert {one.metadata["lang"] for one in few} == {"en"} and len(few) == 2
    later = asyncio.run(retriever.ainvoke("fox", asked, k=2, filter=[], hybrid="bm25=1,sparse=1"))
    assert len(later) == 2
    assert [len(each) for each in retriever.batch(["fox", "jumps over", ""], asked)] == [4, 4, 0]
    for wrong, said in (({"filter": "colour=red"}, "has no field 'colour'"), ({"top": 3}, "no option 'top'"),
                        ({"k": 0}, "at least 1"), ({"hybrid": "bm25=1"}, "2 to 5 sides")):  # fmt: skip
        with pytest.raises(OskitError, match=said) as caught:
            retriever.invoke("fox", asked, **wrong)
        assert "\n" not in str(caught.value) and told.said[-1] == f"error {caught.value}"
    assert told.said[:4] == ["start fox", "end 2", "start fox", "end 2"]
    handler = LlamaDebugHandler(print_trace_on_end=False)
    manager = CallbackManager([handler])
    how = {"url": cluster_url, "archive": str(tiny.archive)}
    made("llama_index", index, callback_manager=manager, **how).retrieve("fox")
    (pair,) = handler.get_event_pairs(CBEventType.RETRIEVE)
    assert len(pair[1].payload["nodes"]) == 4
    german = {"field": "lang", "operator": "==", "value": "de"}
    newer = {"field": "year", "operator": ">", "value": 2016}
    merged = made("haystack", index, filter_policy="merge", filter=german, **how).run("fox", newer, 3)
    assert all(one.meta["lang"] == "de" and one.meta["year"] > 2016 for one in merged["documents"])
    words = {"field": "passage", "operator": "==", "value": "fox"}
    with pytest.warns(UserWarning, match="asks if it holds all of the words"):
        made("haystack", index, filter=words, **how).run("fox")


def test_a_pipeline_of_haystack_is_written_and_read(monkeypatch, cluster_url, tiny, indexes):
    monkeypatch.setenv("OSKIT_URL", cluster_url)
    pipeline = Pipeline()
    index = indexes["sparse_vector", True]
    pipeline.add_component("retriever", made("haystack", index, archive=str(tiny.archive)))
    text = pipeline.dumps()
    read = Pipeline.loads(text, allowed_modules=["oskit.integrations.*"])
    assert read == pipeline
    asked = {"retriever": {"query": "fox", "top_k": 3}}
    assert rows(read.run(asked)["retriever"]) == rows(pipeline.run(asked)["retriever"])
    assert rows(asyncio.run(read.run_async(asked))["retriever"]) == rows(pipeline.run(asked)["retriever"])


def test_the_documentations_examples_run(monkeypatch, capsys, tmp_path, cluster_url, tiny, indexes):
    text = (Path(__file__).parents[2] / "docs" / "integrations.md").read_text(encoding="utf-8")
    examples = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(examples) == len(FRAMEWORKS)
    monkeypatch.setenv("OSKIT_URL", cluster_url)
    monkeypatch.chdir(tmp_path)
    Path("out").symlink_to(tiny.archive)
    models = [FakeListChatModel(responses=["six weeks"]), MockLLM(), None]
    for example, model in zip(examples, models, strict=True):
        exec(example.replace('"articles"', f'"{indexes["rank_features", True]}"'), {"llm": model})
        said = capsys.readouterr().out
        assert "fox" in said and len(said.splitlines()) >= (1 if model is None else 3)
        assert not isinstance(model, FakeListChatModel) or said.endswith("six weeks\n")
