"""A causal LM whose decode step is one kernel, behind Hugging Face's `generate`."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import GenerationMixin
from transformers.modeling_outputs import CausalLMOutputWithPast

from quire.capture.decode import DecodeStep
from quire.errors import InputError
from quire.runtime.cache import SlotCache
from quire.runtime.choice import Choice, ends_of
from quire.runtime.library import write_library
from quire.runtime.native import NativeKernel


class FusedCausalLM(nn.Module, GenerationMixin):
    """`generate` as of the model it was made from; each new token is one call of `kernel`.

    Prompts run through the model itself, in parts that keep within `prefill_memory` bytes of
    intermediates (estimated), into the cache that the kernel reads. Rows may be padded on the
    left or on the right. A request past `max_length` tokens or `max_batch` rows is refused with
    an InputError before it starts.
    """

    main_input_name = "input_ids"
    _is_stateful = False
    _supports_cache_class = True

    def __init__(
        self,
        model: Any,
        step: DecodeStep,
        kernel: NativeKernel,
        *,
        prefill_memory: int,
        certificate: Any = None,
    ) -> None:
        super().__init__()
        self.certificate = certificate
        """Whether the kernel is proved to compute the captured step; None if that was not asked."""
        self.model, self.kernel, self._step = model, kernel, step
        self.config = model.config
        self.generation_config = model.generation_config
        self.max_length, self.max_batch = step.max_length, step.max_batch
        self.prefill_memory = prefill_memory
        self._names = [i.target for i in step.program.users_inputs()]
        text = model.config.get_text_config(decoder=True)
        layers = len(step.key_shapes)
        kinds = getattr(text, "layer_types", None) or ["full_attention"] * layers
        self._sliding = tuple(k != "full_attention" for k in kinds)
        out, *more = kernel.plan.lowered.outputs
        self._out, self._more = out.target, [b.target for b in more]
        self._vocabulary = int(out.shape[-1])
        self._none = torch.empty(0, dtype=torch.long)

    @property
    def device(self) -> torch.device:
        return torch.device("cpu")

    @property
    def dtype(self) -> torch.dtype:
        return self._step.dtype

    def can_generate(self) -> bool:
        return True

    def is_remote_code(self) -> bool:
        return False

    def get_experts_implementation(self) -> str | None:
        return None

    def _optimize_model_for_decode(self) -> Any:
        return nullcontext()

    def export(
        self, out: str | Path, *, header: str | Path | None = None, arch: str | None = None
    ) -> None:
        """The decode step with its weights as a shared library, and a C header for it. Its
        functions are named after the file; `arch` is the compiler's -march."""
        write_library(
            self.kernel, Path(out), Path(header) if header else None, step=self._step, arch=arch
        )

    def new_cache(self, rows: int) -> SlotCache:
        """An empty cache for `rows` sequences."""
        self._check_rows(rows)
        return SlotCache(self._step, rows, self._sliding)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: SlotCache | None = None,
        logits_to_keep: int = 0,
        use_cache: bool = True,
        return_dict: bool = True,
        **rest: Any,
    ) -> CausalLMOutputWithPast:
        """Logits `[rows, tokens, vocabulary]`, float32, of the last `logits_to_keep` tokens (0:
        of all)."""
        if rest and (refused := {k for k, v in rest.items() if v not in (None, False)}):
            raise InputError(
                f"called with {', '.join(sorted(refused))}",
                allowed="input_ids, attention_mask, position_ids, past_key_values, logits_to_keep",
            )
        rows, tokens = input_ids.shape
        cache = self.new_cache(rows) if past_key_values is None else past_key_values
        cache.room(tokens)
        if cache.lengths is None and (tokens > 1 or cache.get_seq_length() == 0):
            with torch.no_grad():
                logits = self._prompt(
                    input_ids, attention_mask, position_ids, cache, logits_to_keep
                )
            return _output(logits, cache)
        if cache.lengths is None:
            cache.compact(attention_mask, rows)
        if tokens == 1:  # its logits are not copied: torch's threads would wake up, in the way
            return _output(self._decode(input_ids, cache)[0], cache)
        found = [self._decode(input_ids[:, t : t + 1], cache)[0] for t in range(tokens)]
        return _output(torch.cat(found[-(logits_to_keep or tokens) :], 1), cache)

    def sample(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        *,
        max_new_tokens: int,
        temperature: float = 1.0,
        min_p: float = 0.0,
        seed: int = 0,
        streamer: Any = None,
    ) -> torch.Tensor:
        """`input_ids` and what follows, `[rows, tokens]`, every token picked within the kernel.

        `temperature` 0 takes the likeliest token. Words less likely than `min_p` times the
        likeliest are left out. What a row says depends on the model, the seed, the row's number and
        its tokens, and on no row beside it. A row ends at a token that the model's generation
        config names as an end, and is filled up with its pads.

        Raises InputError where `quire.fuse` was not asked for `sampling`.
        """
        if not self._step.sampling:
            raise InputError("this kernel gives logits", fix="quire.fuse(model, sampling=True)")
        if temperature < 0 or not 0 <= min_p <= 1 or max_new_tokens < 1:
            raise InputError(
                f"temperature={temperature}, min_p={min_p}, max_new_tokens={max_new_tokens}",
                allowed="temperature ≥ 0, 0 ≤ min_p ≤ 1, max_new_tokens ≥ 1",
            )
        rows = input_ids.shape[0]
        cache = self.new_cache(rows)
        cache.room(input_ids.shape[1] + max_new_tokens - 1)
        choice = Choice(temperature, min_p, seed)
        ends, pad = ends_of(self.generation_config)
        with torch.no_grad():
            logits = self._prompt(input_ids, attention_mask, None, cache, 1)[:, -1]
            cache.compact(attention_mask, rows)
            assert cache.lengths is not None
            token = choice.of(logits, cache.lengths - 1)
            said, open_ = [input_ids], torch.ones(rows, dtype=torch.bool)
            if streamer is not None:
                streamer.put(input_ids.cpu())
            for left in reversed(range(max_new_tokens)):
                token = torch.where(open_, token, pad)
                said.append(token[:, None])
                open_ = open_ & ~torch.isin(token, ends)
                if streamer is not None:
                    streamer.put(token.cpu())
                if not left or not bool(open_.any()):
                    break
                _, token = self._decode(token[:, None], cache, choice)
        if streamer is not None:
            streamer.end()
        return torch.cat(said, 1)

    def _decode(
        self, ids: torch.Tensor, cache: SlotCache, choice: Choice | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One token `[rows, 1]` for every row, by the kernel: its logits `[rows, 1, vocabulary]`,
        and the next one `[rows]` if it picks.

        As few calls of torch as can be, and all of them before the kernel's: after a step, which
        goes through all weights, each finds its code out of cache.
        """
        rows = ids.shape[0]
        assert cache.lengths is not None
        ids_name, *names = self._names
        given = []
        if self._step.sampling:
            given = (choice or Choice(0.0, 0.0, 0)).vectors(cache.lengths)

        def held() -> dict[str, torch.Tensor]:
            pairs = cache.tensors()
            both = [k for k, _ in pairs] + [v for _, v in pairs]
            own = names[:2] + names[2 + len(given) :]
            return dict(zip(own, [cache.lengths, cache.starts, *both], strict=True))  # type: ignore[list-item]

        ids = ids.contiguous()
        logits = torch.empty(rows, 1, self._vocabulary, dtype=torch.float32)
        chosen = torch.empty(rows, dtype=torch.long) if self._more else self._none
        with self.kernel.turn:
            self.kernel.bind_all(cache.place, held)
            self.kernel.bind(ids_name, ids)
            for name, tensor in zip(names[2:], given, strict=False):
                self.kernel.bind(name, tensor)
            self.kernel.bind(self._out, logits)
            for name in self._more:
                self.kernel.bind(name, chosen)
            self.kernel.run([rows])
        cache.advance()
        return logits, chosen

    def _prompt(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor | None,
        positions: torch.Tensor | None,
        cache: SlotCache,
        keep: int,
    ) -> torch.Tensor:
        """A prompt, by the model itself, some tokens at a time."""
        tokens = ids.shape[1]
        if positions is None and mask is not None:
            positions = (mask.long().cumsum(-1) - 1).clamp(min=0)[:, -tokens:]
        part = self._part(ids.shape[0], cache.get_seq_length() + tokens)
        keep = keep or tokens
        ends = None
        if keep == 1 and mask is not None and not bool(mask[:, -1].all()):
            # Padded on the right: the logits that count are those of each row's last token.
            ends = tokens - 1 - mask[:, -tokens:].flip(1).long().argmax(1)
            keep = tokens - int(ends.min())
        found: list[torch.Tensor] = []
        for a in range(0, tokens, part):
            b = min(tokens, a + part)
            wanted = max(0, b - max(a, tokens - keep))
            seen = cache.get_seq_length() + b - a
            out = self.model(
                input_ids=ids[:, a:b],
                attention_mask=None if mask is None else mask[:, :seen],
                position_ids=None if positions is None else positions[:, a:b],
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=max(1, wanted),
            )
            if wanted:
                found.append(out.logits[:, -wanted:].float())
        logits = torch.cat(found, 1)
        if ends is None:
            return logits
        return logits[torch.arange(len(ends)), ends - (tokens - keep)][:, None]

    def _part(self, rows: int, total: int) -> int:
        """Tokens at a time: each needs its hidden states, its MLP's, and a row of scores a head."""
        text = self.config.get_text_config(decoder=True)
        wide = getattr(text, "intermediate_size", None) or 4 * text.hidden_size
        per_token = (
            rows * 4 * (8 * text.hidden_size + 3 * wide + 2 * text.num_attention_heads * total)
        )
        return max(16, self.prefill_memory // per_token)

    def _check_rows(self, rows: int) -> None:
        if rows > self.max_batch:
            raise InputError(
                f"{rows} rows",
                allowed=f"max_batch={self.max_batch} rows, beams and returned sequences included",
                fix=f"quire.fuse(model, max_batch={rows})",
            )

    def _prepare_cache_for_generation(
        self,
        generation_config: Any,
        model_kwargs: dict[str, Any],
        generation_mode: Any,
        batch_size: int,
        max_cache_length: int,
    ) -> None:
        if max_cache_length > self.max_length:
            # The last token of a request is not cached.
            asked = max(generation_config.max_length or 0, max_cache_length)
            raise InputError(
                f"a request of {asked} tokens",
                allowed=f"max_length={self.max_length} tokens, prompt and continuation",
                fix=f"quire.fuse(model, max_length={asked}), or a lower max_new_tokens",
            )
        if model_kwargs.get("past_key_values") is not None:
            return
        more = max(generation_config.num_beams or 1, generation_config.num_return_sequences or 1)
        model_kwargs["past_key_values"] = self.new_cache(batch_size * more)


def _output(logits: torch.Tensor, cache: SlotCache) -> CausalLMOutputWithPast:
    """What `CausalLMOutputWithPast(logits=…, past_key_values=…)` gives, without its going through
    every field of the class: 50 µs of a step, whose code it finds out of cache."""
    out = CausalLMOutputWithPast.__new__(CausalLMOutputWithPast)
    for name, value in (("logits", logits), ("past_key_values", cache)):
        OrderedDict.__setitem__(out, name, value)
        object.__setattr__(out, name, value)
    return out
