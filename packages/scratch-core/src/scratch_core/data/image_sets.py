r"""Labelled images from local files: folders of pictures, MNIST, CIFAR-10, and the embedded digits.

Each gives two sources (training, held out) of {"images": float32 [Y, X, C], "labels": int32}. One ImageProcessor
resizes and normalises them. It is saved with the model, so that `scratch predict` prepares images in the same way.

:func:`augmented` changes training batches at random: crops and flips (Krizhevsky et al. 2012, section 4.1), and
mixup (Zhang et al. 2018, https://arxiv.org/abs/1710.09412, eq. 1), for a permutation $\pi$ of the batch:

$$ \tilde x_i = \lambda x_i + (1 - \lambda) x_{\pi(i)}, \quad \tilde y_i = \lambda y_i + (1 - \lambda) y_{\pi(i)},
   \quad \lambda \sim \mathrm{Beta}(\alpha, \alpha) $$
"""

import dataclasses
import gzip
import hashlib
import math
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scratch_core.data.batches import ImageClassificationBatch
from scratch_core.data.digits import load_digits
from scratch_core.data.fingerprints import fingerprint
from scratch_core.data.rows import Reading
from scratch_core.data.sources import files_below
from scratch_core.errors import ConfigError, DataError
from scratch_core.vision.images import ImageProcessor, pillow, read_image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
IN_MEMORY = 2**30
"""Images of folders are read once, before training, and kept if their resized pixels take at most this many bytes."""
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Pictures:
    """Pillow images, resized once and kept in memory; each is normalised when it is read."""

    def __init__(self, examples: Iterable[tuple[Any, int]], processor: ImageProcessor):
        sized, labels = [], []
        for image, label in examples:
            sized.append(np.asarray(processor.resized(image)))
            labels.append(label)
        self.labels, self.processor = np.array(labels, np.int32), processor
        stacked = np.stack(sized) if sized else np.zeros((0, 1, 1), np.uint8)
        self.images_NYXC = stacked[..., None] if stacked.ndim == 3 else stacked

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, index: Any) -> ImageClassificationBatch:
        """Return one image and its label, or several where ``index`` is a slice or an array."""
        return {"images": self.processor.normalised(self.images_NYXC[index]), "labels": self.labels[index]}


class PictureFiles:
    """Image files, opened when they are read. Raises DataError that names a file which cannot be read."""

    def __init__(self, paths: list[Path], labels: np.ndarray, processor: ImageProcessor, channels: int):
        self.paths, self.labels = paths, np.asarray(labels, np.int32)
        self.processor, self.channels = processor, channels

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.paths)

    def __getitem__(self, index: Any) -> ImageClassificationBatch:
        """Return one image and its label, or several where ``index`` is a slice or an array."""
        if isinstance(index, int | np.integer):
            return {"images": self.processor(self.paths[index], self.channels), "labels": self.labels[index]}
        numbers = np.arange(len(self))[index]
        images = np.stack([self.processor(self.paths[i], self.channels) for i in numbers])
        return {"images": images, "labels": self.labels[numbers]}


class ImageSplit(NamedTuple):
    """Training and held-out images, the class names, the channels, a description, and a fingerprint of the data."""

    train: Pictures | PictureFiles
    test: Pictures | PictureFiles
    labels: tuple[str, ...]
    channels: int
    description: str
    fingerprint: str


def load_images(folder: str | Path | None, processor: ImageProcessor, reading: Reading | None = None) -> ImageSplit:
    """Return the images of a folder in one of three formats; None: the embedded digits.

    MNIST: ``train-images-idx3-ubyte`` and its three companions, also with ``.gz``. CIFAR-10: the binary version,
    ``data_batch_1.bin`` ... Otherwise a folder for each class, with images in it or below it: ``train/CLASS`` beside
    ``test``, ``val`` or ``validation``; or ``CLASS`` alone, of which every fifth image is held out. Images become
    grey if the processor's mean has one number, coloured if it has three.

    Raises DataError for missing, damaged or empty data; it names the file and the row (the number of the image in a
    file of many). ``reading`` may skip broken images and labels that are out of range instead. Raises ConfigError if
    the processor gives images of different sizes.
    """
    reading = reading or Reading()
    if processor.size is None:
        raise ConfigError(
            f"the preprocessing resizes the shorter edge to {processor.resize} and crops nothing, but the images of a "
            "batch must have one size: give an image size"
        )
    if folder is None:
        digits = load_digits()
        arrays = (digits.train_images, digits.train_labels, digits.test_images, digits.test_labels)
        bright = [np.round(a * (255 / 16)).astype(np.uint8) if a.ndim == 3 else a for a in arrays]  # 0..16 -> 0..255
        return _in_memory(bright, tuple("0123456789"), "1,797 handwritten digits (UCI)", processor, reading)
    if str(folder) == "":
        raise DataError("the folder's name is empty: name a folder of images")
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    if found := [p for p in folder.glob("train-images*idx3-ubyte*") if p.is_file()]:
        arrays = _mnist(folder, found[0].suffix)
        return _in_memory(arrays, tuple("0123456789"), f"MNIST in {folder}", processor, reading)
    if (folder / "data_batch_1").is_file():
        raise DataError(
            f"{folder} holds the Python version of CIFAR-10: pickles, which can run code and are refused. "
            "Its binary version (data_batch_1.bin ...) is read"
        )
    if (folder / "data_batch_1.bin").is_file():
        return _in_memory(_cifar10(folder), CIFAR10, f"CIFAR-10 in {folder}", processor, reading)
    return _folders(folder, processor, reading)


