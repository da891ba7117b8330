"""dicom-validator without the network: the standard's tables as highdicom ships them, in the form that it reads.

What it can say this way is less than with the standard's own text: conditions of type 1C and 2C are not known, and what
is within functional groups and content items is not looked at. It knows label maps, which dciodvfy of 2022 does not.
"""

from __future__ import annotations

import json
from importlib.resources import files
from pathlib import Path
from typing import Any

import pydicom
from dicom_validator.validator.dicom_file_validator import DicomFileValidator
from dicom_validator.validator.dicom_info import DicomInfo
from dicom_validator.validator.error_handler import ValidationResultHandlerBase
from pydicom.datadict import DicomDictionary, tag_for_keyword

_FUNCTIONAL_GROUPS = ("(5200,9229)", "(5200,9230)")
_CONTENT = ("(0040,A040)", "(0040,A043)", "(0040,A050)", "(0040,A504)", "(0040,A730)")


class Standard:
    """The tables, read once. `faults` tells what is wrong with a file."""

    def __init__(self) -> None:
        tables = files("highdicom") / "_standard"
        iods, modules, classes = (
            json.loads((tables / f"{name}.json").read_text())
            for name in ("iod_module_map", "module_attribute_map", "sop_class_iod_map")
        )
        dictionary = {
            _tag(tag): {"vr": vr, "vm": vm, "name": name, "prop": "RET" if retired else ""}
            for tag, (vr, vm, name, retired, _) in DicomDictionary.items()
        }
        self._info = DicomInfo(
            dictionary,
            {uid: _iod(name, iods.get(name, [])) for uid, name in classes.items()},
            {name: _module(name, attributes, dictionary) for name, attributes in modules.items()},
        )

    def faults(self, path: Path) -> list[str]:
        """What dicom-validator finds wrong with a file, a line each."""
        told = _Told()
        before = pydicom.config.settings.reading_validation_mode
        try:  # it changes that of the whole process
            results = DicomFileValidator(self._info, error_handler=told).validate(path)
        finally:
            pydicom.config.settings.reading_validation_mode = before
        assert len(results) == 1
        return told.lines


class _Told(ValidationResultHandlerBase):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def handle_validation_result(self, result: Any) -> None:
        if not result.module_errors and result.status.name != "Passed":
            self.lines.append(result.status.name)
        for module, errors in result.module_errors.items():
            self.lines += [f"{module}: {tag}: {error.code.name}" for tag, error in errors.items()]


def _tag(tag: int) -> str:
    return f"({tag >> 16:04X},{tag & 0xFFFF:04X})"


def _iod(name: str, listed: list[dict[str, str]]) -> dict[str, Any]:
    modules = {}
    for module in listed:
        entry: dict[str, Any] = {"ref": module["key"], "use": module["usage"]}
        if module["usage"] != "M":
            entry |= {"use": "U" if module["usage"] == "U" else "C", "cond": {"type": "U"}}
        modules[module["key"]] = entry
    return {"title": name, "modules": modules, "group_macros": {}}


def _module(name: str, attributes: list[dict[str, Any]], dictionary: dict[str, Any]) -> dict[str, Any]:
    root: dict[str, Any] = {}
    for attribute in sorted(attributes, key=lambda attribute: len(attribute["path"])):
        at: dict[str, Any] | None = root
        for keyword in attribute["path"]:
            tag = tag_for_keyword(keyword)
            at = at[_tag(tag)].setdefault("items", {}) if at is not None and tag and _tag(tag) in at else None
        tag = tag_for_keyword(attribute["keyword"])
        if at is None or tag is None:
            continue
        entry: dict[str, Any] = {"name": dictionary[_tag(tag)]["name"], "type": attribute["type"]}
        if attribute["type"].endswith("C"):
            entry["cond"] = {"type": "U"}
        at[_tag(tag)] = entry
    if "functional-groups" in name:
        for group in _FUNCTIONAL_GROUPS:
            root.get(group, {}).pop("items", None)
    if name == "sr-document-content":
        root = {tag: {k: v for k, v in root[tag].items() if k != "items"} for tag in _CONTENT if tag in root}
    return root
