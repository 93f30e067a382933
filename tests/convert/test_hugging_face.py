"""CLIP and SigLIP folders: features equal transformers', and damage has one line."""

import importlib.util
import json
import shutil
import sys
import types

import flax
import jax
import ml_dtypes
import numpy as np
import pytest
from foreign_towers import (
    VOCABULARY,
    clip_config,
    foreign_features,
    foreign_model,
    random_images,
    random_texts,
    save,
    siglip_config,
)
from optional import require

from cmap_jax.convert import fill_pretrained, load_hugging_face
from cmap_jax.convert.hugging_face import (
    check_image_tower,
    load_image_tower,
    load_text_tower,
)
from cmap_jax.convert.hugging_face_config import FAMILIES, read_fields
from cmap_jax.convert.state_dict import WeightsError
from cmap_jax.models.encoders import IMAGE_ENCODERS, TEXT_ENCODERS
from cmap_jax.processing import hub
from configs import default

transformers = require("transformers")
torch = require("torch")
import safetensors.numpy  # noqa: E402
import safetensors.torch  # noqa: E402


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A small CLIP in a folder."""
    return save(foreign_model(clip_config()), tmp_path_factory.mktemp("models") / "clip")


@pytest.fixture
def copy(clip, tmp_path):
    """A copy of the small CLIP, to be damaged."""
    return shutil.copytree(clip, tmp_path / "clip")


def our_features(loaded, images, tokens, lengths, **settings) -> dict:
    """The features of both towers, with the maps, as `foreign_features` names them."""
    config = default.get_config()
    config.update_from_flattened_dict(loaded.changes)
    model, params = config.model, loaded.variables["params"]
    settings = {**model.image[model.image.name], **settings}
    vision = IMAGE_ENCODERS[model.image.name].build(settings, False, "none", np.float32)
    text = TEXT_ENCODERS[model.text.name].build(
        model.text[model.text.name],
        model.text.vocabulary_size,
        model.embed_dim,
        "none",
        np.float32,
    )

    @jax.jit
    def run(params, images, tokens, lengths):
        image = {"params": params["image_encoder"]["backbone"]}
        words = {"params": params["text_encoder"]}
        return {
            **vision.apply(image, images, train=False),
            "text": text.apply(words, tokens, lengths, train=False),
        }

    with jax.default_matmul_precision("highest"):
        return jax.tree.map(np.asarray, run(params, images, tokens, lengths))


def check_parity(folder, model, **options) -> float:
    """Assert that all features of a saved model are the same here; return the worst error."""
    loaded = load_hugging_face(folder)
    family = loaded.changes["model.image.name"]
    images = random_images(loaded.changes[f"model.image.{family}.image_size"])
    width = loaded.changes[f"model.text.{family}.positions"]
    tokens, lengths = random_texts(width, family, model.config.text_config.vocab_size)
    theirs = foreign_features(model, images, tokens)
    ours = our_features(loaded, images, tokens, lengths, **options)
    pairs = [(ours["high"], theirs["image"]), (ours["text"], theirs["text"])]
    blocks = loaded.changes[f"model.image.{family}.map_blocks"]
    for level, block in zip(("mid", "low"), blocks, strict=True):
        tokens = theirs["layers"][block][:, 1 if family == "clip" else 0 :]
        pairs.append((ours[level], tokens.reshape(ours[level].shape)))
    for mine, expected in pairs:
        assert np.abs(expected).max() > 0.1
        np.testing.assert_allclose(mine, expected, atol=1e-4, rtol=0)
    return max(float(np.abs(mine - expected).max()) for mine, expected in pairs)


CONFIGS = {
    "clip": clip_config,
    "clip with the historical end token": lambda: clip_config({"eos_token_id": 2}),
    "clip with GELU, other heads and an odd size": lambda: clip_config(
        {"hidden_act": "gelu", "hidden_size": 24, "num_attention_heads": 3},
        {"hidden_act": "gelu", "num_attention_heads": 2, "image_size": 27, "patch_size": 6},
    ),
    "clip of one block": lambda: clip_config(
        {"num_hidden_layers": 1, "max_position_embeddings": 9}, {"num_hidden_layers": 1}
    ),
    "siglip": siglip_config,
    "siglip with a wider text": lambda: siglip_config(
        {"hidden_size": 40, "projection_size": 32, "pad_token_id": 1},
        {"image_size": 29, "patch_size": 7, "layer_norm_eps": 1e-5},
    ),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_features_are_those_of_transformers(name, tmp_path):
    model = foreign_model(CONFIGS[name]())
    check_parity(save(model, tmp_path), model)


@pytest.mark.slow
@pytest.mark.parametrize("family", ["clip", "siglip"])
def test_features_of_the_base_models(family, tmp_path):
    """ViT-B/32 and SigLIP B/16 in their published sizes."""
    classes = {"clip": transformers.CLIPConfig, "siglip": transformers.SiglipConfig}
    model = foreign_model(classes[family]())
    worst = check_parity(save(model, tmp_path), model)
    print(f"{family}: worst error {worst:.1e}")


def _empty_class(name):
    if name.startswith("__"):
        raise AttributeError(name)
    return type(name, (), {"BICUBIC": 3})


@pytest.fixture
def open_clip(monkeypatch):
    """The package open_clip, which imports torchvision for operations that are not used here."""
    if importlib.util.find_spec("torchvision") is None:
        stand_ins = {}
        for name in ("", ".ops", ".ops.misc", ".transforms", ".transforms.functional"):
            stand_in = stand_ins[name] = types.ModuleType(f"torchvision{name}")
            stand_in.__path__ = []
            stand_in.__getattr__ = _empty_class
            parent, _, child = name.rpartition(".")
            if child:
                setattr(stand_ins[parent], child, stand_in)
            monkeypatch.setitem(sys.modules, stand_in.__name__, stand_in)
    return require("open_clip")


@pytest.mark.slow
def test_open_clip_gives_the_same_features(open_clip, tmp_path):
    """A third opinion: open_clip's ViT-B/32, its weights renamed to those of Hugging Face."""
    torch.manual_seed(3)
    model = open_clip.create_model("ViT-B-32-quickgelu").eval()
    state = {name: value.contiguous() for name, value in _as_hugging_face(model.state_dict())}
    safetensors.torch.save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    images, (tokens, lengths) = random_images(224), random_texts(77, "clip", 49408)
    ours = our_features(load_hugging_face(tmp_path), images, tokens, lengths)
    with torch.no_grad():
        image = model.encode_image(torch.from_numpy(images).permute(0, 3, 1, 2)).numpy()
        text = model.encode_text(torch.from_numpy(tokens).long()).numpy()
    np.testing.assert_allclose(ours["high"], image, atol=1e-4, rtol=0)
    np.testing.assert_allclose(ours["text"], text, atol=1e-4, rtol=0)