def _in_memory(
    arrays: Any, labels: tuple[str, ...], description: str, processor: ImageProcessor, reading: Reading
) -> ImageSplit:
    Image = pillow("training on images")
    parts = {"training": arrays[:2], "test": arrays[2:]}
    for name, (images, numbers) in parts.items():
        if len(images) != len(numbers) or len(numbers) == 0:
            raise DataError(f"{description}: {len(images)} images but {len(numbers)} labels")
        wrong = np.flatnonzero(numbers >= len(labels))
        for row in wrong:
            where = f"{description}, {name} image {row}"
            reading.bad(f"{where}: label {numbers[row]} is beyond the {len(labels)} classes, 0 to {len(labels) - 1}")
        parts[name] = [np.delete(each, wrong, axis=0) for each in (images, numbers)]
    (train_images, train_labels), (test_images, test_labels) = arrays = [*parts.values()]
    arrays = [array for part in arrays for array in part]
    digest = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()[:16]
    channels = len(processor.mean) or (1 if train_images.ndim == 3 else 3)
    sources = [
        Pictures(((read_image(Image.fromarray(each), channels), n) for each, n in zip(images, numbers)), processor)
        for images, numbers in ((train_images, train_labels), (test_images, test_labels))
    ]
    return ImageSplit(*sources, labels, channels, description + reading.note, digest)


def read_idx(path: Path) -> np.ndarray:
    """Return the array of an IDX file of unsigned bytes, the format of MNIST; ``.gz`` is unpacked.

    Raises DataError for another format, or if the size differs from that in the header.
    """
    try:
        data = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}") from error
    if len(data) < 4 or data[:3] != b"\x00\x00\x08" or len(data) < 4 + 4 * data[3]:
        raise DataError(f"{path} is no IDX file of unsigned bytes: it begins with {data[:4].hex()}")
    shape = struct.unpack(f">{data[3]}I", data[4 : 4 + 4 * data[3]])
    values = np.frombuffer(data, np.uint8, offset=4 + 4 * data[3])
    if values.size != int(np.prod(shape, dtype=np.int64)):
        raise DataError(f"{path} holds {values.size} bytes, its header promises {' x '.join(map(str, shape))}")
    return values.reshape(shape)


def _mnist(folder: Path, suffix: str) -> list[np.ndarray]:
    arrays = []
    for part in ("train", "t10k"):
        for kind in ("images", "labels"):
            found = sorted(folder.glob(f"{part}-{kind}*idx*-ubyte{'.gz' if suffix == '.gz' else ''}"))
            if not found:
                raise DataError(f"{folder} has MNIST's training images, but no {part}-{kind} file")
            array, rank = read_idx(found[0]), 3 if kind == "images" else 1
            if array.ndim != rank or not array.size:
                raise DataError(f"{found[0]} has the shape {array.shape}: {kind} must have {rank} axes, none of them 0")
            arrays.append(array)
    return arrays


def _cifar10(folder: Path) -> list[np.ndarray]:
    parts = []
    for name in [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]:
        path = folder / name
        if not path.is_file():
            raise DataError(f"{folder} has CIFAR-10's first batch, but no {name}")
        values = np.frombuffer(path.read_bytes(), np.uint8)
        if not values.size or values.size % 3073:
            raise DataError(f"{path} has {values.size} bytes, not a multiple of 3073: one label and 3072 pixels")
        rows = values.reshape(-1, 3073)
        parts.append((rows[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), rows[:, 0]))
    train, test = parts[:-1], parts[-1]
    return [np.concatenate([p[0] for p in train]), np.concatenate([p[1] for p in train]), *test]


