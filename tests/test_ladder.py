"""A PACS that takes no segmentation, and a node that is killed while it finds out: every rung in life."""

from __future__ import annotations

import json
from pathlib import Path

import pydicom
import pytest
from pydicom import uid

from node.states import DeliveryState, JobState
from tests.harness import pennode, site, until
from tests.peers import storescp
from workers.series import write_phantom

TAKEN = ["VerificationSOPClass", "SecondaryCaptureImageStorage", "Comprehensive3DSRStorage"]
D = DeliveryState


@pytest.mark.parametrize("killed", [False, True])
def test_a_pacs_without_segmentations_gets_captures_and_report_whatever_happens(tmp_path: Path, killed: bool) -> None:
    phantom = write_phantom(tmp_path / "phantom", shape=(8, 96, 96))
    with storescp(tmp_path / "pacs", classes=TAKEN) as port:
        pacs = {
            "name": "PACS", "ae_title": "STORESCP", "host": "127.0.0.1", "port": port,
            "forms": ["SEG", "SR"], "instead": ["SC", "GSPS"],
        }  # fmt: skip
        with site(tmp_path, PENNODE_DESTINATIONS=json.dumps([pacs])) as here:
            sent = pennode("send", str(tmp_path / "phantom"), "--to", here.start_node("up"))
            assert sent.returncode == 0, sent.stderr
            if killed:

                def replaced() -> bool | None:
                    jobs = here.jobs()
                    items = here.ledger.deliveries(jobs[0].id) if jobs else []
                    return any(d.state is D.REPLACED for d in items) or None

                until(replaced, "the rung is taken", 120)
                here.kill("up")
                here.start_node("up")
            (job,) = here.wait_finished(1).values()
            assert job.state is JobState.DELIVERED, job.reason
            assert job.reason == "every destination has the results; PACS took SC and SR in place of SEG and SR"
            items = here.ledger.deliveries(job.id)
            assert [d.form for d in items if d.state is D.REPLACED] == ["SEG", "SR:SEG"]
            assert {d.state for d in items if d.rung == 1} == {D.SENT}
            received = [pydicom.dcmread(path) for path in (tmp_path / "pacs" / "received").iterdir()]
            assert {str(ds.SOPInstanceUID) for ds in received} == {d.sop_uid for d in items if d.rung == 1}
            assert {ds.SOPClassUID for ds in received} == {
                uid.SecondaryCaptureImageStorage,
                uid.Comprehensive3DSRStorage,
            }
            assert sum(ds.SOPClassUID == uid.SecondaryCaptureImageStorage for ds in received) == len(phantom)
