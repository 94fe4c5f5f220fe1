"""What several tests of models need."""

import pytest


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    """No Hub, and nobody asks whether there is one."""
    for module in ("base", "chatglm.foreign_code"):
        monkeypatch.setattr(f"sft_kit.models.{module}.hub_is_reachable", lambda: False)
