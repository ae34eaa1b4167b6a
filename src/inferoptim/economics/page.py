"""The frame of this package's own HTML pages: one file, both colour schemes, no network."""

from __future__ import annotations

import html

BASE_STYLE = """
:root{color-scheme:light dark;--bg:#fbfaf8;--card:#fff;--ink:#1d2129;--muted:#667080;--line:#e2e0da;--accent:#2456a6;
--before:#a9a397;--after:#2456a6;--good:#1d7a4b;--warn:#8f6400;--bad:#b3261e}
@media(prefers-color-scheme:dark){:root{--bg:#14171c;--card:#1b1f26;--ink:#e7e9ec;--muted:#98a2b0;--line:#2d333d;
--accent:#86b1f5;--before:#6c7480;--after:#86b1f5;--good:#6cc795;--warn:#e0b457;--bad:#f0938c}}
*{box-sizing:border-box}
body{margin:0;background:var(--bg);color:var(--ink);font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:68rem;margin:0 auto;padding:2rem 1.25rem 4rem}
h1{font-size:1.6rem;line-height:1.25;margin:0 0 .5rem}h2{font-size:1.05rem;margin:0 0 .75rem}
a{color:var(--accent)}
"""


def escape(text: object) -> str:
    """Text made safe for HTML."""
    return html.escape(str(text))


def document(title: str, body: str, style: str, script: str = "", lang: str = "en", head: str = "") -> str:
    """A whole page. `body`, `style`, `script` and `head` are trusted; escape what comes from users before."""
    code = f"<script>{script}</script>" if script else ""
    return (
        f'<!doctype html>\n<html lang="{lang}"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"{head}<title>{escape(title)}</title><style>{BASE_STYLE}{style}</style></head><body>{body}{code}</body></html>\n"
    )
