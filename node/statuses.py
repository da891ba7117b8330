"""The DIMSE statuses and upper layer reasons that we answer with, each named once."""

from __future__ import annotations

# C-STORE statuses (PS3.4 B.2.3, PS3.7 annex C).
SUCCESS = 0x0000
DUPLICATE_SOP_INSTANCE = 0x0111
INVALID_SOP_INSTANCE = 0x0117
SOP_CLASS_NOT_SUPPORTED = 0x0122
UNRECOGNISED_OPERATION = 0x0211
OUT_OF_RESOURCES = 0xA700
DATA_SET_DOES_NOT_MATCH = 0xA900
CANNOT_UNDERSTAND = 0xC000
# A Failure Reason of STOW-RS (PS3.18 table I.2-2); C-STORE needs none, its transfer syntax has been negotiated.
TRANSFER_SYNTAX_NOT_SUPPORTED = 0xC122

# A-ASSOCIATE-RJ as (result, source, reason) (PS3.8 table 9-21).
CALLING_AE_NOT_RECOGNISED = (1, 1, 3)
CALLED_AE_NOT_RECOGNISED = (1, 1, 7)
PROTOCOL_VERSION_NOT_SUPPORTED = (1, 2, 2)
TEMPORARY_CONGESTION = (2, 3, 1)
LOCAL_LIMIT_EXCEEDED = (2, 3, 2)

# Reasons of an A-ABORT by the service provider (PS3.8 table 9-26).
NOT_SPECIFIED = 0
UNRECOGNISED_PDU = 1
UNEXPECTED_PDU = 2
UNEXPECTED_PARAMETER = 5
INVALID_PARAMETER = 6
