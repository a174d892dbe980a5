"""Progress in a notebook: a bar, and below it a table of losses that grows with every log or evaluation.

Only imported where a notebook runs, because it needs IPython.
"""

import re
import time
from typing import Any

from IPython import display

from .callbacks import TrainerCallback
from .parts.choices import IntervalStrategy
from .parts.inspection import has_length


class NotebookProgressCallback(TrainerCallback):
    """Shows training and evaluation in one notebook cell.

    **Beware:** its bar counts one step too many until training ends, as upstream's does; and it removes runtimes,
    throughputs and the epoch from the metrics that later callbacks get.

    Source: utils/notebook.py 267-360.
    """

    def __init__(self) -> None:
        self.training_tracker: Any = None  # a NotebookTrainingTracker while training is under way
        self.prediction_bar: NotebookProgressBar | None = None
        self._force_next_update = False  # draw at the next step even if the last drawing is recent

    def on_train_begin(self, args, state, control, **kwargs):
        """Open the bar, and choose the table's columns."""
        evaluation = args.evaluation_strategy
        self.first_column = "Epoch" if evaluation == IntervalStrategy.EPOCH else "Step"
        self.training_loss = self.last_log = 0
        columns = [self.first_column, "Training Loss"]
        if evaluation != IntervalStrategy.NO:
            columns += ["Validation Loss"]
        self.training_tracker = NotebookTrainingTracker(state.max_steps, columns)

    def on_step_end(self, args, state, control, **kwargs):
        """Move the bar, and say which epoch it is."""
        epoch = int(state.epoch) if state.epoch == int(state.epoch) else f"{state.epoch:.2f}"
        comment = f"Epoch {epoch}/{state.num_train_epochs}"
        self.training_tracker.update(state.global_step + 1, self._force_next_update, comment)
        self._force_next_update = False

    def on_prediction_step(self, args, state, control, eval_dataloader=None, **kwargs):
        """Move the second bar by one batch; open it at the first, below the table if training is under way."""
        if not has_length(eval_dataloader):
            return
        if self.prediction_bar is None:
            open_bar = NotebookProgressBar if self.training_tracker is None else self.training_tracker.add_child
            self.prediction_bar = open_bar(len(eval_dataloader))
            self.prediction_bar.update(1)
        else:
            self.prediction_bar.update(self.prediction_bar.value + 1)

    def on_predict(self, args, state, control, metrics=None, **kwargs):
        """Close the second bar."""
        if self.prediction_bar is not None:
            self.prediction_bar.close()
        self.prediction_bar = None

    def on_log(self, args, state, control, logs=None, **kwargs):
        """Add a row, but only in runs without evaluations: otherwise `on_evaluate` adds it."""
        if args.evaluation_strategy == IntervalStrategy.NO and "loss" in logs:
            self.training_tracker.write_line({"Training Loss": logs["loss"], "Step": state.global_step})

    def on_evaluate(self, args, state, control, metrics=None, **kwargs):
        """Add a row with the last training loss and all metrics, and close the second bar."""
        if self.training_tracker is None:
            return
        losses = [log["loss"] for log in state.log_history if "loss" in log]
        row: dict[str, Any] = {"Training Loss": losses[-1] if losses else "No log", "Validation Loss": "No log"}
        row[self.first_column] = int(state.epoch) if self.first_column == "Epoch" else state.global_step

        # With several evaluation sets the prefix is eval_<set>; the name of the loss tells it.
        prefix = "eval"
        for name in metrics:
            prefix = re.sub(r"_loss$", "", name) if name.endswith("_loss") else prefix
        for suffix in ("runtime", "samples_per_second", "steps_per_second", "jit_compilation_time"):
            metrics.pop(f"{prefix}_{suffix}", None)
        metrics.pop("total_flos", None)
        metrics.pop("epoch", None)
        for name, value in metrics.items():
            words = [word.capitalize() for word in name.split("_")[1:]]
            row["Validation Loss" if name == f"{prefix}_loss" else " ".join(words)] = value

        self.training_tracker.write_line(row)
        self.training_tracker.remove_child()
        self.prediction_bar = None
        self._force_next_update = True  # the evaluation took long, and the bar still shows the time before it

    def on_train_end(self, args, state, control, **kwargs):
        """Draw the bar a last time."""
        comment = f"Epoch {int(state.epoch)}/{state.num_train_epochs}"
        self.training_tracker.update(state.global_step, comment=comment, force_update=True)
        self.training_tracker = None


