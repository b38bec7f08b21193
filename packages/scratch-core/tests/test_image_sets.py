"""Labelled images from local files, in the usual formats, and their random changes."""

import gzip
import os
import pickle
import struct
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scratch_core.data import ImageEvaluation, fingerprints, image_sets, load_digits, training_batches
from scratch_core.data.image_sets import Augmentation, PictureFiles, Pictures, augmented, load_images
from scratch_core.errors import ConfigError, DataError
from scratch_core.losses import accuracy
from scratch_core.vision.images import ImageProcessor

GREY = ImageProcessor((8, 8), mean=(0.5,), std=(0.5,))
COLOUR = ImageProcessor((32, 32), mean=(0.0,) * 3, std=(1.0,) * 3)


def write_idx(path, array):
    content = b"\0\0\x08" + bytes([array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def mnist(folder, suffix=""):
    random, arrays = np.random.default_rng(0), {}
    for part, count in (("train", 12), ("t10k", 5)):
        arrays[part] = random.integers(0, 256, (count, 8, 8)).astype(np.uint8), np.arange(count, dtype=np.uint8) % 10
        write_idx(folder / f"{part}-images-idx3-ubyte{suffix}", arrays[part][0])
        write_idx(folder / f"{part}-labels-idx1-ubyte{suffix}", arrays[part][1])
    return arrays


def test_the_digits_are_always_there():
    split = load_images(None, GREY)
    digits = load_digits()
    assert (len(split.train), len(split.test), split.channels) == (1442, 355, 1)
    batch = split.test[0:7]
    assert (batch["images"].shape, batch["images"].dtype) == ((7, 8, 8, 1), np.float32)
    np.testing.assert_allclose(batch["images"][..., 0], digits.test_images[:7] / 8.0 - 1, atol=0.005)
    np.testing.assert_array_equal(batch["labels"], digits.test_labels[:7])


@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_mnist(tmp_path, suffix):
    arrays = mnist(tmp_path, suffix)
    split = load_images(tmp_path, GREY)
    assert split.labels == tuple("0123456789")
    for source, part in ((split.train, "train"), (split.test, "t10k")):
        images, labels = arrays[part]
        np.testing.assert_allclose(source[:]["images"][..., 0], images / 127.5 - 1, atol=1e-6)
        np.testing.assert_array_equal(source[:]["labels"], labels)
    other = load_images(tmp_path, GREY)
    assert other.fingerprint == split.fingerprint != load_images(None, GREY).fingerprint


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda data: data[:50], "its header promises 12 x 8 x 8"),
        (lambda data: b"\0\0\x0d\x03" + data[4:], "no IDX file of unsigned bytes"),
        (lambda data: b"", "no IDX file"),
    ],
)
def test_a_damaged_mnist_file_is_named(tmp_path, damage, message):
    mnist(tmp_path)
    path = tmp_path / "train-images-idx3-ubyte"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(DataError, match=message):
        load_images(tmp_path, GREY)


def test_grey_images_for_a_model_of_colour_images(tmp_path):
    mnist(tmp_path)
    split = load_images(tmp_path, COLOUR)
    assert split.channels == 3
    grey = load_images(tmp_path, ImageProcessor((32, 32))).test[0]["images"]
    assert grey.shape == (32, 32, 1)
    np.testing.assert_allclose(split.test[0]["images"], np.repeat(grey, 3, axis=-1), atol=1e-6)


def test_mnist_without_its_labels(tmp_path):
    mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError, match="no t10k-labels file"):
        load_images(tmp_path, GREY)


def cifar(folder):
    images, labels = (
        np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3)).astype(np.uint8),
        np.arange(6, dtype=np.uint8),
    )
    rows = images.transpose(0, 3, 1, 2).reshape(6, -1)  # channels first, as the files have them
    content = np.concatenate([labels[:, None], rows], axis=1).tobytes()
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (folder / f"{name}.bin").write_bytes(content)
    return images, labels


def test_cifar10(tmp_path):
    images, labels = cifar(tmp_path)
    split = load_images(tmp_path, COLOUR)
    assert (len(split.train), len(split.test), split.channels, split.labels[3]) == (30, 6, 3, "cat")
    np.testing.assert_allclose(split.test[:]["images"], images / 255, atol=1e-6)
    np.testing.assert_array_equal(split.train[:]["labels"], np.tile(labels, 5))


class Hostile:
    def __reduce__(self):
        import os

        return os.system, ("echo this must not run",)


