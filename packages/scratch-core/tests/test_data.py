"""Data: tokens are decoded to the same text, splits do not overlap, batch k depends only on the seed and k."""

import json
import os

import numpy as np
import pytest
from scratch_core.data import (
    ByteTokenizer,
    CountModels,
    HuggingFaceTokenizer,
    TextEvaluation,
    Windows,
    load_digits,
    load_text,
    load_tokenizer,
    open_documents,
    open_tokens,
    save_tokens,
    standard_library,
    training_batches,
)
from scratch_core.data.text import split_by_file
from scratch_core.errors import ConfigError, DataError

TEXT = "def f(x):\n    return 'naïve café — 日本語 🎉'\n"


def test_bytes_round_trip_and_special_tokens_are_silent():
    tokenizer = ByteTokenizer()
    ids = tokenizer.encode(TEXT)
    assert ids.dtype == np.int32
    assert ids.tolist() == list(TEXT.encode())
    assert tokenizer.decode([256, *ids, 257, 258]) == TEXT
    assert tokenizer.decode([0xE6, 65]) == "\ufffdA"  # an unfinished character
    assert tokenizer.decode([263]) == "\ufffd"  # an id beyond the vocabulary is shown, not left out
    assert tokenizer.count_bytes(np.array([256, *ids, 257])) == len(TEXT.encode())
    assert tokenizer.encode(b"\xff\x00").tolist() == [255, 0]


def test_a_character_split_over_tokens_streams_whole():
    stream = ByteTokenizer().stream()
    pieces = [stream.push(int(i)) for i in ByteTokenizer().encode("a🎉b")]
    assert pieces == ["a", "", "", "", "🎉", "b"]
    assert stream.push(0xF0) == ""
    assert stream.finish() == "\ufffd"


@pytest.fixture
def tokenizer_folder(tmp_path):
    """A real tokenizer.json: byte-level BPE, trained on the text above."""
    tokenizers = pytest.importorskip("tokenizers", reason="an extra: byte tokens need none")
    fast = tokenizers.Tokenizer(tokenizers.models.BPE())
    fast.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=300, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet)
    fast.train_from_iterator([TEXT] * 3, trainer)
    fast.save(str(tmp_path / "tokenizer.json"))
    settings = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    return tmp_path


def test_tokenizer_json(tokenizer_folder, tmp_path_factory):
    tokenizer = load_tokenizer(tokenizer_folder)
    assert isinstance(tokenizer, HuggingFaceTokenizer)
    assert (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id) == (0, 1, None)
    ids = tokenizer.encode(TEXT)
    assert len(ids) < len(TEXT.encode())
    assert tokenizer.decode([0, *ids, 1]) == TEXT
    assert tokenizer.count_bytes(ids) == len(TEXT.encode())
    stream = tokenizer.stream()
    pieces = [stream.push(int(i)) for i in tokenizer.encode("x 日本 y 🎉")]
    assert "".join(pieces) + stream.finish() == "x 日本 y 🎉"
    assert not any("\ufffd" in piece for piece in pieces)
    copy = tmp_path_factory.mktemp("copy")
    tokenizer.save(copy)
    assert load_tokenizer(copy).encode(TEXT).tolist() == ids.tolist()


def word_level(folder, vocab, unknown="[UNK]"):
    """Write a tokenizer.json that knows whole words."""
    model = {"type": "WordLevel", "vocab": vocab, "unk_token": unknown}
    (folder / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], "model": model}))


def test_a_tokenizer_that_lacks_a_token_says_so(tmp_path):
    pytest.importorskip("tokenizers", reason="an extra: byte tokens need none")
    word_level(tmp_path, {"cat": 0, "dog": 1})
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.encode("dog").tolist() == [1]
    with pytest.raises(DataError, match=r"tokenizer.json cannot encode the text: .*\[UNK\].*Add the token"):
        tokenizer.encode("cow")


