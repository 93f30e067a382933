"""Write the files that the servers of CIRR and CIRCO judge, or check such files.

cmap submit cirr CIRR_FOLDER --workdir runs/cirr --out cirr-test1
cmap submit cirr CIRR_FOLDER --check cirr-test1/recall.json cirr-test1/recall_subset.json
cmap submit circo CIRCO_FOLDER --workdir runs/cirr --out circo-test
cmap submit circo CIRCO_FOLDER --check circo-test/submission.json

Nothing is written unless it is right. A check needs no model, and of the images only the list:
CIRR's own, for CIRCO `annotations/image_info_unlabeled2017.json` of COCO (without it, all but the
ids is checked).
"""

import argparse
import dataclasses
from typing import Any

from etils import epath

from cmap_jax.cli.arguments import add_near_names, path
from cmap_jax.cli.captions import add_captions, captions_for
from cmap_jax.evaluation import submission
from cmap_jax.files import check_can_write
from input_pipeline.registry import DATA_SETS

SPELLING = {
    "data.directory": "the argument directory",
    "data.image_directory": "--images",
    "data.near_names=accept": "--near-names",
    "eval.captions": "--captions",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    rules = {name: d.submission for name, d in DATA_SETS.items() if d.submission is not None}
    parser.add_argument("data_set", choices=tuple(rules))
    parser.add_argument("directory", type=path, help="the data set's folder, with its annotations")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--workdir", type=path, help="the model that answers; needs --out")
    source.add_argument("--check", nargs="+", metavar="FILE", type=path, help="the files to check")
    parser.add_argument("--out", metavar="FOLDER", type=path, help="the folder to write, a new one")
    parser.add_argument(
        "--images", metavar="FOLDER", type=path, help="the images, if not in the directory"
    )
    add_near_names(parser)
    add_captions(parser, "with --workdir: ")
    parser.add_argument(
        "--split",
        choices=tuple(dict.fromkeys([*(r.split for r in rules.values()), "val"])),
        help="the queries; default: the split that only the server can judge. val is for trials",
    )


def run(arguments: argparse.Namespace) -> int:
    """Check files, or rank, check and write them."""
    if (arguments.workdir is None) != (arguments.out is None):
        raise ValueError(
            "--out names the folder for the answers of --workdir: give both or neither"
        )
    if arguments.check and arguments.captions:
        raise ValueError("--captions chooses the texts that --workdir answers: leave it out")
    if arguments.check:
        _check(arguments)
    else:
        _write(arguments)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    data_set = DATA_SETS[arguments.data_set]
    rules, explain = data_set.submission, data_set.explain_unknown_gallery
    contents = {file: submission.read_submission(file, rules.max_bytes) for file in arguments.check}
    records = _read(arguments)
    ((split, (evaluation,)),) = records.evaluations.items()
    unknown = explain(arguments.directory, arguments.images, evaluation) if explain else ""
    for file, content in contents.items():
        try:
            remarks = submission.check_submission(
                rules, content, evaluation, gallery_is_known=not unknown
            )
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        which = "by the rules that can be checked here" if unknown else "by the rules"
        print(f"{file} answers all {len(evaluation.queries)} queries of {split}, {which}")
        for remark in remarks:
            print(f"  {remark}")
    if unknown:
        print(unknown)


def _write(arguments: argparse.Namespace) -> None:
    if epath.Path(arguments.out).exists():
        raise FileExistsError(f"{arguments.out} exists; name a new folder with --out")
    check_can_write(arguments.out)
    # Imported here, as a check needs none of it and TensorFlow takes seconds to load.
    import jax
    import tensorflow as tf

    from cmap_jax import sharding
    from cmap_jax.cli.compilation_cache import use_compilation_cache
    from cmap_jax.evaluation.evaluator import Evaluator
    from cmap_jax.numerics import round_up
    from cmap_jax.trained import load
    from input_pipeline.batching import EvaluationData
    from input_pipeline.images.decoding import open_loader
    from input_pipeline.images.loading import FailedImages
    from input_pipeline.reading import choose_captions

    tf.config.set_visible_devices([], "GPU")  # the accelerators are JAX's
    use_compilation_cache(None)
    rules = DATA_SETS[arguments.data_set].submission
    trained = load(arguments.workdir)
    variant = trained.config.model.variant
    captions = captions_for(arguments.data_set, variant, arguments.captions)
    records = choose_captions(_read(arguments), captions)
    _check_images(records)
    ((split, evaluations),) = records.evaluations.items()
    mesh = sharding.make_mesh()
    # Decoded one by one: each image is needed once. A server wants every query answered.
    loader = open_loader(records, trained.preprocessing, FailedImages("fail", may_skip=False))
    data = EvaluationData(
        evaluations,
        trained.tokenizer,
        trained.preprocessing,
        loader,
        # The size changes no answer, and this machine may have other devices than the run had.
        batch_size=round_up(trained.config.eval.batch_size, mesh.size),
    )
    evaluator = Evaluator(trained.model, mesh, gallery_chunk=trained.config.eval.gallery_chunk)
    variables = jax.device_put(trained.variables, sharding.replicated(mesh))
    ((protocol, rankings),) = evaluator.search(variables, data).items()
    contents = submission.make_submission(rules, rankings)
    for content in contents.values():
        submission.check_submission(rules, content, evaluations[0])
    submission.write_submissions(arguments.out, contents)
    print(
        f"{arguments.out} holds {' and '.join(contents)}: {len(rankings)} queries of {split} "
        f"under {protocol}, checked by the rules."
    )
    if split != "val":
        print(f"Next: upload at {rules.server}")


def _read(arguments: argparse.Namespace) -> Any:
    """Return the data set's records with the one split as their only evaluation."""
    from input_pipeline.reading import read_folder

    records = read_folder(
        arguments.data_set, arguments.directory, arguments.images, arguments.near_names
    )
    split = arguments.split or DATA_SETS[arguments.data_set].submission.split
    if split in records.evaluations:
        only = {split: records.evaluations[split]}
        return dataclasses.replace(records, evaluations=only).for_evaluation()
    return records.for_submission(split)


def _check_images(records: Any) -> None:
    """Refuse a data set with unusable images: a server wants every query answered."""
    from input_pipeline.images.check import check_images, describe_unusable

    reasons = check_images(records)
    if reasons:
        summary = describe_unusable(records, reasons, "--near-names")
        raise ValueError(
            f"{summary}\nA submission needs all of them: restore them, or name their folder with "
            "--images"
        )