def test_cifar10_in_pickles_is_refused_unread(tmp_path, capfd):
    (tmp_path / "data_batch_1").write_bytes(pickle.dumps(Hostile()))
    with pytest.raises(DataError, match=r"pickles, which can run code and are refused\. Its binary version"):
        load_images(tmp_path, COLOUR)
    assert capfd.readouterr().out == ""


def test_damaged_cifar10(tmp_path):
    cifar(tmp_path)
    path = tmp_path / "test_batch.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="not a multiple of 3073"):
        load_images(tmp_path, COLOUR)
    path.unlink()
    with pytest.raises(DataError, match=r"no test_batch\.bin"):
        load_images(tmp_path, COLOUR)


def pictures(folder, counts):
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i in range(count):
            Image.new("RGB", (10 + i, 20), (i, 0, 100)).save(folder / name / f"{i:02}.png")


@pytest.fixture(params=["in memory", "from files"])
def kept(request, monkeypatch):
    """Whether the images are kept in memory, or are too many for that."""
    monkeypatch.setattr(image_sets, "IN_MEMORY", 2**30 if request.param == "in memory" else 0)
    return request.param


def test_folders_with_a_test_part(tmp_path, kept):
    pictures(tmp_path / "train", {"cat": 3, "dog": 2})
    (tmp_path / "train" / "dog" / "01.png").rename(tmp_path / "train" / "dog" / "01.PNG")
    pictures(tmp_path / "val", {"cat": 1, "dog": 1})
    split = load_images(tmp_path, COLOUR)
    assert isinstance(split.train, Pictures if kept == "in memory" else PictureFiles)
    assert (len(split.train), len(split.test), split.labels) == (5, 2, ("cat", "dog"))
    np.testing.assert_array_equal(split.train[:]["labels"], [0, 0, 0, 1, 1])
    image = split.train[4]["images"]
    assert (image.shape, image.dtype) == ((32, 32, 3), np.float32)
    np.testing.assert_allclose(image[0, 0], np.array([1, 0, 100]) / 255, atol=1e-6)
    np.testing.assert_array_equal(split.train[np.array([0, 4])]["images"][1], image)


def test_folders_without_one_hold_out_every_fifth_of_a_class(tmp_path):
    pictures(tmp_path, {"a": 10, "b/deep/er": 6, ".hidden": 1})
    (tmp_path / "a" / "notes.txt").write_text("no image")
    split = load_images(tmp_path, COLOUR)
    assert (len(split.train), len(split.test), split.labels) == (13, 3, ("a", "b"))
    np.testing.assert_allclose(split.test[:]["images"][:, 0, 0, 0] * 255, [4, 9, 4], atol=1e-4)


def one_class_without_images(folder):
    pictures(folder, {"a": 5, "b": 0})


def another_class_held_out(folder):
    pictures(folder / "train", {"a": 1, "b": 1})
    pictures(folder / "test", {"a": 1, "b": 1, "c": 1})


def a_class_not_held_out(folder):
    pictures(folder / "train", {"a": 1, "b": 1})
    pictures(folder / "test", {"a": 1})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda folder: None, "a folder of images for each class"),
        (lambda folder: pictures(folder / "train", {"a": 9}), "two at least; it holds 1"),
        (lambda folder: pictures(folder, {"a": 1, "b": 1}), "no images to hold out"),
        (one_class_without_images, "the class b has no images"),
        (another_class_held_out, "classes that .*train lacks: c"),
        (a_class_not_held_out, "the class b has no images: .*test"),
    ],
)
def test_folders_that_cannot_be_used_say_why(tmp_path, make, message):
    make(tmp_path)
    with pytest.raises(DataError, match=message):
        load_images(tmp_path, COLOUR)


def test_a_broken_picture_in_a_folder_is_named(tmp_path, kept):
    pictures(tmp_path, {"a": 5, "b": 5})
    (tmp_path / "b" / "00.png").write_bytes(b"nothing")
    with pytest.raises(DataError, match=r"00\.png"):
        load_images(tmp_path, COLOUR).train[:]


def test_images_of_different_sizes_make_no_batch():
    with pytest.raises(ConfigError, match="shorter edge to 32 and crops nothing"):
        load_images(None, ImageProcessor(32))
    assert load_images(None, ImageProcessor(9, crop=(8, 7), mean=(0.5,), std=(0.5,))).train[0]["images"].shape[0] == 8


def batch():
    images = np.arange(6 * 5 * 5, dtype=np.float32).reshape(6, 5, 5, 1)
    return {"images": images, "labels": np.arange(6, dtype=np.int32)}


