"""Lets tests import `tests...` while the root folder stays off sys.path.

On sys.path the root folder's nbd/ would shadow libnbd's module of the same name.
"""

import importlib.util
import os
import sys

_ROOT = os.path.dirname(os.path.abspath(__file__))


def _import_tests_package() -> None:
    folder = os.path.join(_ROOT, "tests")
    spec = importlib.util.spec_from_file_location(
        "tests", os.path.join(folder, "__init__.py"), submodule_search_locations=[folder]
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["tests"] = module
    spec.loader.exec_module(module)


sys.path[:] = [path for path in sys.path if os.path.abspath(path or os.getcwd()) != _ROOT]
_import_tests_package()
