"""What versions before today's names wrote."""

from __future__ import annotations

import json

from flopcallback.profile.times import LATER_TIMES

# By schema, the fields that were not there yet.
MISSING = {1: ("step", "step_note", "verdict", "training"), 2: ("verdict", "training"), 3: ()}

TODAY = {
    "flops/train_step_hw": "flops/train_step",
    "flops/train_step_backward_hw": "flops/backward",
    "flops/train_step_recompute_hw": "flops/recompute",
    "flops/train_step_optimizer_hw": "flops/optimizer",
    "compute/hw_flops_total": "compute/flops_total",
    "perf/hw_tflops_per_sec": "perf/tflops_per_sec",
}

FORMER = {new: old for old, new in TODAY.items()}


def former_json(profile, schema=3, fma=1):
    """The JSON of a profile as an older version wrote it: FLOPs at `fma` per multiply-add, beside `hw_flops`."""
    content = json.loads(profile.to_json())
    content["flopcallback_profile"] = schema
    content["config"]["flops.fma"] = fma
    content["forward_flops"], content["forward_hw_flops"] = _former(content, "forward_flops", "forward_macs", fma)
    del content["forward_macs"]
    for row in content["modules"]:
        row["flops"], row["hw_flops"] = _former(row, "flops", "macs", fma)
        del row["macs"]
    for row in content["modules"]:
        inside = [each["flops"] for each in content["modules"] if each["parent"] == row["path"]]
        row["own_flops"] = row["flops"] - sum(inside)
    for row in content["operators"]:
        row["flops"], _ = _former(row, "flops", "macs", fma)
        del row["macs"]
    content["training"] = {FORMER.get(name, name): value for name, value in content["training"].items()}
    for holder in (content, *content["modules"], content["latency"] or {}):
        for name in (*MISSING[schema], "step_bound", *LATER_TIMES):
            holder.pop(name, None)
        if holder.get("step"):
            del holder["step"]["without_grad"]
    return content


def _former(row, flops, macs, fma):
    return row[macs] + (fma - 1) * row[flops] // 2, row[flops]


def former_scalars(profile, fma=1):
    """What an older version logged of a profile, by name: FLOPs of the forward at `fma` per multiply-add."""
    values = {FORMER.get(name, name): value for name, value in profile.scalars().items()}
    if profile.step is not None:
        values["flops/train_step_forward_hw"] = profile.step.forward
    flops = profile.forward_macs + (fma - 1) * profile.forward_flops // 2
    forward = f"{profile.phase_prefix}flops/forward"
    if f"{forward}_per_sample" in values:
        values[f"{forward}_per_sample"] = flops / profile.batch_size
    return {**values, forward: flops}
