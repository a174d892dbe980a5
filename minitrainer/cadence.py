"""What happens between steps: log, evaluate, save, each when its flag is up. And the averages that a log shows.

The flags are raised by callbacks (`DefaultFlowCallback`, at the ends of steps and epochs) and lowered by the handler.
"""

from typing import Any

import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau

from . import compat
from .attributes import Attributes
from .parts.choices import ParallelMode
from .parts.gathering import distributed_broadcast_scalars
from .parts.logs import get_logger

logger = get_logger(__name__)


class CadenceMixin(Attributes):
    """Acts on the flags.

    Requires: `control`, `state`, `callback_handler`, and the books of the loss that loop.py opens.
    You get: log entries, evaluations and checkpoints at their time, and the count of floating-point operations.
    """

    def _maybe_log_save_evaluate(self, tr_loss, model, trial, epoch, ignore_keys_for_eval):
        """Log, then evaluate, then save: each if its flag is up. Called after every step and after every epoch.

        **Beware:** the logged loss is a mean of means. A micro-batch counts the same whether it is full or not, a
        rank counts the same however many samples it has, and a log after an epoch may divide by steps while the sum
        holds micro-batches of a step that is not done yet. It is rounded to four places, `train_loss` is not.

        Args:
            tr_loss: the sum of micro-batch losses since the last log, 0-dim, on the device. A log sets it to zero.
            model: the model as wrapped for training.
            trial: the trial of a hyperparameter search, or None.
            epoch: the number of the epoch; unused, as upstream.
            ignore_keys_for_eval: keys of the model's output that the evaluation leaves out.

        Raises:
            KeyError: if the scheduler waits for a metric that no evaluation returned.

        Writes: _total_loss_scalar, _globalstep_last_logged, control
        Events: on_save
        Source: trainer.py 2192-2238
        """
        # -- log ---------------------------------------------------------------------------------------
        if self.control.should_log:
            if compat.is_torch_tpu_available():
                compat.xla_model().mark_step()  # run what is queued, or reading the sum would compile it anew
            # One number a rank, then their mean; `item` waits for the device.
            loss_sum = self._nested_gather(tr_loss).mean().item()
            tr_loss -= tr_loss  # zero, in place: loop.py goes on adding to this very tensor. NaN stays NaN.
            steps_since_log = self.state.global_step - self._globalstep_last_logged
            logs = {"loss": round(loss_sum / steps_since_log, 4), "learning_rate": self._get_learning_rate()}
            self._total_loss_scalar += loss_sum
            self._globalstep_last_logged = self.state.global_step
            self.store_flos()
            self.log(logs)

        # -- evaluate ------------------------------------------------------------------------------------
        metrics = None
        if self.control.should_evaluate:
            if isinstance(self.eval_dataset, dict):
                metrics = {}
                for name, dataset in self.eval_dataset.items():
                    prefix = f"eval_{name}"
                    metrics.update(
                        self.evaluate(eval_dataset=dataset, ignore_keys=ignore_keys_for_eval, metric_key_prefix=prefix)
                    )
            else:
                metrics = self.evaluate(ignore_keys=ignore_keys_for_eval)
            self._report_to_hp_search(trial, self.state.global_step, metrics)
            if isinstance(self.lr_scheduler, ReduceLROnPlateau):
                self.lr_scheduler.step(self._metric_for_scheduler(metrics))

        # -- save ----------------------------------------------------------------------------------------
        if self.control.should_save:
            self._save_checkpoint(model, trial, metrics=metrics)
            self.control = self.callback_handler.on_save(self.args, self.state, self.control)

    def _get_learning_rate(self):
        """Read the learning rate for the log.

        **Beware:** it is that of the *next* update, because the scheduler has already stepped; and of the first group
        of parameters only.

        Returns:
            The learning rate, a float; 0 while DeepSpeed's loss scaler has not let the scheduler start.

        Source: trainer_pt_utils.py 840-860
        """
        if self.is_deepspeed_enabled:
            try:
                rate = self.lr_scheduler.get_last_lr()[0]
            except AssertionError as error:
                if "need to call step" not in str(error):
                    raise
                logger.warning(
                    "no learning rate yet: DeepSpeed's scheduler/optimizer have not made a step; 0 is logged"
                )
                rate = 0
        elif isinstance(self.lr_scheduler, ReduceLROnPlateau):
            rate = self.optimizer.param_groups[0]["lr"]  # before torch 2.2 it has no last rate before its first step
        else:
            rate = self.lr_scheduler.get_last_lr()[0]
        return rate.item() if torch.is_tensor(rate) else rate

    def _metric_for_scheduler(self, metrics: dict[str, float]) -> float:
        """Pick the metric that a `ReduceLROnPlateau` watches.

        Source: trainer.py 2231-2234
        """
        name = self.args.metric_for_best_model
        name = name if name.startswith("eval_") else f"eval_{name}"
        if name not in metrics:
            raise KeyError(
                f"{name}: `metric_for_best_model` names a metric that the evaluation did not return. It returned: "
                + ", ".join(sorted(metrics))
            )
        return metrics[name]

    def log(self, logs: dict[str, float]) -> None:
        """Add the epoch, append to the history, and tell the callbacks.

        Override to add values of your own to every log.

        Args:
            logs: name to value. `epoch`, rounded to two places, is added to this very dict.

        Writes: control
        Events: on_log
        Source: trainer.py 2555-2570
        """
        if self.state.epoch is not None:
            logs["epoch"] = round(self.state.epoch, 2)
        self.state.log_history.append({**logs, "step": self.state.global_step})
        self.control = self.callback_handler.on_log(self.args, self.state, self.control, logs)

    def store_flos(self):
        """Move the floating-point operations counted since the last call into the state, summed over ranks.

        Writes: state.total_flos, current_flos
        Source: trainer.py 2837-2846
        """
        counted = self.current_flos
        if self.args.parallel_mode == ParallelMode.DISTRIBUTED:
            # Despite its name the function gathers: one number a rank. In float32: a count above 2**24 is rounded.
            counted = distributed_broadcast_scalars([counted], device=self.args.device).sum().item()
        self.state.total_flos += counted
        self.current_flos = 0

    def floating_point_ops(self, inputs: dict[str, torch.Tensor | Any]):
        """Estimate the operations of one forward and backward.

        Override for a model that is neither from transformers nor has a `floating_point_ops` of its own.

        Args:
            inputs: the batch.

        Returns:
            The model's estimate, or 0 if it makes none.

        Source: trainer.py 3365-3381
        """
        model: Any = self.model
        return model.floating_point_ops(inputs) if hasattr(model, "floating_point_ops") else 0


# Read next: evaluation.py
