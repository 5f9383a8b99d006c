"""What holds before any test: `tests...` can be imported, the root folder is off sys.path, and bytecode is kept.

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


# Commands that tests start keep their bytecode, as an installed package does: without, each compiles all of it anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
sys.path[:] = [path for path in sys.path if os.path.abspath(path or os.getcwd()) != _ROOT]
_import_tests_package()
