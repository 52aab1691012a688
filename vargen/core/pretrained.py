"""The one door to transformers' loaders: no code of a folder or repository is ever run, and nobody is asked whether."""

from pathlib import Path
from typing import Any

from vargen.core.checkpoints import is_finite
from vargen.core.messages import first_line, shown
from vargen.core.model_config import check_built


def load(kind: Any, place: str | Path, what: str, **options: Any) -> Any:
    """`kind.from_pretrained(place)` of transformers. ValueError, of one sentence, where `what` cannot be had so."""
    if (folder := Path(place)).is_dir():
        check_plain(folder)
    try:
        return kind.from_pretrained(place, trust_remote_code=False, **options)
    except Exception as error:  # the network's and the folder's many complaints, all with the same remedy
        asks = "trust_remote_code" in str(error)
        reason = "it asks for code of its own to be run, which never happens" if asks else first_line(error)
        raise ValueError(
            f"cannot load {what} from {place} ({reason}): give the folder of a local copy instead"
        ) from None


def check_plain(folder: Path) -> None:
    """ValueError names what is neither a file nor a folder in one: transformers would wait for a pipe for ever."""
    for path in folder.iterdir():
        if path.exists() and not (path.is_file() or path.is_dir()):
            raise ValueError(f"{shown(path.name)} in the folder {folder} is no plain file")


def load_model(kind: Any, place: str | Path, what: str, **options: Any) -> tuple[Any, dict[str, Any]]:
    """A model and what transformers says of its weights; they and its config.json are looked at before it is built."""
    if (folder := Path(place)).is_dir():
        check_plain(folder)
        check_built(kind, folder)
    model, info = load(kind, place, what, output_loading_info=True, **options)
    for key, value in model.named_parameters():
        if not is_finite(value):
            raise ValueError(f"the weights of {place} have NaN or infinity in {key}")
    return model, info
