"""The `pennode` command as a person or a script meets it: every error one readable line, every answer parseable."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

import pytest

from node.evidence import Evidence, Source, Weighing, Weight
from node.ledger import Commitment, Ledger, ProcedureStep, Reference, StepState
from node.records import Header, Instance
from node.states import JobState
from tests.harness import clean_environment, pennode, site, until
from tests.peers import free_port


@pytest.fixture
def state(tmp_path: Path) -> dict[str, str]:
    return {"PENNODE_STATE_DIR": str(tmp_path / "state")}


def make_job(folder: Path, *, wanted: bool) -> str:
    """Put one sealed series of one image into the ledger that a node in `folder` would use."""
    ledger = Ledger(f"sqlite:///{folder / 'ledger.sqlite3'}")
    ledger.migrate()
    uid = f"1.2.3.{time.time_ns()}"
    ledger.record(
        Instance(
            sop_uid=uid, sop_class_uid="1.2.840.10008.5.1.4.1.1.4", series_uid=f"{uid}.1", study_uid=f"{uid}.2",
            transfer_syntax_uid="1.2.840.10008.1.2.1", sha256="0" * 64, size=1, path=f"series/{uid}", calling_ae="MR1",
            called_ae="PENNODE", peer="127.0.0.1", received_at=time.time(), header=Header(series_description="t2 sag"),
        )
    )  # fmt: skip
    (series,) = ledger.receiving()
    members = ledger.series_instances(series.series_uid)
    verdict = "agrees" if wanted else "modality is CT, not MR"
    job_id = ledger.seal(series, members, "test", wanted=wanted, verdict=verdict, next_step="", now=time.time())
    ledger.close()
    assert job_id is not None
    return job_id


def assert_one_line(done: subprocess.CompletedProcess[str], *words: str) -> None:
    assert done.returncode == 1, (done.stdout, done.stderr)
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
    for word in words:
        assert word in done.stderr


def test_version() -> None:
    assert pennode("--version").stdout == f"pennode {version('pennode')}\n"


@pytest.mark.parametrize("words", [(), ("jobs",), ("config",)])
def test_no_command_gets_the_help_and_no_empty_complaint(words: tuple[str, ...]) -> None:
    done = pennode(*words)
    assert done.returncode == 2
    assert "Commands" in done.stdout + done.stderr
    assert "pennode: " not in done.stderr


def test_help_loses_no_words_to_markup() -> None:
    shown = pennode("fetch", "--help").stdout + pennode("--help").stdout
    assert "archive" in shown
    assert "[]" not in shown


def test_jobs_are_listed_shown_retried_and_cancelled(state: dict[str, str]) -> None:
    folder = Path(state["PENNODE_STATE_DIR"])
    ready, skipped = make_job(folder, wanted=True), make_job(folder, wanted=False)

    listed = json.loads(pennode("jobs", "list", "--json", environment=state).stdout)
    assert {job["id"]: job["state"] for job in listed} == {ready: "READY", skipped: "SKIPPED"}
    only = json.loads(pennode("jobs", "list", "--state", "SKIPPED", "--json", environment=state).stdout)
    assert [job["id"] for job in only] == [skipped]
    table = pennode("jobs", "list", environment=state).stdout
    assert ready[:8] in table
    assert "modality is CT" in " ".join(table.split())

    shown = json.loads(pennode("jobs", "show", skipped[:8], "--json", environment=state).stdout)
    assert [e["after"] for e in shown["journal"]] == ["RECEIVING", "SEALED", "SKIPPED"]
    assert shown["reason"] == "modality is CT, not MR"

    assert json.loads(pennode("jobs", "retry", skipped, "--json", environment=state).stdout)["state"] == "READY"
    assert pennode("jobs", "cancel", ready, environment=state).stdout == f"job {ready[:8]} is CANCELLED\n"
    assert_one_line(pennode("jobs", "cancel", ready, environment=state), "CANCELLED")
    assert_one_line(pennode("jobs", "show", "ffffffffff", environment=state), "no job begins with", "jobs list")


def test_a_series_that_still_arrives_is_listed_and_shown_with_what_it_waits_for(state: dict[str, str]) -> None:
    folder = Path(state["PENNODE_STATE_DIR"])
    make_job(folder, wanted=True)
    ledger = Ledger(f"sqlite:///{folder / 'ledger.sqlite3'}")
    (job,) = ledger.jobs()
    (first,) = ledger.series_instances(job.series_uid)
    ledger.record(replace(first, sop_uid=f"{first.sop_uid}.9", sha256="1" * 64, received_at=time.time() - 5))
    shown = pennode("jobs", "show", job.series_uid, environment=state).stdout
    assert "RECEIVING" in shown
    (series,) = ledger.receiving()
    lacks = Evidence(Source.NUMBERS, Weight.AGAINST, "instance number 4 is missing between 1 and 8")
    waits = Weighing(series.series_uid, 2, (lacks,), "waits for what is missing", series.last_at, time.time() + 300)
    ledger.note_weighing(waits)

    first_line = pennode("jobs", "list", environment=state).stdout.splitlines()[0]
    assert first_line.split("\t")[:2] == [series.series_uid, "RECEIVING"]
    assert "waits for what is missing" in first_line
    assert "RECEIVING" not in pennode("jobs", "list", "--state", "READY", environment=state).stdout
    for asked in (series.series_uid, job.id):
        shown = pennode("jobs", "show", asked, environment=state).stdout
        assert re.search("revision 2: waits for what is missing, 2[0-9]{2} s at most if no image comes", shown)
        assert "  against  instance numbers: instance number 4 is missing between 1 and 8" in shown
        found = json.loads(pennode("jobs", "show", asked, "--json", environment=state).stdout)
        assert found["weighings"][-1]["pieces"] == [{"source": lacks.source, "weight": "against", "text": lacks.text}]
    assert "revision 1: test" in shown, "and why the sealed revision was sealed"
    assert_one_line(pennode("jobs", "show", "1.2.404", environment=state), "no series 1.2.404 was received")
    ledger.close()


def test_no_ledger_yet(state: dict[str, str]) -> None:
    assert_one_line(pennode("jobs", "list", environment=state), "no ledger", "start the node once")
    assert not Path(state["PENNODE_STATE_DIR"]).exists(), "looking must not make a ledger"


def test_config_show_masks_secrets(state: dict[str, str]) -> None:
    secrets = {
        "PENNODE_BROKER_URL": "redis://:hidden@h/0",
        "PENNODE_WEB_TOKEN": "hidden",
        "PENNODE_LISTENER_PORT": "104",
    }
    done = pennode("config", "show", environment=state | secrets)
    shown = json.loads(done.stdout)
    assert shown["listener"]["port"] == 104
    assert shown["broker"]["url"] == "redis://:***@h/0"
    assert "hidden" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "environment", "words"),
    [
        (["node"], {"PENNODE_LISTENR_PORT": "1"}, ["PENNODE_LISTENR_PORT", "did you mean PENNODE_LISTENER_PORT"]),
        (["node", "--config", "/nonexistent.toml"], {}, ["/nonexistent.toml"]),
        (["worker"], {}, ["no node is known", "worker.node_url"]),
        (["worker"], {"PENNODE_WORKER_MODEL": "nothing"}, ["no model 'nothing'", "penn-spine"]),
        (["node"], {"PENNODE_LEDGER_URL": "mysql://h/x"}, ["ledger.url", "postgresql://"]),
        (["send", "/nonexistent", "--to", "A@h:1"], {}, ["there is no /nonexistent"]),
        (["send", ".", "--to", "nobody"], {}, ["AE@HOST:PORT"]),
        (["segment", "/nonexistent", "--out", "out"], {}, ["/nonexistent"]),
        (["demo", "/nonexistent"], {}, ["/nonexistent"]),
    ],
)
def test_wrong_input_is_one_readable_line(
    state: dict[str, str], arguments: list[str], environment: dict[str, str], words: list[str]
) -> None:
    done = pennode(*arguments, environment=state | environment)
    lines = [line for line in done.stderr.strip().splitlines() if "research" not in line]
    assert done.returncode == 1
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("pennode: ")
    for word in words:
        assert word in lines[0]


@pytest.mark.skipif(Path("/dev/nvidiactl").exists(), reason="there is a GPU here")
@pytest.mark.parametrize("backend", ["tensorrt", "torch"])
def test_a_worker_for_a_gpu_ends_at_once_where_there_is_none(state: dict[str, str], backend: str) -> None:
    asked = state | {"PENNODE_WORKER_BACKEND": backend, "PENNODE_WORKER_PRECISION": "f16"}
    assert_one_line(pennode("worker", environment=asked), "NVIDIA driver", "worker.backend", "openvino")
    asked["PENNODE_WORKER_FALLBACK"] = '["openvino"]'
    assert_one_line(pennode("worker", environment=asked), "no node is known")  # it would go on


def test_a_precision_that_cannot_be_is_told_before_a_worker_waits_for_jobs(state: dict[str, str]) -> None:
    asked = state | {"PENNODE_WORKER_PRECISION": "f16"}
    assert_one_line(pennode("worker", environment=asked), "openvino has no precision 'f16'", "worker.precision")


def test_a_peer_that_does_not_answer(tmp_path: Path) -> None:
    from workers.series import write_phantom

    write_phantom(tmp_path, shape=(2, 16, 16))
    done = pennode("send", str(tmp_path), "--to", f"PACS@127.0.0.1:{free_port()}")
    assert_one_line(done, "does not answer")


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    with site(tmp_path / "first") as first, site(tmp_path / "second") as second:
        port = first.start_node().rpartition(":")[2]
        done = pennode("node", environment=second.environment | {"PENNODE_LISTENER_PORT": port})
        assert_one_line(done, port, "[listener]")
        assert not (second.state / "node.json").exists()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_up_stops_on_a_signal_and_takes_its_worker_along(tmp_path: Path, number: signal.Signals) -> None:
    with site(tmp_path) as here:
        here.start_node("up")
        here.wait_for_worker()
        (name,) = [w.name for w in here.ledger.workers(0)]
        here.processes["up"].send_signal(number)
        assert here.processes["up"].wait(40) == 0, here.log("up")
        assert not Path(f"/proc/{name.rpartition('-')[2]}").exists()
        assert not (here.state / "node.json").exists()


def test_a_demo_ended_from_outside_leaves_nothing_behind(tmp_path: Path) -> None:
    def children(pid: int) -> list[str]:
        return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()

    environment = clean_environment() | {"TMPDIR": str(tmp_path)}
    command = [sys.executable, "-m", "node.cli", "demo", "--out", str(tmp_path / "out")]
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until(lambda: list(tmp_path.glob("*/state/node.json")) or None, "the node is started", 60)
    mine = children(process.pid)
    process.terminate()
    assert process.wait(90) == 143
    assert not [pid for pid in mine if Path(f"/proc/{pid}").exists()]
    assert not list(tmp_path.glob("pennode-demo-*"))


def test_states_can_be_named_in_any_list() -> None:
    done = pennode("jobs", "list", "--state", "NONSENSE")
    assert done.returncode == 2
    assert all(state in " ".join(done.stderr.split()) for state in JobState)


def test_services_lists_what_peers_asked_and_announced(state: dict[str, str]) -> None:
    folder = Path(state["PENNODE_STATE_DIR"])
    ledger = Ledger(f"sqlite:///{folder / 'ledger.sqlite3'}")
    ledger.migrate()
    now = time.time()
    reference = Reference("1.2.840.10008.5.1.4.1.1.4", "1.2.3")
    number = ledger.ask_commitment(Commitment("1.2.77", "MR1", "192.0.2.7", now, now, (reference,)), 9).number
    assert number is not None
    ledger.postpone_commitment(number, "MR1 does not answer", "check that it runs", now, now)
    ledger.create_step(
        ProcedureStep("1.2.9", "MR1", "192.0.2.7", StepState.IN_PROGRESS, ("1.2.4",), "", "", now, now), {}
    )
    ledger.close()
    listed = [line.split("\t") for line in pennode("services", environment=state).stdout.splitlines()]
    assert [(kind, what, who) for kind, what, _, who, *_ in listed] == [
        ("commitment", "PENDING", "MR1"), ("step", "IN PROGRESS", "MR1"),
    ]  # fmt: skip
    assert listed[0][4:] == ["1 images", "MR1 does not answer (check that it runs)"]
    found = json.loads(pennode("services", "--json", environment=state).stdout)
    assert (found["commitments"][0]["transaction_uid"], found["steps"][0]["sop_uid"]) == ("1.2.77", "1.2.9")
