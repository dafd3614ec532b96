"""What a retriever holds, writes down and refuses; without a cluster."""

from __future__ import annotations

import copy
import json
import pickle
import subprocess
import sys
from typing import Any

import pytest
from haystack import Pipeline
from haystack.components.retrievers import MultiQueryTextRetriever
from haystack.utils import Secret
from langchain_core.load import dumps, loads
from langchain_core.runnables import ConfigurableField
from llama_index.core.vector_stores import FilterOperator, MetadataFilter, MetadataFilters

from oskit import Hybrid, OskitError, Searcher
from oskit.integrations import haystack, langchain, llama_index
from oskit.integrations.source import How, Source

SECRET = "hush-hush"
BOTH = "bm25=1,sparse=1"
URL = f"http://reader:{SECRET}@search.example.com:9200/prefix"


@pytest.fixture(autouse=True)
def no_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OSKIT_URL", "OSKIT_USERNAME", "OSKIT_PASSWORD", "OSKIT_PASSWORD_FILE"):
        monkeypatch.delenv(name, raising=False)


def settings_of(retriever: Any) -> Source:
    return retriever if isinstance(retriever, Source) else retriever.source


MAKERS = [langchain.OskitRetriever, llama_index.OskitRetriever, haystack.OskitRetriever]


@pytest.mark.parametrize("make", MAKERS)
def test_a_copy_and_a_pickle_have_the_settings_and_no_text_has_the_password(make):
    more = {"hybrid": {"sides": "bm25=1,sparse=3", "fusion": "rrf:60"}, "connection": {"timeout": 5}}
    retriever = make(index="articles", url=URL, archive="out", search_kwargs={"two_phase": True}, **more)
    for other in (retriever, copy.deepcopy(retriever), pickle.loads(pickle.dumps(retriever))):
        source = settings_of(other)
        assert source == settings_of(retriever)
        assert source.url == "http://search.example.com:9200/prefix" and source.username == "reader"
        assert source.password is not None and source.password.get_secret_value() == SECRET
        assert SECRET not in f"{other!r} {other} {source!r}"
    assert {*How.__annotations__, "index", "password"} == set(Source.model_fields)


@pytest.mark.parametrize("make", MAKERS)
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({}, "name of an index, or a searcher"),
        ({"index": "a", "searcher": Searcher(None, "a")}, "name of an index, or a searcher"),
        ({"searcher": Searcher(None, "a"), "archive": "out"}, "name of an index, or a searcher"),
        ({"index": "a", "kay": 3}, "'kay'"),
        ({"index": "a", "by": "magic"}, "'by'"),
        ({"index": "a", "searcher": "b"}, "Searcher"),
        ({"index": "a", "hybrid": "bm25=1"}, "2 to 5 sides"),
        ({"index": "a", "hybrid": {"fusion": "rrf"}}, "no hybrid search: 'sides'"),
        ({"index": "a", "hybrid": {"sides": "bm25=1,sparse=1", "fuse": 1}}, "no hybrid search"),
        ({"index": "a", "search_kwargs": {"size": 3}}, "no option 'size'"),
        ({"index": "a", "url": "search.example.com"}, "does not begin with http"),
        ({"index": "a", "username": "reader"}, "password"),
        ({"index": "a", "connection": {"password": SECRET}}, "not belong into `connection`"),
        ({"index": "a", "connection": {"ca_certs": "/nowhere"}}, "no file '/nowhere'"),
        ({"index": "a", "connection": {"cacerts": "/nowhere"}}, "cacerts"),
    ],
)
def test_what_cannot_be_is_one_line(make, given, said):
    with pytest.raises(OskitError, match=said) as told:
        make(**given)
    assert "\n" not in str(told.value) and SECRET not in str(told.value)


def test_langchain_writes_and_reads_it(monkeypatch):
    retriever = langchain.OskitRetriever(index="a", url=URL, k=3, filter=["lang=de"], hybrid=BOTH)
    text = dumps(retriever)
    assert SECRET not in text
    how: dict[str, Any] = {"allowed_objects": [langchain.OskitRetriever], "valid_namespaces": ["oskit"]}
    assert loads(text, secrets_map={"OSKIT_PASSWORD": SECRET}, **how) == retriever
    with pytest.raises(OskitError, match="OSKIT_PASSWORD"):
        loads(text, **how)
    monkeypatch.setenv("OSKIT_PASSWORD", SECRET)
    assert loads(text, **how).k == 3
    monkeypatch.delenv("OSKIT_PASSWORD")
    for living in (
        {"searcher": Searcher(None, "a")},
        {"index": "a", "hybrid": Hybrid.parse(BOTH)},
    ):
        assert json.loads(dumps(langchain.OskitRetriever(**living)))["type"] == "not_implemented"
    fields = {"k": ConfigurableField(id="k"), "filter": ConfigurableField(id="filter")}
    chosen, _ = retriever.configurable_fields(**fields).prepare({"configurable": {"k": 7}})
    assert chosen == retriever.model_copy(update={"k": 7})


