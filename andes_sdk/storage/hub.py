"""Models on the Hugging Face Hub, fetched into its own cache with the user's own settings and token."""

from __future__ import annotations

import os
from pathlib import Path

from andes_sdk.errors import CheckpointError

WANTED = ("*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "LICENSE*", "NOTICE*", "README.md",
          "published/*.py")  # fmt: skip
"""What is fetched: weights as safetensors, configuration, tokenizer, licence; no other weights. Of code, which nothing
runs, only what a checkpoint of ours keeps of a published one and counts in its checksums."""


def download(name: str, revision: str | None = None) -> Path:
    """Fetch `owner/name` -> the folder in the Hub's cache; what is there already is not fetched again.

    HF_HUB_OFFLINE, HF_HOME, HF_TOKEN and the stored token mean what they mean everywhere; progress goes to stderr.

    Args:
        revision: a branch, a tag or a commit; None: the default branch.

    Raises:
        CheckpointError: huggingface_hub is not installed, there is no network, no such model, or no access.
    """
    who = name if revision is None else f"{name}@{revision}"
    try:
        from huggingface_hub import snapshot_download
    except ImportError:
        why = "there is no such path, and huggingface_hub, which fetches models by name, is not installed"
        fix = "give the path of a folder or file, or `pip install andes-sdk[hub]`"
        raise CheckpointError("cannot be opened", who=who, why=why, fix=fix) from None
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")
    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=[*WANTED], local_files_only=offline))
    except Exception as error:  # of many kinds: the network's, the Hub's, the disk's
        reason = next(iter(str(error).strip().splitlines()), "")
        fix = "unset HF_HUB_OFFLINE" if offline else "check the name, the network, and `hf auth login`"
        why = f"there is no such path, and the Hub did not give it: {type(error).__name__}: {reason}"
        raise CheckpointError("cannot be fetched", who=who, why=why, fix=f"{fix}, or give a local path") from error
