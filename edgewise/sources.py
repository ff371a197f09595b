"""Where a candidate comes from: a folder, a hub id, or an asset; always a local folder in the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from edgewise.errors import CheckpointError

# No pickles, no other frameworks' weights, no code.
_PATTERNS = ["*.json", "*.safetensors", "*.txt", "*.model", "onnx/*"]


TOKENIZER_SOURCES = (
    "tokenizer.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tokenizer.model",
)
"""Files of which a model folder needs one, for its tokenizer to load."""
PROCESSOR = "preprocessor_config.json"
"""What a model of images has in the place of a tokenizer."""


def check_model_folder(path: Path) -> None:
    """Raise CheckpointError unless the folder has a config, and a tokenizer or an image processor."""
    if not (path / "config.json").is_file():
        what = "no such folder" if not path.exists() else "it has no config.json"
        raise CheckpointError(f"{path} is no checkpoint: {what}; expected a folder that save_pretrained wrote")
    if not any((path / name).is_file() for name in (*TOKENIZER_SOURCES, PROCESSOR)):
        raise CheckpointError(
            f"{path} has no tokenizer (none of {', '.join(TOKENIZER_SOURCES)}): save it beside the model with "
            f"tokenizer.save_pretrained(folder), or for images the {PROCESSOR} with processor.save_pretrained(folder)"
        )


def local_folder(source: str, resolve: Callable[[str], Path]) -> Path:
    """The local folder of a checkpoint: `asset:NAME`, a path (through `resolve`), or a hub id, fetched once.

    Raises CheckpointError when it is none of these.
    """
    if source.startswith("asset:"):
        from edgewise.assets import asset_path

        return asset_path(source.removeprefix("asset:"))
    path = resolve(source)
    if path.is_dir():
        return path
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        return Path(snapshot_download(source, allow_patterns=_PATTERNS))
    except HFValidationError as error:
        raise CheckpointError(f"{source!r} is neither a folder here nor a hub id: {error}") from error
    except (LocalEntryNotFoundError, OfflineModeIsEnabled) as error:
        raise CheckpointError(
            f"{source!r} is no folder here and not in the hub cache, and the hub cannot be reached "
            f"(HF_HUB_OFFLINE, or no network): give a local folder, or fetch it once with a network"
        ) from error
    except (HfHubHTTPError, OSError) as error:
        raise CheckpointError(f"{source!r} cannot be fetched from the hub: {str(error).splitlines()[0]}") from error


def weights_digest(folder: Path) -> str:
    """'sha256:...' of the weights and the config of a checkpoint folder."""
    from edgewise.files import digest_json, sha256_file

    files = sorted([*folder.glob("*.safetensors"), *folder.glob("config.json")])
    return digest_json([[f.name, sha256_file(f)] for f in files])
