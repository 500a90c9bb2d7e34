"""No test of this folder may need PyTorch: importing it fails, except where a test asks for it."""

import sys

import pytest


@pytest.fixture(autouse=True)
def no_torch(request, monkeypatch):
    if "torch" not in request.fixturenames:
        for name in ("torch", "transformers"):
            monkeypatch.setitem(sys.modules, name, None)
