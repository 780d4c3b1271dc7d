"""Convert matplotlib's SVG so that it can stand in the page itself.

The page's content security policy forbids inline styles, and its colors follow the reader's choice
of light or dark: styles become attributes, and colors variables of `style.css`.
"""

import re

from markupsafe import Markup

from reporting.charts import GRID, INK, MUTED, PALETTE, TOOLTIP

_VARIABLES = {
    **{color: f"var(--s{index})" for index, color in enumerate(PALETTE)},
    INK: "var(--ink)", MUTED: "var(--muted)", GRID: "var(--rule)",
}  # fmt: skip
_DROPPED = re.compile(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", re.DOTALL)
_STYLE = re.compile(r' style="([^"]*)"')
_GROUP = re.compile(r"""<g id=("[^"]*"|'[^']*')""")


def inline_svg(source: str, title: str) -> Markup:
    """Convert an SVG document to an element of an HTML page.

    Args:
        source: A document written by matplotlib with `svg.fonttype: none`.
        title: The title of the chart.

    Returns:
        The `<svg>` element; all texts in it are escaped.
    """
    body = source[source.index("<svg") :]
    body = _DROPPED.sub("", body)
    body = _STYLE.sub(lambda match: _to_attributes(match[1]), body)
    body = _GROUP.sub(_to_tooltip, body)
    _, _, box = body.partition(' viewBox="')
    head = Markup('<svg role="img" aria-label="{}" viewBox="{}">').format(
        title, box.partition('"')[0]
    )
    inside = re.sub(r">\s+<", "><", body[body.index(">") + 1 :])
    return head + Markup(inside)  # noqa: S704 - written and escaped by matplotlib


def _to_attributes(style: str) -> str:
    """Turn the declarations of a style into attributes of the same meaning."""
    attributes = []
    for declaration in style.split("; "):
        name, _, value = declaration.partition(": ")
        if name != "font-family":  # the page's own
            attributes.append(f' {name}="{_VARIABLES.get(value, value)}"')
    return "".join(attributes)


def _to_tooltip(match: re.Match[str]) -> str:
    """Drop the id of a group, which is not unique in a page, or turn it into its tooltip."""
    name = match[1][1:-1]
    text = name.removeprefix(TOOLTIP)
    return "<g" if text == name else f"<g><title>{text}</title"
