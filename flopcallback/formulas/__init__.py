"""One formula per operator family: `f(call: OpCall) -> Cost`, a pure function of shapes, dtypes and constants.

Conventions, said once:

- All figures are exact Python ints. A formula never looks at data, so it holds on any device, meta included.
- A product that feeds a sum is one multiply-add (`Cost.fma`), the first term included: `[m, k] @ [k, n]` is
  `m * k * n`, for `k = 1` too. A bias costs nothing: it is the accumulator's first value.
- Factors `alpha` and `beta` of `addmm` and its kin cost nothing.
- Complex numbers count as the real operations behind them: `arithmetic.multiply_adds`, `arithmetic.elements`.
- An empty tensor is 0, not an error. What a formula cannot read (an odd rank, an absent tensor) raises, and the engine
  makes the operator unknown with that reason: never a silent zero.
"""
