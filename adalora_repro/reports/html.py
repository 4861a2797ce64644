"""Jinja2 templates of the reports. Every value that a template prints is made harmless and escaped."""

from __future__ import annotations

from functools import cache
from typing import Any

from adalora_repro.errors import clean


@cache
def environment() -> Any:
    """Templates of ``reports/templates``; control characters in a text become question marks before it is escaped."""
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    def harmless(value: Any) -> Any:
        return value if isinstance(value, Markup) else clean(str(value))

    return Environment(
        loader=PackageLoader("adalora_repro.reports"),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=harmless,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def render(template: str, **values: Any) -> str:
    return str(environment().get_template(template).render(**values))


def markup(html: str) -> Any:
    """``html`` as it is, for a template that would otherwise escape it."""
    from markupsafe import Markup

    return Markup(html)
