"""Image classification: trains a classifier on labelled images and draws its confusion matrix."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, ClassVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from scratch_core.data.image_sets import Augmentation, ImageSplit, augmented, load_images
from scratch_core.data.pipelines import ImageEvaluation, training_batches
from scratch_core.errors import CheckpointError, ConfigError
from scratch_core.fine_tuning import freeze, replace_head
from scratch_core.losses import accuracy
from scratch_core.parallel import born_sharded, process_part
from scratch_core.pretrained import PretrainedModel
from scratch_core.registry import ModelSpec
from scratch_core.tasks.options import DataOptions, RunOptions
from scratch_core.tasks.task import Job, Task
from scratch_core.train.plots import draw_confusion
from scratch_core.vision import VisionModel
from scratch_core.vision.images import IMAGENET_MEAN, IMAGENET_STD, ImageProcessor, read_image
from scratch_core.vision.saliency import overlay

ANY_SIZE = 32
"""Rows and columns of training images for a model that reads images of any size."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageOptions(DataOptions):
    """Train an image classifier."""

    paths: ClassVar[tuple[str, ...]] = ("data", "start")

    batch_size: int = 64
    """Images per update."""
    weight_decay: float = 0.05
    """Weight decay of the weight matrices; each step multiplies it by the learning rate."""
    data: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Image folders (train/CLASS/*.png and test/, or just CLASS/*.png), or the files of MNIST or CIFAR-10.
    The default is 1,797 handwritten digits."""
    image_size: int | None = None
    """Rows and columns of the resized images. The default is the size of the preset, or 32."""
    start: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Start from this checkpoint, with a new head, instead of random parameters; --preset is then ignored.
    Images are prepared with the checkpoint's own preprocessing."""
    freeze: bool = False
    """With --start: train only the new head."""
    crop: int = 1
    """Shift training images at random by up to this many pixels."""
    flip: bool = False
    """Mirror half of the training images at random. Do not use it for digits."""
    mixup: float = 0.0
    """Mix training images in pairs, with weights drawn from Beta(MIXUP, MIXUP)."""
    label_smoothing: float = 0.1
    """Weight of a uniform distribution in the training labels."""

    def check(self) -> None:
        """Raise ConfigError for a number that makes no sense."""
        super().check()
        if self.image_size is not None and not 1 <= self.image_size <= 4096:
            raise ConfigError(f"--image-size {self.image_size} must be from 1 to 4096")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"--label-smoothing {self.label_smoothing} must be at least 0 and less than 1")
        if self.freeze and self.start is None:
            raise ConfigError("--freeze needs a checkpoint to --start from: a random trunk is not worth keeping")
        Augmentation(self.crop, self.flip, self.mixup)


@dataclasses.dataclass(frozen=True, kw_only=True)
class PredictImageOptions:
    """Classify an image, and save a picture of where the model looked."""

    image: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="IMAGE")]
    """An image file."""
    top: int = 5
    """Number of classes to print."""
    picture: Annotated[str | None, tyro.conf.arg(metavar="FILE")] = None
    """Where to save the picture; the default is IMAGE-looked.png beside the image."""


class ImageClassificationTask(Task):
    """One class for each image."""

    name: ClassVar[str] = "image_classification"
    unit: ClassVar[str] = "images"
    Options: ClassVar[type[RunOptions]] = ImageOptions
    PredictOptions: ClassVar[type | None] = PredictImageOptions
    fine_tuning: ClassVar[Mapping[str, Any]] = {"steps": 1200, "learning_rate": 3e-4}
    contract: ClassVar[str] = "scratch_core.testing:ImageClassificationContract"

    def prepare(self, spec: ModelSpec, options: ImageOptions) -> "ImageJob":
        """Return the job of a run. Raises ConfigError or DataError if model and images do not fit."""
        model, images, trainable = build(spec, options)
        part, parts = process_part(options.device_mesh())
        batches = training_batches(
            images.train, options.batch_size, seed=options.seed, process_index=part, process_count=parts
        )
        change = Augmentation(options.crop, options.flip, options.mixup)
        held_out: Any = images.test
        return ImageJob(
            model=model,
            batches=augmented(batches, change, len(images.labels), seed=(options.seed + 1 + part) % 2**32),
            held_out=ImageEvaluation(held_out, min(options.batch_size, len(images.test))),
            description=f"{images.description}: {len(images.train):,} to train on, {len(images.test):,} held out",
            fingerprint=images.fingerprint,
            example=images.train[0],
            update=f"{options.batch_size} images",
            trainable=trainable,
            metrics={"accuracy": accuracy},
            images=images,
            label_smoothing=options.label_smoothing,
        )

    def noise(self, config: Any, batch_size: int) -> dict[str, np.ndarray]:
        """Return random images of the size that the model reads, and random labels."""
        rng = np.random.default_rng(0)
        size = _side(config)
        images = rng.normal(size=(batch_size, size, size, config.num_channels)).astype(np.float32)
        return {"images": images, "labels": rng.integers(0, config.num_classes, batch_size).astype(np.int32)}

    def shapes(self, config: Any, batch_size: int, length: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Return the shapes of images of the size that the model reads, and of their labels."""
        size = _side(config)
        images = jax.ShapeDtypeStruct((batch_size, size, size, config.num_channels), jnp.float32)
        return {"images": images, "labels": jax.ShapeDtypeStruct((batch_size,), jnp.int32)}

    def predict(self, folder: Path, model_class: type[PretrainedModel], options: PredictImageOptions) -> None:
        """Print the likeliest classes of an image file, and save the image with a heat map of where the model looked.

        Raises DataError if the file is not a valid image, CheckpointError for a model without preprocessing.
        """
        if options.top < 1:
            raise ConfigError(f"--top {options.top} must be at least 1")
        model = cast(VisionModel, model_class.from_pretrained(folder))
        if model.processor is None:
            raise CheckpointError(
                f"{folder} has no preprocessor_config.json, so it is unknown how the model reads its images: "
                "add the file of the original checkpoint"
            )
        opened = read_image(options.image, model.config.num_channels)
        answers = model.classify(opened, options.top)
        for answer in answers:
            print(f"{100 * answer.probability:6.2f} %  {answer.label}")
        heat_YX = np.asarray(model.saliency(model.prepare(opened), jnp.array([answers[0].index])))[0]
        seen = model.processor.resized(opened)
        scale = max(1, round(512 / max(seen.size)))  # small inputs are shown larger
        seen = seen.resize((seen.width * scale, seen.height * scale), 0 if scale > 1 else None)
        image = Path(options.image)
        target = Path(options.picture) if options.picture else image.with_name(f"{image.stem}-looked.png")
        try:
            overlay(seen, heat_YX).save(target)
        except (OSError, ValueError) as error:
            raise ConfigError(f"the picture cannot be written to {target}: {error}") from error
        print(f"where it looked: {target}")


TASK = ImageClassificationTask()


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class ImageJob(Job):
    """A run on images: ends with the accuracy and the confusion matrix."""

    model: VisionModel
    held_out: ImageEvaluation
    images: ImageSplit
    label_smoothing: float

    def loss(self, model: Any, batch: Any) -> tuple[jax.Array, jax.Array]:
        """Return the (sum, weight) of the cross-entropy with smoothed labels."""
        return model.loss(batch, self.label_smoothing)

    def show_after(self, folder: Path, results: Mapping[str, float]) -> None:
        """Print the accuracy, draw the confusion matrix, and save an example image for `scratch predict`."""
        share, number = results["accuracy"], len(self.images.test)
        print(f"held-out accuracy {100 * share:.2f} % ({round(share * number)} of {number})", flush=True)
        counts = confusion(self.model, self.held_out, len(self.images.labels))
        draw_confusion(counts, self.images.labels).save(folder / "confusion.png")
        print(f"confusion matrix in {folder / 'confusion.png'}")
        first = np.asarray(self.images.test[0]["images"])
        self.images.test.processor.picture(first).save(folder / "example.png")

    def next_command(self, folder: Path) -> tuple[str, ...]:
        """Return the command that classifies the saved image."""
        return "predict", str(folder), str(folder / "example.png")


def build(spec: ModelSpec, options: ImageOptions) -> tuple[VisionModel, ImageSplit, Any]:
    """Return the model, the data, and the nnx filter of the trainable parameters.

    The model has its preprocessing and a head for the classes of the data. Raises ConfigError if the image size does
    not fit the model.
    """
    model_class = cast(type[VisionModel], spec.model(TASK.name))
    if options.checkpoint is not None:
        model = model_class.from_pretrained(options.checkpoint, mesh=options.device_mesh())
        config, processor = model.config, model.processor
        if options.image_size is not None or processor is None:
            processor = _processor(options.image_size or _side(config), config.num_channels)
        images = load_images(options.data, processor, options.reading())
        if images.channels != config.num_channels:
            raise ConfigError(
                f"{options.checkpoint} reads images of {config.num_channels} channels, the data has {images.channels}"
            )
        replace_head(model, images.labels, rngs=nnx.Rngs(options.seed))
        model.processor = processor
        return model, images, freeze(model, "*", keep=("classifier.*",)) if options.freeze else nnx.Param
    config = spec.config(options.preset)
    if options.image_size is not None and config.image_size not in (None, options.image_size):
        if not any(field.name == "image_size" for field in dataclasses.fields(config)):
            raise ConfigError(
                f"--image-size {options.image_size}: {spec.name} reads {config.image_size} x {config.image_size} "
                "pixels only"
            )
        config = dataclasses.replace(config, image_size=options.image_size)
    size = options.image_size or _side(config)
    processor = _processor(size, 1 if _is_grey(options.data) else 3)
    images = load_images(options.data, processor, options.reading())
    changes = {"num_channels": images.channels, "num_classes": len(images.labels), "labels": images.labels}
    config = dataclasses.replace(config, **changes)
    build = lambda: model_class(config, dtype=jnp.float32, rngs=nnx.Rngs(options.seed))  # noqa: E731
    model = born_sharded(build, options.device_mesh())
    model.processor = images.train.processor
    return model, images, nnx.Param


def _is_grey(data: str | None) -> bool:
    return data is None or any(Path(data).glob("train-images*idx3-ubyte*"))


def _side(config: Any) -> int:
    """Return the number of rows of the model's input images; ``config.image_size`` None means any size."""
    size = ANY_SIZE if config.image_size is None else config.image_size
    return size if isinstance(size, int) else size[0]


def _processor(size: int, channels: int) -> ImageProcessor:
    mean, std = ((0.5,), (0.5,)) if channels == 1 else (IMAGENET_MEAN, IMAGENET_STD)
    return ImageProcessor((size, size), resample="bicubic", mean=mean, std=std)


def confusion(model: VisionModel, batches: Any, num_classes: int) -> np.ndarray:
    """Return the confusion matrix: the number of images, [true class, predicted class]."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    predict = nnx.jit(lambda model, images: model(images).argmax(axis=-1))
    for batch in batches:
        labels = np.asarray(batch["labels"])
        answers = np.asarray(predict(model, batch["images"]))
        np.add.at(counts, (labels[labels >= 0], answers[labels >= 0]), 1)
    return counts
