"""Models from the Hugging Face hub: only what loading needs, and one message for each way it can fail."""

from __future__ import annotations

from pathlib import Path

from models.errors import LoadError

PATTERNS = ["*.safetensors", "*.json", "tokenizer*", "*.jinja", "merges.txt", "vocab*"]
IGNORED = ["*/*", "consolidated*"]  # second copies of the weights in other layouts


def download(hub_id: str, *, offline: bool = False, revision: str | None = None) -> Path:
    """The local snapshot of `hub_id`, downloaded as needed; with `offline` only what the cache already has.

    HF_HOME, HF_TOKEN and HF_HUB_OFFLINE mean what they mean to huggingface_hub. Raises LoadError with a message of its
    own for a gated, an unauthorised, an offline and a non-existent model.
    """
    from huggingface_hub import constants, errors, snapshot_download

    offline = offline or constants.HF_HUB_OFFLINE
    try:
        folder = snapshot_download(
            hub_id, revision=revision, local_files_only=offline, allow_patterns=PATTERNS, ignore_patterns=IGNORED
        )
    except errors.HFValidationError as error:
        raise LoadError(f"{hub_id}: not a hub id, expected owner/name") from error
    # errors.HTTPError is httpx's, or, from huggingface_hub 2 on, httpx2's.
    except (OSError, errors.HTTPError, errors.XetDownloadError) as error:
        raise LoadError(f"{hub_id}: {explain(error, hub_id, offline, revision)}") from error
    return Path(folder)


def explain(error: BaseException, hub_id: str, offline: bool, revision: str | None) -> str:
    """What went wrong between us and the hub, and what to do.

    snapshot_download hides most answers of the server behind a LocalEntryNotFoundError, so its cause counts first.
    """
    from huggingface_hub import errors

    causes = _chain(error)
    answer = next((cause for cause in causes if isinstance(cause, errors.HfHubHTTPError)), None)
    status = getattr(getattr(answer, "response", None), "status_code", None)
    if isinstance(answer, errors.GatedRepoError):
        return f"gated: accept its licence at https://huggingface.co/{hub_id} and set HF_TOKEN to your token"
    if isinstance(answer, errors.RevisionNotFoundError):
        return f"the model exists but has no revision {revision!r} (--revision)"
    if isinstance(answer, errors.RepositoryNotFoundError):
        return (
            "does not exist on the hub, or is private: check the spelling, or set HF_TOKEN to a token that may read it"
        )
    if status in (401, 403):
        return f"unauthorised ({status}): HF_TOKEN is not valid, or its account may not read this model"
    if answer is not None:
        return (
            f"the hub answered {status} and the model is not in the local cache: try again later, or give a local path"
        )
    if offline:
        return "offline (--offline or HF_HUB_OFFLINE) and not complete in the local cache: download it once without"
    if any(isinstance(cause, errors.LocalEntryNotFoundError) for cause in causes):
        return "offline: the hub cannot be reached and the model is not in the local cache: give a local path"
    return f"download failed: {type(error).__name__}: {str(error)[:150]}"


def _chain(error: BaseException) -> list[BaseException]:
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    return chain
