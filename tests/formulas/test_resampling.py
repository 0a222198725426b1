"""Interpolation, grid sampling, pooling: figures per output or input, in both engines."""

import pytest
import torch
import torch.nn.functional as F

# The tracer sees the functions compare and convert sizes.
pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")

IMAGE = {1: (2, 3, 5), 2: (2, 3, 5, 7), 3: (2, 3, 5, 7, 11)}
LARGER = {1: (13,), 2: (13, 17), 3: (13, 17, 19)}


@pytest.fixture
def backward(dispatched_calls, total_cost):
    """The cost of the operators whose name ends with `backward`."""

    def count(fn, inputs):
        calls = dispatched_calls(lambda x: fn(x).sum().backward(), inputs.requires_grad_())
        return total_cost([call for call in calls if call.operator.endswith("backward")])

    return count


class TestInterpolation:
    CASES = (
        ("nearest", 1, 1),
        ("nearest", 2, 1),
        ("nearest", 3, 1),
        ("nearest-exact", 1, 1),
        ("nearest-exact", 2, 1),
        ("nearest-exact", 3, 1),
        ("linear", 1, 2),
        ("bilinear", 2, 4),
        ("trilinear", 3, 8),
        ("bicubic", 2, 16),
    )

    @pytest.mark.parametrize(("mode", "dimensions", "taps"), CASES)
    def test_to_a_size_costs_the_values_in_each_output(self, both_engines, mode, dimensions, taps):
        size = LARGER[dimensions]
        cost = both_engines(lambda x: F.interpolate(x, size=size, mode=mode), torch.rand(IMAGE[dimensions]))
        assert cost.flops() == cost.flops(fma=2) == taps * 2 * 3 * torch.Size(size).numel()

    @pytest.mark.parametrize(("mode", "dimensions", "taps"), CASES)
    def test_by_a_factor_costs_the_same_per_output(self, both_engines, mode, dimensions, taps):
        inputs = torch.rand(IMAGE[dimensions])
        cost = both_engines(lambda x: F.interpolate(x, scale_factor=3.0, mode=mode), inputs)
        assert cost.flops() == taps * inputs.numel() * 3**dimensions

    @pytest.mark.parametrize(("mode", "dimensions", "taps"), CASES)
    def test_backward_is_as_much_elementwise_work(self, backward, mode, dimensions, taps):
        size = LARGER[dimensions]
        cost = backward(lambda x: F.interpolate(x, size=size, mode=mode), torch.rand(IMAGE[dimensions]))
        assert (cost.flops(), cost.elementwise) == (0, taps * 2 * 3 * torch.Size(size).numel())

    def test_of_an_empty_batch_is_nothing(self, both_engines):
        cost = both_engines(lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"), torch.rand(0, 3, 5, 7))
        assert cost.flops(elementwise=True) == 0

    @pytest.mark.parametrize(("mode", "taps"), [("bilinear", 2), ("bicubic", 4)])
    def test_antialiased_enlarging_takes_the_plain_filter(self, both_engines, mode, taps):
        cost = both_engines(
            lambda x: F.interpolate(x, size=(13, 17), mode=mode, antialias=True), torch.rand(2, 3, 5, 7)
        )
        assert cost.flops() == taps**2 * 2 * 3 * 13 * 17

    @pytest.mark.parametrize(("mode", "rows", "columns"), [("bilinear", 8, 3), ("bicubic", 15, 6)])
    def test_antialiased_shrinking_takes_a_wider_filter(self, both_engines, mode, rows, columns):
        # 11 rows to 3 widen a filter of 2 to 2 * 11 / 3 = 7.33, of 4 to 14.67; 7 columns to 5 to 2.8 and 5.6.
        cost = both_engines(lambda x: F.interpolate(x, size=(3, 5), mode=mode, antialias=True), torch.rand(2, 3, 11, 7))
        assert cost.flops() == rows * columns * 2 * 3 * 3 * 5


class TestGridSampling:
    @pytest.mark.parametrize(("mode", "taps"), [("nearest", 1), ("bilinear", 4), ("bicubic", 16)])
    def test_of_images(self, both_engines, mode, taps):
        def sample(image, grid):
            return F.grid_sample(image, grid, mode=mode, align_corners=False)

        cost = both_engines(sample, torch.rand(2, 3, 5, 7), torch.rand(2, 11, 13, 2))
        assert cost.flops() == cost.flops(fma=2) == taps * 2 * 3 * 11 * 13

    @pytest.mark.parametrize(("mode", "taps"), [("nearest", 1), ("bilinear", 8)])
    def test_of_volumes(self, both_engines, mode, taps):
        def sample(volume, grid):
            return F.grid_sample(volume, grid, mode=mode, align_corners=False)

        cost = both_engines(sample, torch.rand(2, 3, 5, 7, 11), torch.rand(2, 13, 17, 19, 3))
        assert cost.flops() == taps * 2 * 3 * 13 * 17 * 19

    def test_by_cudnn_is_bilinear(self, op_call, tensor, total_cost):
        call = op_call("aten::cudnn_grid_sampler", tensor(2, 3, 5, 7), tensor(2, 11, 13, 2), out=tensor(2, 3, 11, 13))
        assert total_cost([call]).flops() == 4 * 2 * 3 * 11 * 13

    @pytest.mark.parametrize(("grid_too", "gradients"), [(False, 1), (True, 2)])
    def test_backward_is_as_much_elementwise_work_per_gradient(self, backward, grid_too, gradients):
        grid = torch.rand(2, 11, 13, 2, requires_grad=grid_too)
        cost = backward(lambda image: F.grid_sample(image, grid, align_corners=False), torch.rand(2, 3, 5, 7))
        assert (cost.flops(), cost.elementwise) == (0, gradients * 4 * 2 * 3 * 11 * 13)


class TestAdaptiveAveragePooling:
    @pytest.mark.parametrize(
        ("pool", "dimensions"), [(F.adaptive_avg_pool1d, 1), (F.adaptive_avg_pool2d, 2), (F.adaptive_avg_pool3d, 3)]
    )
    @pytest.mark.parametrize("size", [1, 2, 3])
    @pytest.mark.parametrize("batched", [True, False])
    def test_is_one_operation_per_input_element(self, both_engines, pool, dimensions, size, batched):
        shape = IMAGE[dimensions] if batched else IMAGE[dimensions][1:]
        cost = both_engines(lambda x: pool(x, [size] * dimensions), torch.rand(shape))
        assert cost.flops() == cost.flops(fma=2) == torch.Size(shape).numel()

    @pytest.mark.parametrize("dimensions", [1, 2, 3])
    def test_is_what_interpolation_by_area_runs_as(self, both_engines, dimensions):
        size = [2] * dimensions
        cost = both_engines(lambda x: F.interpolate(x, size=size, mode="area"), torch.rand(IMAGE[dimensions]))
        assert cost.flops() == torch.Size(IMAGE[dimensions]).numel()

    def test_to_one_value_counts_however_it_is_written(self, both_engines):
        cost = both_engines(lambda x: x.mean([-1, -2], keepdim=True), torch.rand(2, 3, 5, 7))
        assert cost.flops() == 2 * 3 * 5 * 7

    @pytest.mark.parametrize(
        "mean", [torch.mean, lambda x: x.mean(1), lambda x: x.mean((2, 3)), lambda x: x.mean([-1], keepdim=True)]
    )
    def test_is_not_any_other_mean(self, both_engines, mean):
        cost = both_engines(mean, torch.rand(2, 3, 5, 7))
        assert (cost.flops(), cost.elementwise) == (0, 2 * 3 * 5 * 7)

    def test_of_an_empty_batch_is_nothing(self, both_engines):
        assert both_engines(lambda x: F.adaptive_avg_pool2d(x, 1), torch.rand(0, 3, 5, 7)).flops(elementwise=True) == 0

    def test_backward_is_elementwise(self, backward):
        cost = backward(lambda x: F.adaptive_avg_pool2d(x, 2), torch.rand(2, 3, 5, 7))
        assert (cost.flops(), cost.elementwise) == (0, 2 * 3 * 5 * 7)


class TestOtherPools:
    """None is in the default total."""

    @pytest.mark.parametrize(
        ("pool", "shape", "kernel", "outputs"),
        [
            (F.avg_pool1d, (2, 3, 11), 5, 7),
            (F.avg_pool2d, (2, 3, 11, 13), (3, 5), 9 * 9),
            (F.avg_pool3d, (2, 3, 7, 11, 13), (2, 3, 5), 6 * 9 * 9),
            (F.max_pool1d, (2, 3, 11), 5, 7),
            (F.max_pool2d, (2, 3, 11, 13), (3, 5), 9 * 9),
            (F.max_pool3d, (2, 3, 7, 11, 13), (2, 3, 5), 6 * 9 * 9),
        ],
    )
    def test_take_a_window_per_output(self, traced_calls, dispatched_calls, total_cost, pool, shape, kernel, outputs):
        for calls in (traced_calls, dispatched_calls):
            cost = total_cost(calls(lambda x: pool(x, kernel, stride=1), torch.rand(shape)))
            window = kernel if isinstance(kernel, int) else torch.Size(kernel).numel()
            assert (cost.flops(), cost.elementwise) == (0, window * 2 * 3 * outputs)

    def test_take_a_square_window_for_one_number(self, both_engines):
        cost = both_engines(lambda x: F.max_pool2d(x, 3, return_indices=True)[0], torch.rand(2, 3, 11, 13))
        assert (cost.flops(), cost.elementwise) == (0, 9 * 2 * 3 * 3 * 4)

    def test_fractional_pooling_takes_a_window_per_output(self, both_engines):
        samples = torch.rand(2, 3, 2)
        cost = both_engines(
            lambda x: F.fractional_max_pool2d(x, 3, output_size=(2, 5), _random_samples=samples),
            torch.rand(2, 3, 11, 13),
        )
        assert (cost.flops(), cost.elementwise) == (0, 9 * 2 * 3 * 2 * 5)

    @pytest.mark.parametrize(
        ("pool", "dimensions"), [(F.adaptive_max_pool1d, 1), (F.adaptive_max_pool2d, 2), (F.adaptive_max_pool3d, 3)]
    )
    def test_adaptive_maximum_pooling_reads_the_input_once(self, both_engines, pool, dimensions):
        cost = both_engines(lambda x: pool(x, [2] * dimensions), torch.rand(IMAGE[dimensions]))
        assert (cost.flops(), cost.elementwise) == (0, torch.Size(IMAGE[dimensions]).numel())

    def test_lp_pooling_is_powers_and_an_average(self, both_engines):
        assert both_engines(lambda x: F.lp_pool2d(x, 2.0, 3), torch.rand(2, 3, 11, 13)).flops() == 0

    def test_backward_spreads_an_average_and_returns_a_maximum(self, backward):
        outputs = 2 * 3 * 3 * 4
        assert backward(lambda x: F.avg_pool2d(x, 3), torch.rand(2, 3, 11, 13)).elementwise == 9 * outputs
        assert backward(lambda x: F.max_pool2d(x, 3), torch.rand(2, 3, 11, 13)).elementwise == outputs
        assert backward(lambda x: F.adaptive_max_pool2d(x, 2), torch.rand(2, 3, 11, 13)).elementwise == 2 * 3 * 2 * 2
