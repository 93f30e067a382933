"""Objective and recipe of docs/method.md, sections 2 and 3, in PyTorch, for parity tests."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from torch_reference import F, ReferenceModel, l2, torch

FROZEN_PREFIXES = ("img_enc.cnn.", "txt_enc.embed.")


# ---------------------------------------------------------------------------------------- losses


@dataclass(frozen=True)
class Objective:
    """The constants of docs/method.md, section 2; levels in the order high, mid, low."""

    matching_weights: tuple[float, ...] = (1.0, 1.0, 1.0)
    preservation_weights: tuple[float, ...] = (1.0, 1.0, 0.5)
    margins: tuple[float, ...] = (0.6, 0.4, 0.3)
    alpha: float = 1.0
    reduction: str = "sum"


class Loss(NamedTuple):
    """The total and, before weighting, its parts a level."""

    total: torch.Tensor  # []
    matching: torch.Tensor  # [L]
    preservation: torch.Tensor  # [L]; zeros where the variant has no such loss


def matching_loss(scores: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """Cross-entropy of ``exp(tau) * S`` [B, B] against the diagonal, mean over queries."""
    return F.cross_entropy(temperature.exp() * scores, torch.arange(scores.shape[0]))


def reversed_attention(attention: torch.Tensor) -> torch.Tensor:
    """``A_r = 2 mean_D(A_p) - A_p``: [B, D] -> [B, D]."""
    return 2 * attention.mean(dim=-1, keepdim=True) - attention


def preservation_loss(
    text: torch.Tensor,
    transformed: torch.Tensor | None,
    attention: torch.Tensor,
    target: torch.Tensor,
    *,
    margin: float,
    alpha: float = 1.0,
    reduction: str = "sum",
) -> torch.Tensor:
    """Self-contrastive preservation of one level (docs/method.md, section 2) on the diagonal pairs.

    Text m, transformed text T (only for alpha != 1), attention A_p and target t, all [B, D] -> [].
    """
    preserved = l2(attention * target)
    reversed_ = l2(reversed_attention(attention) * target)

    def score(part: torch.Tensor) -> torch.Tensor:
        result = alpha * (text * part).sum(dim=-1)
        if alpha != 1.0:
            if transformed is None:
                raise ValueError("alpha other than 1 needs the transformed text T")
            result = result + (1 - alpha) * (transformed * part).sum(dim=-1)
        return result

    per_query = torch.relu(margin + score(preserved) - score(reversed_))
    if reduction == "sum":
        return per_query.sum()
    if reduction == "mean":
        return per_query.mean()
    raise ValueError(f"reduction {reduction!r}")


def total_loss(
    model: ReferenceModel,
    reference_pyramid: torch.Tensor,
    text: torch.Tensor | None,
    target_pyramid: torch.Tensor,
    objective: Objective,
) -> Loss:
    """The objective of the model's variant: pyramids [L, B, D], text m [B, D]."""
    scores = model.level_scores(reference_pyramid, text, target_pyramid)  # [L, B, B]
    levels = range(model.num_levels)
    matching = torch.stack([matching_loss(scores[i], model.temperature) for i in levels])
    total = sum(objective.matching_weights[i] * matching[i] for i in levels)
    preservation = torch.zeros_like(matching)
    if model.variant in ("cmap", "is_only") and any(objective.preservation_weights):
        attention = model.Attention_IS(text)
        transformed = model.transformed_text(text) if model.variant == "cmap" else None
        preservation = torch.stack(
            [
                preservation_loss(
                    text,
                    transformed,
                    attention,
                    target_pyramid[i],
                    margin=objective.margins[i],
                    alpha=objective.alpha,
                    reduction=objective.reduction,
                )
                for i in levels
            ]
        )
        total = total + sum(objective.preservation_weights[i] * preservation[i] for i in levels)
    return Loss(total, matching, preservation)


# -------------------------------------------------------------------------------------- training


