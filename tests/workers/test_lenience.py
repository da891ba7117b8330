"""Leniency that threads share."""

from __future__ import annotations

import threading
import warnings

import pytest
from pydicom import config

from workers.lenience import lenient


def test_it_lasts_until_the_last_has_left_and_then_all_is_as_it_was() -> None:
    before, filters = config.settings.reading_validation_mode, list(warnings.filters)
    entered, leave = threading.Event(), threading.Event()

    def other() -> None:
        with lenient():
            entered.set()
            leave.wait(10)

    thread = threading.Thread(target=other)
    with lenient():
        thread.start()
        assert entered.wait(10)
    assert config.settings.reading_validation_mode == config.IGNORE, "the other is within still"
    warnings.warn("nobody hears it", UserWarning, stacklevel=1)
    leave.set()
    thread.join()
    assert config.settings.reading_validation_mode == before
    assert list(warnings.filters) == filters
    with pytest.warns(UserWarning, match="heard"):
        warnings.warn("heard", UserWarning, stacklevel=1)


def test_what_is_raised_within_comes_out() -> None:
    before = config.settings.writing_validation_mode
    with pytest.raises(KeyError), lenient():
        raise KeyError
    assert config.settings.writing_validation_mode == before
