"""Several processes evaluate together: each computes its share of the documents."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from oskit.encoder.model import NeuralSparseEncoder
from tests import tiny

TEXTS = [f"{'a long bridge of concrete and ' * (number % 5)}stone house {number}" for number in range(23)]

SCRIPT = """
import json, sys
import torch.distributed as dist
from sentence_transformers.util.distributed import distributed_evaluation
from oskit.encoder.model import NeuralSparseEncoder

dist.init_process_group("gloo")
encoder = NeuralSparseEncoder.from_pretrained(sys.argv[1], device="cpu")
computed = []
documents = encoder._documents
encoder._documents = lambda texts: computed.append(len(texts)) or documents(texts)
with distributed_evaluation(encoder) as evaluates:
    if evaluates:
        matrix = encoder.document_matrix(json.loads(sys.argv[2]))
        print(json.dumps(matrix.toarray().tolist()))
sys.stderr.write(f"computed {computed}\\n")  # in one piece: two processes share it
dist.destroy_process_group()
"""


def test_each_process_encodes_its_share(tmp_path: Path) -> None:
    pytest.importorskip("sentence_transformers.util.distributed", exc_type=ImportError)
    folder = tiny.build("bert", tmp_path / "encoder")
    script = tmp_path / "evaluate.py"
    script.write_text(SCRIPT)
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    found = subprocess.run(
        [*launcher, str(script), str(folder), json.dumps(TEXTS)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=150,
    )
    assert found.returncode == 0, found.stderr
    (line,) = found.stdout.splitlines()
    alone = NeuralSparseEncoder.from_pretrained(folder, device="cpu").document_matrix(TEXTS)
    np.testing.assert_allclose(json.loads(line), alone.toarray(), atol=1e-6)
    assert sorted(line for line in found.stderr.splitlines() if line.startswith("computed")) == [
        "computed [11]",
        "computed [12]",
    ]