# -- the bar ---


class NotebookProgressBar:
    """A bar with elapsed and remaining time, drawn again about five times a second.

    Args:
        total: the value at which it is full.
        prefix: text before it.
        leave: keep it when it is full.
        parent: whoever draws it; without one it draws itself.
        width: in pixels.

    Source: utils/notebook.py 61-198.
    """

    warmup = 5  # the first so many updates are all drawn
    update_every = 0.2  # seconds between two drawings after that, by estimate: asking the clock costs time too

    def __init__(
        self,
        total: int,
        prefix: str | None = None,
        leave: bool = True,
        parent: "NotebookTrainingTracker | None" = None,
        width: int = 300,
    ):
        self.total, self.width, self.leave, self.parent = total, width, leave, parent
        self.prefix = "" if prefix is None else prefix
        self.last_value: int | None = None
        self.comment: str | None = None
        self.output: Any = None  # what IPython lets us draw into again

    def update(self, value: int, force_update: bool = False, comment: str | None = None) -> None:
        """Move to `value`; draw only if enough time should have passed.

        Args:
            value: 0 to `total`.
            force_update: draw in any case.
            comment: text at the end of the label; stays until it is replaced.
        """
        self.value = value
        if comment is not None:
            self.comment = comment
        if self.last_value is None:
            self._first_update(value)
        elif value > self.last_value or force_update:
            is_time = self.first_calls > 0 or value >= min(self.last_value + self.wait_for, self.total)
            if is_time or force_update:
                self._timed_update(value)

    def _first_update(self, value: int) -> None:
        """Start the clock."""
        self.start_time = self.last_time = time.time()
        self.start_value = self.last_value = value
        self.elapsed_time: float | None = None
        self.predicted_remaining: float | None = None
        self.first_calls, self.wait_for = self.warmup, 1
        self.update_bar(value)

    def _timed_update(self, value: int) -> None:
        """Draw, and guess from the average time of an item how many of them to let pass before the next drawing."""
        self.first_calls = max(0, self.first_calls - 1)
        self.last_time = time.time()
        self.elapsed_time = self.last_time - self.start_time
        items = value - self.start_value  # 0 after two updates with the first value
        self.average_time_per_item = self.elapsed_time / items if items > 0 else None
        if value >= self.total:
            value, self.predicted_remaining = self.total, None
            if not self.leave:
                self.close()
        elif self.average_time_per_item is not None:
            self.predicted_remaining = self.average_time_per_item * (self.total - value)
        self.update_bar(value)
        self.last_value, self.wait_for = value, 1
        if self.average_time_per_item is not None:
            self.wait_for = max(1, int(self.update_every / self.average_time_per_item))

    def update_bar(self, value: int, comment: str | None = None) -> None:
        """Write the label and draw."""
        counted = f"[{value:>{len(str(self.total))}}/{self.total}"
        if self.elapsed_time is None:
            timed = " : < :"
        elif self.predicted_remaining is None:
            timed = f" {format_time(self.elapsed_time)}"
        else:
            speed = 1 / self.average_time_per_item  # type: ignore[operator]
            remaining = format_time(self.predicted_remaining)
            timed = f" {format_time(self.elapsed_time)} < {remaining}, {speed:.2f} it/s"
        self.label = counted + timed + (f", {self.comment}]" if self.comment else "]")
        self.display()

    def display(self) -> None:
        """Draw, or ask the parent to."""
        self.html_code = html_progress_bar(self.value, self.total, self.prefix, self.label, self.width)
        if self.parent is not None:
            self.parent.display()
        else:
            self._show()

    def _show(self) -> None:
        """Put the HTML into the cell: the first time below it, then in place."""
        html = display.HTML(self.html_code)
        if self.output is None:
            self.output = display.display(html, display_id=True)
        else:
            self.output.update(html)

    def close(self) -> None:
        """Make the bar vanish, unless a parent draws it."""
        if self.output is not None and self.parent is None:
            self.output.update(display.HTML(""))


