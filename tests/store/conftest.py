"""The contract's assertions show their values."""

import pytest

pytest.register_assert_rewrite("starlette_realtime.testing.contract")
