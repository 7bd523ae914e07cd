"""What a forward may call, if numbers are to tell what it computes.

Sums, products, sigmoid and tanh are analytic: two formulas of them that agree on random numbers agree on all. A clamp
at 50, a skipped frame, a branch on a value or a clipped gradient shows nowhere but beyond its corner. So a forward is
watched while it is proven, and only what the formula explains may occur in it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from numbers import Number
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import BackwardCFunction
from torch.overrides import TorchFunctionMode

from .calls import leaves, rebuild
from .swapped import PLAN, Plan
from .trace import DROPOUTS, Refused, dropout_rate

DEPTH = 11  # deeper than a disagreement: the name of a function says more than a difference


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


LINEAR = _names("""
    add iadd radd sub isub rsub subtract mul imul rmul multiply neg negative addcmul div idiv itruediv truediv
    true_divide conv1d conv2d conv3d sigmoid tanh
""")
VIEWS = _names("""
    cat concat concatenate stack hstack vstack dstack chunk split split_with_sizes unbind tensor_split hsplit
    getitem setitem select narrow index_select flip view view_as reshape reshape_as permute transpose swapaxes swapdims
    t movedim moveaxis squeeze unsqueeze expand expand_as flatten unflatten contiguous clone copy repeat
    repeat_interleave tile broadcast_to broadcast_tensors rename align_to
""")
CONSTANTS = _names("""
    zeros new_zeros zeros_like zero ones new_ones ones_like full new_full full_like fill empty new_empty
    empty_like tensor new_tensor as_tensor arange
""")
QUERIES = _names("""
    size dim ndimension numel nelement len stride is_contiguous is_floating_point is_complex is_same_size
    get_device element_size storage_offset hash requires_grad
""")
PROPERTIES = _names("""
    shape dtype device ndim requires_grad layout is_leaf grad_fn names T mT is_cuda is_sparse is_quantized
    is_mps is_meta is_mkldnn is_xpu is_nested
""")
NUMBERS = (Number, str, type(None))  # what a forward may count in, or remember by
ALWAYS = LINEAR | VIEWS | CONSTANTS
CASTS = {"to", "type", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda"}
FINITE, REDUCED = {"isnan", "isfinite", "isinf"}, {"any", "all", "logical_not", "invert"}

CUTS = _names("""
    clamp clampmin clampmax hardtanh threshold relu where nantonum maskedfill minimum maximum max min round floor ceil
    trunc fmod remainder fakequantize
