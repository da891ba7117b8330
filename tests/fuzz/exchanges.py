"""Valid exchanges to begin with, and changes to them that keep their lengths right."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import numpy as np
from pydicom import uid
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pynetdicom import build_context
from pynetdicom.pdu import A_ASSOCIATE_RQ
from pynetdicom.pdu_primitives import (
    A_ASSOCIATE,
    AsynchronousOperationsWindowNegotiation,
    ImplementationClassUIDNotification,
    ImplementationVersionNameNotification,
    MaximumLengthNotification,
    SCP_SCU_RoleSelectionNegotiation,
    SOPClassCommonExtendedNegotiation,
    SOPClassExtendedNegotiation,
    UserIdentityNegotiation,
)

from node.storage_classes import STORAGE_CLASSES
from tests.node.making import encoded, mr
from tests.presend import Sent, association_request, command, echo_request, message, pdu, pdv, store_request

MR, EXPLICIT, VERIFICATION = uid.MRImageStorage.encode(), b"1.2.840.10008.1.2.1", b"1.2.840.10008.1.1"
IMPLICIT = b"1.2.840.10008.1.2"
CONTEXTS = [(MR, EXPLICIT), (VERIFICATION, IMPLICIT), (MR, IMPLICIT), (uid.RTPlanStorage.encode(), IMPLICIT)]
RELEASE, ABORT = pdu(5, bytes(4)), pdu(7, bytes(4))

encode = encoded


def image(number: int = 1, syntax: str = uid.ExplicitVRLittleEndian, **values: object) -> Sent:
    """A small MR image as C-STORE carries it."""
    ds = mr(number, size=4, **values)
    return Sent(MR, str(ds.SOPInstanceUID).encode(), syntax.encode(), encoded(ds, syntax))


def echo(context: int = 3) -> bytes:
    """A C-ECHO-RQ."""
    return pdu(4, pdv(context, 3, echo_request()))


def streams() -> dict[str, bytes]:
    """What may come over an established association."""
    one, two = image(1), image(2, uid.ImplicitVRLittleEndian)
    head = store_request(one)
    pieces = [one.data[n : n + 100] for n in range(0, len(one.data), 100)]
    scattered = pdv(1, 1, head[:20]) + pdv(1, 1, b"") + pdv(1, 3, head[20:]) + pdv(1, 0, b"")
    scattered += b"".join(pdv(1, 0, p) for p in pieces)
    find = command([(0x0002, MR), (0x0100, b"\x20\0"), (0x0110, b"\5\0"), (0x0800, b"\0\0")])
    cancel = command([(0x0100, b"\xff\x0f"), (0x0120, b"\5\0"), (0x0800, b"\1\1")])
    return {
        "echo": echo() + RELEASE,
        "store": message(one, 1, 4096) + RELEASE,
        "store-in-small-pdus": message(one, 1, 100) + RELEASE,
        "store-in-one-pdu": pdu(4, scattered + pdv(1, 2, b"")) + RELEASE,
        "store-byte-by-byte": _byte_by_byte(image(3, ImageComments="x" * 800)),
        "pipelined": message(one, 1, 4096, 1) + message(two, 5, 4096, 2) + echo() + message(one, 1, 4096, 3) + RELEASE,
        "abort-within": message(one, 1, 4096)[:-50] + ABORT,
        "release-within": pdu(4, pdv(1, 3, head)) + RELEASE,
        "find-and-cancel": pdu(4, pdv(1, 3, find) + pdv(1, 2, b"\x10\0\x10\0\0\0\0\0")) + pdu(4, pdv(1, 3, cancel)),
        "without-data-set": pdu(4, pdv(1, 3, store_request(one, data_set_type=b"\1\1"))) + RELEASE,
        "context-not-accepted": message(one, 7, 4096),
        "class-of-another-context": message(one, 3, 4096) + echo(),
        "interleaved": pdu(4, pdv(1, 3, head) + pdv(5, 0, b"x")),
        "command-for-data": pdu(4, pdv(1, 3, head) + pdv(1, 3, head)),
    }


def _byte_by_byte(sent: Sent) -> bytes:
    """A C-STORE-RQ with one byte in each PDV of its data set."""
    values = [pdv(1, 2 if n == len(sent.data) else 0, sent.data[n - 1 : n]) for n in range(1, len(sent.data) + 1)]
    pdus = [pdu(4, b"".join(values[n : n + 500])) for n in range(0, len(values), 500)]
    return pdu(4, pdv(1, 3, store_request(sent))) + b"".join(pdus) + RELEASE


def whole_exchange() -> bytes:
    """An association from its request to its release."""
    return association_request(CONTEXTS) + streams()["pipelined"]


def commands() -> dict[str, bytes]:
    """Command sets, alone."""
    found = {"echo": echo_request(), "store": store_request(image())}
    for name, code in (("find", b"\x20\0"), ("get", b"\x10\0"), ("move", b"\x21\0"), ("n-action", b"\x30\1")):
        values = [(0x0003 if code[1] else 0x0002, MR), (0x0100, code), (0x0110, b"\1\0"), (0x0700, b"\2\0")]
        found[name] = command([*values, (0x0800, b"\2\1"), (0x1001, b"1.2.3.4")])
    found["store-response"] = command([(0x0002, MR), (0x0100, b"\1\x80"), (0x0120, b"\1\0"), (0x0800, b"\1\1"),
                                       (0x0900, b"\0\0"), (0x1000, b"1.2.3")])  # fmt: skip
    found["move-originator"] = store_request(image()) + command([(0x1030, b"PEER"), (0x1031, b"\7\0")])[12:]
    return found


def association_requests() -> dict[str, bytes]:
    """A-ASSOCIATE-RQ PDUs, of the plainest and of the fullest kind."""
    primitive = A_ASSOCIATE()
    primitive.application_context_name = "1.2.840.10008.3.1.1.1"
    primitive.calling_ae_title, primitive.called_ae_title = "SCANNER", "PENNODE"
    contexts = [build_context(c, [uid.ExplicitVRLittleEndian, uid.JPEGLosslessSV1]) for c in STORAGE_CLASSES[:20]]
    for number, context in enumerate(contexts):
        context.context_id = 2 * number + 1
    primitive.presentation_context_definition_list = contexts
    maximum, implementation = MaximumLengthNotification(), ImplementationClassUIDNotification()
    maximum.maximum_length_received = 16384
    implementation.implementation_class_uid = "1.2.3.4"
    version = ImplementationVersionNameNotification()
    version.implementation_version_name = "SCANNER_1"
    window = AsynchronousOperationsWindowNegotiation()
    window.maximum_number_operations_invoked, window.maximum_number_operations_performed = 5, 5
    role = SCP_SCU_RoleSelectionNegotiation()
    role.sop_class_uid, role.scu_role, role.scp_role = uid.MRImageStorage, True, True
    extended = SOPClassExtendedNegotiation()
    extended.sop_class_uid, extended.service_class_application_information = uid.MRImageStorage, b"\2\0\3\0\1\0"
    common = SOPClassCommonExtendedNegotiation()
    common.sop_class_uid, common.service_class_uid = uid.MRImageStorage, "1.2.840.10008.4.2"
    common.related_general_sop_class_identification = [uid.CTImageStorage]
    user = UserIdentityNegotiation()
    user.user_identity_type, user.primary_field, user.secondary_field = 2, b"somebody", b"secret"
    primitive.user_information = [maximum, implementation]
    plain = A_ASSOCIATE_RQ()
    plain.from_primitive(primitive)
    primitive.user_information = [maximum, implementation, version, window, role, extended, common, user]
    full = A_ASSOCIATE_RQ()
    full.from_primitive(primitive)
    return {"small": association_request(CONTEXTS), "many-contexts": plain.encode(), "every-item": full.encode()}


def data_sets() -> dict[str, Dataset]:
    """Objects whose headers hold what headers may hold."""
    code = Dataset()
    code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = "C-B03CF", "SRT", "Gadolinium"
    nested = mr(ContrastBolusAgentSequence=[code], AnatomicRegionSequence=[code])
    nested["AnatomicRegionSequence"].is_undefined_length = True
    nested.private_block(0x0019, "MAKER", create=True).add_new(0x01, "DS", "1.25")
    utf8 = mr(SpecificCharacterSet="ISO_IR 192", SeriesDescription="Wirbelsäule Überblick")
    groups = Dataset()
    orientation, measures = Dataset(), Dataset()
    orientation.ImageOrientationPatient = [0, 1, 0, 0, 0, -1]
    measures.PixelSpacing = [0.5, 0.5]
    groups.PlaneOrientationSequence, groups.PixelMeasuresSequence = [orientation], [measures]
    enhanced = mr(SOPClassUID=uid.EnhancedMRImageStorage, NumberOfFrames=2, SharedFunctionalGroupsSequence=[groups])
    enhanced.PerFrameFunctionalGroupsSequence = [Dataset(), Dataset()]
    found = {"plain": mr(), "nested": nested, "utf8": utf8, "enhanced": enhanced}
    for ds in found.values():
        ds.Rows = ds.Columns = 4
        ds.PixelData = np.arange(16, dtype="<u2").tobytes()
        ds["PixelData"].VR = "OW"
    return found


def encapsulated() -> Dataset:
    """An object with compressed pixel data, of no meaning."""
    ds = mr()
    ds.PixelData = encapsulate([b"\xff\xd8" + bytes(60), b"\xff\xd8" + bytes(30)])
    ds["PixelData"].VR, ds["PixelData"].is_undefined_length = "OB", True
    return ds


# -- changes that keep lengths right


def mutate(stream: bytes, generator: random.Random, anyhow: Callable[[bytes, int], bytes], longest: int) -> bytes:
    """Change a stream PDU by PDU or PDV by PDV, so that most of it still means something.

    `anyhow` changes bytes as it likes, up to a length.
    """
    pdus = _split(stream, 6, lambda s: int.from_bytes(s[2:6], "big"))
    if not pdus:
        return anyhow(stream, longest)
    place = generator.randrange(len(pdus))
    chosen = pdus[place]
    kind = generator.randrange(7)
    if kind == 0:
        pdus.insert(place, generator.choice([*pdus, RELEASE, ABORT, echo()]))
    elif kind == 1:
        del pdus[place]
    elif kind == 2:
        other = generator.randrange(len(pdus))
        pdus[place], pdus[other] = pdus[other], chosen
    elif chosen[0] != 4:
        pdus[place] = pdu(chosen[0], anyhow(chosen[6:], len(chosen) + 20))
    else:
        values = _split(chosen[6:], 4, lambda s: int.from_bytes(s[:4], "big"))
        if values:
            pdus[place] = pdu(4, b"".join(_change_one(values, kind, generator, anyhow)))
    return b"".join(pdus)[:longest]


def mutate_command(
    encoded: bytes, generator: random.Random, anyhow: Callable[[bytes, int], bytes], longest: int
) -> bytes:
    """Change a command set element by element."""
    elements = _split(encoded, 8, lambda s: int.from_bytes(s[4:8], "little"))
    if not elements:
        return anyhow(encoded, longest)
    place = generator.randrange(len(elements))
    kind = generator.randrange(5)
    chosen = elements[place]
    if kind == 0:
        elements.insert(place, generator.choice(elements))
    elif kind == 1:
        del elements[place]
    elif kind == 2:
        elements[place] = anyhow(chosen[:4], 4).ljust(4, b"\0") + chosen[4:]
    else:
        value = anyhow(chosen[8:], len(chosen) + 8)
        elements[place] = chosen[:4] + struct.pack("<L", len(value)) + value
    return b"".join(elements)[:longest]


def _change_one(
    values: list[bytes], kind: int, generator: random.Random, anyhow: Callable[[bytes, int], bytes]
) -> list[bytes]:
    place = generator.randrange(len(values))
    value = values[place]
    context, control, payload = value[4:5], value[5:6], value[6:]
    if kind == 3:
        context = bytes([generator.choice([1, 3, 5, 7, 2, 0, 255])])
    elif kind == 4:
        control = bytes([generator.randrange(4)])
    elif kind == 5 and len(payload) > 1:
        half = generator.randrange(len(payload))
        first = pdv(context[0] if context else 1, (control[0] if control else 0) & 1, payload[:half])
        values.insert(place, first)
        place, payload = place + 1, payload[half:]
    else:
        payload = anyhow(payload, len(payload) + 20)
    body = context + control + payload
    values[place] = struct.pack(">L", len(body)) + body
    return values


def _split(stream: bytes, header: int, length_of: Callable[[bytes], int]) -> list[bytes]:
    parts, at = [], 0
    while at + header <= len(stream):
        end = at + header + length_of(stream[at : at + header])
        parts.append(stream[at:end])
        at = end
    return parts
