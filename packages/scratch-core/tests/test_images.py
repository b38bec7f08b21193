"""Image files: preprocessing equals the reference's, and any fault in a file gives a clear error."""

import json
import os
import struct
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import load_file
from scratch_core.errors import ConfigError, DataError
from scratch_core.vision.images import ImageProcessor, read_image
from scratch_core.vision.saliency import overlay

PHOTOS = Path(__file__).parent / "photos"
PHOTO = PHOTOS / "china.jpg"
PROCESSORS = json.loads((PHOTOS / "processors.json").read_text())


def recorded(name, folder):
    """The processor of a checkpoint folder with the recorded fields: transformers' file, or timm's."""
    file = "config.json" if "pretrained_cfg" in PROCESSORS[name] else "preprocessor_config.json"
    (folder / file).write_text(json.dumps(PROCESSORS[name]))
    return ImageProcessor.from_folder(folder)


@pytest.mark.parametrize("name", PROCESSORS)
def test_equals_the_reference_on_a_photograph(name, tmp_path):
    processor, expected = recorded(name, tmp_path), load_file(PHOTOS / "expected.safetensors")[name]
    actual = processor(PHOTO)
    assert actual.dtype == np.float32
    assert actual.shape == expected.shape
    levels = 255 * np.array(processor.std or 1)
    assert (np.abs(actual - expected) * levels).max() <= 0.01  # far below one grey level


@pytest.mark.parametrize("name", PROCESSORS)
def test_a_processor_survives_its_file(name, tmp_path):
    processor = recorded(name, tmp_path)
    processor.save(tmp_path)
    again = ImageProcessor.from_folder(tmp_path)
    assert again == processor


@pytest.mark.parametrize(
    "fields", [{"size": 20, "do_center_crop": True, "crop_size": 24}, {"image_processor_type": "BitImageProcessor"}]
)
def test_what_the_model_sees_can_be_looked_at(fields):
    processor = ImageProcessor.from_hf(fields)
    seen = processor.resized(read_image(PHOTO))
    np.testing.assert_array_equal(processor.picture(processor(PHOTO)), seen)
    np.testing.assert_array_equal(ImageProcessor((9, 9)).picture(ImageProcessor((9, 9))(PHOTO, 1)).size, (9, 9))


def test_reads_the_spellings_of_old_files():
    old = ImageProcessor.from_hf(
        {"feature_extractor_type": "ViTFeatureExtractor", "size": 224, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    )
    assert (old.resize, old.crop, old.resample, old.mean) == ((224, 224), None, "bilinear", (0.5, 0.5, 0.5))
    old = ImageProcessor.from_hf({"feature_extractor_type": "ConvNextFeatureExtractor", "size": 224, "resample": 3})
    assert (old.resize, old.crop) == (256, (224, 224))
    old = ImageProcessor.from_hf({"feature_extractor_type": "ConvNextFeatureExtractor", "size": 384})
    assert (old.resize, old.crop) == ((384, 384), None)
    old = ImageProcessor.from_hf({"feature_extractor_type": "CLIPFeatureExtractor", "size": 256, "crop_size": 224})
    assert (old.resize, old.crop) == (256, (224, 224))
    for_grey = {"image_processor_type": "ViTImageProcessorFast", "image_mean": [0.5], "image_std": [0.5]}
    assert ImageProcessor.from_hf(for_grey).mean == (0.5,)


def test_a_checkpoint_without_preprocessing(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    assert ImageProcessor.from_folder(tmp_path) is None
    (tmp_path / "config.json").write_text(json.dumps({"pretrained_cfg": {"crop_mode": "border"}}))
    with pytest.raises(ConfigError, match="crop_mode='border'"):
        ImageProcessor.from_folder(tmp_path)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"size": {"longest_edge": 3}}, "size="),
        ({"size": 0}, "from 1 to 10000"),
        ({"size": 10**9}, "from 1 to 10000"),
        ({"resample": 9}, "resample=9"),
        ({"image_std": [0.5, 0.5, 0.0]}, "positive"),
        ({"image_mean": [0.5]}, "one length"),
        ({"do_pad": True}, "do_pad=True"),
        ({"image_processor_type": "LevitImageProcessor"}, "'LevitImageProcessor' is not implemented"),
        ({"do_resize": "yes"}, "do_resize='yes'"),
    ],
)
def test_a_pipeline_that_cannot_be_built_says_why(fields, message):
    with pytest.raises(ConfigError, match=message):
        ImageProcessor.from_hf({"image_mean": [0.5] * 3, "image_std": [0.5] * 3, **fields})


