"""Problems and oddities of a data set, and those among them that its annotations show."""

import collections
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Literal

from cmap_jax.processing.tokenizer import Vocabulary
from cmap_jax.processing.tokenizing import Tokenizer, join_captions
from input_pipeline.records import Records
from input_pipeline.texts import (
    ALLOW,
    MANY_UNKNOWN,
    MANY_WORDLESS,
    TOO_MUCH,
    Reading,
    read_captions,
    trained_splits,
    wordless_remedy,
    words_remedy,
)

_NOTHING = "nothing to do"
_SEVERITIES = ("note", "warning", "error")
Severity = Literal["error", "warning", "note"]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Finding:
    """A problem or an oddity of a data set.

    Attributes:
        kind: word by which scripts recognize it, such as "missing".
        severity: "error": training would fail; "warning": numbers are affected; "note": neither.
        title: one line for people, with the number in it.
        count: number of images, annotations or words that are affected.
        items: a line for each of these.
        fix: the remedy: a command, a flag, a file.
    """

    kind: str
    severity: Severity
    title: str
    count: int
    items: tuple[str, ...]
    fix: str

    def to_dict(self) -> dict:
        """Return the fields, for JSON."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Annotation:
    """A triplet that a person wrote once; where triplets are drawn, an image with its caption.

    Attributes:
        split: "train", "val", ...
        category: key of the gallery, or empty.
        reference: image id.
        targets: image ids; none where they are not known.
        captions: texts in the order written.
        more_references: image ids of the references beside the first one.
        is_paraphrase: whether it is a further text of an annotation, which stands before it.
    """

    split: str
    category: str
    reference: str
    targets: tuple[str, ...]
    captions: tuple[str, ...]
    more_references: tuple[str, ...] = ()
    is_paraphrase: bool = False

    @property
    def references(self) -> tuple[str, ...]:
        """All references, the first one first."""
        return (self.reference, *self.more_references)

    def __str__(self) -> str:
        category = f" {self.category}" if self.category not in ("", "all") else ""
        target = f" -> {self.targets[0]}" if self.targets else ""
        return f"{self.split}{category}: {self.reference}{target}"


def number(count: int, noun: str, plural: str = "") -> str:
    """Return "1 image", "2,000 images", "2 queries"."""
    return f"{count:,} {noun if count == 1 else plural or noun + 's'}"


def list_annotations(records: Records) -> tuple[Annotation, ...]:
    """Return every annotation once, whatever the number of its caption orders and protocols.

    A query's paraphrases are annotations of their own, since each has a text to be read.
    """
    return (*_train_annotations(records), *_query_annotations(records))


def _train_annotations(records: Records) -> Iterator[Annotation]:
    before = None
    for t in records.train.items():
        # Both orders of two captions stand one after the other.
        if len(t.captions) == 2 and dataclasses.replace(t, captions=t.captions[::-1]) == before:
            before = None
            continue
        before = t
        yield Annotation(
            split="train",
            category=t.category,
            reference=t.reference,
            targets=(t.target,) if t.target else (),  # some are drawn later
            captions=t.captions,
        )


def _query_annotations(records: Records) -> Iterable[Annotation]:
    labelled = [(split, e) for split, several in records.evaluations.items() for e in several]
    texts: dict[tuple[str, ...], dict[tuple[str, ...], Annotation]] = {}
    for split, evaluation in (*labelled, *records.unlabelled.items()):
        for q in evaluation.queries:
            known = texts.setdefault((split, q.category, q.annotation), {})
            annotation = Annotation(
                split=split,
                category=q.category,
                reference=q.reference,
                targets=q.targets,
                captions=q.captions,
                more_references=q.more_references,
                is_paraphrase=bool(known),
            )
            known.setdefault(tuple(sorted(q.captions)), annotation)  # both orders are one text
    return [annotation for known in texts.values() for annotation in known.values()]


def by_split(annotations: Iterable[Annotation]) -> str:
    """Return the number of annotations of each split, as "12 train, 3 val"."""
    counts = collections.Counter(a.split for a in annotations)
    return ", ".join(f"{count:,} {split}" for split, count in counts.items())


def captions_by_split(annotations: Iterable[Annotation]) -> dict[str, list[str]]:
    """Return the captions of each split, as they were written."""
    captions: dict[str, list[str]] = collections.defaultdict(list)
    for a in annotations:
        captions[a.split] += a.captions
    return dict(captions)


def read_splits(
    records: Records, annotations: Iterable[Annotation], tokenizer: Tokenizer
) -> dict[str, Reading]:
    """Return how a model reads the captions of each split.

    Args:
        records: the data set.
        annotations: all of its annotations, or those of some splits.
        tokenizer: a model's, or the one that training would make.
    """
    captions = captions_by_split(annotations)
    return {split: read_captions(texts, tokenizer) for split, texts in captions.items()}


def caption_findings(
    records: Records,
    annotations: Sequence[Annotation],
    readings: Mapping[str, Reading],
    tokenizer: Tokenizer,
) -> Iterator[Finding]:
    """Yield captions that are empty, lose all their words in cleaning, or are too long."""
    empty = list(_captions(annotations, lambda caption: not caption.strip()))
    lost = list(_captions(annotations, tokenizer.loses_all_words))
    shares = {split: reading.wordless_share for split, reading in readings.items()}
    severity = max(
        (_severity(records, split, share, MANY_WORDLESS) for split, share in shares.items()),
        key=_SEVERITIES.index,
        default="note",
    )
    legal = f"{_NOTHING}: a text without words is legal; to mend it, write a caption there"
    mend = legal if severity == "note" else f"{wordless_remedy(tokenizer)}; or {ALLOW}"
    many = [f"{share:.0%} of {split}" for split, share in shares.items() if share > MANY_WORDLESS]
    yield from _caption_finding(
        empty, kind="empty_caption", severity="note", state="empty", remark="", fix=legal
    )
    yield from _caption_finding(
        lost,
        kind="wordless_caption",
        severity=severity,
        state="without a word once cleaned",
        remark=f": {', '.join(many)}" if many else "",
        fix=mend,
    )
    if cut := [a for a in annotations if a.captions and tokenizer.cuts(a.captions)]:
        yield Finding(
            kind="long_text",
            severity="warning",
            title=f"{number(len(cut), 'text')} longer than {tokenizer.limit} tokens "
            f"({by_split(cut)})",
            count=len(cut),
            items=tuple(f"{a}: {join_captions(a.captions)!r}" for a in cut),
            fix="shorten them: their ends are not read",
        )


def _caption_finding(
    captions: Sequence[tuple[Annotation, int, str]],
    *,
    kind: str,
    severity: Severity,
    state: str,
    remark: str,
    fix: str,
) -> Iterator[Finding]:
    if captions:
        counts = by_split(annotation for annotation, _, _ in captions)
        yield Finding(
            kind=kind,
            severity=severity,
            title=f"{number(len(captions), 'caption')} {state} ({counts}){remark}",
            count=len(captions),
            items=tuple(f"{a}, caption {at}: {caption!r}" for a, at, caption in captions),
            fix=fix,
        )


def _captions(
    annotations: Iterable[Annotation], is_such: Callable[[str], bool]
) -> Iterator[tuple[Annotation, int, str]]:
    """Yield the captions with a property: annotation, position in it from 1, and text."""
    for a in annotations:
        for position, caption in enumerate(a.captions, 1):
            if is_such(caption):
                yield a, position, caption


def _severity(records: Records, split: str, share: float, many: float) -> Severity:
    """Return the severity of a share of a split's texts that cannot be read.

    Args:
        records: the data set.
        split: name of the split.
        share: part of its captions or words, 0 to 1.
        many: the share above which numbers are affected.
    """
    if share > TOO_MUCH and split in trained_splits(records):
        return "error"
    return "warning" if share > many else "note"


def same_image_findings(annotations: Sequence[Annotation]) -> Iterator[Finding]:
    """Yield triplets and queries whose reference is a target too."""
    same = [a for a in annotations if not a.is_paraphrase and set(a.references) & set(a.targets)]
    if same:
        yield Finding(
            kind="reference_is_target",
            severity="warning",
            title=f"{number(len(same), 'annotation')} with reference = target ({by_split(same)})",
            count=len(same),
            items=tuple(map(str, same)),
            fix="remove them from your own annotations; published ones stay as they are: such a "
            "query cannot be answered where the reference is excluded",
        )


def repeated_row_findings(records: Records, annotations: Sequence[Annotation]) -> Iterator[Finding]:
    """Yield rows of own tables that occur more than once; published annotations are not judged."""
    repeated: Mapping[str, int] = records.facts.get("repeated_rows", {})
    if repeated:
        count = sum(repeated.values())
        splits = ", ".join(f"{n:,} {split}" for split, n in repeated.items())
        times = collections.Counter(a for a in annotations if not a.is_paraphrase)
        yield Finding(
            kind="repeated_row",
            severity="warning",
            title=f"{number(count, 'repeated row')} ({splits})",
            count=count,
            items=tuple(f"{a}: {n} times" for a, n in times.items() if n > 1),
            fix="take the copies out of the tables: each is trained on, or asked, once more",
        )


def gallery_findings(records: Records) -> Iterator[Finding]:
    """Yield queries that no image of the gallery answers, even where none is missing."""
    for evaluations in records.evaluations.values():
        for evaluation in evaluations:
            galleries = {category: set(ids) for category, ids in evaluation.galleries.items()}
            lost = [
                f"{q.id}: {q.reference} -> {', '.join(q.targets)}"
                for q in evaluation.queries
                if not galleries[q.category].intersection(q.targets)
            ]
            if lost:
                yield Finding(
                    kind="no_target_in_gallery",
                    severity="warning",
                    title=f"{number(len(lost), 'query', 'queries')} of {evaluation.protocol.name} "
                    "with no target in the gallery",
                    count=len(lost),
                    items=tuple(lost),
                    fix="add the targets to the gallery's file: such queries are left out and "
                    "counted",
                )


def leak_findings(records: Records) -> Iterator[Finding]:
    """Yield images that training shows and an evaluation asks for, by pair of categories."""
    shown: dict[str, set[str]] = collections.defaultdict(set)
    for t in records.train.items():
        shown[t.category].add(t.reference)
        if t.target:  # others are drawn later
            shown[t.category].add(t.target)
    for split, evaluations in records.evaluations.items():
        targets, references, gallery = (collections.defaultdict(set) for _ in range(3))
        for evaluation in evaluations:
            for category, ids in evaluation.galleries.items():
                gallery[category].update(ids)
            for q in evaluation.queries:
                targets[q.category].update(q.targets)
                references[q.category].update(q.references)
        for train_category, ids in shown.items():
            for category in gallery:
                overlap = [sorted(ids & x[category]) for x in (targets, references, gallery)]
                if any(overlap):
                    yield _leak(
                        split,
                        category,
                        train_category,
                        targets=overlap[0],
                        references=overlap[1],
                        gallery=overlap[2],
                    )


def _leak(
    split: str,
    category: str,
    train_category: str,
    *,
    targets: Sequence[str],
    references: Sequence[str],
    gallery: Sequence[str],
) -> Finding:
    asked = f"{split} {category}" if category != "all" else split
    train = f"train triplets of {train_category}" if train_category else "training"
    counts = (
        f"{number(len(targets), 'target')}, {number(len(references), 'reference')} and "
        f"{number(len(gallery), 'gallery image')}"
    )
    if not targets and not references:
        return Finding(
            kind="gallery_in_train",
            severity="note",
            title=f"{number(len(gallery), 'gallery image')} of {asked} also in {train}",
            count=len(gallery),
            items=tuple(gallery),
            fix=f"{_NOTHING}: none of them is asked for",
        )
    return Finding(
        kind="leak",
        severity="warning",
        title=f"{counts} of {asked} also in {train}",
        count=len(targets) or len(references),
        items=tuple(targets or references),
        fix="take these images out of the training triplets of your own data; with published data, "
        "say it beside the numbers",
    )


def word_findings(
    records: Records, readings: Mapping[str, Reading], tokenizer: Tokenizer | None
) -> Iterator[Finding]:
    """Yield the words that a vocabulary lacks.

    Args:
        records: the data set.
        readings: for each split, how its captions are read with the vocabulary.
        tokenizer: a model's; None: the one that training would make of the words.
    """
    if tokenizer is None and not records.vocabulary_captions:
        yield Finding(
            kind="words_not_checked",
            severity="note",
            title="words are not checked: there are no training captions to count them in",
            count=0,
            items=(),
            fix="give a model's tokenizer: --vocabulary WORKDIR",
        )
        return
    own = Vocabulary.build(records.vocabulary_captions, records.extra_special)
    counts_words = tokenizer is None or tokenizer.counts_words
    remedy = words_remedy(tokenizer)
    for split, reading in readings.items():
        if not reading.unknown:
            continue
        severity = _severity(records, split, reading.unknown_share, MANY_UNKNOWN)
        fix = f"{_NOTHING}: the model reads each of them as <unk>"
        if severity != "note":
            fix = f"{remedy}; or {ALLOW}" if severity == "error" else remedy
        elif counts_words and split == "train" and any(word in own for word in reading.unknown):
            # A model that was trained on this data has all words that training counts.
            severity = "warning"
            fix = "give the vocabulary.txt of a model that was trained on this data set"
        yield Finding(
            kind="unknown_word",
            severity=severity,
            title=f"{number(len(reading.unknown), 'word')} of the {split} captions not in the "
            f"vocabulary: {reading.unknown.total():,} of {reading.words:,} occurrences "
            f"({reading.unknown_share:.1%})",
            count=len(reading.unknown),
            items=tuple(f"{word} ({n:,})" for word, n in reading.unknown.most_common()),
            fix=fix,
        )
