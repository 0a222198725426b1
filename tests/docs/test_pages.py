"""README.md and docs/ hold what they say: code runs and prints what stands behind it, links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

import forked
import pytest
import run_blocks
from run_blocks import blocks_of

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
ALL_PAGES = [*PAGES, *sorted(ROOT.glob("benchmarks/*.md")), ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]


def markers_of(page: Path) -> frozenset[str]:
    return frozenset().union(*(block.markers for block in blocks_of(page.read_text(encoding="utf-8"))))


def run(page, *markers, folder):
    return forked.run(Path(run_blocks.__file__), page, *markers, folder=folder)


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.mark.slow
@pytest.mark.parametrize("page", [page for page in PAGES if blocks_of(page.read_text(encoding="utf-8"))], ids=named)
def test_the_python_blocks_of_a_page_run(page, tmp_path):
    ran = run(page, folder=tmp_path)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=[getattr(pytest.mark, marker) for marker in sorted(markers_of(page))], id=named(page))
        for page in PAGES
        if markers_of(page)
    ],
)
def test_the_python_blocks_that_need_other_packages_run(page, tmp_path):
    ran = run(page, *markers_of(page), folder=tmp_path)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "complaint"),
    [
        ("print(1 + 1)  # 3", "page.md:2 prints\n2\nand says\n3"),
        ("raise ValueError('so')", "ValueError: so"),
    ],
)
def test_the_check_of_blocks_can_fail(tmp_path, code, complaint):
    page = tmp_path / "page.md"
    page.write_text(f"```python\n{code}\n```\n", encoding="utf-8")
    ran = run(page, folder=tmp_path)
    assert ran.returncode == 1
    assert complaint in ran.stderr


@pytest.mark.slow
def test_a_block_that_needs_a_marker_is_left_out_without_it(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("```python lightning\nraise ValueError\n```\n", encoding="utf-8")
    assert run(page, folder=tmp_path).returncode == 0
    assert run(page, "lightning", folder=tmp_path).returncode == 1


def anchors_of(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    text = re.sub(r"^```.*?^```$|`[^`\n]*`", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        target, _, anchor = link.partition("#")
        file = (page.parent / target).resolve() if target else page
        if "://" in link or link.startswith("mailto:"):
            continue
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in anchors_of(file)):
            broken.append(link)
    return broken


@pytest.mark.parametrize("page", ALL_PAGES, ids=named)
def test_links_between_pages_lead_somewhere(page):
    assert broken_links(page) == []


def test_the_check_of_links_can_fail(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A `title`, here\n[a](page.md#a-title-here) [b](page.md#b) [c](gone.md) [d](#a-title-here)", "utf-8"
    )
    assert broken_links(page) == ["page.md#b", "gone.md"]
