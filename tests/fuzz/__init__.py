"""Fuzzing of the DICOM front door: targets, each with its laws in `check`, and the inputs that are kept."""

_PYNETDICOM = [f"pynetdicom.{name}" for name in ("pdu", "pdu_items", "pdu_primitives", "presentation")]
_PYDICOM = [f"pydicom.{name}" for name in ("filereader", "dataset", "dataelem", "values", "charset")]

# What is fuzzed, and the modules whose branches guide it.
TARGETS = {
    "stream": ["node"],
    "command": ["node"],
    "request": ["node", *_PYNETDICOM],
    "header": ["node", *_PYDICOM],
    "association": ["node"],
}
