"""Checkpoint folders: transforms and their inverses, strictness, and every kind of damage."""

import dataclasses
import json
import os
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from safetensors.numpy import load_file, save_file
from scratch_core import CheckpointError, ConfigError, PretrainedModel, Rule, load, save, to_hf, weights
from scratch_core.config import field
from scratch_core.weights import Copy, Transform, conv, conv1d, same, split_bias, split_in, split_out, transpose


@dataclasses.dataclass(frozen=True)
class ToyConfig:
    width: int = 6
    vocab_size: int = 8
    tied: bool = False

    @classmethod
    def from_hf(cls, fields):
        return cls(fields["width"], fields["vocab_size"], fields["tied"])

    def to_hf(self):
        return {"model_type": "toy", **dataclasses.asdict(self)}


class Toy(PretrainedModel):
    """An embedding, a batch norm that keeps statistics, dropout, and a head."""

    Config = ToyConfig
    architectures = ("ToyModel",)
    buffers = (r"position_ids",)

    @staticmethod
    def rules(config):
        table = [
            Rule("embed.weight", "embedding.embedding"),
            Rule("norm.weight", "norm.scale"),
            Rule("norm.bias", "norm.bias"),
            Rule("norm.running_mean", "norm.mean"),
            Rule("norm.running_var", "norm.var"),
            Rule("head.weight", "head.kernel", transpose),
        ]
        return [*table, Copy("head.weight", of="embed.weight")] if config.tied else table

    @classmethod
    def rename(cls, key):
        return key.replace("norm.gamma", "norm.weight")

    def __init__(self, config, *, dtype=jnp.float32, rngs):
        self.config = config
        self.embedding = nnx.Embed(config.vocab_size, config.width, dtype=dtype, rngs=rngs)
        self.norm = nnx.BatchNorm(config.width, dtype=dtype, rngs=rngs)
        self.dropout = nnx.Dropout(0.5, rngs=rngs)
        if not config.tied:
            self.head = nnx.Linear(config.width, config.vocab_size, use_bias=False, dtype=dtype, rngs=rngs)

    def __call__(self, ids):
        x = self.dropout(self.norm(self.embedding(ids)))
        return self.embedding.attend(x) if self.config.tied else self.head(x)


@pytest.fixture
def toy():
    return Toy(ToyConfig(), rngs=nnx.Rngs(0))


@pytest.fixture
def folder(toy, tmp_path):
    save(toy, tmp_path / "toy")
    return tmp_path / "toy"


def edit(folder, **changes):
    """Rewrite the checkpoint with tensors changed, added, or (None) removed."""
    tensors = load_file(folder / "model.safetensors")
    tensors |= {key.replace("__", "."): value for key, value in changes.items()}
    save_file({k: v for k, v in tensors.items() if v is not None}, folder / "model.safetensors")


# ------------------------------------------------------------------------------------------------ transforms

TRANSFORMS = [
    (same, (3, 4), (3, 4)),
    (transpose, (3, 4), (4, 3)),
    (split_out(3, 2), (6, 5), (5, 3, 2)),
    (split_in(3, 2), (5, 6), (3, 2, 5)),
    (split_bias(3, 2), (6,), (3, 2)),
    (conv, (4, 3, 5, 2), (5, 2, 3, 4)),
    (conv1d, (4, 1, 3), (3, 1, 4)),
    (Transform(((2, 3, 4), None), (3, 0, 1, 2)), (24, 5), (5, 2, 3, 4)),
]


@pytest.mark.parametrize(("transform", "theirs", "ours"), TRANSFORMS)
def test_transform_and_inverse(transform, theirs, ours):
    array = np.arange(np.prod(theirs)).reshape(theirs)
    whole = transform.read(array, tuple(slice(0, size) for size in ours))
    assert whole.shape == ours
    assert transform.their_shape(ours) == theirs
    np.testing.assert_array_equal(transform.to_theirs(whole), array)


