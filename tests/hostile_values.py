"""Keys that name files in settings of models, tokenizers and processors, and the places of texts in JSON."""

import copy
from collections.abc import Iterator
from typing import Any

# As transformers, peft and tokenizers know them, of any version and class.
KEYS = [
    "tokenizer_file",
    "vocab_file",
    "merges_file",
    "spm_file",
    "sp_model_file",
    "source_spm",
    "target_spm",
    "monolingual_vocab_file",
    "emoji_file",
    "word_shape_file",
    "word_pronunciation_file",
    "special_tokens_map_file",
    "added_tokens_file",
    "tokenizer_config_file",
    "fast_tokenizer_files",
    "chat_template_file",
    "name_or_path",
    "_name_or_path",
    "base_model_name_or_path",
    "tokenizer_name_or_path",
    "question_encoder_tokenizer_file",
    "auto_map",
    "custom_pipelines",
    "custom_generate",
    "transformers_weights",
    "transformers_version",
    "backbone",
    "use_pretrained_backbone",
    "backbone_config",
    "quantization_config",
    "attn_implementation",
    "_attn_implementation",
    "experts_implementation",
    "kernel_config",
    "index_path",
    "passages_path",
    "dataset",
    "tokenizer",
    "tokenizer_class",
    "processor_class",
    "image_processor_type",
    "feature_extractor_type",
    "architectures",
    "model_type",
    "gguf_file",
    "cache_dir",
    "subfolder",
    "revision",
    "_commit_hash",
    "adapter_path",
    "adapter_name",
    "peft_type",
    "state_dict",
    "config_file",
    "config_path",
    "vocab_files_names",
    "init_inputs",
    "init_kwargs",
    "extra_files",
    "text_config",
    "encoder",
    "decoder",
    "speech_encoder",
    "pretrained_model_name_or_path",
    "model_name",
    "tiktoken_file",
    "tekken_file",
    "resume_download",
    "torch_dtype",
    "dtype",
    "code_revision",
    "task_specific_params",
    "forced_decoder_ids",
]


def leaves(found: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The places of all texts; of a vocabulary, which has thousands of numbers, none."""
    if isinstance(found, str):
        yield place
    children = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    for key, child in children:
        yield from leaves(child, (*place, key))


def replaced(found: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy with another value in a place."""
    changed = copy.deepcopy(found)
    *inner, last = place
    target = changed
    for key in inner:
        target = target[key]
    target[last] = value
    return changed
