"""Word pieces, and BERT's methods that read text: fill in, classify, tag, answer, embed. The models are random."""

import dataclasses
import io
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from scratch_bert import (
    BertConfig,
    BertForMaskedLM,
    BertForPreTraining,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    SentenceEncoder,
)
from scratch_bert.sentences import POOLING, Pooling, cosine_similarity
from scratch_core import cli
from scratch_core.data.tokenizers import open_fast
from scratch_core.data.wordpiece import SPECIAL, WordPiece
from scratch_core.errors import CheckpointError, ConfigError, DataError
from scratch_core.tasks.token_classification import AGGREGATIONS
from scratch_core.testing import jitted

HERE = Path(__file__).parent
WORDS = [*SPECIAL.values(), "the", "cat", "##s", "sat", "on", "mat", "##ting", "cafe", "Cafe", "caf\u00e9"]
WORDS += ["\u4eca", "\u5929", ".", "A", "a"]
CONFIG = dataclasses.replace(
    BertConfig.tiny(), vocab_size=len(WORDS), d_model=32, d_ff=64, num_layers=1, max_positions=32, initial_scale=0.5
)


def folder_of(path, **settings):
    """Return a folder with a vocab.txt and a tokenizer_config.json."""
    path.mkdir(exist_ok=True)
    (path / "vocab.txt").write_text("".join(f"{word}\n" for word in WORDS), encoding="utf-8")
    (path / "tokenizer_config.json").write_text(json.dumps(settings))
    return path


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return WordPiece(folder_of(tmp_path_factory.mktemp("words")))


def made(model_class, tokenizer, **changes):
    model = model_class(dataclasses.replace(CONFIG, **changes), rngs=nnx.Rngs(0))
    model.eval()
    model.tokenizer = tokenizer
    return model


def words_of(tokenizer, text):
    return [tokenizer.token(number) for number in tokenizer.encode(text)]


def test_words_are_cut_as_the_file_says(tmp_path):
    """Lower case and accents, alone and together, and Chinese characters; transformers gives the same pieces."""
    cased = WordPiece(folder_of(tmp_path / "cased", do_lower_case=False))
    assert words_of(cased, "A Cafe") == ["A", "Cafe"]
    assert words_of(WordPiece(folder_of(tmp_path / "default")), "A Caf\u00e9 cats") == ["a", "cafe", "cat", "##s"]
    kept = WordPiece(folder_of(tmp_path / "kept", strip_accents=False))
    assert words_of(kept, "Caf\u00e9") == ["caf\u00e9"]
    assert words_of(kept, "\u4eca\u5929 xyz") == ["\u4eca", "\u5929", "[UNK]"]
    together = WordPiece(folder_of(tmp_path / "together", tokenize_chinese_chars=False))
    assert words_of(together, "\u4eca\u5929") == ["[UNK]"]


def test_pieces_know_their_characters_and_words(tokenizer):
    pieces = tokenizer.pieces("The cats [MASK].")
    assert [tokenizer.token(i) for i in pieces.ids] == ["the", "cat", "##s", "[MASK]", "."]
    assert pieces.spans.tolist() == [[0, 3], [4, 7], [7, 8], [9, 15], [15, 16]]
    assert pieces.words[1] == pieces.words[2] != pieces.words[3]
    ids, types = tokenizer.join(np.array([5]), np.array([6, 7]))
    assert ids.tolist() == [tokenizer.cls_id, 5, tokenizer.sep_id, 6, 7, tokenizer.sep_id]
    assert types.tolist() == [0, 0, 0, 1, 1, 1]


def test_a_saved_tokenizer_is_the_same_from_either_file(tokenizer, tmp_path):
    tokenizer.save(tmp_path)
    text = "The caf\u00e9 cats sat."
    alone = open_fast(tmp_path / "tokenizer.json").encode(text, "mat")  # as other programs read it
    ids, types = tokenizer.join(tokenizer.encode(text), tokenizer.encode("mat"))
    assert (alone.ids, alone.type_ids) == (ids.tolist(), types.tolist())
    np.testing.assert_array_equal(WordPiece(tmp_path).encode(text), tokenizer.encode(text))
    (tmp_path / "tokenizer.json").unlink()
    np.testing.assert_array_equal(WordPiece(tmp_path).encode(text), tokenizer.encode(text))


