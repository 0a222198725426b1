"""Attention: every kernel against the same figures, derived by hand."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from flopcallback.formulas import attention
from flopcallback.formulas.attention import Attention, with_causal
from flopcallback.formulas.registry import COUNTED, Family, lookup

ROWS = {name: formula for name, formula in COUNTED[Family.ATTENTION].items() if isinstance(formula, Attention)}


def attend(query, key, value, **options):
    return F.scaled_dot_product_attention(query, key, value, **options)


class TestScaledDotProductAttention:
    def test_is_one_product_by_the_width_and_one_by_the_values_width_per_pair_and_head(self, both_engines):
        cost = both_engines(attend, torch.rand(2, 3, 5, 7), torch.rand(2, 3, 11, 7), torch.rand(2, 3, 11, 13))
        assert cost.flops() == 2 * 3 * 5 * 11 * (7 + 13)
        assert cost.flops(fma=2) == 2 * 2 * 3 * 5 * 11 * (7 + 13)

    def test_scale_and_softmax_are_elementwise(self, both_engines):
        cost = both_engines(attend, torch.rand(2, 3, 5, 7), torch.rand(2, 3, 11, 7), torch.rand(2, 3, 11, 13))
        assert cost.elementwise == 2 * 3 * 5 * 11 * (1 + 5)

    @pytest.mark.parametrize("batch", [(), (3,), (2, 3), (2, 3, 5), (2, 1, 3, 5)])
    def test_takes_any_number_of_batch_dimensions(self, both_engines, batch):
        query, key, value = torch.rand(*batch, 5, 7), torch.rand(*batch, 11, 7), torch.rand(*batch, 11, 13)
        assert both_engines(attend, query, key, value).fma == torch.Size(batch).numel() * 5 * 11 * (7 + 13)

    def test_broadcasts_keys_over_the_batch(self, both_engines):
        query, key, value = torch.rand(2, 3, 5, 7), torch.rand(1, 1, 11, 7), torch.rand(3, 11, 13)
        assert both_engines(attend, query, key, value).fma == 2 * 3 * 5 * 11 * (7 + 13)

    def test_computes_scores_once_where_only_the_values_have_a_batch(self, both_engines):
        query, key, value = torch.rand(1, 3, 5, 7), torch.rand(1, 3, 11, 7), torch.rand(17, 3, 11, 13)
        assert both_engines(attend, query, key, value).fma == 3 * 5 * 11 * 7 + 17 * 3 * 5 * 11 * 13

    def test_ignores_a_mask(self, both_engines):
        def masked(query, key, value, mask):
            return F.scaled_dot_product_attention(query, key, value, attn_mask=mask)

        inputs = torch.rand(2, 3, 5, 7), torch.rand(2, 3, 11, 7), torch.rand(2, 3, 11, 13), torch.rand(2, 1, 5, 11)
        assert both_engines(masked, *inputs).fma == 2 * 3 * 5 * 11 * (7 + 13)

    def test_lets_every_query_head_attend_where_keys_are_shared(self, both_engines):
        def grouped(query, key, value):
            return attend(query, key, value, enable_gqa=True)

        query, key = torch.rand(2, 6, 5, 7), torch.rand(2, 3, 11, 7)
        assert both_engines(grouped, query, key, torch.rand(2, 3, 11, 7)).fma == 2 * 6 * 5 * 11 * (7 + 7)
        assert both_engines(grouped, query, key, torch.rand(2, 3, 11, 13)).fma == 2 * 6 * 5 * 11 * (7 + 13)

    @pytest.mark.parametrize("options", [{"dropout_p": 0.5}, {"is_causal": True}, {"scale": 0.5}])
    def test_costs_the_same_with_dropout_causal_mask_or_scale(self, both_engines, options):
        def attend_so(query, key, value):
            return attend(query, key, value, **options)

        inputs = torch.rand(2, 3, 5, 7), torch.rand(2, 3, 5, 7), torch.rand(2, 3, 5, 7)
        assert both_engines(attend_so, *inputs).fma == 2 * 3 * 5 * 5 * (7 + 7)

    def test_is_nothing_for_an_empty_batch(self, traced_calls, total_cost):
        calls = traced_calls(attend, torch.rand(0, 3, 5, 7), torch.rand(0, 3, 11, 7), torch.rand(0, 3, 11, 13))
        assert total_cost(calls).flops(elementwise=True) == 0

    def test_is_nothing_where_queries_of_an_empty_batch_meet_broadcast_keys(self, traced_calls, total_cost):
        calls = traced_calls(attend, torch.rand(0, 3, 5, 7), torch.rand(1, 3, 11, 7), torch.rand(1, 3, 11, 13))
        assert total_cost(calls).flops(elementwise=True) == 0

    def test_counts_the_flash_kernel_and_the_products_of_the_math_path_alike(self, dispatched_calls, total_cost):
        inputs = torch.rand(2, 3, 5, 7), torch.rand(2, 3, 11, 7), torch.rand(2, 3, 11, 7)
        flash, products = (
            dispatched_calls(attend, *inputs),
            dispatched_calls(lambda *qkv: attend(*qkv, dropout_p=0.5), *inputs),
        )
        assert [call.operator for call in flash] == ["aten::_scaled_dot_product_flash_attention_for_cpu"]
        assert [call.operator for call in products if "bmm" in call.operator] == ["aten::bmm", "aten::bmm"]
        assert total_cost(flash).fma == total_cost(products).fma == 2 * 3 * 5 * 11 * (7 + 7)


class TestBackward:
    def test_computes_scores_again_and_four_gradients(self, dispatched_calls):
        inputs = [torch.rand(2, 3, tokens, 7, requires_grad=True) for tokens in (5, 11, 11)]
        calls = dispatched_calls(lambda *qkv: attend(*qkv).sum().backward(), *inputs)
        (backward,) = (call for call in calls if call.operator.endswith("for_cpu_backward"))
        cost = lookup(backward.operator).formula(backward)
        assert cost.flops() == 2 * 3 * 5 * 11 * (3 * 7 + 2 * 7)
        assert cost.flops(fma=2) == 2 * 2 * 3 * 5 * 11 * (3 * 7 + 2 * 7)

    def test_of_the_unfused_path_is_four_products(self, dispatched_calls, total_cost):
        inputs = [torch.rand(2, 3, tokens, 7, requires_grad=True) for tokens in (5, 11, 11)]
        calls = dispatched_calls(lambda *qkv: attend(*qkv, dropout_p=0.5).sum().backward(), *inputs)
        products = [call for call in calls if call.operator == "aten::bmm"]
        assert total_cost(products).fma == (2 + 4) * 2 * 3 * 5 * 11 * 7

    def test_takes_the_values_width_twice_and_the_queries_width_three_times(self, tensor, op_call):
        query, key, value = tensor(2, 6, 5, 7), tensor(2, 3, 11, 7), tensor(2, 3, 11, 13)
        rest = [tensor(2, 6, 5, 13), tensor(2, 6, 5), 0.0, False, None, None]
        operator = "aten::_scaled_dot_product_flash_attention_for_cpu_backward"
        call = op_call(operator, tensor(2, 6, 5, 13), query, key, value, *rest, out=[query, key, value])
        assert attention.flash_for_cpu_backward(call).fma == 2 * 6 * 5 * 11 * (3 * 7 + 2 * 13)


def heads_first():
    return [torch.empty(2, 6, tokens, 16, dtype=torch.half, device="meta") for tokens in (5, 11, 11)]


def tokens_first():
    return [torch.empty(2, tokens, 6, 16, dtype=torch.half, device="meta") for tokens in (5, 11, 11)]


def packed():
    return [torch.empty(2 * tokens, 6, 16, dtype=torch.half, device="meta") for tokens in (5, 11, 11)]


class TestKernelsOfOtherDevices:
    """Their meta kernels say what they return; torch's own counter is asked too."""

    AT = torch.ops.aten
    SEEN = torch.empty(1, dtype=torch.long, device="meta")
    LOG_SUM = torch.empty(2, 6, 5, device="meta")
    STARTS = torch.empty(3, dtype=torch.int, device="meta")

    @pytest.mark.parametrize(
        ("kernel", "inputs", "rest"),
        [
            (AT._scaled_dot_product_flash_attention, heads_first, ()),
            (AT._scaled_dot_product_efficient_attention, heads_first, (None, True)),
            (AT._scaled_dot_product_cudnn_attention, heads_first, (None, True)),
            (AT._scaled_dot_product_fused_attention_overrideable, heads_first, ()),
            (AT._flash_attention_forward, tokens_first, (None, None, 5, 11, 0.0, False, False)),
            (AT._flash_attention_forward, packed, (STARTS, STARTS, 5, 11, 0.0, False, False)),
            (AT._efficient_attention_forward, tokens_first, (None, None, None, None, None, 0.0, 0)),
        ],
    )
    def test_forward(self, dispatched_calls, total_cost, kernel, inputs, rest):
        cost = total_cost(dispatched_calls(kernel, *inputs(), *rest))
        assert cost.fma == 2 * 6 * 5 * 11 * (16 + 16)

    @pytest.mark.parametrize(
        ("kernel", "inputs", "rest"),
        [
            (
                AT._scaled_dot_product_flash_attention_backward,
                heads_first,
                (LOG_SUM, SEEN, SEEN, 5, 11, 0.0, False, SEEN, SEEN),
            ),
            (
                AT._scaled_dot_product_cudnn_attention_backward,
                heads_first,
                (LOG_SUM, SEEN, SEEN, None, SEEN, SEEN, 5, 11, 0.0, False),
            ),
            (AT._flash_attention_backward, packed, (LOG_SUM, STARTS, STARTS, 5, 11, 0.0, False, SEEN, SEEN)),
        ],
    )
    def test_backward(self, dispatched_calls, total_cost, kernel, inputs, rest):
        query, key, value = inputs()
        cost = total_cost(dispatched_calls(kernel, query, query, key, value, query, *rest))
        assert cost.fma == 2 * 6 * 5 * 11 * (3 * 16 + 2 * 16)

    def test_backward_of_the_memory_efficient_kernel(self, dispatched_calls, total_cost):
        query, key, value = heads_first()
        kernel = self.AT._scaled_dot_product_efficient_attention_backward
        rest = query, self.LOG_SUM, self.SEEN, self.SEEN, 0.0, [True, True, True, False]
        cost = total_cost(dispatched_calls(kernel, query, query, key, value, None, *rest))
        assert cost.fma == 2 * 6 * 5 * 11 * (3 * 16 + 2 * 16)

    def test_backward_of_the_memory_efficient_kernel_with_tokens_first(self, dispatched_calls, total_cost):
        query, key, value = tokens_first()
        kernel = self.AT._efficient_attention_backward
        rest = None, query, None, None, 5, 11, self.LOG_SUM, 0.0, self.SEEN, self.SEEN, 0, False
        cost = total_cost(dispatched_calls(kernel, query, query, key, value, *rest))
        assert cost.fma == 2 * 6 * 5 * 11 * (3 * 16 + 2 * 16)

    def test_the_cudnn_kernel_packed_and_its_backward(self, tensor, op_call):
        query, key, starts = tensor(17, 6, 16), tensor(23, 6, 16), tensor(3, dtype=torch.int)
        rest = None, starts, starts, 13, 19, True, 0.0, False
        forward = op_call("aten::_cudnn_attention_forward", query, key, key, *rest, out=query)
        assert attention.cudnn_kernel(forward).fma == 6 * 17 * 19 * (16 + 16)
        saved = query, starts, starts, starts, None, starts, starts, 13, 19, 0.0, False
        backward = op_call("aten::_cudnn_attention_backward", query, query, key, key, *saved, out=[query, key, key])
        assert attention.cudnn_kernel_backward(backward).fma == 6 * 17 * 19 * (3 * 16 + 2 * 16)
        query, key, value = tensor(2, 6, 5, 7), tensor(2, 3, 11, 7), tensor(2, 3, 11, 13)
        saved = query, starts, starts, starts, None, None, None, 5, 11, 0.0, False
        backward = op_call("aten::_cudnn_attention_backward", query, query, key, value, *saved, out=[query, key, value])
        assert attention.cudnn_kernel_backward(backward).fma == 2 * 6 * 5 * 11 * (3 * 7 + 2 * 13)

    def test_flex_attention_and_its_backward(self, tensor, op_call):
        query, key, value = tensor(2, 6, 5, 7), tensor(2, 3, 11, 7), tensor(2, 3, 11, 13)
        forward = op_call("higher_order::flex_attention", query, key, value, 1.0, 0.5, True, out=tensor(2, 6, 5, 13))
        saved = tensor(2, 6, 5, 13), tensor(2, 6, 5), tensor(2, 6, 5, 13), tensor(2, 6, 5)
        backward = op_call("higher_order::flex_attention_backward", query, key, value, *saved, out=[query, key, value])
        pairs = 2 * 6 * 5 * 11
        for causal in "dense", "half":
            formulas = attention.with_causal(COUNTED[Family.ATTENTION], causal)
            assert formulas[forward.operator](forward).fma == pairs * (7 + 13)
            assert formulas[backward.operator](backward).fma == pairs * (3 * 7 + 2 * 13)

    def test_sequences_of_unequal_length_count_as_long_as_the_longest(self, tensor, op_call):
        query, key, starts = tensor(17, 6, 16), tensor(23, 6, 16), tensor(3, dtype=torch.int)
        rest = starts, starts, 13, 19, 0.0, False, False
        call = op_call("aten::_flash_attention_forward", query, key, key, *rest, out=query)
        assert attention.flash_tokens_first(call).fma == 6 * 17 * 19 * (16 + 16)

    def test_agree_with_the_counter_of_torch(self, dispatched_calls, total_cost):
        from torch.utils.flop_counter import sdpa_backward_flop_count, sdpa_flop_count

        query, key, value = (tuple(tensor.shape) for tensor in heads_first())
        kernel = self.AT._scaled_dot_product_flash_attention
        forward = total_cost(dispatched_calls(kernel, *heads_first())).flops(fma=2)
        assert forward == sdpa_flop_count(query, key, value)
        rest = self.LOG_SUM, self.SEEN, self.SEEN, 5, 11, 0.0, False, self.SEEN, self.SEEN
        inputs = heads_first()[0], *heads_first(), heads_first()[0]
        backward = total_cost(
            dispatched_calls(self.AT._scaled_dot_product_flash_attention_backward, *inputs, *rest)
        ).flops(fma=2)
        assert backward == sdpa_backward_flop_count(query, query, key, value)

    @pytest.mark.parametrize("operator", [name for name in ROWS if name.startswith("aten::")])
    def test_the_causal_flag_is_where_the_schema_has_it(self, operator):
        packet = getattr(torch.ops.aten, operator.removeprefix("aten::"), None)
        if packet is None:
            pytest.skip(f"this torch has no {operator}")
        flag = packet.default._schema.arguments[ROWS[operator].is_causal]
        assert flag.name in ("is_causal", "custom_mask_type")


