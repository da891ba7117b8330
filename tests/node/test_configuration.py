"""The configuration: precedence, misspellings and their neighbours, and secrets that never show."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr, ValidationError

from node.configuration import effective, load, secret
from node.errors import ConfigurationError
from node.settings import Destination, Listener, Settings
from node.urls import masked


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No variable of ours from outside, and no file in /etc."""
    for name in [n for n in os.environ if n.startswith("PENNODE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setattr("node.configuration.DEFAULT_FILE", tmp_path / "etc.toml")


def toml(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "pennode.toml"
    path.write_text(text)
    return path


def test_with_nothing_at_all_everything_has_a_default(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "/state")
    settings = load()
    assert settings.state_dir == Path("/state/pennode")
    assert settings.ledger_url == "sqlite:////state/pennode/ledger.sqlite3"
    assert settings.listener.host == settings.api.host == settings.web.host == "127.0.0.1"


def test_the_environment_wins_over_the_file_and_the_file_over_the_default(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = toml(tmp_path, "[listener]\nport = 104\nae_title = 'FILE'\n[log]\nlevel = 'DEBUG'")
    monkeypatch.setenv("PENNODE_LISTENER_AE_TITLE", "ENV")
    monkeypatch.setenv("PENNODE_STATE_DIR", "/s")
    settings = load(path)
    assert (settings.listener.ae_title, settings.listener.port, settings.log.level) == ("ENV", 104, "DEBUG")
    assert settings.listener.max_pdu == 131072
    assert settings.state_dir == Path("/s")


def test_the_file_is_named_by_the_option_then_the_variable_then_etc(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "etc.toml").write_text("[listener]\nport = 1")
    assert load().listener.port == 1
    (tmp_path / "env.toml").write_text("[listener]\nport = 2")
    monkeypatch.setenv("PENNODE_CONFIG", str(tmp_path / "env.toml"))
    assert load().listener.port == 2
    assert load(toml(tmp_path, "[listener]\nport = 3")).listener.port == 3


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[listener]\nae_titel = 'X'", "unknown setting listener.ae_titel in {path}; did you mean ae_title?"),
        ("[lisener]\nport = 1", "unknown setting lisener in {path}; did you mean listener?"),
        ("[[destinations]]\nname='a'\nae='b'\nhost='c'\nport=1\nae_title='x'", "unknown setting destinations.0.ae "),
        ("[log]\nqqqqqqqq = 1", "unknown setting log.qqqqqqqq in {path}"),
        ("[listener]\nport = 70000", "setting listener.port in {path}: Input should be less than or equal to 65535"),
        ("[listener]\nport = 'x'", "(it is 'x')"),
        ("[log]\nlevel = 'LOUD'", "Input should be 'DEBUG', 'INFO', 'WARNING' or 'ERROR'"),
        ("[broker]\nurl = 'amqp://me:geheim@h'", "must begin with redis://, rediss:// or filesystem://"),
        ("ledger = 'postgresql://me:geheim@h/db'", "setting ledger in {path}"),
        ("ledger = ['postgresql://me:geheim@h/db']", "setting ledger in {path}"),
        ("[api]\ntoken = ['geheim']", "setting api.token in {path}"),
        ("[listener\nport = 1", "is not valid TOML"),
        ("[[destinations]]\nname='a'\nae_title='x'\nhost='c'\nport=1\n" * 2, "two destinations have the same name"),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, says: str) -> None:
    path = toml(tmp_path, text)
    with pytest.raises(ConfigurationError) as caught:
        load(path)
    assert says.format(path=path).strip() in str(caught.value)
    assert "geheim" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("PENNODE_LISTENER_PROT", "1", "variable PENNODE_LISTENER_PROT (did you mean PENNODE_LISTENER_PORT?)"),
        ("PENNODE_STATEDIR", "x", "did you mean PENNODE_STATE_DIR?"),
        ("PENNODE_LISTENER_PORT", "-1", "setting listener.port"),
        ("PENNODE_SELECTION_MODALITIES", "MR", "lists and tables in the environment are JSON"),
        ("PENNODE_LISTENER", "geheim", "lists and tables in the environment are JSON"),
        ("PENNODE_CONFIG", "/nowhere.toml", "cannot read the settings file /nowhere.toml"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_environment_is_named(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, says: str
) -> None:
    monkeypatch.setenv(name, value)
    with pytest.raises(ConfigurationError) as caught:
        load()
    assert says in str(caught.value)
    assert "geheim" not in str(caught.value)


def test_lists_and_tables_may_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENNODE_SELECTION_MODALITIES", '["MR", "CT"]')
    monkeypatch.setenv("PENNODE_DESTINATIONS", '[{"name": "a", "ae_title": "PACS", "host": "h", "port": 104}]')
    settings = load()
    assert settings.selection.modalities == ("MR", "CT")
    assert settings.destinations == (Destination(name="a", ae_title="PACS", host="h", port=104),)


def test_settings_do_not_change() -> None:
    settings = load()
    with pytest.raises(ValidationError):
        settings.listener.port = 1  # type: ignore[misc]
    with pytest.raises(ValidationError):
        settings.listener = Listener()  # type: ignore[misc]


@pytest.mark.parametrize("title", ["", " ", "X" * 17, "A\\B", "A\nB", "Ä", "A\x00"])
def test_bad_ae_titles(title: str) -> None:
    with pytest.raises(ValidationError):
        Listener(ae_title=title)
    with pytest.raises(ValidationError):
        Destination(name="a", ae_title=title, host="h", port=1)


@pytest.mark.parametrize("title", ["A", "X" * 16, "MY NODE", "a-b_c.d/e", "[x]"])
def test_good_ae_titles(title: str) -> None:
    assert Listener(ae_title=title).ae_title == title


# -- secrets


def test_secrets_show_nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PENNODE_LEDGER_URL", "postgresql://me:geheim@host/db")
    monkeypatch.setenv("PENNODE_BROKER_URL", "rediss://:geheim@host:6379/0")
    monkeypatch.setenv("PENNODE_WORKER_NODE_URL", "https://me:geheim@node:11180")
    for name in ("API", "WEB", "WORKER"):
        monkeypatch.setenv(f"PENNODE_{name}_TOKEN", "geheim")
    settings = load()
    shown = json.dumps(effective(settings))
    for text in (repr(settings), str(settings), f"{settings.broker!r}", shown):
        assert "geheim" not in text
        assert "***" in text
    assert json.loads(shown)["ledger"]["url"] == "postgresql://me:***@host/db"
    assert json.loads(shown)["broker"]["url"] == "rediss://:***@host:6379/0"
    # The program itself still gets them.
    assert settings.ledger_url == "postgresql://me:geheim@host/db"
    assert settings.api.token
    assert settings.api.token.get_secret_value() == "geheim"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("sqlite:////var/lib/x@y:z", "sqlite:////var/lib/x@y:z"),
        ("postgresql://u@h/db", "postgresql://u@h/db"),
        ("postgresql://u:p@h/db?x=1", "postgresql://u:***@h/db?x=1"),
        ("postgresql+psycopg://u:a/b:c@d@h/db", "postgresql+psycopg://u:***@h/db"),
        ("postgresql//u:p@h/db", "postgresql//u:***@h/db"),
    ],
)
def test_masking(url: str, shown: str) -> None:
    assert masked(url) == shown


@given(
    st.text(
        st.characters(codec="ascii", exclude_characters="@:/ \t\n\r\x0b\x0c", categories=("L", "N", "P")), max_size=8
    ),
    st.text(st.characters(codec="ascii", categories=("L", "N", "P", "S")), min_size=9, max_size=20),
)
def test_no_password_survives_masking(user: str, password: str) -> None:
    shown = masked(f"redis://{user}:{password}@host:1/0")
    assert shown == f"redis://{user}:***@host:1/0"


def test_a_token_comes_from_the_setting_the_file_or_the_nodes_own_file(tmp_path: Path) -> None:
    own, other, empty = tmp_path / "own", tmp_path / "other", tmp_path / "empty"
    own.write_text("mine\n")
    other.write_text(" other \n")
    empty.write_text("\n")
    assert secret(SecretStr("given"), other, own) == "given"
    assert secret(None, other, own) == "other"
    assert secret(None, None, own) == "mine"
    with pytest.raises(ConfigurationError, match="is empty"):
        secret(None, empty, own)
    with pytest.raises(ConfigurationError, match="cannot be read"):
        secret(None, tmp_path / "absent", own)


@pytest.mark.parametrize("token", ["", " ", "\n"])
def test_an_empty_token_is_no_token(token: str, tmp_path: Path) -> None:
    """`PENNODE_API_TOKEN=` in a compose file must not open the worker API to everybody."""
    with pytest.raises(ConfigurationError, match="the token is empty"):
        secret(SecretStr(token), None, tmp_path / "own")


DIMSE = {"name": "a", "ae_title": "PACS", "host": "h", "port": 104}
WEB = {"name": "a", "url": "https://pacs.example/dicom-web"}


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"name": "a"}, "ae_title and host and port missing: it needs ae_title, host and port, or a url"),
        ({"name": "a", "ae_title": "PACS", "host": "h"}, "port missing"),
        ({**DIMSE, "host": ""}, "host missing"),
        ({**DIMSE, "token": "geheim"}, "token belongs to a url"),
        ({**DIMSE, "token_file": "/x"}, "token_file belongs to a url"),
        ({**DIMSE, "proxy": "http://p:3128"}, "proxy belongs to a url"),
        ({**DIMSE, "tls_ca_file": "/ca"}, "without tls = true everything would go in clear text"),
        ({**WEB, **DIMSE}, "url excludes ae_title and host and port"),
        ({**WEB, "calling_ae_title": "X"}, "url excludes calling_ae_title"),
        ({**WEB, "tls": True}, "url excludes tls"),
        ({**WEB, "token": "geheim", "token_file": "/x"}, "token and token_file exclude each other"),
        ({**WEB, "url": "http://pacs.example/x", "token": "geheim"}, "the token would go in clear text"),
        ({**WEB, "url": "http://pacs.example/x", "tls_ca_file": "/ca"}, "without an https:// url everything"),
        ({**WEB, "tls_key": "/k"}, "tls_certificate and tls_key go together"),
        ({**WEB, "url": "https://me:geheim@pacs.example/x"}, "url must hold no password"),
        ({**WEB, "url": "https://me:geheim/x"}, "must read https://host[:port][/path]"),
        ({**WEB, "url": "ftp://h/geheim"}, "must read https://host[:port][/path]"),
        ({**WEB, "url": "https://h/x?token=geheim"}, "must be an address alone"),
        ({**WEB, "url": "https://h/a b"}, "must be an address alone"),
        ({**WEB, "url": "https://[::1/x"}, "must read https://host[:port][/path]"),
        ({**WEB, "proof": "commitment"}, "DICOMweb has no storage commitment"),
        ({**WEB, "proxy": "socks5://geheim"}, "must read https://host[:port][/path]"),
        ({**DIMSE, "forms": []}, "at least 1 item"),
        ({**DIMSE, "forms": ["SEG", "SR", "SEG"]}, "forms names SEG twice"),
        ({**DIMSE, "instead": ["SC", "SC"]}, "instead names SC twice"),
        ({**DIMSE, "compression": "rle"}, "a BINARY segmentation (SEG) cannot be rle: set compression to none"),
        ({**DIMSE, "forms": ["LABELMAP"], "instead": ["SEG"], "compression": "rle"}, "cannot be rle"),
        ({**DIMSE, "instead": ["SEG"]}, "instead holds SEG, which forms holds already"),
        ({**DIMSE, "instead": ["SR"]}, "instead must not hold SR"),
        ({**DIMSE, "forms": ["SR"], "instead": ["SC"]}, "forms holds nothing but SR"),
        ({**DIMSE, "forms": ["PDF"]}, "Input should be 'SEG', 'LABELMAP'"),
    ],
)
def test_destinations_that_cannot_be_are_named(
    values: dict[str, object], says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PENNODE_DESTINATIONS", json.dumps([values]))
    with pytest.raises(ConfigurationError) as caught:
        load()
    assert says in str(caught.value)
    assert "geheim" not in str(caught.value)


def test_destinations_that_can_be(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    every = [
        DIMSE,
        {**WEB, "name": "b", "token": "geheim", "forms": ["LABELMAP", "SR"], "instead": ["SEG", "SC", "GSPS"]},
        {**WEB, "name": "c", "url": "http://127.0.0.1:8042/dicom-web/", "token_file": str(tmp_path / "t")},
        {**WEB, "name": "d", "url": "https://h", "tls_ca_file": "/ca", "tls_server_name": "x"},
        {**DIMSE, "name": "e", "forms": ["LABELMAP"], "compression": "rle", "tls": True, "tls_ca_file": "/ca"},
        {**WEB, "name": "f", "proxy": "http://me:geheim@p:3128"},
    ]
    monkeypatch.setenv("PENNODE_DESTINATIONS", json.dumps(every))
    settings = load()
    assert [d.security.tls for d in settings.destinations] == [False, True, False, True, True, True]
    assert settings.destinations[2].url == "http://127.0.0.1:8042/dicom-web"
    assert settings.destinations[0].forms == ("SEG", "SR")
    assert settings.destinations[0].instead == ()
    for shown in (repr(settings), json.dumps(effective(settings)), str(settings.destinations)):
        assert "geheim" not in shown


def test_unique_names_of_destinations() -> None:
    one = Destination(name="a", ae_title="A", host="h", port=1)
    assert Settings(destinations=(one,)).destinations == (one,)
    with pytest.raises(ValidationError, match="same name"):
        Settings(destinations=(one, one))


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ("", "name either ae_title, with host and port, or url"),
        ("ae_title = 'A'\nhost = 'h'\nurl = 'http://h/dicom-web'", "name either ae_title, with host and port, or url"),
        ("ae_title = 'A'", "ae_title needs the host and port where it listens"),
        ("ae_title = 'A'\nhost = 'h'\nport = 0", "ae_title needs the host and port where it listens"),
        ("ae_title = 'A'\nhost = 'h'\ntoken = 'hidden'", "a token is for url alone"),
        ("ae_title = 'A'\nhost = 'h'\nretrieve = 'pull'", "retrieve"),
        ("ae_title = 'A'\nhost = 'h'\nretreive = 'get'", "did you mean retrieve?"),
        ("url = 'ftp://h/dicom-web'", "url must read http(s)://host[:port]/path"),
        ("url = 'http://user:hidden@h/?q=1'", "url must read http(s)://host[:port]/path"),
        ("url = 'http://h/dicom-web'\nretrieve = 'move'", "do nothing beside url"),
        ("url = 'https://h/dicom-web'", "tls = true goes with https://"),
        ("url = 'http://h/dicom-web'\ntls = true", "tls = true goes with https://"),
        ("url = 'http://h/dicom-web'\ntls_ca_file = '/ca.pem'", "in clear text"),
        ("url = 'http://h/dicom-web'\ntoken = 'hidden'", "the token would go in clear text"),
        ("url = 'https://user:hidden@h/x'\ntls = true", "url must hold no password"),
        ("url = 'https://h/x'\ntls = true\ntoken = 'hidden'\ntoken_file = '/t'", "exclude each other"),
    ],
)
def test_an_archive_is_asked_in_one_way(tmp_path: Path, keys: str, says: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        load(toml(tmp_path, f"[[archives]]\nname = 'pacs'\n{keys}"))
    assert says in str(caught.value)
    assert "hidden" not in str(caught.value)


def test_archives_have_names_of_their_own_and_hide_their_tokens(tmp_path: Path) -> None:
    entry = "[[archives]]\nname = 'pacs'\nurl = 'https://h/dicom-web'\ntls = true\ntoken = 'hidden'\n"
    shown = json.dumps(effective(load(toml(tmp_path, entry))))
    assert "hidden" not in shown
    with pytest.raises(ConfigurationError, match="two archives have the same name"):
        load(toml(tmp_path, entry * 2))