def test_haystack_writes_and_reads_it(monkeypatch):
    monkeypatch.setenv("READER", SECRET)
    filters = {"field": "meta.lang", "operator": "==", "value": "de"}
    more = {"hybrid": {"sides": "bm25=1,sparse=1"}, "connection": {"timeout": 3}, "filter_policy": "merge"}
    password = Secret.from_env_var("READER")
    retriever = haystack.OskitRetriever(
        "a", username="reader", password=password, filters=filters, top_k=3, archive="out", **more
    )
    pipeline = Pipeline()
    pipeline.add_component("retriever", retriever)
    text = pipeline.dumps()
    assert SECRET not in text and "READER" in text
    read = Pipeline.loads(text, allowed_modules=["oskit.integrations.*"]).get_component("retriever")
    assert read.to_dict() == retriever.to_dict() and read.source == retriever.source
    assert read.source.password.get_secret_value() == SECRET
    for given, said in (({"index": "a", "url": URL}, "in the address"),
                        ({"searcher": Searcher(None, "a")}, "cannot be written"),
                        ({"index": "a", "hybrid": Hybrid.parse(BOTH)}, "cannot be written")):  # fmt: skip
        with pytest.raises(OskitError, match=said) as told:
            haystack.OskitRetriever(**given).to_dict()
        assert SECRET not in str(told.value)
    with pytest.raises(OskitError, match="no Secret"):
        haystack.OskitRetriever("a", password=SECRET)
    assert MultiQueryTextRetriever(retriever=retriever).to_dict()["init_parameters"]["retriever"]


LIST = ["a", "b"]


@pytest.mark.parametrize(
    "given",
    [
        {"field": "meta.tags", "operator": "==", "value": LIST},
        {"field": "meta.tags", "operator": ">", "value": LIST},
        {"field": "meta.tags", "operator": "in", "value": "a"},
        {"field": "meta.tags", "operator": "like", "value": "a"},
        {"field": "meta.tags", "operator": "==", "value": {"a": 1}},
        {"field": "meta.tags", "operator": "=="},
        {"field": "meta.tags", "value": 3},
        {"operator": "XOR", "conditions": []},
        {"operator": "AND"},
        {"conditions": [{"field": "a", "operator": "==", "value": 1}]},
        {"operator": "OR", "conditions": [{"field": "meta.tags", "operator": "like", "value": "a"}]},
        {"operator": "OR", "conditions": ["lang"]},
    ],
)
def test_a_filter_of_haystack_that_nothing_can_answer_is_refused(given):
    with pytest.raises(OskitError) as told:
        haystack.OskitRetriever("a", filters=given)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("operator", "value"),
    [("text_match", "a"), ("text_match_insensitive", "a"), ("==", LIST), ("==", None), ("!=", None),
     (">", LIST), ("in", "a"), ("nin", "a"), ("any", "a"), ("all", "a"), ("contains", LIST)],
)  # fmt: skip
def test_a_filter_of_llama_index_that_nothing_can_answer_is_refused(operator, value):
    one = MetadataFilter(key="tags", value=value, operator=FilterOperator(operator))
    with pytest.raises(OskitError, match="'tags'") as told:
        llama_index.OskitRetriever("a", filters=MetadataFilters(filters=[one]))
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [("langchain", "langchain_core", "langchain"), ("llama_index", "llama_index", "llama-index"),
     ("haystack", "haystack", "haystack")],
)  # fmt: skip
def test_a_framework_that_is_missing_is_one_line(module, package, extra):
    script = (
        f"import sys; sys.modules[{package!r}] = None\n"
        f"try: import oskit.integrations.{module}\n"
        "except Exception as error: print(type(error).__name__, error)"
    )
    said = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    assert said.startswith("MissingDependencyError") and f"pip install 'oskit[{extra}]'" in said
    assert said.count("\n") == 1
