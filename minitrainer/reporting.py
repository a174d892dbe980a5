"""Reporting: what a script prints and saves once training, evaluation or prediction is over.

Nothing in the Trainer calls these four; the example scripts do. They act on world rank 0 only.
"""

from __future__ import annotations

import json
import os
from typing import Any

from .attributes import Attributes
from .parts.checkpoints import TRAINER_STATE_NAME
from .parts.metrics import _secs2timedelta


class ReportingMixin(Attributes):
    """Needs `args.output_dir`, the state, and `is_world_process_zero`.

    You get: a table of metrics on the terminal, the same as JSON files, and the state as a JSON file.
    """

    def log_metrics(self, split: str, metrics: dict[str, Any]) -> None:
        """Print the metrics of one split as an aligned table, in alphabetical order.

        Despite its name it has nothing to do with `log`: nothing goes into `log_history` or to a reporter.

        Memory figures (with `skip_memory_metrics=False` and psutil installed) come for each stage (`init`, `train`,
        `eval`, `test`) and each kind (`cpu`: resident set of this process; `gpu`: what torch allocated on device 0):
        `alloc_delta` is what the stage kept, negative if it gave memory back; `peaked_delta` is what it needed beyond
        that for a while. The sum of the two is what the stage needed. The CPU's peak is sampled by a thread and may
        be missed. Stages do not nest: an evaluation within `train` counts as part of `train`.

        Args:
            split: the heading, such as `train`, `eval` or `predict`.
            metrics: what `train`, `evaluate` or `predict` returned.

        Raises:
            ValueError: if `metrics` is empty.

        Source: trainer_pt_utils.py 898-985
        """
        if not self.is_world_process_zero():
            return
        print(f"***** {split} metrics *****")
        formatted = self.metrics_format(metrics)
        key_width = max(len(str(key)) for key in formatted)
        value_width = max(len(str(value)) for value in formatted.values())
        for key in sorted(formatted):
            print(f"  {key:<{key_width}} = {formatted[key]:>{value_width}}")

    def metrics_format(self, metrics: dict[str, Any]) -> dict[str, Any]:
        """Make metrics readable: bytes as MB, seconds as h:mm:ss.cc, operations as GF, floats with four digits.

        Override it to print units of your own.

        Args:
            metrics: any metrics; not changed.

        Returns:
            A copy, with `_mem_` values in units of 2**20 bytes, `_runtime` values as text, `total_flos` in units of
            2**30, and Python floats rounded. **Beware:** numpy's floats are left as they are.

        Source: trainer_pt_utils.py 872-895
        """
        formatted = metrics.copy()
        for key, value in metrics.items():
            if "_mem_" in key:
                formatted[key] = f"{value >> 20}MB"
            elif "_runtime" in key:
                formatted[key] = _secs2timedelta(value)
            elif key == "total_flos":
                formatted[key] = f"{int(value) >> 30}GF"
            elif type(value) is float:  # not isinstance: np.float64 is a float too, and is not rounded
                formatted[key] = round(value, 4)
        return formatted

    def save_metrics(self, split: str, metrics: dict[str, Any], combined: bool = True) -> None:
        """Write metrics to `<split>_results.json`, and add them to `all_results.json`.

        Args:
            split: the first part of the file's name, such as `train`, `eval` or `test`.
            metrics: the numbers as returned, not formatted.
            combined: also merge them into `all_results.json`, where a metric of the same name is replaced.

        Source: trainer_pt_utils.py 988-1023
        """
        if not self.is_world_process_zero():
            return
        _write_json(os.path.join(self.args.output_dir, f"{split}_results.json"), metrics)
        if not combined:
            return
        path = os.path.join(self.args.output_dir, "all_results.json")
        all_metrics = {}
        if os.path.exists(path):
            with open(path) as file:
                all_metrics = json.load(file)
        all_metrics.update(metrics)
        _write_json(path, all_metrics)

    def save_state(self) -> None:
        """Write the state to `output_dir/trainer_state.json`, beside a model saved with `save_model`.

        Checkpoints hold a copy of their own; this is the final one, with the summary of the whole run.

        Source: trainer_pt_utils.py 1026-1036
        """
        if self.is_world_process_zero():
            self.state.save_to_json(os.path.join(self.args.output_dir, TRAINER_STATE_NAME))


def _write_json(path: str, content: dict[str, Any]) -> None:
    with open(path, "w") as file:
        json.dump(content, file, indent=4, sort_keys=True)


# Read next: search.py
