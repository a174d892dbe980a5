"""The Hub: a git repository in `output_dir`, pushed while training and at its end.

4.31.0 works through `huggingface_hub.Repository`, a wrapper of the `git` and `git lfs` commands, which huggingface_hub
dropped in 1.0. Where it is gone, everything here that needs it raises an ImportError that says what to install. The
model card needs no repository.
"""

from __future__ import annotations

import os
import shutil
import time
from pathlib import Path
from typing import Any

import torch
from transformers.modelcard import TrainingSummary
from transformers.utils import CONFIG_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_NAME

from . import compat
from .attributes import Attributes
from .parts.checkpoints import TRAINING_ARGS_NAME
from .parts.choices import HubStrategy, IntervalStrategy
from .parts.logs import get_logger

logger = get_logger(__name__)


class HubMixin(Attributes):
    """Needs `args.hub_*`, `args.output_dir`, the state, the tokenizer, `save_model` and `is_world_process_zero`.

    You get: a clone of the model's repository in `output_dir`, pushes while training and after it, and a model card.
    """

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push the model that a checkpoint holds, in the background, while training goes on.

        It copies files instead of saving again, so no gathering between ranks is needed. A push that is still running
        makes this one be left out. **Beware:** sharded weights are not among the files copied, and with
        `hub_strategy="checkpoint"` the checkpoint's folder is called `last-checkpoint` while the push begins; a push
        that fails is an error in the log, and training goes on.

        Args:
            checkpoint_folder: the checkpoint, complete.

        Writes: push_in_progress
        Source: trainer.py 3486-3531
        """
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        if self.push_in_progress is not None and not self.push_in_progress.is_done:
            return

        # -- copy the model up into the repository ---
        output_dir = self.args.output_dir
        file_names = [CONFIG_NAME, WEIGHTS_NAME, SAFE_WEIGHTS_NAME]
        if compat.is_peft_available():
            file_names += ["adapter_config.json", "adapter_model.bin", "adapter_model.safetensors"]
        for file_name in file_names:
            path = os.path.join(checkpoint_folder, file_name)
            if os.path.isfile(path):
                shutil.copy(path, os.path.join(output_dir, file_name))
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(output_dir)  # quick, and its files are of any number
        torch.save(self.args, os.path.join(output_dir, TRAINING_ARGS_NAME))

        # -- push ---
        pushes_checkpoint = self.args.hub_strategy == HubStrategy.CHECKPOINT
        last_checkpoint = os.path.join(output_dir, "last-checkpoint")
        try:
            if pushes_checkpoint:
                # Moving into a folder that exists would put the checkpoint *below* it.
                if os.path.isdir(last_checkpoint):
                    shutil.rmtree(last_checkpoint)
                shutil.move(checkpoint_folder, last_checkpoint)

            if self.args.save_strategy == IntervalStrategy.STEPS:
                progress = f"step {self.state.global_step}"
            else:
                progress = f"epoch {int(self.state.epoch or 0)}"
            push_work = self.repo.push_to_hub(
                commit_message=f"Training in progress, {progress}", blocking=False, auto_lfs_prune=True
            )
            # (url, command in progress), or None where there was nothing to commit
            if push_work is not None:
                self.push_in_progress = push_work[1]
        except Exception as error:
            logger.error(f"Error when pushing to hub: {error}")
        finally:
            if pushes_checkpoint:
                shutil.move(last_checkpoint, checkpoint_folder)

    def push_to_hub(
        self, commit_message: str | None = "End of training", blocking: bool = True, **kwargs: Any
    ) -> str | tuple[str, Any] | None:
        """Save model and tokenizer into the repository and push it, then the model card in a commit of its own.

        All ranks must call it, since saving may gather weights; rank 0 pushes.

        Args:
            commit_message: of the first commit.
            blocking: wait until the push is over; a push in progress is then ended first, and its commits go along.
            kwargs: for `create_model_card`.

        Returns:
            The address of the commit, with a progress object if not `blocking`; None on other ranks and where there
            was nothing to commit.

        Raises:
            ImportError: if huggingface_hub has no `Repository`.

        Writes: push_in_progress
        Source: trainer.py 3533-3587
        """
        if not hasattr(self, "repo"):
            self.init_git_repo()

        model_name = kwargs.pop("model_name", None)
        if model_name is None and self.args.should_save:
            repository = self.args.hub_model_id
            model_name = Path(self.args.output_dir).name if repository is None else repository.split("/")[-1]

        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None

        if blocking and self.push_in_progress is not None and not self.push_in_progress.is_done:
            self.push_in_progress._process.kill()
            self.push_in_progress = None
        commit_url = self.repo.push_to_hub(commit_message=commit_message, blocking=blocking, auto_lfs_prune=True)

        # The card's own commit: a card that the Hub rejects must not take the model with it.
        if self.args.should_save:
            self.create_model_card(model_name=model_name, **kwargs)
            try:
                self.repo.push_to_hub(
                    commit_message="update model card README.md", blocking=blocking, auto_lfs_prune=True
                )
            except OSError as error:
                logger.error(f"The model card was not pushed; the model was. Read the log and push again.\n{error}")
        return commit_url

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write a draft of a model card to `output_dir/README.md`: hyperparameters, log, metrics.

        **Beware:** a card that stands there already is written over, with all that you added.

        Args:
            language: of the model.
            license: of the model; by default that of the pretrained model, if it is from the Hub.
            tags: more tags for its metadata.
            model_name: by default the name of `output_dir`.
            finetuned_from: by default the pretrained model's name on the Hub.
            tasks: names of tasks; by default guessed from the model's class.
            dataset_tags: names of data sets.
            dataset: names of data sets as a reader should see them.
            dataset_args: configurations of the data sets.

        Source: trainer.py 3430-3484
        """
        if not self.is_world_process_zero():
            return
        card = TrainingSummary.from_trainer(
            compat.CardView(self),
            model_name=model_name,
            finetuned_from=finetuned_from,
            language=language,
            license=license,
            tags=tags,
            tasks=tasks,
            dataset=dataset,
            dataset_args=dataset_args,
            dataset_tags=dataset_tags,
        ).to_model_card()
        with open(os.path.join(self.args.output_dir, "README.md"), "w") as file:
            file.write(card)

    def init_git_repo(self, at_init: bool = False) -> None:
        """Create the repository on the Hub if there is none, and clone it into `args.output_dir`.

        **Beware:** with `overwrite_output_dir`, a folder that is not such a clone is *deleted* and cloned afresh, with
        all that was in it. And a message on the terminal aside, nothing tells you that files pulled from the Hub are
        in the folder now.

        Args:
            at_init: True from within `__init__`; only then may the folder be deleted.

        Raises:
            ImportError: if huggingface_hub has no `Repository`.
            OSError: if `output_dir` holds something else, or if git or git-lfs is missing.

        Writes: repo, push_in_progress
        Source: trainer.py 3383-3428
        """
        if not self.is_world_process_zero():
            return
        repository_class = compat.hub_repository_class()
        from huggingface_hub import create_repo

        repo_name = self.args.hub_model_id
        if repo_name is None:
            repo_name = Path(self.args.output_dir).absolute().name
        if "/" not in repo_name:
            repo_name = compat.get_full_repo_name(repo_name, token=self.args.hub_token)

        create_repo(repo_name, token=self.args.hub_token, private=self.args.hub_private_repo, exist_ok=True)
        try:
            self.repo = repository_class(self.args.output_dir, clone_from=repo_name, token=self.args.hub_token)
        except OSError:
            if not (self.args.overwrite_output_dir and at_init):
                raise
            shutil.rmtree(self.args.output_dir)
            self.repo = repository_class(self.args.output_dir, clone_from=repo_name, token=self.args.hub_token)
        self.repo.git_pull()

        # Checkpoints are large and many: they stay here, unless the strategy is to push them all.
        gitignore = os.path.join(self.args.output_dir, ".gitignore")
        if not os.path.exists(gitignore) and self.args.hub_strategy != HubStrategy.ALL_CHECKPOINTS:
            with open(gitignore, "w", encoding="utf-8") as file:
                file.write("checkpoint-*/")
        if os.environ.get("SM_TRAINING_ENV"):
            self._add_sm_patterns_to_gitignore()

        self.push_in_progress = None

    def _add_sm_patterns_to_gitignore(self) -> None:
        """Let git ignore the marker files that SageMaker puts beside checkpoints while it uploads them.

        **Beware:** two patterns that are both missing come out on one line if the file ends with a line break, so the
        first of them ignores nothing. Never run on SageMaker.

        Source: trainer.py 3760-3797
        """
        if not self.is_world_process_zero():
            return
        gitignore = os.path.join(self.repo.local_dir, ".gitignore")
        content = ""
        if os.path.exists(gitignore):
            with open(gitignore) as file:
                content = file.read()

        wanted = content
        for pattern in ("*.sagemaker-uploading", "*.sagemaker-uploaded"):
            if pattern not in wanted:
                wanted += pattern if wanted.endswith("\n") else f"\n{pattern}"
        if wanted != content:
            with open(gitignore, "w") as file:
                logger.debug(f"Writing .gitignore file. Content: {wanted}")
                file.write(wanted)

        self.repo.git_add(".gitignore")
        time.sleep(0.5)  # seconds; git status right after an add may still miss it
        if not self.repo.is_repo_clean():
            self.repo.git_commit("Add *.sagemaker patterns to .gitignore.")
            self.repo.git_push()


# Read next: callbacks.py
