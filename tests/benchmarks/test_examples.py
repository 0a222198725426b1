"""docs/examples.md shows what is printed today."""

import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.models
def test_the_page_of_printed_models_is_up_to_date():
    script = runpy.run_path(str(ROOT / "examples" / "print_models.py"))
    assert (ROOT / "docs" / "examples.md").read_text(encoding="utf-8") == script["document"]()
