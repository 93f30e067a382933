"""Every field, with the paper's values. A config file changes what differs and nothing else."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder


def get_config() -> ConfigDict:
    """Return the defaults: CMAP with a ResNet-50, stage 1 of the paper's recipe.

    See docs/method.md, sections 1 to 4.
    """
    config = ConfigDict()
    config.seed = 0  # seed of the initial values, the order of the data, augmentation and dropout
    # A model to start from: a workdir, whose best checkpoint is taken, or one of the authors' .pth
    # files. None: start from config.model's init_from and word_vectors, or from random values.
    config.init_from = placeholder(str)

    config.model = ConfigDict()
    # A composition method: a key of `COMPOSERS` in cmap_jax/models/composers.py (docs/method.md,
    # section 1), or one of your own, "my_package.my_module:MyComposer".
    config.model.variant = "cmap"
    config.model.embed_dim = 512  # D, the width of all embeddings
    config.model.logit_scale = 2.65926  # initial log of the inverse temperature: exp = 1 / 0.07
    config.model.dtype = "float32"  # dtype of the products in encoders; "bfloat16" on accelerators
    # Rematerialisation: which results the encoders keep for the gradient. "none": all; "products":
    # those of convolutions and linear layers; "blocks": the inputs of each ResNet block or step of
    # a recurrence, a third more work.
    config.model.remat = "none"

    config.model.image = ConfigDict()
    # The family of the image encoder; the part of its name below holds its settings. See
    # cmap_jax/models/encoders.
    config.model.image.name = "resnet"
    config.model.image.cross_level = "down"  # "down" as released, "up" the pyramid, "none"
    # A file of pretrained weights: torchvision's ResNet of this depth and width, .pth or
    # .safetensors. None: random values.
    config.model.image.init_from = placeholder(str)
    # No gradient and no weight decay for the pretrained part: the whole ResNet (stage 1).
    config.model.image.frozen = True
    config.model.image.resnet = ConfigDict()
    config.model.image.resnet.depth = 50  # layers: 18, 34 or 50
    config.model.image.resnet.width = 64  # channels of the stem
    # Batch-norm in training where the ResNet is frozen: "batch" as released, normalise by the batch
    # and update the running statistics; "running": normalise by them and leave them unchanged.
    config.model.image.resnet.frozen_batch_norm = "batch"
    # Number of equal parts of the global batch, each normalised by its own statistics. 1: the whole
    # batch; the number of devices: each device its own part, without communication.
    config.model.image.resnet.batch_norm_groups = 1

    config.model.text = ConfigDict()
    # The family of the text encoder, "gru" or "lstm"; the part of its name below has its settings.
    config.model.text.name = "gru"
    config.model.text.tokenizer = "words"  # see cmap_jax/processing/tokenizers.py
    config.model.text.vocabulary_size = placeholder(int)  # number of token ids; None: the data's
    # A file of pretrained weights: word vectors as GloVe's or fastText's text or in either form of
    # word2vec, plain, .gz or .zip. None: random values.
    config.model.text.init_from = placeholder(str)
    # No gradient and no weight decay for the pretrained part: the word embedding (stage 1).
    config.model.text.frozen = True
    config.model.text.gru = ConfigDict()
    config.model.text.gru.word_dim = 300  # width of the word embedding
    config.model.text.lstm = ConfigDict()
    config.model.text.lstm.word_dim = 300  # width of the word embedding
    config.model.text.lstm.hidden = 1024  # units
    config.model.text.lstm.dropout = 0.1  # rate after the maximum over time
    # Take the maximum over the padding too, as released: for old checkpoints only.
    config.model.text.lstm.pool_padding = False

    config.loss = ConfigDict()
    # Weights of the matching loss at the levels high, mid and low.
    config.loss.matching_weights = (1.0, 1.0, 1.0)
    # Weights of the preservation loss at the same levels; all 0 switch it off.
    config.loss.preservation_weights = (1.0, 1.0, 0.5)
    config.loss.margins = (0.6, 0.4, 0.3)  # margins of the preservation loss at the same levels
    # Weight of the text in the preservation loss, 0 to 1; the modification T has 1 - alpha.
    config.loss.alpha = 1.0
    # Reduction of the preservation loss over the batch. "sum" is the method's: it grows with the
    # batch, and weights times 128 / batch_size keep its effect at another size. "mean", with the
    # weights times 128, does not depend on the batch size.
    config.loss.preservation_reduction = "sum"

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 5e-4  # the largest: at the start, or after the warm-up
    config.optimizer.b1 = 0.9  # AdamW's decay rate of the first moment
    config.optimizer.b2 = 0.999  # AdamW's decay rate of the second moment
    config.optimizer.eps = 1e-8  # added to the square root of the second moment
    config.optimizer.weight_decay = 0.01  # on all trained parameters, biases and norms included
    config.optimizer.clip_norm = placeholder(float)  # largest gradient norm; None: not clipped
    # "stepped": the rate halves after some epochs. "cosine": it falls to 0 along a cosine.
    config.optimizer.schedule = "stepped"
    config.optimizer.halve_every = 4  # epochs between two halvings under "stepped"
    config.optimizer.halve_faster_from = 20  # the epoch, from 0, at which the interval changes
    config.optimizer.halve_faster_every = 2  # epochs between two halvings from then on
    # Steps of the linear warm-up from 0 under "cosine"; cut to half of the run where it is shorter.
    config.optimizer.warmup_steps = 0

    config.train = ConfigDict()
    config.train.batch_size = 128  # triplets in the global batch; each has the others as negatives
    # Triplets encoded at once, over all devices: a smaller number needs less memory and a third
    # more work, with the same negatives and gradients. None: the global batch at once.
    config.train.micro_batch_size = placeholder(int)
    # "stop" the run at a loss or a gradient that is not finite; or "skip" the step and count it.
    config.train.non_finite = "stop"
    config.train.epochs = 16  # epochs of the whole run; stage 1 and stage 2 are two runs
    config.train.log_every_steps = 50  # steps between two logged values, each a mean over them
    # Epochs between two checkpoints; there is one at the end too, and when the run is stopped.
    config.train.checkpoint_every_epochs = 1
    config.train.checkpoints_to_keep = 2  # latest checkpoints that are kept, besides the best one

    # The devices form a mesh of two axes; the global batch is sharded over both.
    config.mesh = ConfigDict()
    # Size of the data axis, over which parameters are replicated. -1: the number of devices
    # divided by fsdp.
    config.mesh.data = -1
    # Size of the fsdp axis, over which large parameters and their optimiser moments are sharded
    # too. 1: they are replicated on every device.
    config.mesh.fsdp = 1

    config.distributed = ConfigDict()  # a run of several processes; see docs/scaling.md
    # Seconds without a heartbeat of a process after which the other processes end.
    config.distributed.heartbeat_timeout_seconds = 30

    config.eval = ConfigDict()
    config.eval.every_epochs = 1  # epochs between two evaluations; there is one at the end too
    config.eval.batch_size = 128  # images or queries encoded at once, over all devices
    config.eval.gallery_chunk = 1024  # gallery images scored at once
    config.eval.rankings = False  # True: also write the first 50 images of every query
    # True: also evaluate with the text alone and with the image alone, to show how much of the
    # recall needs no composition.
    config.eval.shortcuts = False

    config.data = ConfigDict()
    # "fashion_iq", "shoes", "fashion200k", "cirr", "circo" (evaluation only), "folder", "garments"
    config.data.name = "fashion_iq"
    config.data.directory = placeholder(str)  # the folder with the annotations
    # The folder with the images; None: the one that is inside config.data.directory.
    config.data.image_directory = placeholder(str)
    # "fail" at images that are missing or cannot be decoded; or "skip": leave out the items and
    # queries that need them, and stamp the results with their number.
    config.data.missing_images = "fail"
    # "fail" where over half of a split's captions lose all words in cleaning, or over half of its
    # words are not in the vocabulary; or "allow": train all the same.
    config.data.unreadable_texts = "fail"
    # "accept": a missing image may be a file whose name differs only in letter case, extension,
    # leading zeros, Unicode form, percent-encoding or outer spaces; "fail": name it in the error.
    config.data.near_names = "fail"
    # Limit of the memory for decoded images, in GB; an image takes resize^2 x 3 bytes. All images
    # of the run are kept if they fit, else none. 0: never keep them.
    config.data.cache_gb = 2.0
    # Random crops and flips in training; False: the centre of each image, as in evaluation.
    config.data.augment = True
    # A folder that `cmap extract` wrote: a frozen image encoder's features of all images, which are
    # read in place of pixels, in training (without augmentation) and evaluation. None: pixels.
    config.data.features = placeholder(str)
    # How image files are read. "released": EXIF orientation is ignored and alpha dropped, as in the
    # published protocols; "upright": as an image viewer shows them. None: "upright" for own images
    # (config.data.name "folder"), "released" for the published data sets.
    config.data.read_as = placeholder(str)
    # How an image becomes a square: "pad" its shorter side with white, as published; "crop" its
    # longer side; "stretch" both.
    config.data.fit = "pad"
    config.data.resampling = "bilinear"  # filter of resizing; or "bicubic"
    config.data.resize = 256  # side of that square in pixels
    config.data.crop = 224  # side of the crop that the model sees; a ResNet's: a multiple of 32
    config.data.garments = ConfigDict()  # how "garments" are rendered; others ignore it
    config.data.garments.seed = 0  # seed of the pictures and captions; config.seed may differ
    config.data.garments.image_size = 72  # pixels
    config.data.garments.train_triplets = 20000  # each gives two items, one per caption order
    return config


def parse_argument(argument: str, file: str, allowed: tuple[str, ...]) -> set[str]:
    """Return the words of a config's argument, the text after the colon, split at its commas.

    Args:
        argument: such as "finetune,debug"; empty for a config file without an argument.
        file: path of the config file, for the error.
        allowed: words that the config file understands.

    Raises:
        ValueError: a word that is not allowed; names those that are.
    """
    words = set(filter(None, argument.split(",")))
    if words - set(allowed):
        known = ", ".join(f'"{word}"' for word in allowed)
        raise ValueError(f"{file} takes no argument or {known}, not {argument!r}")
    return words


def get_stage(file: str, argument: str, data_name: str) -> ConfigDict:
    """Return the config of a data set whose model is trained in two stages.

    See docs/method.md, section 3.

    Args:
        file: path of the config file, for errors.
        argument: empty for stage 1; "finetune" for stage 2, which starts from stage 1's best
            checkpoint and trains everything; "debug" with either makes the model small.
        data_name: value of ``config.data.name``.
    """
    words = parse_argument(argument, file, ("finetune", "debug"))
    config = get_config()
    config.data.name = data_name
    if "debug" in words:
        shrink(config)
    if "finetune" in words:
        config.init_from = ""  # must be given on the command line
        config.model.image.frozen = False
        config.model.text.frozen = False
    return config


def shrink(config: ConfigDict) -> None:
    """Set a config to a small model on small images, which a CPU trains from scratch."""
    config.model.embed_dim = 256
    config.model.image.resnet.depth = 18
    config.model.image.resnet.width = 16
    config.model.image.frozen = False  # nothing is pretrained
    config.model.text.frozen = False
    config.model.text.gru.word_dim = 64  # 300 is GloVe's
    config.model.text.lstm.word_dim = 64
    # At their published size, for a sum over 128, these would drown the matching loss at first.
    config.loss.preservation_weights = (0.02, 0.02, 0.01)
    config.optimizer.learning_rate = 4e-3
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup_steps = 50
    config.train.batch_size = 128
    config.train.epochs = 2
    config.data.resize = 72
    config.data.crop = 64
