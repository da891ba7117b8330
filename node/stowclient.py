"""Sending objects to a DICOMweb service by STOW-RS (PS3.18 section 10.5).

`dicomweb_client` builds the requests. Each answer is read here, in a hook, before the library would look at it: bounded
in length and in time, whatever its status. So no redirect is followed, no token goes to another host, nothing is tried
again behind our back, and the reasons in a refusal are not lost; `node.storeanswer` says what it means.
"""

from __future__ import annotations

import contextlib
import ssl
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from typing import Any

import pydicom
import requests
from dicomweb_client import DICOMwebClient
from requests.adapters import HTTPAdapter
from requests.auth import AuthBase

from node.errors import InvalidInstance, PeerUnavailable
from node.header import UNREADABLE
from node.outgoing import Outgoing
from node.storeanswer import LONGEST, judge
from node.tls import client_context, explain
from node.webservice import WebService

_CONNECT_S = 10.0
# One object a request, and its length told: not every service takes a body in chunks.
_NEVER_IN_CHUNKS = 1 << 62


class StowService(WebService):
    """A DICOMweb service that takes objects."""

    @contextlib.contextmanager
    def opened(self, files: Sequence[Outgoing], timeout_s: float) -> Iterator[Callable[[Outgoing], str]]:
        """Yield what sends one file and returns a note, over a connection that is kept until the end.

        Raises
        ------
        ConfigurationError
            A file that its settings name cannot be used.
        PeerUnavailable
            By what is yielded: nobody answers in time, there is no TLS, or the service is busy or out of resources.
        ClassRefused
            Likewise: it takes no object of this SOP class, or none so encoded.
        PeerRefused
            Likewise: it lets us not in, or says no.
        InvalidInstance
            Likewise: the file cannot be read.
        """
        with requests.Session() as session:
            answers = _Answers(timeout_s)
            self._prepare(session, answers)
            client = DICOMwebClient(
                self.url, session=session, chunk_size=_NEVER_IN_CHUNKS, timeout=(min(_CONNECT_S, timeout_s), timeout_s)
            )
            client.set_http_retry_params(retry=False)
            yield lambda outgoing: self._send(client, answers, outgoing, timeout_s)

    def _prepare(self, session: requests.Session, answers: _Answers) -> None:
        session.trust_env = False  # neither proxies nor passwords nor authorities that the environment names
        session.auth = _Bearer(self.bearer())
        session.headers["Accept"] = "application/dicom+json"
        session.hooks["response"] = [answers]
        session.proxies = {"http": self.proxy, "https": self.proxy} if self.proxy else {}
        context = client_context(self.security)
        if context is not None:
            session.mount("https://", _OurTls(context, self.security.tls_server_name))

    def _send(self, client: DICOMwebClient, answers: _Answers, outgoing: Outgoing, timeout_s: float) -> str:
        try:
            with warnings.catch_warnings():
                # pydicom warns of values another system encoded oddly; they are sent as they are.
                warnings.simplefilter("ignore", UserWarning)
                client.store_instances([pydicom.dcmread(outgoing.path)])
        except requests.exceptions.Timeout as error:
            raise PeerUnavailable(f"{self} does not answer within {timeout_s:g} s", "check that it runs") from error
        except requests.exceptions.RequestException as error:
            raise self._unreached(error) from error
        except UNREADABLE as error:
            raise InvalidInstance(f"{outgoing.path.name} cannot be read ({type(error).__name__})", "") from error
        return judge(str(self), outgoing.sop_uid, answers.status, answers.media_type, answers.body)

    def _unreached(self, error: Exception) -> PeerUnavailable:
        secured = next((e for e in _causes(error) if isinstance(e, ssl.SSLError)), None)
        if secured is not None:
            return PeerUnavailable(
                f"{self} and we have no TLS: {explain(secured)}", "check the certificates on both sides"
            )
        if isinstance(error, requests.exceptions.ProxyError):
            return PeerUnavailable(f"the proxy on the way to {self} lets us not through", "check proxy")
        whether = "; whether it takes our TLS certificate" if self.security.tls else ""
        return PeerUnavailable(f"{self} does not answer", f"check that it runs, its address, and the firewall{whether}")


class _Bearer(AuthBase):
    """Lets us in, and leaves the header Host to who knows the port."""

    def __init__(self, token: str) -> None:
        self._token = token

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._token:
            request.headers["Authorization"] = f"Bearer {self._token}"
        request.headers.pop("Host", None)
        return request


class _OurTls(HTTPAdapter):
    """Connects by our own TLS settings, to what our own authorities vouch for, and to nothing else."""

    def __init__(self, context: ssl.SSLContext, server_name: str) -> None:
        self._options: dict[str, Any] = {"ssl_context": context}
        if server_name:
            self._options["server_hostname"] = server_name
        super().__init__()

    def init_poolmanager(self, connections: int, maxsize: int, block: bool = False, **options: Any) -> None:
        super().init_poolmanager(connections, maxsize, block, **options, **self._options)

    def proxy_manager_for(self, proxy: str, **options: Any) -> Any:
        return super().proxy_manager_for(proxy, **options, **self._options)

    def cert_verify(self, conn: Any, url: str, verify: Any, cert: Any) -> None:
        conn.cert_reqs = "CERT_REQUIRED"  # and not, as by default, with all authorities that the library brings


class _Answers:
    """Reads each answer, as far as it may go, and leaves the library one that says nothing in its place."""

    def __init__(self, timeout_s: float) -> None:
        self._timeout_s = timeout_s
        self.status, self.media_type, self.body = 0, "", b""

    def __call__(self, response: requests.Response, **_: Any) -> requests.Response:
        give_up, body = time.monotonic() + self._timeout_s, bytearray()
        for chunk in response.iter_content(1 << 14):
            body += chunk
            if len(body) > LONGEST:
                response.close()
                break
            if time.monotonic() > give_up:
                response.close()
                raise requests.exceptions.ReadTimeout
        self.status, self.body = response.status_code, bytes(body)
        self.media_type = response.headers.get("Content-Type", "")
        silent = requests.Response()
        silent.status_code, silent.raw = 200, BytesIO()
        return silent


def _causes(error: BaseException) -> Iterator[BaseException]:
    """Yield an error and all that it wraps, in whatever way the libraries do that."""
    seen: list[BaseException] = []
    left: list[object] = [error]
    while left:
        one = left.pop()
        if isinstance(one, BaseException) and one not in seen:
            seen.append(one)
            left += [one.__cause__, one.__context__, getattr(one, "reason", None), *one.args]
            yield one