def colours():
    """A picture with all kinds of colours, 24 x 16."""
    y, x = np.mgrid[:16, :24]
    return np.stack([x * 10, y * 16, 255 - x * 5], axis=-1).astype(np.uint8)


def test_every_kind_of_pixel_becomes_rgb(tmp_path):
    rgb = colours()
    image = Image.fromarray(rgb)
    image.save(tmp_path / "rgb.png")
    np.testing.assert_array_equal(read_image(tmp_path / "rgb.png"), rgb)

    image.convert("L").save(tmp_path / "grey.png")
    grey = np.asarray(image.convert("L"))
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png"), np.repeat(grey[..., None], 3, -1))
    np.testing.assert_array_equal(read_image(tmp_path / "grey.png", 1), grey)

    image.quantize(256).save(tmp_path / "palette.png")
    assert np.abs(np.asarray(read_image(tmp_path / "palette.png")).astype(int) - rgb).max() < 32

    image.quantize(16).save(tmp_path / "transparent.png", transparency=0)
    assert read_image(tmp_path / "transparent.png").mode == "RGB"

    rgba = image.copy()
    rgba.putalpha(128)
    rgba.save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), rgb)

    image.convert("CMYK").save(tmp_path / "cmyk.tif")
    np.testing.assert_array_equal(read_image(tmp_path / "cmyk.tif"), np.asarray(image.convert("CMYK").convert("RGB")))
    image.convert("CMYK").save(tmp_path / "cmyk.jpg", quality=100)
    assert np.abs(np.asarray(read_image(tmp_path / "cmyk.jpg")).astype(int) - rgb).max() < 24

    image.convert("1").save(tmp_path / "bits.png")
    assert set(np.unique(read_image(tmp_path / "bits.png"))) == {0, 255}


@pytest.mark.parametrize("suffix", ["png", "tif"])
def test_sixteen_bits_keep_the_high_eight(tmp_path, suffix):
    values = (np.arange(16 * 24, dtype=np.uint16) * 170).reshape(16, 24)
    Image.fromarray(values).save(tmp_path / f"deep.{suffix}")
    np.testing.assert_array_equal(read_image(tmp_path / f"deep.{suffix}", 1), values >> 8)


def test_a_camera_held_sideways_is_turned_upright(tmp_path):
    image = Image.fromarray(colours())
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees clockwise
    image.save(tmp_path / "sideways.png", exif=exif)
    assert read_image(tmp_path / "sideways.png").size == (16, 24)


def test_an_animation_gives_its_first_frame(tmp_path):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    assert read_image(tmp_path / "moving.gif").getpixel((0, 0)) == (255, 0, 0)


