"""The ledger's tables. A change here goes with a new migration; `tests/node/test_ledger.py` compares the two."""

from __future__ import annotations

from sqlalchemy import (
    JSON,
    BigInteger,
    Boolean,
    Column,
    Float,
    Index,
    Integer,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
    false,
    text,
)

metadata = MetaData()

_UID = String(64)
_ID = BigInteger().with_variant(Integer, "sqlite")

# One row: the name this ledger was born with, by which a spool knows its own.
identity = Table("identity", metadata, Column("id", String(32), primary_key=True))

instance = Table(
    "instance",
    metadata,
    Column("sop_uid", _UID, primary_key=True),
    Column("sop_class_uid", _UID, nullable=False),
    Column("series_uid", _UID, nullable=False, index=True),
    Column("study_uid", _UID, nullable=False),
    Column("transfer_syntax_uid", _UID, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("path", Text, nullable=False, index=True),
    Column("calling_ae", String(16), nullable=False),
    Column("called_ae", String(16), nullable=False),
    Column("peer", String(64), nullable=False),
    Column("received_at", Float, nullable=False),
    Column("header", JSON, nullable=False),
    Column("association", Integer, nullable=False, server_default="0"),
)

series = Table(
    "series",
    metadata,
    Column("series_uid", _UID, primary_key=True),
    Column("study_uid", _UID, nullable=False),
    Column("state", String(16), nullable=False, index=True),
    Column("revision", Integer, nullable=False),
    Column("calling_ae", String(16), nullable=False),
    Column("instances", Integer, nullable=False),
    Column("first_at", Float, nullable=False),
    Column("last_at", Float, nullable=False),
    Column("seal_reason", Text, nullable=False),
)

job = Table(
    "job",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("series_uid", _UID, nullable=False, index=True),
    Column("study_uid", _UID, nullable=False),
    Column("revision", Integer, nullable=False),
    Column("state", String(16), nullable=False),
    Column("stage", String(32), nullable=False),
    Column("reason", Text, nullable=False),
    Column("next_step", Text, nullable=False),
    Column("priority", Integer, nullable=False),
    Column("fence", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("calling_ae", String(16), nullable=False),
    Column("description", Text, nullable=False),
    Column("instances", Integer, nullable=False),
    Column("input_digest", String(64), nullable=False),
    Column("model", Text, nullable=False),
    Column("worker", Text, nullable=False),
    Column("progress", Float, nullable=False),
    Column("not_before", Float, nullable=False),
    Column("dispatched_at", Float, nullable=False),
    Column("lease_until", Float, nullable=False),
    Column("created_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Column("last_image_at", Float, nullable=False),
    Column("purged_at", Float, nullable=False),
    Column("frame_of_reference_uid", _UID, nullable=False, server_default=""),
    Column("wanted_model", String(64), nullable=False, server_default=""),
    Column("shadow", Boolean, nullable=False, server_default=false()),
    UniqueConstraint("series_uid", "revision", "wanted_model", name="uq_job_series_revision_model"),
    Index("ix_job_due", "state", "not_before"),
    Index("ix_job_updated_at", "updated_at"),
    # Few jobs are shadows: of the others it says nothing, so that nobody looks for them here.
    Index("ix_job_shadow", "purged_at", sqlite_where=text("shadow = 1"), postgresql_where=text("shadow")),
    Index("ix_job_frame_of_reference_uid", "frame_of_reference_uid"),
)

# How each revision of a series was weighed last; `pieces` are [source, weight, text], `until` is 0 once it is sealed.
weighing = Table(
    "weighing",
    metadata,
    Column("series_uid", _UID, primary_key=True),
    Column("revision", Integer, primary_key=True, autoincrement=False),
    Column("pieces", JSON, nullable=False),
    Column("outcome", Text, nullable=False),
    Column("last_at", Float, nullable=False),
    Column("until", Float, nullable=False),
)

# The longest gap between images of a series, of each that sent it: for the last series of each.
rhythm = Table(
    "rhythm",
    metadata,
    Column("calling_ae", String(16), primary_key=True),
    Column("series_uid", _UID, primary_key=True),
    Column("longest_s", Float, nullable=False),
    Column("at", Float, nullable=False),
)

result = Table(
    "result",
    metadata,
    Column("job_id", String(32), primary_key=True),
    Column("sop_uid", _UID, primary_key=True),
    Column("sop_class_uid", _UID, nullable=False),
    Column("path", Text, nullable=False),
    Column("size", BigInteger, nullable=False),
    Column("sha256", String(64), nullable=False),
    Column("form", String(64), nullable=False, server_default="SEG"),
)

delivery = Table(
    "delivery",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=True),
    Column("job_id", String(32), nullable=False),
    Column("sop_uid", _UID, nullable=False),
    Column("destination", String(32), nullable=False),
    Column("path", Text, nullable=False),
    Column("state", String(16), nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("refusals", Integer, nullable=False),
    Column("not_before", Float, nullable=False),
    Column("reason", Text, nullable=False),
    Column("updated_at", Float, nullable=False),
    Column("form", String(64), nullable=False, server_default="SEG"),
    Column("rung", Integer, nullable=False, server_default="0"),
    # How it is known that the destination holds the object, and when to look again (`node.ledger.proofs`).
    Column("proof", String(32), nullable=False, server_default=""),
    Column("proved_at", Float, nullable=False, server_default="0"),
    Column("transaction_uid", _UID, nullable=False, server_default="", index=True),
    Column("asked_at", Float, nullable=False, server_default="0"),
    Column("check_at", Float, nullable=False, server_default="0"),
    Column("tries", Integer, nullable=False, server_default="0"),
    Column("unanswered", Integer, nullable=False, server_default="0"),
    Column("rechecked", Integer, nullable=False, server_default="0"),
    Column("lost", Integer, nullable=False, server_default="0"),
    Column("wanted", String(16), nullable=False, server_default=""),
    Column("doubt", Text, nullable=False, server_default=""),
    Column("read_back", Text, nullable=False, server_default=""),
    Column("read_back_at", Float, nullable=False, server_default="0"),
    UniqueConstraint("job_id", "sop_uid", "destination"),
    Index("ix_delivery_due", "state", "not_before"),
    Index("ix_delivery_check", "destination", "check_at"),
)

journal = Table(
    "journal",
    metadata,
    Column("id", _ID, primary_key=True, autoincrement=True),
    Column("at", Float, nullable=False),
    Column("series_uid", _UID, nullable=False, index=True),
    Column("job_id", String(32), nullable=False),
    Column("subject", String(16), nullable=False),
    Column("before", String(16), nullable=False),
    Column("after", String(16), nullable=False),
    Column("by", String(64), nullable=False),
    Column("text", Text, nullable=False),
)

worker = Table(
    "worker",
    metadata,
    Column("name", String(128), primary_key=True),
    Column("seen_at", Float, nullable=False),
    Column("version", String(64), nullable=False),
    Column("device", Text, nullable=False),
    Column("model", Text, nullable=False),
    Column("models", JSON, nullable=False, server_default="[]"),
)

# How a shadow's result stands to that of its series' own job, each as of one fence.
comparison = Table(
    "comparison",
    metadata,
    Column("job_id", String(32), primary_key=True),
    Column("fence", Integer, nullable=False),
    Column("own_id", String(32), nullable=False, index=True),
    Column("own_fence", Integer, nullable=False),
    Column("at", Float, nullable=False),
    Column("segments", JSON, nullable=False),
    Column("reason", Text, nullable=False),
)

# Listed peers as last seen.
peer = Table(
    "peer",
    metadata,
    Column("name", String(32), primary_key=True),
    Column("address", String(64), nullable=False),
    Column("associations", BigInteger, nullable=False),
    Column("seen_at", Float, nullable=False),
)

# The latest callers that were rejected, or let in without being listed; `node.callers` bounds their number.
caller = Table(
    "caller",
    metadata,
    Column("calling_ae", String(16), primary_key=True),
    Column("called_ae", String(16), primary_key=True),
    Column("address", String(64), primary_key=True),
    Column("rejected", Text, nullable=False),
    Column("times", BigInteger, nullable=False),
    Column("first_at", Float, nullable=False),
    Column("last_at", Float, nullable=False),
)

commitment = Table(
    "commitment",
    metadata,
    Column("number", _ID, primary_key=True, autoincrement=True),
    Column("transaction_uid", _UID, nullable=False),
    Column("calling_ae", String(16), nullable=False),
    Column("peer", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("references", JSON, nullable=False),
    Column("digest", String(64), nullable=False),
    Column("requested", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("not_before", Float, nullable=False),
    Column("reason", Text, nullable=False),
    Column("next_step", Text, nullable=False),
    Column("asked_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    UniqueConstraint("calling_ae", "transaction_uid"),
    Index("ix_commitment_due", "state", "not_before"),
)

procedure_step = Table(
    "procedure_step",
    metadata,
    Column("sop_uid", _UID, primary_key=True),
    Column("calling_ae", String(16), nullable=False),
    Column("peer", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("study_uids", JSON, nullable=False),
    Column("started", String(32), nullable=False),
    Column("ended", String(32), nullable=False),
    Column("created_at", Float, nullable=False, index=True),
    Column("updated_at", Float, nullable=False),
)

performed_series = Table(
    "performed_series",
    metadata,
    Column("step_uid", _UID, primary_key=True),
    Column("series_uid", _UID, primary_key=True, index=True),
    Column("sop_uids", JSON, nullable=False),
)

# `wanted` are the Series Instance UIDs that were named; none: all of the study.
# Named so as FETCH is a word of SQL.
study_fetch = Table(
    "study_fetch",
    metadata,
    Column("number", _ID, primary_key=True, autoincrement=True),
    Column("archive", String(32), nullable=False),
    Column("study_uid", _UID, nullable=False),
    Column("wanted", JSON, nullable=False),
    Column("asked_by", String(64), nullable=False),
    Column("state", String(16), nullable=False),
    Column("completed", Integer, nullable=False),
    Column("failed", Integer, nullable=False),
    Column("warned", Integer, nullable=False),
    Column("attempts", Integer, nullable=False),
    Column("reason", Text, nullable=False),
    Column("next_step", Text, nullable=False),
    Column("asked_at", Float, nullable=False),
    Column("updated_at", Float, nullable=False),
    Index("ix_study_fetch_due", "state", "archive"),
)

# What the archive said it has of the study; `left_out` says why a series is not retrieved, empty: it is.
fetched_series = Table(
    "fetched_series",
    metadata,
    Column("fetch_number", _ID, primary_key=True, autoincrement=False),
    Column("series_uid", _UID, primary_key=True, index=True),
    Column("modality", String(16), nullable=False),
    Column("description", String(64), nullable=False),
    Column("announced", Integer),
    Column("left_out", Text, nullable=False),
)
