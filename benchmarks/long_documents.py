"""Long documents, cut off beside cut into chunks: python -m benchmarks.long_documents --data DIR."""

from __future__ import annotations

import random
import re
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import click

from oskit.archive.encoder import ArchiveEncoder
from oskit.data.chunks import Chunking
from oskit.data.collection import Collection
from oskit.data.documents import Document
from oskit.demo.data import demo_encoder
from oskit.evaluation.offline.bm25 import rank_bm25
from oskit.evaluation.offline.exact_scores import ExactRanking, rank_exactly
from oskit.evaluation.offline.metrics import MAIN_MEASURE
from oskit.evaluation.offline.result import RunFigures

SHORTEST, LONGEST = 1_000, 5_000
"""Tokens of the documents."""

CUT = 512
"""Tokens that an encoder reads: where the relevant passage has to stand behind."""

_PAGE = re.compile(r"(.+?)(?:_Sec|-)(\d+)(?:\.txt)?")

Count = Callable[[str], int]


def behind_the_cut(data: Path, documents: int, count: Count) -> Collection:
    """xquad's paragraphs, each behind the first 512 tokens of a document and among passages of DBpedia.

    The other documents are passages of DBpedia alone.
    """
    asked = Collection.open(data / "xquad-en")
    fillers = [(document.passage, count(document.passage)) for document in _all(data / "dbpedia5k")]
    paragraphs = [*asked.documents()]
    draw = random.Random(0)
    drawn = iter(lambda: draw.choice(fillers), None)

    def passages(tokens: int) -> list[str]:
        found, size = [], 0
        while size < tokens:
            text, length = next(drawn)
            found.append(text)
            size += length
        return found

    made = []
    for number in range(documents):
        length = round(SHORTEST * (LONGEST / SHORTEST) ** draw.random())
        paragraph = paragraphs[number] if number < len(paragraphs) else None
        name, text = (paragraph.id, paragraph.passage) if paragraph else (f"other-{number}", "")
        before = draw.randint(CUT, max(CUT, length - count(text)))
        parts = [*passages(before), *([text] if text else []), *passages(length - before - count(text))]
        made.append(Document(name, "\n\n".join(parts)))
    draw.shuffle(made)
    return replace(asked, corpus=tuple(made), name="xquad-en among DBpedia")


def pages(data: Path, documents: int, count: Count) -> Collection:
    """MedQuAD's answers about one thing as one document, in their order; consumers ask, people judged."""
    asked = Collection.open(data / "medquad-liveqa")
    sections: dict[str, list[tuple[int, Document]]] = defaultdict(list)
    page_of = {}
    for document in asked.documents():
        matched = _PAGE.fullmatch(document.id)
        page_of[document.id], number = (matched[1], int(matched[2])) if matched else (document.id, 0)
        sections[page_of[document.id]].append((number, document))
    texts = {
        page: "\n\n".join(found.passage for _, found in sorted(parts, key=lambda part: part[0]))
        for page, parts in sections.items()
    }
    long = {page: text for page, text in texts.items() if SHORTEST <= count(text) <= LONGEST}
    qrels: dict[str, dict[str, int]] = {}
    for query, judged in asked.qrels.items():
        grades: dict[str, int] = defaultdict(int)
        for document, grade in judged.items():
            if page_of[document] in long:
                grades[page_of[document]] = max(grades[page_of[document]], grade)
        if any(grades.values()):
            qrels[query] = dict(grades)
    wanted = {page for judged in qrels.values() for page in judged}
    others = sorted(long.keys() - wanted)
    random.Random(0).shuffle(others)
    kept = sorted([*wanted, *others][: max(documents, len(wanted))])
    return Collection(
        {query: asked.queries[query] for query in qrels},
        qrels,
        tuple(Document(page, long[page]) for page in kept),
        name="MedQuAD's pages",
    )


@dataclass
class Row:
    """One way of retrieving."""

    figures: RunFigures
    ranking: ExactRanking
    seconds: float

    @property
    def tokens(self) -> int | None:
        """Tokens of the documents that were encoded, what overlaps twice."""
        cut = self.ranking.truncation
        return None if cut is None else cut.tokens - cut.lost


