"""Makes text from a trace safe to show.

A trace comes from anywhere: a class may be named `[red]`, a log key may hold an escape sequence that rewrites the
terminal's title, a file name may hold HTML. Whatever stands in a record passes through this file on its way out.
"""

from __future__ import annotations

import re

# What may not reach a terminal or a page as it is: control characters (C0, DEL, C1), line and paragraph separators,
# characters that turn the direction of the text or are invisible, and halves of surrogate pairs.
_UNPRINTABLE = re.compile(
    "[\x00-\x1f\x7f-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\ud800-\udfff\U000e0000-\U000e007f]"
)

# What any dialect of Markdown could read as markup, as HTML, or as an address to be made a link of. The last ones only
# where they follow their like (==marked==) or stand in an address.
_MARKUP = re.compile(r"""[\\`*_{}\[\]<>#|~$^!&"'@]|(?<=[=+-])[=+-]|(?<=:)/|(?<=www)\.""")

# What can stand between backticks as it is, in every dialect, in a table as well.
_PLAIN_CODE = re.compile(r"[\w .,:;/()+=?*#%@\[\]→←÷×–…'-]+")

LONGEST_TEXT = 300
"""Characters of one text that are shown; a trace may hold a megabyte in one name."""


def printable(text: object, longest: int = LONGEST_TEXT) -> str:
    r"""Return `text` on one line, with unprintable characters written as escapes (`\x1b`) and an ellipsis if cut."""
    shown = text if isinstance(text, str) else str(text)
    if len(shown) > longest:
        shown = shown[: longest - 1] + "…"
    if shown.isascii() and shown.isprintable():
        return shown
    return _UNPRINTABLE.sub(_escape, shown)


def _escape(match: re.Match[str]) -> str:
    code = ord(match[0])
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"


def markdown(text: object, longest: int = LONGEST_TEXT) -> str:
    """Return `text` for a paragraph or a table cell of a Markdown page, markup written as entities: it is read as text
    by every dialect, whatever extensions are switched on."""
    return _MARKUP.sub(lambda match: f"&#{ord(match[0])};", printable(text, longest))


def code(text: object) -> str:
    """Return a name for a Markdown page: between backticks, or, where that is not safe, as `markdown` gives it."""
    shown = printable(text)
    return f"`{shown}`" if _PLAIN_CODE.fullmatch(shown) and shown.strip() == shown else markdown(text)


def html(text: object, longest: int = LONGEST_TEXT) -> str:
    """Return `text` for HTML, element content and quoted attributes alike."""
    shown = printable(text, longest).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return shown.replace('"', "&quot;").replace("'", "&#39;")


# Read next: words.py, which puts each record into words.
