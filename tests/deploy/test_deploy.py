"""What is shipped for running pennode agrees with the program: names, defaults, and the promised hardening."""

import itertools
import os
import re
import shutil
import subprocess
import tomllib
import typing
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from pydantic import BaseModel, SecretStr

from node import configuration
from node.settings import PREFIX, Archive, Destination, Model, Peer, Section, Settings

DEPLOY = Path(__file__).parents[2] / "deploy"
EXAMPLE = DEPLOY / "pennode.toml"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
FILES = sorted(path for path in DEPLOY.rglob("*") if path.is_file())


@pytest.fixture(autouse=True)
def _clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)


def sections() -> dict[str, type[Section]]:
    found = {}
    for name, field in Settings.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found[name] = field.annotation
    return found


def known_variables() -> set[str]:
    names = set(configuration.RESERVED) | {f"{PREFIX}{name}".upper() for name in Settings.model_fields}
    for section, model in sections().items():
        names |= {f"{PREFIX}{section}_{key}".upper() for key in model.model_fields}
    return names


def uncommented() -> dict[str, Any]:
    """The example file with every setting in force: "#" before anything but a space is taken away."""
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    return tomllib.loads("\n".join(re.sub(r"^#(?=\S)", "", line) for line in lines))


def test_the_example_file_as_shipped_changes_nothing() -> None:
    assert Settings(**tomllib.loads(EXAMPLE.read_text(encoding="utf-8"))) == Settings()


def test_the_example_file_lists_every_setting_and_no_other() -> None:
    values = uncommented()
    assert set(values) == set(Settings.model_fields)
    for section, model in sections().items():
        assert set(values[section]) == set(model.model_fields), section
    dimse, web = (set(entry) for entry in values["destinations"])
    assert dimse | web | {"token"} == set(Destination.model_fields), "token excludes token_file"
    assert [set(entry) for entry in values["peers"]] == [set(Peer.model_fields)]
    # An archive is asked by DICOM or by DICOMweb: no entry may have all the settings.
    assert {key for entry in values["archives"] for key in entry} | {"token"} == set(Archive.model_fields)
    assert [set(entry) for entry in values["models"]] == [set(Model.model_fields)]


def test_the_example_file_shows_the_defaults() -> None:
    read, default = Settings(**uncommented()), Settings()
    for section in sections():
        for key, value in getattr(default, section):
            if value is not None:  # what is unset by default cannot be written in TOML: an example stands there
                assert getattr(getattr(read, section), key) == value, f"{section}.{key}"


def test_every_setting_has_a_line_of_words() -> None:
    lines = EXAMPLE.read_text(encoding="utf-8").splitlines()
    for before, line in itertools.pairwise(lines):
        if re.match(r"#\w+ = ", line):
            assert re.match(r"# \S", before), line


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.name)
def test_every_variable_named_is_one_the_program_takes(path: Path) -> None:
    named = set(re.findall(rf"\b{PREFIX}[A-Z_]+\b", path.read_text(encoding="utf-8")))
    assert named <= known_variables()


def interpolated(value: str) -> str:
    return re.sub(r"\$\{(\w+)[^}]*\}", lambda match: f"the-{match[1]}".replace("_", "-"), value)


@pytest.fixture
def compose() -> dict[str, Any]:
    yaml = pytest.importorskip("yaml")
    return typing.cast(dict[str, Any], yaml.safe_load((DEPLOY / "compose.yaml").read_text(encoding="utf-8")))


