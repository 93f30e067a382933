"""Small data sets in the published layouts, written into a test's folder."""

import json
import pathlib

import numpy as np
from PIL import Image

_WORDS = ("is red", "is longer", "has a v-neck", "is darker and shiny", "", "has no sleeves")


def image(path: pathlib.Path, seed: int, size: tuple[int, int] = (40, 60)) -> None:
    """Write a random photograph."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 5, 3)).astype(np.uint8)
    Image.fromarray(coarse).resize(size).save(path)


def fashion_iq(
    root: pathlib.Path,
    categories=("dress", "toptee"),
    layout: str = "images/{id}.jpg",
    images: int = 8,
    annotations: int = 6,
) -> pathlib.Path:
    """Write FashionIQ: per category ``images`` ids a split and ``annotations`` triplets."""
    for number, category in enumerate(categories):
        for split in ("train", "val", "test"):
            ids = [f"{category[0]}{split}{i}" for i in range(images)]
            entries = []
            for i in range(annotations):
                entry = {
                    "candidate": ids[i % images],
                    "captions": [_WORDS[i % len(_WORDS)], _WORDS[(i + 1) % len(_WORDS)]],
                }
                if split != "test":
                    entry["target"] = ids[(i + 1) % images]
                entries.append(entry)
            for kind, name, content in (
                ("captions", "cap", entries),
                ("image_splits", "split", ids),
            ):
                path = root / kind / f"{name}.{category}.{split}.json"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(json.dumps(content))
            for i, image_id in enumerate(ids):
                image(root / layout.format(id=image_id, category=category), 100 * number + i)
    return root


def shoes(root: pathlib.Path, prepared: bool = False, folder: str = "") -> pathlib.Path:
    """Write Shoes, raw or prepared; ``folder`` is the prefix of ``womens_*``."""
    names = {
        split: [
            f"img_womens_{kind}_{start + i}.jpg" for kind in ("clogs", "pumps") for i in range(5)
        ]
        for split, start in (("train", 0), ("val", 50))
    }
    places = {
        name: f"{folder}womens_{name.split('_')[2]}/{i % 2}/{name}"
        for split in names.values()
        for i, name in enumerate(split)
    }
    pairs = {
        split: [
            {
                "ImageName": ids[(i + 1) % 10],
                "ReferenceImageName": ids[i],
                "RelativeCaption": caption,
            }
            for i, caption in enumerate(_WORDS)
        ]
        for split, ids in names.items()
    }
    root.mkdir(parents=True, exist_ok=True)
    if prepared:
        for split, ids in names.items():
            full = [
                {k: places.get(v, v).removeprefix(folder) for k, v in p.items()}
                for p in pairs[split]
            ]
            (root / f"triplet.{split}.json").write_text(json.dumps(full))
            paths = [places[i].removeprefix(folder) for i in ids]
            (root / f"split.{split}.json").write_text(json.dumps(paths))
    else:
        stray = {**pairs["train"][0], "ImageName": names["val"][0]}  # in no split
        everything = [*pairs["val"], *pairs["train"], stray]
        (root / "relative_captions_shoes.json").write_text(json.dumps(everything))
        (root / "train_im_names.txt").write_text("\n".join(names["train"]) + "\n")
        (root / "eval_im_names.txt").write_text("\n".join(names["val"]) + "\n")
    for number, place in enumerate(places.values()):
        image(root / place, number)
    return root


def fashion200k(
    root: pathlib.Path,
    folder: str = "women/",
    in_labels: str = "women/",
    in_queries: str = "women/",
    queries_in: str = "",
) -> pathlib.Path:
    """Write Fashion200k with two categories; the arguments are prefixes of paths."""
    colours = ("red", "blue", "green")
    for split, count in (("train", 9), ("test", 6)):
        for category in ("top", "dress"):
            lines = []
            for i in range(count):
                path = f"{category}/{split}/{i}/{i}_0.jpeg"
                caption = f"{colours[i % 3]} {'lace' if i % 2 else 'v-neck no. 1'} {category}"
                lines.append(f"{in_labels}{path}\t0.9\t{caption}")
                image(root / f"{folder}{path}", i)
            label = root / "labels" / f"{category}_{split}_detect_all.txt"
            label.parent.mkdir(parents=True, exist_ok=True)
            label.write_text("\n".join(lines) + "\n")
    places = [f"{in_queries}dress/test/{i}/{i}_0.jpeg" for i in range(6)]
    queries = [f"{places[i]} {places[(i + 2) % 6]}" for i in range(6)]
    path = root / queries_in / "test_queries.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(queries) + "\n")
    return root


def cirr(root: pathlib.Path, folder: str = "", inside: str = "") -> pathlib.Path:
    """Write CIRR with the images in ``folder`` and the annotations in ``inside``."""
    for split, stem in (("train", "train/7"), ("val", "dev"), ("test1", "test1")):
        ids = [f"{split}-{i}-img0" for i in range(12)]
        entries = []
        for i, caption in enumerate(_WORDS):
            entry = {
                "pairid": 100 + i,
                "reference": ids[i],
                "caption": caption,
                "img_set": {"id": i, "members": ids[i : i + 6], "reference_rank": 0},
            }
            if split != "test1":
                entry["target_hard"] = ids[i + 1]
                entry["target_soft"] = {ids[i + 1]: 1.0, ids[i + 2]: 0.5}
            entries.append(entry)
        paths = {name: f"./{stem}/{name}.png" for name in ids}
        for kind, name, content in (
            ("captions", f"cap.rc2.{split}.json", entries),
            ("image_splits", f"split.rc2.{split}.json", paths),
        ):
            path = root / inside / kind / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(content))
        for i, name in enumerate(ids):
            image(root / folder / stem / f"{name}.png", 10 * len(split) + i)
    return root


def circo(
    root: pathlib.Path, folder: str = "COCO2017_unlabeled/unlabeled2017", listed: bool = True
) -> pathlib.Path:
    """Write CIRCO with a gallery of 60 images; ``listed``: with COCO's list of them."""
    ids = list(range(1, 61))
    annotations: dict[str, list[dict]] = {"val": [], "test": []}
    for split, entries in annotations.items():
        for i, caption in enumerate(_WORDS):
            entry = {
                "id": i,
                "reference_img_id": ids[i],
                "relative_caption": caption,
                "shared_concept": "a garment",
            }
            if split == "val":
                entry |= {"target_img_id": ids[i + 1], "gt_img_ids": ids[i + 1 : i + 4]}
            entries.append(entry)
        path = root / "annotations" / f"{split}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(entries))
    if listed:
        path = root / "COCO2017_unlabeled/annotations/image_info_unlabeled2017.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"images": [{"id": i} for i in ids]}))
    for i in ids:
        image(root / folder / f"{i:012d}.jpg", i)
    return root


