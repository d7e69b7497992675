"""Tiny random bases of many architectures, as folders with all that a base has beside its weights."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from task.config import TaskConfig

CAUSAL, TEXTS, IMAGES = "causal-lm", "text-classification", "image-classification"
SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]"]
CLASSES = ("x", "y", "z")
LENGTH = 24  # tokens of a row at most
EDGE = 32  # pixels

HEADS = {"num_attention_heads": 2, "num_hidden_layers": 2, "hidden_size": 16}
WORDS = {"vocab_size": 264, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}
PLACES = {"max_position_embeddings": 64}
BERT = {**HEADS, **WORDS, **PLACES, "intermediate_size": 24}
LLAMA = {**HEADS, **WORDS, "intermediate_size": 24, "num_key_value_heads": 1}
GPT2 = {**WORDS, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 64}
GEMMA = {**LLAMA, "head_dim": 8, "query_pre_attn_scalar": 8}
BART = {
    "d_model": 16, "encoder_layers": 2, "decoder_layers": 2, "encoder_attention_heads": 2, "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24, "decoder_ffn_dim": 24, "decoder_start_token_id": 3, "forced_eos_token_id": 3,
}  # fmt: skip
PATCHES = {**HEADS, "image_size": EDGE, "num_channels": 3, "patch_size": 8, "intermediate_size": 24}
PYRAMID = {"image_size": EDGE, "num_channels": 3}
TOWERS = {"text_config": BERT, "vision_config": PATCHES}


@dataclass(frozen=True)
class Architecture:
    """A class of transformers, and settings that make it tiny."""

    kind: str
    model: str
    config: str
    sizes: dict[str, Any] = field(default_factory=dict)


def _causal(family: str, **sizes: Any) -> Architecture:
    return Architecture(CAUSAL, f"{family}ForCausalLM", f"{family}Config", sizes)


def _texts(family: str, **sizes: Any) -> Architecture:
    return Architecture(TEXTS, f"{family}ForSequenceClassification", f"{family}Config", sizes)


def _images(family: str, **sizes: Any) -> Architecture:
    return Architecture(IMAGES, f"{family}ForImageClassification", f"{family}Config", sizes)


ARCHITECTURES = {
    "gpt2": Architecture(CAUSAL, "GPT2LMHeadModel", "GPT2Config", GPT2),
    "gpt-neo": _causal(
        "GPTNeo", **WORDS, **PLACES, hidden_size=16, num_layers=2, num_heads=2, window_size=8,
        attention_types=[[["global", "local"], 1]],
    ),
    "opt": _causal("OPT", **HEADS, **WORDS, **PLACES, ffn_dim=24, word_embed_proj_dim=16),
    "bloom": _causal("Bloom", **WORDS, hidden_size=16, n_layer=2, n_head=2),
    "falcon": _causal("Falcon", **HEADS, **WORDS),
    "llama": _causal("Llama", **LLAMA),
    "mistral": _causal("Mistral", **LLAMA),
    "phi": _causal("Phi", **HEADS, **WORDS, **PLACES, intermediate_size=24),
    "qwen2": _causal("Qwen2", **LLAMA),
    "qwen3": _causal("Qwen3", **LLAMA, head_dim=8),
    "gemma2": _causal("Gemma2", **GEMMA),
    "gemma3": Architecture(CAUSAL, "Gemma3ForCausalLM", "Gemma3TextConfig", GEMMA),
    "cohere": _causal("Cohere", **LLAMA),
    "lfm2": _causal("Lfm2", **LLAMA, layer_types=["conv", "full_attention"]),
    "mixtral": _causal("Mixtral", **LLAMA, num_local_experts=4, num_experts_per_tok=2),
    "mamba": _causal("Mamba", **WORDS, hidden_size=16, num_hidden_layers=2, state_size=4, initializer_range=0.5),
    "bert": _texts("Bert", **BERT),
    "roberta": _texts("Roberta", **BERT),
    "distilbert": _texts("DistilBert", **WORDS, **PLACES, dim=16, n_layers=2, n_heads=2, hidden_dim=24),
    "albert": _texts("Albert", **BERT, embedding_size=8),
    "deberta-v2": _texts(
        "DebertaV2", **BERT, relative_attention=True, pos_att_type=["p2c", "c2p"], pooler_hidden_size=16
    ),
    "mpnet": _texts("MPNet", **BERT),
    "longformer": _texts("Longformer", **BERT, attention_window=8),
    "modernbert": _texts("ModernBert", **HEADS, **WORDS, intermediate_size=24, cls_token_id=2, sep_token_id=3),
    "bart": _texts("Bart", **WORDS, **PLACES, **BART),
    "t5": _texts("T5", **WORDS, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, decoder_start_token_id=0),
    "xlnet": _texts("XLNet", **WORDS, d_model=16, n_layer=2, n_head=2, d_inner=24),
    "electra": _texts("Electra", **BERT, embedding_size=16),
    "gpt2-classifier": _texts("GPT2", **GPT2),
    "llama-classifier": _texts("Llama", **LLAMA),
    "vit": _images("ViT", **PATCHES),
    "deit": _images("DeiT", **PATCHES),
    "dinov2": _images("Dinov2", **PATCHES, mlp_ratio=2),
    "swin": _images("Swin", **PYRAMID, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4),
    "convnext": _images("ConvNext", **PYRAMID, hidden_sizes=[8, 16], depths=[1, 1], num_stages=2),
    "resnet": _images("ResNet", **PYRAMID, embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic"),
    "mobilenet-v2": _images("MobileNetV2", **PYRAMID, depth_multiplier=0.25, initializer_range=0.3),
    "mobilevit": _images(
        "MobileViT", **PYRAMID, hidden_sizes=[16, 16, 16], neck_hidden_sizes=[8, 8, 8, 16, 16, 16, 32],
        num_attention_heads=2, patch_size=2, initializer_range=0.1,
    ),
    "clip": _images("CLIP", **TOWERS, projection_dim=16),
    "siglip": _images("Siglip", **TOWERS),
}  # fmt: skip


def made(name: str, folder: Path) -> Path:
    """The base in `folder`, with its tokenizer or its image processor."""
    import transformers

    architecture = ARCHITECTURES[name]
    torch.manual_seed(0)
    config = getattr(transformers, architecture.config)(**architecture.sizes)
    if architecture.kind != CAUSAL:
        config.num_labels = len(CLASSES)
        config.id2label = dict(enumerate(CLASSES))
        config.label2id = {name: number for number, name in enumerate(CLASSES)}
    getattr(transformers, architecture.model)(config).save_pretrained(folder)
    if architecture.kind == IMAGES:
        _processor(folder)
    else:
        _tokenizer(folder, left=name == "xlnet")
    return folder


def _tokenizer(folder: Path, left: bool) -> None:
    """Of bytes: whatever class transformers makes of it for a kind of model, every text has tokens."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)  # type: ignore[assignment]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        special_tokens=SPECIALS, initial_alphabet=alphabet, vocab_size=260, show_progress=False
    )
    tokenizer.train_from_iterator([], trainer)
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = dict(zip(("pad_token", "unk_token", "cls_token", "sep_token"), SPECIALS, strict=True))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="[CLS]",
        eos_token="[SEP]",
        padding_side="left" if left else "right",
        **names,
    ).save_pretrained(folder)


