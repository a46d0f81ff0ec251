"""What this machine can do and what a forward pass asks of it: GEMM rate, FLOPs, peak memory, where the time goes.

Used by `pipeline bench embed` to say how far from the hardware's limit an embedding run is.
"""

import ctypes
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch.autograd.profiler_util import FunctionEvent

if TYPE_CHECKING:
    from transformers import PreTrainedModel

GEMM_SECONDS = 0.15  # of measuring per shape
Shapes = Mapping[tuple[int, ...], int]

# Dense bfloat16 peaks of NVIDIA's data sheets (half of the figure "with sparsity"), by the start of the device's name.
PEAK_TFLOPS = {
    "NVIDIA H200": 989.0,
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H100 NVL": 835.0,
    "NVIDIA H100": 989.0,
    "NVIDIA A100": 312.0,
    "NVIDIA L40S": 362.0,
    "NVIDIA L4": 121.0,
    "NVIDIA A10": 125.0,
}

# Operators by the kind of work; the first line that an operator or one it was called from fits is taken.
KINDS = {
    "attention": ("scaled_dot_product", "flash_attn", "efficient_attention"),
    "linear layers": ("aten::linear", "aten::addmm", "aten::mm", "aten::bmm", "aten::matmul", "mkldnn"),
    "norms, activations, rotary": (
        *("aten::mul", "aten::add", "aten::pow", "aten::mean", "aten::rsqrt", "aten::neg", "aten::gelu", "aten::silu"),
        *("aten::tanh", "aten::cos", "aten::sin", "aten::rms_norm", "aten::layer_norm", "aten::native_layer_norm"),
        *("aten::_fused_rms_norm", "aten::sub", "aten::div", "aten::square", "aten::linalg_vector_norm"),
    ),
    "copies, gathers, masks": (
        *("aten::copy", "aten::_to_copy", "aten::to", "aten::cat", "aten::contiguous", "aten::clone", "aten::index"),
        *("aten::arange", "aten::ge", "aten::lt", "aten::stack", "aten::embedding", "aten::fill", "aten::empty"),
    ),
}
OTHER, OUTSIDE = "other operators", "outside operators (Python, launches)"


def gemm_rate(shapes: Shapes, tokens: int, *, dtype: torch.dtype, device: str) -> float:
    """Measured FLOP/s of matrix products at a model's own shapes, each weighted as often as the model uses it.

    Args:
        shapes: (rows, columns) of weights and how many layers have them, from `weight_shapes`.
        tokens: rows of the activations.
        dtype: of weights and activations.
        device: "cpu" or "cuda".
    """
    flops = seconds = 0.0
    for (outputs, inputs), count in shapes.items():
        states = torch.randn(tokens, inputs, device=device).to(dtype)
        weight = torch.randn(outputs, inputs, device=device).to(dtype)
        flops += count * 2.0 * tokens * inputs * outputs
        seconds += count * _median_seconds(lambda x=states, w=weight: torch.nn.functional.linear(x, w), device)  # type: ignore[misc]
    return flops / seconds


def weight_shapes(model: "PreTrainedModel") -> Counter[tuple[int, ...]]:
    """Shapes of the model's weight matrices outside its embeddings."""
    return Counter(
        tuple(weight.shape)
        for module in model.modules()
        if not isinstance(module, torch.nn.Embedding)
        for weight in module.parameters(recurse=False)
        if weight.ndim == 2
    )


def weight_bytes(model: torch.nn.Module) -> int:
    """Memory of a model's weights and buffers."""
    return sum(tensor.nbytes for tensor in [*model.parameters(), *model.buffers()])


def matrix_flops(model: "PreTrainedModel", tokens: int) -> float:
    """2 x parameters outside the embeddings x tokens: every weight multiplies and adds once per token."""
    embedded = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    return 2.0 * tokens * sum(p.numel() for p in model.parameters() if id(p) not in embedded)


