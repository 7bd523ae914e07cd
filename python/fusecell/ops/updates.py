"""One step of an optimiser over many arrays at once, the clipping of the gradients in the same pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fusecell import _dispatch
from fusecell._typing import Array
from fusecell.ops._arguments import as_array, as_flag, as_integer, as_number
from fusecell.ops.clipping import _Gradients


def sgd_update_(
    parameters: Sequence[Array],
    gradients: Sequence[Array],
    velocities: Sequence[Array] | None = None,
    *,
    lr: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    norm: Any = None,
    max_norm: float | None = None,
) -> None:
    """g += weight_decay p;  v = momentum v + g;  p -= lr v (nesterov: lr (g + momentum v)), in place.

    As torch.optim.SGD (Sutskever et al. 2013 with the rate outside the velocity). parameters, gradients and velocities
    (read and written if momentum is not 0): lists of arrays that are alike; slots of 16-bit parameters are float32.

    norm, max_norm: gradients are scaled by min(1, max_norm / (norm + 1e-6)) as they are read; norm is what
    `global_norm` returned. The gradients themselves are left as they are. Raises TypeError, ValueError.
    """
    options = {
        "lr": as_number("lr", lr),
        "momentum": as_number("momentum", momentum),
        "nesterov": as_flag("nesterov", nesterov),
        "weight_decay": as_number("weight_decay", weight_decay),
    }
    _update("sgd", parameters, gradients, velocities or [], [], options, norm, max_norm, None)


def adam_update_(
    parameters: Sequence[Array],
    gradients: Sequence[Array],
    means: Sequence[Array],
    squares: Sequence[Array],
    *,
    step: Any,
    lr: float,
    betas: tuple[float, float] = (0.9, 0.999),
    eps: float = 1e-8,
    weight_decay: float = 0.0,
    decoupled: bool = False,
    norm: Any = None,
    max_norm: float | None = None,
) -> None:
    """Adam (Kingma and Ba 2015) as torch.optim.Adam, in place; decoupled: AdamW (Loshchilov and Hutter 2019).

    step: counts this one, 1 at first; an int, or an int64 array [1] where the parameters lie, which a captured graph
    reads anew at each replay. The other arguments are those of `sgd_update_`. Raises TypeError, ValueError.
    """
    first, second = betas
    options = {
        "lr": as_number("lr", lr),
        "beta1": as_number("betas", first),
        "beta2": as_number("betas", second),
        "eps": as_number("eps", eps),
        "weight_decay": as_number("weight_decay", weight_decay),
        "decoupled": as_flag("decoupled", decoupled),
    }
    _update("adam", parameters, gradients, means, squares, options, norm, max_norm, step)


def _update(
    rule: str,
    parameters: Sequence[Array],
    gradients: Sequence[Array],
    first: Sequence[Array],
    second: Sequence[Array],
    options: dict[str, Any],
    norm: Any,
    max_norm: float | None,
    step: Any,
) -> None:
    slots = ("means", "squares") if rule == "adam" else ("velocities", "squares")
    written = [
        _Gradients(list(arrays), in_place=True, name=name)
        for name, arrays in zip(("parameters", *slots), (parameters, first, second), strict=True)
    ]
    read = _Gradients(list(gradients), in_place=False)
    place = written[0].place
    if step is not None:
        counted = hasattr(step, "dtype")
        options["step"] = 1 if counted else as_integer("step", step, 1)
        step = as_array("step", step).reshape((1,)) if counted else None
        _dispatch.expect_place("step", step, place)
    if norm is not None:
        options["max_norm"] = as_number("max_norm", max_norm)
        norm = _norm_array(norm, place)
        _dispatch.expect_place("norm", norm, place)
    _expect_together({"gradients": read, **dict(zip(slots, written[1:], strict=True))}, place)
    values, slot_1, slot_2 = (group.work for group in written)
    flags = {name: int(value) if isinstance(value, bool) else value for name, value in options.items()}
    _dispatch.call("update", place, rule, values, read.work, slot_1, slot_2, flags, norm, step)
    for group in written:
        group.copy_back()


def _expect_together(groups: dict[str, _Gradients], place: _dispatch.Place) -> None:
    for name, group in groups.items():
        if group.work and group.place != place:
            raise ValueError(f"{name}: expected arrays on {place}, as the parameters are, got some on {group.place}")


def _norm_array(norm: Any, place: _dispatch.Place) -> Array:
    if hasattr(norm, "shape") and place.on_gpu:
        return as_array("norm", norm).reshape((1,))
    with place.active():
        array: Array = place.namespace.full((1,), as_number("norm", norm), "float64")
    return array