@pytest.mark.parametrize(("transform", "theirs", "ours"), TRANSFORMS)
def test_reading_a_part_equals_the_part_of_the_whole(transform, theirs, ours):
    array = np.arange(np.prod(theirs)).reshape(theirs)
    whole = transform.read(array, tuple(slice(0, size) for size in ours))
    for axis, size in enumerate(ours):
        part = tuple(slice(size // 2, size) if a == axis else slice(0, n) for a, n in enumerate(ours))
        np.testing.assert_array_equal(transform.read(array, part), whole[part])


def test_split_out_puts_heads_where_attention_reads_them():
    theirs = np.arange(24).reshape(6, 4)  # two heads of width 3, from width 4
    np.testing.assert_array_equal(
        split_out(2, 3).read(theirs, (slice(0, 4), slice(1, 2), slice(0, 3)))[:, 0].T, theirs[3:]
    )


# ------------------------------------------------------------------------------------------------ both ways


def test_load_gives_back_what_was_saved_in_evaluation_mode(toy, folder):
    model = Toy.from_pretrained(folder)
    ids = jnp.arange(8)[None]
    toy.eval()
    np.testing.assert_array_equal(model(ids), toy(ids))
    np.testing.assert_array_equal(model(ids), model(ids))


def test_a_loaded_model_still_drops_out_in_training_mode(folder):
    model = Toy.from_pretrained(folder)
    model.train()
    ids = jnp.arange(8)[None]
    assert np.abs(np.asarray(model(ids) - model(ids))).max() > 0


def test_to_hf_of_gradients_has_the_gradients_alone(toy):
    gradients = nnx.grad(lambda model: model(jnp.arange(8)[None]).sum())(toy)
    theirs = to_hf(toy, gradients)
    assert theirs.keys() == {"embed.weight", "norm.weight", "norm.bias", "head.weight"}
    np.testing.assert_array_equal(theirs["head.weight"], gradients["head"]["kernel"][...].T)


def test_a_parameter_without_a_rule_is_an_error(toy):
    toy.extra = nnx.Param(jnp.zeros(2))
    with pytest.raises(CheckpointError, match="no row for: extra"):
        to_hf(toy)


@pytest.mark.parametrize("stored", ["bfloat16", "float16", "float32"])
def test_the_checkpoints_dtype_is_written_again(toy, folder, tmp_path, stored):
    tensors = {key: array.astype(jnp.dtype(stored)) for key, array in load_file(folder / "model.safetensors").items()}
    save_file(tensors, folder / "model.safetensors")
    model = Toy.from_pretrained(folder)
    assert model.head.kernel.dtype == jnp.float32
    save(model, tmp_path / "again")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all(again[key].tobytes() == tensors[key].tobytes() for key in tensors)
    narrow = Toy.from_pretrained(folder, dtype=jnp.bfloat16)
    assert narrow.head.kernel.dtype == narrow(jnp.arange(3)[None]).dtype == jnp.bfloat16


def test_shards_hold_what_one_file_holds(toy, folder, tmp_path):
    save(toy, tmp_path / "shards", shard_bytes=200)
    files = sorted(path.name for path in (tmp_path / "shards").glob("*.safetensors"))
    assert files == [f"model-{i:05}-of-{len(files):05}.safetensors" for i in range(1, len(files) + 1)]
    assert len(files) > 1
    index = json.loads((tmp_path / "shards" / "model.safetensors.index.json").read_text())
    assert sorted(set(index["weight_map"].values())) == files
    ids = jnp.arange(8)[None]
    np.testing.assert_array_equal(Toy.from_pretrained(tmp_path / "shards")(ids), Toy.from_pretrained(folder)(ids))
    save(toy, tmp_path / "shards")  # one file again: no shard may be left to contradict it
    assert [path.name for path in (tmp_path / "shards").glob("*.safetensors*")] == ["model.safetensors"]


def test_saving_keeps_other_files_and_leaves_nothing_behind(toy, folder):
    (folder / "tokenizer.json").write_text("{}")
    save(toy, folder)
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors", "tokenizer.json"]


def test_a_tied_head_is_one_array_and_a_repeated_key_must_equal_it(tmp_path):
    tied = Toy(ToyConfig(tied=True), rngs=nnx.Rngs(0))
    save(tied, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    assert "head.weight" not in tensors
    edit(tmp_path, head__weight=tensors["embed.weight"])
    Toy.from_pretrained(tmp_path)
    edit(tmp_path, head__weight=tensors["embed.weight"] + 1)
    with pytest.raises(CheckpointError, match=r"head.weight: must equal embed.weight"):
        Toy.from_pretrained(tmp_path)


def test_historic_spellings_and_buffers_are_read(folder):
    tensors = load_file(folder / "model.safetensors")
    edit(folder, norm__gamma=tensors["norm.weight"], norm__weight=None, position_ids=np.arange(4))
    Toy.from_pretrained(folder)


class Wider(Toy):
    """The same trunk with two heads that no checkpoint of a Toy has."""

    architectures = ("ToyForTwoHeads",)

    @staticmethod
    def rules(config):
        rows = [row for row in Toy.rules(config) if row.theirs != "head.weight"]
        return [*rows, Rule("left.weight", "left.kernel", transpose), Rule("right.weight", "right.kernel", transpose)]

    def __init__(self, config, *, dtype=jnp.float32, rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)
        del self.head
        self.left = nnx.Linear(config.width, 3, use_bias=False, dtype=dtype, rngs=rngs)
        self.right = nnx.Linear(config.width, 5, use_bias=False, dtype=dtype, rngs=rngs)


def test_a_new_head_on_an_old_trunk_is_initialised_and_all_else_is_read(toy, folder):
    names = {"fresh": ("left.*", "right.*"), "ignore": ("head.*",)}
    model = load(folder, model_class=Wider, **names, rngs=nnx.Rngs(5))
    np.testing.assert_array_equal(model.embedding.embedding, toy.embedding.embedding)
    whole = Wider(ToyConfig(), rngs=nnx.Rngs(nnx.Rngs(5).params()))
    np.testing.assert_array_equal(model.left.kernel, whole.left.kernel)
    np.testing.assert_array_equal(model.right.kernel, whole.right.kernel)
    other = load(folder, model_class=Wider, **names, rngs=nnx.Rngs(6))
    assert np.abs(np.asarray(other.left.kernel - model.left.kernel)).max() > 0
    narrow = load(folder, jnp.bfloat16, model_class=Wider, **names)
    assert narrow.left.kernel.dtype == jnp.bfloat16


def test_what_is_not_named_stays_strict_and_the_error_lists_both(folder):
    with pytest.raises(CheckpointError) as caught:
        Wider.from_pretrained(folder, fresh=("left.*",))
    for line in ("right.weight (for right.kernel)", "head.weight", "fresh=(...)", "ignore=(...)"):
        assert line in str(caught.value)
    assert "left.weight" not in str(caught.value)
    with pytest.raises(ConfigError, match=r"fresh=lefd.\* matches no parameter of Wider"):
        Wider.from_pretrained(folder, fresh=("lefd.*",), ignore=("head.*",))
    with pytest.raises(ConfigError, match=r"holds Toy.*fresh=\(...\)"):
        Wider.from_pretrained(folder)


def test_a_fresh_parameter_is_not_read_where_the_file_has_one(toy, folder):
    model = load(folder, model_class=Toy, fresh=("head.*",), rngs=nnx.Rngs(5))
    assert np.abs(np.asarray(model.head.kernel - toy.head.kernel)).max() > 0


class Experts(Toy):
    """Each of two layers has E matrices [out, in] in the file, and one array [E, in, out] in the model."""

    architectures = ("ToyExperts",)

    @staticmethod
    def rules(config):
        table = Toy.rules(config)
        return [*table, Rule("layers.{i}.experts.{e}.w1.weight", "layers.{i}.experts.gate.kernel", transpose)]

    def __init__(self, config, *, dtype=jnp.float32, rngs):
        super().__init__(config, dtype=dtype, rngs=rngs)

        def experts():
            values = jax.random.normal(rngs.params(), (4, config.width, 5))
            return nnx.Dict(experts=nnx.Dict(gate=nnx.Dict(kernel=nnx.Param(values))))

        self.layers = nnx.List([experts(), experts()])


def test_several_of_theirs_are_stacked_into_one_of_ours_and_back(tmp_path):
    from scratch_core.parallel import make_mesh

    model = Experts(ToyConfig(), rngs=nnx.Rngs(0))
    save(model, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    kernel = np.asarray(model.layers[1].experts.gate.kernel)
    for e in range(4):
        np.testing.assert_array_equal(tensors[f"layers.1.experts.{e}.w1.weight"], kernel[e].T)
    assert sum("experts" in key for key in tensors) == 8
    for mesh in (None, make_mesh(fsdp=1)):
        loaded = Experts.from_pretrained(tmp_path, mesh=mesh)
        np.testing.assert_array_equal(loaded.layers[1].experts.gate.kernel, kernel)
    edit(tmp_path, **{"layers.1.experts.2.w1.weight": None, "layers.0.experts.3.w1.weight": np.zeros((5, 7))})
    with pytest.raises(CheckpointError) as caught:
        Experts.from_pretrained(tmp_path)
    assert "layers.1.experts.2.w1.weight (for layers.1.experts.gate.kernel)" in str(caught.value)
    assert "layers.0.experts.3.w1.weight: the config asks for [5, 6], the file has [5, 7]" in str(caught.value)


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_written_files_follow_the_umask(toy, tmp_path, mask):
    before = os.umask(mask)
    try:
        save(toy, tmp_path / "saved", shard_bytes=200)
    finally:
        os.umask(before)
    modes = {path.name: path.stat().st_mode & 0o777 for path in (tmp_path / "saved").iterdir()}
    assert set(modes.values()) == {0o666 & ~mask}, modes


# ------------------------------------------------------------------------------------------------ what is refused


def test_everything_that_does_not_fit_is_listed_at_once(folder):
    edit(folder, embed__weight=None, norm__bias=None, other__weight=np.zeros(2), head__weight=np.zeros((3, 6)))
    with pytest.raises(CheckpointError) as caught:
        Toy.from_pretrained(folder)
    message = str(caught.value)
    for line in (
        "embed.weight (for embedding.embedding)",
        "norm.bias (for norm.bias)",
        "other.weight",
        "head.weight: the config asks for [8, 6], the file has [3, 6]",
    ):
        assert line in message


def test_an_unknown_architecture_is_named(folder):
    config = json.loads((folder / "config.json").read_text())
    config |= {"architectures": ["ElectraForCausalLM"], "model_type": "electra"}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(ConfigError, match=r"architecture \(ElectraForCausalLM\); installed: .*Install the package"):
        load(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"quantization_config": {"bits": 4}}, "holds quantised weights"),
        ({"architectures": ["BertModel"]}, "holds BertModel; Toy reads ToyModel"),
    ],
)
def test_a_config_of_other_weights_is_refused(folder, change, message):
    fields = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(fields | change))
    with pytest.raises(ConfigError, match=message):
        Toy.from_pretrained(folder)


