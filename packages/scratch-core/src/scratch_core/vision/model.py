"""The base of the image classifiers: preprocessing, predictions for an image file, and where the model looked."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from scratch_core.errors import CheckpointError
from scratch_core.losses import image_classification_loss
from scratch_core.pretrained import PretrainedModel
from scratch_core.vision.labels import label

if TYPE_CHECKING:
    from PIL import Image

    from scratch_core.vision.images import ImageProcessor


@dataclasses.dataclass(frozen=True)
class Prediction:
    """One of the likeliest classes of an image: its number, its name, its probability."""

    index: int
    label: str
    probability: float


class VisionModel(PretrainedModel):
    """Base of the image classifiers: ``model(images [B, Y, X, C]) -> logits [B, classes]``.

    A subclass has a head ``classifier`` and defines ``saliency``. Its config has ``num_channels``, ``num_classes``,
    ``labels`` (names of the classes, or ()) and ``with_labels(labels)``, the configuration for other classes.
    ``processor`` turns an image file into an array; loading reads it from the checkpoint's preprocessor_config.json,
    and saving writes it.
    """

    task: ClassVar[str] = "image_classification"
    processor: "ImageProcessor | None" = None
    classifier: Any

    def loss(self, batch: Any, label_smoothing: float = 0.0) -> tuple[jax.Array, jax.Array]:
        """Return the (sum, weight) of the cross-entropy; see :func:`scratch_core.losses.image_classification_loss`."""
        return image_classification_loss(self, batch, label_smoothing)

    def read_companions(self, folder: Path) -> None:
        """Read the preprocessing from preprocessor_config.json, if the folder has one. Raises CheckpointError."""
        from scratch_core.vision.images import ImageProcessor

        self.processor = ImageProcessor.from_folder(folder)

    def write_companions(self, folder: Path) -> None:
        """Write preprocessor_config.json, if the model has a processor."""
        if self.processor is not None:
            self.processor.save(folder)

    def saliency(self, images: jax.Array, classes_B: jax.Array) -> jax.Array:
        """Return where the model saw each image's class: heat [B, rows, columns] >= 0."""
        raise NotImplementedError(f"{type(self).__name__} must define saliency(images, classes_B)")

    def classify(self, image: "str | Path | Image.Image", top: int = 5) -> list[Prediction]:
        """Return the ``top`` likeliest classes of an image file, likeliest first.

        Raises DataError for a file that is not a readable image, CheckpointError without a processor.
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
