"""Small CLIP and SigLIP of transformers with random weights, and the features that they give."""

import pathlib
from typing import Any

import numpy as np
from optional import require

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}
VOCABULARY = 60
WORDS = {"vocab_size": VOCABULARY, "bos_token_id": 1, "pad_token_id": 1}


def clip_config(text: dict | None = None, vision: dict | None = None, **whole: Any) -> Any:
    """Return a small CLIP's config; arguments replace its values."""
    return require("transformers").CLIPConfig(
        text_config={**SIZES, **WORDS, "eos_token_id": VOCABULARY - 1, **(text or {})},
        vision_config={**SIZES, "image_size": 24, "patch_size": 8, **(vision or {})},
        **{"projection_dim": 20, **whole},
    )


def siglip_config(text: dict | None = None, vision: dict | None = None) -> Any:
    """Return a small SigLIP's config; arguments replace its values."""
    words = {**WORDS, "eos_token_id": 1, "max_position_embeddings": 12}
    return require("transformers").SiglipConfig(
        text_config={**SIZES, **words, **(text or {})},
        vision_config={**SIZES, "image_size": 24, "patch_size": 8, **(vision or {})},
    )


def foreign_model(config: Any, seed: int = 0) -> Any:
    """Return a model of transformers; no bias is 0 and no norm's scale 1."""
    torch, transformers = require("torch"), require("transformers")
    torch.manual_seed(seed)
    is_clip = config.model_type == "clip"
    model = (transformers.CLIPModel if is_clip else transformers.SiglipModel)(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def save(model: Any, folder: pathlib.Path, **options: Any) -> pathlib.Path:
    """Save a model in a folder, in one file unless the options of save_pretrained say otherwise."""
    model.save_pretrained(folder, **options)
    return folder


def random_images(side: int, count: int = 2) -> np.ndarray:
    """Return normalised images."""
    return np.random.default_rng(1).normal(size=(count, side, side, 3)).astype(np.float32)


def random_texts(width: int, family: str, vocabulary: int = VOCABULARY) -> tuple[np.ndarray, ...]:
    """Return tokens and lengths of texts that end with the largest id, padded as the family is."""
    rng = np.random.default_rng(2)
    lengths = np.array([width, 3, width // 2], np.int32)
    tokens = rng.integers(3, vocabulary - 1, (3, width)).astype(np.int32)
    for row, length in zip(tokens, lengths, strict=True):
        row[length - 1] = vocabulary - 1
        row[length:] = 0 if family == "clip" else 1
    return tokens, lengths


def foreign_features(model: Any, images: np.ndarray, tokens: np.ndarray, **options: Any) -> dict:
    """Return "image" and "text" features, and the "layers" of the vision tower from the input on.

    Args:
        model: of transformers.
        images: normalised, [B, H, W, 3].
        tokens: [B, T].
        options: passed to the vision tower.
    """
    torch = require("torch")
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2)
    with torch.no_grad():
        image = model.get_image_features(pixel_values=pixels, **options)
        hidden = model.vision_model(pixel_values=pixels, output_hidden_states=True, **options)
        text = model.get_text_features(input_ids=torch.from_numpy(tokens).long())
    return {
        "image": image.pooler_output.numpy(),
        "text": text.pooler_output.numpy(),
        "layers": [layer.numpy() for layer in hidden.hidden_states],
    }
