"""Files of a Hugging Face repository, through the huggingface_hub package: its endpoint, its login."""

from __future__ import annotations

import re
from typing import Any

from localsft.errors import InputError, MissingPart
from localsft.models.cards import HubSource, ModelFile
from localsft.models.download import Address

# What a base model needs; weights in pickles, ONNX, and other frameworks' files are left out.
NEEDED = re.compile(
    r"(config|generation_config|tokenizer|tokenizer_config|special_tokens_map|added_tokens|vocab|model\.safetensors\.index)\.json"
    r"|tokenizer\.model|merges\.txt|chat_template\.(jinja|json)|[A-Za-z0-9._-]+\.safetensors"
)


def hub_files(repo: str, endpoint: str | None = None) -> HubSource:
    """What the repository's main revision consists of now, with the hashes that the hub keeps of its large files.

    Raises ``MissingPart`` without huggingface_hub, ``InputError`` when the repository can't be read or has no safetensors.
    """
    hub = _library(repo)
    try:
        info = hub.HfApi(endpoint=endpoint).model_info(repo, files_metadata=True)
    except (hub.errors.HfHubHTTPError, hub.errors.HFValidationError, OSError) as error:
        raise InputError(
            f"{repo}: the hub can't be asked for it ({_first_line(error)}); check the name, the network and your login"
        ) from None
    except Exception as error:
        # The package's HTTP client is not the same in all its versions, and each has errors of its own.
        raise InputError(f"{repo}: the hub can't be asked for it ({_first_line(error)}); check the network") from error
    files = tuple(
        ModelFile(entry.rfilename, entry.size, entry.lfs.sha256 if entry.lfs else None)
        for entry in sorted(info.siblings or [], key=lambda entry: str(entry.rfilename))
        if NEEDED.fullmatch(entry.rfilename) and entry.size
    )
    if not any(file.name.endswith(".safetensors") for file in files):
        raise InputError(f"{repo} has no safetensors; fetch the file that you want and give its path to --model")
    return HubSource(repo, str(info.sha), files)


def hub_address(source: HubSource, file: ModelFile, endpoint: str | None = None) -> Address:
    """The address of one file, with the user's login if there is one."""
    hub = _library(source.repo)
    headers = hub.utils.build_hf_headers()
    secret = tuple((key, value) for key, value in headers.items() if key.lower() == "authorization")
    return Address(hub.hf_hub_url(source.repo, file.name, revision=source.revision, endpoint=endpoint), secret_headers=secret)


def _library(repo: str) -> Any:
    try:
        import huggingface_hub
        import huggingface_hub.utils
    except ImportError:
        raise MissingPart(
            f"fetching {repo} needs huggingface_hub: run 'pip install localsft[hub]', or give a folder that you have to --model"
        ) from None
    return huggingface_hub


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
