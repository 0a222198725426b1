"""What an engine could lose without an error: threads, sparse and nested tensors, meta convolutions, empty memory."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import pytest
import torch
import torch.nn.functional as F
from torch import nn, ones
from torch.nn.attention.flex_attention import flex_attention
from torch.utils._python_dispatch import is_in_torch_dispatch_mode

from flopcallback import BytesCountAnalysis, FlopCountAnalysis
from flopcallback.modules.names import ModuleNames
from flopcallback.tracing.run import observe

ENGINES = pytest.mark.parametrize("engine", ["auto", "dispatch"])
pytestmark = [
    pytest.mark.usefixtures("no_tracing_state_left"),
    # 2026-11, torch 2.13: said wherever one is made.
    pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors:UserWarning"),
    pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta:UserWarning"),
    pytest.mark.filterwarnings("ignore:flex_attention called without torch.compile:UserWarning"),
]


@pytest.fixture(autouse=True)
def threads_are_left_as_found():
    before = threading.Thread.start, ThreadPoolExecutor.submit
    yield
    assert (threading.Thread.start, ThreadPoolExecutor.submit) == before


def in_a_thread(work):
    results = []
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    return results[0]


@contextmanager
def a_pool(workers=2):
    with ThreadPoolExecutor(workers) as pool:
        pool.submit(int).result()  # a thread of it is there before the count
        yield pool


@ENGINES
class TestThreads:
    def test_a_function_in_a_thread_is_counted_where_it_was_started(self, model_of, x, engine):
        starter = model_of(lambda self, x: in_a_thread(lambda: x @ ones(3, 7)))
        model = model_of(lambda self, x: self.starter(x) @ ones(7, 2), starter=starter)
        assert FlopCountAnalysis(model, x, engine=engine).by_module() == {"": 42 + 28, "starter": 42}

    def test_a_module_in_a_thread_has_its_own_row(self, model_of, x, engine):
        model = model_of(
            lambda self, x: (in_a_thread(lambda: self.aside(x)), self.fc(x)), fc=nn.Linear(3, 5), aside=nn.Linear(3, 7)
        )
        flops = FlopCountAnalysis(model, x, engine=engine)
        assert flops.by_module() == {"": 30 + 42, "fc": 30, "aside": 42}
        assert flops.module_calls() == {"": 1, "fc": 1, "aside": 1}
        assert not flops.is_lower_bound

    def test_what_a_thread_computes_goes_on_in_the_call(self, model_of, x, engine):
        model = model_of(lambda self, x: self.b(in_a_thread(lambda: self.a(x))), a=nn.Linear(3, 5), b=nn.Linear(5, 7))
        assert FlopCountAnalysis(model, x, engine=engine).by_module() == {"": 30 + 70, "a": 30, "b": 70}

    def test_a_thread_of_a_thread(self, x, engine):
        assert (
            FlopCountAnalysis(lambda x: in_a_thread(lambda: in_a_thread(lambda: x @ x.t())), x, engine=engine).total()
            == 12
        )

    def test_work_of_a_pool_is_counted_whoever_made_the_pool(self, model_of, x, engine):
        def forward(self, x):
            with ThreadPoolExecutor(2) as own:
                mine = list(own.map(self.fc, [x, x, x]))
            return mine, pool.submit(self.fc, x).result()

        with a_pool() as pool:
            flops = FlopCountAnalysis(model_of(forward, fc=nn.Linear(3, 5)), x, engine=engine)
            assert flops.by_module() == {"": 4 * 30, "fc": 4 * 30}
            assert not flops.is_lower_bound

    def test_an_autograd_function_and_flex_attention_in_a_thread(self, engine):
        q = ones(1, 2, 16, 8)
        flops = FlopCountAnalysis(lambda q: in_a_thread(lambda: flex_attention(q, q, q)), q, engine=engine)
        assert flops.total() == 2 * (2 * 16 * 16 * 8)

    def test_a_thread_that_is_still_at_work_makes_the_total_a_lower_bound(self, x, engine):
        def forward(x):
            thread = threading.Thread(target=lambda: end.wait(60))
            threads.append(thread)
            thread.start()
            return x @ x.t()

        end, threads = threading.Event(), []
        flops = FlopCountAnalysis(forward, x, engine=engine)
        assert flops.total() == 12
        assert flops.is_lower_bound
        assert "another thread" in flops.unknown_reasons()["thread::"]
        end.set()
        for thread in threads:
            thread.join()
        assert not is_in_torch_dispatch_mode()  # else `torch.compile` gives up, in some versions

    def test_an_error_in_a_thread_leaves_the_count_of_what_ran(self, x, engine):
        def work(x):
            torch.mm(x, x.t())
            raise ValueError("mine")

        def forward(x):
            with ThreadPoolExecutor(1) as pool:
                assert isinstance(pool.submit(work, x).exception(), ValueError)

        flops = FlopCountAnalysis(forward, x, engine=engine)
        assert flops.total() == 12
        assert not flops.is_lower_bound


def test_what_others_hand_to_a_pool_meanwhile_is_not_counted(x):
    """A thread that was there before the call submits work of its own while the call runs."""

    def beside():
        begin.wait(60)
        pool.submit(torch.mm, x, x.t()).result()
        ended.set()

    def forward(x):
        begin.set()
        assert ended.wait(60)
        return x @ ones(3, 5)

    begin, ended = threading.Event(), threading.Event()
    with a_pool() as pool:
        thread = threading.Thread(target=beside)
        thread.start()
        assert FlopCountAnalysis(forward, x).total() == 30
        thread.join()


def rows(*lengths, width=3, layout=torch.strided):
    return torch.nested.nested_tensor([ones(length, width) for length in lengths], layout=layout)


LAYOUTS = pytest.mark.parametrize("layout", [torch.strided, torch.jagged])


@LAYOUTS
class TestNestedTensors:
    @ENGINES
    def test_a_linear_layer_meets_the_rows_that_are_there(self, layout, engine):
        flops = FlopCountAnalysis(nn.Linear(3, 5), rows(2, 7, layout=layout), engine=engine)
        assert flops.total() == (2 + 7) * 3 * 5
        assert not flops.is_lower_bound, flops.unknown_reasons()

    def test_attention_pairs_the_tokens_of_a_sequence_alone(self, layout):
        packed = rows(2, 7, width=3 * 5, layout=layout)
        heads = packed.view(2, -1, 3, 5).transpose(1, 2)
        heads = heads.contiguous() if layout == torch.strided else heads  # torch (2.13) takes either in one way alone
        flops = FlopCountAnalysis(lambda q: F.scaled_dot_product_attention(q, q, q), heads)
        assert flops.total() == 3 * (2 * 2 + 7 * 7) * (5 + 5)
        assert not flops.is_lower_bound, flops.unknown_reasons()

    def test_one_made_in_the_forward_is_counted_too(self, layout, model_of, x):
        def forward(self, x):
            return self.fc(torch.nested.as_nested_tensor([x, x[:1]], layout=layout))

        flops = FlopCountAnalysis(model_of(forward, fc=nn.Linear(3, 5)), x)
        assert flops.by_module() == {"": (2 + 1) * 3 * 5, "fc": (2 + 1) * 3 * 5}
        assert flops.engine == "dispatch"
        assert not flops.is_lower_bound, flops.unknown_reasons()


def test_an_encoder_that_leaves_padding_out_counts_the_tokens_that_are_left():
    layer = nn.TransformerEncoderLayer(6, 2, 11, batch_first=True)
    encoder = nn.TransformerEncoder(layer, 1, enable_nested_tensor=True).eval()
    padding = torch.tensor([[False] * 7, [False] * 2 + [True] * 5])

    def norms_and_products(tokens):
        return tokens * (4 * 6 * 6 + 2 * tokens * 6 + 2 * 6 * 11) + 2 * 5 * tokens * 6

    def call():
        return encoder(ones(2, 7, 6), src_key_padding_mask=padding)

    with torch.no_grad():
        _, as_it_is = observe(call, ModuleNames({"": encoder}), engine="dispatch")
        beside = FlopCountAnalysis(call, engine="dispatch")
        # The fast path is off in a count: every token of the padded batch goes through the modules.
        assert beside.total() == 2 * norms_and_products(7)
    assert FlopCountAnalysis.of_run(as_it_is, encoder).total() == norms_and_products(7) + norms_and_products(2)


class TestSparseProducts:
    @ENGINES
    @pytest.mark.parametrize("compress", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr])
    def test_count_what_is_stored_times_the_columns_of_the_dense_side(self, compress, engine):
        dense = torch.zeros(5, 7)
        dense[0, 0] = dense[2, 3] = dense[4, 6] = 1
        sparse = compress(dense)
        for product, columns in (torch.mm, 11), (torch.matmul, 11), (torch.mv, 1):
            right = ones(7, 11) if product is not torch.mv else ones(7)
            flops = FlopCountAnalysis(product, (sparse, right), engine=engine)
            assert flops.total() == 3 * columns
            assert not flops.is_lower_bound, flops.unknown_reasons()

    def test_on_the_right_times_the_rows(self):
        assert FlopCountAnalysis(torch.mm, (ones(11, 7), torch.eye(7).to_sparse_csr())).total() == 11 * 7

    def test_of_what_is_made_sparse_in_the_forward_are_counted_too(self, model_of, x):
        model = model_of(lambda self, x: torch.sparse.mm(torch.eye(2).to_sparse(), self.fc(x)), fc=nn.Linear(3, 5))
        flops = FlopCountAnalysis(model, x)
        assert flops.by_module() == {"": 30 + 2 * 5, "fc": 30}
        assert "sparse" in flops.engine_reason

    def test_of_two_sparse_matrices_depend_on_data_and_are_unknown(self):
        flops = FlopCountAnalysis(torch.sparse.mm, (torch.eye(3).to_sparse(), torch.eye(3).to_sparse()))
        assert flops.total() == 0
        assert flops.is_lower_bound

    def test_move_the_bytes_that_are_stored(self):
        moved = BytesCountAnalysis(torch.mm, (torch.eye(3).to_sparse_csr(), ones(3, 5))).by_operator()
        assert moved["mm"] == 4 * (3 + 3 * 5 + 3 * 5)

    def test_leave_the_parameters_of_a_model_as_found(self, x):
        layer = nn.Linear(3, 5, bias=False)
        layer.weight = nn.Parameter(layer.weight.detach().to_sparse_csr())
        before = layer.weight
        assert FlopCountAnalysis(layer, x).total() == 2 * 15
        assert layer.weight is before


@pytest.mark.parametrize("engine", ["trace", "dispatch"])
@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolutions_on_meta_are_counted(dims, engine):
    kinds = (nn.Conv1d, nn.Conv2d, nn.Conv3d), (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
    for kind, positions in (kinds[0], 5**dims), (kinds[1], 7**dims):
        layer = kind[dims - 1](4, 6, 3, groups=2, device="meta")
        flops = FlopCountAnalysis(layer, ones(2, 4, *[7] * dims, device="meta"), engine=engine)
        channels = 6 * 2 if kind is kinds[0] else 4 * 3
        assert flops.total() == 2 * positions * channels * 3**dims
        assert (flops.engine, flops.is_lower_bound) == (engine, False)


# 2026-11, torch 2.13: quantization moves to another package.
@ENGINES
@pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated:DeprecationWarning")
@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor.* are deprecated:UserWarning")
@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU])
def test_a_quantized_recurrent_layer_is_unknown(kind, engine):
    if "fbgemm" not in torch.backends.quantized.supported_engines:
        pytest.skip("this build of torch has no quantized kernels")
    model = torch.ao.quantization.quantize_dynamic(nn.Sequential(kind(5, 7)), {kind}, dtype=torch.qint8)
    flops = FlopCountAnalysis(model, ones(3, 2, 5), engine=engine)
    assert flops.total() == 0
    assert flops.is_lower_bound
    assert flops.unknown_reasons() == {f"aten::quantized_{kind.__name__.lower()}": "no formula"}


def test_a_bilinear_layer_under_autocast_keeps_its_count_and_changes_its_digits_where_it_is_observed():
    """In the handler of a dispatcher mode autocast is off: the product inside is not cast (torch 2.13)."""
    layer, x, y = nn.Bilinear(5, 7, 11), torch.rand(3, 5), torch.rand(3, 7)

    def call():
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return layer(x, y)

    seen, run = observe(call, ModuleNames({"": layer}), engine="dispatch")
    assert FlopCountAnalysis.of_run(run, layer).total() == FlopCountAnalysis(call).total() == 3 * 11 * (5 * 7 + 7)
    assert not torch.equal(seen, call())
    torch.testing.assert_close(seen, call(), atol=0.05, rtol=0.05)


class PastPyTorch(torch.autograd.Function):
    """As a kernel of one's own is called: memory is made, and something writes to it that no engine sees."""

    @staticmethod
    def forward(ctx, x, weight):
        return torch.empty(x.shape[0], weight.shape[1])


class Doubled(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        out = torch.empty(7, 3)
        out.copy_(x.expand(7, 3))
        return out


@ENGINES
def test_an_autograd_function_whose_memory_nobody_seems_to_write_is_unknown(engine, x):
    flops = FlopCountAnalysis(PastPyTorch.apply, (x, ones(3, 5)), engine=engine)
    assert flops.is_lower_bound
    assert "nothing that ran inside it could be seen" in flops.unknown_reasons()["prim::PythonOp.PastPyTorch"]
    assert not FlopCountAnalysis(Doubled.apply, ones(1, 3), engine=engine).is_lower_bound
