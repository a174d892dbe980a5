"""A package index of a few kilobytes, in a folder: wheels that have the names and needs of the real ones, and no code.

pip, the resolver, the folders and the child processes are the real ones; only the packages are small, so that what
goes wrong between them can be brought about without a network and within seconds.
"""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path

TRANSFORMERS = {"__init__.py": "__version__ = {version!r}\nfrom .trainer import Trainer, TrainingArguments\n"}
TRANSFORMERS["trainer.py"] = "class Trainer: pass\nclass TrainingArguments: pass\n"


def write_wheel(
    index: Path, name: str, version: str, *, needs: tuple[str, ...] = (), files: dict[str, str] | None = None
) -> None:
    """Write one pure Python wheel.

    Args:
        index: the folder it goes to.
        name: its name, with underscores, which is also its module's.
        version: its version.
        needs: its `Requires-Dist` lines.
        files: the module's files and their text; one empty `__init__.py` by default.
    """
    info = f"{name}-{version}.dist-info"
    metadata = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
    contents = {f"{name}/{file}": text for file, text in (files or {"__init__.py": ""}).items()}
    contents[f"{info}/METADATA"] = metadata + "".join(f"Requires-Dist: {need}\n" for need in needs)
    contents[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: tests\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    contents[f"{info}/RECORD"] = "".join(f"{file},,\n" for file in [*contents, f"{info}/RECORD"])
    with zipfile.ZipFile(index / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for file, text in contents.items():
            wheel.writestr(file, text)


def write_transformers(index: Path, version: str, *, tokenizers: str = ">=0.22.0,<=0.23.0") -> None:
    """Write a transformers that asks for a few of the real one's companions."""
    files = {file: text.replace("{version!r}", repr(version)) for file, text in TRANSFORMERS.items()}
    needs = ("filelock", "numpy>=1.17", "huggingface-hub<1.0,>=0.34.0", f"tokenizers{tokenizers}", "tqdm>=4.27")
    write_wheel(index, "transformers", version, needs=needs, files=files)


def write_small_index(index: Path) -> None:
    """Fill a folder with some transformers and what they need, and with a torch that must never be taken."""
    index.mkdir(parents=True, exist_ok=True)
    write_transformers(index, "4.56.1")
    write_transformers(index, "4.56.2")
    write_transformers(index, "4.33.3", tokenizers="<0.14,>=0.11.1")
    for accelerate in ("0.21.0", "1.10.1"):
        write_wheel(index, "accelerate", accelerate, needs=("numpy>=1.17", "psutil", "torch>=1.10.0"))
    write_wheel(index, "tokenizers", "0.22.2", needs=("huggingface-hub<2.0,>=0.16.4",))
    write_wheel(index, "huggingface_hub", "0.36.2", needs=("filelock", "tqdm>=4.42.1", "typing-extensions>=3.7.4.3"))
    write_wheel(index, "datasets", "5.0.1", needs=("numpy>=1.17", "huggingface-hub<2.0,>=0.25.0", "tqdm>=4.66.3"))
    # Newer than any that is installed: a resolver that hears of torch would want these.
    write_wheel(index, "torch", "999.0", needs=("nvidia-cublas", "triton"))
    for name in ("nvidia_cublas", "triton", "filelock", "typing_extensions"):
        write_wheel(index, name, "999.0")
    write_wheel(index, "psutil", "7.2.2")
    write_wheel(index, "tqdm", "4.70.1")
    write_wheel(index, "numpy", "2.4.6")


def only_this_index(index: Path) -> dict[str, str]:
    """Return the variables with which pip sees this index and nothing else."""
    nothing = "NUL" if sys.platform == "win32" else "/dev/null"
    return {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(index), "PIP_CONFIG_FILE": nothing}


# Read next: test_small_index.py
