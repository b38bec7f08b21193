"""Image files: checked before they are opened, and preprocessed as in the checkpoint's own pipeline.

``preprocessor_config.json`` (transformers) or ``pretrained_cfg`` (timm) give the steps: resize, crop, scale, normalise.
Pillow computes the pixels, because both libraries were made for its resize filters.
"""

import contextlib
import dataclasses
import json
import math
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

import numpy as np

from scratch_core.config import field, read_json, size_of_file, unsupported
from scratch_core.errors import ConfigError, DataError, MissingExtraError

MAX_PIXELS = 100_000_000
"""Pixels of the largest image that is opened. A larger one is refused before anything is decompressed."""

FILTERS = ("nearest", "lanczos", "bilinear", "bicubic", "box", "hamming")  # by Pillow's numbers, 0 to 5
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# The defaults of transformers' image processors, by their name, for fields missing in the file. A bare number as
# "size" means a square where the default is one, else the shorter edge.
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
KINDS: dict[str, dict[str, Any]] = {
    "ViT": {"size": 224, "resample": 2, **HALF},
    "DeiT": {"size": 256, "resample": 3, "do_center_crop": True, **HALF},
    "Bit": {"size": {"shortest_edge": 224}, "resample": 3, "do_center_crop": True, **CLIP},
    "CLIP": {"size": {"shortest_edge": 224}, "resample": 3, "do_center_crop": True, **CLIP},
    "ConvNext": {"size": {"shortest_edge": 384}, "resample": 3, **HALF},
}


def pillow(purpose: str) -> Any:
    """Return the module PIL.Image. Raises MissingExtraError, which says what Pillow is needed for."""
    try:
        from PIL import Image
    except ImportError:
        raise MissingExtraError("images", purpose) from None
    return Image


def read_image(image: Any, num_channels: int = 3) -> Any:
    """Return an image file, or a Pillow image, as a Pillow image of 8 bits: "RGB", or "L" for one channel.

    The image is turned upright as its EXIF tag says. Grey, palette and CMYK images are converted. The high 8 of 16 bits
    are kept, an alpha channel is dropped, and the first frame of an animation is returned. Raises DataError for a
    missing, damaged, truncated or unknown file, if ``num_channels`` is not 1 or 3, and beyond MAX_PIXELS.
    """
    Image = pillow("reading image files")
    from PIL import ImageOps, UnidentifiedImageError

    if num_channels not in (1, 3):
        raise DataError(f"an image file gives 1 or 3 channels, the model wants {num_channels}")
    name = "the image" if isinstance(image, Image.Image) else str(image)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow warns of large images, which are checked below
            if not isinstance(image, Image.Image):
                size_of_file(Path(image), DataError)
            opened = image if isinstance(image, Image.Image) else Image.open(Path(image))
            with contextlib.nullcontext() if opened is image else opened:  # an image of the caller stays open
                columns, rows = opened.size
                if columns * rows > MAX_PIXELS:
                    raise DataError(
                        f"{name} has {columns} x {rows} pixels, more than {MAX_PIXELS}, and is refused unread: "
                        "it may be meant to exhaust the memory. Make it smaller"
                    )
                upright = ImageOps.exif_transpose(opened)
                return _to_8_bits(upright, name).convert("L" if num_channels == 1 else "RGB")
    except DataError:
        raise
    except FileNotFoundError:
        raise DataError(f"there is no file {name}") from None
    except (IsADirectoryError, PermissionError) as error:
        raise DataError(f"{name} cannot be opened: {error.strerror}") from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{name} is refused unread: {error}") from None
    except UnidentifiedImageError:
        raise DataError(f"{name} is no image that Pillow knows, or its beginning is damaged") from None
    except Exception as error:  # decoders raise errors of any type for damaged bytes
        raise DataError(f"{name} is damaged or truncated: {type(error).__name__}: {error}") from error


