"""A folder from its name: one that is here, or a repository of a hub."""

from pathlib import Path

from huggingface_hub import snapshot_download

from bert4rec_hf.modeling.repository import REPOSITORY

from .errors import HubError, explaining_hub

UNREAD = ("*.bin", "*.pt", "*.pth", "*.onnx", "onnx/*", "*.png")
"""What a repository may hold and nobody here reads."""


def fetch_folder(
    name: str | Path,
    *,
    revision: str | None = None,
    token: str | bool | None = None,
    kind: str = "model",
) -> Path:
    """Find a folder by its path, or download a repository into the cache of huggingface_hub.

    A revision can be part of the name, `user/shop@v2`.

    Args:
        name: Path of a folder, or `user/name`.
        revision: Branch, tag or commit of a repository.
        token: The one of `hf auth login` when None.
        kind: `model` or `dataset`.

    Raises:
        FileNotFoundError: It is the path of a folder that does not exist.
        ValueError: A revision is asked of a folder.
        HubError: The hub cannot be reached, or refuses.
    """
    if Path(name).is_dir():
        if revision is not None:
            raise ValueError(f"{name} is a folder and has no revision, got {revision!r}")
        return Path(name)
    repository, _, part = str(name).partition("@")
    if not is_repository(repository):
        raise FileNotFoundError(
            f"there is no folder {name}; name one, or a {kind} of a hub as user/name"
        )
    revision = revision or part or None
    try:
        with explaining_hub(repository, revision):
            folder = snapshot_download(
                repository,
                repo_type=kind,
                revision=revision,
                token=token,
                ignore_patterns=list(UNREAD),
            )
    except HubError as error:
        raise HubError(f"there is no folder {name}, and {error}") from error
    return Path(folder)


def is_repository(name: str | Path) -> bool:
    """Whether a name is one of a hub; a path whose first folder exists is a slip of the keyboard.

    >>> is_repository("ann/shop"), is_repository("/runs/shop"), is_repository("shop")
    (True, False, False)
    """
    owner = str(name).partition("/")[0]
    return REPOSITORY.fullmatch(str(name)) is not None and not Path(owner).exists()
