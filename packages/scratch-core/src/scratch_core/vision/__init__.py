r"""What every image classifier has beside its layers: class names, preprocessing, a new head, and where it looked.

Grad-CAM (Selvaraju et al. 2017, https://arxiv.org/abs/1610.02391, eq. 1 and 2), for the logit $y^c$ of a
class and the last feature map $A$ of $Z$ positions:

$$ \alpha_c = \frac{1}{Z} \sum_{yx} \frac{\partial y^c}{\partial A_{yx}}, \qquad
   L^c_{yx} = \mathrm{relu}\left(\alpha_c \cdot A_{yx}\right) \tag{1} $$

Shapes: B batch, Y rows, X columns, C channels, M classes.
"""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scratch_core.config import field
from scratch_core.errors import CheckpointError, ConfigError
from scratch_core.losses import image_classification_loss
from scratch_core.pretrained import PretrainedModel

if TYPE_CHECKING:
    from PIL import Image

    from scratch_core.data.images import ImageProcessor


MOST_CLASSES = 1_000_000  # of a config.json that names none


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One line of an answer: the class, its name, its probability."""

    index: int
    label: str
    probability: float


class VisionModel(PretrainedModel):
    """Base of the image classifiers: ``model(images [B, Y, X, C]) -> logits [B, classes]``.

    A subclass has ``config.labels`` and ``config.num_classes``, a linear layer ``classifier``, and
    ``saliency(images, classes)``. ``processor`` says how an image file becomes an array; loading reads it from
    the checkpoint's preprocessor_config.json, saving writes it.
    """

    task: ClassVar[str] = "image_classification"
    processor: "ImageProcessor | None" = None
    classifier: Any

    def loss(self, batch: Any, label_smoothing: float = 0.0) -> tuple[jax.Array, jax.Array]:
        """Return the (sum, weight) of the cross-entropy; see :func:`scratch_core.losses.image_classification_loss`."""
        return image_classification_loss(self, batch, label_smoothing)

    def read_companions(self, folder: Path) -> None:
        """Read the preprocessing from preprocessor_config.json, where there is one. Raises CheckpointError."""
        from scratch_core.data.images import ImageProcessor

        self.processor = ImageProcessor.from_folder(folder)

    def write_companions(self, folder: Path) -> None:
        """Write preprocessor_config.json, where the model has a processor."""
        if self.processor is not None:
            self.processor.save(folder)

    def replace_head(self, labels: tuple[str, ...], *, rngs: nnx.Rngs) -> None:
        """Put a new linear layer for these classes in the place of the head; the trunk stays as it is."""
        if not labels:
            raise ConfigError("labels=() must name at least one class")
        old = self.classifier
        self.classifier = nnx.Linear(old.in_features, len(labels), dtype=old.dtype, rngs=rngs)
        self.config = dataclasses.replace(self.config, labels=tuple(labels), num_classes=len(labels))

    def freeze_trunk(self) -> Any:
        """Leave all but the head as it is, and return what is still trained, for ``Trainer(trainable=...)``.

        Batch norms keep to their running statistics in training too, and no longer move them.
        """
        for _, module in nnx.iter_modules(self):
            if hasattr(module, "frozen"):
                setattr(module, "frozen", True)  # noqa: B010, whatever the module's class
        return nnx.All(nnx.Param, nnx.PathContains("classifier"))

    def saliency(self, images: jax.Array, classes_B: jax.Array) -> jax.Array:
        """Return where the model looked for each image's class: heat [B, rows, columns] >= 0."""
        raise NotImplementedError

    def classify(self, image: "str | Path | Image.Image", top: int = 5) -> list[Prediction]:
        """Return the ``top`` likeliest classes of an image file, likeliest first.

        Raises DataError for a file that is no sound image, CheckpointError without a processor.
        """
        probabilities_M = np.asarray(jax.nn.softmax(_logits(self, self.prepare(image)).astype(jnp.float32)))[0]
        order = np.argsort(-probabilities_M, kind="stable")[:top]
        return [Prediction(int(i), label(self.config, int(i)), float(probabilities_M[i])) for i in order]

    def prepare(self, image: "str | Path | Image.Image") -> jax.Array:
        """Return an image file as this model's input [1, Y, X, C]; errors as in :meth:`classify`."""
        if self.processor is None:
            raise CheckpointError(
                "this model has no preprocessing: load it from a folder with a "
                "preprocessor_config.json, or set model.processor = ImageProcessor(...)"
            )
        return jnp.asarray(self.processor(image, channels=self.config.num_channels))[None]


