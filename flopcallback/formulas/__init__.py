"""Formulas: pure functions from an operator call to its cost.

There is one file per operator family. A formula is `f(call: OpCall) -> Cost` and sees shapes, dtypes and constants.
Conventions of all formulas:

- All figures are exact Python ints. A formula never looks at data, so it holds on any device, meta included.
- A product that feeds a sum is one multiply-add (`Cost.fma`), the first term included: `[m, k] @ [k, n]` is
  `m * k * n`, for `k = 1` too. A bias costs nothing: it is the accumulator's first value.
- Factors `alpha` and `beta` of `addmm` and similar operators cost nothing.
- Complex numbers count as the real operations behind them: `arithmetic.multiply_adds`, `arithmetic.elements`.
- An empty tensor costs 0 and is not an error. A formula that cannot read its input (an odd rank, an absent tensor)
  raises, and the engine makes the operator unknown with that reason: never a silent zero.
"""