def attention_flops(model: "PreTrainedModel", positions: Iterable[NDArray[np.int64]]) -> float:
    """4 x heads x head dimension x (query, key) pairs, over the layers: scores and weighted sum.

    Args:
        model: says how many heads, and which layers have a sliding window.
        positions: of the tokens run, each in its own conversation; a token sees itself and what is before it.
    """
    config = model.config.get_text_config()
    heads = getattr(config, "num_attention_heads", 0)
    if not heads:
        return 0.0
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    windows = [config.sliding_window if kind == "sliding_attention" else None for kind in kinds]
    seen = np.concatenate([np.asarray(part) for part in positions]) + 1
    pairs = {window: int((seen if window is None else np.minimum(seen, window)).sum()) for window in set(windows)}
    return float(4 * width * sum(pairs[window] for window in windows))


def known_peak(device_name: str) -> float | None:
    """Dense bfloat16 TFLOP/s of a GPU by its name; None if it is not in the table."""
    found = [name for name in PEAK_TFLOPS if device_name.startswith(name)]
    return PEAK_TFLOPS[max(found, key=len)] if found else None


def start_peak(device: str) -> int | None:
    """Forget the highest memory use so far.

    Returns: bytes in use now: held from the GPU, or resident in this process. None where the system keeps one
        peak for the whole life of the process (anything but Linux).
    """
    if device == "cuda":
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()
    if sys.platform != "linux":
        return None
    ctypes.CDLL(None).malloc_trim(0)  # what an earlier variant freed must not be room for this one
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def peak(device: str) -> int:
    """Highest memory use since `start_peak`, in bytes."""
    if device == "cuda":
        return torch.cuda.memory_reserved()  # not the allocator's peak: a growing token budget resets that as it goes
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def synchronise(device: str) -> None:
    """Wait for the GPU, so that a clock read next is right."""
    if device == "cuda":
        torch.cuda.synchronize()


def profile(action: Callable[[], object], device: str) -> dict[str, float]:
    """Share of an action's wall time by kind of work; sums to 1.

    On a CPU an operator's own time is counted, on a GPU that of its kernels. Profiling slows small operators down, so
    shares of "norms" and "copies" are upper estimates.
    """
    action()
    kinds = [torch.profiler.ProfilerActivity.CPU]
    if device == "cuda":
        kinds.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=kinds) as recorded:
        started = time.perf_counter()
        action()
        synchronise(device)
        wall = (time.perf_counter() - started) * 1e6  # microseconds, as the profiler's
    spent = dict.fromkeys([*KINDS, OTHER], 0.0)
    for event in recorded.events():
        if event.name.startswith(("aten::", "mkldnn::")):
            spent[kind_of(event)] += event.self_device_time_total if device == "cuda" else event.self_cpu_time_total
    wall = max(wall, sum(spent.values()))
    return {**{kind: time_ / wall for kind, time_ in spent.items()}, OUTSIDE: 1 - sum(spent.values()) / wall}


def kind_of(event: FunctionEvent) -> str:
    """The kind of work of an operator: that of the outermost operator it was called from that has one."""
    found = OTHER
    at: FunctionEvent | None = event
    while at is not None:
        found = next((kind for kind, names in KINDS.items() if _fits(at.name, names)), found)
        at = at.cpu_parent
    return found


def _fits(name: str, starts: tuple[str, ...]) -> bool:
    plain = name.rstrip("_")  # in place or not
    return any(plain == start or (start in name and not start.startswith("aten::")) for start in starts)


def _median_seconds(action: Callable[[], object], device: str) -> float:
    """Median duration of an action, repeated for a while. The first call warms up: it counts only if it took long."""
    durations = [_seconds(action, device)]
    if durations[0] < GEMM_SECONDS:
        durations = [_seconds(action, device)]
    while sum(durations) < GEMM_SECONDS and len(durations) < 100:
        durations.append(_seconds(action, device))
    return float(np.median(durations))


def _seconds(action: Callable[[], object], device: str) -> float:
    synchronise(device)
    started = time.perf_counter()
    action()
    synchronise(device)
    return time.perf_counter() - started
