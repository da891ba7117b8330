"""What all sections of the configuration share."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

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
