"""`cmap convert` of CLIP and SigLIP folders and of MagicLens' files, to workdirs that are used."""

import json
import pathlib

import jax
import magiclens_reference as reference
import numpy as np
import pytest
from command_line import run
from convert.test_magiclens import write_magiclens
from fake_data import circo as write_circo
from fake_data import cirr as write_cirr
from fake_data import fashion_iq as write_fashion_iq
from foreign_towers import foreign_features, foreign_model, siglip_config
from optional import require
from PIL import Image
from subword_files import published_clip_pairs, write_siglip_folder

import cmap_jax
from cmap_jax import scoring
from cmap_jax.cli import command
from cmap_jax.models.cmap import CMAP
from cmap_jax.processing.images import preprocess_image
from cmap_jax.processing.tokenizers import TOKENIZERS

require("tokenizers")

SIDE = 32
TEXTS = ("is red and longer", "a dress without sleeves", "")


def _images() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 200, (40, 30 + 10 * i, 3)).astype(np.uint8) for i in range(3)]


def _write_words(folder: pathlib.Path) -> int:
    """Write a tokenizer of CLIP's form with letters alone, and return its number of ids."""
    letters = [chr(c) for c in range(33, 127)] + [chr(c) for c in (*range(161, 173), 174)]
    letters += [chr(c) for c in (*range(175, 256), *range(256, 324))]
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "re", "red</w>"]
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\nr e\nre d</w>\n")
    return len(pieces)


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A small CLIP with random weights, saved by transformers; its folder and the model."""
    transformers, torch = require("transformers"), require("torch")
    folder = tmp_path_factory.mktemp("published") / "clip"
    folder.mkdir()
    ids = _write_words(folder)
    torch.manual_seed(0)
    sizes = {
        "hidden_size": 16,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
    }
    config = transformers.CLIPConfig(
        text_config={
            **sizes,
            "vocab_size": ids,
            "max_position_embeddings": 24,
            "bos_token_id": ids - 2,
            "eos_token_id": ids - 1,
        },
        vision_config={**sizes, "image_size": SIDE, "patch_size": 8},
        projection_dim=8,
    )
    model = transformers.CLIPModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # Each part of the towers then matters.
            parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    processor = {"size": {"shortest_edge": SIDE}, "crop_size": {"height": SIDE, "width": SIDE}}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder, model


def _convert(*arguments) -> int:
    return command.main(["convert", *map(str, arguments)])


def _theirs(model, trained) -> tuple[np.ndarray, np.ndarray]:
    """PyTorch's features of the images and the texts, [B, D] each."""
    torch = require("torch")
    pixels = np.stack([preprocess_image(image, trained.preprocessing) for image in _images()])
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    pixels = ((pixels / 255 - mean) / std).astype(np.float32).transpose(0, 3, 1, 2)
    tokens, lengths = trained.tokenizer.encode_batch(TEXTS)
    mask = np.arange(tokens.shape[1]) < lengths[:, None]
    with torch.no_grad():
        pictures = model.get_image_features(torch.tensor(pixels))
        texts = model.get_text_features(
            torch.tensor(tokens).long(), attention_mask=torch.tensor(mask).long()
        )
    return tuple(np.asarray(getattr(x, "pooler_output", x)) for x in (pictures, texts))


def _unit(x: np.ndarray) -> np.ndarray:
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


@pytest.mark.parametrize(
    ("flags", "weight", "normalize"),
    [((), 1.0, True), (("--text-weight", "0.5", "--no-normalize"), 0.5, False)],
)
def test_a_clip_folder_composes_as_pytorch_does(clip, tmp_path, capsys, flags, weight, normalize):
    folder, model = clip
    assert _convert(folder, "--out", tmp_path / "clip", *flags) == 0
    printed = capsys.readouterr().out
    assert "marked as zero-shot" in printed
    assert "--config.model.image.frozen=false" in printed  # else the temperature trains alone
    trained = cmap_jax.load(tmp_path / "clip")
    assert trained.config.model.sum.to_dict() == {"text_weight": weight, "normalize": normalize}
    assert trained.protocol is None
    assert "variant='sum'" in repr(trained)
    pictures, texts = _theirs(model, trained)
    gallery = trained.encode_images(_images())
    np.testing.assert_allclose(gallery[0], _unit(pictures), atol=1e-5)
    np.testing.assert_allclose(trained.encode_text(TEXTS), texts, rtol=1e-3, atol=1e-4)
    parts = (_unit(pictures), _unit(texts)) if normalize else (pictures, texts)
    scores = scoring.score(trained.compose(_images(), TEXTS), gallery)
    expected = _unit(parts[0] + weight * parts[1]) @ _unit(pictures).T
    np.testing.assert_allclose(scores, expected, atol=1e-4)
    for images, words, alone in ((_images(), None, pictures), (None, TEXTS, texts)):
        scores = scoring.score(trained.compose(images, words), gallery)
        np.testing.assert_allclose(scores, _unit(alone) @ _unit(pictures).T, atol=1e-4)


