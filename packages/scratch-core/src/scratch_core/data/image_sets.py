r"""Labelled images from local files: folders of pictures, MNIST, CIFAR-10, and the embedded digits.

Each becomes two sources (training, held out) of {"images": float32 [Y, X, C], "labels": int32}, resized and
normalised by one ImageProcessor, which is saved with the model: what is trained on is what `scratch predict` sees.

:func:`augmented` changes training batches at random: crops and flips (Krizhevsky et al. 2012, section 4.1), and
mixup (Zhang et al. 2018, https://arxiv.org/abs/1710.09412, eq. 1), for a permutation $\pi$ of the batch:

$$ \tilde x_i = \lambda x_i + (1 - \lambda) x_{\pi(i)}, \quad \tilde y_i = \lambda y_i + (1 - \lambda) y_{\pi(i)},
   \quad \lambda \sim \mathrm{Beta}(\alpha, \alpha) $$
"""

import dataclasses
import gzip
import hashlib
import io
import pickle
import struct
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from scratch_core.data.batches import ImageClassificationBatch
from scratch_core.data.digits import load_digits
from scratch_core.data.images import ImageProcessor
from scratch_core.errors import ConfigError, DataError

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


class Pictures:
    """Images in memory, uint8 [N, Y, X] or [N, Y, X, C], brought to the model's size at once, normalised when read."""

    def __init__(self, images: np.ndarray, labels: np.ndarray, processor: ImageProcessor):
        from PIL import Image

        self.labels, self.processor = np.asarray(labels, np.int32), processor
        sized = [np.asarray(processor.resized(Image.fromarray(image))) for image in images]
        stacked = np.stack(sized) if sized else np.zeros((0, 1, 1), np.uint8)
        self.images_NYXC = stacked[..., None] if stacked.ndim == 3 else stacked

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self.labels)

    def __getitem__(self, index: Any) -> ImageClassificationBatch:
        """Return one image and its label, or several where ``index`` is a slice or an array."""
        return {"images": self.processor.normalised(self.images_NYXC[index]), "labels": self.labels[index]}


class PictureFiles:
    """Image files, opened when they are read. Raises DataError, naming the file, for one that cannot be."""

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
    """Training and held-out images, the names of the classes, what it is, and what tells it from other data."""

    train: Pictures | PictureFiles
    test: Pictures | PictureFiles
    labels: tuple[str, ...]
    channels: int
    description: str
    fingerprint: str


def load_images(folder: str | Path | None, processor: ImageProcessor) -> ImageSplit:
    """Return the images of a folder, by what it holds; None: the embedded digits.

    MNIST: ``train-images-idx3-ubyte`` and its three companions, also with ``.gz``. CIFAR-10: ``data_batch_1.bin``
    ... or the Python version ``data_batch_1`` ... Otherwise ``train/CLASS/*`` with ``test``, ``val`` or
    ``validation``; or ``CLASS/*``, of which every fifth image is held out. The processor's mean and std are taken
    for grey images if it has one number, else for colour. Raises DataError for missing, damaged or empty data.
    """
    if folder is None:
        digits = load_digits()
        arrays = (digits.train_images, digits.train_labels, digits.test_images, digits.test_labels)
        bright = [np.round(a * (255 / 16)).astype(np.uint8) if a.ndim == 3 else a for a in arrays]  # 0..16 -> 0..255
        return _in_memory(bright, tuple("0123456789"), "1,797 handwritten digits (UCI)", processor)
    folder = Path(folder)
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    if found := [p for p in folder.glob("train-images*idx3-ubyte*") if p.is_file()]:
        return _in_memory(_mnist(folder, found[0].suffix), tuple("0123456789"), f"MNIST in {folder}", processor)
    if (folder / "data_batch_1.bin").is_file() or (folder / "data_batch_1").is_file():
        return _in_memory(_cifar10(folder), CIFAR10, f"CIFAR-10 in {folder}", processor)
    return _folders(folder, processor)


def _in_memory(arrays: Any, labels: tuple[str, ...], description: str, processor: ImageProcessor) -> ImageSplit:
    train_images, train_labels, test_images, test_labels = arrays
    for images, numbers in ((train_images, train_labels), (test_images, test_labels)):
        if len(images) != len(numbers) or len(numbers) == 0:
            raise DataError(f"{description}: {len(images)} images but {len(numbers)} labels")
        if numbers.max() >= len(labels):
            raise DataError(f"{description}: label {numbers.max()} is beyond the {len(labels)} classes")
    fingerprint = hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()[:16]
    sources = Pictures(train_images, train_labels, processor), Pictures(test_images, test_labels, processor)
    channels = 1 if train_images.ndim == 3 else train_images.shape[3]
    return ImageSplit(*sources, labels, channels, description, fingerprint)


