"""What each label of a model means in coded terms and how viewers colour it.

A manifest says so itself; for labels of which it gives the name alone, the table here does. Its codes are SNOMED CT
(SCT) as in the DICOM context groups 7150 (category) and 7151 (type), which is extensible: Vertebral canal is from CID
8134, Spine from CID 4; the generic intervertebral disc is in no context group.
"""

from __future__ import annotations

from dataclasses import dataclass

from node.errors import ConfigurationError
from trt.manifest import Code as LabelCode
from trt.manifest import Label

Code = tuple[str, str, str]
"""Code value, coding scheme designator, code meaning."""

_ANATOMY: Code = ("91723000", "SCT", "Anatomical Structure")
_ABNORMAL: Code = ("49755003", "SCT", "Morphologically Abnormal Structure")
_CORD: Code = ("2748008", "SCT", "Spinal cord")
_SPINE: Code = ("421060004", "SCT", "Spine")  # tumours grow in vertebrae, in the canal and about it


@dataclass(frozen=True)
class Meaning:
    """A label's words for people, its coded category and type, its sRGB colour 0..255, and its region if it has one."""

    words: str
    category: Code
    type: Code
    colour: tuple[int, int, int]
    region: Code | None = None


MEANINGS: dict[str, Meaning] = {
    "vertebra": Meaning("Vertebra", _ANATOMY, ("51282000", "SCT", "Vertebra"), (240, 200, 80)),
    "spinal canal": Meaning("Spinal canal", _ANATOMY, ("61853006", "SCT", "Vertebral canal"), (60, 170, 255)),
    "intervertebral disc": Meaning(
        "Intervertebral disc", _ANATOMY, ("360499006", "SCT", "Intervertebral disc"), (240, 90, 140)
    ),
    "spinal cord": Meaning("Spinal cord", _ANATOMY, _CORD, (120, 220, 120)),
    "sacrum": Meaning("Sacrum", _ANATOMY, ("54735007", "SCT", "Sacrum"), (200, 150, 100)),
    "neoplasm": Meaning("Neoplasm", _ABNORMAL, ("108369006", "SCT", "Neoplasm"), (230, 40, 40), _SPINE),
    "lesion": Meaning("Lesion", _ABNORMAL, ("52988006", "SCT", "Lesion"), (230, 40, 40), _CORD),
    "edema": Meaning("Edema", _ABNORMAL, ("79654002", "SCT", "Edema"), (170, 120, 240), _CORD),
    "cyst": Meaning("Cyst", _ABNORMAL, ("367643001", "SCT", "Cyst"), (60, 210, 200), _CORD),
}


def meaning_of(label: Label) -> Meaning:
    """Return what a label of a manifest means; in names, underscores count as spaces.

    Raises
    ------
    ConfigurationError
        The manifest gives the label no code, and none is known for its name.
    """
    name = label.name.replace("_", " ")
    if label.code is not None and label.category is not None and label.colour is not None:
        region = _triple(label.region) if label.region else None
        return Meaning(name[:1].upper() + name[1:], _triple(label.category), _triple(label.code), label.colour, region)
    if name.lower() not in MEANINGS:
        raise ConfigurationError(
            f"the model has a label {label.name!r} that no DICOM code is known for",
            f"give it a code in the manifest, or name it as one of {', '.join(sorted(MEANINGS))}",
        )
    return MEANINGS[name.lower()]


def _triple(code: LabelCode) -> Code:
    return code.value, code.scheme, code.meaning