def test_a_vocabulary_without_special_tokens_is_refused(tmp_path):
    (tmp_path / "vocab.txt").write_text("the\ncat\n[UNK]\n")
    with pytest.raises(DataError, match=r"lacks \[PAD\], \[CLS\], \[SEP\], \[MASK\]"):
        WordPiece(tmp_path)


def test_a_model_keeps_its_tokenizer_and_says_that_it_has_none(tokenizer, tmp_path):
    model = made(BertForMaskedLM, tokenizer)
    model.save_pretrained(tmp_path)
    again = BertForMaskedLM.from_pretrained(tmp_path)
    assert again.fill_mask("the [MASK]") == model.fill_mask("the [MASK]")
    with pytest.raises(CheckpointError, match="has no tokenizer"):
        made(BertForMaskedLM, None).fill_mask("the [MASK]")


def test_fill_mask_gives_the_likeliest_tokens_of_each_blank(tokenizer):
    model = made(BertForMaskedLM, tokenizer)
    text = "the [MASK] sat on [MASK]."
    first, second = model.fill_mask(text, top=len(WORDS))
    ids, _ = tokenizer.join(tokenizer.pieces(text).ids)
    logits = np.asarray(jitted(model)(ids[None]))[0]
    assert first[0].token == WORDS[logits[2].argmax()]
    assert second[0].token == WORDS[logits[5].argmax()]
    assert second[0].text == f"the [MASK] sat on {second[0].token}."
    assert sum(fill.probability for fill in first) == pytest.approx(1, abs=1e-5)
    with pytest.raises(DataError, match=r"has no \[MASK\]"):
        model.fill_mask("the cat")
    with pytest.raises(ConfigError, match="top=-1 must be at least 1"):
        model.fill_mask("[MASK]", top=-1)
    with pytest.raises(DataError, match="no text in Unicode"):
        model.fill_mask("[MASK] \udcff")
    both = made(BertForPreTraining, tokenizer)
    logits, _ = jitted(both)(ids[None])
    assert both.fill_mask(text, top=1)[0][0].token == WORDS[np.asarray(logits)[0, 2].argmax()]
    with pytest.raises(DataError, match="34 tokens, the model 32 positions"):
        model.fill_mask("[MASK]" * 32)


def test_classify_gives_probabilities_or_numbers(tokenizer):
    single = made(BertForSequenceClassification, tokenizer, num_classes=3, labels=("x", "y", "z"))
    found = single.classify(("the cat", "sat"))
    assert sum(each.score for each in found) == pytest.approx(1, abs=1e-5)
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    ids, types = tokenizer.join(tokenizer.encode("the cat"), tokenizer.encode("sat"))
    logits = np.asarray(jitted(single)(ids[None], None, types[None]))[0]
    assert found[0].label == "xyz"[logits.argmax()]
    several = made(BertForSequenceClassification, tokenizer, num_classes=3, problem_type="multi_label_classification")
    logits = np.asarray(jitted(several)(tokenizer.join(tokenizer.encode("sat"))[0][None]))[0]
    found = {each.label: each.score for each in several.classify("sat")}
    np.testing.assert_allclose([found[f"LABEL_{i}"] for i in range(3)], 1 / (1 + np.exp(-logits)), atol=1e-6)
    number = made(BertForSequenceClassification, tokenizer, num_classes=1)
    (found,) = number.classify("sat " * 100)  # a text that is too long is cut at its end
    ids, _ = tokenizer.join(tokenizer.encode("sat " * 30))
    assert found.score == pytest.approx(float(jitted(number)(ids[None])[0, 0]), abs=1e-5)


def test_parts_are_put_together_as_users_know_it():
    """Seven tokens of five words and their scores, combined as transformers' pipeline combines them."""
    from scratch_core.data.wordpiece import Pieces
    from scratch_core.tasks.token_classification import _entities

    text = "Ann Lee flies to Rome"
    #        Ann  Le ##e  flies to  Ro  ##me
    spans = [(0, 3), (4, 6), (6, 7), (8, 13), (14, 16), (17, 19), (19, 21)]
    pieces = Pieces(np.arange(7), np.array(spans), np.array([0, 1, 1, 2, 3, 4, 4]))
    names = ["O", "B-PER", "I-PER", "B-LOC"]
    scores = np.full((7, 4), 0.02)
    for token, (kind, score) in enumerate([(1, 0.9), (2, 0.8), (0, 0.9), (0, 0.9), (0, 0.9), (3, 0.6), (0, 0.94)]):
        scores[token, kind] = score
    scores = scores / scores.sum(axis=1, keepdims=True)

    def found(aggregation):
        return [(e.label, e.text) for e in _entities(np.log(scores), pieces, text, names, aggregation)]

    assert found("none") == [("B-PER", "Ann"), ("I-PER", "Le"), ("B-LOC", "Ro")]
    assert found("simple") == [("PER", "Ann Le"), ("LOC", "Ro")]
    assert found("first") == [("PER", "Ann Lee"), ("LOC", "Rome")]
    assert found("average") == [("PER", "Ann")]  # in the other two words, O is likelier on average
    assert found("max") == [("PER", "Ann")]
    (person, _) = _entities(np.log(scores), pieces, text, names, "first")
    assert (person.start, person.end) == (0, 7)
    assert person.score == pytest.approx((scores[0, 1] + scores[1, 2]) / 2)