def read_idx(path: Path) -> np.ndarray:
    """Return the array of an IDX file of unsigned bytes, as MNIST comes; ``.gz`` is unpacked.

    Raises DataError for another format, or a size that is not what the header says.
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
            arrays.append(read_idx(found[0]))
    return arrays


class _Plain(pickle.Unpickler):
    """Reads pickles of numbers, strings and numpy arrays; a pickle that asks for anything else is refused."""

    ALLOWED = frozenset({("numpy", "ndarray"), ("numpy", "dtype"), ("_codecs", "encode")})

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in self.ALLOWED:
            return super().find_class(module, name)
        if name == "_reconstruct" and module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return super().find_class("numpy._core.multiarray", name)
        raise DataError(f"the file asks for {module}.{name}, which image data does not need, and is refused")


def _cifar10(folder: Path) -> list[np.ndarray]:
    binary = (folder / "data_batch_1.bin").is_file()
    parts = []
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]:
        path = folder / (f"{name}.bin" if binary else name)
        if not path.is_file():
            if name in ("data_batch_1", "test_batch"):
                raise DataError(f"{folder} has CIFAR-10's first batch, but no {path.name}")
            continue
        rows = path.read_bytes()
        if binary:
            if not rows or len(rows) % 3073:
                raise DataError(f"{path} has {len(rows)} bytes, not a multiple of 3073: one label and 3072 pixels")
            table = np.frombuffer(rows, np.uint8).reshape(-1, 3073)
            pixels, labels = table[:, 1:], table[:, 0]
        else:
            try:
                content = _Plain(io.BytesIO(rows), encoding="bytes").load()
                pixels = np.asarray(content[b"data"], np.uint8).reshape(-1, 3072)
                labels = np.asarray(content[b"labels"], np.uint8)
            except DataError as error:
                raise DataError(f"{path}: {error}") from None
            except Exception as error:  # a damaged pickle raises anything
                raise DataError(f"{path} is no CIFAR-10 batch: {type(error).__name__}: {error}") from error
        parts.append((pixels.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels))
    train, test = parts[:-1], parts[-1]
    return [np.concatenate([p[0] for p in train]), np.concatenate([p[1] for p in train]), *test]


def _folders(folder: Path, processor: ImageProcessor) -> ImageSplit:
    test = next((folder / name for name in ("test", "val", "validation") if (folder / name).is_dir()), None)
    train = folder / "train" if (folder / "train").is_dir() and test is not None else folder
    labels = tuple(sorted(p.name for p in train.iterdir() if p.is_dir() and not p.name.startswith(".")))
    if len(labels) < 2:
        raise DataError(f"{train} must hold a folder of images for each class, two at least; it holds {len(labels)}")
    kept, held_out = [], []
    for number, name in enumerate(labels):
        files = [(path, number) for path in _image_files(train / name)]
        if test is None:
            held_out += files[4::5]
            files = [pair for i, pair in enumerate(files) if i % 5 != 4]
        else:
            held_out += [(path, number) for path in _image_files(test / name)]
        kept += files
    if test is not None and (extra := {p.name for p in test.iterdir() if p.is_dir()} - set(labels)):
        raise DataError(f"{test} has classes that {train} lacks: {', '.join(sorted(extra))}")
    if not kept or not held_out:
        raise DataError(
            f"{folder} holds {len(kept)} images to train on and {len(held_out)} to hold out: both are needed"
        )
    channels = len(processor.mean) or 3
    names = "\n".join(f"{p.relative_to(folder)} {p.stat().st_size}" for p, _ in (*kept, *held_out))
    train_files, test_files = (
        PictureFiles([p for p, _ in part], np.array([n for _, n in part]), processor, channels)
        for part in (kept, held_out)
    )
    description = f"{len(kept) + len(held_out):,} images of {len(labels)} classes in {folder}"
    fingerprint = hashlib.sha256(names.encode()).hexdigest()[:16]
    return ImageSplit(train_files, test_files, labels, channels, description, fingerprint)


def _image_files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise DataError(f"there is no folder {folder}")
    return sorted(p for p in folder.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())


@dataclasses.dataclass(frozen=True)
class Augmentation:
    """What :func:`augmented` does; the zeros do nothing."""

    crop: int = 0  # move by up to this many pixels each way; what comes in repeats the edge
    flip: bool = False  # mirror left and right, half of the images
    mixup: float = 0.0  # alpha

    def __post_init__(self):
        if self.crop < 0 or not 0 <= self.mixup < float("inf"):
            raise ConfigError(f"crop={self.crop} and mixup={self.mixup} must be at least 0")

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
    """Return training batches changed at random; batch k is always changed in the same way for one seed."""
    return batches.random_map(lambda batch, rng: augmentation(batch, rng, num_classes), seed=seed)