def _as_hugging_face(state):
    """Yield open_clip's tensors by Hugging Face's names."""
    single = {
        "visual.class_embedding": "vision_model.embeddings.class_embedding",
        "visual.positional_embedding": "vision_model.embeddings.position_embedding.weight",
        "visual.conv1.weight": "vision_model.embeddings.patch_embedding.weight",
        "positional_embedding": "text_model.embeddings.position_embedding.weight",
        "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    }
    norms = {
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
        "ln_final": "text_model.final_layer_norm",
    }
    parts = {
        "ln_1": "layer_norm1",
        "ln_2": "layer_norm2",
        "attn.out_proj": "self_attn.out_proj",
        "mlp.c_fc": "mlp.fc1",
        "mlp.c_proj": "mlp.fc2",
    }
    for name, value in state.items():
        module, _, leaf = name.rpartition(".")
        if name in single:
            yield single[name], value
        elif module in norms:
            yield f"{norms[module]}.{leaf}", value
        elif name in ("visual.proj", "text_projection"):
            part = "visual" if name == "visual.proj" else "text"
            yield f"{part}_projection.weight", value.T
        elif ".resblocks." in name:
            tower = "vision_model" if name.startswith("visual.") else "text_model"
            number, _, rest = name.partition(".resblocks.")[2].partition(".")
            block = f"{tower}.encoder.layers.{number}"
            if rest.startswith("attn.in_proj_"):
                for letter, third in zip("qkv", value.chunk(3), strict=True):
                    yield f"{block}.self_attn.{letter}_proj.{rest.rpartition('_')[2]}", third
            else:
                yield f"{block}.{parts[rest.rpartition('.')[0]]}.{leaf}", value


def test_every_default_value_is_that_of_transformers():
    for family, classes in {
        "clip": (transformers.CLIPVisionConfig, transformers.CLIPTextConfig),
        "siglip": (transformers.SiglipVisionConfig, transformers.SiglipTextConfig),
    }.items():
        for part, values in zip(
            classes, (FAMILIES[family].vision, FAMILIES[family].text), strict=True
        ):
            theirs = part().to_dict()
            assert {name: theirs[name] for name in values} == values, family


def test_fields_of_the_base_models_are_the_defaults_of_the_config(tmp_path):
    """A config.json without any values describes ViT-B/32, or SigLIP B/16."""
    config = default.get_config()
    for family in FAMILIES:
        (tmp_path / "config.json").write_text(json.dumps({"model_type": family}))
        changes = read_fields(tmp_path)
        for part in ("image", "text"):
            stored = config.model[part][family].to_dict()
            prefix = f"model.{part}.{family}."
            ours = {k.removeprefix(prefix): v for k, v in changes.items() if k.startswith(prefix)}
            # OpenAI's files name the historical end token, and Hugging Face's class does not.
            ignored = ("scan_layers", "interpolate_positions", "end_token")
            assert {k: v for k, v in ours.items() if k not in ignored} == {
                k: v for k, v in stored.items() if k not in ignored
            }


def test_older_forms_of_the_config(tmp_path):
    content = {
        "model_type": "clip",
        "projection_dim": 30,
        "text_config_dict": {"hidden_size": 40, "num_attention_heads": 4},
        "text_config": {"hidden_size": 512, "vocab_size": 77},
        "vision_config": {"num_hidden_layers": 24, "image_size": [336, 336], "patch_size": 14},
        "vision_config_dict": None,
    }
    (tmp_path / "config.json").write_text(json.dumps(content))
    changes = read_fields(tmp_path)
    assert changes["model.text.clip.width"] == 40
    assert changes["model.text.vocabulary_size"] == 77
    assert changes["model.image.clip.image_size"] == changes["data.crop"] == 336
    assert changes["model.image.clip.map_blocks"] == (18, 12)
    assert changes["model.embed_dim"] == changes["model.image.clip.projection"] == 30


def test_processors_as_transformers_saves_them(tmp_path):
    """The classes' own values are those of the families' defaults."""
    for family, name in (("clip", "CLIPImageProcessor"), ("siglip", "SiglipImageProcessor")):
        folder = tmp_path / family
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps({"model_type": family}))
        without = read_fields(folder)
        getattr(transformers, name)().save_pretrained(folder)
        assert (folder / "preprocessor_config.json").exists()
        assert read_fields(folder) == without


