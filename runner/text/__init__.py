"""Between text and token ids: prompts in, streamed text out."""

from runner.text.prompt import encode_prompt, ends_generation, reads_as_chat
from runner.text.stop import StopMatcher
from runner.text.stream_decoder import StreamDecoder

__all__ = ["StopMatcher", "StreamDecoder", "encode_prompt", "ends_generation", "reads_as_chat"]
