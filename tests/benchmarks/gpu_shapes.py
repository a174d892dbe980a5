"""Which batches are measured in which precision: the words of `--shapes`."""

from __future__ import annotations


def shapes_of(words: list[str] | None, precisions: list[str], usual: dict[str, list[str]]) -> dict[str, list[str]]:
    """Shapes of each precision, SAMPLESxTOKENS a card and step; a precision without any is left out.

    Args:
        words: `64x512` is for every precision, `bf16=64x512` for one; None, for the usual ones.
        precisions: those to be measured.
        usual: shapes of each precision there is.

    Raises:
        SystemExit: a word is neither.
    """
    if words is None:
        return {precision: usual[precision] for precision in precisions}
    found: dict[str, list[str]] = {precision: [] for precision in precisions}
    for word in words:
        precision, _, shape = word.rpartition("=")
        if precision not in ("", *found):
            raise SystemExit(f"--shapes {word}: {precision} is none of {', '.join(found)}")
        sizes_of(shape)
        for name in [precision] if precision else found:
            found[name].append(shape)
    return {precision: shapes for precision, shapes in found.items() if shapes}


def sizes_of(shape: str) -> tuple[int, int]:
    """Samples and tokens.

    Raises:
        SystemExit: the shape is not two numbers with an x between them.
    """
    samples, _, tokens = shape.partition("x")
    if not (samples.isdecimal() and tokens.isdecimal()):
        raise SystemExit(f"--shapes: {shape!r} is not SAMPLESxTOKENS, as in 64x512")
    return int(samples), int(tokens)


# Read next: gpu_speed.py