""")
CLAMPS = {"clamp", "clip", "clamp_min", "clamp_max"}
HARD = CLAMPS | {"hardsigmoid", "hardtanh", "relu6", "relu", "threshold"}
CORNERED: dict[str, tuple[set[str], set[float]]] = {
    # what an activation may be made of, and the sizes of the numbers at which it may be cut
    "sigmoid": (set(), set()),
    "hard_sigmoid": (HARD, {0.0, 1.0, 3.0, 6.0}),
    "hard_sigmoid_keras2": (HARD, {0.0, 0.2, 0.5, 1.0, 2.5}),
    "tanh": (set(), set()),
    "identity": (set(), set()),
    "relu": (CLAMPS | {"relu", "threshold"}, {0.0}),
    "leaky_relu": ({"leaky_relu"}, set()),
    "hard_tanh": (CLAMPS | {"hardtanh"}, {1.0}),
    "softsign": ({"softsign", "abs"}, set()),
}


def explained_by(activations: set[str]) -> dict[str, set[float]]:
    """The functions with corners that these activations explain, each with the numbers that it may be given."""
    functions: dict[str, set[float]] = {}
    for activation in activations:
        names, numbers = CORNERED[activation]
        for name in names:
            functions[name] = functions.get(name, set()) | numbers
    return functions


class Watch(TorchFunctionMode):
    """Collects what is called and not explained."""

    def __init__(self, cornered: dict[str, set[float]]) -> None:
        super().__init__()
        self.cornered = cornered
        self.unexplained: list[tuple[str, Any]] = []  # a name, and the node of autograd that the call made, if one
        self.seen: set[Any] = set()  # the nodes of all that was called
        self.data: list[Tensor] = []  # what `x.data` gave: often it is asked for its size alone
        self.checks: list[Tensor] = []  # whether all is finite, as an assert asks
        self.asked = False

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Called in place of each of torch's functions."""
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        self.seen.add(getattr(output, "grad_fn", None))
        name = func.__name__.strip("_")
        attribute = name in ("get", "set")
        name = func.__self__.__name__ if attribute else name
        if name in (PROPERTIES if attribute else QUERIES):
            return output
        used = [id(given) for given in leaves((args, kwargs)) if isinstance(given, Tensor)]
        if any(id(data) in used for data in self.data):
            self.unexplained.append(("data", None))
        if name not in (*REDUCED, "bool") and any(id(check) in used for check in self.checks):
            self.unexplained.append(("isnan", None))
        if name == "data" and isinstance(output, Tensor):
            self.data.append(output)
        elif attribute or not self._explains(name, args, kwargs, output):
            self.unexplained.append((name, getattr(output, "grad_fn", None)))
        return output

    def reasons(self, outputs: list[Any], inputs: list[Any]) -> list[str]:
        """The names of what the outputs may depend on; a call whose result autograd knows not to be in them is none."""
        nodes = _nodes(outputs) - _nodes(inputs)
        names = [name for name, node in self.unexplained if node is None or node in nodes]
        names += ["data" for output in outputs if any(output is data for data in self.data)]
        names += [name for node in nodes - self.seen if (name := _operation(node)) in CUTS]  # scripted code is not seen
        names += [f.__name__ for f in _functions(nodes) if not f.__module__.startswith(("torch.", "fusecell."))]
        return list(dict.fromkeys(names))

    def _explains(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> bool:
        if name in self.cornered:
            given = {
                abs(v) for v in (*args, *kwargs.values()) if isinstance(v, (int, float)) and not isinstance(v, bool)
            }
            return name == "leaky_relu" or given <= self.cornered[name]
        if name == "pad":
            return _zeros(*args, **kwargs)
        if name in DROPOUTS:
            return dropout_rate(args, kwargs) == 0.0 or not kwargs.get("training", args[2] if len(args) > 2 else True)
        if name in CASTS:
            return output.dtype == args[0].dtype if isinstance(output, Tensor) else name == "type"
        return (name in ALWAYS and not kwargs.get("rounding_mode")) or self._asks(name, args, output)

    def _asks(self, name: str, args: tuple[Any, ...], output: Any) -> bool:
        """Whether the call is a part of `assert not torch.isnan(h).any()`."""
        of_check = bool(args) and any(args[0] is check for check in self.checks)
        if name in FINITE or (name in REDUCED and of_check):
            self.checks.append(output)
            return True
        self.asked |= name == "bool" and of_check
        return name == "bool" and of_check


def _zeros(input: Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> bool:
    return mode == "constant" and not value


def _nodes(values: list[Any]) -> set[Any]:
    """All nodes of autograd's graph behind the tensors among these."""
    found, waiting = set(), [t.grad_fn for t in values if isinstance(t, Tensor)]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [behind for behind, _ in node.next_functions]
    return found


def _operation(node: Any) -> str:
    """A node's operation, in lower case: "clampmin" of a ClampMinBackward0."""
    return str(type(node).__name__).partition("Backward")[0].lower()


def _functions(nodes: set[Any]) -> list[Any]:
    """The classes of torch.autograd.Function among the nodes."""
    made: list[Any] = [type(node) for node in nodes if isinstance(node, BackwardCFunction)]
    return [cls._forward_cls for cls in made]


@contextmanager
def unwatched() -> Iterator[None]:
    """For what is not the module's own code: a fused cell inside it."""
    with torch._C.DisableTorchFunction():
        yield


class Unwatched:
    """A plan whose own calls are no part of what is watched."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan

    def run(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """As the plan's."""
        with unwatched():
            return self.plan.run(module, args, kwargs)


def watch(module: nn.Module, activations: set[str]) -> None:
    """From now on module.forward raises Refused for a call, or a new value of an attribute, that is not explained."""
    forward, cornered = module.forward, explained_by(activations)
    for child in module.modules():
        if PLAN in child.__dict__:
            child.__dict__[PLAN] = Unwatched(child.__dict__[PLAN])

    def watched(*args: Any, **kwargs: Any) -> Any:
        before, mode = _attributes(module), Watch(cornered)
        with mode:
            output = forward(*args, **kwargs)
        _refuse(mode.reasons(leaves(output), leaves((args, kwargs))), before, _attributes(module))
        if mode.asked:
            _refuse_mended(forward, args, kwargs)
        return output

    module.__dict__["forward"] = watched


def _refuse(called: list[str], before: dict[str, Any], after: dict[str, Any]) -> None:
    if called:
        raise Refused(f"its forward calls {', '.join(called)}, which a ConvLSTM does not", DEPTH)
    written = [name for name, value in after.items() if value != before.get(name, _attributes)]
    if written:
        raise Refused(f"its forward writes {', '.join(written)}, which a fused one would not", DEPTH)


def _refuse_mended(forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Raises Refused where a forward that asks for NaN does something else about it than to raise an error."""
    for tensor in [t for t in leaves((args, kwargs)) if isinstance(t, Tensor)]:

        def spoiled(value: Any, tensor: Tensor = tensor) -> Any:
            return torch.full_like(tensor, float("nan")) if value is tensor else value

        try:
            outputs = leaves(forward(*rebuild(args, spoiled), **rebuild(kwargs, spoiled)))
        except Exception:  # the assert
            continue
        if not all(bool(t.isnan().all()) for t in outputs if isinstance(t, Tensor)):
            raise Refused("its forward mends NaN, which a ConvLSTM does not", DEPTH)


def _attributes(module: nn.Module) -> dict[str, Any]:
    """What the plain attributes of a module hold that is no tensor."""
    of_every_module = vars(nn.Module())
    return {
        f"{path}.{name}".lstrip("."): leaves(value)
        for path, child in module.named_modules()
        for name, value in vars(child).items()
        if name not in of_every_module and all(isinstance(leaf, NUMBERS) for leaf in leaves(value))
    }
