"""A training step of CMAP beside PyTorch: the same model, weights, batch and optimiser.

python benchmarks/train_step.py --out=benchmarks/results/train_step.json

Models: ResNet-50 at 224 pixels, batch 32, with everything trained, and with backbone and word
embedding frozen; and the model of configs/garments.py, batch 128. PyTorch runs eagerly, once with
its default layout and once with channels_last; its score is factorised as in cmap_jax, and its
AdamW is fused. The losses of the first steps must agree to 1e-3. Needs PyTorch.
"""

import json
import pathlib
import tempfile

import harness
import numpy as np

SIDES = ("jax", "torch", "torch_channels_last")
MODELS = ("resnet50, fine-tuned", "resnet50, frozen", "garments")
VOCABULARY, TEXT_WIDTH = 3780, 16


def make_config(model: str):
    """Return the config of a model."""
    from configs import default, garments

    config = garments.get_config() if model == "garments" else default.get_config()
    config.model.image.frozen = config.model.text.frozen = model.endswith("frozen")
    config.model.text.vocabulary_size = VOCABULARY
    config.train.batch_size = 128 if model == "garments" else 32
    return config


def make_batch(config) -> dict[str, np.ndarray]:
    """Return a batch of random uint8 images and texts."""
    rng = np.random.default_rng(0)
    size, side = config.train.batch_size, config.data.crop
    lengths = rng.integers(4, TEXT_WIDTH + 1, size).astype(np.int32)
    tokens = rng.integers(5, VOCABULARY, (size, TEXT_WIDTH)).astype(np.int32)
    tokens[np.arange(TEXT_WIDTH) >= lengths[:, None]] = 0
    images = rng.integers(0, 256, (2, size, side, side, 3), np.uint8)
    return {
        "reference_image": images[0],
        "target_image": images[1],
        "text_tokens": tokens,
        "text_lengths": lengths,
    }


def torch_model(config):
    """Return the PyTorch model of a config, with weights from a fixed seed."""
    import torch
    from torch_reference import ReferenceModel, l2

    class Factorised(ReferenceModel):
        """The reference without its B x N x D tensors."""

        def level_scores(self, reference, text, gallery):
            a, p = self.Attention_EM(text), self.Attention_IS(text)
            modified = (self.transformed_text(text) * a).expand_as(gallery)
            numerators = torch.cat([modified, l2(p * reference) * p], 1)
            squares = torch.cat([a * a, p * p]).expand(len(gallery), -1, -1)
            norms = (squares @ (gallery * gallery).transpose(1, 2)).clamp_min(1e-24).rsqrt()
            scores = (numerators @ gallery.transpose(1, 2)) * norms
            return scores[:, : len(text)] + scores[:, len(text) :]

    torch.manual_seed(0)
    model = config.model
    return Factorised(
        depth=model.image.resnet.depth,
        width=model.image.resnet.width,
        embed_dim=model.embed_dim,
        word_dim=model.text.gru.word_dim,
        vocabulary_size=VOCABULARY,
    )


def jax_step(config, weights: pathlib.Path):
    """Return a function that takes a training step and returns its loss."""
    import jax
    import jax.numpy as jnp

    from cmap_jax.convert.reference import to_variables
    from cmap_jax.models.cmap import CMAP
    from cmap_jax.sharding import make_mesh
    from cmap_jax.training.optimizer import make_optimizer
    from cmap_jax.training.train_state import TrainState
    from cmap_jax.training.train_step import make_train_step

    model = CMAP.from_config(config)
    with np.load(weights) as arrays:
        variables = jax.tree.map(jnp.asarray, to_variables(model, dict(arrays), weights))
    rate = lambda step: jnp.float32(5e-4)  # noqa: E731
    tx = make_optimizer(config, rate)
    params = variables["params"]
    # The state is donated, so that its two counters may not share a buffer.
    state = TrainState(
        step=jnp.zeros((), jnp.int32),
        params=params,
        batch_stats=variables["batch_stats"],
        opt_state=tx.init(params),
        skipped=jnp.zeros((), jnp.int32),
    )
    mesh = make_mesh(jax.devices()[:1])
    step = jax.jit(make_train_step(model, tx, rate, config=config, mesh=mesh), donate_argnums=0)
    batch = make_batch(config)

    def run() -> float:
        nonlocal state
        state, metrics = step(state, batch)
        return float(metrics["loss/total"])

    return run


