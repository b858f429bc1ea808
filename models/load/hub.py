"""Models from the Hugging Face hub: only what loading needs, and one message for each way it can fail."""

from __future__ import annotations

from pathlib import Path

from models.errors import LoadError

PATTERNS = ["*.safetensors", "*.json", "tokenizer*", "*.jinja", "merges.txt", "vocab*"]
IGNORED = ["original/*", "consolidated*", "*/*"]  # second copies of the weights in other layouts


def download(hub_id: str, *, offline: bool = False, revision: str | None = None) -> Path:
    """The local snapshot of `hub_id`, downloaded as needed; with `offline` only what the cache already has.

    HF_HOME, HF_TOKEN and HF_HUB_OFFLINE mean what they mean to huggingface_hub. Raises LoadError with a message of its
    own for a gated, an unauthorised, an offline and a non-existent model.
    """
    from huggingface_hub import constants, errors, snapshot_download

    offline = offline or constants.HF_HUB_OFFLINE
    try:
        return Path(
            snapshot_download(
                hub_id, revision=revision, local_files_only=offline, allow_patterns=PATTERNS, ignore_patterns=IGNORED
            )
        )
    except errors.GatedRepoError as error:
        raise LoadError(
            f"{hub_id}: gated: accept its licence at https://huggingface.co/{hub_id} and set HF_TOKEN"
        ) from error
    except errors.RevisionNotFoundError as error:
        raise LoadError(f"{hub_id}: has no revision {revision!r} (--revision)") from error
    except errors.RepositoryNotFoundError as error:
        raise LoadError(
            f"{hub_id}: does not exist on the hub (or is private: then set HF_TOKEN). Check the spelling, owner/name"
        ) from error
    except (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled) as error:
        raise LoadError(_offline_message(hub_id, offline)) from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        if status in (401, 403):
            raise LoadError(
                f"{hub_id}: unauthorised ({status}): HF_TOKEN is not valid or lacks access to this model"
            ) from error
        raise LoadError(f"{hub_id}: the hub answered {status}: {str(error)[:150]}") from error
    except errors.HFValidationError as error:
        raise LoadError(f"{hub_id}: not a hub id, expected owner/name") from error
    except OSError as error:  # connection errors and a full disk alike
        raise LoadError(f"{hub_id}: download failed: {type(error).__name__}: {str(error)[:150]}") from error


def _offline_message(hub_id: str, offline: bool) -> str:
    if offline:
        return f"{hub_id}: offline (--offline or HF_HUB_OFFLINE) and not in the local cache; download it once without"
    return f"{hub_id}: offline: the hub cannot be reached and the local cache lacks the model; give a local path"
