"""A published folder, whole: features of raw texts and pictures equal those of `transformers`."""

import jax
import numpy as np
import pytest
from foreign_towers import clip_config, foreign_model, siglip_config
from optional import require
from PIL import Image
from subword_files import (
    odd_texts,
    write_clip_folder,
    write_clip_pairs,
    write_siglip2_folder,
    write_siglip_folder,
)

from cmap_jax.convert import fill_pretrained, load_hugging_face
from cmap_jax.models.encoders import IMAGE_ENCODERS, TEXT_ENCODERS
from cmap_jax.models.image_encoder import normalize_images
from cmap_jax.processing.images import ImagePreprocessing, preprocess_image
from cmap_jax.processing.subwords import JSON
from cmap_jax.processing.tokenizers import TOKENIZERS, make_tokenizer
from configs import default


def _clip(folder):
    folder.mkdir()
    pieces = TOKENIZERS["clip"].from_data(str(write_clip_pairs(folder.parent)), (), ())
    pieces.save(folder.parent / "pieces")
    write_clip_folder(folder, (folder.parent / "pieces" / JSON).read_bytes())
    ends = {"eos_token_id": len(pieces) - 1, "bos_token_id": len(pieces) - 2}
    return clip_config({"vocab_size": len(pieces), **ends}), "CLIPTokenizer", "CLIPImageProcessor"


def _siglip(folder):
    write_siglip_folder(folder)
    size = len(TOKENIZERS["siglip"].from_data(str(folder), (), ()))
    config = siglip_config({"vocab_size": size, "max_position_embeddings": 64})
    return config, "SiglipTokenizer", "SiglipImageProcessor"


def _siglip_2(folder):
    rules = {"add_bos_token": False, "add_eos_token": True, "padding_side": "right"}
    write_siglip2_folder(folder, **rules)
    size = len(TOKENIZERS["siglip"].from_data(str(folder), (), ()))
    text = {"vocab_size": size, "max_position_embeddings": 64, "pad_token_id": 0}
    return siglip_config(text), "Siglip2Tokenizer", "SiglipImageProcessor"


@pytest.mark.parametrize("write", [_clip, _siglip, _siglip_2])
def test_features_of_texts_and_pictures(write, tmp_path):
    """The config comes from `config.model.pretrained`; 200 texts, and pictures of odd sizes."""
    torch, transformers = require("torch"), require("transformers")
    folder = tmp_path / "model"
    theirs_config, tokenizer_class, processor_class = write(folder)
    model = foreign_model(theirs_config)
    model.save_pretrained(folder)
    side = theirs_config.vision_config.image_size
    square = {"height": side, "width": side}
    is_clip = processor_class.startswith("CLIP")
    sizes = {"size": {"shortest_edge": side}, "crop_size": square} if is_clip else {"size": square}
    processor = getattr(transformers, f"{processor_class}Pil")(**sizes)
    processor.save_pretrained(folder)
    tokenizer = getattr(transformers, tokenizer_class).from_pretrained(folder)

    config = default.get_config()
    config.model.pretrained = str(folder)
    config = fill_pretrained(config)
    params = load_hugging_face(folder).variables["params"]
    texts = odd_texts()
    ours = make_tokenizer(config.model.text, ())
    assert len(ours) == config.model.text.vocabulary_size
    tokens, lengths = ours.encode_batch(texts)
    family = config.model.text.name
    encode = TEXT_ENCODERS[family].build(
        config.model.text[family], len(ours), config.model.embed_dim, "none", np.float32
    )
    with jax.default_matmul_precision("highest"):
        text = jax.jit(lambda p: encode.apply(p, tokens, lengths, train=False))(
            {"params": params["text_encoder"]}
        )
    ids = tokenizer(
        texts, padding="max_length", max_length=ours.limit, truncation=True, return_tensors="pt"
    ).input_ids
    with torch.no_grad():
        expected = model.get_text_features(input_ids=ids).pooler_output.numpy()
    np.testing.assert_allclose(text, expected, atol=1e-4, rtol=0)

    rng = np.random.default_rng(0)
    pictures = [
        Image.fromarray(rng.integers(0, 256, (*size, 3)).astype(np.uint8))
        for size in ((31, 57), (90, 41), (24, 24), (19, 20))
    ]
    data = config.data
    preprocessing = ImagePreprocessing(
        resize=data.resize, crop=data.crop, fit=data.fit, resampling=data.resampling
    )
    entry, settings = IMAGE_ENCODERS[family], config.model.image[family]
    pixels = np.stack([preprocess_image(picture, preprocessing) for picture in pictures])
    normalized = normalize_images(pixels, entry.pictures_of(settings))
    values = torch.from_numpy(np.asarray(processor(pictures, return_tensors="np").pixel_values))
    np.testing.assert_allclose(np.moveaxis(normalized, 3, 1), values.numpy(), atol=1e-5)
    backbone = entry.build(settings, True, "none", np.float32)
    with jax.default_matmul_precision("highest"):
        image = jax.jit(lambda p: backbone.apply(p, normalized, train=False)["high"])(
            {"params": params["image_encoder"]["backbone"]}
        )
    with torch.no_grad():
        expected = model.get_image_features(pixel_values=values).pooler_output.numpy()
    np.testing.assert_allclose(image, expected, atol=1e-4, rtol=0)
