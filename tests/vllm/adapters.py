"""A LoRA adapter with random weights."""

from __future__ import annotations

import json
from pathlib import Path


def write_adapter(directory: Path, base: Path, rank: int) -> Path:
    """Writes an adapter of the query projections of a Llama, strong enough to change its output."""
    import torch
    from safetensors.torch import save_file

    config = json.loads((base / "config.json").read_text())
    hidden = config["hidden_size"]
    generator = torch.Generator().manual_seed(1)
    tensors = {}
    for layer in range(config["num_hidden_layers"]):
        prefix = f"base_model.model.model.layers.{layer}.self_attn.q_proj"
        tensors[f"{prefix}.lora_A.weight"] = torch.randn(rank, hidden, generator=generator)
        tensors[f"{prefix}.lora_B.weight"] = torch.randn(hidden, rank, generator=generator)
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors")
    settings = {"peft_type": "LORA", "r": rank, "lora_alpha": 4 * rank, "target_modules": ["q_proj"]}
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    return directory
