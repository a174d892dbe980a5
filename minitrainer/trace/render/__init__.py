"""Ways to look at a trace: terminal, Markdown, JSON lines, Perfetto, counts, and a view while it is recorded.

Everything here reads typed records one at a time and keeps only what it still has to write, so that a trace of a
million rows needs no more memory than its tree of unlike steps.
"""

# Read next: escape.py, without which nothing that a trace holds may be shown.
