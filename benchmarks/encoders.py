"""Images and texts a second of CLIP's and SigLIP's towers, beside transformers in PyTorch.

python benchmarks/encoders.py --out=benchmarks/results/encoders.json

Both have the same random weights in float32 and run on the same cores, in turns, each in its own
process; the features must agree to 1e-3. Then, on an accelerator, each tower in bfloat16 and its
share of the speed of a measured matrix product: python benchmarks/encoders.py --accelerator. The
comparison needs PyTorch and transformers.
"""

import json
import pathlib
import tempfile

import harness
import numpy as np

SIDES = ("jax", "torch")
MODELS = {"clip": "CLIP ViT-B/32", "siglip": "SigLIP B/16"}
TOWERS = ("image", "text")
WIDTHS = {"clip": 77, "siglip": 64}  # tokens of a text
GEMM = 8192  # rows and columns of the measured matrix product


def make_config(family: str):
    """Return a config with the family's base model."""
    from configs import default

    config = default.get_config()
    config.model.variant = "artemis"
    config.model.image.name = config.model.text.name = config.model.text.tokenizer = family
    config.model.text.vocabulary_size = {"clip": 49408, "siglip": 32000}[family]
    config.model.embed_dim = config.model.text[family].projection
    return config


def save_weights(family: str, folder: pathlib.Path) -> None:
    """Write a model of transformers with random weights to a folder."""
    import torch
    import transformers

    torch.manual_seed(0)
    if family == "clip":
        model = transformers.CLIPModel(transformers.CLIPConfig())
    else:
        model = transformers.SiglipModel(transformers.SiglipConfig())
    model.save_pretrained(folder)


def make_inputs(family: str, batch: int) -> dict[str, np.ndarray]:
    """Return normalised images and texts that fill all positions."""
    rng = np.random.default_rng(0)
    tokens = rng.integers(3, 30000, (batch, WIDTHS[family])).astype(np.int32)
    tokens[:, -1] = 49407 if family == "clip" else 1
    return {"image": rng.normal(size=(batch, 224, 224, 3)).astype(np.float32), "text": tokens}


def jax_towers(config, weights=None, dtype="float32") -> dict:
    """Return for "image" and "text" a function of inputs and parameters, and the parameters."""
    import jax
    import jax.numpy as jnp

    from cmap_jax.models.encoders import IMAGE_ENCODERS, TEXT_ENCODERS

    model, dtype = config.model, jnp.dtype(dtype)
    family = model.image.name
    settings = {**model.image[family], "map_blocks": ()}
    vision = IMAGE_ENCODERS[family].build(settings, False, "none", dtype)
    words = TEXT_ENCODERS[family].build(
        model.text[family], model.text.vocabulary_size, model.embed_dim, "none", dtype
    )

    def image(params, images):
        return vision.apply({"params": params}, images, train=False)["high"]

    def text(params, tokens):
        lengths = jnp.full(tokens.shape[0], tokens.shape[1], jnp.int32)
        return words.apply({"params": params}, tokens, lengths, train=False)

    if weights is None:
        key, lengths = jax.random.key(0), jnp.ones(1, jnp.int32)
        one = {k: x[:1] for k, x in make_inputs(family, 1).items()}
        init = {
            "image": lambda: vision.init(key, one["image"], train=False)["params"],
            "text": lambda: words.init(key, one["text"], lengths, train=False)["params"],
        }
        weights = {tower: jax.jit(function)() for tower, function in init.items()}
    return {"image": (jax.jit(image), weights["image"]), "text": (jax.jit(text), weights["text"])}


def jax_side(family: str, folder: pathlib.Path, inputs) -> dict:
    """Return for "image" and "text" a function that encodes a batch of ours."""
    import jax

    from cmap_jax.convert import load_hugging_face

    changes, variables, _ = load_hugging_face(folder)
    config = make_config(family)
    config.update_from_flattened_dict(changes)
    params = jax.device_put(variables["params"])
    weights = {"image": params["image_encoder"]["backbone"], "text": params["text_encoder"]}
    towers = jax_towers(config, weights)
    return {
        tower: lambda tower=tower: np.asarray(towers[tower][0](towers[tower][1], inputs[tower]))
        for tower in TOWERS
    }


def torch_side(family: str, folder: pathlib.Path, inputs) -> dict:
    """Return for "image" and "text" a function that encodes a batch with transformers."""
    import torch
    import transformers

    kind = transformers.CLIPModel if family == "clip" else transformers.SiglipModel
    model = kind.from_pretrained(folder).eval()
    pixels = torch.from_numpy(inputs["image"]).permute(0, 3, 1, 2).contiguous()
    tokens = torch.from_numpy(inputs["text"]).long()

    def image():
        with torch.inference_mode():
            return model.get_image_features(pixel_values=pixels).pooler_output.numpy()

    def text():
        with torch.inference_mode():
            return model.get_text_features(input_ids=tokens).pooler_output.numpy()

    return {"image": image, "text": text}


