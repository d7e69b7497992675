"""Small classifiers of texts of many kinds, with random weights, and tokenizers for them."""

from pathlib import Path
from typing import Any

import torch
from samples import WORDS

WIDTHS = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
GPT = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
BART = {
    "d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "max_position_embeddings": 64,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {  # by kind of model
    "bert": WIDTHS,
    "roberta": WIDTHS | {"max_position_embeddings": 66},
    "distilbert": {"dim": 16, "hidden_dim": 24, "n_layers": 2, "n_heads": 2},
    "albert": WIDTHS | {"embedding_size": 8},
    "electra": WIDTHS | {"embedding_size": 8},
    "mpnet": WIDTHS | {"max_position_embeddings": 66},
    "deberta-v2": WIDTHS | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"]},
    "modernbert": WIDTHS | {"global_attn_every_n_layers": 2, "local_attention": 8},
    "xlnet": {"d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 24},
    "bart": BART,
    "t5": {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2, "decoder_start_token_id": 0},
    "gpt2": GPT,
    "gpt_neo": {"hidden_size": 16, "num_layers": 2, "num_heads": 2, "attention_types": [[["global", "local"], 1]]},
    "opt": WIDTHS | {"ffn_dim": 24, "word_embed_proj_dim": 16},
    "bloom": {"hidden_size": 16, "n_layer": 2, "n_head": 2},
    "falcon": WIDTHS,
    "gpt_neox": WIDTHS,
    "llama": WIDTHS,
    "mistral": WIDTHS | {"num_key_value_heads": 2},
    "qwen2": WIDTHS | {"num_key_value_heads": 2},
    "gemma2": WIDTHS | {"head_dim": 8, "num_key_value_heads": 2},
    "gemma3_text": WIDTHS | {"head_dim": 8, "num_key_value_heads": 2},
}
SPECIALS = ["<pad>", "<s>", "</s>", "<unk>"]


def word_tokenizer(folder: Path, *, pad: str | None = "<pad>", side: str = "right") -> Path:
    """Whole words, with an end token behind every text, which some classifiers look for."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    ids = {word: number for number, word in enumerate(SPECIALS + WORDS)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", **({"pad_token": pad} if pad else {})}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=60, padding_side=side, **names
    ).save_pretrained(folder)
    return folder


def encoder_decoder(folder: Path, kind: str = "t5") -> Path:
    """A model that writes texts, without dropout, and a tokenizer for it."""
    from transformers import CONFIG_MAPPING, AutoModelForSeq2SeqLM

    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 0}
    quiet = {"dropout_rate": 0.0} if kind == "t5" else {"dropout": 0.0}
    torch.manual_seed(0)
    shape = CONFIG_MAPPING[kind](vocab_size=32, **(SHAPES[kind] | special | quiet))
    AutoModelForSeq2SeqLM.from_config(shape).save_pretrained(folder)
    return word_tokenizer(folder)


def classifier(folder: Path, kind: str, **settings: Any) -> Path:
    """A classifier of the classes bad and good, without noise in its parts."""
    from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification

    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "id2label": {0: "bad", 1: "good"}}
    shape = CONFIG_MAPPING[kind](vocab_size=32, architectures=[], **(SHAPES[kind] | special | settings))
    torch.manual_seed(0)
    module = AutoModelForSequenceClassification.from_config(shape)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    module.save_pretrained(folder)
    return folder
