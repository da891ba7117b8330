"""`pennode fetch` as a person meets it: a node as a process, a real archive, and kills in the middle."""

from __future__ import annotations

import json
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from node.evidence import Source, Weight
from node.ledger import Fetch, FetchState
from node.outgoing import describe
from node.scu import Address, send_files
from node.states import JobState
from tests.harness import Site, pennode, site, until
from tests.node.making import SERIES, STUDY, mr, write
from tests.peers import Orthanc, orthanc, storescp
from workers.series import write_phantom

MANY, IMAGES = "1.2.3.50", 600


@pytest.fixture(scope="module")
def pacs(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Orthanc]:
    """An archive with a small study, and one of many images that takes a while."""
    folder = tmp_path_factory.mktemp("study")
    files = [write(mr(n), folder / f"{n}.dcm") for n in range(1, 6)]
    files += [
        write(mr(n, MANY, size=64, StudyInstanceUID="1.2.3.5"), folder / f"m{n}.dcm") for n in range(1, IMAGES + 1)
    ]
    with orthanc(tmp_path_factory.mktemp("orthanc"), {}) as found:
        peer = Address("ORTHANC", "127.0.0.1", found.dicom_port, "FILLER")
        assert send_files([describe(f) for f in files], peer, 30, lambda _f, _n: None) == []
        yield found


def archives(pacs: Orthanc) -> str:
    by_dimse = {"ae_title": "ORTHANC", "host": "127.0.0.1", "port": pacs.dicom_port, "timeout_s": 20}
    return json.dumps(
        [
            {"name": "pacs", **by_dimse},
            {"name": "mover", "retrieve": "move", **by_dimse},
            {"name": "web", "url": f"{pacs.url}/dicom-web"},
        ]
    )


def let_in(pacs: Orthanc, port: int) -> None:
    """Let the archive know our AE title: else it lets us retrieve nothing."""
    pacs.send("/modalities/ours", {"AET": "PENNODE", "Host": "127.0.0.1", "Port": port}, "PUT")


def only(here: Site) -> Fetch:
    (found,) = here.ledger.fetches()
    return found


