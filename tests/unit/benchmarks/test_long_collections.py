"""The collections: the relevant passage stands behind the cut; pages are whole and judged as one."""

from __future__ import annotations

from pathlib import Path

from benchmarks.long_documents import CUT, SHORTEST, behind_the_cut, pages
from oskit.data.collection import Collection
from oskit.data.documents import Document


def words(text: str) -> int:
    return len(text.split())


def write(folder: Path, documents: dict[str, str], qrels: dict[str, dict[str, int]]) -> None:
    corpus = tuple(Document(name, text) for name, text in documents.items())
    Collection({query: f"ask {query}" for query in qrels}, qrels, corpus).write(folder)


def test_the_relevant_passage_is_behind_the_cut(tmp_path: Path) -> None:
    paragraphs = {f"p{n}": f"answer{n} " * 40 for n in range(10)}
    write(tmp_path / "xquad-en", paragraphs, {f"q{n}": {f"p{n}": 1} for n in range(10)})
    write(tmp_path / "dbpedia5k", {f"f{n}": f"filler{n} " * 30 for n in range(50)}, {"q": {"f1": 1}})
    made = behind_the_cut(tmp_path, 25, words)
    documents = {document.id: document.text for document in made.documents()}
    assert len(documents) == 25
    for name, text in documents.items():
        assert SHORTEST <= words(text) <= 5_100
        if name in paragraphs:
            before, after = text.split(paragraphs[name].strip())
            assert words(before) >= CUT
            assert "answer" not in before + after
        else:
            assert "answer" not in text
    assert made.qrels == {f"q{n}": {f"p{n}": 1} for n in range(10)}
    assert made == behind_the_cut(tmp_path, 25, words)


def test_pages_are_their_sections_in_order(tmp_path: Path) -> None:
    sections = {
        "A_1_Sec10.txt": "third " * 500,
        "A_1_Sec2.txt": "second " * 500,
        "A_1_Sec1.txt": "first " * 500,
        "B-1": "short",
        "C-1": "other " * 1200,
        "C-2": "more " * 10,
    }
    judged = {
        "q1": {"A_1_Sec2.txt": 1, "A_1_Sec10.txt": 3, "C-2": 0},
        "q2": {"B-1": 2},  # its page is too short to be there
    }
    write(tmp_path / "medquad-liveqa", sections, judged)
    made = pages(tmp_path, 1, words)
    assert made.qrels == {"q1": {"A_1": 3, "C": 0}}
    (first, _) = made.documents()
    assert first.id == "A_1"
    assert first.text.split()[:1500:500] == ["first", "second", "third"]
