"""Pushing to the Hub, with a bare git repository of this machine as the remote, and the model card."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch

import minitrainer
from tests.saving import subjects

HAS_REPOSITORY = hasattr(huggingface_hub, "Repository")
HAS_GIT_LFS = shutil.which("git-lfs") is not None

needs_repository = pytest.mark.skipif(
    not (HAS_REPOSITORY and HAS_GIT_LFS), reason="needs huggingface_hub.Repository (before 1.0) and git-lfs"
)


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A bare repository; only the call that would create one on the Hub is left out, since it needs the network."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name, value in (("user.email", "test@example.org"), ("user.name", "test"), ("init.defaultBranch", "main")):
        subprocess.run(["git", "config", "--global", name, value], check=True)
    path = tmp_path / "remotes" / "model.git"
    git("init", "--bare", "--quiet", str(path))
    # An empty repository cannot be pulled from: the Hub's are made with a first commit.
    seed = tmp_path / "seed"
    git("clone", "--quiet", str(path), str(seed))
    (seed / ".gitattributes").write_text("*.bin filter=lfs diff=lfs merge=lfs -text\n")
    git("add", ".", folder=seed)
    git("commit", "--quiet", "-m", "initial commit", folder=seed)
    git("push", "--quiet", "origin", "main", folder=seed)
    monkeypatch.setattr(huggingface_hub, "create_repo", lambda *args, **kwargs: None)
    return path


def git(*arguments: str, folder: Path | None = None) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def messages(remote: Path) -> list[str]:
    return git("log", "--format=%s", "main", folder=remote).splitlines()[::-1]


def files_in(remote: Path) -> list[str]:
    return git("ls-tree", "-r", "--name-only", "main", folder=remote).splitlines()


def build(
    tmp_path: Path, remote: Path, trainer_class: Any = None, arguments_class: Any = None, **arguments: Any
) -> Any:
    return subjects.build(
        tmp_path / "out",
        trainer_class,
        arguments_class,
        push_to_hub=True,
        hub_model_id=str(remote),
        evaluation_strategy="no",
        **arguments,
    )


# -- with a remote ---


@needs_repository
def test_a_run_that_pushes_at_its_end(tmp_path: Path, remote: Path) -> None:
    trainer = build(tmp_path, remote, hub_strategy="end")
    assert (tmp_path / "out" / ".gitignore").read_text() == "checkpoint-*/"
    trainer.train()
    assert messages(remote) == ["initial commit"]
    trainer.push_to_hub(commit_message="Done")
    assert messages(remote) == ["initial commit", "Done", "update model card README.md"]
    pushed = files_in(remote)
    assert {"README.md", "config.json", "pytorch_model.bin", "training_args.bin"} <= set(pushed)
    assert not any(name.startswith("checkpoint-") for name in pushed)


@needs_repository
def test_pushes_while_training(tmp_path: Path, remote: Path) -> None:
    trainer = build(tmp_path, remote, hub_strategy="every_save")
    # Waiting for each push makes the outcome certain: otherwise a slow one lets the next be left out.
    push = trainer.repo.push_to_hub
    trainer.repo.push_to_hub = lambda **kwargs: push(**{**kwargs, "blocking": True}) and None
    trainer.train()
    assert messages(remote)[1:] == [f"Training in progress, step {step}" for step in (3, 6, 9, 12)]
    assert not any("checkpoint" in name for name in files_in(remote))


@needs_repository
def test_the_last_checkpoint_goes_along_and_comes_back(tmp_path: Path, remote: Path) -> None:
    trainer = build(tmp_path, remote, hub_strategy="checkpoint", save_strategy="epoch")
    push = trainer.repo.push_to_hub
    trainer.repo.push_to_hub = lambda **kwargs: push(**{**kwargs, "blocking": True}) and None
    trainer.train()
    assert messages(remote)[1:] == ["Training in progress, epoch 1", "Training in progress, epoch 2"]
    assert "last-checkpoint/optimizer.pt" in files_in(remote)
    assert sorted(path.name for path in (tmp_path / "out").glob("*checkpoint*")) == ["checkpoint-12", "checkpoint-6"]


@needs_repository
def test_a_push_that_fails_does_not_stop_training(tmp_path: Path, remote: Path) -> None:
    trainer = build(tmp_path, remote, hub_strategy="checkpoint")
    shutil.rmtree(remote)

    def fail(**kwargs: Any) -> None:
        raise OSError("the remote is gone")

    trainer.repo.push_to_hub = fail
    trainer.train()
    assert trainer.state.global_step == 12
    assert len(list((tmp_path / "out").glob("checkpoint-*"))) == 4


@needs_repository
def test_a_folder_in_the_way_is_kept_unless_it_may_be_overwritten(tmp_path: Path, remote: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "precious.txt").write_text("mine")
    with pytest.raises(OSError):
        build(tmp_path, remote)
    assert (out / "precious.txt").read_text() == "mine"
    build(tmp_path, remote, overwrite_output_dir=True)
    assert not (out / "precious.txt").exists()


@needs_repository
def test_sagemakers_marker_files_are_ignored(tmp_path: Path, remote: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SM_TRAINING_ENV", "{}")
    build(tmp_path, remote)
    ignored = (tmp_path / "out" / ".gitignore").read_text()
    assert ignored == "checkpoint-*/\n*.sagemaker-uploading\n*.sagemaker-uploaded"
    assert messages(remote)[-1] == "Add *.sagemaker patterns to .gitignore."


@pytest.mark.reference
@needs_repository
@pytest.mark.parametrize("strategy", ["end", "checkpoint"])
def test_the_same_commits_as_the_real_one(strategy: str, tmp_path: Path, remote: Path, monkeypatch: Any) -> None:
    import transformers

    monkeypatch.setattr(transformers.trainer, "create_repo", lambda *args, **kwargs: None)
    histories = []
    pristine = subjects.copy(remote, tmp_path / "pristine")
    for classes in (
        (minitrainer.Trainer, minitrainer.TrainingArguments),
        (transformers.Trainer, transformers.TrainingArguments),
    ):
        shutil.rmtree(remote)
        subjects.copy(pristine, remote)
        shutil.rmtree(tmp_path / "out", ignore_errors=True)
        trainer = build(tmp_path, remote, *classes, hub_strategy=strategy, save_strategy="epoch")
        push = trainer.repo.push_to_hub
        trainer.repo.push_to_hub = lambda push=push, **kwargs: push(**{**kwargs, "blocking": True}) and None
        trainer.train()
        trainer.push_to_hub()
        card = (tmp_path / "out" / "README.md").read_text()
        histories.append((messages(remote), files_in(remote), card))
    assert histories[0] == histories[1]


# -- without one ---


@pytest.mark.skipif(HAS_REPOSITORY, reason="this huggingface_hub has Repository")
def test_where_repository_is_gone_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ImportError, match="huggingface_hub<1.0"):
        subjects.build(tmp_path, push_to_hub=True)
    trainer = subjects.build(tmp_path)
    with pytest.raises(ImportError, match="hf upload"):
        trainer.push_to_hub()


def test_the_model_card(tmp_path: Path) -> None:
    trainer = subjects.build(tmp_path)
    trainer.train()
    trainer.create_model_card(model_name="my-model", language="en", tags="mine", license="mit")
    card = (tmp_path / "README.md").read_text()
    assert "# my-model" in card and "- en" in card and "- mine" in card
    assert "learning_rate: 5e-05" in card and "generated_from_trainer" in card
    assert "distributed_type" not in card, "one process is no distributed training"
    last_loss = [row["eval_loss"] for row in trainer.state.log_history if "eval_loss" in row][-1]
    assert f"Loss: {last_loss:.4f}" in card


def test_other_ranks_push_nothing(tmp_path: Path) -> None:
    trainer = subjects.build(tmp_path)
    trainer.is_world_process_zero = lambda: False
    trainer.repo = None  # touching it would fail
    assert trainer.push_to_hub() is None
    trainer._push_from_checkpoint(str(tmp_path))
    trainer._add_sm_patterns_to_gitignore()
    del trainer.repo
    trainer.init_git_repo()
    assert not hasattr(trainer, "repo") and torch.is_tensor(next(trainer.model.parameters()))
    assert "README.md" not in os.listdir(tmp_path)


# Read next: tests/callbacks