def test_a_study_is_fetched_sealed_at_once_and_told(tmp_path: Path, pacs: Orthanc) -> None:
    with site(tmp_path, PENNODE_ARCHIVES=archives(pacs), PENNODE_ASSEMBLY_QUIET_S="600") as here:
        let_in(pacs, int(here.start_node().rpartition(":")[2]))
        command = ("fetch", "--study", STUDY, "--from")
        done = pennode(*command, "pacs", "--wait", environment=here.environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.splitlines() == [
            "fetch 1 from pacs is DONE: 5 images of 1 series are here",
            f"  {SERIES}  5 of 5 images are here  t2_sag",
        ]
        jobs = until(lambda: here.jobs() or None, "the series is sealed", 20)
        (weighed,) = here.ledger.weighings_of(jobs[0])
        assert weighed.outcome == "all 5 images that pacs has are here"
        assert (Source.FETCH, Weight.FOR) in [(p.source, p.weight) for p in weighed.pieces]
        ended = only(here).updated_at
        assert jobs[0].created_at - ended < 5

        for name in ("mover", "web"):
            again = pennode(*command, name, "--wait", "--json", environment=here.environment)
            assert again.returncode == 0, again.stdout + again.stderr
            assert json.loads(again.stdout)["state"] == "DONE"
        time.sleep(2)
        assert len(here.jobs()) == 1, "the same bytes again make no new revision"

        listed = pennode("fetch", "list", environment=here.environment).stdout.splitlines()
        assert [line.split("\t")[:2] for line in listed] == [["3", "DONE"], ["2", "DONE"], ["1", "DONE"]]
        assert json.loads(pennode("fetch", "show", "1", "--json", environment=here.environment).stdout)["number"] == 1
        shown = pennode("jobs", "show", SERIES, environment=here.environment).stdout
        assert "command line, " in shown
        assert "fetched from pacs, which has 5 images (fetch 1)" in shown
        log = (tmp_path / "node.log").read_text()
        assert "Secretname" not in log
        assert "PID-73519" not in log


def test_what_cannot_be_is_one_readable_line(tmp_path: Path, pacs: Orthanc) -> None:
    with site(tmp_path, PENNODE_ARCHIVES=archives(pacs)) as here:
        missing = pennode("fetch", "--study", STUDY, "--from", "pacs", environment=here.environment)
        assert (missing.returncode, "no node runs on" in missing.stderr) == (1, True)
        here.start_node()
        for arguments, words in (
            (("--study", STUDY, "--from", "pcs"), ("no archive is called 'pcs'", "did you mean pacs?")),
            (("--study", "1.2.x", "--from", "pacs"), ("'1.2.x' is no UID of a study", "digits and dots")),
            (("--study", STUDY, "--series", "7", "--from", "pacs"), ("'7' is no UID of a series", "digits and dots")),
            (("--study", STUDY), ("needs --study UID and --from NAME", "[[archives]]")),
            (("--from", "pacs"), ("needs --study UID and --from NAME", "[[archives]]")),
            (("cancel", "9"), ("there is no fetch 9", "pennode fetch list")),
        ):
            done = pennode("fetch", *arguments, environment=here.environment)
            assert done.returncode == 1
            assert len(done.stderr.splitlines()) == 1, done.stderr
            assert all(word in done.stderr for word in words), done.stderr
        unknown = pennode("fetch", "--study", "1.2.404", "--from", "pacs", "--wait", environment=here.environment)
        assert unknown.returncode == 1
        assert "is FAILED: pacs has no study of this UID (check it, and which archive" in unknown.stdout


@pytest.mark.parametrize("archive", ["pacs", "mover", "web"])
def test_a_node_killed_in_the_middle_fetches_the_rest_at_its_next_start(
    tmp_path: Path, pacs: Orthanc, archive: str
) -> None:
    with site(tmp_path, PENNODE_ARCHIVES=archives(pacs)) as here:
        port = int(here.start_node().rpartition(":")[2])
        here.environment["PENNODE_LISTENER_PORT"] = str(port)
        let_in(pacs, port)
        here.ledger.ask_fetch(
            archive, "1.2.3.5", [], "tester", time.time()
        )  # at once: a command takes its time to start
        until(lambda: here.ledger.images_here([MANY]).get(MANY, 0) >= 10, "some images are here", 30)
        here.kill("node")
        before = here.ledger.images_here([MANY])[MANY]
        assert 10 <= before < IMAGES, "else the kill came too late to say anything"
        assert only(here).state is FetchState.RUNNING
        here.start_node()
        found = until(lambda: (one := only(here)).state is FetchState.DONE and one, "the fetch ends", 60)
        assert found.reason == f"{IMAGES} images of 1 series are here"
        assert found.attempts == 2
        jobs = until(lambda: here.jobs() or None, "the series is sealed", 60)
        assert [job.instances for job in jobs] == [IMAGES]
        assert len(list((here.state / "spool" / "series").rglob("*.dcm"))) == IMAGES


def test_an_archive_killed_in_the_middle_is_named_and_fetched_from_again(tmp_path: Path) -> None:
    files = [write(mr(n, MANY, size=64), tmp_path / f"{n}.dcm") for n in range(1, IMAGES + 1)]
    with orthanc(tmp_path / "orthanc", {}) as pacs, site(tmp_path, PENNODE_ARCHIVES=archives(pacs)) as here:
        peer = Address("ORTHANC", "127.0.0.1", pacs.dicom_port, "FILLER")
        assert send_files([describe(f) for f in files], peer, 30, lambda _f, _n: None) == []
        let_in(pacs, int(here.start_node().rpartition(":")[2]))
        here.ledger.ask_fetch("pacs", STUDY, [], "tester", time.time())
        until(lambda: here.ledger.images_here([MANY]).get(MANY, 0) >= 10, "some images are here", 30)
        os.kill(pacs.pid, signal.SIGKILL)
        found = until(lambda: (one := only(here)).state is FetchState.FAILED and one, "the fetch ends", 60)
        assert found.reason in ("the peer ended the association half way", "the association broke")
        assert found.next_step
        assert found.series[0].here >= 10


def test_end_to_end(tmp_path: Path) -> None:
    """A phantom that lies in the archive is fetched, segmented, and its segmentation sent."""
    files = write_phantom(tmp_path / "in", shape=(8, 96, 96))
    with (
        orthanc(tmp_path / "orthanc", {}) as pacs,
        storescp(tmp_path / "pacs") as port,
        site(tmp_path, [("pacs", "STORESCP", port)], PENNODE_ARCHIVES=archives(pacs)) as here,
    ):
        peer = Address("ORTHANC", "127.0.0.1", pacs.dicom_port, "FILLER")
        assert send_files([describe(f) for f in files], peer, 30, lambda _f, _n: None) == []
        here.start_node("up")
        study = json.loads(pacs.get("/studies?expand"))[0]["MainDicomTags"]["StudyInstanceUID"]
        done = pennode("fetch", "--study", study, "--from", "web", "--wait", environment=here.environment)
        assert done.returncode == 0, done.stdout + done.stderr
        (job,) = here.wait_finished(1).values()
        assert job.state is JobState.DELIVERED, job
        assert list((tmp_path / "pacs" / "received").iterdir())
