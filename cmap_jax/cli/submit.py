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
from cmap_jax.evaluation import submission

SPELLING = {
    "data.directory": "the argument directory",
    "data.image_directory": "--images",
    "data.near_names=accept": "--near-names",
}
_SPLITS = {"cirr": "test1", "circo": "test"}
_MAKE = {"cirr": submission.cirr_submissions, "circo": submission.circo_submissions}
_CHECK = {"cirr": submission.check_cirr, "circo": submission.check_circo}
_SERVERS = {"cirr": "https://cirr.cecs.anu.edu.au", "circo": "https://circo.micc.unifi.it"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the subcommand's arguments."""
    parser.add_argument("data_set", choices=tuple(_SPLITS))
    parser.add_argument("directory", type=path, help="the data set's folder, with its annotations")
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--workdir", type=path, help="the model that answers; needs --out")
    what.add_argument("--check", nargs="+", metavar="FILE", type=path, help="files to be checked")
    parser.add_argument("--out", metavar="FOLDER", type=path, help="a folder to be made")
    parser.add_argument(
        "--images", metavar="FOLDER", type=path, help="the images, if not in the directory"
    )
    add_near_names(parser)
    parser.add_argument(
        "--split",
        choices=("test1", "test", "val"),
        help="the queries; default: those that only the server can judge. val is for trying out",
    )


def run(arguments: argparse.Namespace) -> int:
    """Check files, or rank, check and write them."""
    if (arguments.workdir is None) != (arguments.out is None):
        raise ValueError("--out names the folder for what --workdir answers: give both or neither")
    if arguments.check:
        _check(arguments)
    else:
        _write(arguments)
    return 0


def _check(arguments: argparse.Namespace) -> None:
    contents = {file: submission.read_submission(file) for file in arguments.check}
    records = _read(arguments)
    ((split, (evaluation,)),) = records.evaluations.items()
    known = _gallery_is_known(arguments, evaluation)
    judged = all(known.values())
    for file, content in contents.items():
        try:
            remarks = _CHECK[arguments.data_set](content, evaluation, **known)
        except ValueError as error:
            raise ValueError(f"{file}: {error}") from error
        rules = "by the rules" if judged else "by the rules that can be checked here"
        print(f"{file} answers all {len(evaluation.queries)} queries of {split}, {rules}")
        for remark in remarks:
            print(f"  {remark}")
    if not judged:
        print(_unknown_gallery(arguments.directory))


def _gallery_is_known(arguments: argparse.Namespace, evaluation: Any) -> dict[str, bool]:
    """Return what CIRCO's check must be told; CIRR's split files name the whole gallery."""
    if arguments.data_set != "circo":
        return {}
    from input_pipeline.readers import circo

    listed = circo.find_gallery_list(arguments.directory, arguments.images) is not None
    complete = len(evaluation.galleries["all"]) >= circo.GALLERY_IMAGES
    return {"gallery_is_known": listed or complete}


def _unknown_gallery(directory: str) -> str:
    from input_pipeline.readers import circo

    place = epath.Path(directory) / "annotations" / circo.GALLERY_LIST
    return (
        "Whether the ids are of CIRCO's gallery cannot be judged here: that needs COCO's list of "
        f"it, {place}, which is in "
        "http://images.cocodataset.org/annotations/image_info_unlabeled2017.zip"
    )


def _write(arguments: argparse.Namespace) -> None:
    if epath.Path(arguments.out).exists():
        raise FileExistsError(f"{arguments.out} exists; name a new folder with --out")
    # Only here: a check needs none of it, and TensorFlow takes seconds to load.
    import jax
    import tensorflow as tf

    from cmap_jax import sharding
    from cmap_jax.cli.compilation_cache import use_compilation_cache
    from cmap_jax.evaluation.evaluator import Evaluator
    from cmap_jax.trained import load
    from input_pipeline.batching import EvaluationData
    from input_pipeline.images.decoding import open_loader
    from input_pipeline.images.loading import FailedImages

    tf.config.set_visible_devices([], "GPU")  # the accelerators are JAX's
    use_compilation_cache(None)
    trained = load(arguments.workdir)
    records = _read(arguments)
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
        # It changes no answer, and this machine may have other devices than the run had.
        batch_size=sharding.round_up(trained.config.eval.batch_size, mesh),
    )
    evaluator = Evaluator(trained.model, mesh, gallery_chunk=trained.config.eval.gallery_chunk)
    variables = jax.device_put(trained.variables, sharding.replicated(mesh))
    (rankings,) = evaluator.search(variables, data).values()
    contents = _MAKE[arguments.data_set](rankings)
    for content in contents.values():
        _CHECK[arguments.data_set](content, evaluations[0])
    submission.write_submissions(arguments.out, contents)
    print(
        f"{arguments.out} holds {' and '.join(contents)}: {len(rankings)} queries of {split}, "
        "checked by the rules."
    )
    if split != "val":
        print(f"Next: upload at {_SERVERS[arguments.data_set]}")


def _read(arguments: argparse.Namespace) -> Any:
    """Return the data set's records with the one split as their only evaluation."""
    from input_pipeline.registry import read_folder

    records = read_folder(
        arguments.data_set, arguments.directory, arguments.images, arguments.near_names
    )
    split = arguments.split or _SPLITS[arguments.data_set]
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
