"""Fetching settings files from the Hugging Face Hub."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from stagemeter.core.errors import StagemeterError

#: Seconds.
_TIMEOUT = 10


def fetch(repository: str, name: str, hint: str) -> Path:
    """Fetch a Hub file, or its cached copy without a network; `hint` is advice if the repository is missing."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    enough = "give a folder that holds its config.json"
    try:
        # A download would retry for half a minute before it fails.
        get_hf_file_metadata(hf_hub_url(repository, name), timeout=_TIMEOUT)
        return Path(hf_hub_download(repository, name))
    except GatedRepoError as error:
        raise StagemeterError(
            f"{repository}: it is gated. Accept its terms on the Hub and log in with `hf auth login`, or {enough}"
        ) from error
    except RepositoryNotFoundError as error:
        raise StagemeterError(f"{repository}: it is not on the Hub, or private. {hint}") from error
    except EntryNotFoundError as error:
        raise StagemeterError(f"{repository}: it holds no {name} on the Hub. Take another, or {enough}") from error
    except HfHubHTTPError as error:
        raise StagemeterError(
            f"{repository}: the Hub refuses ({_first_line(error)}). Try again, or {enough}"
        ) from error
    except Exception as error:
        # A missing network raises many kinds of errors.
        kept = try_to_load_from_cache(repository, name)
        if isinstance(kept, str):
            return Path(kept)
        raise StagemeterError(
            f"{repository}: the Hub cannot be reached ({_first_line(error)}). Try again, or {enough}"
        ) from error


def fetch_if_there(repository: str, name: str, hint: str) -> Path | None:
    """Fetch a file that a repository on the Hub may lack; return None if it does."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    try:
        return fetch(repository, name, hint)
    except StagemeterError as error:
        if not isinstance(error.__cause__, EntryNotFoundError):
            raise
    with suppress(EntryNotFoundError):
        # This records in the cache that the file is missing, for use without a network.
        hf_hub_download(repository, name)
    return None


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
