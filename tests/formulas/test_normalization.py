"""Normalization: figures per element, the ancestor's where it has one, for any rank and in both engines."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

# The tracer sees the layers compare sizes.
pytestmark = pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")


@pytest.fixture
def per_element(both_engines):
    """Operations per element, after a check that there are as many in both conventions."""

    def count(module, inputs):
        cost = both_engines(module, inputs)
        assert cost.fma == 0
        assert cost.other % inputs.numel() == 0
        return cost.other // inputs.numel()

    return count


class TestBatchNorm:
    @pytest.mark.parametrize(
        ("layer", "shape"),
        [
            (nn.BatchNorm1d, (2, 5)),
            (nn.BatchNorm1d, (2, 5, 7)),
            (nn.BatchNorm2d, (2, 5, 3, 7)),
            (nn.BatchNorm3d, (2, 5, 3, 7, 11)),
        ],
    )
    @pytest.mark.parametrize(
        ("training", "affine", "expected"), [(True, True, 5), (True, False, 4), (False, True, 2), (False, False, 1)]
    )
    def test_takes_the_statistics_in_training_alone(self, per_element, layer, shape, training, affine, expected):
        assert per_element(layer(5, affine=affine).train(training), torch.rand(shape)) == expected

    @pytest.mark.parametrize("training", [True, False])
    def test_without_running_statistics_takes_them_always(self, per_element, training):
        module = nn.BatchNorm2d(5, track_running_stats=False).train(training)
        assert per_element(module, torch.rand(2, 5, 3, 7)) == 5

    def test_of_an_empty_batch_is_nothing(self, both_engines):
        assert both_engines(nn.BatchNorm2d(5).eval(), torch.rand(0, 5, 3, 7)).flops(elementwise=True) == 0


class TestInstanceNorm:
    @pytest.mark.parametrize(
        ("layer", "shape"),
        [(nn.InstanceNorm1d, (2, 5, 7)), (nn.InstanceNorm2d, (2, 5, 3, 7)), (nn.InstanceNorm3d, (2, 5, 3, 7, 11))],
    )
    @pytest.mark.parametrize(("affine", "expected"), [(True, 5), (False, 4)])
    @pytest.mark.parametrize("training", [True, False])
    def test_takes_the_statistics_of_every_instance(self, per_element, layer, shape, training, affine, expected):
        assert per_element(layer(5, affine=affine).train(training), torch.rand(shape)) == expected

    @pytest.mark.parametrize(("training", "expected"), [(True, 5), (False, 2)])
    def test_with_running_statistics_takes_none_in_evaluation(self, per_element, training, expected):
        module = nn.InstanceNorm2d(5, affine=True, track_running_stats=True).train(training)
        assert per_element(module, torch.rand(2, 5, 3, 7)) == expected

    def test_takes_one_instance_without_a_batch(self, per_element):
        assert per_element(nn.InstanceNorm2d(5), torch.rand(5, 3, 7)) == 4


class TestLayerAndGroupNorm:
    @pytest.mark.parametrize("shape", [(7,), (3, 7), (2, 3, 7), (2, 3, 2, 3, 2, 7)])
    @pytest.mark.parametrize(("affine", "expected"), [(True, 5), (False, 4)])
    def test_layer_norm_takes_any_rank(self, per_element, shape, affine, expected):
        assert per_element(nn.LayerNorm(7, elementwise_affine=affine), torch.rand(shape)) == expected

    def test_layer_norm_over_several_dimensions_costs_the_same_per_element(self, per_element):
        assert per_element(nn.LayerNorm((3, 7)), torch.rand(2, 3, 7)) == 5

    def test_layer_norm_without_a_bias_still_scales(self, per_element):
        assert per_element(nn.LayerNorm(7, bias=False), torch.rand(2, 7)) == 5

    @pytest.mark.parametrize("shape", [(3, 6), (3, 6, 5), (3, 6, 5, 7)])
    @pytest.mark.parametrize(("affine", "expected"), [(True, 5), (False, 4)])
    def test_group_norm(self, per_element, shape, affine, expected):
        assert per_element(nn.GroupNorm(2, 6, affine=affine), torch.rand(shape)) == expected

    def test_of_an_empty_batch_is_nothing(self, both_engines):
        assert both_engines(nn.LayerNorm(7), torch.rand(0, 7)).flops(elementwise=True) == 0


@pytest.mark.skipif(not hasattr(nn, "RMSNorm"), reason="this torch has no RMS norm")
class TestRMSNorm:
    @pytest.mark.parametrize(("affine", "expected"), [(True, 4), (False, 3)])
    def test_squares_sums_and_scales(self, traced_calls, total_cost, affine, expected):
        module = nn.RMSNorm(7, elementwise_affine=affine).requires_grad_(False)
        cost = total_cost(traced_calls(module, torch.rand(2, 3, 7)))
        assert (cost.fma, cost.other) == (0, expected * 2 * 3 * 7)

    @pytest.mark.parametrize("affine", [True, False])
    def test_on_cpu_runs_as_elementwise_operators_of_the_same_figure(
        self, traced_calls, dispatched_calls, total_cost, affine
    ):
        module = nn.RMSNorm(7, elementwise_affine=affine).requires_grad_(False)
        whole, parts = (total_cost(calls(module, torch.rand(2, 3, 7))) for calls in (traced_calls, dispatched_calls))
        epsilon_and_root_per_row = 2 * 2 * 3
        assert parts.flops() == 0
        assert parts.elementwise == whole.other + epsilon_and_root_per_row

    def test_fused_costs_the_same(self, op_call, tensor, total_cost):
        rows = tensor(2, 3, 7)
        call = op_call("aten::_fused_rms_norm", rows, [7], tensor(7), None, out=[rows, tensor(2, 3, 1)])
        assert total_cost([call]).flops() == 4 * 2 * 3 * 7


class TestKernelsOfOtherDevices:
    AT = torch.ops.aten
    X, C = torch.empty(2, 5, 3, device="meta"), torch.empty(5, device="meta")

    @pytest.mark.parametrize(
        ("kernel", "rest", "expected"),
        [
            (AT.cudnn_batch_norm, (C, C, C, C, True, 0.1, 1e-5), 5),
            (AT.cudnn_batch_norm, (C, C, C, C, False, 0.1, 1e-5), 2),
            (AT._native_batch_norm_legit, (C, C, C, C, True, 0.1, 1e-5), 5),
            (AT._native_batch_norm_legit, (None, None, C, C, False, 0.1, 1e-5), 1),
            (AT._native_batch_norm_legit, (C, C, True, 0.1, 1e-5), 5),
            (AT._native_batch_norm_legit_functional, (C, C, C, C, True, 0.1, 1e-5), 5),
            (AT._native_batch_norm_legit_functional, (C, C, C, C, False, 0.1, 1e-5), 2),
            (AT._native_batch_norm_legit_no_training, (C, C, C, C, 0.1, 1e-5), 2),
            (AT._batch_norm_with_update, (C, C, C, C, 0.1, 1e-5), 5),
            (AT._batch_norm_with_update_functional, (C, C, C, C, 0.1, 1e-5), 5),
            (AT._batch_norm_no_update, (C, C, C, C, 0.1, 1e-5), 2),
        ],
    )
    def test_batch_norm(self, dispatched_calls, total_cost, kernel, rest, expected):
        (call,) = (call for call in dispatched_calls(kernel, self.X, *rest) if "batch_norm" in call.operator)
        assert total_cost([call]).flops() == expected * 2 * 5 * 3

    def test_synchronized_batch_norm_adds_up_to_that_of_one_device(self, op_call, tensor, total_cost):
        x, c = tensor(2, 5, 3), tensor(5)
        parts = [
            op_call("aten::batch_norm_stats", x, 1e-5, out=[c, c]),
            op_call("aten::batch_norm_elemt", x, c, c, c, c, 1e-5, out=x),
        ]
        assert total_cost(parts).flops() == 5 * 2 * 5 * 3

    def test_statistics_of_several_devices_are_combined_per_channel(self, op_call, tensor, total_cost):
        x, means, c = tensor(2, 5, 3), tensor(4, 5), tensor(5)
        operator = "aten::batch_norm_gather_stats_with_counts"
        call = op_call(operator, x, means, means, c, c, 0.1, 1e-5, tensor(4), out=[c, c])
        assert total_cost([call]).flops() == 3 * 4 * 5


class TestBackward:
    @pytest.mark.parametrize(
        ("module", "shape"),
        [
            (nn.BatchNorm2d(5), (2, 5, 3, 7)),
            (nn.InstanceNorm2d(5), (2, 5, 3, 7)),
            (nn.LayerNorm(7), (2, 5, 7)),
            (nn.GroupNorm(2, 6), (2, 6, 5)),
        ],
    )
    def test_is_elementwise_work_of_twice_the_forward(self, dispatched_calls, total_cost, module, shape):
        inputs = torch.rand(shape, requires_grad=True)
        calls = dispatched_calls(lambda x: module(x).sum().backward(), inputs)
        (backward,) = (call for call in calls if "norm_backward" in call.operator)
        cost = total_cost([backward])
        assert (cost.flops(), cost.elementwise) == (0, 2 * 5 * inputs.numel())


def test_local_response_norm_is_elementwise_alone(traced_calls, dispatched_calls, total_cost):
    for calls in (traced_calls, dispatched_calls):
        cost = total_cost(calls(lambda x: F.local_response_norm(x, 3), torch.rand(2, 5, 3, 7)))
        # square, a window of three, and then scale, shift, power, divide
        assert (cost.flops(), cost.elementwise) == (0, (1 + 3 + 4) * 2 * 5 * 3 * 7)
