"""What image models share: their base class, class names, sizes of images, and Grad-CAM."""

from typing import TYPE_CHECKING

from scratch_core.lazy import lazy

if TYPE_CHECKING:
    from scratch_core.vision.labels import check_labels, label, labels_to_hf, read_labels
    from scratch_core.vision.model import Prediction, VisionModel
    from scratch_core.vision.saliency import grad_cam
    from scratch_core.vision.sizes import pair, read_size, size_to_hf

__all__ = [
    "Prediction",
    "VisionModel",
    "check_labels",
    "grad_cam",
    "label",
    "labels_to_hf",
    "pair",
    "read_labels",
    "read_size",
    "size_to_hf",
]

__getattr__ = lazy(
    __name__,
    Prediction="model",
    VisionModel="model",
    check_labels="labels",
    grad_cam="saliency",
    label="labels",
    labels_to_hf="labels",
    pair="sizes",
    read_labels="labels",
    read_size="sizes",
    size_to_hf="sizes",
)