def test_a_folder_of_bge_vl_adds_features_as_they_are(clip, tmp_path, capsys):
    folder = tmp_path / "bge"
    folder.mkdir()
    for file in clip[0].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "modeling_MMRet_CLIP.CLIPModel"}
    (folder / "config.json").write_text(json.dumps(config))
    assert _convert(folder, "--out", tmp_path / "run") == 0
    assert "It is a BGE-VL" in capsys.readouterr().out
    settings = json.loads((tmp_path / "run" / "config.json").read_text())["model"]["sum"]
    assert settings == {"text_weight": 1.0, "normalize": False}
    assert _convert(folder, "--out", tmp_path / "other", "--normalize") == 0
    settings = json.loads((tmp_path / "other" / "config.json").read_text())["model"]["sum"]
    assert settings["normalize"]


@pytest.mark.slow
def test_evaluated_and_labelled(clip, tmp_path, capsys):
    """Zero-shot numbers are marked, beside the other's in a comparison too."""
    data = write_cirr(tmp_path / "data")
    for name, flags in (("clip", ()), ("heavy", ("--text-weight", "3"))):
        assert _convert(clip[0], "--out", tmp_path / name, *flags) == 0
        arguments = ["evaluate", str(tmp_path / name), "--data", "cirr", "--dir", str(data)]
        shortcuts = ["--shortcuts"] if name == "clip" else []
        assert command.main([*arguments, *shortcuts]) == 0
    printed = capsys.readouterr().out
    assert "cirr/val (zero-shot)" in printed
    assert "zero-shot: the model was trained on no data set's triplets." in printed
    files = [tmp_path / name / "evaluation-cirr.json" for name in ("clip", "heavy")]
    stored = json.loads(files[0].read_text())
    assert stored["facts"]["zero_shot"] is True
    assert set(stored["shortcuts"]["cirr/val"]) == {"text", "image"}
    assert command.main(["compare", *map(str, files)]) == 0
    assert "evaluation-cirr.json (zero-shot)" in capsys.readouterr().out


@pytest.mark.slow
def test_magiclens_from_the_file_to_scores(clip, tmp_path, capsys):
    ids = len(json.loads((clip[0] / "vocab.json").read_text()))
    sizes = {"patch": 8, "grid": 4, "positions": 24, "vocabulary": ids}
    arrays = write_magiclens(tmp_path / "magic_lens.pkl", reference.random_arrays(**sizes))
    arguments = (tmp_path / "magic_lens.pkl", "--tokenizer", clip[0])
    assert _convert(*arguments, "--out", tmp_path / "run") == 0
    assert "magic_lens.pkl" in capsys.readouterr().out
    trained = cmap_jax.load(tmp_path / "run")
    assert trained.preprocessing.scaling == "own_maximum"
    assert trained.config.model.variant == "magiclens"
    pixels = np.stack([preprocess_image(image, trained.preprocessing) for image in _images()])
    assert pixels.max() > 240  # the pictures' highest level is 199
    mean, std = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
    arrays = {name: array.astype(np.float64) for name, array in arrays.items()}
    pictures = reference.picture_features(arrays, (pixels / 255 - mean) / std)
    texts = reference.text_features(arrays, trained.tokenizer.encode_batch(TEXTS)[0])
    empty = np.broadcast_to(texts[2], texts.shape)
    gallery = reference.embed(arrays, pictures, empty)
    np.testing.assert_allclose(trained.encode_images(_images())[0], gallery, atol=1e-4)
    query = trained.compose(_images(), TEXTS)
    expected = reference.embed(arrays, pictures, texts) @ gallery.T
    np.testing.assert_allclose(
        scoring.score(query, trained.encode_images(_images())), expected, atol=1e-4
    )
    alone = trained.compose(_images(), None).branches[0].numerator
    np.testing.assert_allclose(alone, trained.encode_images(_images()), atol=1e-5)
    with pytest.raises(ValueError, match="magiclens composes an image alone or an image with"):
        trained.compose(None, TEXTS)

    assert trained.preprocessing.read_as == "upright"  # people's photographs are turned by EXIF
    flags = ("--scaling", "fixed", "--read-as", "released")
    assert _convert(*arguments, "--out", tmp_path / "fixed", *flags) == 0
    fixed = cmap_jax.load(tmp_path / "fixed")
    assert fixed.preprocessing.scaling == "fixed"
    assert fixed.preprocessing.read_as == "released"


