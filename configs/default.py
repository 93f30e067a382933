"""Every field, with the paper's values. A config file changes what differs and nothing else."""

from ml_collections import ConfigDict
from ml_collections.config_dict import placeholder

from configs import towers

# The word in a config's argument for the encoder whose weights install with pip.
PACKAGED = "pretrained"


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
    config.model.sum = ConfigDict()  # the method "sum"; others ignore it
    config.model.sum.text_weight = 1.0  # weight of the text's feature beside the picture's
    # l2-normalise both features before the sum, as CLIP baselines do; BGE-VL adds them as they are.
    config.model.sum.normalize = True
    config.model.magiclens = ConfigDict()  # the method "magiclens"; others ignore it
    config.model.magiclens.layers = 4  # layers of its transformer
    config.model.magiclens.heads = 8  # heads of its attentions; 16 in the large model
    config.model.embed_dim = 512  # D, the width of all embeddings
    config.model.logit_scale = 2.65926  # initial log of the inverse temperature: exp = 1 / 0.07
    config.model.dtype = "float32"  # dtype of the products in encoders; "bfloat16" on accelerators
    # Rematerialisation: which results the encoders keep for the gradient. "none": all; "products":
    # those of convolutions and linear layers; "blocks": the inputs of each block of a network or
    # step of a recurrence, a third more work.
    config.model.remat = "none"
    # A CLIP or SigLIP as Hugging Face stores it: a folder, or an id such as
    # openai/clip-vit-base-patch32. When main.py starts, it sets the fields that describe both
    # towers and their pictures and text, sets both init_from (without config.init_from), and is
    # unset. None: no such model.
    config.model.pretrained = placeholder(str)

    config.model.image = ConfigDict()
    # The family of the image encoder: "resnet", "efficientnet_lite0", "clip" or "siglip"; the part
    # of its name below holds its settings. See cmap_jax/models/encoders.
    config.model.image.name = "resnet"
    config.model.image.cross_level = "down"  # "down" as released, "up" the pyramid, "none"
    # A file of pretrained weights, .pth or .safetensors: torchvision's ResNet of this depth and
    # width, or EfficientNet-Lite0's. "efficientnet_lite0": those of the installed package (pip
    # install 'cmap_jax[pretrained]'). "clip", "siglip": a folder as Hugging Face stores it, or an
    # id. None: random values.
    config.model.image.init_from = placeholder(str)
    # No gradient and no weight decay for the pretrained part: the whole network before the
    # cross-level interaction (stage 1).
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
    config.model.image.efficientnet_lite0 = ConfigDict()
    # The level high: "head", the last convolution's 1,280 channels; or "blocks", the 320 of the
    # last block, without the head.
    config.model.image.efficientnet_lite0.high = "head"
    # As the ResNet's. "running" keeps the features that the weights were published with.
    config.model.image.efficientnet_lite0.frozen_batch_norm = "running"
    config.model.image.efficientnet_lite0.batch_norm_groups = 1  # as the ResNet's
    config.model.image.clip = ConfigDict()  # CLIP's vision tower; these are ViT-B/32's values
    config.model.image.clip.width = 768  # channels of the tokens
    config.model.image.clip.layers = 12  # blocks
    config.model.image.clip.heads = 12  # heads of each attention
    config.model.image.clip.mlp_width = 3072  # hidden channels of a block's two linear layers
    config.model.image.clip.activation = "quick_gelu"  # or "gelu", "gelu_tanh"
    config.model.image.clip.epsilon = 1e-5  # constant that LayerNorms add to the variance
    # One loop runs all blocks; False: each is compiled by itself, with the same weights.
    config.model.image.clip.scan_layers = True
    config.model.image.clip.patch = 32  # side of a patch, pixels
    # Side of the pictures that the positions are for, pixels; config.data.crop must be the same.
    config.model.image.clip.image_size = 224
    # True: positions are resampled for another config.data.crop, a multiple of the patch.
    config.model.image.clip.interpolate_positions = False
    # Numbers of the blocks, from 1, whose tokens are the maps of the levels mid and low; empty: the
    # projected feature alone, for variants of one level.
    config.model.image.clip.map_blocks = (9, 6)
    # By channel, the mean that is subtracted from pixels in [0, 1].
    config.model.image.clip.mean = (0.48145466, 0.4578275, 0.40821073)
    # By channel, the standard deviation that the result is divided by.
    config.model.image.clip.std = (0.26862954, 0.26130258, 0.27577711)
    config.model.image.clip.projection = 512  # channels of the projected feature
    config.model.image.siglip = ConfigDict()  # SigLIP's vision tower; these are B/16's values
    config.model.image.siglip.width = 768  # channels of the tokens
    config.model.image.siglip.layers = 12  # blocks
    config.model.image.siglip.heads = 12  # heads of each attention
    config.model.image.siglip.mlp_width = 3072  # hidden channels of a block's two linear layers
    config.model.image.siglip.activation = "gelu_tanh"  # or "gelu", "quick_gelu"
    config.model.image.siglip.epsilon = 1e-6  # constant that LayerNorms add to the variance
    # One loop runs all blocks; False: each is compiled by itself, with the same weights.
    config.model.image.siglip.scan_layers = True
    config.model.image.siglip.patch = 16  # side of a patch, pixels
    # Side of the pictures that the positions are for, pixels; config.data.crop must be the same.
    config.model.image.siglip.image_size = 224
    # True: positions are resampled for another config.data.crop, a multiple of the patch.
    config.model.image.siglip.interpolate_positions = False
    # Numbers of the blocks, from 1, whose tokens are the maps of the levels mid and low; empty: the
    # pooled feature alone, for variants of one level.
    config.model.image.siglip.map_blocks = (9, 6)
    # By channel, the mean that is subtracted from pixels in [0, 1].
    config.model.image.siglip.mean = (0.5, 0.5, 0.5)
    # By channel, the standard deviation that the result is divided by.
    config.model.image.siglip.std = (0.5, 0.5, 0.5)

    config.model.text = ConfigDict()
    # The family of the text encoder: "gru", "lstm", "clip" or "siglip"; the part of its name below
    # has its settings.
    config.model.text.name = "gru"
    # How texts become ids: "words", those of the training captions; "clip" or "siglip", published
    # sub-words. See cmap_jax/processing/tokenizers.py.
    config.model.text.tokenizer = "words"
    # Files of sub-words: a Hugging Face folder, or CLIP's bpe_simple_vocab_16e6.txt.gz. None: those
    # in the folder init_from. A workdir keeps a copy.
    config.model.text.tokenizer_path = placeholder(str)
    config.model.text.vocabulary_size = placeholder(int)  # number of token ids; None: the data's
    # A file of pretrained weights: word vectors as GloVe's or fastText's text or in either form of
    # word2vec, plain, .gz or .zip; "clip", "siglip": a folder as Hugging Face stores it, or an id.
    # None: random values.
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
    config.model.text.clip = ConfigDict()  # CLIP's text tower; these are ViT-B/32's values
    config.model.text.clip.width = 512  # channels of the tokens
    config.model.text.clip.layers = 12  # blocks
    config.model.text.clip.heads = 8  # heads of each attention
    config.model.text.clip.mlp_width = 2048  # hidden channels of a block's two linear layers
    config.model.text.clip.activation = "quick_gelu"  # or "gelu", "gelu_tanh"
    config.model.text.clip.epsilon = 1e-5  # constant that LayerNorms add to the variance
    # One loop runs all blocks; False: each is compiled by itself, with the same weights.
    config.model.text.clip.scan_layers = True
    config.model.text.clip.positions = 77  # the most tokens of a text
    # Channels of the projected feature; config.model.embed_dim must be the same.
    config.model.text.clip.projection = 512
    # Id of the end of a text, at which the feature is taken; 2 stands for a text's largest id.
    config.model.text.clip.end_token = 2
    config.model.text.siglip = ConfigDict()  # SigLIP's text tower; these are B/16's values
    config.model.text.siglip.width = 768  # channels of the tokens
    config.model.text.siglip.layers = 12  # blocks
    config.model.text.siglip.heads = 12  # heads of each attention
    config.model.text.siglip.mlp_width = 3072  # hidden channels of a block's two linear layers
    config.model.text.siglip.activation = "gelu_tanh"  # or "gelu", "quick_gelu"
    config.model.text.siglip.epsilon = 1e-6  # constant that LayerNorms add to the variance
    # One loop runs all blocks; False: each is compiled by itself, with the same weights.
    config.model.text.siglip.scan_layers = True
    config.model.text.siglip.positions = 64  # tokens of every text, padding included
    # Channels of the projected feature; config.model.embed_dim must be the same.
    config.model.text.siglip.projection = 768
    config.model.text.siglip.pad_token = 1  # id of the padding, which the text tower reads

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
    # The opposite of the preservation attention A_p, where the preservation loss wants the text:
    # "released", 2 mean(A_p) - A_p; "clipped", the same where it is positive, else 0; "maximum",
    # max(A_p) - A_p.
    config.loss.preservation_reversal = "released"
    # False: the preservation loss moves attentions and images, but not the text that it compares
    # them with. The attention still reads the text.
    config.loss.preservation_moves_text = True
    # Steps without the preservation loss, and steps after them in which its weights rise to full.
    config.loss.preservation_start_steps = 0
    config.loss.preservation_ramp_steps = 0
    # Least entropy of the preservation attention, as a part of the even attention's, 0 to 1: what
    # is missing, in nats, is a loss of its own, a mean over the batch. 0: no such loss.
    config.loss.entropy_floor = 0.0
    config.loss.entropy_weight = 1.0  # weight of that loss

    config.optimizer = ConfigDict()
    config.optimizer.learning_rate = 5e-4  # the largest: at the start, or after the warm-up
    config.optimizer.b1 = 0.9  # AdamW's decay rate of the first moment
    config.optimizer.b2 = 0.999  # AdamW's decay rate of the second moment
    config.optimizer.eps = 1e-8  # added to the square root of the second moment
    config.optimizer.weight_decay = 0.01  # on all trained parameters but the undecayed ones
    # Kinds of parameters without weight decay: "biases", "norms" (scales and biases of norms),
    # "positions" (position embeddings and learned tokens), "scalars". None of them, as released.
    config.optimizer.undecayed = ()
    # Largest norm of the gradient of all trained parameters together; None: not clipped.
    config.optimizer.clip_norm = placeholder(float)
    # Groups of parameters: the pretrained parts of the image and the text encoder, which
    # config.model.image.frozen and config.model.text.frozen freeze, and the heads, all the rest.
    config.optimizer.groups = ConfigDict()
    config.optimizer.groups.image = ConfigDict()
    config.optimizer.groups.image.learning_rate = 1.0  # times config.optimizer.learning_rate
    config.optimizer.groups.image.weight_decay = 1.0  # times config.optimizer.weight_decay
    # Layer-wise decay: each layer learns at this times the rate of the one after it, the last layer
    # at this times the group's. The layers are the blocks of a tower or of EfficientNet-Lite0, or a
    # ResNet's stages; the stem or the embeddings lie below the first.
    config.optimizer.groups.image.layer_decay = 1.0
    config.optimizer.groups.text = ConfigDict()
    config.optimizer.groups.text.learning_rate = 1.0  # times config.optimizer.learning_rate
    config.optimizer.groups.text.weight_decay = 1.0  # times config.optimizer.weight_decay
    config.optimizer.groups.text.layer_decay = 1.0  # as for images
    config.optimizer.groups.heads = ConfigDict()
    config.optimizer.groups.heads.learning_rate = 1.0  # times config.optimizer.learning_rate
    config.optimizer.groups.heads.weight_decay = 1.0  # times config.optimizer.weight_decay
    config.optimizer.groups.heads.frozen = False  # no gradient and no weight decay for the heads
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
    # Decay of an exponential moving average of the trained parameters and the running statistics,
    # which is evaluated, saved as the best and thus used in their place; such as 0.999. 0: none.
    config.train.ema_decay = 0.0
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
    # Gallery images that a device scores at once. None: by the device and the number of queries.
    config.eval.gallery_chunk = placeholder(int)
    config.eval.rankings = False  # True: also write the first 50 images of every query
    # True: also evaluate with the text alone and with the image alone, to show how much of the
    # recall needs no composition.
    config.eval.shortcuts = False
    # Queries of each split's first protocol on which the modified and the preserved part are
    # compared: their heat maps and attentions (docs/method.md, section 13). 0: none.
    config.eval.overlap = 0
    # Texts of a data set whose queries name a concept that reference and targets share (CIRCO).
    # "one": the query's caption; "concept": "find {concept} but {caption}". Each has protocols of
    # its own. None: "concept" for the variant "magiclens", which was published so, else "one".
    config.eval.captions = placeholder(str)

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
    # longer side; "stretch" both; "targetpad": pad with black until the longer side is at most 1.25
    # times the shorter one, then "crop".
    config.data.fit = "pad"
    config.data.resampling = "bilinear"  # filter of resizing; or "bicubic"
    # "fixed": 255 is white in every picture. "own_maximum": a picture's levels are scaled so that
    # its highest one is white, as MagicLens was released.
    config.data.scaling = "fixed"
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
        argument: such as "finetune,clip_vit_b32"; empty for a config file without an argument.
        file: path of the config file, for the error.
        allowed: words that the config file understands, besides those of `configs/towers.py`.

    Raises:
        ValueError: a word that is not allowed, or several that name an encoder; names those that
            are.
    """
    words = set(filter(None, argument.split(",")))
    named = words & towers.WEIGHTS.keys()
    if words - named - set(allowed) or len(named | words & {PACKAGED}) > 1:
        known, models = (", ".join(f'"{w}"' for w in ws) for ws in (allowed, towers.WEIGHTS))
        raise ValueError(
            f"{file} takes no argument or {known}, not {argument!r}; with or without them it takes "
            f"one of {models}"
        )
    return words


def get_stage(file: str, argument: str, data_name: str) -> ConfigDict:
    """Return the config of a data set whose model is trained in two stages.

    See docs/method.md, section 3.

    Args:
        file: path of the config file, for errors.
        argument: empty for stage 1; "finetune" for stage 2, which starts from stage 1's best
            checkpoint and trains everything; "debug" with either makes the model small. With any
            of them, "pretrained" replaces the ResNet by EfficientNet-Lite0, and a word of
            `configs/towers.py` replaces the ResNet and the GRU.
        data_name: value of ``config.data.name``.
    """
    words = parse_argument(argument, file, ("finetune", "debug", PACKAGED))
    config = get_config()
    config.data.name = data_name
    towers.use(config, words)
    if "finetune" in words:
        config.init_from = ""  # must be given on the command line
        config.model.image.frozen = False
        config.model.text.frozen = False
        towers.finetune(config)
    if "debug" in words:
        shrink(config)
    if PACKAGED in words:
        use_packaged(config, finetune="finetune" in words)
    return config


def use_packaged(config: ConfigDict, *, finetune: bool) -> None:
    """Set a config to EfficientNet-Lite0 with the ImageNet weights of an installed package.

    Word vectors are not in it. Words therefore train from stage 1 on, from random values or from
    ``config.model.text.init_from``, GloVe's 50 dimensions; with these, the method freezes them in
    stage 1, ``config.model.text.frozen``.

    Args:
        config: a whole config.
        finetune: whether it is stage 2, which has its weights from stage 1.
    """
    config.model.image.name = "efficientnet_lite0"
    config.model.image.init_from = None if finetune else "efficientnet_lite0"
    config.model.image.frozen = not finetune
    config.model.text.frozen = False
    config.model.text.gru.word_dim = 50
    config.model.text.lstm.word_dim = 50


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
    towers.shrink(config)
