"""Networks, one file each, found by its name in this folder.

A module defines

    SCORE, CONTEXT, LOSS                what suits the network where a recipe does not say otherwise
    build(shape, **params) -> keras.Model     shape = (width, F) of one patch; the network as it is shipped
    train(network, course, **options)   optional: how it is trained, where one descent on LOSS is not enough;
                                        its options may be given under `train` in a recipe. What the score
                                        rule needs beside the network goes into `course.arrays`
    for_export(model) -> keras.Model    optional: the same network in a form the converter takes
    SCORES                              optional: kinds of other score rules that the network's outputs allow
    LEARNS                              optional: "machines" (classes are the machine ids; `build` has a parameter
                                        `n_classes`) or "faults" (learns from labelled anomalies too)
    INPUT                               optional: "range" where patches are to lie in [0, 1], as a sigmoid gives
                                        them; else every feature has mean 0 and deviation 1

The outputs of the network are what its score rule takes (`edge_agent.scoring`). Only `build`, `train` and
`for_export` import Keras, so that recipes can be checked without it.
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
    """What an architecture declares: score rule, context, loss, and the optional constants of the docstring above."""

    score: Mapping[str, Any]
    context: Mapping[str, Any]
    loss: str = ""
    scores: tuple[str, ...] = ()
    learns: str = "healthy"
    input: str = "standard"

    @property
    def rules(self) -> tuple[str, ...]:
        """Kinds of the score rules that a recipe may choose."""
        return (str(self.score["kind"]), *self.scores)


#: The model without a network: one feature is the score.
INDICATOR = Defaults({"kind": "indicator"}, {})


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
    if name == "indicator":
        return INDICATOR
    found = module(name)
    return Defaults(
        found.SCORE,
        found.CONTEXT,
        getattr(found, "LOSS", ""),
        tuple(getattr(found, "SCORES", ())),
        getattr(found, "LEARNS", "healthy"),
        getattr(found, "INPUT", "standard"),
    )


def options(name: str) -> dict[str, Any]:
    """Options of the architecture's own `train` with their defaults; empty where it has none."""
    train = None if name == "indicator" else getattr(module(name), "train", None)
    if train is None:
        return {}
    parameters = inspect.signature(train).parameters.values()
    return {p.name: p.default for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY}


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