def _to_8_bits(image: Any, name: str) -> Any:
    """Return an image that Pillow's convert() handles correctly. It would clip values of 16 bits to 255."""
    Image = pillow("reading image files")
    if image.mode == "F":
        raise DataError(f"{name} holds floating-point pixels of unknown range: save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.int64)
        low, high = int(np.min(values)), int(np.max(values))
        if low < 0 or high > 65535:
            raise DataError(f"{name} has pixels from {low} to {high}: save it with 8 or 16 bits")
        return Image.fromarray((values >> 8).astype(np.uint8))
    if image.mode in ("La", "RGBa"):  # colours already multiplied by alpha
        return image.convert({"La": "LA", "RGBa": "RGBA"}[image.mode])
    return image


@dataclasses.dataclass(frozen=True)
class ImageProcessor:
    """``((resize, crop)(pixels) * scale - mean) / std``, as float32 [rows, columns, channels].

    ``resize`` is (rows, columns), or the length of the shorter edge, or None. ``crop`` (rows, columns) is cut from the
    centre, and smaller images are padded with zeros. With mean and std empty, pixels are not normalised.
    """

    resize: tuple[int, int] | int | None
    crop: tuple[int, int] | None = None
    resample: str = "bilinear"
    scale: float = 1 / 255
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    round_crop: bool = False  # half of an odd margin: True rounds it, as torchvision; False floors it, as transformers

    def __post_init__(self):
        if self.resample not in FILTERS:
            raise ConfigError(f"resample={self.resample!r} must be one of {', '.join(FILTERS)}")
        if len(self.mean) != len(self.std) or not all(s > 0 for s in self.std):
            raise ConfigError(f"image mean {self.mean} and std {self.std} must be of one length, and std positive")
        sizes = [n for size in (self.resize, self.crop) for n in ((size,) if isinstance(size, int) else size or ())]
        if not all(0 < n <= 10_000 for n in sizes):
            raise ConfigError(f"resize={self.resize} and crop={self.crop} must be from 1 to 10000 pixels")

    @property
    def size(self) -> tuple[int, int] | None:
        """Rows and columns of every processed image; None if they depend on the image."""
        return self.crop or (self.resize if isinstance(self.resize, tuple) else None)

    def __call__(self, image: Any, channels: int = 3) -> np.ndarray:
        """Return an image file or Pillow image as the model's input. Raises DataError as :func:`read_image`."""
        if self.mean and len(self.mean) != channels:
            raise ConfigError(f"the preprocessing is for {len(self.mean)} channels, the model wants {channels}")
        pixels = np.asarray(self.resized(read_image(image, channels)), np.float32)
        return self.normalised(pixels.reshape(*pixels.shape[:2], channels))

    def normalised(self, pixels: np.ndarray) -> np.ndarray:
        """Return pixels [..., channels] of any number of images, scaled and normalised."""
        pixels = np.asarray(pixels, np.float32) * np.float32(self.scale)
        if self.mean:
            pixels = (pixels - np.array(self.mean, np.float32)) / np.array(self.std, np.float32)
        return pixels

    def picture(self, values: np.ndarray) -> Any:
        """Return one normalised image [rows, columns, channels] as the Pillow image that :meth:`resized` returned."""
        Image = pillow("showing an image")
        if self.mean:
            values = values * np.array(self.std) + np.array(self.mean)
        pixels = np.round(values / self.scale).clip(0, 255).astype(np.uint8)
        return Image.fromarray(pixels[..., 0] if pixels.shape[-1] == 1 else pixels)

    def resized(self, image: Any) -> Any:
        """Return a Pillow image resized and cropped: the model's input in 8 bits. Raises DataError."""
        columns, rows = image.size
        if self.resize is not None:
            rows, columns = _resized_to(self.resize, rows, columns)
            image = image.resize((columns, rows), FILTERS.index(self.resample))
        if self.crop is not None:
            top, left = self._margin(rows, self.crop[0]), self._margin(columns, self.crop[1])
            image = image.crop((left, top, left + self.crop[1], top + self.crop[0]))  # zeros beyond the edge
        return image

    def _margin(self, size: int, crop: int) -> int:
        if self.round_crop:
            return round((size - crop) / 2)
        return (size - crop) // 2 if size >= crop else -math.ceil((crop - size) / 2)

    @classmethod
    def from_folder(cls, folder: str | Path) -> Self | None:
        """Return the preprocessing of a checkpoint folder, None if it describes none. Raises ConfigError."""
        folder = Path(folder)
        if (folder / "preprocessor_config.json").exists():
            return cls.from_hf(read_json(folder / "preprocessor_config.json"))
        timm = read_json(folder / "config.json").get("pretrained_cfg")
        return cls.from_timm(timm) if isinstance(timm, dict) else None

    @classmethod
    def from_hf(cls, fields: Mapping[str, Any]) -> Self:
        """Return the preprocessing of a preprocessor_config.json, in the spellings of all versions.

        Raises ConfigError for an image processor or a step that is not implemented.
        """
        unsupported(fields, do_pad=False)
        name = field(fields, "image_processor_type", str, "") or field(fields, "feature_extractor_type", str, "")
        kind = re.sub("(ImageProcessor|FeatureExtractor)(Fast|Pil)?$", "", name) or "ViT"
        if kind not in KINDS:
            raise ConfigError(
                f"preprocessor_config.json: image_processor_type={name!r} is not implemented (implemented: "
                f"{', '.join(f'{kind}ImageProcessor' for kind in KINDS)})"
            )
        fields = KINDS[kind] | {key: value for key, value in fields.items() if value is not None}
        resample = field(fields, "resample", int)
        if not 0 <= resample < len(FILTERS):
            raise ConfigError(f"preprocessor_config.json: resample={resample} must be a filter of Pillow, 0 to 5")
        resize = crop = None
        if field(fields, "do_resize", bool, True):
            resize = _size(fields, "size", square=kind in ("ViT", "DeiT"))
        if kind == "ConvNext" and isinstance(resize, int):
            if resize < 384:
                resize, crop = int(resize / field(fields, "crop_pct", float, 224 / 256)), (resize, resize)
            else:
                resize = (resize, resize)
        if field(fields, "do_center_crop", bool, False):
            crop = _size({"crop_size": 224} | fields, "crop_size", square=True)
            crop = (crop, crop) if isinstance(crop, int) else crop
        normalize = field(fields, "do_normalize", bool, True)
        return cls(
            resize=resize,
            crop=crop,
            resample=FILTERS[resample],
            scale=field(fields, "rescale_factor", float, 1 / 255) if field(fields, "do_rescale", bool, True) else 1.0,
            mean=_numbers("image_mean", field(fields, "image_mean", list)) if normalize else (),
            std=_numbers("image_std", field(fields, "image_std", list)) if normalize else (),
            round_crop=field(fields, "round_crop", bool, False),
        )

    @classmethod
    def from_timm(cls, fields: Mapping[str, Any]) -> Self:
        """Return the preprocessing of a timm pretrained_cfg: its evaluation transform.

        Raises ConfigError for a crop mode that pads, and for images that are not square.
        """
        squash = field(fields, "crop_mode", str, "center") == "squash"  # resizes both edges: the aspect ratio changes
        if not squash:
            unsupported(fields, crop_mode="center")
        _, rows, columns = field(fields, "input_size", list, [3, 224, 224])
        if rows != columns:
            raise ConfigError(f"pretrained_cfg: input_size {rows} x {columns} must be square")
        edge = math.floor(rows / field(fields, "crop_pct", float, 0.875))
        return cls(
            resize=(edge, edge) if squash else edge,
            crop=(rows, columns),
            resample=field(fields, "interpolation", str, "bicubic"),
            mean=_numbers("mean", field(fields, "mean", list, list(IMAGENET_MEAN))),
            std=_numbers("std", field(fields, "std", list, list(IMAGENET_STD))),
            round_crop=True,
        )

    def save(self, folder: str | Path) -> None:
        """Write preprocessor_config.json, which from_hf and transformers read."""
        kind = "ViT" if self.crop is None else "DeiT" if isinstance(self.resize, tuple) else "Bit"
        fields: dict[str, Any] = {
            "image_processor_type": f"{kind}ImageProcessor",
            "do_resize": self.resize is not None,
            "resample": FILTERS.index(self.resample),
            "do_center_crop": self.crop is not None,
            "do_rescale": self.scale != 1.0,
            "rescale_factor": self.scale,
            "do_normalize": bool(self.mean),
        }
        if self.resize is not None:
            pair = isinstance(self.resize, tuple)
            fields["size"] = (
                {"height": self.resize[0], "width": self.resize[1]} if pair else {"shortest_edge": self.resize}
            )
        if self.crop is not None:
            fields |= {"crop_size": {"height": self.crop[0], "width": self.crop[1]}, "round_crop": self.round_crop}
        if self.mean:
            fields |= {"image_mean": list(self.mean), "image_std": list(self.std)}
        path = Path(folder) / "preprocessor_config.json"
        path.write_text(json.dumps(fields, indent=2) + "\n", encoding="utf-8")


def _resized_to(resize: tuple[int, int] | int, rows: int, columns: int) -> tuple[int, int]:
    if isinstance(resize, tuple):
        return resize
    short = min(rows, columns)
    size = int(resize * rows / short), int(resize * columns / short)
    if size[0] * size[1] > MAX_PIXELS:
        raise DataError(
            f"an image of {columns} x {rows} pixels would be {size[1]} x {size[0]} with its shorter edge at {resize}, "
            f"more than {MAX_PIXELS} pixels: crop it first"
        )
    return size


def _numbers(name: str, values: list[Any]) -> tuple[float, ...]:
    return tuple(field({name: value}, name, float) for value in values)


def _size(fields: Mapping[str, Any], name: str, square: bool) -> tuple[int, int] | int:
    """Return a size: a number, a list, {"height", "width"} or {"shortest_edge"}. Raises ConfigError for others."""
    value = field(fields, name, (int, list, dict))
    if isinstance(value, int):
        return (value, value) if square else value
    if isinstance(value, dict):
        known = {key: number for key, number in value.items() if number is not None}
        if set(known) == {"height", "width"}:
            value = [known["height"], known["width"]]
        elif set(known) == {"shortest_edge"} and isinstance(known["shortest_edge"], int):
            return known["shortest_edge"]
    if not isinstance(value, list) or len(value) != 2 or not all(isinstance(n, int) for n in value):
        raise ConfigError(
            f"preprocessor_config.json: {name}={value!r} must be a number, height and width, or shortest_edge"
        )
    return value[0], value[1]
