"""The answer to a Store transaction: Store Instances Response Module and HTTP status (PS3.18 10.5.3 and annex I)."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from xml.etree import ElementTree

from pydicom.datadict import keyword_for_tag

from node import statuses
from node.transaction import Outcome

JSON, XML = "application/dicom+json", "application/dicom+xml"
# Most preferred first, where the Accept header leaves the choice; what older clients ask for is meant.
_OFFERED = (
    (JSON, ("application/dicom+json", "application/json")),
    (XML, ("application/dicom+xml", "text/xml", "application/xml")),
)
_NATIVE = "http://dicom.nema.org/PS3.19/models/NativeDICOM"
_COMMENT = 64

_DataSet = dict[str, dict[str, Any]]


def negotiate(accept: str) -> str | None:
    """Return `JSON` or `XML`, as an Accept header has it (RFC 9110 section 12.5.1); None: it takes neither."""
    weights: dict[str, float] = {}
    for field in (accept or "*/*").lower().split(","):
        media, *parameters = (part.strip() for part in field.split(";"))
        quality = next((p[2:] for p in parameters if p.startswith("q=")), "1")
        try:
            weights[media] = float(quality)
        except ValueError:
            weights[media] = 0.0
    best, chosen = 0.0, ""
    for offered, names in _OFFERED:
        given = [weights[name] for name in names if name in weights]
        ranges = (weights[name] for name in (names[0].split("/")[0] + "/*", "*/*") if name in weights)
        weight = max(given) if given else next(ranges, 0.0)
        if weight > best:
            best, chosen = weight, offered
    return chosen or None


def http_status(outcomes: Sequence[Outcome]) -> int:
    """Return the status for a request that came whole (PS3.18 table 10.5.3-1), 413 and 503 where that says more.

    503 means that all of it may be sent again, unchanged, later.
    """
    failed = [outcome for outcome in outcomes if outcome.status != statuses.SUCCESS]
    if not failed:
        return 200
    if len(failed) < len(outcomes):
        return 202
    if all(outcome.oversized for outcome in failed):
        return 413
    if all(outcome.status == statuses.OUT_OF_RESOURCES and not outcome.oversized for outcome in failed):
        return 503
    return 409


def encode(outcomes: Sequence[Outcome], media_type: str) -> bytes:
    """Return the module as `JSON` (PS3.18 annex F) or `XML` (PS3.19 annex A). There are no retrieve URLs."""
    return _ENCODERS[media_type](_module(outcomes))


def _module(outcomes: Sequence[Outcome]) -> _DataSet:
    """Return the module by tag (PS3.18 table I.1-1); a failure without a name is among the other failures."""
    sequences: Mapping[str, list[_DataSet]] = {"00081198": [], "00081199": [], "0008119A": []}
    for outcome in outcomes:
        item: _DataSet = {}
        if outcome.status != statuses.SUCCESS and outcome.reason:  # as its C-STORE-RSP would have it (PS3.4 B.2.3)
            item["00000902"] = {"vr": "LO", "Value": [outcome.reason.replace("\\", "/")[:_COMMENT].rstrip()]}
        if outcome.sop_uid:
            item["00081150"] = {"vr": "UI", "Value": [outcome.sop_class_uid]}
            item["00081155"] = {"vr": "UI", "Value": [outcome.sop_uid]}
        if outcome.status == statuses.SUCCESS:
            item["00081190"] = {"vr": "UR"}
            sequences["00081199"].append(item)
        else:
            item["00081197"] = {"vr": "US", "Value": [outcome.status]}
            sequences["00081198" if outcome.sop_uid else "0008119A"].append(item)
    return {"00081190": {"vr": "UR"}} | {tag: {"vr": "SQ", "Value": items} for tag, items in sequences.items() if items}


def _as_json(module: _DataSet) -> bytes:
    return json.dumps(module, separators=(",", ":")).encode()


def _as_xml(module: _DataSet) -> bytes:
    root = ElementTree.Element("NativeDicomModel", {"xmlns": _NATIVE, "xml:space": "preserve"})
    _add(root, module)
    return bytes(ElementTree.tostring(root, encoding="utf-8", xml_declaration=True))


def _add(parent: ElementTree.Element, data_set: _DataSet) -> None:
    for tag, element in data_set.items():
        facts = {"tag": tag, "vr": element["vr"], "keyword": keyword_for_tag(int(tag, 16))}
        node = ElementTree.SubElement(parent, "DicomAttribute", facts)
        for number, value in enumerate(element.get("Value", ()), 1):
            if isinstance(value, dict):
                _add(ElementTree.SubElement(node, "Item", number=str(number)), value)
            else:
                ElementTree.SubElement(node, "Value", number=str(number)).text = str(value)


_ENCODERS: Mapping[str, Callable[[_DataSet], bytes]] = {JSON: _as_json, XML: _as_xml}
