"""Fourier transforms, by the convention of FFT libraries.

A complex transform of `N` points is `5 N log2 N` real operations, a real one half of that. FFT libraries state their
speed in this convention (http://www.fftw.org/speed/method.html): it counts the radix-2 algorithm, not the code that
runs. In several dimensions `N` is the product of the lengths, and `log2 N` the sum of their logarithms. Every logarithm
is rounded up, so that counts stay exact integers: exact for powers of two, and otherwise an upper bound with the stages
of the next power. Half of an odd number is rounded up.

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
    """Count `_fft_c2c(input, dim, ...)`."""
    return _complex(shape_of(call.inputs[0]), call.inputs[1].constant)


def real_to_complex(call: OpCall) -> Cost:
    """Count `_fft_r2c(input, dim, ...)`."""
    return _real(shape_of(call.inputs[0]), call.inputs[1].constant)


def complex_to_real(call: OpCall) -> Cost:
    """Count `_fft_c2r(input, dim, ...)`."""
    # `N` is the length on the real side: here the result, in `real_to_complex` the input.
    return _real(shape_of(call.outputs[0]), call.inputs[1].constant)


def fft(call: OpCall) -> Cost:
    """Count `fft` or `ifft`, `(input, n, dim, ...)`."""
    # torch transforms real numbers as such here, unlike in `fft2` and `fftn`.
    transform = _complex if _is_complex(call.inputs[0]) else _real
    return transform(shape_of(call.outputs[0]), _dims(call))


def fft_multidimensional(call: OpCall) -> Cost:
    """Count `fft2`, `fftn` and their inverses, `(input, s, dim, ...)`.

    torch makes real numbers complex first.
    """
    return _complex(shape_of(call.outputs[0]), _dims(call))


def to_half_spectrum(call: OpCall) -> Cost:
    """Count `rfft`, `rfft2`, `rfftn`, `ihfft`: one real transform.

    It goes over all dimensions.
    """
    return _real(_real_input_shape(call), _dims(call))


def from_half_spectrum(call: OpCall) -> Cost:
    """Count `irfft`, `irfft2`, `irfftn`, `hfft`: one real transform.

    It goes over all dimensions.
    """
    return _real(shape_of(call.outputs[0]), _dims(call))


def to_half_spectrum_hermitian(call: OpCall) -> Cost:
    """Count `ihfft2`, `ihfftn`.

    The last dimension is real; the others are then complex, on half of the spectrum.
    """
    *others, last = _dims(call)
    return _real(_real_input_shape(call), [last]) + _complex(shape_of(call.outputs[0]), others)


def from_half_spectrum_hermitian(call: OpCall) -> Cost:
    """Count `hfft2`, `hfftn`.

    All dimensions but the last are complex, on half of the spectrum; the last is then real.
    """
    *others, last = _dims(call)
    shape = shape_of(call.outputs[0])
    return _complex(_with_length(shape, last, shape[last] // 2 + 1), others) + _real(shape, [last])


def stft(call: OpCall) -> Cost:
    """Count `stft`: a transform per frame.

    `(signal: [batch, samples] or [samples], n_fft, ...)`. The window is elementwise work.
    """
    signal, n_fft = call.inputs[:2]
    spectrum = shape_of(call.outputs[0])
    # Without `return_complex`, a last dimension of 2 holds real and imaginary parts.
    frames = prod(shape_of(signal)[:-1]) * spectrum[-1 if _is_complex(call.outputs[0]) else -2]
    transform = _complex if _is_complex(signal) else _real
    return _frames(frames, n_fft.constant, transform)


def istft(call: OpCall) -> Cost:
    """Count `istft`: a transform per frame, real by default.

    `(spectrum: [..., frequencies, frames], n_fft, ..., return_complex)`.
    """
    spectrum, n_fft = call.inputs[:2]
    *batch, _, frames = shape_of(spectrum)
    # Position 9 is `return_complex`.
    transform = _complex if call.inputs[9].constant else _real
    return _frames(prod(batch) * frames, n_fft.constant, transform)


def _frames(frames: int, n_fft: int, transform: Callable[[Sequence[int], Iterable[int]], Cost]) -> Cost:
    # The window is one product per sample.
    return transform((frames, n_fft), [1]) + Cost(elementwise=frames * n_fft)


def _complex(shape: Sequence[int], dims: Iterable[int]) -> Cost:
    return Cost(other=5 * prod(shape) * _stages(shape, dims))


def _real(shape: Sequence[int], dims: Iterable[int]) -> Cost:
    return Cost(other=(5 * prod(shape) * _stages(shape, dims) + 1) // 2)


def _stages(shape: Sequence[int], dims: Iterable[int]) -> int:
    """Return the sum of `log2`, rounded up, of the lengths in `dims`."""
    # `(n - 1).bit_length()` is `log2 n`, rounded up, without floating-point error.
    return sum((shape[dim] - 1).bit_length() for dim in dims)


def _dims(call: OpCall) -> list[int]:
    """Return the transformed dimensions, in order, of `(input, n, dim, ...)`.

    `n` may be the lengths `s`. Without `s` and `dim` they are all dimensions.
    """
    lengths, dims = (value.constant for value in call.inputs[1:3])
    if dims is None:
        rank = len(shape_of(call.inputs[0]))
        # With `s` alone, the last `len(s)` dimensions.
        return list(range(-len(lengths) if lengths is not None else -rank, 0))
    return [dims] if isinstance(dims, int) else list(dims)


def _real_input_shape(call: OpCall) -> tuple[int, ...]:
    """Return the shape of the real input, after padding or trimming.

    The result has only half of the spectrum in the last transformed dimension.
    """
    lengths, last = call.inputs[1].constant, _dims(call)[-1]
    length = lengths[-1] if isinstance(lengths, (list, tuple)) else lengths
    if length in (None, -1):  # neither padded nor trimmed
        length = shape_of(call.inputs[0])[last]
    return _with_length(shape_of(call.outputs[0]), last, length)


def _with_length(shape: tuple[int, ...], dim: int, length: int) -> tuple[int, ...]:
    sizes = list(shape)
    sizes[dim] = length
    return tuple(sizes)


def _is_complex(value: Value) -> bool:
    return value.dtype is not None and value.dtype.is_complex
