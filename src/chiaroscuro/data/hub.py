"""Data sets of the Hugging Face hub."""

from typing import Any


def from_hub(repository: str, configuration: str | None, advice: str) -> Any:
    """A data set of the hub. Raises ValueError at once when it cannot be had, saying by `advice` what to give
    instead."""
    try:
        from datasets import load_dataset  # type: ignore[import-untyped]
        from huggingface_hub import HfApi, constants
    except ImportError as error:
        raise ValueError(
            f"{repository} comes through datasets: pip install 'chiaroscuro[data]', or {advice}"
        ) from error
    try:
        # The hub is asked once before datasets is, which would retry for most of a minute; who is told that there is no
        # network (HF_HUB_OFFLINE=1) takes at once what was fetched before.
        if not constants.HF_HUB_OFFLINE:
            HfApi().dataset_info(repository, timeout=5)
        return load_dataset(repository, configuration)
    except Exception as error:
        raise ValueError(
            f"{repository} could not be fetched from the hub ({type(error).__name__}); without a network give "
            f"{advice}; or set HF_HUB_OFFLINE=1 if it is in the cache"
        ) from error