def causal_call(op_call, tensor, queries, keys):
    query, key, value = tensor(2, 3, queries, 7), tensor(2, 3, keys, 7), tensor(2, 3, keys, 13)
    out = tensor(2, 3, queries, 13)
    return op_call("aten::scaled_dot_product_attention", query, key, value, None, 0.0, True, None, False, out=out)


class TestCausalConventions:
    OPERATOR = "aten::scaled_dot_product_attention"

    @pytest.mark.parametrize(("queries", "keys"), [(5, 5), (5, 11), (11, 5), (1, 11), (0, 5)])
    def test_exact_counts_the_keys_that_each_query_sees(self, op_call, tensor, queries, keys):
        pairs = sum(min(query + 1, keys) for query in range(queries))
        formula = with_causal(ROWS, "exact")[self.OPERATOR]
        assert formula(causal_call(op_call, tensor, queries, keys)).fma == 2 * 3 * pairs * (7 + 13)

    @pytest.mark.parametrize(("queries", "keys", "pairs"), [(5, 11, 28), (4, 6, 12), (1, 1, 1)])
    def test_half_rounds_half_of_the_pairs_up(self, op_call, tensor, queries, keys, pairs):
        formula = with_causal(ROWS, "half")[self.OPERATOR]
        assert formula(causal_call(op_call, tensor, queries, keys)).fma == 2 * 3 * pairs * (7 + 13)

    def test_dense_is_the_default(self, op_call, tensor):
        call = causal_call(op_call, tensor, 5, 11)
        assert ROWS[self.OPERATOR](call) == with_causal(ROWS, "dense")[self.OPERATOR](call)
        assert ROWS[self.OPERATOR](call).fma == 2 * 3 * 5 * 11 * (7 + 13)

    @pytest.mark.parametrize("causal", ["dense", "half", "exact"])
    def test_change_nothing_without_a_causal_mask(self, traced_calls, causal):
        (call,) = traced_calls(attend, torch.rand(2, 3, 5, 7), torch.rand(2, 3, 11, 7), torch.rand(2, 3, 11, 13))
        assert with_causal(ROWS, causal)[self.OPERATOR](call).fma == 2 * 3 * 5 * 11 * (7 + 13)

    def test_reach_the_backward_too(self, dispatched_calls):
        inputs = [torch.rand(2, 3, 5, 7, requires_grad=True) for _ in range(3)]
        calls = dispatched_calls(lambda *qkv: attend(*qkv, is_causal=True).sum().backward(), *inputs)
        (backward,) = (call for call in calls if call.operator.endswith("for_cpu_backward"))
        assert with_causal(ROWS, "exact")[backward.operator](backward).fma == 2 * 3 * (1 + 2 + 3 + 4 + 5) * 5 * 7

    def test_leave_other_formulas_out(self):
        assert set(with_causal(COUNTED[Family.ATTENTION], "half")) == set(ROWS)

    def test_of_an_unknown_name_are_an_error_that_names_the_known_ones(self):
        with pytest.raises(ValueError, match="causal is 'quarter', expected one of 'dense', 'half', 'exact'"):
            with_causal(ROWS, "quarter")