def test_other_forms_of_weights_are_the_same(clip, tmp_path):
    """Parts with an index, a torch file, and half precision."""
    model = foreign_model(clip_config())
    whole = load_hugging_face(clip).variables
    parts = save(model, tmp_path / "parts", max_shard_size="20KB")
    assert len(list(parts.glob("*.safetensors"))) > 2
    torch_file = shutil.copytree(clip, tmp_path / "torch")
    (torch_file / "model.safetensors").unlink()
    buffers = {"text_model.embeddings.position_ids": torch.arange(77)[None]}
    torch.save({**model.state_dict(), **buffers}, torch_file / "pytorch_model.bin")
    for folder in (parts, torch_file):
        jax.tree.map(np.testing.assert_array_equal, load_hugging_face(folder).variables, whole)
    for dtype, ours in (("bfloat16", ml_dtypes.bfloat16), ("float16", np.float16)):
        half = save(model.to(getattr(torch, dtype)), tmp_path / dtype)
        rounded = jax.tree.map(lambda x, t=ours: x.astype(t).astype(np.float32), whole)
        jax.tree.map(np.testing.assert_array_equal, load_hugging_face(half).variables, rounded)
        model.float()
        model.load_state_dict(safetensors.torch.load_file(clip / "model.safetensors"))


