"""What a STOW-RS service says of an object that was sent to it (PS3.18 section 10.5.3 and annex I.2.2)."""

from __future__ import annotations

import json
from http import HTTPStatus
from typing import Any
from xml.etree import ElementTree

from node.errors import ClassRefused, PeerRefused, PeerUnavailable, PennodeError

LONGEST = 1 << 20
"""Bytes of an answer that are looked at; the module for one object has some hundred."""

_REFERENCED, _FAILED, _OTHER = "00081199", "00081198", "0008119A"
_UID, _FAILURE, _WARNING = "00081155", "00081197", "00081196"
_NATIVE = "{http://dicom.nema.org/PS3.19/models/NativeDICOM}"
_DUPLICATE, _PROCESSING_FAILURE = 0x0111, 0x0110
_CLASS_NOT_SUPPORTED, _SYNTAX_NOT_SUPPORTED = 0x0122, 0xC122

_REFUSALS: dict[int, tuple[str, str]] = {
    400: ("finds our request wrong", "look into its log"),
    401: ("does not know us", "set token, or the certificate that it asks for"),
    403: ("does not let us store", "give what we show it that right"),
    404: ("has no STOW-RS service there", "url is what comes before /studies"),
    405: ("has no STOW-RS service there", "url is what comes before /studies"),
    413: ("takes no object so large", "raise its limit, as client_max_body_size of nginx"),
    415: ("does not take the media type", "set compression to none"),
}
_BUSY = frozenset({408, 425, 429, 502, 503, 504, 507})


def judge(service: str, sop_uid: str, status: int, media_type: str, body: bytes) -> str:
    """Return a note where the answer says that the object is stored there.

    Nothing of the peer's words is in a note or an error.

    Raises
    ------
    PeerUnavailable
        It is busy, or out of resources (0xA7xx).
    ClassRefused
        It says of the object that its SOP class (0x0122) or transfer syntax (0xC122) is not supported.
    PeerRefused
        It says no in another way, or does not say that the object is stored.
    """
    if 300 <= status < 400:
        raise PeerRefused(f"{service} sends us to another address (HTTP {status})", "set url to that address")
    told = _module(media_type, body) if len(body) <= LONGEST else None
    failure = _failure(told or {}, sop_uid)
    if failure == _DUPLICATE:
        return "the peer had this object already (0x0111)"
    if failure is not None:
        raise _refusal(failure, status)
    if status in _BUSY:
        raise PeerUnavailable(f"{service} is busy (HTTP {status})", "it is tried again")
    if status not in (200, 202):
        raise _refused(service, status)
    if told is None:
        raise PeerRefused(
            f"{service} answers HTTP {status} with what is no DICOM JSON or XML", "check that url is a STOW-RS service"
        )
    stored = [item for item in _items(told, _REFERENCED) if _text(item, _UID) == sop_uid]
    if stored:
        warning = _number(stored[0], _WARNING)
        return f"stored (HTTP {status})" if warning is None else f"stored with a warning (0x{warning:04X})"
    if status == 200 and not told:
        return "stored (HTTP 200, without a word on the object)"
    raise PeerRefused(f"{service} answers HTTP {status}, but not that it stored the object", "look into its log")


def _refusal(reason: int, status: int) -> PennodeError:
    code = f"0x{reason:04X}, HTTP {status}"
    if reason == _CLASS_NOT_SUPPORTED:
        return ClassRefused(f"the peer answered {code}: SOP class not supported", "let it accept the class")
    if reason == _SYNTAX_NOT_SUPPORTED:
        return ClassRefused(f"the peer answered {code}: transfer syntax not supported", "set compression to none")
    if reason >> 8 == 0xA7:
        return PeerUnavailable(f"the peer is out of resources ({code})", "free its disk")
    return PeerRefused(f"the peer answered {code}", "look into the peer's log")


def _refused(service: str, status: int) -> PeerRefused:
    known = _REFUSALS.get(status)
    if known:
        return PeerRefused(f"{service} {known[0]} (HTTP {status})", known[1])
    words = f" {HTTPStatus(status).phrase}" if status in set(HTTPStatus) else ""
    return PeerRefused(f"{service} answers HTTP {status}{words}", "look into its log")


def _failure(told: dict[str, Any], sop_uid: str) -> int | None:
    """Return the Failure Reason of the object, or the one that the service gives without naming any object."""
    failed = [item for item in _items(told, _FAILED) if _text(item, _UID) == sop_uid]
    for item in failed or _items(told, _OTHER):
        reason = _number(item, _FAILURE)
        return _PROCESSING_FAILURE if reason is None else reason
    return None


def _items(told: dict[str, Any], tag: str) -> list[dict[str, Any]]:
    return [item for item in _values(told, tag) if isinstance(item, dict)]


def _text(item: dict[str, Any], tag: str) -> str:
    return next((value.strip(" \0") for value in _values(item, tag) if isinstance(value, str)), "")


def _number(item: dict[str, Any], tag: str) -> int | None:
    """Return an attribute of VR US; XML writes it as text, and some write JSON so."""
    for value in _values(item, tag):
        is_text = isinstance(value, str) and len(value) < 6 and value.isascii() and value.isdecimal()
        number = int(value) if is_text else value
        if isinstance(number, int) and 0 <= number < 1 << 16:
            return number
    return None


def _values(item: dict[str, Any], tag: str) -> list[Any]:
    found = item.get(tag)
    values = found.get("Value") if isinstance(found, dict) else None
    return values if isinstance(values, list) else []


def _module(media_type: str, body: bytes) -> dict[str, Any] | None:
    """Return the Store Instances Response Module by the DICOM JSON model (PS3.18 annex F); empty for an empty answer.

    None: it is none.
    """
    if not body.strip():
        return {}
    try:
        if media_type.partition(";")[0].strip().lower().endswith("xml"):
            root = ElementTree.fromstring(body)  # noqa: S314 - expat bounds what entities grow to
            return _from_xml(root) if root.tag.removeprefix(_NATIVE) == "NativeDicomModel" else None
        module = json.loads(body)
    except (ValueError, RecursionError, LookupError, ElementTree.ParseError):
        return None
    if isinstance(module, list) and len(module) == 1:
        module = module[0]
    return module if isinstance(module, dict) else None


def _from_xml(model: ElementTree.Element) -> dict[str, Any]:
    """Return the Native DICOM Model (PS3.19 A.1) of a data set by the JSON model, as far as it is of use here."""
    found: dict[str, Any] = {}
    for attribute in model:
        values: list[Any] = []
        for child in attribute:
            name = child.tag.removeprefix(_NATIVE)
            if name == "Item":
                values.append(_from_xml(child))
            elif name == "Value":
                values.append(child.text or "")
        found[attribute.get("tag", "").upper()] = {"Value": values}
    return found