def torch_step(config, weights: pathlib.Path, channels_last: bool):
    """Return PyTorch's function that takes a training step and returns its loss."""
    import torch
    import torch_training as tt

    from cmap_jax.models.encoders import IMAGE_ENCODERS

    model = torch_model(config)
    with np.load(weights) as arrays:
        model.load_state_dict({k: torch.from_numpy(v) for k, v in arrays.items()}, strict=False)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    model = model.to(memory_format=layout)
    tt.set_stage(model, frozen=config.model.image.frozen)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(trained, lr=5e-4, weight_decay=0.01, fused=True)
    loss = config.loss
    objective = tt.Objective(
        loss.matching_weights, loss.preservation_weights, loss.margins, loss.alpha
    )
    pictures = IMAGE_ENCODERS[config.model.image.name].pictures
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (pictures.mean, pictures.std))
    batch = {k: torch.from_numpy(v) for k, v in make_batch(config).items()}

    def images(name: str) -> torch.Tensor:
        x = batch[name].permute(0, 3, 1, 2).float() / 255
        return ((x - mean) / std).contiguous(memory_format=layout)

    def run() -> float:
        optimiser.zero_grad()
        data = tt.Batch(
            images("reference_image"),
            images("target_image"),
            batch["text_tokens"].long(),
            batch["text_lengths"].long(),
        )
        total = tt.batch_loss(model, data, objective).total
        total.backward()
        optimiser.step()
        return total.item()

    return run


def measure(side: str, model: str, weights: pathlib.Path) -> dict:
    """Return the seconds, first losses and peak memory of one side with one model."""
    config = make_config(model)
    if side == "jax":
        run = jax_step(config, weights)
    else:
        run = torch_step(config, weights, side.endswith("last"))
    losses = [run(), run()]
    taken = harness.seconds(run, 20 if model == "garments" else 3, warm_up=1)
    return {"seconds": taken, "losses": losses, "bytes": harness.own_peak()}


def main() -> None:
    parser = harness.parser(__doc__)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=MODELS)
    parser.add_argument("--weights", type=pathlib.Path, help="initial weights, for --side")
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measure(arguments.side, arguments.models[0], arguments.weights)))
        return
    rows, figures = [], {}
    for model in arguments.models:
        with tempfile.TemporaryDirectory() as folder:
            weights = pathlib.Path(folder) / "weights.npz"
            state = torch_model(make_config(model)).state_dict()
            np.savez(weights, **{k: v.numpy() for k, v in state.items() if "tracked" not in k})
            options = ("--models", model, "--weights", str(weights))
            results = harness.take_turns(SIDES, arguments.turns, *options)
        losses = [f["losses"] for turns in results.values() for f in turns]
        np.testing.assert_allclose(losses, [losses[0]] * len(losses), rtol=1e-3)
        times = {s: [t for f in turns for t in f["seconds"]] for s, turns in results.items()}
        medians = {s: np.median(t) for s, t in times.items()}
        cells = [model, *(harness.spread(times[s], 1e3, 0) for s in SIDES)]
        cells += [f"{medians['jax'] / medians[s]:.2f}" for s in SIDES[1:]]
        rows.append(
            [*cells, " / ".join(f"{f['losses'][0]:.4f}" for f in (results[s][0] for s in SIDES))]
        )
        figures[model] = results
    head = ["step", *(f"{s.replace('_', ' ')}, ms" for s in SIDES)]
    head += ["jax / torch", "jax / channels last", "first loss"]
    print(harness.table(head, rows))
    harness.write(arguments.out, {"models": figures})


if __name__ == "__main__":
    main()
