"""What tests of conversations share: templates of every habit, conversations, tokenizers, and the mask by hand."""

import json
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerFast

Turns = list[dict[str, str]]
GENERATION = ("{% generation %}", "{% endgeneration %}")


def chatml(begin: str = "", end: str = "") -> str:
    """ChatML, with these around what the assistant writes."""
    return (
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}{% if m.role == 'assistant' %}"
        + begin + "{{ m.content + '<|im_end|>' }}" + end
        + "{% else %}{{ m.content + '<|im_end|>' }}{% endif %}{{ '\\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
    )  # fmt: skip


LLAMA_LIKE = (
    "{{ bos_token }}{% for m in messages %}{{ '<|start_header_id|>' + m.role + '<|end_header_id|>\n\n' }}"
    "{{ m.content | trim + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
MISTRAL_LIKE = (  # the system turn becomes a part of the first user turn
    "{{ bos_token }}{% set ns = namespace(s='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.s = m.content + '\n\n' %}{% elif m.role == 'user' %}{{ '[INST] ' + ns.s + m.content + ' [/INST]' }}"
    "{% set ns.s = '' %}{% else %}{{ ' ' + m.content + eos_token }}{% endif %}{% endfor %}"
)
GEMMA_LIKE = (  # no system turn, and turns take turns
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + '\n' + m.content | trim }}"
    "{{ '<end_of_turn>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
LAST_ALONE = (  # earlier answers are written without their thoughts, as by reasoning models
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\\n' }}"
    "{{ m.content if loop.last or '</think>' not in m.content else m.content.split('</think>')[-1] }}"
    "{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# a template, and what it writes before and behind each answer: what is behind is learned
HABITS: dict[str, tuple[str, str, str]] = {
    "chatml": (chatml(), "<|im_start|>assistant\n", "<|im_end|>"),
    "chatml with tags": (chatml(*GENERATION), "<|im_start|>assistant\n", "<|im_end|>"),
    "llama": (LLAMA_LIKE, "<|start_header_id|>assistant<|end_header_id|>\n\n", "<|eot_id|>"),
    "mistral": (MISTRAL_LIKE, "[/INST]", "</s>"),
    "gemma": (GEMMA_LIKE, "<start_of_turn>model\n", "<end_of_turn>"),
}
ALTERNATING: list[Turns] = [
    [{"role": role, "content": text} for role, text in zip(("user", "assistant") * 3, texts, strict=False)]
    for texts in (
        ("add one and two", "three"),
        ("say not hot", "cold", "say not night", "day", "Grüße, 日本 🎉", "né\n\n  two lines "),
        ("assistant", "assistant", "<|im_end|", "user\nassistant"),  # texts that look like the template's own
    )
]
SYSTEM = {"role": "system", "content": "one word, no more"}
SPECIALS = [
    "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<start_of_turn>",
    "<end_of_turn>", "[INST]", "[/INST]",
]  # fmt: skip


def byte_tokenizer(folder: Path, chat: str | None = None, specials: list[str] = SPECIALS, most: int = 512) -> Path:
    """Bytes and a few merges, as GPT-2 and Llama 3 have them, with <s> in front of a text."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>", "<s>", "</s>"], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator([turn["content"] for chat in ALTERNATING for turn in chat], trainer)
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in specials])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    names = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>", "additional_special_tokens": specials}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=most, chat_template=chat, **names
    ).save_pretrained(folder)
    return folder


def language_model(folder: Path, chat: str | None = None, most: int = 512) -> Path:
    """A random Llama with that tokenizer."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    byte_tokenizer(folder, chat, most=most)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    ids = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=320, max_position_embeddings=most, **ids, **sizes)).save_pretrained(folder)
    return folder


def mask_by_hand(tokenizer: Any, chat: Turns, before: str, behind: str) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation and which are learned: those in the answers, which are looked for in the text."""
    text = tokenizer.apply_chat_template(chat, tokenize=False)
    written = [False] * len(text)
    position = 0
    for turn in chat:
        if turn["role"] == "assistant":
            position = text.index(before, position) + len(before)
            position += text[position:].index(turn["content"].strip())
            start = position - (text[position - 1] == " " and before == "[/INST]")
            position = text.index(behind, position) + len(behind)
            written[start:position] = [True] * (position - start)
    found = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    return found["input_ids"], [any(written[start:end]) for start, end in found["offset_mapping"]]


def sharegpt(chat: Turns) -> list[dict[str, str]]:
    """The same in ShareGPT's form."""
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return [{"from": names[turn["role"]], "value": turn["content"]} for turn in chat]


def write_rows(path: Path, rows: list[Any]) -> Path:
    """JSON lines."""
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path
