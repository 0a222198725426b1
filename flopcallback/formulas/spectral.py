"""Fourier transforms: `5 N log2 N` real operations for a complex transform of `N` points, half for a real one.

It is the convention in which FFT libraries state their speed (http://www.fftw.org/speed/method.html): the count of the
radix-2 algorithm, not of the code that really runs. In several dimensions `N` is their product, and `log2 N` the sum of
the dimensions' logarithms. So that counts stay exact integers, every dimension's logarithm is rounded up: exact for
powers of two, and otherwise an upper bound with the stages of the next power. Half of an odd number is rounded up.

"Real" is a transform with real numbers on one side; `N` is the length on that side. Scaling costs nothing. All of it
belongs to the default total.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from flopcallback.formulas.arithmetic import shape_of
from flopcallback.formulas.cost import Cost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from flopcallback.formulas.op_call import OpCall, Value

__all__ = [
    "complex_to_complex",
    "complex_to_real",
    "fft",
    "fft_multidimensional",
    "from_half_spectrum",
    "from_half_spectrum_hermitian",
    "istft",
    "real_to_complex",
    "stft",
    "to_half_spectrum",
    "to_half_spectrum_hermitian",
]


def complex_to_complex(call: OpCall) -> Cost:
    """`_fft_c2c(input, dim, ...)`."""
    return _complex(shape_of(call.inputs[0]), call.inputs[1].constant)


def real_to_complex(call: OpCall) -> Cost:
    """`_fft_r2c(input, dim, ...)`."""
    return _real(shape_of(call.inputs[0]), call.inputs[1].constant)


def complex_to_real(call: OpCall) -> Cost:
    """`_fft_c2r(input, dim, ...)`."""
    return _real(shape_of(call.outputs[0]), call.inputs[1].constant)


def fft(call: OpCall) -> Cost:
    """`fft` and `ifft`, `(input, n, dim, ...)`; real numbers are transformed as such."""
    transform = _complex if _is_complex(call.inputs[0]) else _real
    return transform(shape_of(call.outputs[0]), _dims(call))


def fft_multidimensional(call: OpCall) -> Cost:
    """`fft2`, `fftn` and their inverses, `(input, s, dim, ...)`; real numbers are made complex first."""
    return _complex(shape_of(call.outputs[0]), _dims(call))


def to_half_spectrum(call: OpCall) -> Cost:
    """`rfft`, `rfft2`, `rfftn`, `ihfft`: one real transform in all dimensions."""
    return _real(_real_input_shape(call), _dims(call))


def from_half_spectrum(call: OpCall) -> Cost:
    """`irfft`, `irfft2`, `irfftn`, `hfft`: one real transform in all dimensions."""
    return _real(shape_of(call.outputs[0]), _dims(call))


def to_half_spectrum_hermitian(call: OpCall) -> Cost:
    """`ihfft2`, `ihfftn`: real in the last dimension, then complex in the others on half of the spectrum."""
    *others, last = _dims(call)
    return _real(_real_input_shape(call), [last]) + _complex(shape_of(call.outputs[0]), others)


def from_half_spectrum_hermitian(call: OpCall) -> Cost:
    """`hfft2`, `hfftn`: complex in all dimensions but the last on half of the spectrum, then real in the last."""
    *others, last = _dims(call)
    shape = shape_of(call.outputs[0])
    return _complex(_with_length(shape, last, shape[last] // 2 + 1), others) + _real(shape, [last])


def stft(call: OpCall) -> Cost:
    """`(signal: [batch, samples] or [samples], n_fft, ...)`: a transform per frame; the window is elementwise work."""
    signal, n_fft = call.inputs[:2]
    spectrum = shape_of(call.outputs[0])
    frames = prod(shape_of(signal)[:-1]) * spectrum[-1 if _is_complex(call.outputs[0]) else -2]
    transform = _complex if _is_complex(signal) else _real
    return _frames(frames, n_fft.constant, transform)


def istft(call: OpCall) -> Cost:
    """`(spectrum: [..., frequencies, frames], n_fft, ..., return_complex)`: a real transform per frame by default."""
    spectrum, n_fft = call.inputs[:2]
    *batch, _, frames = shape_of(spectrum)
    transform = _complex if call.inputs[9].constant else _real
    return _frames(prod(batch) * frames, n_fft.constant, transform)


def _frames(frames: int, n_fft: int, transform: Callable[[Sequence[int], Iterable[int]], Cost]) -> Cost:
    return transform((frames, n_fft), [1]) + Cost(elementwise=frames * n_fft)


def _complex(shape: Sequence[int], dims: Iterable[int]) -> Cost:
    return Cost(other=5 * prod(shape) * _stages(shape, dims))


def _real(shape: Sequence[int], dims: Iterable[int]) -> Cost:
    return Cost(other=(5 * prod(shape) * _stages(shape, dims) + 1) // 2)


def _stages(shape: Sequence[int], dims: Iterable[int]) -> int:
    """The sum of `log2`, rounded up, of the lengths in `dims`."""
    return sum((shape[dim] - 1).bit_length() for dim in dims)


def _dims(call: OpCall) -> list[int]:
    """Transformed dimensions of `(input, n or s, dim, ...)`, in order: all of them where neither is given."""
    lengths, dims = (value.constant for value in call.inputs[1:3])
    if dims is None:
        rank = len(shape_of(call.inputs[0]))
        return list(range(-len(lengths) if lengths is not None else -rank, 0))
    return [dims] if isinstance(dims, int) else list(dims)


def _real_input_shape(call: OpCall) -> tuple[int, ...]:
    """The shape before the last transformed dimension was cut to half of the spectrum, after padding or trimming."""
    lengths, last = call.inputs[1].constant, _dims(call)[-1]
    length = lengths[-1] if isinstance(lengths, (list, tuple)) else lengths
    if length in (None, -1):
        length = shape_of(call.inputs[0])[last]
    return _with_length(shape_of(call.outputs[0]), last, length)


def _with_length(shape: tuple[int, ...], dim: int, length: int) -> tuple[int, ...]:
    changed = list(shape)
    changed[dim] = length
    return tuple(changed)


def _is_complex(value: Value) -> bool:
    return value.dtype is not None and value.dtype.is_complex
