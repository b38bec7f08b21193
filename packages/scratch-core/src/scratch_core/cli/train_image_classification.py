"""`scratch train cnn`, `resnet`, `vit`, `swin`: labelled images in, a classifier and its confusion matrix out."""

import dataclasses
import signal
from functools import partial
from pathlib import Path
from typing import Annotated, Any, ClassVar, cast

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx

from scratch_core.cli import runs
from scratch_core.data.image_sets import Augmentation, ImageSplit, augmented, load_images
from scratch_core.data.images import IMAGENET_MEAN, IMAGENET_STD, ImageProcessor
from scratch_core.data.pipelines import ImageEvaluation, training_batches
from scratch_core.errors import ConfigError
from scratch_core.losses import accuracy, image_classification_loss
from scratch_core.registry import ModelSpec
from scratch_core.train import Trainer, adamw, warmup_cosine
from scratch_core.vision import VisionModel


@dataclasses.dataclass(frozen=True, kw_only=True)
class Options(runs.RunOptions):
    """Train an image classifier: AdamW, warm-up, cosine decay."""

    paths: ClassVar[tuple[str, ...]] = ("data", "start")

    steps: int = 1200
    """How many updates in all."""
    batch_size: int = 64
    """Images per update."""
    learning_rate: float = 3e-3
    """Its peak: after the warm-up, before the cosine decay."""
    data: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Image folders (train/CLASS/*.png and test/, or just CLASS/*.png), MNIST's or CIFAR-10's files.
    The default is 1,797 handwritten digits."""
    image_size: int | None = None
    """Rows and columns that images are resized to. The default is the preset's, or 32."""
    start: Annotated[str | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Start from this checkpoint with a new head, instead of from nothing; --preset does not count then.
    Images are prepared as its own preprocessing says."""
    freeze: bool = False
    """With --start: train the new head alone."""
    crop: int = 1
    """Move training images by up to so many pixels, at random."""
    flip: bool = False
    """Mirror half of the training images. Not for digits."""
    mixup: float = 0.0
    """Mix training images in pairs, with shares from Beta(MIXUP, MIXUP)."""
    label_smoothing: float = 0.1
    """Share of a uniform distribution in the training labels."""
    weight_decay: float = 0.05
    """Of kernels, per step, times the learning rate."""

    def check(self) -> None:
        """Raise ConfigError for a number that makes no sense."""
        super().check()
        if self.image_size is not None and not 1 <= self.image_size <= 4096:
            raise ConfigError(f"--image-size {self.image_size} must be from 1 to 4096")
        if not 0 <= self.label_smoothing < 1:
            raise ConfigError(f"--label-smoothing {self.label_smoothing} must be at least 0 and less than 1")
        if not 0 <= self.weight_decay < float("inf"):
            raise ConfigError(f"--weight-decay {self.weight_decay} must be at least 0 and finite")
        if self.freeze and self.start is None:
            raise ConfigError("--freeze needs a checkpoint to --start from: a random trunk is not worth keeping")
        Augmentation(self.crop, self.flip, self.mixup)


def run(spec: ModelSpec, options: Options) -> int:
    """Train, evaluate, draw, save; return 0, or 128 + the signal that ended it early."""
    options.check()
    model, images = build(spec, options)
    folder = runs.open_run(spec, options, images.description, images.fingerprint, model.save_pretrained)
    go_on = runs.command("train", spec.name, "--resume", str(folder))
    print(f"data    {images.description}: {len(images.train):,} to train on, {len(images.test):,} held out", flush=True)
    count = sum(x.size for x in jax.tree.leaves(nnx.state(model, nnx.Param)))
    origin = options.preset if options.start is None else f"from {options.start}"
    print(f"model   {spec.name} {origin}, {count:,} parameters", flush=True)
    trainable = model.freeze_trunk() if options.freeze else nnx.Param
    schedule = warmup_cosine(options.learning_rate, options.steps)
    trainer = Trainer(
        model,
        adamw(schedule, weight_decay=options.weight_decay, decayed=model.decayed),
        partial(image_classification_loss, label_smoothing=options.label_smoothing),
        trainable=trainable,
        accumulate=options.accumulate,
        folder=folder,
        save_every=options.save_every,
        learning_rate=schedule,
    )
    try:
        for line in trainer.restore():
            print(f"warning: {line}", flush=True)
        if trainer.step:
            print(f"resumed at step {trainer.step} of {options.steps}", flush=True)
        print(f"run     {folder}: {options.steps} steps of {options.batch_size} images", flush=True)
        batches = training_batches(images.train, options.batch_size, seed=options.seed)
        change = Augmentation(options.crop, options.flip, options.mixup)
        outcome = trainer.fit(
            augmented(batches, change, len(images.labels), seed=(options.seed + 1) % 2**32), options.steps
        )
        model.save_pretrained(folder)
        if outcome.interrupted:
            print(f"stopped by {outcome.interrupted} after step {outcome.step} of {options.steps}, saved in {folder}")
            print(f"to go on: {go_on}")
            return 128 + signal.Signals[outcome.interrupted].value
        held_out: Any = ImageEvaluation(cast(Any, images.test), min(options.batch_size, len(images.test)))
        share = trainer.evaluate(held_out, {"accuracy": accuracy})["accuracy"]
    finally:
        trainer.close()
    print(
        f"held-out accuracy {100 * share:.2f} % ({round(share * len(images.test))} of {len(images.test)})", flush=True
    )
    counts = confusion(model, held_out, len(images.labels))
    draw_confusion(counts, images.labels).save(folder / "confusion.png")
    print(f"confusion matrix in {folder / 'confusion.png'}")
    example(images, folder / "example.png")
    print(f"saved in {folder}")
    print(f"next: {runs.command('predict', str(folder), str(folder / 'example.png'))}")
    return 0


def build(spec: ModelSpec, options: Options) -> tuple[VisionModel, ImageSplit]:
    """Return the model, with its preprocessing and a head for the classes of the data, and the data.

    Raises ConfigError if image size and model do not fit together.
    """
    rngs = nnx.Rngs(options.seed)
    kind = cast(type[VisionModel], spec.model())
    if options.checkpoint is not None:
        model = kind.from_pretrained(options.checkpoint)
        config, processor = model.config, model.processor
        if options.image_size is not None or processor is None:
            processor = _processor(options.image_size or _image_size(config), config.num_channels)
        images = load_images(options.data, processor)
        if images.channels != config.num_channels:
            raise ConfigError(
                f"{options.checkpoint} reads images of {config.num_channels} channels, the data has {images.channels}"
            )
        model.replace_head(images.labels, rngs=rngs)
        model.processor = processor
        return model, images
    config = spec.config(options.preset)
    if options.image_size is not None and options.image_size != _image_size(config):
        if not any(field.name == "image_size" for field in dataclasses.fields(config)):
            if hasattr(config, "image_size"):
                raise ConfigError(f"{spec.name} reads {config.image_size} x {config.image_size} pixels only")
        else:
            config = dataclasses.replace(config, image_size=options.image_size)
    size = options.image_size or _image_size(config)
    images = load_images(options.data, _processor(size, 1 if _is_grey(options.data) else 3))
    changes = {"num_channels": images.channels, "num_classes": len(images.labels), "labels": images.labels}
    model = kind(dataclasses.replace(config, **changes), dtype=jnp.float32, rngs=rngs)
    model.processor = images.train.processor
    return model, images


def _is_grey(data: str | None) -> bool:
    return data is None or any(Path(data).glob("train-images*idx3-ubyte*"))


def _image_size(config: Any) -> int:
    size = getattr(config, "image_size", 32)
    return size if isinstance(size, int) else size[0]


def _processor(size: int, channels: int) -> ImageProcessor:
    mean, std = ((0.5,), (0.5,)) if channels == 1 else (IMAGENET_MEAN, IMAGENET_STD)
    return ImageProcessor((size, size), resample="bicubic", mean=mean, std=std)


def confusion(model: VisionModel, batches: Any, num_classes: int) -> np.ndarray:
    """Return counts [true, predicted] of the images of each class."""
    counts = np.zeros((num_classes, num_classes), np.int64)
    predict = nnx.jit(lambda model, images: model(images).argmax(axis=-1))
    for batch in batches:
        labels = np.asarray(batch["labels"])
        answers = np.asarray(predict(model, batch["images"]))
        np.add.at(counts, (labels[labels >= 0], answers[labels >= 0]), 1)
    return counts


def draw_confusion(counts: np.ndarray, labels: tuple[str, ...], cell: int = 36) -> Any:
    """Return a picture of a confusion matrix: a row for each true class, a column for each answer.

    Above 40 classes the cells shrink and carry no numbers.
    """
    from PIL import Image, ImageDraw

    number = len(labels)
    cell = cell if number <= 40 else max(1, 1400 // number)
    named = number <= 40
    margin = 12 + (6 * max(len(name[:20]) for name in labels) if named else 0) + 14
    edge = margin + cell * number + 10
    picture = Image.new("RGB", (max(edge, 200), edge), "white")  # at least as wide as the words on top
    draw = ImageDraw.Draw(picture)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    for row in range(number):
        for column in range(number):
            share, x, y = shares[row, column], margin + column * cell, margin + row * cell
            right = row == column
            tint = (60, 130, 200) if right else (215, 70, 60)
            strength = share if right or share == 0 else 0.25 + 0.75 * share
            colour = tuple(round(255 + (t - 255) * strength) for t in tint)
            draw.rectangle((x, y, x + cell - 1, y + cell - 1), fill=colour, outline=(225, 225, 225) if named else None)
            if named and counts[row, column]:
                ink = "white" if strength > 0.6 else "black"
                draw.text((x + cell / 2, y + cell / 2), str(counts[row, column]), fill=ink, anchor="mm")
        if named:
            middle = margin + row * cell + cell / 2
            draw.text((margin - 5, middle), labels[row][:20], fill="black", anchor="rm")
            draw.text((middle, margin - 8), labels[row][: max(1, cell // 6)], fill="black", anchor="mm")
    draw.text((4, 4), "rows: true class, columns: answer", fill="gray")
    return picture


def example(images: ImageSplit, path: Path) -> None:
    """Write the first held-out image, as the model sees it, for `scratch predict` to be tried on."""
    images.test.processor.picture(np.asarray(images.test[0]["images"])).save(path)
