"""`scratch train` and `scratch predict` of image classifiers, from arguments to files, with a model of this file."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image
from scratch_core import cli, registry
from scratch_core.errors import CheckpointError, DataError
from scratch_core.train.plots import draw_confusion
from scratch_core.vision import VisionModel, grad_cam, labels_to_hf, read_labels
from scratch_core.vision.images import ImageProcessor
from scratch_core.weights import Rule, transpose


class ToyConfig:
    """The fields that these tests need: image size, channels, classes and their names."""

    image_size = None  # any

    def __init__(self, num_channels=1, num_classes=2, labels=("dark", "bright")):
        self.num_channels, self.num_classes, self.labels = num_channels, num_classes, labels

    @classmethod
    def from_hf(cls, fields):
        labels = read_labels(fields)
        return cls(num_classes=len(labels), labels=labels)

    def to_hf(self):
        return {"model_type": "toy", **labels_to_hf(self)}


class Toy(VisionModel):
    """A linear layer on the mean brightness."""

    Config = ToyConfig
    architectures = ("ToyForImageClassification",)

    def __init__(self, config, *, dtype=jnp.float32, rngs):
        self.config = nnx.static(config)
        self.classifier = nnx.Linear(1, config.num_classes, rngs=rngs)

    @staticmethod
    def rules(config):
        return [Rule("classifier.weight", "classifier.kernel", transpose), Rule("classifier.bias", "classifier.bias")]

    def head(self, images_BYXC):
        return self.classifier(images_BYXC.mean(axis=(1, 2)))

    def __call__(self, images_BYXC):
        return self.head(images_BYXC)

    def saliency(self, images, classes_B):
        return grad_cam(self.head, images, classes_B)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A checkpoint that classifies images as dark or bright, and an image of which one half is bright."""
    monkeypatch.setattr(registry, "find_class", lambda fields: Toy)
    model = Toy(ToyConfig(), rngs=nnx.Rngs(0))
    model.classifier.kernel[...] = jnp.array([[-4.0, 4.0]])
    model.processor = ImageProcessor((8, 8), mean=(0.5,), std=(0.5,))
    model.save_pretrained(tmp_path / "toy")
    pixels = np.zeros((40, 60), np.uint8)
    pixels[:, 15:] = 255
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    return tmp_path / "toy"


def test_classify_gives_names_and_probabilities(folder):
    model = Toy.from_pretrained(folder)
    first, second = model.classify(folder.parent / "photo.png")
    assert (first.index, first.label, second.label) == (1, "bright", "dark")
    assert first.probability == pytest.approx(1 / (1 + np.exp(-4)), abs=0.02)  # three quarters bright: mean 0.5
    assert first.probability + second.probability == pytest.approx(1)
    assert [p.label for p in model.classify(folder.parent / "photo.png", top=1)] == ["bright"]
    with pytest.raises(DataError, match="no file"):
        model.classify("nowhere.png")
    model.processor = None
    with pytest.raises(CheckpointError, match=r"preprocessor_config\.json"):
        model.classify(folder.parent / "photo.png")


def test_predict_prints_the_classes_and_draws_where_it_looked(folder, capsys):
    photo = folder.parent / "photo.png"
    assert cli.main(["predict", str(folder), str(photo), "--top", "1"]) == 0
    out = capsys.readouterr().out
    assert "bright" in out
    assert "dark" not in out
    picture = np.asarray(Image.open(folder.parent / "photo-looked.png")).astype(int)
    assert picture.ndim == 3
    left, right = (
        picture[:, : picture.shape[1] // 8].mean(axis=(0, 1)),
        picture[:, -picture.shape[1] // 8 :].mean(axis=(0, 1)),
    )
    assert right[0] - right[2] > 100  # red over the bright part
    assert left[0] - left[2] < 20
    assert cli.main(["predict", str(folder), str(photo), "--picture", str(folder / "heat.png")]) == 0
    assert (folder / "heat.png").exists()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder.parent / "photo.png").write_bytes(b"nonsense"), "no image that Pillow knows"),
        (lambda folder: (folder.parent / "photo.png").unlink(), "there is no file"),
        (lambda folder: (folder / "preprocessor_config.json").unlink(), "no preprocessor_config.json"),
        (lambda folder: (folder / "preprocessor_config.json").write_text("{"), "cannot be read as JSON"),
    ],
)
def test_what_is_wrong_is_one_message(folder, damage, message, capsys):
    damage(folder)
    assert cli.main(["predict", str(folder), str(folder.parent / "photo.png")]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error


def test_an_architecture_that_nobody_provides_is_one_message(folder, monkeypatch, fails):
    monkeypatch.undo()
    (folder / "config.json").write_text(json.dumps({"architectures": ["Other"]}))
    assert "no installed package provides config.json's architecture (Other)" in fails("predict", str(folder), "x.png")


def test_the_task_says_what_follows_the_folder(folder, fails, capsys):
    assert "An image file. (required)" in fails("predict", str(folder))
    assert "--top 0 must be at least 1" in fails("predict", str(folder), "photo.png", "--top", "0")
    assert "cannot be written" in fails(
        "predict", str(folder), str(folder.parent / "photo.png"), "--picture", "no/x.png"
    )
    with pytest.raises(SystemExit):
        cli.main(["predict", str(folder), "--help"])
    assert "where the model looked" in capsys.readouterr().out


def test_labels_of_a_config():
    assert read_labels({"id2label": {"1": "b", "0": "a"}}) == ("a", "b")
    assert read_labels({"num_labels": 3}) == ("LABEL_0", "LABEL_1", "LABEL_2")
    assert len(read_labels({})) == 2


def test_the_confusion_matrix_shows_hits_in_blue_and_misses_in_red():
    picture = np.asarray(draw_confusion(np.array([[9, 0], [3, 6]]), ("a", "b"), cell=40)).astype(int)
    rows = np.argwhere((picture[..., 2] > picture[..., 0] + 60).any(axis=1))
    assert rows.size
    assert ((picture[..., 0] > picture[..., 2] + 40).any(axis=1)).sum() > 20
    many = draw_confusion(np.eye(1000, dtype=int), tuple(map(str, range(1000))))
    assert max(many.size) < 2000


def test_grad_cam_is_the_papers_equation():
    images = jax.random.normal(jax.random.key(0), (2, 4, 4, 3))
    kernel = jax.random.normal(jax.random.key(1), (3, 5))
    heat = grad_cam(lambda x: x.mean(axis=(1, 2)) @ kernel, images, jnp.array([4, 0]))
    expected = np.maximum(np.einsum("bc,byxc->byx", np.asarray(kernel).T[[4, 0]] / 16, images), 0)
    np.testing.assert_allclose(heat, expected, rtol=1e-4, atol=1e-6)