def measure(side: str, folders: dict[str, str], batch: int, repeats: int) -> dict:
    """Return the seconds of each batch, and the first numbers of its features."""
    results = {}
    for family, folder in folders.items():
        make = jax_side if side == "jax" else torch_side
        for tower, run in make(family, pathlib.Path(folder), make_inputs(family, batch)).items():
            features = [float(x) for x in run()[0, :8]]
            results[f"{family} {tower}"] = {
                "seconds": harness.seconds(run, repeats),
                "features": features,
            }
    return results


def compare(arguments) -> None:
    """Measure both sides in turns, and print a table of rates and ratios."""
    with tempfile.TemporaryDirectory() as scratch:
        folders = {family: f"{scratch}/{family}" for family in arguments.models}
        for family, folder in folders.items():
            save_weights(family, pathlib.Path(folder))
        runs = harness.take_turns(
            SIDES,
            arguments.turns,
            f"--folders={json.dumps(folders)}",
            f"--batch={arguments.batch}",
            f"--repeats={arguments.repeats}",
        )
    rows, rates = [], {}
    for family in arguments.models:
        for tower in TOWERS:
            key = f"{family} {tower}"
            ours, theirs = (runs[side][0][key]["features"] for side in SIDES)
            np.testing.assert_allclose(ours, theirs, atol=1e-3)
            best = {}
            for side in SIDES:
                turns = [np.median(turn[key]["seconds"]) for turn in runs[side]]
                rates[f"{key} {side}"] = [arguments.batch / t for t in turns]
                best[side] = np.median(rates[f"{key} {side}"])
            cells = (harness.spread(rates[f"{key} {side}"], digits=1) for side in SIDES)
            rows.append([MODELS[family], tower, *cells, f"{best['jax'] / best['torch']:.2f}"])
    print(harness.table(["model", "tower", "ours, a second", "transformers", "ratio"], rows))
    harness.write(arguments.out, {"batch": arguments.batch, "rates": rates, "table": rows})


def accelerator(arguments) -> None:
    """Print rates in bfloat16, and their FLOP as a share of a matrix product's."""
    import jax
    import jax.numpy as jnp

    # Equal numbers would be multiplied faster: the chip's clock follows the power that is drawn.
    matrix = jax.random.normal(jax.random.key(0), (GEMM, GEMM), jnp.bfloat16)
    multiply = jax.jit(lambda a: a @ a)
    taken = harness.seconds(lambda: multiply(matrix).block_until_ready(), arguments.repeats)
    peak = 2 * GEMM**3 / np.median(taken)
    rows = []
    for family in arguments.models:
        inputs = jax.device_put(make_inputs(family, arguments.batch))
        for tower, (run, weights) in jax_towers(make_config(family), dtype="bfloat16").items():
            batch = inputs[tower]
            taken = np.median(
                harness.seconds(
                    lambda run=run, weights=weights, batch=batch: run(
                        weights, batch
                    ).block_until_ready(),
                    arguments.repeats,
                )
            )
            speed = arguments.batch * flop(family, tower) / taken
            rate, share = arguments.batch / taken, speed / peak
            rows.append(
                [MODELS[family], tower, f"{rate:,.0f}", f"{speed / 1e12:.1f}", f"{share:.1%}"]
            )
    device = jax.devices()[0].device_kind
    print(f"{device}: a product of {GEMM}x{GEMM} in bfloat16 at {peak / 1e12:.1f} TFLOP/s\n")
    print(harness.table(["model", "tower", "a second", "TFLOP/s", "share of the product"], rows))
    harness.write(arguments.out, {"device": device, "peak": peak, "table": rows})


def flop(family: str, tower: str) -> float:
    """Return the FLOP of the products for one image or text, two for each multiply and add."""
    config = make_config(family).model
    settings = config.image[family] if tower == "image" else config.text[family]
    width, hidden = settings.width, settings.mlp_width
    tokens = WIDTHS[family]
    if tower == "image":
        tokens = (224 // settings.patch) ** 2 + (family == "clip")
    block = tokens * (4 * width**2 + 2 * width * hidden) + 2 * tokens**2 * width
    patches = tokens * 3 * settings.patch**2 * width if tower == "image" else 0
    return 2.0 * (settings.layers * block + patches)


def main() -> None:
    """Measure as the command line says."""
    parser = harness.parser(__doc__)
    parser.add_argument(
        "--models", nargs="+", choices=tuple(MODELS), default=tuple(MODELS), help="families"
    )
    parser.add_argument("--batch", type=int, default=32, help="images or texts at once")
    parser.add_argument("--repeats", type=int, default=5, help="batches measured in a process")
    parser.add_argument("--accelerator", action="store_true", help="bfloat16, without PyTorch")
    parser.add_argument("--folders", type=json.loads, help="internal")
    arguments = parser.parse_args()
    if arguments.side:
        results = measure(arguments.side, arguments.folders, arguments.batch, arguments.repeats)
        print(json.dumps(results))
    elif arguments.accelerator:
        accelerator(arguments)
    else:
        compare(arguments)


if __name__ == "__main__":
    main()