@pytest.mark.parametrize("dtype", ["int8", "no dtype", 5])
def test_a_dtype_must_be_floating(folder, dtype):
    with pytest.raises(ConfigError, match=f"dtype={dtype} must be a floating-point type"):
        Toy.from_pretrained(folder, dtype=dtype)


def break_config(folder):
    (folder / "config.json").write_text('{"architectures": ')


def truncate(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def become_pickle(folder):
    (folder / "model.safetensors").write_bytes(pickle.dumps({"embed.weight": [0.0]}))


def become_damaged_with_a_header_of_128_bytes(folder):
    (folder / "model.safetensors").write_bytes((128).to_bytes(8, "little") + b"{" + b"x" * 127)


def become(name, make):
    def change(folder):
        (folder / name).unlink()
        make(folder / name)

    return change


def zeros(path):
    path.symlink_to("/dev/zero")


def huge_config(folder):
    with (folder / "config.json").open("r+b") as file:
        file.truncate(16 * 2**20 + 1)


def only_bin(folder):
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def float8(folder):
    header = json.dumps({"embed.weight": {"dtype": "F8_E4M3", "shape": [8, 6], "data_offsets": [0, 48]}}).encode()
    (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + bytes(48))


def index_to(name):
    def change(folder):
        (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
        keys = load_file(folder / "model-00001-of-00001.safetensors")
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(keys, name)}))

    return change


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has neither model.safetensors nor"),
        (break_config, "config.json cannot be read as JSON"),
        (lambda folder: (folder / "config.json").write_text("[]"), "must hold a JSON object, found list"),
        (truncate, "model.safetensors is truncated, damaged"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b""), "model.safetensors is truncated, damaged"),
        (become_pickle, "is a pickle or a torch archive under another name"),
        (only_bin, "pytorch_model.bin is a pickle"),
        (float8, "dtype F8_E4M3 is not supported"),
        (index_to("../outside.safetensors"), "must be a .safetensors file of the same folder"),
        (index_to("weights.bin"), "must be a .safetensors file of the same folder"),
        (index_to("model-00002-of-00002.safetensors"), "lacks shards that its index names: model-00002"),
        (become_damaged_with_a_header_of_128_bytes, "model.safetensors is truncated, damaged"),
        (become("config.json", os.mkfifo), "config.json is a FIFO, and only regular files are read"),
        (become("config.json", os.mkdir), "config.json is a folder, and only regular files are read"),
        (become("config.json", zeros), "config.json is a device, and only regular files are read"),
        (become("model.safetensors", os.mkfifo), "model.safetensors is a FIFO, and only regular files are read"),
        (huge_config, "config.json has 16,777,217 bytes, more than the 16,777,216"),
    ],
)
@pytest.mark.usefixtures("deadline")
def test_damage_is_named(folder, damage, message):
    damage(folder)
    with pytest.raises(CheckpointError, match=message):
        Toy.from_pretrained(folder)


