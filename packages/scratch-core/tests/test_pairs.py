"""Pairs of texts, and texts with gaps: what a sequence-to-sequence model is trained on."""

import json

import numpy as np
import pytest
from scratch_core.data.pairs import IGNORED, Pair, Pairs, SpanCorruption, open_pairs
from scratch_core.data.tokenizers import ByteTokenizer
from scratch_core.errors import ConfigError, DataError

SENTINELS = range(327, 258, -1)


def test_the_target_fills_the_gaps_of_the_source():
    tokens = np.random.default_rng(0).integers(0, 256, 500).astype(np.uint16)
    windows = SpanCorruption(tokens, 100, SENTINELS, end=257)
    assert (len(windows), windows.lengths) == (5, (91, 21))  # 15 of 100 tokens cut, in 5 spans of 3 on average
    for number in range(5):
        item = windows[number]
        assert tuple(map(len, item.values())) == windows.lengths
        assert item["input_ids"][-1] == item["labels"][-1] == 257
        gaps = np.split(item["labels"][:-1], np.flatnonzero(item["labels"] > 258)[1:])
        filled = item["input_ids"][:-1].tolist()
        for k, gap in enumerate(gaps):
            assert gap[0] == 327 - k
            at = filled.index(gap[0])
            filled[at : at + 1] = gap[1:].tolist()
        np.testing.assert_array_equal(filled, tokens[100 * number : 100 * number + 100])


def test_gaps_depend_on_the_seed_and_the_window_alone():
    tokens = np.arange(400) % 256
    one, again, other = (SpanCorruption(tokens, 40, SENTINELS, end=None, seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one[7]["input_ids"], again[7]["input_ids"])
    assert any((one[i]["input_ids"] != other[i]["input_ids"]).any() for i in range(10))


def test_pairs_end_with_eos_and_are_padded():
    pairs = Pairs([Pair("ab", "c"), Pair("abcdefgh", "ijk")], ByteTokenizer(), 5, 3)
    short, long = pairs[0], pairs[1]
    assert short["input_ids"].tolist() == [97, 98, 257, 258, 258]
    assert short["attention_mask"].tolist() == [1, 1, 1, 0, 0]
    assert short["labels"].tolist() == [99, 257, IGNORED]
    assert long["input_ids"].tolist() == [97, 98, 99, 100, 257]
    assert long["labels"].tolist() == [105, 106, 257]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (['{"source": "a"}'], r"p.jsonl, row 1: must be a JSON object with a \"source\" and a \"target\""),
        (['{"source": "a", "target": "b"}', "[1]"], "p.jsonl, row 2: must be a JSON object"),
        (['{"source": "a", "target": 5}'], "row 1: .*target=5 must be a text with at least one character"),
        (['{"source": "", "target": "b"}'], "row 1: .*source='' must be a text"),
        (['{"source": "a", "target": "b"}', ""], "holds 1 rows: at least 2 are needed"),
    ],
)
def test_a_bad_row_is_named(rows, message, tmp_path):
    (tmp_path / "p.jsonl").write_text("\n".join(rows))
    with pytest.raises(DataError, match=message):
        open_pairs(tmp_path / "p.jsonl")


def test_what_cannot_be_cut_is_an_error():
    with pytest.raises(DataError, match="30 tokens are fewer than one window of 40"):
        SpanCorruption(np.arange(30), 40, SENTINELS, end=None)
    with pytest.raises(ConfigError, match="windows of 100 tokens have 5 gaps, the vocabulary has 4 sentinels"):
        SpanCorruption(np.arange(100), 100, SENTINELS[:4], end=None)
    with pytest.raises(DataError, match="no such file"):
        open_pairs("nowhere.jsonl")


def test_rows_are_read_as_they_are(tmp_path):
    rows = [{"source": "é", "target": "b"}, {"source": "c", "target": "d"}]
    (tmp_path / "p.jsonl").write_text("\n".join(json.dumps(row) for row in rows) + "\n\n")
    assert open_pairs(tmp_path / "p.jsonl") == [Pair("é", "b"), Pair("c", "d")]
