"""Rows of data in all formats, the errors for bad rows, and tokens that are kept in files."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from scratch_core.data import ByteTokenizer, Reading, Windows, load_text, open_documents, training_batches
from scratch_core.data.annotated import Question, TaggedText, open_labelled, open_questions, open_tagged
from scratch_core.data.image_sets import load_images
from scratch_core.data.pairs import Pair, Pieces, SpanCorruption, open_pairs
from scratch_core.data.pipelines import TextEvaluation
from scratch_core.data.rows import parse_columns, read_rows
from scratch_core.errors import ConfigError, DataError, MissingExtraError
from scratch_core.vision.images import ImageProcessor

CONLL = "-DOCSTART- -X- O\n\nEU NNP B-ORG\nrejects VBZ O\nGerman JJ B-MISC\n\nPeter NNP B-PER\nBlackburn NNP I-PER\n"
SQUAD = {
    "version": "v2.0",
    "data": [
        {
            "title": "t",
            "paragraphs": [
                {
                    "context": "Bees make honey.",
                    "qas": [
                        {"id": "1", "question": "Who?", "answers": [{"text": "Bees", "answer_start": 0}]},
                        {"id": "2", "question": "What?", "answers": [{"text": "honey", "answer_start": 10}]},
                        {"id": "3", "question": "Why?", "answers": [], "is_impossible": True},
                    ],
                }
            ],
        }
    ],
}


def test_csv_is_read_with_quotes_and_renamed_columns(tmp_path):
    path = tmp_path / "reviews.csv"
    path.write_text('review,stars\n"good, and\nlong",5\nbad,1\n')
    reading = Reading(columns=parse_columns("text=review, label=stars"))
    assert [tuple(each) for each in open_labelled(str(path), reading)] == [("good, and\nlong", "5"), ("bad", "1")]
    with pytest.raises(DataError, match=r"reviews.csv, row 3: must be a row with a \"text\".*KeyError: 'label'"):
        open_labelled(str(path))
    (tmp_path / "pairs.tsv").write_text("source\ttarget\na\tb\nc\td\n")
    assert open_pairs(tmp_path / "pairs.tsv") == [Pair("a", "b"), Pair("c", "d")]
    (tmp_path / "texts.csv").write_text("text\none\ntwo\n")
    assert [d.content for d in open_documents(tmp_path / "texts.csv")] == [b"one", b"two"]
    with pytest.raises(ConfigError, match="'text' must be FIELD=COLUMN"):
        parse_columns("text")


def test_conll_gives_whole_parts_with_their_marks(tmp_path):
    path = tmp_path / "train.conll"
    path.write_text(CONLL)
    assert open_tagged(str(path)) == [
        TaggedText("EU rejects German", [(0, 2, "ORG"), (11, 17, "MISC")]),
        TaggedText("Peter Blackburn", [(0, 15, "PER")]),
    ]
    rows = [{"tokens": ["a", "b", "c"], "ner_tags": ["I-X", "B-X", "O"]}, {"tokens": ["a", "b"], "tags": ["X", "X"]}]
    (tmp_path / "tags.jsonl").write_text("\n".join(map(json.dumps, rows)))
    assert [each.spans for each in open_tagged(str(tmp_path / "tags.jsonl"))] == [
        [(0, 1, "X"), (2, 3, "X")],
        [(0, 1, "X"), (2, 3, "X")],
    ]
    path.write_text(CONLL + "\nalone\n\n")
    with pytest.raises(DataError, match=r"train.conll, row 10: must be a word and its tag in UTF-8, found 'alone'"):
        open_tagged(str(path))
    reading = Reading("skip")
    assert len(open_tagged(str(path), reading)) == 2
    assert reading.skipped == 1


def test_squad_is_read_with_questions_that_have_no_answer(tmp_path):
    path = tmp_path / "train-v2.0.json"
    path.write_text(json.dumps(SQUAD))
    context = "Bees make honey."
    assert open_questions(str(path)) == [
        Question("Who?", context, "Bees", 0),
        Question("What?", context, "honey", 10),
        Question("Why?", context, "", 0),
    ]
    SQUAD["data"][0]["paragraphs"][0]["qas"][1]["answers"][0]["answer_start"] = 9
    path.write_text(json.dumps(SQUAD))
    with pytest.raises(DataError, match=r"question 2 \(2\).*'honey' does not stand at character 9"):
        open_questions(str(path))
    assert len(open_questions(str(path), Reading("skip"))) == 2
    path.write_text("[]")
    with pytest.raises(DataError, match="must be a SQuAD file"):
        open_questions(str(path))


@pytest.mark.parametrize(
    ("name", "content", "where"),
    [
        (
            "a.jsonl",
            b'{"text": "x", "label": "y"}\n{"text": "", "label": "y"}\n',
            "a.jsonl, row 2: .*at least one charac",
        ),
        ("a.jsonl", b'{"text": "x"}\n', "a.jsonl, row 1: .*KeyError: 'label'"),
        ("a.jsonl", b'{"text": "x", "label": null}\n', "a.jsonl, row 1: .*None must be a name or a whole number"),
        ("a.jsonl", b'{"text": "\xff", "label": "y"}\n', "a.jsonl, row 1: .*UnicodeDecodeError"),
        ("a.csv", b"text,label\nx,y\n\xff,y\n", "a.csv, row 3: .*the row is not UTF-8"),
        ("a.csv", b"text,label\nx\n", "a.csv, row 2: .*the row has 1 fields, the header has 2"),
    ],
)
def test_a_bad_row_is_named_or_skipped_and_counted(tmp_path, name, content, where):
    good = b"z,z\nz,z\n" if name.endswith("csv") else b'{"text": "z", "label": "z"}\n' * 2
    (tmp_path / name).write_bytes(content + good)
    with pytest.raises(DataError, match=f"{where}.*--on-error skip"):
        open_labelled(str(tmp_path / name))
    reading = Reading("skip")
    assert ("z", "z") in [tuple(each) for each in open_labelled(str(tmp_path / name), reading)]
    assert reading.skipped == 1
    assert f", 1 bad rows skipped (first: {tmp_path / name}, row " in reading.note


def test_bad_text_is_named_by_its_line_and_left_out_if_so_wished(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\ntw\xffo\nthree\n")
    with pytest.raises(DataError, match=r"a.txt, row 2: must be UTF-8, found b'tw\\xffo"):
        load_text(tmp_path / "a.txt", ByteTokenizer())
    split = load_text(tmp_path / "a.txt", ByteTokenizer(), reading=Reading("skip"))
    assert bytes(np.concatenate([split.train, split.validation])[1:-1].tolist()) == b"one\nthree\n"
    assert "1 bad rows skipped" in split.description
    rows = [{"input_ids": [1, 2]}, {"input_ids": [3, 300]}, {"input_ids": [4]}]
    (tmp_path / "ids.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(DataError, match=r"ids.jsonl, row 2 holds token ids from 3 to 300.*beyond them is 300, at 1\)"):
        load_text(tmp_path / "ids.jsonl", ByteTokenizer())
    split = load_text(tmp_path / "ids.jsonl", ByteTokenizer(), reading=Reading("skip"))
    assert sorted([*split.train, *split.validation]) == [1, 2, 4]


def test_without_the_extra_a_data_set_names_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "datasets", None)
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "dataset_info.json").write_text("{}")
    for source in ("hf:imdb", tmp_path / "a.parquet", tmp_path / "saved"):
        with pytest.raises(MissingExtraError, match=r"scratch-core\[datasets\]"):
            list(read_rows(source, str, "anything"))


def test_data_sets_of_hugging_face_are_read_from_their_own_files(tmp_path):
    datasets = pytest.importorskip("datasets", reason="an extra: run it where scratch-core[datasets] is installed")
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    rows = {"text": ["a", "b", "c"], "label": [1, 0, -1]}
    table = datasets.Dataset.from_dict(rows, features=features)
    table.save_to_disk(str(tmp_path / "saved"))
    table.to_parquet(str(tmp_path / "a.parquet"))
    for source in (tmp_path / "saved", tmp_path / "a.parquet"):
        with pytest.raises(DataError, match=r"row 2: .*the label -1 must be in 0 .. 1"):
            open_labelled(str(source))
        found = open_labelled(str(source), Reading("skip"))
        assert [tuple(each) for each in found] == [("a", "good"), ("b", "bad")]


BY_NAME = """
import datasets, shutil, sys
from pathlib import Path
from scratch_core.data.annotated import open_labelled
from scratch_core.errors import DataError

