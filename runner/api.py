"""The Python API, which is also what the command line runs on: `from runner import Runner`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch

from models.errors import UsageError
from models.load.source import Source
from models.swap import SwapReport
from runner.config import Attention, Dtype, Fuse, LoadFormat, RunConfig, SamplingConfig
from runner.generate import GenerationStream
from runner.pipeline import Loaded, Progress, load, load_source
from runner.report import RunFacts, RunStats
from runner.sampling import Sampler
from runner.text import encode_prompt
from runner.timing import StartupTimes


@dataclass(frozen=True)
class Generation:
    """A finished generation. `token_ids` include a final EOS token; `text` holds neither it nor a stop string."""

    token_ids: list[int]
    text: str
    finish_reason: str
    stats: RunStats


class Runner:
    """One model, loaded once, for any number of generations, one at a time."""

    def __init__(self, loaded: Loaded, config: RunConfig):
        self.config = config
        self.source: Source = loaded.source
        self.settings = loaded.settings
        self.engine = loaded.engine
        self.swap_report: SwapReport = loaded.swap_report
        self.load_stats = loaded.fill_report
        self._sampler: Sampler | None = None

    @classmethod
    def from_pretrained(
        cls,
        source: str,
        *,
        device: str | None = None,
        dtype: Dtype | None = None,
        attention: Attention = "routed",
        cuda_graph: bool | None = None,
        ctx_size: int | None = None,
        load_format: LoadFormat = "auto",
        prefill_chunk: int | None = None,
        fuse: Fuse | None = None,
        pdl: bool | None = None,
        offline: bool = False,
        revision: str | None = None,
    ) -> Runner:
        """Load a catalogue name, local directory, .gguf file or hub id. None lets the pipeline choose by device.

        ctx_size and prefill_chunk count tokens. Raises LoadError, UsageError or RunnerError (see models.errors).
        """
        return cls.from_config(
            RunConfig(
                model=source,
                device=device,
                dtype=dtype,
                attention=attention,
                cuda_graph=cuda_graph,
                fuse=fuse,
                pdl=pdl,
                ctx_size=ctx_size,
                prefill_chunk=prefill_chunk,
                load_format=load_format,
                offline=offline,
                revision=revision,
            )
        )

    @classmethod
    def from_config(cls, config: RunConfig, source: Source | None = None, progress: Progress | None = None) -> Runner:
        """Load what the config says; `source` if it is already resolved. progress(bytes done, bytes in all)."""
        return cls(load(config, source or load_source(config), progress), config)

    @cached_property
    def tokenizer(self) -> Any | None:
        """The source's Hugging Face tokenizer; None if it has none, as dummy weights."""
        return self.source.load_tokenizer()

    def generate(self, prompt_or_ids: str | Sequence[int], **sampling: Any) -> Generation:
        """Generate to the end. `sampling` are the fields of SamplingConfig, over the model's own defaults."""
        stream = self.stream(prompt_or_ids, **sampling)
        for _ in stream:
            pass
        assert stream.finish_reason is not None
        return Generation(stream.token_ids, stream.text, stream.finish_reason, stream.stats)

    def stream(self, prompt_or_ids: str | Sequence[int], **sampling: Any) -> GenerationStream:
        """An iterator of Piece(token_id, text), one a token; afterwards it holds what Generation holds.

        A string goes through the chat template if the tokenizer has one.
        """
        config = SamplingConfig.from_defaults(self.source.generation_defaults, **sampling)
        return self.stream_generation(self._ids(prompt_or_ids), config)

    def stream_generation(self, prompt_ids: Sequence[int], sampling: SamplingConfig) -> GenerationStream:
        """The same from token ids and a complete SamplingConfig."""
        if self._sampler is None:
            self._sampler = Sampler(
                sampling, self.source.spec.vocab_size, self.engine.ctx_size + 1, self.settings.device
            )
        else:
            self._sampler = self._sampler.again(sampling)
        return GenerationStream(
            self.engine,
            self.tokenizer,
            prompt_ids,
            self._sampler,
            self.source.generation_defaults.get("eos_token_id", ()),
            facts=self._facts,
        )

    def logits(self, token_ids: Sequence[int]) -> torch.Tensor:
        """Teacher-forced logits after every one of `token_ids`, float32 [len, vocab] on the CPU."""
        ids = list(token_ids)
        if not 0 < len(ids) <= self.engine.ctx_size:
            raise UsageError(f"logits: {len(ids)} token ids, expected 1 to ctx_size {self.engine.ctx_size}")
        return self.engine.teacher_forced(ids)

    def _ids(self, prompt_or_ids: str | Sequence[int]) -> list[int]:
        if not isinstance(prompt_or_ids, str):
            return list(prompt_or_ids)
        if self.tokenizer is None:
            raise UsageError(f"{self.source.name} has no tokenizer: give token ids instead of text")
        return encode_prompt(self.tokenizer, prompt_or_ids)

    @cached_property
    def _ceilings(self) -> tuple[float | None, float | None]:
        """Measured read bandwidth (bytes/s) and bf16 matmul rate (operations/s) of the GPU; None on a CPU."""
        if self.settings.device.type != "cuda":
            return None, None
        from kernels.ceilings import matmul_rate, read_bandwidth

        measured = read_bandwidth(self.settings.device), matmul_rate(self.settings.device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(self.settings.device)  # what measuring took is not the model's
        return measured

    def _facts(self) -> RunFacts:
        settings, engine = self.settings, self.engine
        cuda = settings.device.type == "cuda"
        peak = torch.cuda.max_memory_allocated(settings.device) if cuda else None  # before the ceilings allocate
        bandwidth, rate = self._ceilings
        return RunFacts(
            model=self.source.name,
            spec=self.source.spec,
            device=torch.cuda.get_device_name(settings.device) if cuda else "cpu",
            dtype=str(settings.dtype).removeprefix("torch."),
            itemsize=settings.dtype.itemsize,
            attention=settings.attention,
            fuse=settings.fuse,
            pdl=settings.pdl,
            cuda_graph=self._graph_state(),
            routes=tuple(self.swap_report.by_kind().items()),
            ctx_size=settings.ctx_size,
            prefill_chunk=settings.prefill_chunk,
            dummy_weights=self.source.kind == "dummy",
            stored_bytes=self.source.stored_bytes or self.load_stats.bytes,
            read_bandwidth=bandwidth,
            matmul_rate=rate,
            peak_memory=peak,
            startup=StartupTimes(
                load_s=self.load_stats.seconds,
                compile_s=engine.warmup_s if cuda else None,
                capture_s=engine.capture_s if engine.cuda_graph else None,
            ),
        )

    def _graph_state(self) -> str:
        if self.engine.graph_failure:
            return f"off: {self.engine.graph_failure}"
        if not self.engine.cuda_graph:
            return "off: no CUDA device" if self.settings.device.type != "cuda" else "off: --no-cuda-graph"
        return "on"
