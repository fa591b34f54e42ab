"""Where the weights are."""

from __future__ import annotations

from pathlib import Path

from services.worker.engines.base import EngineLoadError


def find_weights(weights: str) -> str:
    """What vLLM is to load: a path with its `~` expanded, or the name of a repository as it is.

    Raises EngineLoadError for what looks like a path and is none here: vLLM would take it for a bad name.
    """
    if not weights:
        raise EngineLoadError("weights: the vllm engine needs the path of a model")
    if not weights.startswith(("/", ".", "~")):
        return weights
    try:
        path = Path(weights).expanduser()
        path.stat()
    except (FileNotFoundError, NotADirectoryError, RuntimeError) as error:
        # RuntimeError: no such user after the `~`.
        raise EngineLoadError(f"weights: {weights} does not exist on this node") from error
    except (OSError, ValueError) as error:
        raise EngineLoadError(f"weights: {weights} cannot be read on this node: {error}") from error
    return str(path)
