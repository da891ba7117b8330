"""STOW-RS with real clients (dicomweb-client, Orthanc) and by hand: what is answered, and what is stored then."""

from __future__ import annotations

import json
import re
import subprocess
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import httpx
import pydicom
import pytest
from dicomweb_client.api import DICOMwebClient
from dicomweb_client.web import _load_xml_dataset
from pydicom import uid

from node import statuses
from node.ledger import Ledger
from node.settings import Web
from node.spool import Spool
from tests import peers
from tests.node.making import SERIES, STUDY, data_set, encoded, mr, write
from tests.node.stowing import (
    BEARER,
    BOUNDARY,
    TOKEN,
    TYPE,
    Site,
    file,
    reasons,
    references,
    related,
    served,
    until,
)  # fmt: skip


@pytest.fixture
def site(ledger: Ledger, spool: Spool) -> Iterator[Site]:
    with served(ledger, spool) as found:
        yield found


def images(count: int, first: int = 1, **values: object) -> dict[str, bytes]:
    """Files by SOP Instance UID."""
    return {f"{SERIES}.{n}": file(mr(n, **values)) for n in range(first, first + count)}


# -- real clients


@pytest.mark.parametrize("chunk", [10**6, 5000], ids=["whole", "chunked"])
@pytest.mark.parametrize("study", [None, STUDY])
def test_dicomweb_client_stores(chunk: int, study: str | None, site: Site, tmp_path: Path) -> None:
    paths = [write(mr(n, size=64), tmp_path / f"{n}.dcm") for n in range(1, 6)]
    client = DICOMwebClient(f"{site.url}/dicom-web", headers=BEARER, chunk_size=chunk)
    answer = client.store_instances([pydicom.dcmread(path) for path in paths], study_instance_uid=study)
    assert [item.ReferencedSOPInstanceUID for item in answer.ReferencedSOPSequence] == [
        f"{SERIES}.{n}" for n in range(1, 6)
    ]
    assert "FailedSOPSequence" not in answer
    assert site.held() == {f"{SERIES}.{n}": data_set(path) for n, path in enumerate(paths, 1)}
    (series,) = site.ledger.receiving()
    assert series.calling_ae == "STOW"


def test_dicomweb_client_reads_the_failures(site: Site, tmp_path: Path) -> None:
    write(mr(1), tmp_path / "1.dcm")
    write(mr(2, SOPClassUID="1.2.840.10008.5.1.4.1.1.481.3"), tmp_path / "2.dcm")
    client = DICOMwebClient(f"{site.url}/dicom-web", headers=BEARER)
    answer = client.store_instances([pydicom.dcmread(tmp_path / name) for name in ("1.dcm", "2.dcm")])
    assert [item.ReferencedSOPInstanceUID for item in answer.ReferencedSOPSequence] == [f"{SERIES}.1"]
    (failed,) = answer.FailedSOPSequence
    assert (failed.ReferencedSOPInstanceUID, failed.FailureReason) == (f"{SERIES}.2", statuses.SOP_CLASS_NOT_SUPPORTED)
    assert failed.ErrorComment == "its SOP class is not one that is stored here"


def test_dicomweb_client_learns_that_its_token_is_wrong(site: Site, tmp_path: Path) -> None:
    ds = pydicom.dcmread(write(mr(1, size=512), tmp_path / "1.dcm"))
    client = DICOMwebClient(f"{site.url}/dicom-web", headers={"Authorization": "Bearer wrong"})
    with pytest.raises(Exception, match="401"):
        client.store_instances([ds])
    assert site.held() == {}


def test_orthanc_stores(site: Site, tmp_path: Path) -> None:
    server = {"Url": f"{site.url}/dicom-web/", "HttpHeaders": BEARER}
    with peers.orthanc(tmp_path / "orthanc", dicomweb={"pennode": server}) as orthanc:
        sent = {}
        for n in range(1, 8):
            ds = mr(n, size=64)
            request = urllib.request.Request(f"{orthanc.url}/instances", data=file(ds), method="POST")
            with urllib.request.urlopen(request, timeout=20):
                sent[str(ds.SOPInstanceUID)] = encoded(ds)
        (series,) = json.loads(orthanc.get("/series"))
        asked = json.dumps({"Resources": [series], "Synchronous": True}).encode()
        request = urllib.request.Request(f"{orthanc.url}/dicom-web/servers/pennode/stow", data=asked, method="POST")
        with urllib.request.urlopen(request, timeout=60) as answer:
            assert answer.status == 200
    assert site.held() == sent


