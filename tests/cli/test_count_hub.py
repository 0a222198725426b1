"""`flopcallback count hf:...`: a transformers model from its config, without weights."""

from __future__ import annotations

import json

import pytest

from flopcallback.reporting import ModelProfile

pytestmark = pytest.mark.models

LAYERS, WIDTH, INNER, HEADS, WORDS, TOKENS = 2, 12, 20, 3, 17, 5
CONFIG = {
    "model_type": "gpt2",
    "n_layer": LAYERS,
    "n_embd": WIDTH,
    "n_inner": INNER,
    "n_head": HEADS,
    "n_positions": 7,
    "vocab_size": WORDS,
}
NORM = 5 * TOKENS * WIDTH  # in macs alone
PROJECTIONS = TOKENS * (3 * WIDTH * WIDTH + WIDTH * WIDTH + 2 * WIDTH * INNER)
LAYER = PROJECTIONS + 2 * TOKENS * TOKENS * WIDTH
HEAD = TOKENS * WIDTH * WORDS


@pytest.fixture
def config(folder):
    """Writes `config.json`, and gives its path."""

    def write(**more):
        path = folder / "config.json"
        path.write_text(json.dumps({**CONFIG, **more}), encoding="utf-8")
        return path

    return write


def count(flopcallback, source, *arguments) -> ModelProfile:
    result = flopcallback("count", source, "--input", f"input_ids=1,{TOKENS}:int64:{WORDS}", "--json", *arguments)
    assert result.exit_code == 0, result.output
    return ModelProfile.from_json(result.stdout)


def test_a_config_is_counted_on_the_meta_device_with_the_head_that_it_names(flopcallback, config):
    profile = count(flopcallback, f"hf:{config(architectures=['GPT2LMHeadModel'])}")
    assert (profile.name, profile.config["flops.device"]) == ("GPT2LMHeadModel", "meta")
    assert profile.forward_flops == 2 * (LAYERS * LAYER + HEAD)
    assert profile.forward_macs == LAYERS * (LAYER + 2 * NORM) + NORM + HEAD


def test_a_config_without_a_head_is_the_model_behind_it(flopcallback, config):
    folder = config().parent
    profile = count(flopcallback, f"hf:{folder}")
    assert (profile.name, profile.forward_flops) == ("GPT2Model", 2 * LAYERS * LAYER)


def test_fields_of_the_config_can_be_changed(flopcallback, config):
    profile = count(flopcallback, f"hf:{config()}", "--arg", "n_layer=3")
    assert profile.forward_flops == 2 * (3 * LAYER)


def test_on_a_device_that_computes_both_engines_agree(flopcallback, config):
    inputs = ("--input", f"1,{TOKENS}:int64:{WORDS}")
    result = flopcallback("count", f"hf:{config()}", *inputs, "--device", "cpu", "--verify")
    assert result.exit_code == 0, result.output
    assert "verified: both engines count the same" in result.stdout


def test_a_model_that_is_no_file_is_looked_for_on_the_hub_and_its_absence_explained(flopcallback, monkeypatch):
    import transformers

    def no_network(*args, **kwargs):
        raise OSError("We couldn't connect")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", no_network)
    result = flopcallback("count", "hf:some/model", "--input", "1,3:int64")
    assert result.exit_code == 2
    assert (
        "hf:some/model is neither a file nor a folder here, so it is taken for a model on the Hugging" in result.stderr
    )
    assert "no network" in result.stderr


def test_a_file_that_is_no_config_is_an_error_of_its_own(flopcallback, folder):
    (folder / "config.json").write_text("{}", encoding="utf-8")
    result = flopcallback("count", "hf:config.json", "--input", "1,3:int64")
    assert result.exit_code == 2
    assert "reading hf:config.json raised" in result.stderr
