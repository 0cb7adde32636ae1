"""Load the package once more with one line changed, under another name and beside the real one."""

import importlib.abc
import importlib.machinery
import importlib.util
import itertools
import sys
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import spectral_theorem

HOME = Path(spectral_theorem.__file__).parent
_COUNT = itertools.count()


class _Finder(importlib.abc.MetaPathFinder):
    """Find modules of the copy in the package's folder; relative imports then stay inside the copy."""

    def __init__(self, name: str, module: str, old: str, new: str):
        self.name, self.module, self.old, self.new = name, module, old, new

    def find_spec(self, fullname, path=None, target=None):
        if fullname == self.name:
            return importlib.util.spec_from_loader(fullname, _Loader(self, ""), is_package=True)
        prefix, _, module = fullname.partition(".")
        if prefix != self.name:
            return None
        package = (HOME / module.replace(".", "/")).is_dir()
        return importlib.util.spec_from_loader(fullname, _Loader(self, module), is_package=package)


class _Loader(importlib.abc.Loader):
    def __init__(self, finder: _Finder, module: str):
        self.finder, self.module = finder, module

    def exec_module(self, module: ModuleType) -> None:
        if not self.module:
            module.__path__ = []
            return
        place = HOME / self.module.replace(".", "/")
        file = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
        source = file.read_text(encoding="utf-8")
        if self.module == self.finder.module:
            assert source.count(self.finder.old) == 1, f"{self.finder.old!r} is not one place in {self.module}.py"
            source = source.replace(self.finder.old, self.finder.new)
        exec(compile(source, f"{self.finder.name}/{self.module}.py", "exec"), module.__dict__)


@contextmanager
def mutant(module: str, old: str, new: str):
    """Give a function that imports modules of the package in which `old` of one module reads `new`."""
    finder = _Finder(f"mutant_{next(_COUNT)}", module, old, new)
    sys.meta_path.insert(0, finder)
    try:
        yield lambda name: importlib.import_module(f"{finder.name}.{name}")
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name in sys.modules if name.partition(".")[0] == finder.name]:
            del sys.modules[name]