def test_ids_with_gaps_are_counted_and_too_large_ones_are_refused(tmp_path):
    pytest.importorskip("tokenizers", reason="an extra: byte tokens need none")
    word_level(tmp_path, {"[UNK]": 0, "dog": 70_000})
    tokenizer = load_tokenizer(tmp_path)
    assert tokenizer.vocab_size == 70_001
    (tmp_path / "text").write_text("dog")
    assert load_text(tmp_path / "text", tokenizer).validation.max() == 70_000  # not the 4,464 of 16 bits
    word_level(tmp_path, {"[UNK]": 0, "dog": 2**32 - 1})
    with pytest.raises(DataError, match=r"gives the token 'dog' the id 4294967295, which must be less than"):
        load_tokenizer(tmp_path)


def test_load_tokenizer_picks_by_what_is_there(tmp_path):
    with pytest.raises(DataError, match="holds no tokenizer"):
        load_tokenizer(tmp_path)
    with pytest.raises(DataError, match="is not a folder"):
        load_tokenizer(tmp_path / "nowhere")
    ByteTokenizer().save(tmp_path)
    assert isinstance(load_tokenizer(tmp_path), ByteTokenizer)
    (tmp_path / "scratch_tokenizer.json").write_text('{"type": "words"}')
    with pytest.raises(DataError, match="type='words'"):
        load_tokenizer(tmp_path)
    (tmp_path / "scratch_tokenizer.json").write_text("{")
    with pytest.raises(DataError, match="cannot be read as JSON"):
        load_tokenizer(tmp_path)


def test_damaged_tokenizer_json_is_a_clear_error(tmp_path):
    pytest.importorskip("tokenizers", reason="an extra: byte tokens need none")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json cannot be read as a tokenizer"):
        load_tokenizer(tmp_path)


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text if isinstance(text, bytes) else text.encode())


def files_of(tokens):
    """Cut an array back into its files, checking that each is bos, bytes, eos."""
    files, current = [], None
    for token in tokens.tolist():
        if token == 256:
            assert current is None
            current = []
        elif token == 257:
            files.append(bytes(current).decode())
            current = None
        else:
            current.append(token)
    assert current is None
    return files


def test_a_folder_is_split_by_file(tmp_path):
    files = {f"part/{i}.txt": f"text number {i} " * 20 for i in range(40)}
    write(tmp_path, files | {".hidden": "x", "photo.png": b"\x89PNG\0", "empty.txt": "", "part/__pycache__/a.txt": "x"})
    split = load_text(tmp_path, ByteTokenizer(), validation_fraction=0.1)
    train, held_out = files_of(split.train), files_of(split.validation)
    assert sorted(train + held_out) == sorted(files.values())  # each once, none in both, nothing hidden or binary
    assert 3 <= len(held_out) <= 5
    assert split.train.dtype == np.uint16
    assert "40 files" in split.description
    assert "2 empty or binary left out" in split.description
    again = load_text(tmp_path, ByteTokenizer(), validation_fraction=0.1)
    assert again.fingerprint() == split.fingerprint()
    write(tmp_path, {"part/7.txt": "changed"})
    assert load_text(tmp_path, ByteTokenizer(), validation_fraction=0.1).fingerprint() != split.fingerprint()


@pytest.mark.parametrize("sizes", [{"a": 10, "b": 1000}, {"a": 5, "b": 5}, {f"{i}": 1 + i for i in range(100)}])
def test_something_is_held_out_and_never_all(sizes):
    chosen = split_by_file(sizes, 0.05)
    assert 0 < len(chosen) < len(sizes)
    assert sum(sizes[name] for name in chosen) <= max(0.05 * sum(sizes.values()), min(sizes.values()))
    assert chosen == split_by_file(dict(reversed(sizes.items())), 0.05)


def test_a_single_file_is_split_by_position(tmp_path):
    write(tmp_path, {"book.txt": "0123456789" * 100})
    split = load_text(tmp_path / "book.txt", ByteTokenizer())
    whole = np.concatenate([split.train, split.validation])
    assert files_of(whole) == ["0123456789" * 100]
    assert len(split.validation) == 50
    assert load_text(tmp_path, ByteTokenizer()).fingerprint() == split.fingerprint()  # a folder of one file