def test_curl_stores_one_object_and_waits_for_leave_to_send_it(site: Site, tmp_path: Path) -> None:
    path = write(mr(1, size=1024), tmp_path / "1.dcm")
    command = [
        peers.program("curl", "curl"), "-sS", "-v", "-H", "Expect: 100-continue",
        "-H", "Content-Type: application/dicom", "--data-binary", f"@{path}", f"{site.url}/dicom-web/studies",
    ]  # fmt: skip
    refused = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "401 Unauthorized" in refused.stderr
    assert "100 Continue" not in refused.stderr, "the body is not asked for"
    stored = subprocess.run(
        [*command, "-H", f"Authorization: Bearer {TOKEN}"], capture_output=True, text=True, check=True
    )
    assert references(json.loads(stored.stdout)) == [f"{SERIES}.1"]
    assert site.held() == {f"{SERIES}.1": data_set(path)}


def test_it_works_behind_nginx_as_the_guide_for_it_says(site: Site, tmp_path: Path) -> None:
    guide = (Path(__file__).resolve().parents[2] / "deploy" / "README.md").read_text(encoding="utf-8")
    (location,) = re.findall(r"```nginx\n(.*?)```", guide, re.DOTALL)
    port = peers.free_port()
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; pid {tmp_path}/pid; error_log stderr; events {{}} http {{ access_log off;"
        f" client_body_temp_path {tmp_path}/body; proxy_temp_path {tmp_path}/proxy; server {{ listen 127.0.0.1:{port};"
        f" {location.replace('11181', str(site.port))} }} }}"
    )
    log = tmp_path / "nginx.log"
    with peers.running([peers.program("nginx", "nginx-light"), "-c", str(tmp_path / "nginx.conf")], log) as process:
        peers.wait_for_port(port, process, log)
        behind = replace(site, url=f"http://127.0.0.1:{port}")
        files = images(3, size=1024)
        status, module, _ = behind.post(related(list(files.values())))
        assert (status, references(module)) == (200, list(files))
        assert behind.post(related(list(files.values())), Authorization="Bearer wrong")[0] == 401
    assert site.held() == {name: data_set(one) for name, one in files.items()}


# -- what is stored


@pytest.mark.parametrize("fast", [True, False], ids=["fast", "stock"])
def test_every_transfer_syntax_is_kept_as_it_was_sent(fast: bool, ledger: Ledger, spool: Spool) -> None:
    syntaxes = [
        uid.ExplicitVRLittleEndian, uid.ImplicitVRLittleEndian, uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
    ]  # fmt: skip
    files = [file(mr(n), syntax) for n, syntax in enumerate(syntaxes, 1)]
    with served(ledger, spool, fast_path=fast) as site:
        status, module, _ = site.post(related(files))
        assert status == 200
        assert references(module) == [f"{SERIES}.{n}" for n in range(1, 5)]
        assert site.held() == {f"{SERIES}.{n}": data_set(one) for n, one in enumerate(files, 1)}
        members = ledger.series_instances(SERIES)
    assert {m.transfer_syntax_uid for m in members} == set(syntaxes)
    for member in members:
        meta = pydicom.dcmread(spool.path(member.path), stop_before_pixels=True).file_meta
        assert (meta.SourceApplicationEntityTitle, meta.MediaStorageSOPInstanceUID) == ("STOW", member.sop_uid)
        assert (member.calling_ae, member.called_ae, member.peer) == ("STOW", "PENNODE", "127.0.0.1")


def test_many_requests_at_once_are_all_stored(site: Site) -> None:
    files = images(48)
    names = sorted(files)

    def send(lane: int) -> int:
        return site.post(related([files[name] for name in names[lane::6]]))[0]

    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(send, range(6))) == [200] * 6
    assert site.held() == {name: data_set(one) for name, one in files.items()}
    assert site.door.associations() == 0


def test_a_resend_is_success_and_another_object_of_the_same_name_is_not(site: Site) -> None:
    (one,) = images(1).values()
    assert [site.post(related([one]))[0] for _ in range(2)] == [200, 200]
    (other,) = images(1, SeriesDescription="other").values()
    status, module, _ = site.post(related([other]))
    assert (status, reasons(module)) == (409, [statuses.DUPLICATE_SOP_INSTANCE])
    assert references(module, "00081198") == [f"{SERIES}.1"]
    assert site.held() == {f"{SERIES}.1": data_set(one)}


def test_a_series_is_open_while_the_request_that_brings_it_runs(site: Site) -> None:
    big = [file(mr(1)), file(mr(2, size=1024))]
    seen = []

    def halves() -> Iterator[bytes]:
        whole = related(big)
        yield whole[:1_500_000]
        until(lambda: site.door.is_open(SERIES))
        seen.append(site.door.associations())
        yield whole[1_500_000:]

    status, _, _ = site.post(halves())
    assert (status, seen) == (200, [1])
    assert not site.door.is_open(SERIES)
    assert site.door.associations() == 0