class NotebookTrainingTracker(NotebookProgressBar):
    """The training bar with its table, and the evaluation's bar below them.

    Args:
        num_steps: the steps of the run.
        column_names: the table's first columns; more may come with the first row.

    Source: utils/notebook.py 201-264.
    """

    def __init__(self, num_steps: int, column_names: list[str] | None = None):
        super().__init__(num_steps)
        # The first row holds the names.
        self.inner_table: list[list[Any]] | None = None if column_names is None else [column_names]
        self.child_bar: NotebookProgressBar | None = None

    def display(self) -> None:
        """Draw all three."""
        self.html_code = html_progress_bar(self.value, self.total, self.prefix, self.label, self.width)
        if self.inner_table is not None:
            self.html_code += text_to_html_table(self.inner_table)
        if self.child_bar is not None:
            self.html_code += self.child_bar.html_code
        self._show()

    def write_line(self, values: dict[str, Any]) -> None:
        """Add a row to the table.

        Args:
            values: one entry a column. The first row may bring new columns.

        Raises:
            KeyError: if a later row lacks a column.
        """
        if self.inner_table is None:
            self.inner_table = [list(values), list(values.values())]
            return
        columns = self.inner_table[0]
        if len(self.inner_table) == 1:
            columns += [name for name in values if name not in columns]
        self.inner_table.append([values[name] for name in columns])

    def add_child(self, total: int, prefix: str | None = None, width: int = 300) -> NotebookProgressBar:
        """Open a bar below the table and return it."""
        self.child_bar = NotebookProgressBar(total, prefix, parent=self, width=width)
        return self.child_bar

    def remove_child(self) -> None:
        """Take that bar away."""
        self.child_bar = None
        self.display()


# -- its HTML ---


def format_time(t: float) -> str:
    """Write seconds as `mm:ss`, or `h:mm:ss` from an hour on.

    Source: utils/notebook.py 26-30.
    """
    minutes, seconds = divmod(int(t), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{seconds:02d}" if hours else f"{minutes:02d}:{seconds:02d}"


def html_progress_bar(value: int, total: int, prefix: str, label: str, width: int = 300) -> str:
    """One bar with the text before and after it.

    Source: utils/notebook.py 33-41.
    """
    style = f"width:{width}px; height:20px; vertical-align: middle;"
    bar = f"<progress value='{value}' max='{total}' style='{style}'></progress>"
    inner = "".join(f"      {line}\n" for line in (prefix, bar, label))
    return f"\n    <div>\n{inner}    </div>\n    "


def text_to_html_table(items: list[list[Any]]) -> str:
    """A table whose first row is the header; floats with six places.

    Source: utils/notebook.py 44-58.
    """
    header, *rows = items
    head = "".join(f"      <th>{name}</th>\n" for name in header)
    body = ""
    for row in rows:
        texts = [f"{cell:.6f}" if isinstance(cell, float) else str(cell) for cell in row]
        body += "    <tr>\n" + "".join(f"      <td>{text}</td>\n" for text in texts) + "    </tr>\n"
    return (
        '<table border="1" class="dataframe">\n  <thead>\n <tr style="text-align: left;">\n'
        f"{head}    </tr>\n  </thead>\n  <tbody>\n{body}  </tbody>\n</table><p>"
    )


# Read next: reporters.py