def test_tag_gives_the_characters_of_the_text(tokenizer):
    model = made(BertForTokenClassification, tokenizer, num_classes=2, labels=("O", "x"))
    text = "The cats sat on the mat."
    found = model.tag(text, aggregation="none")
    ids, _ = tokenizer.join(tokenizer.encode(text))
    chosen = np.flatnonzero(np.asarray(jitted(model)(ids[None]))[0].argmax(axis=-1)[1:-1])
    spans = tokenizer.pieces(text).spans[chosen].tolist()
    assert [[each.start, each.end] for each in found] == spans
    assert all(each.text == text[each.start : each.end] for each in found)
    assert all(model.tag("", aggregation=each) == [] for each in AGGREGATIONS)
    with pytest.raises(ConfigError, match="aggregation='best'"):
        model.tag(text, aggregation="best")


def test_answers_are_those_of_transformers(tmp_path):
    """Recorded by make_answers.py: words in pieces, windows, several answers, "no answer", the same text twice."""
    recorded = json.loads((HERE / "answers.json").read_text(encoding="utf-8"))
    model = BertForQuestionAnswering.from_pretrained(HERE / "golden" / "bert-question-answering")
    (tmp_path / "vocab.txt").write_text("".join(f"{word}\n" for word in recorded["vocabulary"]), encoding="utf-8")
    model.tokenizer = WordPiece(tmp_path)
    for case in recorded["cases"]:
        found = model.answer(case["question"], case["context"], **case["options"])
        assert [[each.text, each.start, each.end] for each in found] == [answer[:3] for answer in case["answers"]]
        assert all(each.text == case["context"][each.start : each.end] for each in found)
        scores = [answer[3] for answer in case["answers"]]
        np.testing.assert_allclose([each.score for each in found], scores, atol=5e-5)


def test_an_answer_has_whole_words_at_the_edge_of_a_window(tokenizer):
    """transformers cuts them there. A model with few positions reads a long context, too."""
    model = made(BertForQuestionAnswering, tokenizer)
    context = "cats sat " * 30
    found = model.answer("the", context, top=1000, stride=3, max_tokens=11, no_answer=False)
    assert {word for each in found for word in each.text.split()} == {"cats", "sat"}
    assert model.answer("the", context)


def test_answers_add_up_the_spans_with_their_words(tokenizer):
    """Against every span of every window."""
    model = made(BertForQuestionAnswering, tokenizer)
    question, context = "the cat?", "the cat sat on the mat. a cats sat. The cafe sat on a mat on the cats. sat"
    asked, read = tokenizer.pieces(question).ids, tokenizer.pieces(context)
    starts = np.array([read.spans[read.words == word, 0].min() for word in read.words])
    ends = np.array([read.spans[read.words == word, 1].max() for word in read.words])
    width, stride, scores, nothing = 16 - 3 - len(asked), 4, {}, 1.0
    for first in range(0, len(read.ids) - stride, width - stride):
        ids, types = tokenizer.join(asked, read.ids[first : first + width])
        start, end = (np.asarray(each)[0] for each in jitted(model)(ids[None], None, types[None]))
        kept = [0, *range(len(asked) + 2, len(ids) - 1)]
        start, end = (np.exp(each[kept]) / np.exp(each[kept]).sum() for each in (start, end))
        nothing = min(nothing, start[0] * end[0])
        for i in range(1, len(kept)):
            for j in range(i, min(i + 3, len(kept))):
                text = context[starts[first + i - 1] : ends[first + j - 1]].lower()
                scores[text] = scores.get(text, 0) + start[i] * end[j]
    options = {"max_answer_tokens": 3, "stride": stride, "max_tokens": 16}
    found = model.answer(question, context, top=100, no_answer=True, **options)
    assert {each.text.lower(): each.score for each in found} == pytest.approx({**scores, "": nothing}, abs=1e-5)
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)
    with pytest.raises(DataError, match="holds no token"):
        model.answer(question, " ")
    for wrong in ({"top": 0}, {"max_answer_tokens": 0}, {"stride": -1}):
        with pytest.raises(ConfigError, match=rf"{next(iter(wrong))}=.* must"):
            model.answer(question, context, **wrong)
    with pytest.raises(ConfigError, match="shorten the question"):
        model.answer("the " * 10, context, **options)


