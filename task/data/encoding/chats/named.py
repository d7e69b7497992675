"""Chat templates by name, for tokenizers that come without one.

Each marks what the assistant writes, its end token included, by the tag `{% generation %}` of transformers. Sources:
the templates of Qwen2.5 (ChatML), Llama 3, Mistral v0.1 and Gemma on the Hugging Face Hub, without tools. `PLAIN` needs
no special token but the tokenizer's end token; of one user turn it makes the plain prompt of
`task.data.encoding.prompts`.
"""

CHATML = """\
{%- for message in messages %}
{{- '<|im_start|>' + message.role + '\\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}{{ message.content + '<|im_end|>' }}{% endgeneration %}
{%- else %}{{ message.content + '<|im_end|>' }}{% endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

LLAMA_3 = """\
{{- '<|begin_of_text|>' }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}{{ message.content | trim + '<|eot_id|>' }}{% endgeneration %}
{%- else %}{{ message.content | trim + '<|eot_id|>' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif %}"""

MISTRAL = """\
{{- bos_token }}
{%- set system = namespace(text='') %}
{%- for message in messages %}
{%- if message.role == 'system' %}{% set system.text = message.content + '\\n\\n' %}
{%- elif message.role == 'assistant' %}
{%- generation %}{{ ' ' + message.content + eos_token }}{% endgeneration %}
{%- elif message.role == 'user' %}
{{- '[INST] ' + system.text + message.content + ' [/INST]' }}{% set system.text = '' %}
{%- else %}{{ raise_exception('this template has no turns of ' + message.role) }}{% endif %}
{%- endfor %}"""

GEMMA = """\
{{- bos_token }}
{%- for message in messages %}
{%- if message.role not in ('user', 'assistant') %}
{{- raise_exception('this template has no turns of ' + message.role) }}
{%- endif %}
{{- '<start_of_turn>' + ('model' if message.role == 'assistant' else 'user') + '\\n' }}
{%- if message.role == 'assistant' %}
{%- generation %}{{ message.content | trim + '<end_of_turn>' }}{% endgeneration %}
{%- else %}{{ message.content | trim + '<end_of_turn>' }}{% endif %}
{{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif %}"""

PLAIN = """\
{%- for message in messages %}
{%- if message.role == 'system' %}{{ message.content + '\\n\\n' }}
{%- elif message.role == 'assistant' %}
{{- 'Answer:\\n' }}
{%- generation %}{{ message.content + eos_token }}{% endgeneration %}
{{- '\\n\\n' }}
{%- elif message.role == 'user' %}{{ 'Task:\\n' + message.content + '\\n\\n' }}
{%- else %}{{ 'Input:\\n' + message.content + '\\n\\n' }}{% endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{ 'Answer:\\n' }}{% endif %}"""

NAMED = {"chatml": CHATML, "llama-3": LLAMA_3, "mistral": MISTRAL, "gemma": GEMMA}
