"""The data of encoders: hidden tokens, annotated texts, questions, and batches of texts of different length."""

import json

import numpy as np
import pytest
from scratch_core.data import annotated
from scratch_core.data.annotated import (
    LabelledText,
    Question,
    TaggedText,
    open_labelled,
    open_questions,
    open_tagged,
)
from scratch_core.data.masking import MaskedWindows, laid_end_to_end
from scratch_core.data.pipelines import training_batches
from scratch_core.data.sources import standard_library
from scratch_core.data.wordpiece import WordPiece, padded
from scratch_core.errors import ConfigError, DataError
from scratch_core.tasks.question_answering import Questions, token_span
from scratch_core.tasks.sequence_classification import LabelledTexts
from scratch_core.tasks.texts import Evaluation, split
from scratch_core.tasks.token_classification import TaggedTexts

TEXTS = ["the quick brown fox jumps over the lazy dog", "a lazy dog sleeps", "jumping foxes are quick"] * 8


@pytest.fixture(scope="module")
def tokenizer():
    return WordPiece.train(TEXTS, 60)


def windows(tokenizer, **options):
    return MaskedWindows(laid_end_to_end(TEXTS * 20, tokenizer), 42, tokenizer, **options)


def test_hidden_tokens_have_the_shares_of_the_paper(tokenizer):
    """15 % are predicted; of these 80 % are [MASK], about 10 % random and 10 % kept. [CLS] and [SEP] never."""
    source = windows(tokenizer, copies=3)
    examples = [source[i] for i in range(len(source))]
    labels, ids = (np.stack([each[name] for each in examples]) for name in ("labels", "input_ids"))
    chosen = labels != -100
    assert 0.12 < chosen[:, 1:-1].mean() < 0.16
    assert not np.isin(labels[chosen], [tokenizer.cls_id, tokenizer.sep_id]).any()
    hidden, kept = ids[chosen] == tokenizer.mask_id, ids[chosen] == labels[chosen]
    assert abs(hidden.mean() - 0.8) < 0.03
    assert abs(kept.mean() - 0.1) < 0.03
    assert (ids[:, 0] == tokenizer.cls_id).all()
    assert (ids[:, -1] == tokenizer.sep_id).all()
    original = np.where(chosen, labels, ids)
    flat = laid_end_to_end(TEXTS * 20, tokenizer)
    np.testing.assert_array_equal(original[0, 1:-1], flat[:40])


def test_copies_of_a_window_hide_other_tokens_and_an_index_always_the_same(tokenizer):
    source = windows(tokenizer, copies=2)
    half = len(source) // 2
    assert (source[0]["labels"] != source[half]["labels"]).any()
    np.testing.assert_array_equal(source[3]["input_ids"], source[3]["input_ids"])


def test_whole_words_are_hidden_with_all_their_pieces(tokenizer):
    continues = tokenizer.continues()
    assert continues.any()
    for index in range(20):
        labels, window = windows(tokenizer, whole_words=True)[index]["labels"][1:-1], None
        source = windows(tokenizer, whole_words=True)
        window = source.tokens[index * 40 : (index + 1) * 40].astype(int)
        chosen = labels != -100
        inside = continues[window] & (np.arange(40) > 0)
        assert (chosen[1:] == chosen[:-1])[inside[1:]].all()


def test_annotated_rows_are_read_and_errors_name_the_row(tmp_path):
    path = tmp_path / "rows.jsonl"

    def write(*rows):
        path.write_text("\n".join(json.dumps(row) for row in rows))
        return str(path)

    two = {"text": "ab cd", "label": "x"}
    assert open_labelled(write(two, two))[0] == LabelledText("ab cd", "x")
    tagged = {"text": "ab cd", "spans": [[3, 5, "y"]]}
    assert open_tagged(write(tagged, tagged))[0] == TaggedText("ab cd", [(3, 5, "y")])
    asked = {"question": "q", "context": "ab cd", "answer": "cd"}
    assert open_questions(write(asked, {**asked, "answer": "", "start": 0}))[0] == Question("q", "ab cd", "cd", 3)
    with pytest.raises(DataError, match='row 2: must be a JSON object with a "text" and a "label"'):
        open_labelled(write(two, {"text": "ab"}))
    with pytest.raises(DataError, match=r"row 2.*the span 3 to 9 is not within the text of 5 characters"):
        open_tagged(write(tagged, {**tagged, "spans": [[3, 9, "y"]]}))
    with pytest.raises(DataError, match=r"row 1.*'zz' does not stand at character"):
        open_questions(write({**asked, "answer": "zz"}, asked))
    with pytest.raises(DataError, match="holds 1 rows: at least 2"):
        open_labelled(write(two))


def test_texts_become_examples_with_their_labels(tokenizer):
    texts = [LabelledText("lazy dog", "b"), LabelledText("the " * 30, "a")]
    source = LabelledTexts(texts, tokenizer, 12, ("a", "b"))
    assert [int(source[i]["labels"]) for i in range(2)] == [1, 0]
    assert source[1]["attention_mask"].tolist() == [1] * 12
    first = source[0]["attention_mask"]
    np.testing.assert_array_equal(source[0]["input_ids"][first == 0], tokenizer.pad_id)
    batches = list(Evaluation(source, 3))
    assert batches[0]["labels"].tolist() == [1, 0, -100]


