"""The pictures of the report page show what the page is now."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

IMAGES = Path(__file__).parents[2] / "docs" / "images"


@pytest.fixture(scope="module")
def take():
    spec = importlib.util.spec_from_file_location("take", IMAGES / "take.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_no_picture_is_older_than_the_page(take):
    taken = take.HASHES.read_text(encoding="utf-8").splitlines()
    assert list(take.hashes()) == taken, "the page was changed: make pictures"


def test_every_picture_of_the_page_is_taken_by_the_script(take):
    assert {file.name for file in IMAGES.glob("page-*.png")} == set(take.PICTURES)
    texts = [
        file.read_text(encoding="utf-8") for file in (*IMAGES.parent.glob("*.md"), IMAGES.parents[1] / "README.md")
    ]
    assert all(any(f"images/{name}" in text for text in texts) for name in take.PICTURES)