def test_a_resampled_grid_of_positions_is_that_of_transformers(tmp_path):
    for number, config in enumerate((clip_config(), siglip_config())):
        model = foreign_model(config)
        loaded = load_hugging_face(save(model, tmp_path / str(number)))
        family = loaded.changes["model.image.name"]
        for side in (40, 16):
            images, (tokens, lengths) = random_images(side), random_texts(12, family)
            theirs = foreign_features(model, images, tokens, interpolate_pos_encoding=True)
            ours = our_features(loaded, images, tokens, lengths, interpolate_positions=True)
            np.testing.assert_allclose(ours["high"], theirs["image"], atol=1e-4, rtol=0)


def test_towers_are_loaded_by_themselves(clip):
    config = default.get_config()
    config.model.pretrained = str(clip)
    config = fill_pretrained(config)
    whole = load_hugging_face(clip).variables["params"]
    image = load_image_tower(clip, config.model.image.clip)
    assert image.keys() == {"params"}
    jax.tree.map(np.testing.assert_array_equal, image["params"], whole["image_encoder"])
    tokens = range(VOCABULARY)
    text = load_text_tower(clip, config.model.text.clip, tokens, None, None)
    jax.tree.map(np.testing.assert_array_equal, text["params"], whole["text_encoder"])
    with pytest.raises(WeightsError, match=r"config\.json: vocab_size is 60, but .* has 61 ids"):
        load_text_tower(clip, config.model.text.clip, range(61), None, None)
    config.model.image.clip.layers = 4
    with pytest.raises(WeightsError, match=r"config\.model\.image\.clip\.layers is 4, there 3\. "):
        check_image_tower(clip, config.model.image.clip)


def test_pretrained_fills_a_config(clip):
    config = default.get_config()
    assert fill_pretrained(config) is config
    config.model.pretrained = str(clip)
    filled = fill_pretrained(config, typed=frozenset({"data.resampling"}))
    assert config.model.image.name == "resnet"  # a copy is filled
    assert filled.model.pretrained is None
    assert filled.model.image.init_from == filled.model.text.init_from == str(clip)
    assert (filled.model.image.name, filled.model.text.tokenizer) == ("clip", "clip")
    assert filled.model.image.clip.map_blocks == (2, 1)
    assert (filled.data.fit, filled.data.resampling) == ("crop", "bilinear")
    assert filled.model.embed_dim == 20
    # A config of the same family has chosen how pictures become squares.
    config.model.image.name, config.data.fit = "clip", "pad"
    again = fill_pretrained(config)
    assert (again.data.fit, again.data.crop) == ("pad", 24)
    # The second stage has its weights from the first, and its sizes from here.
    config.init_from = "runs/first"
    second = fill_pretrained(config)
    assert second.model.image.init_from is second.model.text.init_from is None
    assert second.model.image.clip == again.model.image.clip


def _set(**values):
    def damage(folder):
        path = folder / "config.json"
        content = json.loads(path.read_text())
        for name, value in values.items():
            part, _, field = name.rpartition("__")
            (content[part] if part else content)[field] = value
        path.write_text(json.dumps(content))

    return damage


