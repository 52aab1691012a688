"""Published files, downloaded once."""

from pathlib import Path

from vargen.core.messages import first_line


def fetch(repository: str, file: str, revision: str) -> Path:
    """A published file's path on this machine, downloaded once; of `*`, a folder with all weights and their JSON.

    ValueError where it cannot be had.
    """
    from huggingface_hub import hf_hub_download, snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        if file == "*":
            wanted = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model"]
            return Path(snapshot_download(repository, revision=revision, allow_patterns=wanted))
        return Path(hf_hub_download(repository, file, revision=revision))
    except Exception as error:  # the network's many complaints, all with the same remedy
        offline = isinstance(error, LocalEntryNotFoundError)
        why = "the hub is out of reach and the cache has no copy" if offline else first_line(error)
        raise ValueError(f"cannot download {file} of {repository} ({why}): give a local copy's path instead") from None
