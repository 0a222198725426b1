"""Fourier transforms: `5 N log2 N`, half for real ones, in both engines."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st


def complexes(*shape):
    return torch.rand(*shape, dtype=torch.complex64)


class TestOneDimension:
    @pytest.mark.parametrize("transform", [torch.fft.fft, torch.fft.ifft])
    def test_complex_transforms_take_5_n_log_n(self, both_engines, transform):
        cost = both_engines(transform, complexes(3, 7, 64))
        assert cost.flops() == cost.flops(fma=2) == 3 * 7 * 5 * 64 * 6

    @pytest.mark.parametrize("transform", [torch.fft.fft, torch.fft.ifft, torch.fft.rfft, torch.fft.ihfft])
    def test_transforms_of_real_numbers_take_half(self, both_engines, transform):
        assert both_engines(transform, torch.rand(3, 7, 64)).flops() == 3 * 7 * 5 * 64 * 6 // 2

    @pytest.mark.parametrize("transform", [torch.fft.irfft, torch.fft.hfft])
    def test_transforms_to_real_numbers_take_half(self, both_engines, transform):
        assert both_engines(transform, complexes(3, 7, 33)).flops() == 3 * 7 * 5 * 64 * 6 // 2

    @pytest.mark.parametrize(("points", "stages"), [(1, 0), (2, 1), (3, 2), (5, 3), (7, 3), (8, 3), (9, 4), (65, 7)])
    def test_stages_are_rounded_up_between_powers_of_two(self, both_engines, points, stages):
        assert both_engines(torch.fft.fft, complexes(3, points)).flops() == 3 * 5 * points * stages

    def test_half_of_an_odd_number_is_rounded_up(self, both_engines):
        assert both_engines(torch.fft.rfft, torch.rand(1, 7)).flops() == 53  # 5 * 7 * 3 / 2 = 52.5

    def test_padding_and_other_dimensions(self, both_engines):
        assert both_engines(lambda x: torch.fft.fft(x, 11, 0), complexes(3, 7, 5)).flops() == 7 * 5 * 5 * 11 * 4
        assert both_engines(lambda x: torch.fft.rfft(x, 11, 1), torch.rand(3, 7, 6)).flops() == 3 * 6 * 5 * 11 * 4 // 2
        assert both_engines(lambda x: torch.fft.irfft(x, 9), complexes(3, 7, 4)).flops() == 3 * 7 * 5 * 9 * 4 // 2

    def test_of_an_empty_batch_is_nothing(self, op_call, tensor, total_cost):
        empty = tensor(0, 7, dtype=torch.complex64)
        assert total_cost([op_call("aten::fft_fft", empty, None, -1, None, out=empty)]).flops(elementwise=True) == 0


class TestSeveralDimensions:
    @pytest.mark.parametrize("transform", [torch.fft.fft2, torch.fft.ifft2])
    @pytest.mark.parametrize("inputs", [complexes(3, 7, 64), torch.rand(3, 7, 64)], ids=["complex", "made complex"])
    def test_points_multiply_and_stages_add(self, both_engines, transform, inputs):
        assert both_engines(transform, inputs).flops() == 3 * 5 * (7 * 64) * (3 + 6)

    @pytest.mark.parametrize("transform", [torch.fft.fftn, torch.fft.ifftn])
    def test_all_dimensions_are_transformed_unless_some_are_named(self, both_engines, transform):
        assert both_engines(transform, complexes(3, 7, 64)).flops() == 5 * (3 * 7 * 64) * (2 + 3 + 6)
        assert both_engines(lambda x: transform(x, dim=(0, 2)), complexes(3, 7, 64)).flops() == (
            7 * 5 * (3 * 64) * (2 + 6)
        )
        assert both_engines(lambda x: transform(x, s=(11, 13)), complexes(3, 7, 64)).flops() == 3 * 5 * (11 * 13) * 8

    @pytest.mark.parametrize("transform", [torch.fft.rfft2, torch.fft.rfftn])
    def test_real_transforms_take_half(self, both_engines, transform):
        assert both_engines(lambda x: transform(x, dim=(1, 2)), torch.rand(3, 7, 64)).flops() == (
            3 * 5 * (7 * 64) * (3 + 6) // 2
        )

    @pytest.mark.parametrize("transform", [torch.fft.irfft2, torch.fft.irfftn])
    def test_inverse_real_transforms_take_half(self, both_engines, transform):
        assert both_engines(lambda x: transform(x, dim=(1, 2)), complexes(3, 7, 33)).flops() == (
            3 * 5 * (7 * 64) * (3 + 6) // 2
        )

    def test_padding_before_half_of_the_spectrum_is_cut(self, both_engines):
        def padded(x):
            return torch.fft.rfftn(x, s=(16, -1), dim=(0, 1))

        assert both_engines(padded, torch.rand(3, 7, 6)).flops() == 6 * 5 * (16 * 7) * (4 + 3) // 2

    @pytest.mark.parametrize("transform", [torch.fft.ihfft2, torch.fft.ihfftn])
    def test_to_half_of_a_hermitian_spectrum_is_real_and_then_complex(self, both_engines, transform):
        cost = both_engines(lambda x: transform(x, dim=(1, 2)), torch.rand(3, 7, 64))
        assert cost.flops() == 3 * 7 * 5 * 64 * 6 // 2 + 3 * 33 * 5 * 7 * 3

    @pytest.mark.parametrize("transform", [torch.fft.hfft2, torch.fft.hfftn])
    def test_from_half_of_a_hermitian_spectrum_is_complex_and_then_real(self, both_engines, transform):
        cost = both_engines(lambda x: transform(x, dim=(1, 2)), complexes(3, 7, 33))
        assert cost.flops() == 3 * 33 * 5 * 7 * 3 + 3 * 7 * 5 * 64 * 6 // 2

    @settings(max_examples=40, deadline=None)
    @given(
        name=st.sampled_from(["fftn", "ifftn", "rfftn", "irfftn", "hfftn", "ihfftn"]),
        shape=st.lists(st.integers(2, 9), min_size=2, max_size=3),
        lengths=st.none() | st.lists(st.integers(2, 9), min_size=1, max_size=2),
    )
    def test_every_transform_is_the_sum_of_what_it_runs_as(self, both_engines, name, shape, lengths):
        real = name in ("rfftn", "ihfftn")
        transform = getattr(torch.fft, name)
        inputs = torch.rand(shape) if real else complexes(*shape)
        cost = both_engines(lambda x: transform(x, s=lengths), inputs)
        assert (cost.fma, cost.elementwise) == (0, 0)
        assert cost.other > 0


class TestShortTimeTransforms:
    WINDOW = torch.ones(16)

    @pytest.mark.parametrize("onesided", [True, False])
    @pytest.mark.parametrize("signal", [torch.rand(100), torch.rand(3, 100)], ids=["one", "batch"])
    def test_take_a_real_transform_per_frame(self, both_engines, onesided, signal):
        def spectrum(x):
            return torch.stft(x, 16, 4, window=self.WINDOW, center=False, onesided=onesided, return_complex=True)

        frames = signal.numel() // 100 * ((100 - 16) // 4 + 1)
        cost = both_engines(spectrum, signal)
        assert cost.flops() == frames * 5 * 16 * 4 // 2
        assert cost.elementwise == frames * 16

    def test_take_a_complex_transform_per_frame_of_complex_numbers(self, both_engines):
        def spectrum(x):
            return torch.stft(x, 16, 4, window=self.WINDOW, center=False, return_complex=True)

        assert both_engines(spectrum, complexes(100)).flops() == 22 * 5 * 16 * 4

    @pytest.mark.parametrize("asked", [False, True])
    def test_back_take_a_transform_per_frame(self, both_engines, asked):
        def signal(spectrum):
            return torch.istft(spectrum, 16, 4, window=self.WINDOW, onesided=not asked, return_complex=asked)

        inputs = complexes(3, 16 if asked else 9, 26)
        assert both_engines(signal, inputs).flops() == 3 * 26 * 5 * 16 * 4 // (1 if asked else 2)


def test_a_backward_runs_as_transforms_too(dispatched_calls, total_cost):
    inputs = torch.rand(3, 64, requires_grad=True)
    forward = total_cost(dispatched_calls(torch.fft.rfft, inputs))
    both = total_cost(dispatched_calls(lambda x: torch.fft.rfft(x).abs().sum().backward(), inputs))
    assert forward.flops() == 3 * 5 * 64 * 6 // 2
    assert both.flops() == forward.flops() + 3 * 5 * 64 * 6