@click.command()
@click.option("--data", required=True, type=click.Path(exists=True, path_type=Path),
              help="Folder with xquad-en, dbpedia5k and medquad-liveqa in BEIR's layout.")  # fmt: skip
@click.option("--model", help="A model's folder.  [the demo's BERT-tiny]")
@click.option("--documents", default=400, show_default=True, help="Of each collection.")
@click.option("--chunk", "chunks", multiple=True, default=["tokens:384,overlap:64", "tokens:128,overlap:32"],
              show_default=True, help="Ways to cut.")  # fmt: skip
def main(data: Path, model: str | None, documents: int, chunks: tuple[str, ...]) -> None:
    """Quality and cost of documents of 1,000 to 5,000 tokens: cut off, in chunks, and by BM25."""
    with tempfile.TemporaryDirectory() as folder:
        encoder = _exported(model or str(demo_encoder()), Path(folder))
        tokenizer = encoder.vocabulary.tokenizer()

        def count(text: str) -> int:
            return len(tokenizer.encode(text, add_special_tokens=False).ids)

        for make in (behind_the_cut, pages):
            collection = make(data, documents, count)
            lengths = sorted(count(document.text) for document in collection.documents())
            print(
                f"\n{collection.name}: {len(lengths):,} documents, {len(collection.queries):,} queries; "
                f"{lengths[0]:,} to {lengths[-1]:,} tokens, median {lengths[len(lengths) // 2]:,}\n"
            )
            _print(list(_rows(encoder, collection, [Chunking.parse(text) for text in chunks])))


def _rows(encoder: ArchiveEncoder, collection: Collection, chunkings: list[Chunking]) -> Iterator[Row]:
    def row(name: str, rank: Callable[[], ExactRanking]) -> Row:
        start = time.process_time()  # of all threads, whatever else the machine does
        ranking = rank()
        seconds = time.process_time() - start
        return Row(RunFigures.measure(name, ranking.run, collection.qrels, k=100), ranking, seconds)

    queries = encoder.query_matrix(list(collection.queries.values())).tocsr()
    encoder.document_matrix(["warm up"] * 8)

    def exactly(chunking: Chunking | None = None) -> ExactRanking:
        return rank_exactly(encoder, collection, k=100, queries=queries, chunking=chunking)

    yield row(f"cut off at {CUT} tokens", exactly)
    for chunking in chunkings:
        yield row(f"chunks, {chunking}", lambda chunking=chunking: exactly(chunking))  # type: ignore[misc]
    yield row("BM25", lambda: rank_bm25(collection, k=100))


def _print(rows: list[Row]) -> None:
    cut = rows[0]
    print("| | nDCG@10 | R@100 | vectors | tokens read | postings | CPU s | nDCG@10 minus the cut one's |")
    print("|---|---|---|---|---|---|---|---|")
    for row in rows:
        quality, cost = row.figures.quality, row.ranking.sparsity
        against = ""
        if row is not cut:
            found = row.figures.against(cut.figures)
            against = (
                f"{found.difference:+.3f} ({found.low:+.3f} to {found.high:+.3f}), p {found.p_value:.4f}"
            )
        cells = [
            row.figures.name,
            f"{quality[MAIN_MEASURE]:.3f}",
            f"{quality['R@100']:.3f}",
            f"{row.ranking.chunks or len(row.ranking.document_ids):,}",
            _beside(row.tokens, cut.tokens),
            _beside(cost.postings, cut.ranking.sparsity.postings),
            f"{row.seconds:.1f}",
            against,
        ]
        print(f"| {' | '.join(cells)} |", flush=True)


def _beside(value: int | None, first: int | None) -> str:
    if value is None or first is None:
        return ""
    return f"{value:,}" if value == first else f"{value:,} ({value / first:.2f}×)"  # noqa: RUF001


def _all(folder: Path) -> Iterator[Document]:
    return Collection({}, {}, folder / "corpus.jsonl").documents()


def _exported(model: str, folder: Path) -> ArchiveEncoder:
    from exporters import export_encoder
    from oskit.encoder.model import NeuralSparseEncoder

    network = NeuralSparseEncoder.from_pretrained(model, device="cpu")
    (archive,) = export_encoder(network, folder, formats=("onnx",), name="long", allow_untrained=True)
    return ArchiveEncoder.open(archive, threads=1)


if __name__ == "__main__":
    main()