def test_a_crop_moves_the_image_and_repeats_the_edge():
    before, after = batch()["images"], Augmentation(crop=1)(batch(), np.random.default_rng(0), 6)["images"]
    assert after.shape == before.shape
    padded = np.pad(before, ((0, 0), (1, 1), (1, 1), (0, 0)), mode="edge")
    found = set()
    for i in range(6):
        places = [
            (y, x) for y in range(3) for x in range(3)
            if np.array_equal(after[i], padded[i, y : y + 5, x : x + 5])
        ]  # fmt: skip
        assert places
        found.update(places)
    assert len(found) > 1


def test_a_flip_mirrors_some_images():
    before = batch()["images"]
    after = Augmentation(flip=True)(batch(), np.random.default_rng(0), 6)["images"]
    same = [np.array_equal(a, b) for a, b in zip(after, before)]
    mirrored = [np.array_equal(a, b[:, ::-1]) for a, b in zip(after, before)]
    assert all(s != m for s, m in zip(same, mirrored))
    assert 0 < sum(mirrored) < 6


def test_mixup_mixes_images_and_labels_alike():
    before = batch()
    after = Augmentation(mixup=1.0)(before, np.random.default_rng(3), 6)
    np.testing.assert_allclose(after["labels"].sum(axis=1), 1, rtol=1e-6)
    assert (after["labels"] > 0).sum(axis=1).max() == 2
    mixed = np.einsum("bm,myxc->byxc", after["labels"], before["images"])  # label m is image m
    np.testing.assert_allclose(after["images"], mixed, rtol=1e-5)


def test_augmented_batches_are_a_function_of_seed_and_number():
    source = load_images(None, GREY).train
    change = Augmentation(crop=1, flip=True, mixup=0.2)
    first, again = (augmented(training_batches(source, 8, seed=1), change, 10, seed=2) for _ in range(2))
    np.testing.assert_array_equal(first[5]["images"], again[5]["images"])
    other = augmented(training_batches(source, 8, seed=1), change, 10, seed=3)
    assert not np.array_equal(first[5]["images"], other[5]["images"])


def test_evaluation_reads_every_image_once():
    source: Any = load_images(None, GREY).test
    batches = list(ImageEvaluation(source, 100))
    assert {batch["images"].shape for batch in batches} == {(100, 8, 8, 1)}
    labels = np.concatenate([batch["labels"] for batch in batches])
    np.testing.assert_array_equal(labels[:355], load_digits().test_labels)
    assert (labels[355:] == -100).all()


def test_accuracy_does_not_count_what_fills_a_batch_up():
    source: Any = load_images(None, GREY).test
    right, count = 0.0, 0.0
    for batch in ImageEvaluation(source, 100):
        some, of = accuracy(lambda images: np.eye(10)[np.zeros(len(images), int)], batch)
        right, count = right + float(some), count + float(of)
    assert (right, count) == ((load_digits().test_labels == 0).sum(), 355)


@pytest.mark.parametrize("numbers", [{"crop": -1}, {"mixup": -0.1}, {"mixup": float("inf")}])
def test_augmentations_that_make_no_sense(numbers):
    with pytest.raises(ConfigError):
        Augmentation(**numbers)


def test_the_fingerprint_is_of_the_contents_and_they_are_read_once(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    root = tmp_path / "photos"
    (root / "a").mkdir(parents=True)
    files = [root / "a" / "1.png", root / "a" / "2.png"]
    for file in files:
        file.write_bytes(b"x" * 100)
        os.utime(file, (1_000_000_000, 1_000_000_000))
    first = fingerprints.fingerprint(root, files)
    files[0].write_bytes(b"y" * 100)  # the same size
    assert fingerprints.fingerprint(root, files) != first
    files[0].write_bytes(b"x" * 100)
    assert fingerprints.fingerprint(root, files[::-1]) == first

    reads = []
    read = fingerprints._sha256
    monkeypatch.setattr(fingerprints, "_sha256", lambda path: reads.append(path.name) or read(path))
    monkeypatch.setattr(fingerprints, "KEPT_FROM", 0)
    for expected in (["1.png", "2.png"], ["1.png"], ["1.png"]):  # too new a change is not cached
        reads.clear()
        assert fingerprints.fingerprint(root, files) == first
        assert reads == expected
    for store in (tmp_path / "cache").rglob("*.json"):
        store.write_text("[" * 100_000)
    assert fingerprints.fingerprint(root, files) == first
