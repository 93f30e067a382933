"""The model of docs/method.md, section 1, a second time, in PyTorch: an oracle for parity.

Independent of the JAX code and as literal as possible: the scores build the B x N x D tensor of
``l2(a * t)``, recurrent layers run on packed sequences, convolutions are ``nn.Conv2d``. Slow and
memory-hungry on purpose. Works in float32 and float64 (``model.double()``).

Importing this module skips the importing test module where torch is not installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from optional import require

if TYPE_CHECKING:
    import torch
else:
    torch = require("torch")

nn = torch.nn
F = torch.nn.functional

Variant = Literal[
    "cmap", "em_only", "is_only", "artemis", "late_fusion", "text_only", "image_only", "tirg"
]
VARIANTS: tuple[Variant, ...] = (
    "cmap",
    "em_only",
    "is_only",
    "artemis",
    "late_fusion",
    "text_only",
    "image_only",
    "tirg",
)
SINGLE_LEVEL = ("artemis", "tirg")
WITH_MODIFIED = ("cmap", "em_only", "artemis")
WITH_PRESERVED = ("cmap", "is_only", "artemis")
INITIAL_TEMPERATURE = 2.65926


def l2(x: torch.Tensor) -> torch.Tensor:
    """``x / max(||x||, 1e-12)`` on the last axis, with gradient exactly 0 at x = 0.

    See docs/method.md, section 1.
    """
    is_zero = torch.linalg.vector_norm(x.detach(), dim=-1, keepdim=True) == 0
    # The zero rows are taken out before the division, so that no gradient reaches them at all.
    nonzero = torch.where(is_zero, torch.ones_like(x), x)
    norm = torch.linalg.vector_norm(nonzero, dim=-1, keepdim=True)
    return torch.where(is_zero, torch.zeros_like(x), nonzero / norm.clamp_min(1e-12))


def gem(feature_map: torch.Tensor) -> torch.Tensor:
    """Generalised-mean pooling, p = 3 (docs/method.md, section 1): [B, C, H, W] -> [B, C]."""
    return feature_map.clamp_min(1e-6).pow(3).mean(dim=(2, 3)).pow(1 / 3)


def resize_to(feature_map: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    """Bilinear, no antialiasing, half-pixel centres: [B, C, H, W] -> [B, C, H', W'] of `like`."""
    return F.interpolate(
        feature_map, size=like.shape[-2:], mode="bilinear", align_corners=False, antialias=False
    )


# ---------------------------------------------------------------------------------------- ResNet


def _downsample(channels_in: int, channels_out: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and channels_in == channels_out:
        return None
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 1, stride=stride, bias=False),
        nn.BatchNorm2d(channels_out),
    )


class BasicBlock(nn.Module):
    """Two 3x3 convolutions (ResNet-18 and -34)."""

    expansion = 1

    def __init__(self, channels_in: int, planes: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, planes, 3, stride=stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.downsample = _downsample(channels_in, planes, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = torch.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        return torch.relu(out + shortcut)


class Bottleneck(nn.Module):
    """1x1, 3x3, 1x1 convolutions, the stride in the 3x3 (ResNet-50 v1.5)."""

    expansion = 4

    def __init__(self, channels_in: int, planes: int, stride: int) -> None:
        super().__init__()
        channels_out = planes * self.expansion
        self.conv1 = nn.Conv2d(channels_in, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(planes)
        self.conv2 = nn.Conv2d(planes, planes, 3, stride=stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(planes)
        self.conv3 = nn.Conv2d(planes, channels_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels_out)
        self.downsample = _downsample(channels_in, channels_out, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        out = torch.relu(self.bn1(self.conv1(x)))
        out = torch.relu(self.bn2(self.conv2(out)))
        out = self.bn3(self.conv3(out))
        return torch.relu(out + shortcut)


class ResNet(nn.Module):
    """ResNet-18, -34 or -50 without its classifier, with torchvision's names and numerics.

    ``channels`` holds the channel counts of (C3, C4, C5).
    """

    STAGES = {
        18: (BasicBlock, (2, 2, 2, 2)),
        34: (BasicBlock, (3, 4, 6, 3)),
        50: (Bottleneck, (3, 4, 6, 3)),
    }

    def __init__(self, depth: int = 50, width: int = 64) -> None:
        super().__init__()
        block, counts = self.STAGES[depth]
        self.conv1 = nn.Conv2d(3, width, 7, stride=2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.maxpool = nn.MaxPool2d(3, stride=2, padding=1)
        channels = width
        for stage, count in enumerate(counts):
            planes = width * 2**stage
            blocks = []
            for index in range(count):
                stride = 2 if stage > 0 and index == 0 else 1
                blocks.append(block(channels, planes, stride))
                channels = planes * block.expansion
            self.add_module(f"layer{stage + 1}", nn.Sequential(*blocks))
        self.channels = tuple(width * 2**stage * block.expansion for stage in (1, 2, 3))
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """[B, 3, H, W] -> C3, C4, C5 at strides 8, 16, 32, each after its stage's last ReLU."""
        x = self.maxpool(torch.relu(self.bn1(self.conv1(images))))
        c2 = self.layer1(x)
        c3 = self.layer2(c2)
        c4 = self.layer3(c3)
        c5 = self.layer4(c4)
        return c3, c4, c5


