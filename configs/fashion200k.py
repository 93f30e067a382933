r"""Fashion200k: CMAP with a ResNet-50 on pairs sampled online, one text a query.

See docs/method.md, section 5.

Stage 1, with the ResNet and the word embedding frozen, then stage 2, where everything trains:

python main.py --config=configs/fashion200k.py --config.data.directory=fashion200k \
    --config.model.image.init_from=resnet50.pth --config.model.text.init_from=glove.840B.300d.zip
python main.py --config=configs/fashion200k.py:finetune --config.data.directory=fashion200k \
    --config.init_from=runs/fashion200k

The folder holds `labels`, `test_queries.txt` and `women`; images elsewhere:
`--config.data.image_directory=...`. ":debug" and ":finetune,debug" train a small model
from scratch on a CPU, for two epochs.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """Return the config; ``arg`` is empty, "finetune", "debug" or "finetune,debug"."""
    return default.get_stage("configs/fashion200k.py", arg, "fashion200k")
