"""A small checkpoint as the authors would publish it: their key names, their config.json, safetensors."""

import json
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from stagemeter import DeepSeekOCRSession

HERE = Path(__file__).parent

# From transformers' names to the official ones. What is not a plain renaming is split in `official_weights`.
OFFICIAL_NAMES = [
    (r"^model\.vision_tower\.sam_encoder\.layers\.(\d+)\.layer_norm([12])\.", r"model.sam_model.blocks.\1.norm\2."),
    (r"^model\.vision_tower\.sam_encoder\.layers\.", r"model.sam_model.blocks."),
    (r"^model\.vision_tower\.sam_encoder\.patch_embed\.projection\.", r"model.sam_model.patch_embed.proj."),
    (r"^model\.vision_tower\.sam_encoder\.neck\.conv1\.", r"model.sam_model.neck.0."),
    (r"^model\.vision_tower\.sam_encoder\.neck\.layer_norm1\.", r"model.sam_model.neck.1."),
    (r"^model\.vision_tower\.sam_encoder\.neck\.conv2\.", r"model.sam_model.neck.2."),
    (r"^model\.vision_tower\.sam_encoder\.neck\.layer_norm2\.", r"model.sam_model.neck.3."),
    (r"^model\.vision_tower\.sam_encoder\.proj\.conv1\.", r"model.sam_model.net_2."),
    (r"^model\.vision_tower\.sam_encoder\.proj\.conv2\.", r"model.sam_model.net_3."),
    (r"^model\.vision_tower\.sam_encoder\.", r"model.sam_model."),
    (r"^model\.vision_tower\.vision_encoder\.encoder\.", r"model.vision_model.transformer."),
    (r"^model\.vision_tower\.vision_encoder\.", r"model.vision_model."),
    (r"^model\.multi_modal_projector\.", r"model.projector.layers."),
    (r"^model\.language_model\.", r"model."),
    (r"^model\.view_separator$", r"model.view_seperator"),
]


def official_name(name: str) -> str:
    for pattern, replacement in OFFICIAL_NAMES:
        renamed, found = re.subn(pattern, replacement, name)
        if found:
            return renamed
    return name


def official_weights(session: DeepSeekOCRSession) -> dict[str, torch.Tensor]:
    """Random values for every key that the official checkpoint has, each key with values of its own."""
    generator = torch.Generator().manual_seed(0)
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in session.model.state_dict().items():
        key = official_name(name)
        if key.endswith("experts.gate_up_proj"):
            experts, both, hidden = tensor.shape
            for expert in range(experts):
                for part in ("gate_proj", "up_proj"):
                    shapes[key.replace("gate_up_proj", f"{expert}.{part}.weight")] = (both // 2, hidden)
        elif key.endswith("experts.down_proj"):
            for expert in range(tensor.shape[0]):
                shapes[key.replace("down_proj", f"{expert}.down_proj.weight")] = tuple(tensor.shape[1:])
        elif found := re.fullmatch(r"(.*vision_model.*)\.([qkv])_proj\.(weight|bias)", key):
            rows, *columns = tensor.shape
            shapes[f"{found[1]}.qkv_proj.{found[3]}"] = (3 * rows, *columns)
        else:
            shapes[key] = tuple(tensor.shape)
    clip = session.architecture.clip
    # In the published checkpoint too, and never used: CLIP takes SAM's feature map.
    shapes["model.vision_model.embeddings.patch_embedding.weight"] = (clip.hidden, 3, clip.patch_size, clip.patch_size)
    return {
        key: (torch.randn(shape, generator=generator) / 8).to(torch.bfloat16) for key, shape in sorted(shapes.items())
    }


def write_checkpoint(folder: Path, config: object, weights: dict[str, torch.Tensor] | None) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if weights is not None:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture
def small_config() -> dict:
    """The official config.json of a small model; the test's own, to be changed at will."""
    return json.loads((HERE / "small_config.json").read_text())


@pytest.fixture(scope="session")
def meta_session() -> DeepSeekOCRSession:
    return DeepSeekOCRSession.from_config(json.loads((HERE / "small_config.json").read_text()))


@pytest.fixture(scope="session")
def weights(meta_session) -> dict[str, torch.Tensor]:
    """What the checkpoint holds, by official key."""
    return official_weights(meta_session)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory, weights) -> Path:
    """Folder of a checkpoint of random weights. Not to be changed."""
    config = json.loads((HERE / "small_config.json").read_text())
    return write_checkpoint(tmp_path_factory.mktemp("checkpoint") / "small-ocr", config, weights)


@pytest.fixture
def make_checkpoint(tmp_path):
    """Write a checkpoint of a test's own: ``make_checkpoint(config, weights)``."""
    return lambda config, weights: write_checkpoint(tmp_path / "model", config, weights)


@pytest.fixture(scope="session")
def loaded(checkpoint) -> DeepSeekOCRSession:
    """The checkpoint, loaded on the CPU."""
    return DeepSeekOCRSession.from_local(checkpoint, device="cpu")