def _write(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def _truncate(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


def _rename_weights(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "../b.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def _lose_a_part(folder):
    (folder / "model.safetensors").unlink()
    save(foreign_model(clip_config()), folder, max_shard_size="20KB")
    sorted(folder.glob("model-*.safetensors"))[1].unlink()


def _not_finite(folder):
    path = folder / "model.safetensors"
    tensors = safetensors.numpy.load_file(path)
    tensors["visual_projection.weight"] = np.full((20, 32), np.nan, np.float32)
    safetensors.numpy.save_file(tensors, path)


_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 605157884\n"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "clip: no config.json: not a model as"),
        (_set(model_type="bert"), r"config\.json: model_type 'bert' is neither a whole CLIP"),
        (_set(model_type="clip_vision_model"), "is neither a whole CLIP"),
        (_set(model_type="siglip2"), r"config\.json: a SigLIP 2 for pictures of any shape"),
        (_set(vision_config__hidden_act="relu"), r"config\.json: hidden_act must be one of"),
        (_set(vision_config__num_channels=1), r"config\.json: num_channels is 1"),
        (_set(vision_config__image_size=[24, 32]), r"config\.json: image_size must be a number"),
        (_set(vision_config__hidden_size="32"), r"config\.json: hidden_size must be a number"),
        (_set(vision_config__num_hidden_layers=4), r"(?s)does not fit.*missing: 16 \(vision_model"),
        (_set(vision_config__image_size=32), r"\(10, 32\), not \(17, 32\)"),
        (_set(vision_config=[1]), r"config\.json: vision_config must be an object, not \[1\]"),
        (_set(vision_config__patch_size=0), r"config\.json: patch must be 1 or more, not 0"),
        (_set(projection_dim="wide"), r"config\.json: projection_dim must be a number, not 'wide'"),
        (_write("config.json", b"{"), r"config\.json: not JSON at line 1"),
        (_write("preprocessor_config.json", b'{"resample": 1}'), "resample is 1, neither"),
        (_write("model.safetensors", _POINTER), r"model\.safetensors: .* run git lfs pull in "),
        (_write("model.safetensors", b""), r"model\.safetensors: not a safetensors file, or trunc"),
        (_truncate, r"model\.safetensors: not a safetensors file, or truncated.*Fetch it again"),
        (lambda f: (f / "model.safetensors").unlink(), "clip: no weights: neither model.safetens"),
        (_rename_weights, r"index\.json: lists '\.\./b\.safetensors', which is no name"),
        (_lose_a_part, r"index\.json lists model-0000.*, and the folder lacks it"),
        (_write("model.safetensors.index.json", b"[]"), None),
        (_not_finite, r"weights that are NaN or infinite: 1 \(visual_projection\.weight"),
    ],
)
def test_damaged_folders(damage, message, copy):
    damage(copy)
    if message is None:
        load_hugging_face(copy)  # the whole file is there, and the index is not read
        return
    with pytest.raises((FileNotFoundError, ValueError), match=message) as raised:
        load_hugging_face(copy)
    assert str(copy) in str(raised.value)


def test_a_torch_file_that_git_lfs_has_not_fetched(copy):
    (copy / "model.safetensors").unlink()
    (copy / "pytorch_model.bin").write_bytes(_POINTER)
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin: .* run git lfs pull"):
        load_hugging_face(copy)


def test_a_torch_file_that_would_run_code(copy, tmp_path):
    class Attack:
        def __reduce__(self):
            return (open, (str(tmp_path / "attacked"), "w"))

    (copy / "model.safetensors").unlink()
    torch.save({"logit_scale": Attack()}, copy / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"pytorch_model\.bin: .* would run code"):
        load_hugging_face(copy)
    assert not (tmp_path / "attacked").exists()


def test_sources_that_are_no_folders(clip, tmp_path, monkeypatch):
    with pytest.raises(NotADirectoryError, match="a file, and the folder is needed"):
        load_hugging_face(clip / "config.json")
    with pytest.raises(FileNotFoundError, match="no such folder, and not an id"):
        load_hugging_face(tmp_path / "absent")


@pytest.fixture
def cache(clip, tmp_path, monkeypatch):
    """The hub's cache with the small CLIP as openai/small, and no network."""
    constants = require("huggingface_hub").constants
    folder = tmp_path / "cache" / "models--openai--small"
    snapshot = folder / "snapshots" / "0123"
    shutil.copytree(clip, snapshot)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("0123")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return snapshot


def test_an_id_in_the_cache(cache, clip):
    loaded = load_hugging_face("openai/small")
    assert str(loaded.folder) == str(cache)
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, load_hugging_face(clip).variables)
    config = default.get_config()
    config.model.pretrained = "openai/small"
    assert fill_pretrained(config).model.text.init_from == "openai/small"


