"""A report in Markdown → one HTML file that holds its pictures and needs nothing else."""

from __future__ import annotations

import base64
import html
import re
from pathlib import Path

from MedZeroSegLib.errors import InstallationError
from MedZeroSegLib.writers import replacing

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, sans-serif; color: #1c1c1c; max-width: 1180px; margin: 2rem auto; padding: 0 1.2rem; }
h1 { font-size: 1.6rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; border-bottom: 1px solid #ddd; }
code { background: #f3f3f3; padding: 0 .25em; border-radius: 3px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: 13.5px; }
th, td { padding: .28rem .6rem; border-bottom: 1px solid #e4e4e4; text-align: left; vertical-align: top; }
th { background: #f6f7f9; } tr:hover td { background: #fafbff; }
img { max-width: min(100%, 820px); height: auto; }
ol { font-size: 13px; color: #444; }
"""
NOTE = "For research; every result has to be reviewed by a qualified person."


def write_page(text: str, folder: Path, path: Path) -> Path:
    """Write the page of a report.

    Parameters
    ----------
    text
        Markdown whose first line is its heading.
    folder
        Where the pictures lie that the text names.

    Raises
    ------
    InputError, InstallationError
        When the page can't be written, or markdown-it-py is missing.
    """
    try:
        from markdown_it import MarkdownIt
    except ImportError as problem:
        raise InstallationError("The page needs markdown-it-py; `pip install markdown-it-py`.") from problem
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    body = body.replace("<table>", '<div class="wide"><table>').replace("</table>", "</table></div>")
    body = re.sub(r'src="([^":]+)"', lambda found: f'src="{_embedded(folder / found[1])}"', body)
    title = html.escape(text.partition("\n")[0].lstrip("# ").replace("`", ""))
    page = (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head>\n<body>\n{body}<hr><p>{NOTE}</p>\n</body></html>\n"
    )
    with replacing(path) as file:
        file.write(page.encode("utf-8"))
    return path


def _embedded(picture: Path) -> str:
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode()
