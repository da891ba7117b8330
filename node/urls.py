"""URLs that may hold a password, and showing them without it."""

from __future__ import annotations

import re

# Rather too much is hidden than too little: all from the first colon after the slashes to the last @.
_PASSWORD = re.compile(r"(?<=//)([^:/@\s]*):\S*@")


def masked(url: str) -> str:
    """Return `url` with the password, if it holds one, shown as ``***``."""
    return _PASSWORD.sub(r"\1:***@", url)


class Url(str):
    """A URL whose repr hides the password."""

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(masked(self))
