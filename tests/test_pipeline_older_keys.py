"""What transformers 4 reads of a configuration that transformers 5 wrote."""

from transformers import AutoConfig, Gemma3TextConfig, LlamaConfig

from pipeline.classifier import older_keys

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 64}


def test_older_keys_of_a_scaled_rotary_embedding() -> None:
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, **LLAMA3}
    config = {**LlamaConfig(rope_parameters=rope).to_dict(), "dtype": "float32"}
    older = older_keys(config)
    assert older["rope_theta"] == 500000.0 and older["torch_dtype"] == "float32"
    assert older["rope_scaling"] == {"rope_type": "llama3", **LLAMA3}
    again = AutoConfig.for_model(**{**config, **older})
    assert again.rope_parameters == rope


def test_older_keys_of_two_kinds_of_layers() -> None:
    config = Gemma3TextConfig(num_hidden_layers=4, layer_types=["sliding_attention", "full_attention"] * 2)
    older = older_keys(config.to_dict())
    assert (older["rope_theta"], older["rope_local_base_freq"]) == (1e6, 1e4)
    assert older["sliding_window_pattern"] == 2 and "rope_scaling" not in older
    again = AutoConfig.for_model(**{**config.to_dict(), **older})
    assert (again.rope_parameters, again.layer_types) == (config.rope_parameters, config.layer_types)


def test_no_older_keys_without_a_rotary_embedding() -> None:
    assert older_keys({"hidden_size": 8}) == {}
