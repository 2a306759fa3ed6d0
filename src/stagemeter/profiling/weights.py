"""Models with weights: random ones that are the same every time, or those of a checkpoint's folder."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagemeter.core.errors import StagemeterError

if TYPE_CHECKING:
    import torch

#: Standard deviation of random weights, as in transformers.
_DEVIATION = 0.02
#: Random numbers that fill weights, repeated. No multiple of a layer's size, so that no two rows or experts are equal.
_RANDOM_NUMBERS = 2**22 + 1
#: Files of weights that can run code when they are read.
_PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")


def build_model(kind: Any, settings: Any, device: torch.device, dtype: str) -> Any:
    """Build a transformers model of a class and a configuration: without weights on meta, else with random ones."""
    import torch
    from transformers.initialization import no_init_weights

    with torch.device(device), no_init_weights():
        model = kind._from_config(copy.deepcopy(settings), dtype=getattr(torch, dtype)).eval()
    # Otherwise done as weights are loaded.
    model.tie_weights()
    if device.type != "meta":
        _fill_randomly(model)
    return model


def _fill_randomly(model: Any) -> None:
    """Fill weights so that activations stay in range: matrices normally distributed, norms one, biases zero."""
    import torch

    generator = torch.Generator().manual_seed(0)
    numbers = torch.randn(_RANDOM_NUMBERS, generator=generator) * _DEVIATION
    numbers = numbers.to(model.device, model.dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.dim() < 2:
                parameter.fill_(1.0 if name.endswith("weight") else 0.0)
                continue
            # Drawing each number would take longer than a request.
            for part in parameter.view(-1).split(_RANDOM_NUMBERS):
                part.copy_(numbers[: part.numel()])


def require_weights(folder: Path) -> None:
    """Refuse a folder without weights, or with pickles only, which can run code when they are read."""
    if list(folder.glob("*.safetensors")):
        return
    pickles = sorted(path.name for pattern in _PICKLES for path in folder.glob(pattern))
    if pickles:
        raise StagemeterError(
            f"{folder} holds its weights as pickles ({', '.join(pickles[:3])}), which can run code when they are "
            "read; convert them to safetensors"
        )
    raise StagemeterError(
        f"{folder} holds no *.safetensors files; leave the weights out to run random ones, and "
        "`stagemeter analyze --model` needs the config.json alone"
    )


def load_model(kind: Any, settings: Any, folder: Path, dtype: str) -> Any:
    """Load the weights of a checkpoint's folder; refuse pickles, and keys that do not fit. No code of the folder runs.

    With the data type ``auto``, weights keep that of the checkpoint.
    """
    from safetensors import SafetensorError

    require_weights(folder)
    try:
        model, loading = kind.from_pretrained(
            folder,
            config=copy.deepcopy(settings),
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
    except (SafetensorError, OSError) as error:
        raise StagemeterError(f"{folder}: the weights cannot be read: {error}") from error
    problems = {
        "missing": loading["missing_keys"],
        "unexpected": loading["unexpected_keys"],
        "of another shape": [key[0] if isinstance(key, tuple) else key for key in loading["mismatched_keys"]],
    }
    found = [f"{_some(keys)} {kind_of}" for kind_of, keys in problems.items() if keys]
    if found:
        raise StagemeterError(f"{folder} is not a checkpoint of its config.json: {'; '.join(found)}")
    return model.eval()


def _some(keys: Iterable[str]) -> str:
    names = sorted(keys)
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more
