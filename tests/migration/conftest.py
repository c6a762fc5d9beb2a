from pathlib import Path

import pytest

from tests.migration.helpers import build_application

# It has tests of its own, which are read here, not run.
collect_ignore = ["application"]


@pytest.fixture
def application(tmp_path: Path) -> Path:
    return build_application(tmp_path / "advocate")
