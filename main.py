"""Train, evaluate or describe a model.

python main.py --config=configs/garments.py
python main.py --mode=evaluate --workdir=runs/garments
python main.py --mode=describe --config=configs/fashioniq.py
"""

import os
import sys

# Set before TensorFlow is imported, which reads them then: it logs errors alone, and does not use
# oneDNN, which announces itself.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
os.environ.setdefault("TF_ENABLE_ONEDNN_OPTS", "0")

from cmap_jax.cli import train, utf8

if __name__ == "__main__":
    utf8.use_utf8()
    train.main(sys.argv)
