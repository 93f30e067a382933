r"""CLIP's and SigLIP's towers, by the words that config files take, and how they are fine-tuned.

python main.py --config=configs/fashioniq.py:clip_vit_b32 --config.data.directory=fashion-iq \
    --config.model.pretrained=openai/clip-vit-base-patch32

On accelerators, --config.model.dtype=bfloat16 is the mixed precision of the sources below.

Stage 1 trains the heads over frozen towers, by the recipe of the method (docs/method.md, section 3,
parameter groups); stage 2, ":finetune", trains everything. No paper trains this method over such
towers. Each value here names its source:

- [CLIP4Cir]: Baldrati et al., CVPR Workshops 2022, and its public code, which fine-tunes both
  encoders of a CLIP ResNet-50x4 under the sum of their features, and then trains a network that
  composes them.
- [SPRC]: Bai et al., ICLR 2024, and its public code, which fine-tunes BLIP-2.
- [library]: a choice of this library.
"""

from collections.abc import Collection

from ml_collections import ConfigDict

# The weights that each word stands for, as --config.model.pretrained takes them.
WEIGHTS = {
    "clip_vit_b32": "openai/clip-vit-base-patch32",
    "clip_vit_b16": "openai/clip-vit-base-patch16",
    "clip_vit_l14": "openai/clip-vit-large-patch14",
    "siglip_b16": "google/siglip-base-patch16-224",
}
_VOCABULARIES = {"clip": 49408, "siglip": 32000}  # token ids
_TINY = {"width": 64, "layers": 3, "heads": 4, "mlp_width": 128}  # for a CPU


def use(config: ConfigDict, words: Collection[str]) -> None:
    """Set a config to the towers, the texts and the pictures of a published model.

    Args:
        config: a whole config, which is changed.
        words: a config's argument; without a key of `WEIGHTS` nothing is changed.
    """
    for name in WEIGHTS.keys() & words:
        family = name.partition("_")[0]
        config.model.image.name = config.model.text.name = config.model.text.tokenizer = family
        if family == "clip":
            _use_clip(config, name)
        else:
            config.model.embed_dim = config.model.text.siglip.projection
            config.data.fit = "stretch"  # as SigLIP was trained
        config.model.text.vocabulary_size = _VOCABULARIES[family]
        config.data.resampling = "bicubic"  # as both were trained
        # The crop is the whole picture, and there are no flips, as in [CLIP4Cir]: a smaller crop
        # could cut off what a text says, and a flip swap its left and right.
        config.data.resize = config.data.crop = config.model.image[family].image_size
        config.data.augment = False


def _use_clip(config: ConfigDict, name: str) -> None:
    """Set a config to a CLIP; the fields are ViT-B/32's by default."""
    image, text = config.model.image.clip, config.model.text.clip
    if name == "clip_vit_b16":
        image.patch = 16
    if name == "clip_vit_l14":
        image.update(width=1024, layers=24, heads=16, mlp_width=4096, patch=14, projection=768)
        image.map_blocks = (18, 12)
        text.update(width=768, heads=12, mlp_width=3072, projection=768)
        # [library]: without it, and compiled for a CPU in float32, a batch of 128 takes 236 GB.
        config.model.remat = "blocks"
    config.model.embed_dim = text.projection
    config.data.fit = "targetpad"  # [CLIP4Cir]


def finetune(config: ConfigDict) -> None:
    """Set a config to stage 2, in which pretrained towers train too.

    Args:
        config: a whole config after `use`; one without towers is not changed.
    """
    if config.model.image.name not in _VOCABULARIES:
        return
    config.optimizer.learning_rate = 2e-5  # the heads': that of [CLIP4Cir]'s composing network
    for group in (config.optimizer.groups.image, config.optimizer.groups.text):
        group.learning_rate = 0.1  # 2e-6, [CLIP4Cir]
    # [CLIP4Cir] decays all parameters by 0.01, which is the default, and [SPRC] by 0.05.
    config.optimizer.eps = 1e-7  # [CLIP4Cir] and [SPRC]
    # [SPRC] warms up for an epoch and a half and then follows a cosine; [CLIP4Cir] keeps the rate.
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 200  # [library]: almost an epoch of FashionIQ or CIRR
    config.train.batch_size = 128  # [CLIP4Cir]
    config.train.epochs = 16  # [library]: stage 1 has trained the heads; [CLIP4Cir] has 100 at most


def shrink(config: ConfigDict) -> None:
    """Set a config to tiny towers of its family on small images, from random values.

    Texts become the words of the training captions, which need no published files.

    Args:
        config: a whole config after `use` and after the shrinking of everything else; one without
            towers is not changed.
    """
    family = config.model.image.name
    if family not in _VOCABULARIES:
        return
    image, text = config.model.image[family], config.model.text[family]
    image.update(_TINY, patch=8, image_size=config.data.crop, map_blocks=(2, 1))
    text.update(_TINY, positions=128, projection=config.model.embed_dim)
    if family == "clip":
        image.projection = config.model.embed_dim
        text.end_token = 3  # the id of <end>
    else:
        text.pad_token = 0  # the id of <pad>
    config.model.text.tokenizer, config.model.text.vocabulary_size = "words", None
    config.model.remat = "none"
    config.data.augment = True  # random values need it, and the crop is smaller than the picture
    config.optimizer.learning_rate = 1e-3  # transformers diverge at the ResNet's
    for group in (config.optimizer.groups.image, config.optimizer.groups.text):
        group.learning_rate = 1.0