# -------------------------------------------------------------------------------------- encoders


class ImageEncoder(nn.Module):
    """ResNet, cross-level interaction, GeM and a linear head a level.

    See docs/method.md, section 1.
    """

    def __init__(
        self, depth: int, width: int, cross_level: str, embed_dim: int, single_level: bool
    ) -> None:
        super().__init__()
        if cross_level not in ("down", "up", "none"):
            raise ValueError(f"cross_level {cross_level!r}")
        self.cross_level = cross_level
        self.single_level = single_level
        self.cnn = ResNet(depth, width)
        channels_3, channels_4, channels_5 = self.cnn.channels
        self.fc = nn.Linear(channels_5, embed_dim)
        if single_level:
            return
        self.fc_1024 = nn.Linear(channels_4, embed_dim)
        self.fc_512 = nn.Linear(channels_3, embed_dim)
        if cross_level == "none":
            return
        self.latlayer_7214 = nn.Conv2d(channels_5, channels_4, 1)
        self.latlayer_14228 = nn.Conv2d(channels_4, channels_3, 1)
        self.smooth_14 = nn.Conv2d(channels_4, channels_4, 3, padding=1)
        self.smooth_28 = nn.Conv2d(channels_3, channels_3, 3, padding=1)

    def feature_pyramid(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """[B, 3, H, W] -> (P5, P4, P3), or (P5,) in a single-level model."""
        c3, c4, c5 = self.cnn(images)
        if self.single_level:
            return (c5,)
        if self.cross_level == "none":
            return c5, c4, c3
        if self.cross_level == "down":
            p4 = self.smooth_14(resize_to(c4, c5) + self.latlayer_7214(c5))
            p3 = self.smooth_28(resize_to(c3, c4) + self.latlayer_14228(c4))
            return c5, p4, p3
        m4 = c4 + resize_to(self.latlayer_7214(c5), c4)
        m3 = c3 + resize_to(self.latlayer_14228(m4), c3)
        return c5, self.smooth_14(m4), self.smooth_28(m3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """[B, 3, H, W] -> [L, B, D], levels in the order high, mid, low."""
        pyramid = self.feature_pyramid(images)
        if self.single_level:
            return l2(self.fc(gem(pyramid[0]))).unsqueeze(0)
        p5, p4, p3 = pyramid
        high = l2(self.fc(gem(p5)))
        mid = l2(self.fc_1024(gem(p4)))
        low = l2(self.fc_512(gem(p3)))
        return torch.stack([high, mid, low])


class SentenceLSTM(nn.Module):
    """LSTM, maximum over time, dropout, linear (docs/method.md, section 1, variant ``lstm``)."""

    def __init__(self, word_dim: int, hidden: int, embed_dim: int, dropout: float) -> None:
        super().__init__()
        # The release's names: "0" and "2" of a sequence.
        self.add_module("0", nn.LSTM(word_dim, hidden, batch_first=True))
        self.dropout = nn.Dropout(dropout)
        self.add_module("2", nn.Linear(hidden, embed_dim))

    def forward(self, words: torch.Tensor, lengths: torch.Tensor | None) -> torch.Tensor:
        """Words [B, T, E] and lengths [B], all above 0 (None: all T count) -> [B, D]."""
        lstm, linear = self.get_submodule("0"), self.get_submodule("2")
        if lengths is None:
            states, _ = lstm(words)
        else:
            packed, _ = lstm(_pack(words, lengths))
            states, _ = nn.utils.rnn.pad_packed_sequence(
                packed, batch_first=True, padding_value=float("-inf")
            )
        return linear(self.dropout(states.amax(dim=1)))


class TextEncoder(nn.Module):
    """Word embedding, sentence encoder, l2 (docs/method.md, section 1)."""

    def __init__(
        self,
        vocabulary_size: int,
        word_dim: int,
        embed_dim: int,
        kind: str,
        lstm_hidden: int,
        lstm_pool_padding: bool,
        dropout: float,
    ) -> None:
        super().__init__()
        self.kind = kind
        self.lstm_pool_padding = lstm_pool_padding
        self.embed_dim = embed_dim
        self.embed = nn.Embedding(vocabulary_size, word_dim)
        nn.init.xavier_uniform_(self.embed.weight)
        if kind == "bigru":
            if embed_dim % 2:
                raise ValueError("bigru: embed_dim must be even")
            self.sent_enc = nn.GRU(word_dim, embed_dim // 2, batch_first=True, bidirectional=True)
        elif kind == "lstm":
            self.sent_enc = SentenceLSTM(word_dim, lstm_hidden, embed_dim, dropout)
        else:
            raise ValueError(f"text_encoder {kind!r}")

    def forward(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Tokens [B, T] (ids) and lengths [B] -> m, [B, D]; a text of length 0 gives zeros."""
        words = self.embed(tokens)
        result = words.new_zeros(tokens.shape[0], self.embed_dim)
        used = torch.nonzero(lengths > 0).squeeze(1)
        if used.numel() == 0:
            return result
        words, lengths = words[used], lengths[used]
        if self.kind == "bigru":
            _, final = self.sent_enc(_pack(words, lengths))  # [2, B, D/2]: forward, backward
            sentence = torch.cat([final[0], final[1]], dim=1)
        else:
            sentence = self.sent_enc(words, None if self.lstm_pool_padding else lengths)
        return result.index_copy(0, used, l2(sentence))


def _pack(words: torch.Tensor, lengths: torch.Tensor) -> nn.utils.rnn.PackedSequence:
    return nn.utils.rnn.pack_padded_sequence(
        words, lengths.cpu(), batch_first=True, enforce_sorted=False
    )


# ----------------------------------------------------------------------------------- composition


class Attention(nn.Module):
    """``softmax_D(W2 relu(W1 m + b1) + b2)`` (docs/method.md, section 1): [B, D] -> [B, D]."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.attention = nn.Sequential(
            nn.Linear(embed_dim, embed_dim), nn.ReLU(), nn.Linear(embed_dim, embed_dim)
        )

    def forward(self, text: torch.Tensor) -> torch.Tensor:
        return self.attention(text).softmax(dim=-1)


class Tirg(nn.Module):
    """``l2(a1 sigmoid(gate(x)) r + a2 res(x))``, x = [r, m].

    See docs/method.md, section 1, table of variants.
    """

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        both = 2 * embed_dim
        self.gate = nn.Sequential(nn.BatchNorm1d(both), nn.ReLU(), nn.Linear(both, embed_dim))
        self.res = nn.Sequential(
            nn.BatchNorm1d(both),
            nn.ReLU(),
            nn.Linear(both, both),
            nn.ReLU(),
            nn.Linear(both, embed_dim),
        )
        self.a = nn.Parameter(torch.tensor([1.0, 10.0]))

    def forward(self, reference: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        """Reference [B, D] and text [B, D] -> composed query [B, D]."""
        x = torch.cat([reference, text], dim=1)
        gated = torch.sigmoid(self.gate(x)) * reference
        return l2(self.a[0] * gated + self.a[1] * self.res(x))


def modified_scores(
    transformed: torch.Tensor, attention: torch.Tensor, gallery: torch.Tensor
) -> torch.Tensor:
    """``< T, l2(A_m * t) >``: [B, D], [B, D], [N, D] -> [B, N], by the B x N x D tensor."""
    attended = l2(attention[:, None, :] * gallery[None, :, :])
    return (transformed[:, None, :] * attended).sum(dim=-1)


def preserved_scores(
    attention: torch.Tensor, reference: torch.Tensor, gallery: torch.Tensor
) -> torch.Tensor:
    """``< l2(A_p * r), l2(A_p * t) >``: [B, D], [B, D], [N, D] -> [B, N], by B x N x D."""
    attended = l2(attention[:, None, :] * gallery[None, :, :])
    return (l2(attention * reference)[:, None, :] * attended).sum(dim=-1)


class ReferenceModel(nn.Module):
    """Each variant of docs/method.md, section 1, with the submodules that it needs alone."""

    def __init__(
        self,
        *,
        vocabulary_size: int,
        depth: int = 50,
        width: int = 64,
        cross_level: str = "down",
        embed_dim: int = 512,
        word_dim: int = 300,
        text_encoder: str = "bigru",
        lstm_hidden: int = 1024,
        lstm_pool_padding: bool = False,
        lstm_dropout: float = 0.1,
        variant: Variant = "cmap",
    ) -> None:
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(f"variant {variant!r}")
        self.variant = variant
        self.temperature = nn.Parameter(torch.tensor(INITIAL_TEMPERATURE))
        self.img_enc = ImageEncoder(
            depth, width, cross_level, embed_dim, single_level=variant in SINGLE_LEVEL
        )
        if variant != "image_only":
            self.txt_enc = TextEncoder(
                vocabulary_size,
                word_dim,
                embed_dim,
                text_encoder,
                lstm_hidden,
                lstm_pool_padding,
                lstm_dropout,
            )
        if variant in WITH_MODIFIED:
            self.Transform_m = nn.Sequential(nn.Linear(embed_dim, embed_dim))
            self.Attention_EM = Attention(embed_dim)
        if variant in WITH_PRESERVED:
            self.Attention_IS = Attention(embed_dim)
        if variant == "tirg":
            self.tirg = Tirg(embed_dim)

    @property
    def num_levels(self) -> int:
        """L: 1 (high) or 3 (high, mid, low)."""
        return 1 if self.variant in SINGLE_LEVEL else 3

    def encode_images(self, images: torch.Tensor) -> torch.Tensor:
        """Normalised images [B, 3, H, W] -> [L, B, D]."""
        return self.img_enc(images)

    def encode_text(self, tokens: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Tokens [B, T], lengths [B] -> m, [B, D]."""
        return self.txt_enc(tokens, lengths)

    def transformed_text(self, text: torch.Tensor) -> torch.Tensor:
        """``T = l2(W_t m + b_t)``: [B, D] -> [B, D]."""
        return l2(self.Transform_m(text))

    def scores_per_branch(
        self,
        reference_pyramid: torch.Tensor,
        text: torch.Tensor | None,
        gallery_pyramid: torch.Tensor,
    ) -> torch.Tensor:
        """Scores of every query against every image, branch by branch and level by level.

        Reference [L, B, D], text m [B, D] (None for image_only), gallery [L, N, D] ->
        [K, L, B, N]; K = 2, (modified, preserved), for cmap and artemis and 1 for the others.
        """
        levels = range(self.num_levels)
        r, t = reference_pyramid, gallery_pyramid
        branches = []
        if self.variant in WITH_MODIFIED:
            a_m, transformed = self.Attention_EM(text), self.transformed_text(text)
            branches.append([modified_scores(transformed, a_m, t[i]) for i in levels])
        if self.variant in WITH_PRESERVED:
            a_p = self.Attention_IS(text)
            branches.append([preserved_scores(a_p, r[i], t[i]) for i in levels])
        if self.variant == "late_fusion":
            branches.append([l2(r[i] + text) @ t[i].T for i in levels])
        if self.variant == "text_only":
            branches.append([text @ t[i].T for i in levels])
        if self.variant == "image_only":
            branches.append([r[i] @ t[i].T for i in levels])
        if self.variant == "tirg":
            branches.append([self.tirg(r[0], text) @ t[0].T])
        return torch.stack([torch.stack(branch) for branch in branches])

    def level_scores(
        self,
        reference_pyramid: torch.Tensor,
        text: torch.Tensor | None,
        gallery_pyramid: torch.Tensor,
    ) -> torch.Tensor:
        """``s_i``, the branches added up: [L, B, N]."""
        return self.scores_per_branch(reference_pyramid, text, gallery_pyramid).sum(dim=0)

    def score(
        self,
        reference_pyramid: torch.Tensor,
        text: torch.Tensor | None,
        gallery_pyramid: torch.Tensor,
    ) -> torch.Tensor:
        """The retrieval score, the sum over levels: [B, N]."""
        return self.level_scores(reference_pyramid, text, gallery_pyramid).sum(dim=0)