def test_bad_text_is_a_clear_error(tmp_path):
    with pytest.raises(DataError, match="no such file or folder"):
        load_text(tmp_path / "nowhere", ByteTokenizer())
    with pytest.raises(DataError, match="holds no text"):
        load_text(tmp_path, ByteTokenizer())
    write(tmp_path, {"empty.txt": "", "empty.jsonl": "", "blank.jsonl": "\n\n", "empty.npy": ""})
    for name, message in (
        ("empty.txt", "is empty"),
        ("empty.jsonl", "is empty"),
        ("blank.jsonl", "holds no text: 0 rows found"),
        ("empty.npy", "cannot be read as tokens"),
    ):
        with pytest.raises(DataError, match=f"{name} {message}"):
            load_text(tmp_path / name, ByteTokenizer())


@pytest.mark.usefixtures("deadline")
def test_a_fifo_or_a_binary_file_as_text_is_an_error_that_says_so(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(DataError, match="pipe is a FIFO, and only regular files are read: name a file, or copy"):
        load_text(tmp_path / "pipe", ByteTokenizer())
    (tmp_path / "binary").write_bytes(b"a\0")
    with pytest.raises(DataError, match=r"holds a NUL byte, at 1 of 2: it is no text. Name a text file, or convert it"):
        load_text(tmp_path / "binary", ByteTokenizer())


def test_a_folder_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    write(tmp_path, {"a.txt": "one", "closed/b.txt": "two"})
    scan = os.scandir

    def scandir(path="."):
        if os.fspath(path).endswith("closed"):  # the tests may run as root, who may read everything
            raise PermissionError(13, "Permission denied", os.fspath(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(DataError, match=r"closed cannot be read: Permission denied. Give yourself permission"):
        load_text(tmp_path, ByteTokenizer())


def test_a_source_is_read_by_what_it_is(tmp_path):
    files = {"b.txt": "two", "a/c.md": "one", "empty": "", "photo.png": b"\x89\0"}
    write(tmp_path / "folder", files)
    rows = '{"text": "first", "id": 1}\n\n{"text": "na\\u00efve"}\n'
    write(tmp_path, {"one.txt": "x", "rows.jsonl": rows})
    np.save(tmp_path / "ids.npy", np.arange(5, dtype=np.int64))

    folder = open_documents(tmp_path / "folder")
    assert [tuple(document) for document in folder.documents] == [("a/c.md", b"one"), ("b.txt", b"two")]
    assert (folder.unit, folder.left_out) == ("files", 2)
    assert [tuple(d) for d in open_documents(tmp_path / "one.txt").documents] == [("one.txt", b"x")]
    rows = open_documents(tmp_path / "rows.jsonl")
    assert [tuple(d) for d in rows.documents] == [("row 1", b"first"), ("row 3", "naïve".encode())]
    assert (rows.unit, rows.left_out) == ("rows", 0)
    (ids,) = open_documents(tmp_path / "ids.npy").documents
    assert isinstance(ids.content, np.memmap)
    assert ids.content.tolist() == [0, 1, 2, 3, 4]
    library = open_documents(None)
    assert len(library.documents) > 400
    assert {"argparse.py", "json/decoder.py"} <= {document.name for document in library.documents}


def test_rows_are_split_by_row(tmp_path):
    texts = [f"text number {i} " * 20 for i in range(40)]
    write(tmp_path, {"rows.jsonl": "".join(json.dumps({"text": text}) + "\n" for text in texts)})
    split = load_text(tmp_path / "rows.jsonl", ByteTokenizer(), validation_fraction=0.1)
    train, held_out = files_of(split.train), files_of(split.validation)
    assert sorted(train + held_out) == sorted(texts)
    assert 3 <= len(held_out) <= 5
    assert f"40 rows, {sum(map(len, texts)):,} bytes, {len(held_out)} rows held out" in split.description


@pytest.mark.parametrize(
    ("row", "found"),
    [
        (b"{", "JSONDecodeError"),
        (b"[1]", "TypeError"),
        (b'"text"', "TypeError"),
        (b'{"words": "a"}', "KeyError: 'text'"),
        (b'{"text": null}', "ValueError: None must be a text"),
        (b'{"text": ""}', "ValueError: '' must be a text"),
        (b'{"text": "\xff"}', "UnicodeDecodeError"),
        (b'{"text": "\\ud800"}', "UnicodeEncodeError"),
        (b"[" * 100_000, "Error"),
    ],
)
def test_a_bad_row_is_named_with_its_file(tmp_path, row, found):
    write(tmp_path, {"rows.jsonl": b'{"text": "good"}\n\n' + row + b'\n{"text": "good"}\n'})
    with pytest.raises(DataError, match=rf'rows\.jsonl, row 3: must be a JSON object with a "text".*{found}'):
        load_text(tmp_path / "rows.jsonl", ByteTokenizer())


def test_token_ids_are_taken_as_they_are(tmp_path):
    tokens = np.arange(200, dtype=np.uint16)
    np.save(tmp_path / "plain.npy", tokens)
    save_tokens(tokens, tmp_path / "checked.npy")
    for name in ("plain.npy", "checked.npy"):
        split = load_text(tmp_path / name, ByteTokenizer())
        assert np.concatenate([split.train, split.validation]).tolist() == tokens.tolist()
        assert len(split.validation) == 10
        assert "200 token ids, the last 10 of 200 tokens held out" in split.description
    damaged = bytearray((tmp_path / "checked.npy").read_bytes())
    damaged[-5] ^= 1
    (tmp_path / "checked.npy").write_bytes(damaged)
    for name, array, message in (
        ("checked.npy", None, "is damaged"),
        ("large.npy", np.array([0, 259]), "large.npy holds token ids from 0 to 259, the tokenizer has 259"),
        ("negative.npy", np.array([-1, 3]), "from -1 to 3"),
        ("empty.npy", np.array([], np.int32), "is empty"),
        ("real.npy", np.array([0.5]), r"integers in one axis, found float64 \[1\]"),
        ("table.npy", np.array([[1]]), r"integers in one axis, found int64 \[1, 1\]"),
        ("objects.npy", np.array([{}]), "cannot be read as tokens"),
    ):
        if array is not None:
            np.save(tmp_path / name, array)
        with pytest.raises(DataError, match=message):
            load_text(tmp_path / name, ByteTokenizer())


def test_standard_library_holds_no_tests_and_no_packages():
    names = [path.as_posix() for path in standard_library()]
    assert len(names) > 400
    assert any(name.endswith("/argparse.py") for name in names)
    assert not any("site-packages" in name or "/test/" in name for name in names)
    assert names == [path.as_posix() for path in standard_library()]


def test_tokens_on_disk_are_mapped_and_checked(tmp_path):
    tokens = np.arange(1000, dtype=np.uint16)
    save_tokens(tokens, tmp_path / "train.npy")
    mapped = open_tokens(tmp_path / "train.npy")
    assert isinstance(mapped, np.memmap)
    np.testing.assert_array_equal(mapped, tokens)
    assert Windows(mapped, 10)[3]["input_ids"].tolist() == list(range(27, 37))
    data = bytearray((tmp_path / "train.npy").read_bytes())
    data[-5] ^= 1
    (tmp_path / "train.npy").write_bytes(data)
    with pytest.raises(DataError, match="is damaged"):
        open_tokens(tmp_path / "train.npy")
    with pytest.raises(DataError, match="cannot be read as tokens"):
        open_tokens(tmp_path / "nowhere.npy")


def test_windows_predict_each_token_once():
    tokens = np.arange(100, 131).astype(np.uint16)
    windows = Windows(tokens, 7)
    targets = np.concatenate([windows[i]["input_ids"][1:] for i in range(len(windows))])
    assert targets.tolist() == tokens[1:].tolist()
    assert len(Windows(tokens[:30], 7)) == 4  # the rest is too short
    with pytest.raises(DataError, match="31 tokens are fewer than one window of sequence_length=32"):
        Windows(tokens, 32)
    with pytest.raises(ConfigError, match="sequence_length=1"):
        Windows(tokens, 1)


@pytest.mark.parametrize(("batch_size", "length"), [(1, 31), (4, 7), (3, 5), (64, 9)])
def test_evaluation_counts_each_target_once(batch_size, length):
    tokens = np.arange(100, 131)
    batches = list(TextEvaluation(tokens, batch_size, length))
    assert len({batch["input_ids"].shape for batch in batches}) == 1
    labels = np.concatenate([batch["labels"][:, 1:].ravel() for batch in batches])
    inputs = np.concatenate([batch["input_ids"][:, :-1].ravel() for batch in batches])
    counted = labels != -100
    assert labels[counted].tolist() == tokens[1:].tolist()
    assert inputs[counted].tolist() == tokens[:-1].tolist()


def test_batches_are_a_function_of_seed_and_number():
    source = Windows(np.arange(61).astype(np.uint16), 7)  # 10 windows
    batches = training_batches(source, 4, seed=1)
    ids = [batches[k]["input_ids"] for k in range(10)]
    again = training_batches(source, 4, seed=1)
    for k in (9, 0, 5):  # in any order, from a new pipeline
        np.testing.assert_array_equal(again[k]["input_ids"], ids[k])
    starts = np.concatenate(ids)[:, 0].reshape(4, 10)  # by epoch
    assert [sorted(epoch) for epoch in starts.tolist()] == [list(range(0, 60, 6))] * 4
    assert len({tuple(epoch) for epoch in starts.tolist()}) == 4  # each in an order of its own
    other = training_batches(source, 4, seed=2)
    assert not all((other[k]["input_ids"] == ids[k]).all() for k in range(10))


def test_processes_share_the_global_batch():
    source = Windows(np.arange(61).astype(np.uint16), 7)
    whole = training_batches(source, 4, seed=1)[3]["input_ids"]
    parts = [training_batches(source, 4, seed=1, process_index=i, process_count=2)[3]["input_ids"] for i in range(2)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)
    with pytest.raises(ConfigError, match="batch_size=3"):
        training_batches(source, 3, seed=0, process_count=2)


def test_digits():
    digits = load_digits()
    assert digits.train_images.shape == (1442, 8, 8)
    assert digits.test_images.shape == (355, 8, 8)
    assert digits.train_images.dtype == np.uint8
    assert int(digits.train_images.max()) == int(digits.test_images.max()) == 16
    assert np.bincount(np.concatenate([digits.train_labels, digits.test_labels])).tolist() == [
        178, 182, 177, 183, 181, 182, 181, 179, 174, 180,
    ]  # fmt: skip
    assert set(digits.test_labels) == set(range(10))
    # The nearest training image has the right label: images and labels belong together.
    train, test = digits.train_images.reshape(-1, 64).astype(int), digits.test_images.reshape(-1, 64).astype(int)
    nearest = ((test[:, None] - train[None]) ** 2).sum(-1).argmin(1)
    assert (digits.train_labels[nearest] == digits.test_labels).mean() > 0.97


def test_count_models_are_distributions_and_know_what_they_saw():
    random = np.random.default_rng(0)
    tokens = random.integers(0, 5, 200)
    counts = CountModels(tokens, 6)
    assert counts.unigram_V.sum() == pytest.approx(1)
    for before in range(6):
        total = sum(2 ** -counts.bigram_bits(np.array([before, after])) for after in range(6))
        assert total == pytest.approx(1)
    by_hand = -sum(np.log2((np.sum(tokens == t) + 1) / (200 + 6)) for t in [3, 5])
    assert counts.unigram_bits(np.array([0, 3, 5])) == pytest.approx(by_hand)
    pairs = sum((tokens[:-1] == 2) & (tokens[1:] == 3))
    p = (pairs + counts.unigram_V[3]) / (np.sum(tokens[:-1] == 2) + 1)
    assert counts.bigram_bits(np.array([2, 3])) == pytest.approx(-np.log2(p))
    alternating = np.tile([0, 1], 100)
    assert (
        CountModels(alternating, 2).bigram_bits(alternating) < 3 < CountModels(alternating, 2).unigram_bits(alternating)
    )
