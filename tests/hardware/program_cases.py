"""Which stand-in a case needs, in which version, and with which environment."""

from __future__ import annotations

import torch

SAGEMAKER = {
    "SM_HP_MP_PARAMETERS": '{"partitions": 1}',
    "SM_FRAMEWORK_PARAMS": '{"sagemaker_mpi_enabled": true}',
}
TORCH_RELEASE = ".".join(torch.__version__.split(".")[:2])

# Name of the package, its version, more of the environment, and the cases that run in one process with it.
STAND_INS: list[tuple[str, str, dict[str, str], list[str]]] = [
    ("apex", "0.1", {}, ["apex", "apex_fused"]),
    ("intel_extension_for_pytorch", f"{TORCH_RELEASE}.0", {}, ["ipex"]),
    ("smdistributed", "1.9", {**SAGEMAKER, "STAND_IN_SMP_VERSION": "1.9.0"}, ["sagemaker_old"]),
    ("smdistributed", "1.15", SAGEMAKER, ["sagemaker"]),
    ("torch_xla", "2.0", {}, ["tpu", "tpu_debug", "tpu_syncfree"]),
    ("torchdistx", "0.2", {}, ["anyprecision"]),
    (
        "bitsandbytes",
        "0.41",
        {},
        [
            *("bnb_adamw_bnb_8bit", "bnb_adamw_8bit", "bnb_lion_8bit", "bnb_lion_32bit"),
            *("bnb_paged_adamw_32bit", "bnb_paged_adamw_8bit", "bnb_paged_lion_32bit", "bnb_paged_lion_8bit"),
        ],
    ),
]

# Read next: program.py