def frozen(module):
    return module.eval().requires_grad_(False)


@pytest.fixture
def fast_and_slow(traced_calls, dispatched_calls, total_cost):
    """The cost on the fast path, after a check that both paths, traced and dispatched, have the same default total."""

    def count(operator, fn, *inputs):
        with torch.no_grad():
            fast = dispatched_calls(fn, *inputs)
            traced = traced_calls(fn, *inputs)
            torch.backends.mha.set_fastpath_enabled(False)
            try:
                slow = [dispatched_calls(fn, *inputs), traced_calls(fn, *inputs)]
            finally:
                torch.backends.mha.set_fastpath_enabled(True)
        assert [operator in {call.operator for call in calls} for calls in (fast, traced, *slow)] == [
            True,
            True,
            False,
            False,
        ]
        first, *others = ((cost.fma, cost.other) for cost in map(total_cost, (fast, traced, *slow)))
        assert others == [first] * 3
        return total_cost(fast)

    return count


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # the slow path compares sizes, which are traced
class TestFastPath:
    @pytest.mark.parametrize("need_weights", [True, False])
    def test_multi_head_attention_is_its_four_projections_and_the_attention(self, fast_and_slow, need_weights):
        module = frozen(nn.MultiheadAttention(14, 2, batch_first=True))
        cost = fast_and_slow(
            "aten::_native_multi_head_attention",
            lambda x: module(x, x, x, need_weights=need_weights),
            torch.rand(3, 5, 14),
        )
        assert cost.flops() == 3 * 5 * 4 * 14 * 14 + 3 * 5 * 5 * (14 + 14)
        assert cost.flops(fma=2) == 2 * (3 * 5 * 4 * 14 * 14 + 3 * 5 * 5 * (14 + 14))
        assert cost.elementwise == 3 * 2 * 5 * 5 * (1 + 5)

    @pytest.mark.parametrize("options", [{}, {"norm_first": True}, {"activation": "gelu"}])
    def test_encoder_layer_adds_two_linear_layers_and_two_norms(self, fast_and_slow, options):
        layer = frozen(nn.TransformerEncoderLayer(14, 2, 11, batch_first=True, **options))
        cost = fast_and_slow("aten::_transformer_encoder_layer_fwd", layer, torch.rand(3, 5, 14))
        multiply_adds = 3 * 5 * 4 * 14 * 14 + 3 * 5 * 5 * (14 + 14) + 2 * 3 * 5 * 14 * 11
        norms = 2 * 5 * 3 * 5 * 14
        assert cost.flops() == multiply_adds + norms
        assert cost.flops(fma=2) == 2 * multiply_adds + norms
        assert cost.elementwise == 3 * 2 * 5 * 5 * (1 + 5) + 3 * 5 * 11 + 2 * 3 * 5 * 14

    def test_multi_head_attention_with_other_keys_projects_them_apart(self, tensor, op_call):
        query, key = tensor(3, 5, 14), tensor(3, 7, 14)
        weights = tensor(42, 14), tensor(42), tensor(14, 14), tensor(14)
        call = op_call("aten::_native_multi_head_attention", query, key, key, 14, 2, *weights, out=query)
        assert attention.multi_head_attention(call).fma == 3 * (5 + 7 + 7 + 5) * 14 * 14 + 3 * 5 * 7 * (14 + 14)

    def test_of_an_empty_batch_is_nothing(self, tensor, op_call):
        empty = tensor(0, 5, 14)
        weights = tensor(42, 14), tensor(42), tensor(14, 14), tensor(14)
        call = op_call("aten::_native_multi_head_attention", empty, empty, empty, 14, 2, *weights, out=empty)
        assert attention.multi_head_attention(call).flops(elementwise=True) == 0
