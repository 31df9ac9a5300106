"""How llama.cpp's architectures differ in what they remember of their context.

What an architecture's file may leave out, llama.cpp has in its code, and so has this table.
Source: ``create_memory`` in ``src/llama-model.cpp`` and ``load_arch_hparams`` in
``src/models/*.cpp`` of llama.cpp (xllamacpp 2026.10).
"""

from __future__ import annotations

from typing import Final


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


WITHOUT_CACHE: Final = _names("""
    bert clef dream eurobert gemma-embedding gemma-embedding2 jina-bert-v2 jina-bert-v3 llada
    llada-moe modern-bert neo-bert nomic-bert nomic-bert-moe rnd1 t5encoder wavtokenizer-dec
""")
"""They read the whole text at once."""

ENCODERS: Final = WITHOUT_CACHE - _names("clef dream llada llada-moe rnd1 wavtokenizer-dec")
"""They give vectors and no words."""

UNGATED: Final = _names("bert jina-bert-v3")
"""Encoders whose feed-forward layer has no gate."""

RECURRENT: Final = _names("mamba mamba2 rwkv6 rwkv6qwen2 rwkv7 arwkv7")
"""No layer attends; each keeps a state of fixed size."""

PARALLEL: Final = _names("falcon-h1")
"""Every layer attends and keeps a state too."""

INTERVAL: Final = {"qwen3next": 4, "qwen35": 4, "qwen35moe": 4, "minimax-01": 8}
"""Every so many layers one attends, the others are recurrent, unless the file says otherwise."""

ALTERNATING: Final = _names("nemotron_h nemotron_h_moe")
"""A layer attends, is recurrent, or feeds forward: one of the three."""

RECURRENT_WITHOUT_HEADS: Final = ALTERNATING | _names(
    "bailingmoe3 granitehybrid jamba kimi-linear lfm2 lfm2moe plamo2"
)
"""A layer with no KV heads is recurrent."""

WINDOWS: Final[dict[str, tuple[int, bool, int]]] = {
    "afmoe": (4, False, 0),
    "cohere2": (4, False, 0),
    "cohere2moe": (4, True, 0),
    "exaone-moe": (4, False, 128),
    "exaone4": (4, False, 4096),
    "gemma2": (2, False, 4096),
    "gemma3": (6, False, 0),
    "gemma3n": (5, False, 0),
    "gemma4": (0, False, 0),
    "gpt-oss": (2, False, 0),
    "granite_swa": (0, False, 0),
    "laguna": (4, True, 0),
    "lfm2": (0, False, 0),
    "lfm2moe": (0, False, 0),
    "llama4": (4, False, 8192),
    "maple": (0, False, 0),
    "mellum": (4, False, 0),
    "mimo2": (0, False, 0),
    "muse-glimmer": (4, False, 0),
    "olmo2": (4, False, 0),
    "plamo3": (8, False, 0),
    "smallthinker": (4, True, 4096),
    "spark2_5": (0, False, 0),
    "step35": (0, False, 0),
}
"""Layers that look back through a sliding window: every so many layers one is dense (0: none is,
unless the file lists them), whether that is the first of them, and the window where the file does
not say. Architectures not listed here ignore a window in the file."""

FIXED_WINDOW: Final = _names("llama4 smallthinker")
"""The window in the file only says whether there is one."""

EXAONE4_LAYERS_WITH_WINDOWS: Final = 64
"""Only the largest EXAONE 4 has windows."""

GEMMA3N_LAYERS_WITH_CACHE: Final = 20
"""The layers after them use the cache of layers before."""

SPECIAL: Final = _names("""
    deepseek32 deepseek4 dflash dots3note eagle3 gemma4-assistant glm-dsa glm5-next graniteswitch
    hrm_text hy_v4 kimi-k3 minimax-m3 nanbeige qwen4exp t5
""")
"""They keep more than keys and values (an index, an encoder's output, loops over layers)."""

PLAIN: Final = _names("""
    apertus arcee arctic baichuan bailingmoe bailingmoe2 bitnet bloom chameleon chatglm codeshell
    cogvlm command-r dbrx deci deepseek deepseek2 deepseek2-ocr dots1 ernie4_5 ernie4_5-moe exaone
    falcon gemma glm4 glm4moe gpt2 gptj gptneox granite granitemoe grok grovemoe hunyuan-dense
    hunyuan-moe hunyuan_vl hy_v3 internlm2 jais jais2 k2-horizon llama llama-embed maincoder minicpm
    minicpm3 minimax-m2 mistral3 mistral4 mpt nemotron olmo olmoe openelm orion paddleocr
    pangu-embedded phi2 phi3 phimoe plamo plm qwen qwen2 qwen2moe qwen2vl qwen3 qwen3moe qwen3vl
    qwen3vlmoe refact seed_oss smollm3 stablelm starcoder starcoder2 talkie xverse
""")
"""Every layer attends to the whole context."""

KNOWN: Final = (
    WITHOUT_CACHE
    | RECURRENT
    | PARALLEL
    | frozenset(INTERVAL)
    | RECURRENT_WITHOUT_HEADS
    | frozenset(WINDOWS)
    | SPECIAL
    | PLAIN
)
