"""wandb keeps its cache, its settings and its credentials in folders of the test."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="package", autouse=True)
def own_folders(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wandb-home")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_CACHE_DIR", "WANDB_CONFIG_DIR", "WANDB_DATA_DIR"):
            patch.setenv(name, str(folder / name.lower()))
        patch.setenv("NETRC", str(folder / "netrc"))
        patch.setenv("WANDB_ERROR_REPORTING", "false")  # put back what a tracker sets
        patch.delenv("WANDB_API_KEY", raising=False)
        yield
