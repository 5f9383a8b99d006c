"""Hosts and kits as the tests of the hypervisor and of the engine have them."""

from tests.real.engine.conftest import kit
from tests.real.hypervisor.conftest import host, short_seal

__all__ = ["host", "kit", "short_seal"]
