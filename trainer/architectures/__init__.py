"""Networks, one file each, found by its name in this folder.

A module defines

    SCORE, CONTEXT, LOSS                what suits the network where a recipe does not say otherwise
    build(shape, **params) -> keras.Model     shape = (width, F) of one patch
    for_export(model) -> keras.Model          optional: the same network in a form the converter takes

A reconstructing network takes and returns a patch; a classifier (LOSS "crossentropy") has a parameter
`n_classes` and returns logits. Only `build` and `for_export` import Keras, so that recipes can be checked
without it.
"""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

#: Parameters that the data decide, not the recipe.
_FROM_DATA = ("shape", "n_classes")


@dataclass(frozen=True)
class Defaults:
    """What an architecture declares: score rule, context and loss."""

    score: Mapping[str, Any]
    context: Mapping[str, Any]
    loss: str


def names() -> tuple[str, ...]:
    """Names of the architectures found in this folder."""
    return tuple(sorted(m.name for m in pkgutil.iter_modules(__path__) if not m.name.startswith("_")))


def module(name: str) -> ModuleType:
    """The architecture's module; raises ValueError with the known names."""
    if name not in names():
        raise ValueError(f"model {name!r} is unknown; known: {', '.join(names())}")
    return importlib.import_module(f"{__name__}.{name}")


def defaults(name: str) -> Defaults:
    """What the architecture declares for recipes that say nothing."""
    found = module(name)
    return Defaults(found.SCORE, found.CONTEXT, found.LOSS)


def parameters(name: str) -> tuple[str, ...]:
    """Names of the parameters a recipe may give under `network`."""
    return tuple(p for p in inspect.signature(module(name).build).parameters if p not in _FROM_DATA)


def build(name: str, shape: tuple[int, int], n_classes: int, params: Mapping[str, Any]) -> Any:
    """The Keras model for patches of `shape` = (width, F)."""
    found = module(name)
    given = dict(params)
    if "n_classes" in inspect.signature(found.build).parameters:
        given["n_classes"] = n_classes
    return found.build(shape, **given)


def for_export(name: str, model: Any) -> Any:
    """The model as the converter takes it; most are taken as they are."""
    convert = getattr(module(name), "for_export", None)
    return model if convert is None else convert(model)
