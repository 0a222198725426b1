"""A profile as files: JSON, HTML, plain text and Markdown."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from flopcallback.reporting.page.page import html_page
from flopcallback.reporting.text.markdown import markdown_modules, markdown_operators
from flopcallback.reporting.text.table import plain_table

if TYPE_CHECKING:
    from flopcallback.profile.model_profile import ModelProfile

__all__ = ["report_files", "write_file"]


def report_files(
    profile: ModelProfile, step: int = 0, *, suffixes: Iterable[str] | None = None
) -> Iterator[tuple[str, str]]:
    """Yield suffix and text of each file of a profile.

    Each text is made when it is asked for, and ends with a line break.

    Args:
        profile: profile to write.
        step: training step for the title of the Markdown.
        suffixes: suffixes of the wanted files; by default `.json`, `.html`, `.txt` and `.md`.
    """
    for suffix in _WRITERS if suffixes is None else suffixes:
        yield suffix, _WRITERS[suffix](profile, step) + "\n"


def write_file(path: Path, text: str) -> None:
    """Write a text file as a whole, or leave it as it was.

    Whoever reads it meanwhile, or after the disk was full or the process was killed, finds the old text or the new one.
    Line ends are written as they are; half of a surrogate pair, as a broken file name has, is written as an escape.

    Raises:
        OSError: it cannot be written.
    """
    path = path.resolve()  # a link stays a link
    if path.exists() and not path.is_file():  # a pipe or a terminal
        path.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
        return
    # Beside the file, since it cannot be renamed across file systems; of this process, since others may write it, too.
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)  # it is there if writing failed


def _markdown(profile: ModelProfile, step: int) -> str:
    title = f"# {profile.name} at step {step}"
    return "\n\n".join([title, markdown_modules(profile), "## Operators", markdown_operators(profile)])


_WRITERS: Mapping[str, Callable[[ModelProfile, int], str]] = {
    ".json": lambda profile, _: profile.to_json(indent=1),
    ".html": lambda profile, _: html_page(profile),
    ".txt": lambda profile, _: plain_table(profile),
    ".md": _markdown,
}
