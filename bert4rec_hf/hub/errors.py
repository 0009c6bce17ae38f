"""What goes wrong between here and a hub, in one line that says what to do about it."""

from collections.abc import Iterator
from contextlib import contextmanager

from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

FORBIDDEN = 403
UNAUTHORIZED = 401


class HubError(OSError):
    """A hub cannot be reached, or refuses."""


@contextmanager
def explaining_hub(name: str, revision: str | None = None) -> Iterator[None]:
    """Turn what the clients of a hub raise into one line.

    Args:
        name: The repository that is read or written.
        revision: Its branch, tag or commit.

    Raises:
        HubError: With that line.
    """
    try:
        yield
    except (HTTPError, OSError, RuntimeError, HFValidationError) as error:
        raise HubError(explain(error, name, revision)) from error


def explain(error: Exception, name: str, revision: str | None = None) -> str:
    """Say what went wrong with a repository, and what to do."""
    hub = constants.ENDPOINT
    cause = error.__cause__
    named = HfHubHTTPError | LocalEntryNotFoundError
    while not isinstance(error, named) and isinstance(cause, Exception):
        error, cause = cause, cause.__cause__
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, GatedRepoError):
        return (
            f"{name} is gated: ask for access at {hub}/{name}, and log in with `hf auth login` or "
            "give a token"
        )
    if isinstance(error, RevisionNotFoundError):
        return f"{name} has no revision {revision!r}; {hub}/{name} lists its branches and commits"
    if status == UNAUTHORIZED and not isinstance(error, RepositoryNotFoundError):
        return (
            f"{hub} got no token for {name}, or does not know it; log in with "
            "`hf auth login`, or set HF_TOKEN"
        )
    if isinstance(error, RepositoryNotFoundError):
        return (
            f"{hub} has no {name} that you may read; check the name, and if it is private log in "
            "by `hf auth login` or give a token"
        )
    if status == FORBIDDEN:
        return (
            f"{hub} does not let the owner of this token write to {name}; use a token with the "
            "right to write, or a repository of your own"
        )
    if isinstance(error, LocalEntryNotFoundError | OfflineModeIsEnabled):
        return f"{name} is not in the cache, and {hub} cannot be reached; check the connection"
    return (
        f"{name}: the connection to {hub} failed, {first_line(error)}; run it again, what was "
        "transferred already is not transferred again"
    )


def first_line(error: Exception) -> str:
    """What an error says first, or its kind."""
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
