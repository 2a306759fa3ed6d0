"""The origin's session: DeepSeek-OCR, by the interface that its users know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stagemeter.core.errors import StagemeterError
from stagemeter.core.files import outside_path
from stagemeter.hardware.machine import torch_device
from stagemeter.models.configuration import complete
from stagemeter.models.families.deepseek_ocr.architecture import DeepseekOCRArchitecture
from stagemeter.models.families.deepseek_ocr.configuration import (
    NAME,
    architecture_from_config,
    published_architecture,
    require_no_window,
    transformers_config,
)
from stagemeter.models.families.deepseek_ocr.family import FAMILY
from stagemeter.models.family import Family
from stagemeter.models.files import read_config
from stagemeter.profiling.clock import Scope, annotate
from stagemeter.profiling.request import Call, Request
from stagemeter.profiling.running import Session
from stagemeter.profiling.weights import build_model, load_model

if TYPE_CHECKING:
    import torch


@dataclass
class DeepSeekOCRSession(Session):
    """A DeepSeek-OCR model and where it lives, made by `from_config` or `from_local`.

    The model is transformers' ``UnlimitedOcrForConditionalGeneration``; `tokenizer` is that of the checkpoint's folder,
    if it has one.
    """

    architecture: DeepseekOCRArchitecture
    name: str = NAME
    family: Family[Any] = FAMILY
    tokenizer: Any = None

    @classmethod
    def from_config(
        cls,
        config: DeepseekOCRArchitecture | Mapping[str, Any] | None = None,
        device: str = "meta",
        dtype: str = "bfloat16",
        use_flash_attn: bool = True,
        name: str = NAME,
    ) -> DeepSeekOCRSession:
        """Build the model of a configuration, or raise StagemeterError if there is no such configuration or device.

        `config` is sizes or the content of a ``config.json``, by default those of the published DeepSeek-OCR. On the
        device ``meta`` it has no weights, on any other random ones, the same every time. `use_flash_attn` is as in
        `from_local`, and `name` is the name in reports.
        """
        if config is None:
            architecture = published_architecture()
        elif isinstance(config, DeepseekOCRArchitecture):
            architecture = config
            require_no_window(architecture, "the given architecture")
        else:
            source = "the given configuration"
            architecture = architecture_from_config(complete(config, source), source)
        target = torch_device(device)
        model = build_model(
            _model_class(), transformers_config(architecture, _attention(use_flash_attn)), target, dtype
        )
        return cls(model, architecture, target, name)

    @classmethod
    def from_local(
        cls, model_path: str | Path, device: str = "cuda:0", use_flash_attn: bool = True, dtype: str = "auto"
    ) -> DeepSeekOCRSession:
        """Load a checkpoint's folder: its configuration, its safetensors files and its tokenizer.

        No code of the folder runs. transformers maps the keys of the official checkpoint to its own modules. A folder,
        device, architecture or weights that cannot be used raise StagemeterError.

        Parameters
        ----------
        device : str
            Where to put the weights; ``meta`` reads the configuration alone.
        use_flash_attn : bool
            Whether attention runs in torch's fused operator, rather than as separate products. It takes a
            flash-attention kernel if there is one and the attention has no bias (SAM's has one).
        dtype : str
            Data type of the weights; ``auto`` for that of the checkpoint.
        """
        folder = outside_path(model_path, "model_path")
        if not folder.is_dir():
            raise StagemeterError(f"model_path: {folder} is not a folder. Give that of a DeepSeek-OCR checkpoint")
        target = torch_device(device)
        source = str(folder / "config.json")
        architecture = architecture_from_config(complete(read_config(folder), source), source)
        if target.type == "meta":
            session = cls.from_config(architecture, use_flash_attn=use_flash_attn, name=str(folder))
        else:
            settings = transformers_config(architecture, _attention(use_flash_attn))
            model = load_model(_model_class(), settings, folder, dtype).to(target)
            session = cls(model, architecture, target, str(folder))
        session.tokenizer = _load_tokenizer(folder)
        return session

    def run_inference(
        self, input_ids: torch.Tensor, model_kwargs: Mapping[str, Any], new_tokens: int, scope: Scope = annotate
    ) -> torch.Tensor:
        """Read pages and generate text, greedily, each stage in a range of its name, see `Session.run`.

        `input_ids`, of shape ``(batch, prompt tokens)``, and ``images`` and ``images_spatial_crop`` in `model_kwargs`
        are those of `DeepseekOCRStaticAnalyzer.prepare_inputs`.
        """
        import torch
        from transformers.cache_utils import DynamicCache

        from stagemeter.models.families.deepseek_ocr.page import page_arguments

        batch, length = input_ids.shape
        positions = torch.arange(length, device=self.device).expand(batch, -1)
        # Without a configuration the cache keeps everything; the model's own has a sliding window.
        common = {"past_key_values": DynamicCache(config=None), "use_cache": True, "logits_to_keep": 1}
        page = page_arguments(model_kwargs)
        prefill = Call(self.model, {"input_ids": input_ids, "position_ids": positions, **common, **page})
        step = Call(self.model, {"input_ids": input_ids[:, :1], "position_ids": positions[:, :1], **common})
        return self.run(Request(prefill, step, length, new_tokens), scope)

    def without_weights(self) -> DeepSeekOCRSession:
        """Return a session of the same architecture on the meta device, in bfloat16 with fused attention, to count on.

        Counts of elements do not depend on the data type, and closed forms are those of fused attention.
        """
        import torch

        fused = self.model.config._attn_implementation != "eager"
        if self.device.type == "meta" and self.model.dtype == torch.bfloat16 and fused:
            return self
        return self.from_config(self.architecture, name=self.name)


def _model_class() -> Any:
    from transformers.models.unlimited_ocr.modeling_unlimited_ocr import UnlimitedOcrForConditionalGeneration

    return UnlimitedOcrForConditionalGeneration


def _attention(use_flash_attn: bool) -> str:
    return "sdpa" if use_flash_attn else "eager"


def _load_tokenizer(folder: Path) -> Any:
    if not (folder / "tokenizer.json").is_file():
        return None
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