def judged_folder(root: pathlib.Path) -> pathlib.Path:
    """Write a folder whose val has several right and wrong images, paraphrases and references."""
    rows = [
        {
            "reference": ["0.jpg", "1.jpg"],
            "text": "is red",
            "target": ["2.jpg", "3.jpg"],
            "wrong": ["4.jpg"],
            "paraphrases": ["red", ["has red", "is a red"]],
        },
        {
            "reference": "5.jpg",
            "text": ["is longer", "has a v"],
            "target": "6.jpg",
            "wrong": ["0.jpg", "7.jpg"],
            "paraphrases": ["longer and v"],
        },
        {"reference": "2.jpg", "text": "is a v", "target": ["1.jpg", "0.jpg"], "wrong": []},
        {"reference": "1.jpg", "text": "red v", "target": "7.jpg", "paraphrases": ["v red"]},
    ]
    for i in range(16):
        image(root / f"{i}.jpg", i)
    (root / "val.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = [
        {"reference": f"{i}.jpg", "text": "is red longer has a v", "target": f"{i + 1}.jpg"}
        for i in range(8, 15)
    ]
    (root / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in pairs))
    (root / "gallery.txt").write_text("".join(f"{i}.jpg\n" for i in range(16)))
    return root


def folder(root: pathlib.Path, suffix: str = "csv", gallery: bool = True) -> pathlib.Path:
    """Write a folder of images with tables for train, val and test."""
    root.mkdir(parents=True, exist_ok=True)
    for number, split in enumerate(("train", "val", "test")):
        ids = [f"{split}/{i}.jpg" for i in range(8)]
        rows = [
            {"reference": ids[i], "text": caption, "target": ids[i + 1]}
            for i, caption in enumerate(_WORDS)
        ]
        if suffix == "csv":
            lines = ["reference,text,target", *(",".join(row.values()) for row in rows)]
        else:
            lines = [json.dumps(row) for row in rows]
        (root / f"{split}.{suffix}").write_text("\n".join(lines) + "\n")
        for i, name in enumerate(ids):
            image(root / name, 100 * number + i)
    if gallery:
        names = [f"{split}/{i}.jpg" for split in ("val", "test") for i in range(8)]
        (root / "gallery.txt").write_text("\n".join(names) + "\n")
    return root


# A data set's name, perhaps with a layout, -> a function that writes a small one into a folder.
DATA_SETS = {
    "fashion_iq": fashion_iq,
    "fashion200k": fashion200k,
    "shoes": shoes,
    "shoes prepared": lambda root: shoes(root, prepared=True, folder="womens/"),
    "cirr": lambda root: cirr(root, folder="images", inside="cirr"),
    "circo": circo,
    "circo unlisted": lambda root: circo(root, "unlabeled2017", listed=False),
    "folder": folder,
    "folder jsonl": lambda root: folder(root, suffix="jsonl"),
    "folder judged": judged_folder,
}
