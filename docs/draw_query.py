"""Draws the README's picture: a query of a trained workdir and its best images.

python main.py --mode=evaluate --workdir=runs/garments --config.eval.rankings=true
python docs/draw_query.py runs/garments garments-test docs/images/query.jpg
"""

import json
import pathlib
import sys

from PIL import Image, ImageDraw, ImageFont

from cmap_jax import workdir as workdir_lib

SIDE, GAP, CAPTION = 144, 10, 46  # pixels
RIGHT, INK, PAPER = (30, 132, 73), (40, 40, 40), (255, 255, 255)
QUERIES, RESULTS = 3, 6


def draw_query(record: dict, images: pathlib.Path) -> Image.Image:
    """Draw a line of a rankings file: reference, text, and the best images, the right one framed.

    Args:
        record: reference, text, targets and top, as `main.py` writes them.
        images: folder of the image files.
    """
    shown = [record["reference"], *record["top"][:RESULTS]]
    width = len(shown) * (SIDE + GAP) + 4 * GAP
    sheet = Image.new("RGB", (width, SIDE + CAPTION + GAP), PAPER)
    pen = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(15)
    text = "  +  ".join(f"“{caption}”" for caption in record["text"])
    pen.text((0, 8), text, fill=INK, font=font)
    x, y = SIDE + GAP + 4, CAPTION + SIDE // 2
    pen.line((x, y, x + 20, y), fill=INK, width=2)
    pen.polygon([(x + 18, y - 5), (x + 28, y), (x + 18, y + 5)], fill=INK)
    for position, image_id in enumerate(shown):
        x = position * (SIDE + GAP) + (4 * GAP if position else 0)
        picture = Image.open(images / f"{image_id}.jpg").resize((SIDE, SIDE), Image.LANCZOS)
        sheet.paste(picture, (x, CAPTION))
        if position and image_id in record["targets"]:
            frame = (x - 3, CAPTION - 3, x + SIDE + 2, CAPTION + SIDE + 2)
            pen.rectangle(frame, outline=RIGHT, width=4)
    return sheet


def main(workdir: str, protocol: str, out: str) -> None:
    """Draw queries whose right image is first, second and third."""
    config = workdir_lib.read_config(workdir)
    images = pathlib.Path(config.data.directory) / "images"
    lines = (pathlib.Path(workdir) / "rankings" / f"{protocol}.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    chosen = [next(r for r in records[40 * n :] if r["rank"] == n) for n in range(QUERIES)]
    rows = [draw_query(record, images) for record in chosen]
    sheet = Image.new("RGB", (rows[0].width, sum(row.height for row in rows)), PAPER)
    for number, row in enumerate(rows):
        sheet.paste(row, (0, number * row.height))
    sheet.save(out, quality=92)


if __name__ == "__main__":
    main(*sys.argv[1:])
