"""A profile as files: which there are, that each ends its last line, and what only they have."""

from __future__ import annotations

import json

from flopcallback.reporting import html_page, markdown_modules, markdown_operators, plain_table, report_files


def test_a_profile_has_four_files_of_whole_lines(lenet):
    files = dict(report_files(lenet, 7))
    assert list(files) == [".json", ".html", ".txt", ".md"]
    assert all(text.endswith("\n") and not text.endswith("\n\n") for text in files.values())
    assert json.loads(files[".json"])["forward_flops"] == lenet.forward_flops
    assert files[".html"] == html_page(lenet) + "\n"
    assert files[".txt"] == plain_table(lenet) + "\n"


def test_markdown_says_which_step_it_is_of(lenet):
    ((suffix, text),) = report_files(lenet, 7, suffixes=[".md"])
    assert suffix == ".md"
    modules, operators = markdown_modules(lenet), markdown_operators(lenet)
    assert text == f"# LeNet at step 7\n\n{modules}\n\n## Operators\n\n{operators}\n"


def test_files_are_made_in_the_order_and_the_number_asked_for(lenet):
    assert [suffix for suffix, _ in report_files(lenet, suffixes=(".html", ".json"))] == [".html", ".json"]
