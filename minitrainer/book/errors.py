"""The one error of a page: where it stands and what to write instead."""

from __future__ import annotations


class BookError(Exception):
    """Something on a page that can't be shown or is no longer true; one line that says what to do about it."""


# Read next: pages.py
