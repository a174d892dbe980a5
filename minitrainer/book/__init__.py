"""What the site needs: chapters bound to the code and to recorded traces, and the checks that keep them true.

    python -m minitrainer.book check                everything that a page states and a run or a file can show
    python -m minitrainer.book check loop.md        one page
    python -m minitrainer.book write                the generated pages

    pages.py        a page as a list of blocks, headings and links
    places.py       a piece of code by its name and phase, with a digest of its tokens
    names.py        every name that a page may use in inline code
    statements.py   claims, answered questions and experiments, each with its proof
    runs.py         executes the blocks of pages and compares what they print; jobs.py is what its child processes do
    tables.py       a recorded trace as HTML: every row can be linked to
    pictures.py     drawings made from the rows of a trace; learning_curve.py draws what two runs logged
    expand.py       one block as HTML
    extension.py    the Python-Markdown extension that puts all this into a page
    generated.py    the pages that are written by a program
    checking.py     the checks, each with a count of what it looked at

The book shows the Trainer and the trace; neither of them knows of the book.
"""

# Read next: pages.py
