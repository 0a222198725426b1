"""Work of other threads in an observed step: that of its own is said to be missing, that of others is not counted."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from flopcallback import FlopCountAnalysis
from flopcallback.modules.names import ModuleNames
from flopcallback.profiling.build import StepAnalysis
from flopcallback.tracing.observer import StepRecorder
from flopcallback.tracing.phases import BACKWARD, FORWARD

BATCH, WIDE, OUT = 3, 5, 7
LAYER = 2 * BATCH * WIDE * OUT


class Parallel(nn.Module):
    """Two layers, the second in a thread or in a pool's task, with a product of its own."""

    def __init__(self, start):
        super().__init__()
        self.first, self.second, self.start = nn.Linear(WIDE, OUT), nn.Linear(WIDE, OUT), start

    def forward(self, x):
        results = []
        self.start(lambda: results.append(self.second(x) @ torch.ones(OUT, 1)))
        return self.first(x) + results[0]


def in_thread(work):
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()


def in_new_pool(work):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(work).result()


def flops_of(model, step):
    observer = StepRecorder(ModuleNames({"": model}))
    with observer.watching():
        step(observer)
    assert observer.failure is None
    return {phase: +StepAnalysis.of_run(run, model).by_module() for phase, run in observer.runs().items()}


def test_work_in_threads_that_a_module_starts_is_not_seen_and_that_is_said():
    for start in (in_thread, in_new_pool):
        model = Parallel(start)
        analysis = FlopCountAnalysis(model, torch.ones(BATCH, WIDE), engine="observer", fma=2)
        assert +analysis.by_module() == {"": LAYER, "first": LAYER}
        assert analysis.is_lower_bound


def test_a_backward_of_nodes_that_another_thread_made_is_seen():
    model = Parallel(in_thread)
    observer = StepRecorder(ModuleNames({"": model}))
    with observer.watching():
        model(torch.ones(BATCH, WIDE)).sum().backward()
    assert observer.failure is None
    runs = observer.runs()
    # Of the second layer the weight alone, and of the product the layer's output; the inputs require no grad.
    assert StepAnalysis.of_run(runs[BACKWARD], model).total() == 2 * LAYER + 2 * BATCH * OUT
    assert runs[FORWARD].strays


def test_tasks_of_a_pool_that_was_there_before_are_not_seen_either():
    with ThreadPoolExecutor(1) as pool:
        pool.submit(int).result()
        model = Parallel(lambda work: pool.submit(work).result())
        analysis = FlopCountAnalysis(model, torch.ones(BATCH, WIDE), engine="observer", fma=2)
        assert +analysis.by_module() == {"": LAYER, "first": LAYER}
        assert analysis.is_lower_bound


def test_a_thread_of_somebody_else_does_not_count():
    is_over, has_begun = threading.Event(), threading.Event()

    def work():
        while not is_over.is_set():
            (torch.ones(11, 13, requires_grad=True) @ torch.ones(13, 2)).sum().backward()
            has_begun.set()

    thread = threading.Thread(target=work)
    thread.start()
    has_begun.wait()
    try:
        model = nn.Linear(WIDE, OUT)

        def step(observer):
            for _ in range(20):
                model(torch.ones(BATCH, WIDE)).sum().backward()

        seen = flops_of(model, step)
    finally:
        is_over.set()
        thread.join()
    assert seen[FORWARD] == {"": 20 * LAYER}
    assert seen[BACKWARD] == {"": 20 * LAYER}
