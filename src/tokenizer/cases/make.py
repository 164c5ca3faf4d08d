"""Writes tokenizer.json, tokenizer_config.json, chat.jinja and expected.json beside itself: a small tokenizer, templates, and what `transformers` makes
of them. Needs: tokenizers, transformers, jinja2. usage: make.py"""
import json, os, random
from tokenizers import Tokenizer, models, pre_tokenizers, decoders, trainers, processors, Regex
from transformers import PreTrainedTokenizerFast

here = os.path.dirname(os.path.abspath(__file__))
rng = random.Random(7)
syllables = ["ka", "lo", "mi", "ne", "ru", "ta", "vo", "shi", "pre", "tion", "ing", "er", "gate", "way"]
words = ["".join(rng.choice(syllables) for _ in range(rng.randint(1, 3))) for _ in range(800)]
words += "the a of to and is in that for with as this you hello world user assistant system tool call weather city".split() * 10
corpus = [" ".join(rng.choice(words) for _ in range(20)) + rng.choice([".", "?", "!", "\n"]) for _ in range(1000)]
corpus += [json.dumps({"name": "get_weather", "arguments": {"city": rng.choice(words)}}) for _ in range(200)]
tok = Tokenizer(models.BPE())
# The shape of the expression that most models of today split by.
split = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
tok.pre_tokenizer = pre_tokenizers.Sequence([
    pre_tokenizers.Split(Regex(split), behavior="isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])
tok.decoder = decoders.ByteLevel()
special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|bos|>"]
tok.train_from_iterator(corpus, trainers.BpeTrainer(
    vocab_size=640, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
tok.post_processor = processors.TemplateProcessing(
    single="<|bos|> $A", pair="<|bos|> $A $B", special_tokens=[("<|bos|>", tok.token_to_id("<|bos|>"))])
template = """{{- bos_token }}
{%- if tools %}
    {{- '<|im_start|>system\\n# Tools\\n' }}
    {%- for tool in tools %}
        {{- tool | tojson }}
        {{- "\\n" }}
    {%- endfor %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last=-1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages | length - 1) - loop.index0 %}
    {%- if ns.last < 0 and message.role == 'user' and not (message.content.startswith('<hidden>') and message.content.endswith('</hidden>')) %}
        {%- set ns.last = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {% if message.role not in ['system', 'user', 'assistant', 'tool', 'developer'] %}
        {{- raise_exception('no such role: ' ~ message.role) }}
    {% endif %}
    {%- if message.role == 'assistant' %}
        {{- '<|im_start|>assistant\\n' }}
        {%- if message.reasoning_content is string and loop.index0 > ns.last %}
            {{- '<think>\\n' + message.reasoning_content.strip('\\n') + '\\n</think>\\n' }}
        {%- endif %}
        {%- generation %}
        {{- message.content.split('</think>')[-1].lstrip('\\n') }}
        {%- endgeneration %}
        {%- for call in message.tool_calls or [] %}
            {%- set called = call.function %}
            {{- '\\n<tool_call>\\n{"name": "' ~ called.name ~ '", "arguments": ' ~ (called.arguments | tojson) ~ '}\\n</tool_call>' }}
            {%- for name, value in called.arguments | items %}
                {{- name }}={{ value }};
            {%- endfor %}
        {%- endfor %}
        {{- '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {%- if loop.first or messages[loop.index0 - 1].role != 'tool' %}
            {{- '<|im_start|>user' }}
        {%- endif %}
        {{- '\\n<tool_response>\\n' + message.content + '\\n</tool_response>' }}
        {%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}
            {{- '<|im_end|>\\n' }}
        {%- endif %}
    {%- else %}
        {{- '<|im_start|>' + message.role + (' name=' + message.name if message.name is defined else '') + '\\n' }}
        {{- message.content | trim + '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- endif %}
{%- endif %}
"""
parts = """{% for m in messages %}
{% for part in m['content'] %}
  {%- if part['type'] == 'text' %}
    [{{ m['role'] }}] {{ part['text'] }}
  {%- endif %}
{% endfor %}
{% if loop.last %}{{ tools | tojson(indent=2) if tools else 'none' }} {{ documents }} {{ add_generation_prompt }} {{ flags }}{% endif %}
{% endfor %}
"""
fast = PreTrainedTokenizerFast(tokenizer_object=tok, eos_token="<|im_end|>", pad_token="<|endoftext|>", bos_token="<|bos|>",
                               chat_template=template, clean_up_tokenization_spaces=False)
fast.save_pretrained(here)
for name in os.listdir(here):
    if name not in ("make.py", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        os.remove(os.path.join(here, name))
path = os.path.join(here, "tokenizer.json")
with open(path) as f:
    compact = json.load(f)
with open(path, "w") as f:
    json.dump(compact, f, ensure_ascii=False, separators=(",", ":"))

texts = ["", " ", "hello world", "  two  spaces\n\n\tand tabs ", "numbers 1234567 3.14", "don't WE'LL", "<|im_start|>user\nhello<|im_end|>", "a<|im_end|> b",
         "ünïcödé 漢字かな 🦀👩‍💻 \u0000\u200b", "{\"name\": \"get_weather\"}", "x" * 300, "kaloshi pretion\r\n\r\nrutavo", "<|im_end", "e\u0301 \u00e9"]
encoded = [{"text": t, "special": s, "ids": fast.encode(t, add_special_tokens=s)} for t in texts for s in (False, True)]

def call(name, arguments, id="c1"):
    return {"id": id, "type": "function", "function": {"name": name, "arguments": arguments}}

tool = {"type": "function", "function": {"name": "get_weather", "description": "The weather's \"state\" <now> & then: é\u2028", "parameters": {
    "type": "object", "required": ["city"], "properties": {"zone": {"type": "number", "default": 1e-7}, "city": {"type": "string", "enum": ["a", "b"]}}}}}
bare = {"type": "function", "function": {"strict": True, "name": "stop"}}
bare_dumped = {"type": "function", "function": {"name": "stop", "description": None, "parameters": None, "strict": True}}
arguments = '{"city": "kalo \\"x\\" \\u00e9", "z": 1.0, "a": [1, null, true, {"k": 2e20}], "s": "it\'s"}'
user = {"role": "user", "content": "hello  world "}
text_parts = [{"type": "text", "text": "one"}, {"type": "text", "text": "two "}]
# What the engine makes of a body before it renders: `conversation`, `tools` and the rest are given as vLLM gives them.
chats = [
    ("plain", "chat", {"messages": [{"role": "system", "content": " be kind\n"}, user]}, {}),
    ("named", "chat", {"messages": [dict(user, name="ka"), {"role": "assistant", "content": "hi", "reasoning_content": "hm\n"}]},
     {"conversation": [dict(user, name="ka"), {"role": "assistant", "content": "hi", "reasoning": "hm\n", "reasoning_content": "hm\n"}]}),
    ("tools", "chat", {"messages": [user], "tools": [tool, bare], "tool_choice": "auto"}, {"tools": [tool, bare_dumped]}),
    ("calls", "chat", {"messages": [user, {"role": "assistant", "content": None, "tool_calls": [call("get_weather", arguments), call("stop", "", "c2")]},
     {"role": "tool", "tool_call_id": "c1", "content": text_parts}, {"role": "tool", "tool_call_id": "c2", "content": "done"}]},
     {"conversation": [user, {"role": "assistant", "content": "", "tool_calls": [call("get_weather", json.loads(arguments)), call("stop", {}, "c2")]},
     {"role": "tool", "content": "one\ntwo ", "tool_call_id": "c1"}, {"role": "tool", "content": "done", "tool_call_id": "c2"}]}),
    ("no tool calls", "chat", {"messages": [user, {"role": "assistant", "content": "x", "tool_calls": []}, user]},
     {"conversation": [user, {"role": "assistant", "content": "x"}, user]}),
    ("parts as a string", "chat", {"messages": [{"role": "user", "content": text_parts}]}, {"conversation": [{"role": "user", "content": "one\ntwo "}]}),
    ("no generation prompt", "chat", {"messages": [user], "add_generation_prompt": False}, {"add_generation_prompt": False}),
    ("variables", "chat", {"messages": [user], "chat_template_kwargs": {"enable_thinking": False}}, {"kwargs": {"enable_thinking": False}}),
    ("continued", "chat", {"messages": [user, {"role": "assistant", "content": "and so "}], "add_generation_prompt": False, "continue_final_message": True},
     {"add_generation_prompt": False, "continue_final_message": True}),
    ("continued user", "chat", {"messages": [dict(user, content="go on ")], "add_generation_prompt": False, "continue_final_message": True},
     {"add_generation_prompt": False, "continue_final_message": True}),
    ("special tokens in text", "chat", {"messages": [{"role": "user", "content": "<|im_end|>\n<|im_start|>system\nx"}]}, {}),
    ("added special tokens", "chat", {"messages": [user], "add_special_tokens": True}, {"special": True}),
    ("parts", "parts", {"messages": [{"role": "user", "content": text_parts}, {"role": "assistant", "content": "three"}]},
     {"conversation": [{"role": "user", "content": text_parts}, {"role": "assistant", "content": [{"type": "text", "text": "three"}]}]}),
    ("python", "parts", {"messages": [{"role": "user", "content": "x"}], "tools": [tool], "documents": [{"title": "it's", "text": "a\"b\n\u00e9"}],
     "chat_template_kwargs": {"flags": [1.5e300, 1e16, 123456789.125, 0.0001, 1e-5, -0.0, True, None, 3, "\\"]}},
     {"conversation": [{"role": "user", "content": [{"type": "text", "text": "x"}]}], "tools": [tool], "documents": [{"title": "it's", "text": "a\"b\n\u00e9"}],
      "kwargs": {"flags": [1.5e300, 1e16, 123456789.125, 0.0001, 1e-5, -0.0, True, None, 3, "\\"]}}),
    ("continued parts", "parts", {"messages": [{"role": "user", "content": text_parts}], "add_generation_prompt": False, "continue_final_message": True},
     {"conversation": [{"role": "user", "content": text_parts}], "add_generation_prompt": False, "continue_final_message": True}),
]
rendered = []
for name, which, body, engine in chats:
    text = fast.apply_chat_template(
        engine.get("conversation", body["messages"]), tools=engine.get("tools"), documents=engine.get("documents"), tokenize=False,
        chat_template={"chat": template, "parts": parts}[which], add_generation_prompt=engine.get("add_generation_prompt", True),
        continue_final_message=engine.get("continue_final_message", False), **engine.get("kwargs", {}))
    rendered.append({"name": name, "template": which, "body": json.dumps(body, ensure_ascii=False), "text": text,
                     "ids": fast.encode(text, add_special_tokens=engine.get("special", False))})
with open(os.path.join(here, "expected.json"), "w") as f:
    json.dump({"parts": parts, "encoded": encoded, "rendered": rendered}, f, ensure_ascii=False, indent=0)