@pytest.mark.slow
def test_magiclens_names_the_concept_on_circo(clip, tmp_path, capsys):
    ids = len(json.loads((clip[0] / "vocab.json").read_text()))
    sizes = {"patch": 8, "grid": 4, "positions": 24, "vocabulary": ids}
    write_magiclens(tmp_path / "magic_lens.pkl", reference.random_arrays(**sizes))
    source = (tmp_path / "magic_lens.pkl", "--tokenizer", clip[0])
    assert _convert(*source, "--out", tmp_path / "run") == 0
    data = write_circo(tmp_path / "data")
    evaluate = ["evaluate", str(tmp_path / "run"), "--data", "circo", "--dir", str(data)]
    texts = {"concept": "find a garment but is red", "one": "is red"}
    capsys.readouterr()
    protocols = []
    for flags, captions, protocol in (
        ([], "concept", "circo/val-concept"),
        (["--captions", "one"], "one", "circo/val"),
    ):
        assert command.main([*evaluate, *flags, "--rankings"]) == 0
        assert f"{protocol} (zero-shot)" in capsys.readouterr().out
        stored = json.loads((tmp_path / "run" / "evaluation-circo.json").read_text())
        protocols.insert(0, protocol)  # earlier numbers under the other policy are kept
        assert list(stored["protocols"]) == protocols
        rankings = tmp_path / "run" / "rankings" / f"{protocol.replace('/', '-')}.jsonl"
        first = json.loads(rankings.read_text().partition("\n")[0])
        assert first["text"] == [texts[captions]]
    # A server's file answers the texts that an evaluation reads.
    submit = ["submit", "circo", str(data), "--workdir", str(tmp_path / "run")]
    answers = {}
    for out, flags in (("default", []), ("one", ["--captions", "one"])):
        assert command.main([*submit, "--out", str(tmp_path / out), *flags]) == 0
        protocol = "circo/test-concept" if out == "default" else "circo/test"
        assert f"6 queries of test under {protocol}, checked" in capsys.readouterr().out
        answers[out] = json.loads((tmp_path / out / "submission.json").read_text())
    assert answers["default"] != answers["one"]


def test_a_siglip_folder(tmp_path):
    """Its texts are padded, and the padding is read."""
    folder = tmp_path / "siglip"
    folder.mkdir()
    write_siglip_folder(folder)
    size = len(TOKENIZERS["siglip"].from_data(str(folder), (), ()))
    words = {"vocab_size": size, "max_position_embeddings": 64}
    model = foreign_model(siglip_config(words))
    model.save_pretrained(folder)
    assert _convert(folder, "--out", tmp_path / "run") == 0
    trained = cmap_jax.load(tmp_path / "run")
    tokens, _ = trained.tokenizer.encode_batch(TEXTS)
    pixels = np.stack([preprocess_image(image, trained.preprocessing) for image in _images()])
    normalized = np.asarray(pixels / 127.5 - 1, np.float32)
    theirs = foreign_features(model, normalized, tokens)
    np.testing.assert_allclose(
        trained.encode_images(_images())[0], _unit(theirs["image"]), atol=1e-4
    )
    query = trained.compose(_images(), TEXTS).branches[0].numerator[0]
    expected = _unit(_unit(theirs["image"]) + _unit(theirs["text"]))
    np.testing.assert_allclose(query, expected, atol=1e-4)


