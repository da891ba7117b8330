"""Every kept input through its target, without the fuzzer: a fault that was found once stays found."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.fuzz import TARGETS

CORPUS = Path(__file__).parent / "corpus"


@pytest.fixture(autouse=True)
def quiet() -> Iterator[None]:
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.filterwarnings("ignore")  # pydicom has opinions of broken data
def test_every_kept_input_keeps_the_laws(name: str) -> None:
    target = importlib.import_module(f"tests.fuzz.{name}")
    files = sorted((CORPUS / name).iterdir())
    assert len(files) >= 10
    for file in files:
        try:
            target.check(file.read_bytes())
        except Exception as error:
            error.add_note(f"with {file.relative_to(CORPUS)}")
            raise


@pytest.mark.parametrize("name", TARGETS)
@pytest.mark.filterwarnings("ignore")
def test_every_valid_exchange_keeps_the_laws(name: str) -> None:
    target = importlib.import_module(f"tests.fuzz.{name}")
    seeds = target.seeds()
    assert len(seeds) >= 3
    for seed, data in seeds.items():
        assert len(data) <= target.LONGEST, seed
        target.check(data)