def test_only_the_first_piece_of_a_word_has_its_class(tokenizer):
    text = "the foxes zzq"
    source = TaggedTexts([TaggedText(text, [(4, 9, "animal")])], tokenizer, 16, ("O", "B-animal", "I-animal"))
    labels, pieces = source[0]["labels"], tokenizer.pieces(text)
    assert labels.shape == (16,)
    starts = [not tokenizer.token(i).startswith("##") for i in pieces.ids]
    wanted = [-100 if not start else int(4 <= span[0] < 9) for start, span in zip(starts, pieces.spans, strict=True)]
    assert labels.tolist() == [-100, *wanted, *[-100] * (15 - len(wanted))]


def test_neighbours_of_one_class_are_two_parts(tokenizer):
    spans = [(0, 3, "x"), (4, 13, "x")]
    labels = TaggedTexts([TaggedText("the dog, lazy", spans)], tokenizer, 16, ("O", "B-x", "I-x"))[0]["labels"]
    assert labels[labels >= 0].tolist() == [1, 1, 2, 2]


def test_answers_are_tokens(tokenizer):
    context = "the quick brown fox jumps over the lazy dog"
    asked = [Question("a", context, "fox", 16), Question("a", context, "", 0), Question("a", context, "dog", 40)]
    source = Questions(asked, tokenizer, 40)
    pieces = tokenizer.pieces(context)
    first, last = token_span(pieces.spans, 16, 19)
    shift = 1 + len(tokenizer.encode("a")) + 1
    assert (int(source[0]["start_positions"]), int(source[0]["end_positions"])) == (first + shift, last + shift)
    ids = source[0]["input_ids"][first + shift : last + shift + 1]
    assert tokenizer.decode(ids) == "fox"
    assert (int(source[1]["start_positions"]), int(source[1]["end_positions"])) == (0, 0)
    unwritten = Questions([Question("a", context, " ", 3)], tokenizer, 40)  # of no token
    assert int(unwritten[0]["start_positions"]) == -100


def test_a_long_context_is_read_in_windows_that_overlap(tokenizer, tmp_path):
    """Every answer of a SQuAD file is whole in a window, each window says what is in it, and all have one shape."""
    words = TEXTS[0].split() * 6
    context, starts = " ".join(words), np.cumsum([0, *(len(word) + 1 for word in words)])
    answers = [(words[i], int(starts[i])) for i in range(len(words))] + [(" ".join(words[:30]), 0)]
    asked = [{"question": "a", "answers": [{"text": text, "answer_start": at}]} for text, at in answers]
    asked.append({"question": "a", "answers": []})
    path = tmp_path / "train.json"
    path.write_text(json.dumps({"data": [{"paragraphs": [{"context": context, "qas": asked}]}]}))
    T, pieces, shift = 32, tokenizer.pieces(context), 1 + len(tokenizer.encode("a")) + 1
    width = T - shift - 1
    for question in open_questions(str(path)):
        source = Questions([question], tokenizer, T)
        assert len(source) == 1 + -(-(len(pieces.ids) - width) // (width - width // 2)) > 5
        first, last = token_span(pieces.spans, question.start, question.start + len(question.answer))
        whole, covered = 0, np.zeros(len(pieces.ids), bool)
        for number in range(len(source)):
            item, at = source[number], number * (width - width // 2)
            assert [item[name].shape for name in ("input_ids", "attention_mask", "token_type_ids")] == [(T,)] * 3
            size = int(item["attention_mask"].sum()) - shift - 1
            np.testing.assert_array_equal(item["input_ids"][shift : shift + size], pieces.ids[at : at + size])
            covered[at : at + size] = True
            start, end = int(item["start_positions"]), int(item["end_positions"])
            if at <= first and last < at + size and question.answer:
                whole += 1
                assert tokenizer.decode(item["input_ids"][start : end + 1]) == question.answer
                assert (start, end) == (first - at + shift, last - at + shift)
            else:
                partly = question.answer and first < at + size and last >= at
                assert (start, end) == ((-100, -100) if partly else (0, 0))
        assert covered.all()
        assert (whole > 0) == (0 < len(question.answer) < 20)
    source = Questions(open_questions(str(path)), tokenizer, T)
    batches, again = (training_batches(source, 4, seed=3) for _ in range(2))
    for k in (9, 2):
        for name, value in again[k].items():
            np.testing.assert_array_equal(value, batches[k][name])
    assert batches[9]["input_ids"].shape == (4, T)


def test_data_is_split_by_its_hash():
    train, test = split(list(range(1000)), [str(i) for i in range(1000)])
    assert sorted(train + test) == list(range(1000))
    assert 60 < len(test) < 140
    assert set(split(list(range(500)), [str(i) for i in range(500)])[1]) <= set(test)


def test_a_text_that_does_not_fit_a_batch_is_an_error():
    with pytest.raises(ConfigError, match="a text of 9 tokens does not fit into width=8"):
        padded([(np.ones(9, np.int32), np.zeros(9, np.int32))], 0, 8)


def test_the_standard_librarys_code_gives_every_kind_of_data(monkeypatch):
    """Each answer is at its stated position, and every kind of label occurs. Every tenth file is read."""
    monkeypatch.setattr(annotated, "standard_library", lambda: standard_library()[::10])
    questions = open_questions(None)
    assert len(questions) > 50
    assert all(q.context[q.start : q.start + len(q.answer)] == q.answer for q in questions)
    assert len({q.context[: q.start].count("\n") for q in questions}) > 4
    labelled = open_labelled(None)
    assert len({each.label for each in labelled}) == 12
    tagged = open_tagged(None)
    kinds = {kind for each in tagged[:200] for _, _, kind in each.spans}
    assert kinds == {"identifier", "keyword", "number"}
