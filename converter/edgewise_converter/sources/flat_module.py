"""An exported program's module, called with one tensor after another, whatever it takes them in."""

from __future__ import annotations

from typing import Any

from edgewise_converter.libraries import need


def flat_module(program: Any) -> Any:
    """The callable of an `ExportedProgram`; its arguments are the program's input tensors, in order.

    A program may want some of them by keyword, or in lists and dicts: they are put into these here.
    """
    module = program.module()
    structure = program.call_spec.in_spec
    unflatten = need("torch").utils._pytree.tree_unflatten
    places, by_keyword = unflatten(range(structure.num_leaves), structure)
    if not by_keyword and list(places) == list(range(structure.num_leaves)):
        return module

    class Flat(need("torch").nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.inner = module

        def forward(self, *tensors: Any) -> Any:
            given, named = unflatten(tensors, structure)
            return self.inner(*given, **named)

    # The class's name becomes part of a TFLite file's tensor names: keep this module's out of it.
    Flat.__module__, Flat.__qualname__ = "model", "Flat"
    return Flat()
