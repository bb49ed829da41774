"""After `import vision_rl`, transformers' Auto classes find our models and processors by name.

Neither import is slower for it: this module loads no transformers, and our classes are imported when they are first used.
"""

import sys
from collections.abc import Callable
from importlib import import_module
from importlib.machinery import PathFinder
from types import ModuleType
from typing import Any


CONFIGS = {  # by their model_type; the package of each registers its model as well
    "conv_stem_vision": ("vision_rl.models", "ConvStemVisionConfig"),
    "uvim": ("vision_rl.models", "UViMConfig"),
    "vision_decoder": ("vision_rl.models", "VisionDecoderConfig"),
}


class ImportedWhenUsed:
    """Stands for a class of a module until it is called, or asked for an attribute."""

    def __init__(self, module: str, name: str):
        self.__module__, self.__name__ = module, name

    def _imported(self) -> Any:
        return getattr(import_module(self.__module__), self.__name__)

    def __call__(self, *args, **kwargs) -> Any:
        return self._imported()(*args, **kwargs)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._imported(), name)

    def __reduce__(self):
        return ImportedWhenUsed, (self.__module__, self.__name__)


def _name_configs(configuration_auto: ModuleType) -> None:
    for model_type, home in CONFIGS.items():
        configuration_auto.CONFIG_MAPPING.register(model_type, ImportedWhenUsed(*home))


def _name_processors(processing_auto: ModuleType) -> None:
    """Import our tasks when transformers does not know a processor: each registers its own."""
    find = processing_auto.processor_class_from_name

    def find_also_ours(class_name: str) -> type | None:
        found = find(class_name)
        if found is None:
            import pkgutil

            for task in pkgutil.iter_modules(import_module("vision_rl.tasks").__path__, "vision_rl.tasks."):
                import_module(task.name)
            found = find(class_name)
        return found

    processing_auto.processor_class_from_name = find_also_ours  # type: ignore[attr-defined]


_AFTER: dict[str, Callable[[ModuleType], None]] = {
    "transformers.models.auto.configuration_auto": _name_configs,
    "transformers.models.auto.processing_auto": _name_processors,
}


class _AfterImport:
    """Finds the modules of `_AFTER` as Python does, and calls the function of each once it is loaded."""

    def find_spec(self, fullname, path=None, target=None):
        spec = PathFinder.find_spec(fullname, path, target) if fullname in _AFTER else None
        if spec is not None:
            loader: Any = spec.loader
            load = loader.exec_module

            def exec_module(module: ModuleType) -> None:
                load(module)
                _AFTER[fullname](module)

            loader.exec_module = exec_module
        return spec


def register() -> None:
    """Make our classes known to the modules of transformers that are loaded, and to the others when they are."""
    sys.meta_path.insert(0, _AfterImport())
    for name, then in _AFTER.items():
        if name in sys.modules:
            then(sys.modules[name])
