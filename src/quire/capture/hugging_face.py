"""A Hugging Face config, and weights if there are any → a model and inputs for one call."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import attrs
import torch
from torch import nn
from torch.export import Dim

from quire.capture.options import DTYPES, Options, device_of, first_line, move, refuse
from quire.errors import CaptureError, QuireError

SEED = 0
DEFAULT_TOKENS = 1024
MIN_DYNAMIC = 2  # torch.export specialises a dim of size 0 or 1
POSITION_OFFSET = 2  # RoBERTa and ESM number their positions from 2
WEIGHT_FILES = ("*.safetensors", "pytorch_model*.bin", "diffusion_pytorch_model*.bin")

Built = tuple[nn.Module, dict[str, Any], Any]
"""Model, keyword inputs, and the dynamic_shapes that free their length, or None."""


def _library(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise QuireError(
            f"{name} is needed to build this target, and cannot be imported: {first_line(error)}",
            fix="pip install 'quire[hf]'",
        ) from error


def from_folder(path: Path, options: Options) -> Built:
    """The model of a folder that save_pretrained wrote: trained weights if the folder has any."""
    config = path / "config.json"
    if config.is_file():
        has_weights = any(any(path.glob(pattern)) for pattern in WEIGHT_FILES)
        return from_config(config, path if has_weights else None, options)
    parts = sorted(p.parent.name for p in path.glob("*/config.json"))
    raise QuireError(
        "the folder holds no config.json",
        where=str(path),
        allowed="a folder written by save_pretrained",
        fix=f"name one of its parts: {', '.join(str(path / p) for p in parts)}"
        if parts
        else "check the path",
    )


def from_config(config: Path, weights: Path | None, options: Options) -> Built:
    """The model of a config file, its weights from the folder `weights` or, for None, random."""
    try:
        data = json.loads(config.read_text())
    except ValueError as error:
        raise QuireError(
            f"not JSON: {first_line(error)}", where=str(config), fix="repair the file"
        ) from error
    is_diffusers = isinstance(data, dict) and "_class_name" in data
    if not is_diffusers and (not isinstance(data, dict) or "model_type" not in data):
        raise QuireError(
            "the file has no model_type (transformers) and no _class_name (diffusers)",
            where=str(config),
            allowed="a config.json as save_pretrained writes it",
            fix='add e.g. "model_type": "gpt2"',
        )
    build = _diffusers if is_diffusers else _transformers
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model, kwargs, dynamic = build(data, weights, options, str(config))
    placed = attrs.evolve(options, device=options.device or "cpu")
    model = model.to(device_of(placed.device or "cpu"))
    if options.dtype is not None:
        model = model.to(DTYPES[options.dtype])
    return model.eval(), move(kwargs, placed), dynamic


def _transformers(
    data: dict[str, Any], weights: Path | None, options: Options, where: str
) -> Built:
    transformers = _library("transformers")
    try:
        config = transformers.AutoConfig.for_model(**data)
    except ValueError as error:
        raise QuireError(
            f"transformers {transformers.__version__} knows no model_type {data['model_type']!r}",
            where=where,
            fix="check the spelling, or install the version of transformers that has it",
        ) from error
    if hasattr(config, "use_cache"):
        config.use_cache = False
    _fit(config, options, where, has_weights=weights is not None)
    kind = _class(transformers, config, where)
    extra = {} if options.attn is None else {"attn_implementation": options.attn}
    # A meta build has shapes and no storage: models that would not fit in memory can be planned.
    build_on = torch.device("meta" if options.device == "meta" and weights is None else "cpu")
    try:
        with build_on:
            if weights is not None:
                model = kind.from_pretrained(
                    weights, config=config, local_files_only=True, dtype=torch.float32, **extra
                )
            elif hasattr(kind, "from_config"):
                model = kind.from_config(config, **extra)
            else:
                model = kind._from_config(config, **extra)
    except (ValueError, OSError, ImportError) as error:
        raise CaptureError(
            f"transformers could not build {kind.__name__}: {first_line(error)}",
            where=where,
            fix="change the config, or --attn if the message names it",
        ) from error
    inputs, dynamic = _inputs(model, config, options, where)
    return model, inputs, dynamic


def _class(transformers: ModuleType, config: Any, where: str) -> Any:
    """The first of the config's architectures, else the causal LM, else the bare model."""
    for name in config.architectures or ():
        if not hasattr(transformers, name):
            raise QuireError(
                f"transformers {transformers.__version__} has no class {name!r}",
                where=f"{where}: architectures",
                fix="correct the name, or leave architectures out",
            )
        return getattr(transformers, name)
    causal = transformers.models.auto.modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING
    # Encoders such as BERT are in the table of causal LMs too, for their use as decoders.
    if type(config) in causal and getattr(config, "is_decoder", True):
        return transformers.AutoModelForCausalLM
    return transformers.AutoModel


