"""What all sections of the configuration share."""

from __future__ import annotations

import ipaddress
from pathlib import Path
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from node.urls import Url

SecretUrl = Annotated[str, AfterValidator(Url)]
# PS3.5 table 6.2-1, VR AE: at most 16 characters, no backslash or control character, not only spaces.
AE_PATTERN = r"^[\x20-\x5b\x5d-\x7e]*[\x21-\x5b\x5d-\x7e][\x20-\x5b\x5d-\x7e]*$"
AETitle = Annotated[str, Field(min_length=1, max_length=16, pattern=AE_PATTERN)]
Port = Annotated[int, Field(ge=0, le=65535)]
Seconds = Annotated[float, Field(ge=0)]


class Section(BaseModel):
    """Base of all sections: frozen, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)


class Secured(Section):
    """A system that we connect to, over TLS where it says so."""

    tls: bool = Field(False, description="connect over TLS 1.2 or 1.3 (BCP 195)")
    tls_ca_file: Path | None = Field(None, description="PEM authority of its certificate; unset: those of the system")
    tls_certificate: Path | None = Field(None, description="PEM chain that we show it; unset: none")
    tls_key: Path | None = Field(None, description="its PEM key, not encrypted")
    tls_server_name: str = Field("", description="the name its certificate bears; empty: host")

    @model_validator(mode="after")
    def _whole_client_tls(self) -> Self:
        if (self.tls_certificate is None) != (self.tls_key is None):
            raise ValueError("tls_certificate and tls_key go together")
        if not self.tls and (self.tls_ca_file or self.tls_certificate or self.tls_server_name):
            raise ValueError("without tls = true everything would go in clear text, whatever the other tls_ keys say")
        return self

    @property
    def security(self) -> Secured:
        """These keys alone, of whatever section they stand in."""
        return Secured(**{name: getattr(self, name) for name in Secured.model_fields})


def is_this_machine(host: str) -> bool:
    """Tell whether a host, as it stands in an address, is this machine itself."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
