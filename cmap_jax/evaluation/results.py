"""The results of an evaluation in memory, one object a protocol.

    result = evaluator(variables, data, shortcuts=True)
    result.headline()                                              # 41.6
    result.protocols["fashioniq/original"].numbers["R@10"]         # 30.1, percent
    result.protocols["fashioniq/original"].shortcuts["text"]       # the numbers of the text alone

`cmap_jax.evaluation.results_file` writes and reads them.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from cmap_jax.evaluation.outcomes import Outcomes
from cmap_jax.facts import DataFacts, UnreadTexts
from cmap_jax.protocols import Protocol

Numbers = Mapping[str, float | int]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ProtocolResult:
    """The result of an evaluation under one protocol.

    Attributes:
        protocol: the rules.
        numbers: recalls and precisions in percent, ranks and counts by name; see
            `outcomes.summarize`.
        outcomes: the rank of each query, from which the numbers are computed.
        conditions: version of the rules and digests of galleries and queries. Only results under
            equal conditions are compared.
        shortcuts: the numbers of the same model with one half of each query taken away, by the half
            that is left, "text" or "image"; None where this half scores all images alike. Empty
            where shortcuts were not asked for.
        overlap: how much the modified and the preserved part have in common, by name; see
            `cmap_jax.evaluation.overlap`. Empty where it was not asked for.
        rankings: a record a query, see `ranking.Ranking`; empty where they were not asked for.
        examples: records of a few queries; empty where they were not asked for.
        intervals: 95% interval of every number; empty in a result that is not stored yet, since
            resampling takes seconds.
    """

    protocol: Protocol
    numbers: Numbers
    outcomes: Outcomes
    conditions: Mapping[str, Any]
    shortcuts: Mapping[str, Numbers | None] = dataclasses.field(default_factory=dict)
    overlap: Numbers = dataclasses.field(default_factory=dict)
    rankings: Sequence[Mapping[str, Any]] = ()
    examples: Sequence[Mapping[str, Any]] = ()
    intervals: Mapping[str, tuple[float, float]] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Result:
    """The results of an evaluation.

    Attributes:
        protocols: by the protocol's name, in the order of the evaluations. The headline of the
            first one chooses the best checkpoint.
    """

    protocols: Mapping[str, ProtocolResult]

    def headline(self) -> float:
        """Return the number that chooses the best checkpoint, in percent."""
        first = next(iter(self.protocols.values()))
        return first.numbers[first.protocol.headline_name]


@dataclasses.dataclass(frozen=True, kw_only=True)
class ImageOrigin:
    """The data set of an evaluation and how its images were read; see ``config.data``.

    Attributes:
        name: the data set's name.
        directory: the folder with its annotations.
        image_directory: the folder with its images; None: found inside ``directory``.
        resize: side of the resized image, pixels.
        crop: side of the centre crop, pixels.
        read_as: how files were decoded, "released" or "upright".
    """

    name: str | None = None
    directory: str | None = None
    image_directory: str | None = None
    resize: int | None = None
    crop: int | None = None
    read_as: str | None = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvaluationFacts:
    """Facts of the data and the variables behind an evaluation's numbers.

    Attributes:
        data_set: facts of the data set.
        unread_texts: the part of the queries' texts that the model cannot read, by protocol.
        data: the data set and how its images were read.
        variables: digest of the model's variables; see `cmap_jax.workdir.fingerprint.digest`.
        zero_shot: whether the model was trained on no data set's triplets.
    """

    data_set: DataFacts
    unread_texts: Mapping[str, UnreadTexts] = dataclasses.field(default_factory=dict)
    data: ImageOrigin = ImageOrigin()
    variables: str | None = None
    zero_shot: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Return the facts for JSON."""
        unread = {name: dataclasses.asdict(texts) for name, texts in self.unread_texts.items()}
        return {
            **self.data_set.to_dict(),
            "unread_texts": unread,
            "data": dataclasses.asdict(self.data),
            "variables": self.variables,
            **({"zero_shot": True} if self.zero_shot else {}),
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> "EvaluationFacts":
        """Build facts from the result of `to_dict`; files of earlier versions lack some of them."""
        of_data_set = dict(fields)
        unread = of_data_set.pop("unread_texts", {})
        data = of_data_set.pop("data", {})
        variables = of_data_set.pop("variables", None)
        zero_shot = of_data_set.pop("zero_shot", False)
        return cls(
            data_set=DataFacts.from_dict(of_data_set),
            unread_texts={name: UnreadTexts(**texts) for name, texts in unread.items()},
            data=ImageOrigin(**data),
            variables=variables,
            zero_shot=zero_shot,
        )
