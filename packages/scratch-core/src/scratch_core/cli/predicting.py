"""`scratch predict`: what an image shows, and where the model looked."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np

from scratch_core import registry
from scratch_core.config import read_json
from scratch_core.data.images import overlay, read_image
from scratch_core.errors import CheckpointError, ConfigError
from scratch_core.vision import VisionModel
from scratch_core.weights import resolve


def predict(folder: str, image: str, picture: str | None, top: int) -> None:
    """Print the ``top`` likeliest classes of an image file and save it with the heat of where the model looked.

    Raises DataError for a file that is no sound image, ConfigError for a model that does not classify images.
    """
    if top < 1:
        raise ConfigError(f"--top {top} must be at least 1")
    path = resolve(folder)
    kind = registry.find_class(read_json(path / "config.json"))
    if not issubclass(kind, VisionModel):
        raise ConfigError(f"{folder} holds a {kind.__name__}, which does not classify images")
    model = kind.from_pretrained(path)
    if model.processor is None:
        raise CheckpointError(
            f"{folder} has no preprocessor_config.json: without it nobody knows how the model wants its images"
        )
    opened = read_image(image, model.config.num_channels)
    answers = model.classify(opened, top)
    for answer in answers:
        print(f"{100 * answer.probability:6.2f} %  {answer.label}")
    heat_YX = np.asarray(model.saliency(model.prepare(opened), jnp.array([answers[0].index])))[0]
    seen = model.processor.resized(opened)
    scale = max(1, round(512 / max(seen.size)))  # small inputs are shown larger
    seen = seen.resize((seen.width * scale, seen.height * scale), 0 if scale > 1 else None)
    target = Path(picture) if picture else Path(image).with_name(f"{Path(image).stem}-looked.png")
    try:
        overlay(seen, heat_YX).save(target)
    except (OSError, ValueError) as error:
        raise ConfigError(f"the picture cannot be written to {target}: {error}") from error
    print(f"where it looked: {target}")