@pytest.mark.parametrize("name", ["worker-cpu", "worker-gpu"])
def test_the_composed_node_and_worker_understand_their_environment(
    name: str, compose: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    node, worker = (compose["services"][service]["environment"] for service in ("node", name))
    for variable, value in {**node, **worker}.items():
        monkeypatch.setenv(variable, interpolated(value))
    settings = configuration.load(EXAMPLE)
    assert settings.broker.url == "redis://:the-REDIS-PASSWORD@redis:6379/0"
    assert settings.worker.node_url == f"http://node:{settings.api.port}"
    assert isinstance(settings.worker.token, SecretStr)
    assert settings.worker.token == settings.api.token
    assert node["PENNODE_BROKER_URL"] == worker["PENNODE_BROKER_URL"]
    assert settings.worker.backend == ("tensorrt" if name == "worker-gpu" else "openvino")


def test_composed_node_and_worker_read_the_same_settings_file(compose: dict[str, Any]) -> None:
    mount = f"./{EXAMPLE.name}:/etc/pennode/pennode.toml:ro"
    for name in ("node", "worker-cpu", "worker-gpu"):
        assert mount in compose["services"][name]["volumes"], name
    text = (DEPLOY / "compose.yaml").read_text(encoding="utf-8")
    (model,) = re.findall(r"^ +# - \./models/(\S+?):(\S+):ro$", text, re.MULTILINE)
    assert f'model = "{model[1]}"' in text, "the commented mount and the setting beside it name one folder"


def test_composed_services_are_hardened_and_watched(compose: dict[str, Any]) -> None:
    services = compose["services"]
    assert set(services) == {"redis", "node", "worker-cpu", "worker-gpu"}
    assert services["worker-gpu"]["profiles"] == ["gpu"]  # not by default
    for name, service in services.items():
        assert service["read_only"] is True, name
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"], name
        assert service["healthcheck"]["test"], name
        assert "privileged" not in service, name
    assert compose["networks"]["inside"]["internal"] is True
    assert all(services[name]["networks"] == ["inside"] for name in ("redis", "worker-cpu", "worker-gpu"))


def test_the_composed_node_publishes_dicom_and_admin_page_on_loopback_only(compose: dict[str, Any]) -> None:
    default = Settings()
    assert compose["services"]["node"]["ports"] == [
        f"${{DICOM_BIND:-127.0.0.1}}:{default.listener.port}:{default.listener.port}",
        f"${{WEB_BIND:-127.0.0.1}}:{default.web.port}:{default.web.port}",
    ]
    assert not any("ports" in compose["services"][name] for name in ("redis", "worker-cpu", "worker-gpu"))


def test_the_example_environment_holds_every_variable_compose_asks_for() -> None:
    asked = re.findall(r"\$\{(\w+)", (DEPLOY / "compose.yaml").read_text(encoding="utf-8"))
    given = re.findall(r"^(\w+)=(.*)$", (DEPLOY / ".env.example").read_text(encoding="utf-8"), re.MULTILINE)
    assert {name for name, _ in given} == set(asked)
    assert not any(value for name, value in given if "BIND" not in name), "no secret is shipped"


@pytest.mark.parametrize("name", ["Dockerfile.node", "Dockerfile.worker"])
def test_images_run_as_an_ordinary_user(name: str) -> None:
    lines = (DEPLOY / name).read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith("USER ")] == ["USER 10001"]
    assert lines.index("USER 10001") > max(i for i, line in enumerate(lines) if line.startswith(("RUN", "COPY")))
    assert all("-c constraints.txt" in line for line in lines if "pip install" in line)


def test_the_node_image_names_no_gpu_library() -> None:
    text = (DEPLOY / "Dockerfile.node").read_text(encoding="utf-8").lower()
    assert not re.search(r"torch|tensorrt|cuda|gpu|extras", text)


def test_images_are_built_from_what_the_package_needs_only() -> None:
    root = DEPLOY.parent
    lines = (root / ".dockerignore").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "*"
    kept = {line[1:] for line in lines if line.startswith("!")}
    assert kept == {"LICENSE", "README.md", "constraints.txt", "pyproject.toml", "node", "trt", "workers"}


def test_every_package_asked_for_is_pinned_to_a_version_that_is_allowed() -> None:
    """Else two installs of one release differ, and a GPU's host, where nobody looks, is the first that breaks."""
    root = DEPLOY.parent
    lines = (root / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = {canonicalize_name(pin.name): pin for pin in (Requirement(line) for line in lines if line[:1] != "#")}
    project = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [project["dependencies"], *project["optional-dependencies"].values()]
    for asked in (Requirement(text) for group in wanted for text in group if not text.startswith("pennode[")):
        (pin,) = pins[canonicalize_name(asked.name)].specifier
        assert pin.operator == "=="
        assert pin.version in asked.specifier, asked


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_units_are_hardened(unit: Path) -> None:
    lines = unit.read_text(encoding="utf-8").splitlines()
    assert {
        "User=pennode", "StateDirectory=pennode", "Restart=on-failure", "KillMode=mixed", "TimeoutStopSec=90",
        "NoNewPrivileges=yes", "CapabilityBoundingSet=", "ProtectSystem=strict", "ProtectHome=yes", "PrivateTmp=yes",
        "PrivateDevices=yes", "RestrictNamespaces=yes", "SystemCallFilter=@system-service",
    } <= set(lines)  # fmt: skip
    assert not any("TOKEN" in line and not line.startswith("#") for line in lines), "no secret stands in a unit"


@pytest.mark.parametrize("unit", UNITS, ids=lambda path: path.name)
def test_systemd_accepts_the_units(unit: Path, tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("no systemd-analyze here")
    copy = tmp_path / unit.name.replace("@", "@1")
    text = unit.read_text(encoding="utf-8")
    copy.write_text(re.sub(r"^ExecStart=\S+", "ExecStart=/bin/true", text, flags=re.MULTILINE), encoding="utf-8")
    checked = subprocess.run([analyze, "verify", "--man=no", copy], capture_output=True, text=True, check=False)
    assert (checked.returncode, checked.stderr) == (0, "")


def test_models_of_the_settings_are_all_seen_here() -> None:
    """A new table that is no Section, or a list of tables, would slip through the tests above."""
    for name, field in Settings.model_fields.items():
        inner = [a for a in typing.get_args(field.annotation) if isinstance(a, type) and issubclass(a, BaseModel)]
        assert inner in ([], [Archive], [Destination], [Model], [Peer]), name