features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])})
kept = Path(datasets.config.HF_DATASETS_CACHE)
for config, texts in (("small", ["a", "b"]), ("large", ["c", "d", "e"])):
    rows = {"text": texts, "label": [1] + [0] * (len(texts) - 1)}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(f"{config}.parquet")
    datasets.load_dataset("parquet", config, data_files={"train": f"{config}.parquet"})
    (made,) = filter(Path.is_dir, (kept / "parquet").glob("*/*/*"))
    there = kept / "someone___reviews" / config / "0.0.0" / "1"
    shutil.copytree(made, there)
    shutil.rmtree(kept / "parquet")
    (there / "parquet-train.arrow").rename(there / "reviews-train.arrow")
    about = there / "dataset_info.json"
    about.write_text(about.read_text().replace(f'"{made.parts[-3]}"', f'"{config}"'))
for name in ("hf:someone/reviews:small", "hf:someone/reviews:large", "hf:someone/reviews", "hf:someone/none"):
    try:
        print(*(f"{text} {label}" for text, label in open_labelled(name)), sep=", ")
    except DataError as error:
        print(str(error).replace("\\n", " "))
"""


def test_a_data_set_of_the_hub_is_read_by_its_name(tmp_path):
    """From the library's own cache, as after a download: a test has no network."""
    pytest.importorskip("datasets", reason="an extra: run it where scratch-core[datasets] is installed")
    done = subprocess.run(
        [sys.executable, "-c", BY_NAME],
        cwd=tmp_path,
        env=os.environ | {"HF_HOME": str(tmp_path / "home"), "HF_DATASETS_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    small, large, both, none = done.stdout.splitlines()
    assert (small, large) == ("a good, b bad", "c good, d bad, e bad")
    assert both.startswith("hf:someone/reviews cannot be read as a data set (ValueError): There are multiple")
    assert none.startswith("hf:someone/none cannot be read as a data set (")


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A cache folder for this test, and a limit of 100 bytes from which the tokens of a text are cached."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("scratch_core.data.text.KEPT_FROM", 100)
    monkeypatch.setattr("scratch_core.data.sources.PIECE", 64)
    return tmp_path / "cache" / "scratch-core" / "tokens"


def test_a_text_is_tokenised_once_and_again_when_it_or_the_tokenizer_changes(tmp_path, kept, monkeypatch):
    class Counting(ByteTokenizer):
        calls = 0

        def encode(self, text):
            Counting.calls += 1
            return super().encode(text)

    text = "".join(f"line {i}\n" for i in range(100))
    (tmp_path / "a.txt").write_text(text)
    split = load_text(tmp_path / "a.txt", Counting())
    assert isinstance(split.train, np.memmap)
    assert bytes(np.concatenate([split.train, split.validation])[1:-1].tolist()).decode() == text
    calls = Counting.calls
    assert calls > 5  # in pieces
    again = load_text(tmp_path / "a.txt", Counting())
    assert (Counting.calls, again.fingerprint()) == (calls, split.fingerprint())
    assert (again.description, len(list(kept.iterdir()))) == (split.description, 1)

    os.utime(tmp_path / "a.txt", (1, 1))
    load_text(tmp_path / "a.txt", Counting())
    assert Counting.calls == calls  # the content decides
    (tmp_path / "a.txt").write_text(text.replace("7", "8"))
    assert load_text(tmp_path / "a.txt", Counting()).fingerprint() != split.fingerprint()
    assert Counting.calls > calls
    monkeypatch.setattr(Counting, "bos_id", 258)
    monkeypatch.setattr(ByteTokenizer, "bos_id", 258)
    load_text(tmp_path / "a.txt", Counting())
    assert len(list(kept.iterdir())) == 3

    monkeypatch.setattr("scratch_core.data.text.KEPT_FROM", 1 << 30)
    in_memory = load_text(tmp_path / "a.txt", Counting())
    monkeypatch.setattr("scratch_core.data.text.KEPT_FROM", 100)
    assert load_text(tmp_path / "a.txt", Counting()).fingerprint() == in_memory.fingerprint()


def test_damaged_tokens_are_noticed_and_made_again(tmp_path, kept):
    for name in "abcdef":
        (tmp_path / "texts").mkdir(exist_ok=True)
        (tmp_path / "texts" / f"{name}.txt").write_text(f"text {name}\n" * 30)
    split = load_text(tmp_path / "texts", ByteTokenizer())
    whole = np.array(split.train)
    assert len(split.train_starts) == 5
    assert split.train[split.train_starts].tolist() == [256] * 5
    (folder,) = kept.iterdir()
    for name in ("train.npy", "validation.npy", "train_starts.npy"):
        data = bytearray((folder / name).read_bytes())
        data[-3] ^= 1
        (folder / name).write_bytes(data)
        with pytest.warns(UserWarning, match=f"tokenised again: .*{name} is damaged: sha256"):
            again = load_text(tmp_path / "texts", ByteTokenizer())
        np.testing.assert_array_equal(again.train, whole)
    (folder / "about.json").write_text("{")
    with pytest.warns(UserWarning, match="tokenised again"):
        load_text(tmp_path / "texts", ByteTokenizer())


def test_a_cache_folder_that_cannot_be_written_is_named_where_the_text_needs_it(tmp_path, kept, monkeypatch):
    (tmp_path / "a.txt").write_text("0123456789\n" * 30)
    kept.parent.mkdir(parents=True)
    kept.write_text("a file where the folder should be")
    assert not isinstance(load_text(tmp_path / "a.txt", ByteTokenizer()).train, np.memmap)
    monkeypatch.setattr("scratch_core.data.text.NEEDS_FILES", 100)
    with pytest.raises(DataError, match=r"cannot be written to .*set XDG_CACHE_HOME"):
        load_text(tmp_path / "a.txt", ByteTokenizer())


def test_windows_say_which_document_a_token_is_of():
    tokens, starts = np.arange(20), np.array([0, 4, 5, 13])
    windows = Windows(tokens, 8, starts)
    assert windows[0]["document_ids"].tolist() == [1, 1, 1, 1, 2, 3, 3, 3]
    assert windows[1]["document_ids"].tolist() == [3] * 6 + [4] * 2
    held_out = TextEvaluation(tokens, 2, 8, starts)
    assert held_out[0]["document_ids"].tolist() == [windows[i]["document_ids"].tolist() for i in range(2)]
    assert np.flatnonzero(~held_out.counted).tolist() == [3, 4, 12]  # tokens 4, 5 and 13 begin a document
    with pytest.raises(DataError, match="more than 511 documents: give a shorter sequence_length, or train"):
        Windows(np.arange(3000), 1024, np.arange(0, 3000, 2))
    Windows(np.arange(3000), 1022, np.arange(0, 3000, 2))


def test_gaps_are_drawn_anew_in_each_epoch_and_are_the_same_for_a_step():
    tokens = np.random.default_rng(0).integers(0, 256, 160)
    source = SpanCorruption(tokens, 40, range(327, 258, -1), end=None)
    assert isinstance(source.windows, Pieces)

    def batches(seed):
        return training_batches(source.windows, 4, seed=seed, change=source.corrupt)

    epochs = [batches(0)[k]["input_ids"] for k in range(6)]
    for k in (5, 0, 3):
        np.testing.assert_array_equal(batches(0)[k]["input_ids"], epochs[k])
    rows = [{tuple(row) for row in epoch.tolist()} for epoch in epochs]
    assert len(set.union(*rows)) > 12  # 4 windows, 6 epochs: without new gaps 4
    assert not np.array_equal(batches(1)[0]["input_ids"], epochs[0])


def test_a_broken_image_and_a_label_out_of_range_are_named_or_skipped(tmp_path, monkeypatch):
    Image = pytest.importorskip("PIL.Image", reason="an extra: the embedded digits need none")
    processor = ImageProcessor((4, 4), mean=(0.5,), std=(0.5,))
    for name in ("cat", "dog"):
        (tmp_path / "photos" / name).mkdir(parents=True)
        for number in range(6):
            Image.fromarray(np.full((4, 4), 40 * number, np.uint8)).save(tmp_path / "photos" / name / f"{number}.png")
    (tmp_path / "photos" / "dog" / "3.png").write_bytes(b"nonsense")
    with pytest.raises(DataError, match=r"dog/3.png.*--on-error skip"):
        load_images(tmp_path / "photos", processor)
    for limit in (1 << 30, 1):  # kept in memory, and opened late
        monkeypatch.setattr("scratch_core.data.image_sets.IN_MEMORY", limit)
        split = load_images(tmp_path / "photos", processor, Reading("skip"))
        assert (len(split.train), len(split.test)) == (9, 2)
        assert split.train.labels.tolist() == [0] * 5 + [1] * 4
        np.testing.assert_allclose(split.train[8]["images"], 200 / 127.5 - 1, atol=1e-6)
        assert "11 images of 2 classes" in split.description
        assert "1 bad rows skipped (first: " in split.description

    (tmp_path / "mnist").mkdir()
    for part, labels in (("train", [1, 10, 3]), ("t10k", [2])):
        count = len(labels).to_bytes(4, "big")
        pixels = b"\0\0\x08\x03" + count + (2).to_bytes(4, "big") * 2 + bytes(4 * len(labels))
        (tmp_path / "mnist" / f"{part}-images-idx3-ubyte").write_bytes(pixels)
        (tmp_path / "mnist" / f"{part}-labels-idx1-ubyte").write_bytes(b"\0\0\x08\x01" + count + bytes(labels))
    with pytest.raises(DataError, match=r"training image 1: label 10 is beyond the 10 classes, 0 to 9"):
        load_images(tmp_path / "mnist", processor)
    assert load_images(tmp_path / "mnist", processor, Reading("skip")).train.labels.tolist() == [1, 3]