def _folders(folder: Path, processor: ImageProcessor, reading: Reading) -> ImageSplit:
    train, test = folder, None
    if (folder / "train").is_dir():
        train = folder / "train"
        test = next((folder / name for name in ("test", "val", "validation") if (folder / name).is_dir()), None)
    labels = _classes(train)
    if len(labels) < 2:
        raise DataError(f"{train} must hold a folder of images for each class, two at least; it holds {len(labels)}")
    if test is not None and (extra := set(_classes(test)) - set(labels)):
        raise DataError(f"{test} has classes that {train} lacks: {', '.join(sorted(extra))}")
    kept, held_out = [], []
    for number, name in enumerate(labels):
        files = [(path, number) for path in _image_files(train / name)]
        if test is None:
            kept += [pair for i, pair in enumerate(files) if i % 5 != 4]
            held_out += files[4::5]
        else:
            kept += files
            held_out += [(path, number) for path in _image_files(test / name)]
    if not held_out:
        raise DataError(f"{folder} has no images to hold out: put some into test/, or at least five into a class")
    channels = len(processor.mean) or 3
    train_source, test_source = (_opened(part, processor, channels, reading) for part in (kept, held_out))
    if not len(train_source) or not len(test_source):
        raise DataError(f"{folder} has no sound images left to train on or to hold out{reading.note}")
    count = len(train_source) + len(test_source)
    description = f"{count:,} images of {len(labels)} classes in {folder}{reading.note}"
    digest = fingerprint(folder, (path for path, _ in (*kept, *held_out)))
    return ImageSplit(train_source, test_source, labels, channels, description, digest)


def _classes(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")))


def _image_files(folder: Path) -> list[Path]:
    found = sorted(path for path in files_below(folder) if path.suffix.lower() in SUFFIXES)
    if not found:
        raise DataError(f"the class {folder.name} has no images: {folder} holds no {', '.join(SUFFIXES)}")
    return found


def _opened(
    files: list[tuple[Path, int]], processor: ImageProcessor, channels: int, reading: Reading
) -> Pictures | PictureFiles:
    """Return the images of files. To skip broken ones, files that are not kept in memory are all tried first."""
    too_many = len(files) * channels * math.prod(processor.size or ()) > IN_MEMORY

    def sound(files: list[tuple[Path, int]]) -> Iterator[tuple[Any, tuple[Path, int]]]:
        for path, number in files:
            try:
                yield read_image(path, channels), (path, number)
            except DataError as error:
                reading.bad(str(error), error)

    if not too_many:
        return Pictures(((image, number) for image, (_, number) in sound(files)), processor)
    if reading.on_error == "skip":
        files = [file for _, file in sound(files)]
    return PictureFiles([path for path, _ in files], np.array([number for _, number in files]), processor, channels)


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """The random changes of :func:`augmented`. The defaults change nothing."""

    crop: int = 0  # shift by up to this many pixels each way; the border is filled by repeating the edge
    flip: bool = False  # mirror left and right, half of the images
    mixup: float = 0.0  # alpha

    def __post_init__(self):
        if self.crop < 0 or not 0 <= self.mixup < float("inf"):
            raise ConfigError(f"crop={self.crop} must be at least 0, mixup={self.mixup} at least 0 and finite")

    def __call__(
        self, batch: ImageClassificationBatch, rng: np.random.Generator, num_classes: int
    ) -> ImageClassificationBatch:
        """Return a changed copy of a batch; with mixup its labels are probabilities [B, classes]."""
        images_BYXC, labels = np.asarray(batch["images"]), np.asarray(batch["labels"])
        B, Y, X, _ = images_BYXC.shape
        if self.crop:
            n = self.crop
            padded = np.pad(images_BYXC, ((0, 0), (n, n), (n, n), (0, 0)), mode="edge")
            moves = rng.integers(0, 2 * n + 1, (B, 2))
            images_BYXC = np.stack([padded[i, y : y + Y, x : x + X] for i, (y, x) in enumerate(moves.tolist())])
        if self.flip:
            mirrored = rng.random(B) < 0.5
            images_BYXC = np.where(mirrored[:, None, None, None], images_BYXC[:, :, ::-1], images_BYXC)
        if self.mixup:
            share, order = np.float32(rng.beta(self.mixup, self.mixup)), rng.permutation(B)
            labels = np.eye(num_classes, dtype=np.float32)[labels]
            images_BYXC = share * images_BYXC + (1 - share) * images_BYXC[order]
            labels = share * labels + (1 - share) * labels[order]
        return {"images": np.ascontiguousarray(images_BYXC), "labels": labels}


def augmented(batches: Any, augmentation: Augmentation, num_classes: int, *, seed: int) -> Any:
    """Return training batches changed at random. For one seed, batch k always gets the same change."""
    return batches.random_map(lambda batch, rng: augmentation(batch, rng, num_classes), seed=seed)