def png_header(width, height):
    """The start of a PNG file that claims a size."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def bomb(width, height):
    """A PNG file of a few kilobytes that unpacks to width x height black pixels."""
    packer = zlib.compressobj(9)
    row = bytes(1 + 3 * width)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    chunk = b"IDAT" + data
    end = b"\0\0\0\0IEND" + struct.pack(">I", zlib.crc32(b"IEND"))
    return png_header(width, height) + struct.pack(">I", len(data)) + chunk + struct.pack(">I", zlib.crc32(chunk)) + end


def broken_files():
    """Bytes that are not an intact image, named after the fault."""
    whole = PHOTO.read_bytes()
    data = struct.pack(">I", 1000) + b"IDAT"
    damaged = bytearray(whole)
    damaged[200:4000] = b"\xff" * 3800
    return {
        "empty": (b"", "no image that Pillow knows"),
        "text": (b"this is no image\n" * 10, "no image that Pillow knows"),
        "truncated": (whole[: len(whole) // 2], "damaged or truncated"),
        "header_only": (whole[:150], "damaged or truncated|no image"),
        "png_without_data": (png_header(100, 100), "damaged or truncated|no image"),
        "no_pixels": (png_header(0, 10), "damaged or truncated|no image"),
        "claims_the_world": (png_header(2_000_000_000, 2_000_000_000) + data, "refused unread"),
        "just_too_large": (png_header(10_001, 10_000) + data, "refused unread"),
        "pickle": (b"\x80\x04\x95\x10", "no image"),
        "zeros": (bytes(5000), "no image that Pillow knows"),
        "damaged": (bytes(damaged), "damaged|no image"),
    }


@pytest.mark.parametrize("name", broken_files())
def test_a_broken_file_is_a_clear_error(name, tmp_path):
    content, message = broken_files()[name]
    path = tmp_path / f"{name}.png"
    path.write_bytes(content)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(DataError, match=message) as found:
            read_image(path)
    assert str(path) in str(found.value)


def test_a_decompression_bomb_is_refused_before_it_is_unpacked(tmp_path):
    path = tmp_path / "bomb.png"
    path.write_bytes(bomb(12_000, 9_000))  # 324 MB of black in 300 kB
    assert path.stat().st_size < 1_000_000
    with pytest.raises(DataError, match="12000 x 9000 pixels"):
        read_image(path)


def test_any_damage_is_at_most_a_data_error(tmp_path):
    """Random bytes overwritten anywhere in the files of five formats: an image or a DataError, nothing else."""
    rng, refused = np.random.default_rng(0), 0
    for suffix in ("png", "jpg", "gif", "tif", "bmp", "webp"):
        Image.fromarray(colours()).save(tmp_path / f"whole.{suffix}")
        whole = (tmp_path / f"whole.{suffix}").read_bytes()
        for trial in range(60):
            damaged = bytearray(whole)
            for _ in range(1 + trial % 8):
                damaged[rng.integers(len(damaged))] = rng.integers(256)
            path = tmp_path / f"damaged.{suffix}"
            path.write_bytes(damaged[: rng.integers(1, len(damaged) + 1)] if trial % 3 == 0 else damaged)
            try:
                assert read_image(path).mode == "RGB"
            except DataError:
                refused += 1
    assert 50 < refused < 360


@pytest.mark.usefixtures("deadline")
def test_other_things_than_files_are_clear_errors(tmp_path):
    with pytest.raises(DataError, match="there is no file"):
        read_image(tmp_path / "none.png")
    with pytest.raises(DataError, match="is a folder, and only regular files are read"):
        read_image(tmp_path)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(DataError, match="is a FIFO, and only regular files are read"):
        read_image(tmp_path / "pipe.png")
    Image.fromarray(np.ones((4, 4), np.float32)).save(tmp_path / "float.tif")
    with pytest.raises(DataError, match="floating-point"):
        read_image(tmp_path / "float.tif")
    with pytest.raises(DataError, match="1 or 3 channels"):
        read_image(PHOTO, 4)


def test_an_image_one_pixel_high_is_not_enlarged(tmp_path):
    Image.new("L", (50_000, 1)).save(tmp_path / "thread.png")
    with pytest.raises(DataError, match="shorter edge at 224"):
        ImageProcessor(224)(tmp_path / "thread.png")
    assert ImageProcessor((8, 8))(tmp_path / "thread.png").shape == (8, 8, 3)


def test_channels_must_be_those_of_the_pipeline():
    with pytest.raises(ConfigError, match="for 3 channels, the model wants 1"):
        ImageProcessor((8, 8), mean=(0.5,) * 3, std=(0.5,) * 3)(PHOTO, channels=1)


def test_the_heat_is_where_it_was_put():
    heat = np.zeros((4, 4))
    heat[0, 3] = 2.0
    picture = np.asarray(overlay(Image.new("RGB", (80, 40), (0, 0, 200)), heat))
    assert picture.shape == (40, 80, 3)
    assert picture[2, 77, 0] > 140  # top right: red
    assert tuple(picture[35, 5]) == (0, 0, 200)  # elsewhere: as it was
    assert np.asarray(overlay(Image.new("L", (5, 5)), np.zeros((2, 2)))).max() == 0
