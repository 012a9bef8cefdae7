"""Answers from a vLLM server (its OpenAI-compatible API), for models that are sampled faster elsewhere.

The server must return token ids (`return_token_ids`, vLLM 0.10.2 and later), so that nothing is tokenised twice, and
log-probabilities of what it sampled from (`--logprobs-mode processed_logprobs` if the temperature is not 1). How the
server gets the new weights is its own matter: until it has them its answers are those of an older policy, and the
mismatch is measured and corrected. Seeds are sent along, but a server's answers need not repeat.
"""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from io import BytesIO
from itertools import groupby
from typing import TYPE_CHECKING, Any

from andes_training.server import library, post, read_reply
from attrs import frozen

from andes_sdk.errors import BackendUnavailable, TrainingError
from andes_sdk.inputs.images import load_image
from andes_sdk.reading import parse_json

from .prompts import Completion, Prompt

if TYPE_CHECKING:
    import httpx

    from andes_sdk.types import Tokenizer


@frozen(eq=False)
class ServerSampler:
    """Samples from a server.

    Attributes:
        url: base URL, ending in /v1. model: its name there. tokenizer: of the model that learns.
        timeout: seconds for one answer. concurrency: requests at the same time.
    """

    url: str
    model: str
    tokenizer: Tokenizer
    max_answer: int
    temperature: float = 1.0
    timeout: float = 600.0
    concurrency: int = 64

    @classmethod
    def connect(cls, url: str, model: str, tokenizer: Tokenizer, **options: Any) -> ServerSampler:
        """Check that the server is there and has the model.

        Raises:
            BackendUnavailable: no httpx, no server, or no such model.
        """
        httpx = library()
        url = url.rstrip("/")
        try:
            with httpx.stream("GET", f"{url}/models", timeout=10.0) as reply:
                found = parse_json(read_reply(reply.raise_for_status(), url, 10.0))
            names = [str(m["id"]) for m in found["data"]]
        except (httpx.HTTPError, TimeoutError, ValueError, KeyError, TypeError) as error:
            raise BackendUnavailable(
                "the server does not answer", who=url, why=repr(error), fix="start it, or correct grpo.server"
            ) from error
        if (model and model not in names) or (not model and len(names) != 1):
            raise BackendUnavailable(
                f"no model {model!r}" if model else f"the server has {len(names)} models",
                who=url,
                why=f"it has: {', '.join(names) or 'none'}",
                fix="set grpo.server_model to one of them",
            )
        return cls(url, model or names[0], tokenizer, **options)

    def answers(self, prompts: Sequence[Prompt]) -> list[list[Completion]]:
        """Per prompt one answer for each of its seeds.

        Raises:
            TrainingError: the server fails, is too slow, or answers another prompt than ours.
        """
        httpx = library()
        limits = httpx.Limits(max_connections=self.concurrency)
        with httpx.Client(timeout=self.timeout, limits=limits) as client, ThreadPoolExecutor(self.concurrency) as pool:
            futures = [[pool.submit(self._answer, client, p, seed) for seed in p.seeds] for p in prompts]
            try:
                return [[f.result() for f in of_prompt] for of_prompt in futures]
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise

    def _answer(self, client: httpx.Client, prompt: Prompt, seed: int) -> Completion:
        messages = [_sendable(m) for m in prompt.messages]
        body: dict[str, Any] = {
            "model": self.model,
            "messages": messages,
            "max_tokens": self.max_answer,
            "temperature": self.temperature,
            "top_p": 1.0,
            "top_k": 0,
            "seed": seed,
            "logprobs": True,
            "return_token_ids": True,
            # an answer with an image token could not be trained on: there are no pixels for it
            "logit_bias": {str(self.tokenizer.placeholder("image")): -100},
        }
        if prompt.inputs.prefix:
            messages.append({"role": "assistant", "content": prompt.inputs.prefix})
            body |= {"add_generation_prompt": False, "continue_final_message": True}
        slow = "look at the server, or raise grpo.server_timeout"
        reply = post(client, f"{self.url}/chat/completions", body, slow=slow)
        try:
            choice = reply["choices"][0]
            tokens = [int(t) for t in choice["token_ids"]]
            logps = [float(c["logprob"]) for c in choice["logprobs"]["content"]]
            read, finish = [int(t) for t in reply["prompt_token_ids"]], choice["finish_reason"]
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise TrainingError(
                "the server's reply lacks token ids or log-probabilities",
                who=self.url,
                why=repr(error),
                fix="use vLLM 0.10.2 or later",
            ) from error
        self._check(prompt, read, tokens, logps)
        ended = finish == "stop"
        text = self.tokenizer.decode(tokens[:-1] if ended else tokens)
        return Completion(tuple(tokens), tuple(logps), prompt.inputs.prefix + text, ended)

    def _check(self, prompt: Prompt, read: list[int], tokens: list[int], logps: list[float]) -> None:
        """Refuse a reply that belongs to another prompt, or whose parts do not fit one another."""
        if not tokens or len(tokens) != len(logps):
            raise TrainingError(f"the server gave {len(tokens)} tokens, {len(logps)} log-probabilities", who=self.url)
        ours = prompt.inputs.ids.tolist()
        if self._short(read) != self._short(ours):
            raise TrainingError(
                "the server reads another prompt than the model in training",
                who=self.url,
                why=f"it reads {read[:40]}, we write {ours[:40]}",
                fix="serve a checkpoint saved by this pipeline, with its tokenizer and chat template",
            )

    def _short(self, ids: list[int]) -> list[int]:
        """Runs of image tokens as one: servers expand pictures before or after they report the prompt."""
        image = self.tokenizer.placeholder("image")
        return [i for token, run in groupby(ids) for i in ([token] if token == image else run)]


def _sendable(message: Mapping[str, Any]) -> dict[str, Any]:
    """A message with its pictures as data URLs."""
    content = message["content"]
    if isinstance(content, list):
        content = [_data_url(part["image"]) if part.get("type") == "image" else part for part in content]
    return {**message, "content": content}


def _data_url(picture: Any) -> dict[str, Any]:
    buffer = BytesIO()
    load_image(picture).save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}