def stepped_learning_rate(epoch: int, base: float = 5e-4) -> float:
    """The rate of an epoch, counted from 0 (docs/method.md, section 3), for 100 epochs at most."""
    if not 0 <= epoch < 100:
        raise ValueError(f"epoch {epoch}")
    halved_at_the_start_of = [4, 8, 12, 16, 20, 22, 24, 26, 28, 30, 32, 34, 36, 38, 40, 42, 44]
    halved_at_the_start_of += [46, 48, 50, 52, 54, 56, 58, 60, 62, 64, 66, 68, 70, 72, 74, 76]
    halved_at_the_start_of += [78, 80, 82, 84, 86, 88, 90, 92, 94, 96, 98]
    rate = base
    for start in halved_at_the_start_of:
        if epoch >= start:
            rate = rate / 2
    return rate


class Batch(NamedTuple):
    """One training batch; images are normalised already."""

    reference: torch.Tensor  # [B, 3, H, W]
    target: torch.Tensor  # [B, 3, H, W]
    tokens: torch.Tensor  # [B, T], ids
    lengths: torch.Tensor  # [B]


@dataclass(frozen=True)
class TrainingRecord:
    """Observations of `train_steps`."""

    losses: list[float]  # the total loss of each step, before its update
    parts: list[Loss]  # each step's loss with its parts, detached
    first_gradients: dict[str, torch.Tensor]  # gradients of the trained parameters, unclipped
    state_dict: dict[str, torch.Tensor]  # after the last step, running statistics included


def set_stage(model: ReferenceModel, *, frozen: bool, frozen_batch_norm: str = "batch") -> None:
    """Put the model in training mode of stage 1 (frozen) or stage 2 (docs/method.md, section 3)."""
    if frozen_batch_norm not in ("batch", "running"):
        raise ValueError(f"frozen_batch_norm {frozen_batch_norm!r}")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not (frozen and name.startswith(FROZEN_PREFIXES)))
    model.train()
    if frozen and frozen_batch_norm == "running":
        model.img_enc.cnn.eval()


def batch_loss(model: ReferenceModel, batch: Batch, objective: Objective) -> Loss:
    """Two image passes, the references first, then the text and the objective.

    Both passes are made in every variant, so that batch-norm moves twice a step in all of them.
    """
    reference_pyramid = model.encode_images(batch.reference)
    target_pyramid = model.encode_images(batch.target)
    text = None
    if model.variant != "image_only":
        text = model.encode_text(batch.tokens, batch.lengths)
    return total_loss(model, reference_pyramid, text, target_pyramid, objective)


def train_steps(
    model: ReferenceModel,
    batches: Sequence[Batch],
    *,
    learning_rates: Sequence[float],
    frozen: bool,
    frozen_batch_norm: str = "batch",
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    clip: float | None = None,
    objective: Objective | None = None,
) -> TrainingRecord:
    """One AdamW step a batch, with that step's learning rate, on `model` itself.

    Weight decay acts on every trained parameter, one without a gradient in some step included.
    `clip` scales the gradients by ``min(1, clip / global norm)``.
    """
    objective = objective or Objective()
    set_stage(model, frozen=frozen, frozen_batch_norm=frozen_batch_norm)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimiser = torch.optim.AdamW(
        list(trained.values()), lr=0.0, betas=betas, eps=eps, weight_decay=weight_decay
    )
    parts: list[Loss] = []
    first_gradients: dict[str, torch.Tensor] = {}
    for batch, learning_rate in zip(batches, learning_rates, strict=True):
        optimiser.zero_grad()
        loss = batch_loss(model, batch, objective)
        loss.total.backward()
        for parameter in trained.values():
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        if not first_gradients:
            first_gradients = {name: p.grad.clone() for name, p in trained.items()}
        if clip is not None:
            norm = torch.sqrt(sum((p.grad**2).sum() for p in trained.values()))
            if norm > clip:
                for parameter in trained.values():
                    parameter.grad.mul_(clip / norm)
        for group in optimiser.param_groups:
            group["lr"] = learning_rate
        optimiser.step()
        parts.append(Loss(*(value.detach().clone() for value in loss)))
    return TrainingRecord(
        losses=[float(loss.total) for loss in parts],
        parts=parts,
        first_gradients=first_gradients,
        state_dict={name: value.detach().clone() for name, value in model.state_dict().items()},
    )