def _fit(config: Any, options: Options, where: str, *, has_weights: bool) -> None:
    """Let the position table or image size hold `options.seq`, or refuse if it is trained."""
    if options.seq is None:
        return
    text = config.get_text_config()
    have = getattr(text, "max_position_embeddings", None)
    if isinstance(have, int) and 0 < have < options.seq:
        if has_weights:
            raise QuireError(
                f"--seq {options.seq} is longer than the model was trained for",
                where=f"{where}: max_position_embeddings = {have}",
                allowed=f"--seq up to {have}",
                fix="shorten --seq, or give the config.json alone for random weights",
            )
        text.max_position_embeddings = options.seq + POSITION_OFFSET
    if hasattr(config, "max_source_positions") and not has_weights:
        # Whisper's two convolutions halve the frames, and it takes no other number of them.
        config.max_source_positions = -(-options.seq // 2)
    if isinstance(getattr(config, "image_size", None), int) and not has_weights:
        config.image_size = options.seq


def _inputs(model: Any, config: Any, options: Options, where: str) -> tuple[dict[str, Any], Any]:
    """Seeded inputs by the model's main input, and the dynamic_shapes that free their length."""
    batch, seq = options.batch or 1, options.seq
    text = config.get_text_config()
    main = model.main_input_name
    inputs: dict[str, torch.Tensor] = {}
    tokens: Dim | None = None
    if main == "input_ids":
        positions = getattr(text, "max_position_embeddings", None) or DEFAULT_TOKENS
        seq = seq or min(positions, DEFAULT_TOKENS)
        inputs[main] = torch.randint(text.vocab_size, (batch, seq))
        tokens = Dim("seq", min=MIN_DYNAMIC, max=max(seq, MIN_DYNAMIC))
    elif main == "pixel_values":
        side = seq or _side(config, "image_size", where)
        inputs[main] = torch.randn(batch, getattr(config, "num_channels", 3), side, side)
    elif main == "input_features":
        bins = getattr(config, "num_mel_bins", None) or getattr(config, "feature_size", None)
        frames = seq or 2 * getattr(config, "max_source_positions", DEFAULT_TOKENS // 2)
        if bins is None:
            raise _unknown_inputs(model, where)
        inputs[main] = torch.randn(batch, bins, frames)
    elif main == "input_values":
        seq = seq or 16 * DEFAULT_TOKENS
        inputs[main] = torch.randn(batch, seq)
    else:
        raise _unknown_inputs(model, where)
    decoder = "decoder_input_ids"
    if config.is_encoder_decoder and decoder in inspect.signature(model.forward).parameters:
        most = getattr(config, "max_target_positions", None)
        shape = (batch, min(seq or DEFAULT_TOKENS, most or DEFAULT_TOKENS))
        inputs[decoder] = torch.randint(text.vocab_size, shape)
    if tokens is None:
        return inputs, None
    return inputs, {name: {1: tokens} if name == main else {} for name in inputs}


def _side(config: Any, name: str, where: str) -> int:
    side = getattr(config, name, None)
    side = side[0] if isinstance(side, list | tuple) and side else side
    if not isinstance(side, int):
        raise QuireError(f"the config has no {name}", where=where, fix="give --seq, in pixels")
    return side


def _unknown_inputs(model: nn.Module, where: str) -> QuireError:
    names = ", ".join(inspect.signature(model.forward).parameters)
    return QuireError(
        f"cannot make up inputs for {type(model).__name__}({names})",
        where=where,
        allowed="text (input_ids), images (pixel_values), audio (input_features, input_values)",
        fix="write a function that returns (model, args, kwargs) and give package.module:function",
    )


def _diffusers(data: dict[str, Any], weights: Path | None, options: Options, where: str) -> Built:
    refuse(options, ("attn",), where, "diffusers picks its own attention")
    diffusers = _library("diffusers")
    kind = getattr(diffusers, data["_class_name"], None)
    if kind is None or not (inspect.isclass(kind) and issubclass(kind, nn.Module)):
        raise QuireError(
            f"diffusers {diffusers.__version__} has no model {data['_class_name']!r}",
            where=f"{where}: _class_name",
            fix="correct the name, or install the version of diffusers that has it",
        )
    if options.seq is not None and weights is None and "sample_size" in data:
        data = {**data, "sample_size": options.seq}
    with torch.device("meta" if options.device == "meta" and weights is None else "cpu"):
        model = kind.from_config(data) if weights is None else kind.from_pretrained(weights)
    config, batch = model.config, options.batch or 1
    side = options.seq or _side(config, "sample_size", where)
    image = torch.randn(batch, config.in_channels, side, side)
    makers: dict[str, Callable[[], torch.Tensor]] = {
        "sample": lambda: image,
        "hidden_states": lambda: image,
        "timestep": lambda: torch.full((batch,), 10),
        "encoder_hidden_states": lambda: torch.randn(batch, 77, config.cross_attention_dim),
        "class_labels": lambda: torch.zeros(batch, dtype=torch.long),
    }
    inputs: dict[str, Any] = {}
    for name, parameter in inspect.signature(model.forward).parameters.items():
        needed = parameter.default is inspect.Parameter.empty
        if name in makers and (needed or data["_class_name"].startswith("DiT")):
            inputs[name] = makers[name]()
        elif needed:
            raise _unknown_inputs(model, where)
    return model, inputs, None