def test_a_header_whose_length_looks_like_a_pickle_is_read(folder):
    """The first byte of the file is the low byte of the header's length: 0x80 begins a pickle, and some headers too."""
    tensors = load_file(folder / "model.safetensors")
    for padding in range(300):
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt", "note": "x" * padding})
        if (folder / "model.safetensors").read_bytes()[:1] == b"\x80":
            break
    assert (folder / "model.safetensors").read_bytes()[:1] == b"\x80"
    Toy.from_pretrained(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_named_and_may_be_allowed(folder, value):
    weight = load_file(folder / "model.safetensors")["embed.weight"]
    weight[3, 2] = value
    edit(folder, embed__weight=weight)
    with pytest.raises(CheckpointError, match=r"embed.weight holds NaN or infinity.*allow_nonfinite=True"):
        Toy.from_pretrained(folder)
    model = Toy.from_pretrained(folder, allow_nonfinite=True)
    np.testing.assert_array_equal(model.embedding.embedding[...], weight)


def test_every_refusal_says_what_to_do_next(folder):
    fields = json.loads((folder / "config.json").read_text())

    def of(damage):
        damage()
        with pytest.raises((CheckpointError, ConfigError)) as raised:
            Toy.from_pretrained(folder)
        return " ".join(str(raised.value).split())

    def config(text):
        return lambda: (folder / "config.json").write_text(text)

    assert "take an intact copy" in of(config('{"a": ' + "[" * 100_000))
    assert "Take an intact copy" in of(config("{"))
    named = of(config(json.dumps(fields | {"architectures": "Toy"})))
    assert named.endswith('must be a list of names: correct it, as in ["LlamaForCausalLM"]')
    config(json.dumps(fields))()
    assert of(lambda: edit(folder, embed__weight=np.ones(3))).endswith(
        "Take the config.json and the weights from one checkpoint"
    )
    assert "Put the shards beside the index" in of(lambda: index_to("../outside.safetensors")(folder))
    with pytest.raises(ConfigError, match=r"width='2' must be int, found str: correct it, or take the config.json"):
        field({"width": "2"}, "width", int)


def test_a_folder_that_is_not_there_is_named(tmp_path):
    with pytest.raises(CheckpointError, match="there is no folder"):
        load(tmp_path / "nowhere")


def test_a_mesh_reads_each_part_of_a_file_once(folder, monkeypatch):
    from scratch_core.parallel import make_mesh

    reads = []
    original = Transform.read
    monkeypatch.setattr(Transform, "read", lambda self, *args: reads.append(args) or original(self, *args))
    mesh = make_mesh(fsdp=1)
    model = Toy.from_pretrained(folder, mesh=mesh)
    assert len(reads) == len(weights.flatten(nnx.state(model, nnx.Any(nnx.Param, nnx.BatchStat))))
    assert model.head.kernel[...].sharding.mesh == mesh
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))