@pytest.mark.parametrize("mode", ["mean", "cls", "max"])
def test_sentences_are_pooled_as_the_folder_says(mode, tokenizer, tmp_path):
    """Each text in a batch has the embedding that it has alone, and a saved folder says the same."""
    model = made(SentenceEncoder, tokenizer)
    model.pooling = Pooling(mode, normalize=mode != "max", max_tokens=16)
    texts = ["the cat sat on the mat", "a", "sat " * 40, "", "cats"]
    found = model.encode(texts, batch_size=2)
    for text, embedding in zip(texts, found, strict=True):
        ids, _ = tokenizer.join(tokenizer.encode(text)[:14])
        x = np.asarray(jitted(model, "hidden")(ids[None]))[0]
        pooled = {"mean": x.mean(axis=0), "cls": x[0], "max": x.max(axis=0)}[mode]
        pooled = pooled / np.linalg.norm(pooled) if model.pooling.normalize else pooled
        np.testing.assert_allclose(embedding, pooled, atol=1e-5)
    np.testing.assert_allclose(np.diag(cosine_similarity(found, found)), 1, atol=1e-5)
    with pytest.raises(DataError, match="a list of texts"):
        model.encode("the cat")
    with pytest.raises(ConfigError, match="batch_size=0"):
        model.encode(["the cat"], batch_size=0)
    model.save_pretrained(tmp_path)
    again = SentenceEncoder.from_pretrained(tmp_path)
    assert again.pooling == model.pooling
    np.testing.assert_array_equal(again.encode(texts, batch_size=2), found)


def test_a_pooling_that_is_not_implemented_is_refused(tmp_path):
    (tmp_path / POOLING).parent.mkdir()
    (tmp_path / POOLING).write_text(json.dumps({"pooling_mode_weightedmean_tokens": True}))
    with pytest.raises(ConfigError, match="asks for pooling_mode_weightedmean_tokens"):
        Pooling.from_folder(tmp_path)


def test_predict_prints_or_writes_the_embeddings_of_a_bare_encoder(tokenizer, tmp_path, capsys):
    from scratch_core.cli.predict import predict

    model = made(SentenceEncoder, tokenizer)
    model.save_pretrained(tmp_path)
    predict(str(tmp_path), ["the cat", "sat"])
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [row["text"] for row in rows] == ["the cat", "sat"]
    np.testing.assert_allclose([row["embedding"] for row in rows], model.encode(["the cat", "sat"]), atol=1e-6)
    rows = [{"text": "the cat", "id": 7}, {"text": "caf\u00e9"}]
    (tmp_path / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    predict(str(tmp_path), [str(tmp_path / "in.jsonl"), "--out", str(tmp_path / "out.jsonl")])
    found = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [{name: row[name] for name in row if name != "prediction"} for row in found] == rows
    expected = model.encode([row["text"] for row in rows])
    np.testing.assert_allclose([row["prediction"] for row in found], expected, atol=1e-6)
    with pytest.raises(ConfigError, match="and 2 are given"):
        predict(str(tmp_path), ["one.jsonl", "two.jsonl", "--out", str(tmp_path / "out.jsonl")])
    with pytest.raises(ConfigError, match="no text to embed"):
        predict(str(tmp_path), [])


def test_predict_escapes_what_the_terminal_cannot_show(tokenizer, tmp_path, monkeypatch):
    made(BertForQuestionAnswering, tokenizer).save_pretrained(tmp_path)
    shown = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", shown)
    assert cli.main(["predict", str(tmp_path), "the cat", "\u4eca"]) == 0
    assert shown.buffer.getvalue().endswith(b"  \\u4eca\n")