def test_an_id_that_is_not_cached(cache):
    with pytest.raises(FileNotFoundError) as raised:
        load_hugging_face("openai/clip-vit-base-patch32")
    message = str(raised.value)
    assert message.count("\n") == 0
    assert "hf download openai/clip-vit-base-patch32 --local-dir clip-vit-base-patch32" in message
    assert "model*.safetensors" in message
    # A cache with the config alone is not enough for the weights.
    (cache / "model.safetensors").unlink()
    assert hub.fetch("openai/small", hub.CONFIG)
    with pytest.raises(FileNotFoundError, match="hf download openai/small"):
        load_hugging_face("openai/small")


def test_an_id_is_downloaded(cache, clip, monkeypatch):
    """Large files in torch's format only where there are no safetensors."""
    patterns = []

    def download(name, allow_patterns):
        patterns.append([p for p in allow_patterns if "model" in p and p != "*.model"])
        if "pytorch_model*.bin" in allow_patterns:
            torch.save(foreign_model(clip_config()).state_dict(), cache / "pytorch_model.bin")
        return str(cache)

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    (cache / "model.safetensors").unlink()
    loaded = load_hugging_face("openai/small")
    assert patterns == [["model*.safetensors"], ["pytorch_model*.bin"]]
    whole = load_hugging_face(clip).variables
    jax.tree.map(np.testing.assert_array_equal, loaded.variables, whole)
    (cache / "pytorch_model.bin").unlink()
    monkeypatch.setattr("huggingface_hub.snapshot_download", lambda *_, **__: str(cache))
    with pytest.raises(FileNotFoundError, match=r"there is no model\.safetensors or"):
        load_hugging_face("openai/small")


def test_a_cache_without_the_picture_processor_is_filled_up(cache, monkeypatch):
    """Without a network, the cache is used as it is."""
    (cache / "preprocessor_config.json").unlink(missing_ok=True)

    def download(name, allow_patterns):
        (cache / "preprocessor_config.json").write_text('{"resample": 2}')
        return str(cache)

    def fail(name, allow_patterns):
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)
    assert load_hugging_face("openai/small").changes["data.resampling"] == "bicubic"
    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    assert load_hugging_face("openai/small").changes["data.resampling"] == "bilinear"
    monkeypatch.setattr("huggingface_hub.snapshot_download", fail)  # it is whole now
    assert load_hugging_face("openai/small").changes["data.resampling"] == "bilinear"


def test_variables_are_named_as_the_towers_have_them(clip):
    names = flax.traverse_util.flatten_dict(load_hugging_face(clip).variables["params"], sep="/")
    shapes = {name: array.shape for name, array in names.items()}
    assert shapes["image_encoder/backbone/patch_embedding/kernel"] == (8, 8, 3, 32)
    assert shapes["image_encoder/backbone/blocks/attention/query/kernel"] == (3, 32, 4, 8)
    assert shapes["text_encoder/blocks/attention/out/kernel"] == (3, 4, 8, 32)
    assert shapes["text_encoder/projection/kernel"] == (32, 20)
    assert {array.dtype for array in names.values()} == {np.dtype(np.float32)}