def test_magiclens_with_the_published_words(tmp_path):
    sizes = {"patch": 8, "grid": 4, "positions": 77, "vocabulary": 49_408}
    write_magiclens(tmp_path / "magic_lens.pkl", reference.random_arrays(**sizes))
    source = (tmp_path / "magic_lens.pkl", "--tokenizer", published_clip_pairs())
    assert _convert(*source, "--out", tmp_path / "run") == 0
    trained = cmap_jax.load(tmp_path / "run")
    assert trained.tokenizer.encode("") == [49_406, 49_407]
    joined = trained.tokenizer.encode(("is red", "is longer"))
    assert joined == trained.tokenizer.encode("Is red and is LONGER")
    assert trained.encode_text([("is red", "is longer")]).shape == (1, 8)


@pytest.mark.slow
def test_magiclens_is_fine_tuned(clip, tmp_path):
    """A run from the converted workdir trains all parts, the composer's parameters too."""
    ids = len(json.loads((clip[0] / "vocab.json").read_text()))
    sizes = {"patch": 8, "grid": 4, "positions": 24, "vocabulary": ids}
    write_magiclens(tmp_path / "magic_lens.pkl", reference.random_arrays(**sizes))
    assert (
        _convert(tmp_path / "magic_lens.pkl", "--tokenizer", clip[0], "--out", tmp_path / "w") == 0
    )
    write_fashion_iq(tmp_path / "data")
    done = run(
        *("--config=w/config.json", "--config.init_from=w", "--workdir=tuned"),
        *("--config.data.name=fashion_iq", "--config.data.directory=data"),
        *("--config.train.epochs=1", "--config.train.batch_size=8", "--config.eval.batch_size=8"),
        *("--config.model.image.frozen=false", "--config.model.text.frozen=false"),
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    start, tuned = (cmap_jax.load(tmp_path / name) for name in ("w", "tuned"))
    assert tuned.step > 0
    assert tuned.protocol.name == "fashioniq/original"
    for part in ("composer", "image_encoder", "text_encoder"):
        changed = jax.tree.map(
            lambda a, b: bool(np.any(a != b)),
            start.variables["params"][part],
            tuned.variables["params"][part],
        )
        assert any(jax.tree.leaves(changed)), part
    assert "zero-shot" not in done.stdout


def test_refusals(clip, tmp_path, capsys):
    folder, out = clip[0], tmp_path / "out"

    def refused(*arguments) -> str:
        assert _convert(*arguments, "--out", out) == 1
        assert not out.exists()
        assert not list(tmp_path.glob(".out*"))
        message = capsys.readouterr().err
        assert message.count("\n") == 1
        return message

    assert "--vocab has no meaning for" in refused(folder, "--vocab", folder)
    assert "taken as a CLIP or SigLIP folder" in refused(folder, "--scaling", "fixed")
    (tmp_path / "empty").mkdir()
    assert "config.json" in refused(tmp_path / "empty")
    write_magiclens(tmp_path / "small.pkl", reference.random_arrays())
    assert "has no tokenizer in it" in refused(tmp_path / "small.pkl")
    assert "they do not belong together" in refused(tmp_path / "small.pkl", "--tokenizer", folder)
    assert "--normalize has no meaning" in refused(
        tmp_path / "small.pkl", "--tokenizer", folder, "--normalize"
    )
    assert "gone.pkl: no such file" in refused(tmp_path / "gone.pkl", "--tokenizer", folder)
    assert "no such file or folder" in refused("clip-vit")
    assert "the folder is needed" in refused(folder / "model.safetensors")
    (tmp_path / "m.pth").write_bytes(b"x")
    assert "with --vocab" in refused(tmp_path / "m.pth")
    assert "--text-weight must be 0 to" in refused(folder, "--text-weight", "-1")
    Image.new("RGB", (8, 8)).save(tmp_path / "picture.png")
    assert refused(folder, "--tokenizer", tmp_path / "picture.png")


def test_converted_config_is_the_models(clip, tmp_path):
    """The stored config describes the model whole: it is built from it and nothing else."""
    assert _convert(clip[0], "--out", tmp_path / "run") == 0
    trained = cmap_jax.load(tmp_path / "run")
    assert CMAP.from_config(trained.config) == trained.model
