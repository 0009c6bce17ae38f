"""Repositories of a hub: a file beside a model, and a folder in one commit."""

import re
from pathlib import Path

from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi, hf_hub_download
from huggingface_hub.errors import EntryNotFoundError

REPOSITORY = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
"""How a hub names what it holds."""

REPLACED = re.compile(
    r"(model|adapter_model)[\w.-]*\.safetensors(\.index\.json)?|titles\.json|\.eval_results/.+"
)
"""Files that belong to what was pushed before, and mislead beside what is pushed now."""


def find_beside(source: str, name: str, revision: str | None = None) -> Path | None:
    """Find a file in the folder, or the repository of a hub, that a model was loaded from.

    Args:
        source: What `from_pretrained` was given; empty for a model that was not loaded.
        name: Of the file.
        revision: Of the repository.
    """
    if Path(source).is_dir():
        path = Path(source) / name
        return path if path.is_file() else None
    if not REPOSITORY.fullmatch(source):
        return None
    try:
        return Path(hf_hub_download(source, name, revision=revision))
    except EntryNotFoundError:
        return None


def open_repository(
    repo_id: str,
    *,
    kind: str = "model",
    private: bool | None = None,
    revision: str | None = None,
    token: str | bool | None = None,
) -> str:
    """Make a repository where there is none, and a branch.

    Args:
        repo_id: `user/name`, or `name` for one of one's own.
        kind: `model`, `dataset` or `space`.
        private: Whether a repository that is made now is.
        revision: The branch; `main` when None.
        token: The one of `hf auth login` when None.

    Returns:
        `user/name`.
    """
    api = HfApi(token=token)
    sdk = "gradio" if kind == "space" else None
    made = api.create_repo(repo_id, repo_type=kind, private=private, exist_ok=True, space_sdk=sdk)
    if revision is not None:
        api.create_branch(made.repo_id, branch=revision, repo_type=kind, exist_ok=True)
    return made.repo_id


def push_folder(  # noqa: PLR0913 - what people expect of a push
    folder: Path,
    repo_id: str,
    *,
    kind: str = "model",
    revision: str | None = None,
    token: str | bool | None = None,
    message: str = "",
    create_pr: bool = False,
) -> str:
    """Upload a folder in one commit; none is made where the repository holds the same already.

    Large files that arrived stay there when a push breaks off, and the next one goes on from them.

    Args:
        folder: Hidden files of it are left out, but for `.eval_results`.
        repo_id: As `open_repository` returns it.
        kind: `model`, `dataset` or `space`.
        revision: The branch; `main` when None.
        token: The one of `hf auth login` when None.
        message: Of the commit.
        create_pr: Ask for the change to be merged and do not make it.

    Returns:
        Address of the commit that holds the folder.
    """
    api = HfApi(token=token)
    paths = {
        path.relative_to(folder).as_posix(): path
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    paths = {name: path for name, path in paths.items() if is_published(name)}
    there = api.list_repo_files(repo_id, repo_type=kind, revision=revision)
    operations = [CommitOperationAdd(name, path) for name, path in paths.items()]
    operations += [
        CommitOperationDelete(name)
        for name in there
        if name not in paths and REPLACED.fullmatch(name)
    ]
    done = api.create_commit(
        repo_id,
        operations,
        commit_message=message or f"Upload {kind}",
        repo_type=kind,
        revision=revision,
        create_pr=create_pr,
    )
    return str(done.pr_url or done.commit_url)


def is_published(name: str) -> bool:
    """Leave hidden files out, but for the results that a hub reads.

    >>> is_published(".eval_results/ndcg.yaml"), is_published(".cache/lock")
    (True, False)
    """
    return not name.startswith(".") or name.startswith(".eval_results/")
