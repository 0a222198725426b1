"""One formula per operator family: `f(call: OpCall) -> Cost`, a pure function of shapes, dtypes and constants.

Conventions, said once:

- All figures are exact Python ints. A formula never looks at data, so it holds on any device, meta included.
- A product that feeds a sum is one multiply-add (`Cost.fma`), the first term included: `[m, k] @ [k, n]` is `m * k * n`, for
  any `k`, 1 included. A bias costs nothing: it is the accumulator's first value.
- `alpha` and `beta` factors of `addmm` and its kin cost nothing: they are 1 in every model that we have seen.
- Complex numbers count as the real operations behind them; see `flopcallback.formulas.cost_of_dtype`.
- An empty tensor is 0, not an error. What a formula cannot read (an odd rank, an absent tensor) raises, and the engine
  makes the operator unknown with that reason: never a silent zero.
"""