# -- what is answered


FAULTS: dict[str, tuple[bytes, int]] = {
    "no DICOM": (b"%PDF-1.7 " * 40, statuses.CANNOT_UNDERSTAND),
    "empty": (b"", statuses.CANNOT_UNDERSTAND),
    "a head and no more": (file(mr(7))[:200], statuses.CANNOT_UNDERSTAND),
    "a data set without its file's head": (encoded(mr(7)), statuses.CANNOT_UNDERSTAND),
    "cut short": (file(mr(7))[:-100], statuses.CANNOT_UNDERSTAND),
    "another object than announced": (
        file(mr(7)).replace(f"{SERIES}.7".encode(), f"{SERIES}.6".encode(), 1), statuses.DATA_SET_DOES_NOT_MATCH,
    ),
    "a class that is not stored": (
        file(mr(7, SOPClassUID="1.2.840.10008.5.1.4.1.1.481.3")), statuses.SOP_CLASS_NOT_SUPPORTED,
    ),
    "a syntax that is not stored": (
        file(mr(7)).replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.9\0", 1),
        statuses.TRANSFER_SYNTAX_NOT_SUPPORTED,
    ),
    "no UID": (file(mr(7)).replace(f"{SERIES}.7".encode(), b"../../etc\0"[: len(SERIES) + 2], 1),
               statuses.INVALID_SOP_INSTANCE),
    "no series": (file(mr(7, SeriesInstanceUID="")), statuses.CANNOT_UNDERSTAND),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_each_fault_is_told_for_its_part_and_costs_the_others_nothing(
    fault: str, site: Site, caplog: pytest.LogCaptureFixture
) -> None:
    bad, reason = FAULTS[fault]
    status, module, answer = site.post(related([bad]))
    assert (status, reasons(module), references(module)) == (409, [reason], [])
    assert answer.headers["content-type"] == "application/dicom+json"
    good = images(2)
    first, second = good.values()
    status, module, _ = site.post(related([first, bad, second]))
    assert (status, reasons(module), references(module)) == (202, [reason], list(good))
    assert site.held() == {name: data_set(one) for name, one in good.items()}
    assert site.begun() == []
    refusals = [r.getMessage() for r in caplog.records if r.getMessage().startswith("refused a")]
    assert len(refusals) == 2
    assert not any(secret in caplog.text for secret in ("Secretname", "PID-73519", TOKEN))


def test_a_part_of_another_kind_fails_alone(site: Site) -> None:
    delimiter = f"--{BOUNDARY}".encode()
    kinds = [b"\r\nContent-Type: application/dicom+json", b"\r\nContent-Transfer-Encoding: base64"]
    (one,) = images(1).values()
    body = b"".join(delimiter + kind + b"\r\n\r\n" + one + b"\r\n" for kind in kinds)
    body += delimiter + b"\r\n\r\n" + one + b"\r\n" + delimiter + b"--"
    status, module, _ = site.post(body)
    assert (status, reasons(module), references(module)) == (202, [0xC000, 0xC000], [f"{SERIES}.1"])


def test_an_object_of_another_study_than_the_path_says_is_refused(site: Site) -> None:
    ours, theirs = file(mr(1)), file(mr(2, StudyInstanceUID="1.2.3.4.5"))
    status, module, _ = site.post(related([ours, theirs]), STUDY)
    assert (status, references(module), reasons(module)) == (202, [f"{SERIES}.1"], [statuses.DATA_SET_DOES_NOT_MATCH])
    status, module, _ = site.post(related([theirs]), STUDY)
    assert (status, references(module, "00081198")) == (409, [f"{SERIES}.2"])
    assert site.post(related([theirs]))[0] == 200, "without a study in the path any will do"
    assert site.post(related([ours]), "1.2.3.x")[0] == 400


@pytest.mark.parametrize(
    ("accept", "answered"),
    [
        ("", "application/dicom+json"),
        ("*/*", "application/dicom+json"),
        ("application/json", "application/dicom+json"),
        ("application/dicom+xml", "application/dicom+xml"),
        ("text/html, application/dicom+xml;q=0.9, application/dicom+json;q=0.1", "application/dicom+xml"),
        ("application/dicom+json;q=0, application/*", "application/dicom+xml"),
        ("application/dicom+xml; charset=utf-8, */*;q=0.1", "application/dicom+xml"),
        ("text/html", ""),
        ("application/dicom+json;q=0", ""),
        ("application/dicom+json;q=lots", ""),
    ],
)
def test_the_answer_is_in_the_form_that_the_client_accepts(accept: str, answered: str, site: Site) -> None:
    (one,) = images(1).values()
    status, content, answer = site.post(related([one]), **({"Accept": accept} if accept else {}))
    assert status == (200 if answered else 406)
    assert len(site.held()) == (1 if answered else 0)
    if answered:
        assert answer.headers["content-type"] == answered
    else:
        assert "application/dicom+xml" in content


def test_both_forms_say_the_same(site: Site) -> None:
    parts = related([*images(2).values(), FAULTS["a class that is not stored"][0], b"no DICOM"])
    _, as_json, _ = site.post(parts)
    _, as_xml, _ = site.post(parts, Accept="application/dicom+xml")
    assert isinstance(as_xml, str)
    found = pydicom.Dataset.from_json(as_json)
    assert str(_load_xml_dataset(ElementTree.fromstring(as_xml))).replace("None", "''") == str(found)
    assert "RetrieveURL" in found, "of type 2: there, and empty"
    sequences = found.ReferencedSOPSequence, found.FailedSOPSequence, found.OtherFailuresSequence
    assert [len(sequence) for sequence in sequences] == [2, 1, 1]


@pytest.mark.parametrize(
    ("content_type", "status", "says"),
    [
        ('multipart/related; type="application/dicom+json"; boundary=b', 415, "metadata with bulk data is not taken"),
        ('multipart/related; type="application/dicom+xml"; boundary=b', 415, "metadata"),
        ("application/dicom+json", 415, "metadata"),
        ("multipart/form-data; boundary=b", 415, "multipart/related"),
        ("text/plain", 415, "multipart/related"),
        ("", 415, "multipart/related"),
        ('multipart/related; type="application/dicom"', 400, "boundary"),
        ('multipart/related; type="application/dicom"; boundary="<b>"', 400, "boundary"),
        ("multipart/related; type=application/dicom; boundary*=utf-8''b", 400, "boundary"),
    ],
)
def test_what_is_not_taken_is_said_so(content_type: str, status: int, says: str, site: Site) -> None:
    found, text, _ = site.post(b"--b--", content_type=content_type)
    assert found == status
    assert isinstance(text, str)
    assert says in text


@pytest.mark.parametrize("kind", ["multipart/related", "Multipart/Related; TYPE=application/dicom"])
def test_content_types_are_read_as_they_are_meant(kind: str, site: Site) -> None:
    (one,) = images(1).values()
    assert site.post(related([one]), content_type=f"{kind}; boundary={BOUNDARY}; start=x")[0] == 200


# -- who may


def test_without_its_token_nothing_is_taken_and_the_page_s_own_sign_in_is_none(site: Site) -> None:
    (one,) = images(1).values()
    for authorization in (
        "",
        "Bearer",
        "Bearer wrong",
        f"Basic {TOKEN}",
        "Bearer admin",
        f"Bearer {TOKEN}x",
        "Bearer é",
    ):
        status, text, answer = site.post(related([one]), Authorization=authorization)
        assert (status, answer.headers["www-authenticate"]) == (401, "Bearer")
        assert isinstance(text, str)
        assert "web.stow_token" in text
    with httpx.Client(base_url=site.url, headers={"Origin": site.url}) as client:
        assert client.post("/login", data={"token": "admin"}).status_code == 303
        assert client.get("/").status_code == 200
        answer = client.post("/dicom-web/studies", content=related([one]), headers={"Content-Type": TYPE})
        assert answer.status_code == 401
    assert site.held() == {}


def test_who_guesses_tokens_has_to_wait(site: Site) -> None:
    answers = [site.post(b"", Authorization=f"Bearer {n}")[0] for n in range(12)]
    assert answers == [401] * 10 + [429] * 2


def test_any_host_name_will_do_since_no_browser_holds_the_token(site: Site) -> None:
    (one,) = images(1).values()
    assert site.post(related([one]), Host="pacs-gateway.hospital:11181")[0] == 200


def test_it_is_off_unless_it_is_asked_for_and_shares_the_port_of_the_admin_page() -> None:
    assert Web().stow is False
    with pytest.raises(ValueError, match="needs enabled"):
        Web(stow=True, enabled=False)


def test_other_methods_are_not_served(site: Site) -> None:
    for path in ("/dicom-web/studies", f"/dicom-web/studies/{STUDY}"):
        assert httpx.get(f"{site.url}{path}", headers=BEARER).status_code == 405
    assert httpx.post(f"{site.url}/dicom-web/studies/{STUDY}/series", headers=BEARER).status_code == 404
