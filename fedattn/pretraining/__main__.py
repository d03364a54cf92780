"""`python -m fedattn.pretraining`: configs/pretrain.yaml into the package's own assets."""

from __future__ import annotations

from pathlib import Path

from fedattn import assets
from fedattn.pretraining import make_public_start


def main() -> None:
    """Write the shipped checkpoint and its card; run from the repository's root."""
    make_public_start(
        Path("configs/pretrain.yaml"), out=Path(assets.__path__[0]) / "public.safetensors"
    )


if __name__ == "__main__":
    main()