@nnx.jit
def _logits(model: VisionModel, images_BYXC: jax.Array) -> jax.Array:
    return model(images_BYXC)


def grad_cam(head: Callable[[jax.Array], jax.Array], map_BYXC: jax.Array, classes_B: jax.Array) -> jax.Array:
    """Return the heat L_BYX of eq. 1 for the logits ``head(map_BYXC)`` [B, M] of each image's class."""

    def score(map_BYXC: jax.Array) -> jax.Array:
        return jnp.take_along_axis(head(map_BYXC), classes_B[:, None], axis=1).sum().astype(jnp.float32)

    alpha_BC = jax.grad(score)(map_BYXC).astype(jnp.float32).mean(axis=(1, 2))
    return jax.nn.relu(jnp.einsum("BC,BYXC->BYX", alpha_BC, map_BYXC.astype(jnp.float32)))  # eq. 1


def label(config: Any, index: int) -> str:
    """Return the name of a class; ``LABEL_3`` where the checkpoint names none, as Hugging Face does."""
    return config.labels[index] if config.labels else f"LABEL_{index}"


def read_labels(fields: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the class names of a config.json's id2label, in the order of their numbers.

    Without id2label the classes are LABEL_0 and so on, ``num_labels`` of them (2 unless given, as in
    transformers). Raises ConfigError if the numbers are not 0, 1, 2 ... or contradict num_labels.
    """
    names = field(fields, "id2label", dict, None)
    if names is None:
        count = field(fields, "num_labels", int, 2)
        if not 0 < count <= MOST_CLASSES:
            raise ConfigError(f"config.json: num_labels={count} must be 1 to {MOST_CLASSES:,}")
        return tuple(f"LABEL_{i}" for i in range(count))
    count = field(fields, "num_labels", int, len(names))
    by_number = {str(number): str(name) for number, name in names.items()}
    if len(by_number) != count or set(by_number) != {str(i) for i in range(count)}:
        raise ConfigError(f"config.json: id2label must name the classes 0 to {count - 1}, found {len(by_number)} names")
    return tuple(by_number[str(i)] for i in range(count))


def labels_to_hf(config: Any) -> dict[str, Any]:
    """Return ``id2label`` and ``label2id`` of a configuration with ``labels`` and ``num_classes``."""
    names = [label(config, i) for i in range(config.num_classes)]
    return {"id2label": {str(i): name for i, name in enumerate(names)}, "label2id": {n: i for i, n in enumerate(names)}}


def check_labels(config: Any) -> None:
    """Raise ConfigError unless a configuration has a name for each class, or for none."""
    if config.labels and len(config.labels) != config.num_classes:
        raise ConfigError(f"num_classes={config.num_classes} must equal the number of labels, {len(config.labels)}")


def read_size(fields: Mapping[str, Any], name: str, default: int) -> int | tuple[int, int]:
    """Return a size of a config.json: one number, or (rows, columns) where it is a list of two. Raises ConfigError."""
    value = field(fields, name, (int, list), default)
    if isinstance(value, list):
        if len(value) != 2 or not all(isinstance(n, int) and n > 0 for n in value):
            raise ConfigError(f"config.json: {name}={value!r} must be a positive number or two: rows, columns")
        return value[0], value[1]
    if value < 1:
        raise ConfigError(f"config.json: {name}={value} must be at least 1")
    return value


def size_to_hf(size: int | tuple[int, int]) -> int | list[int]:
    """Return a size as config.json writes it."""
    return size if isinstance(size, int) else list(size)


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return a size as (rows, columns); one number means a square."""
    return (size, size) if isinstance(size, int) else size
