"""The jinja2 environment of both pages, with their scripts and styles."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jinja2 import Template

__all__ = ["template"]


@cache
def template(name: str) -> Template:
    """Load a template from `templates/`, which may include files of `static/`."""
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    # A name that is missing raises, instead of leaving a hole in the page.
    environment = Environment(
        loader=ChoiceLoader([PackageLoader(__package__, "templates"), PackageLoader(__package__, "static")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    # `tojson` also escapes what would end a script element.
    environment.policies["json.dumps_kwargs"] = {"separators": (",", ":"), "allow_nan": False}
    return environment.get_template(name)