def _processor(folder: Path) -> None:
    about = {
        "image_processor_type": "ViTImageProcessor", "size": {"height": EDGE, "width": EDGE}, "resample": 2,
        "do_normalize": True, "image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5], "do_rescale": True,
        "rescale_factor": 1 / 255, "do_resize": True,
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(about))


def data(folder: Path) -> dict[str, Path]:
    """A file of rows for every kind: texts of 1 to 12 words, pictures of noise, three classes in turn."""
    drawn = np.random.default_rng(0)
    words = ["good", "bad", "film", "a", "very", "dull", "bright", "one", "two", "three"]
    texts, pictures = [], []
    for row in range(12):
        text = " ".join(words[place] for place in drawn.integers(0, len(words), row + 1))
        label = CLASSES[row % len(CLASSES)]
        texts.append({"text": text, "label": label, "instruction": "say", "output": text[:8]})
        pictures.append({"image": drawn.integers(0, 256, (EDGE, EDGE, 3)).tolist(), "label": label})
    files = {}
    for kind, rows in ((CAUSAL, texts), (TEXTS, texts), (IMAGES, pictures)):
        files[kind] = folder / f"{kind}.jsonl"
        files[kind].write_text("".join(json.dumps(row) + "\n" for row in rows))
    return files


def settings(name: str, base: Path, rows: Path, tuning: str, **options: Any) -> TaskConfig:
    """What a run on these would have."""
    kind = ARCHITECTURES[name].kind
    flat: dict[str, Any] = {
        "task.kind": kind, "model.name": str(base), "data.name": str(rows), "data.test-split": "", "tuning": tuning,
        "data.partitioner": "iid", "data.max-length": LENGTH, "lora.ranks": "2", "prompt.tokens": 3,
        "prefix.tokens": 3, "adapter.width": 4, "local-steps": 2, "batch-size": 4, "learning-rate": 0.05,
    }  # fmt: skip
    labels = {} if kind == CAUSAL else {"data.labels": "|".join(CLASSES)}
    return TaskConfig.read(flat | labels | options)
