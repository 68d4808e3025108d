"""A text as it is written: each new token, and where the model sent it once it has read it."""

import time
from collections.abc import Iterator
from dataclasses import dataclass
from queue import Queue
from threading import Event, Thread
from typing import Any

import torch
from transformers import MaxTimeCriteria, PreTrainedTokenizerFast, StoppingCriteria, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from chiaroscuro.analysis.routing import LayerRoute, TextRoute, layer_routes
from chiaroscuro.data import encode_text
from chiaroscuro.modeling import ChiarForCausalLM


@dataclass(frozen=True)
class Written:
    """What there is of a text. route: of the tokens that were read, those of the prompt included. waiting: the last
    token, which is read next. speed: new tokens per second, from the first one on, which comes with the prompt."""

    route: TextRoute
    waiting: str
    speed: float


class _Stop(StoppingCriteria):
    def __init__(self, asked: Event):
        self.asked = asked

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), self.asked.is_set(), device=input_ids.device)


class _Feed(BaseStreamer):
    """Token ids with the time they were made at, and routes, in the order in which they come up; at the end None, or
    what went wrong. The time does not count what it takes to tell the routes, of which a model by itself has none."""

    def __init__(self) -> None:
        self.queue: Queue[Any] = Queue()
        self.telling = 0.0

    def tell(self, model: ChiarForCausalLM, traces: Any, length: int) -> None:
        started = time.perf_counter()
        self.queue.put(layer_routes(model, traces, length))
        self.telling += time.perf_counter() - started

    def put(self, value: torch.Tensor) -> None:
        self.queue.put((time.perf_counter() - self.telling, value.flatten().tolist()))

    def end(self) -> None:
        self.queue.put(None)


def write_text(
    model: ChiarForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    prompt: str,
    tokens: int,
    temperature: float = 0.8,
    seconds: float = 30.0,
) -> Iterator[Written]:
    """Go on from `prompt` for up to `tokens` tokens and `seconds`; yields what there is after each token.

    Raises ValueError for an empty prompt and for one that leaves no room.
    """
    ids_BT = torch.tensor([encode_text(tokenizer, prompt)["input_ids"]], device=model.device)
    room = model.config.max_position_embeddings - ids_BT.shape[1]
    if not ids_BT.numel():
        raise ValueError("the prompt is empty: give at least one character")
    if room < 1:
        raise ValueError(f"the prompt has {ids_BT.shape[1]} tokens, and the model takes no more")
    feed, asked = _Feed(), Event()

    def generate() -> None:
        try:
            model.generate(
                ids_BT,
                attention_mask=torch.ones_like(ids_BT),
                max_new_tokens=min(tokens, room),
                streamer=feed,
                stopping_criteria=StoppingCriteriaList([_Stop(asked), MaxTimeCriteria(seconds)]),
                output_routing=True,
                **sampling(temperature),
            )
        except BaseException as error:  # it is for the thread that reads
            feed.queue.put(error)

    def note(module: Any, inputs: Any, named: dict[str, Any], output: Any) -> None:
        feed.tell(model, output.routing, named["input_ids"].shape[1])

    hook = model.register_forward_hook(note, with_kwargs=True)
    thread = Thread(target=generate, daemon=True)
    thread.start()
    try:
        yield from _follow(tokenizer, feed.queue)
    finally:  # also when the reader loses interest
        asked.set()
        thread.join()
        hook.remove()


def sampling(temperature: float, top_k: int = 50) -> dict[str, Any]:
    """What `model.generate` is to be told, to draw from the `top_k` likeliest tokens; at temperature 0 to take the
    likeliest."""
    return {"do_sample": True, "temperature": temperature, "top_k": top_k} if temperature > 0 else {"do_sample": False}


def _follow(tokenizer: PreTrainedTokenizerFast, queue: "Queue[Any]") -> Iterator[Written]:
    ids: list[int] = []
    pieces: list[str] = []
    layers: list[LayerRoute] | None = None
    times: list[float] = []
    shown = 0  # characters
    while (item := queue.get()) is not None:
        if isinstance(item, BaseException):
            raise item
        if isinstance(item, list):
            layers = item if layers is None else [_joined(*pair) for pair in zip(layers, item, strict=True)]
            continue
        made_at, new = item
        for each in new:
            ids.append(each)
            # A character of several tokens stands with the last of them, a dot with the others.
            text = str(tokenizer.decode(ids)).rstrip("\ufffd")
            pieces.append(text[shown:] or "·")
            shown = len(text)
        if layers is None:  # the prompt
            continue
        times.append(made_at)
        speed = (len(times) - 1) / (times[-1] - times[0]) if len(times) > 1 else 0.0
        yield Written(TextRoute(pieces[:-1], layers, None), pieces[-1], speed)


def _joined(before: LayerRoute, more: LayerRoute) -> LayerRoute:
    choice = before.choice + more.choice
    part = len(more.choice) / len(choice)
    shares = {name: (1 - part) * before.shares[name] + part * more.shares[name] for name in before.operators}
    return LayerRoute(
        before.layer,
        before.operators,
        choice,
        shares,
        before.entropy + more.entropy,
        before.gate + more.gate,
        before.thresholds,
    )
