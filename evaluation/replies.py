"""What a suite asks of a target, and what comes back. One interface for an endpoint, vLLM offline and transformers.

An `Ask` is a prompt with an answer to score, or without one, to be answered. What becomes of an answer's tokens where a
policy corrupts the prompt is the target's `AnswerProtocol`.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, runtime_checkable

from storage.digests import sha256_of_json

Style = Literal["chat", "text", "whole"]
"""chat: the prompt is a user's message, put through the model's chat template where it has one (plain text where it has
none). text: the model continues the prompt as it stands, chat template or not. whole: the answer is a text with nothing
before it, and the prompt is empty; all its tokens are scored but the first, which stands as the prompt: what the
tokenizer puts before every text or, where it puts nothing, the text's own, which nothing predicts."""

AnswerProtocol = Literal["served", "eco", "clean"]
"""How a policy treats an answer that is given and scored. What is generated is the same under all three.

served: prompt and answer are one prompt, which the guard classifies and corrupts: what a client of the gateway sees
    that has an answer scored (echo, prompt_logprobs).
eco: the verdict is of the prompt alone; where it is flagged, the entity tokens of prompt and answer are corrupted, or
    all content of both where the policy knows no entities. As ECO's public code scores
    (`AttackedModel.apply_corruption` of chrisliu298/llm-unlearn-eco), but for what `Guard.corrupt_all` says.
clean: the prompt alone is classified and corrupted; the answer's tokens stay.

The probability of a token is predicted from the positions before it: under the first two their rows may be corrupted.
"""

Need = Literal["logprobs", "vocabulary", "logits", "sampling", "requests", "steps"]
"""What not every target can do.

logprobs: log-probabilities of a given answer, and which of its tokens are the likeliest.
vocabulary: mean and standard deviation of log p over the vocabulary, at each answer token.
logits: the logits of the next token over the whole vocabulary.
sampling: several answers drawn at a temperature.
requests: requests of HTTP as a client writes them.
steps: the first few of its policies alone, as before the others were added.
"""


@dataclass(frozen=True, slots=True)
class Request:
    """A request as a client writes it, with whatever fields the server's API has: for what no question can express.

    Attributes:
        route: "chat" or "completions", of OpenAI's API.
        body: the JSON body without `model`; with `"stream": True` the answer's events are put together.
        allowed: texts whose tokens alone may be generated; the target finds their ids (`allowed_token_ids`).
        biased: texts whose tokens are favoured by `bias` (`logit_bias`).
        bias: added to their logits, in [-100, 100].
    """

    route: Literal["chat", "completions"]
    body: Mapping[str, Any]
    allowed: tuple[str, ...] = ()
    biased: tuple[str, ...] = ()
    bias: float = 0.0


@dataclass(frozen=True, slots=True)
class Ask:
    """One thing asked of a target.

    Attributes:
        prompt: what the policy, if any, sees; of `answer` as the target's `AnswerProtocol` says.
        answer: scored after the prompt where given; None: an answer is generated. With style "chat" and a model
            without a chat template, and with other styles, it is appended as it stands, so it begins with its
            space where it needs one, except that "chat" puts the space in itself.
        style: see `Style`.
        system: a system message before it; put before the prompt, with a blank line, where there is no chat template.
        begun: how the model's answer begins; it goes on from there, and the reply has the rest alone. Stands right
            after the chat template's last words, or on a new line where there is no template. A scored `answer`
            after it begins with its space where it needs one. Style "chat" only.
        max_new_tokens: of a generated answer.
        stop: texts that end a generated answer; they are left out of it.
        temperature: 0: greedy.
        samples: answers drawn; more than 1 needs a temperature.
        seed: of the sampling; 0 or more.
        vocabulary: whether the reply carries `vocabulary_mean` and `vocabulary_std`.
        next_logits: whether the reply carries `next_logits`; nothing is generated then.
        draw: number of the noise draw, from 0: another secret where the target applies a policy itself.
        policies: how many of the target's policies are applied, counted from its first; None: all.
        request: sent as it stands instead of a question; the other fields then say nothing. None: a question.
    """

    prompt: str
    answer: str | None = None
    style: Style = "chat"
    system: str | None = None
    begun: str = ""
    max_new_tokens: int = 64
    stop: tuple[str, ...] = ()
    temperature: float = 0.0
    samples: int = 1
    seed: int = 0
    vocabulary: bool = False
    next_logits: bool = False
    draw: int = 0
    policies: int | None = None
    request: Request | None = None

    @property
    def needs(self) -> frozenset[Need]:
        needed: dict[Need, bool] = {
            "logprobs": self.answer is not None,
            "vocabulary": self.vocabulary,
            "logits": self.next_logits,
            "sampling": self.temperature > 0,
            "requests": self.request is not None,
            "steps": self.policies is not None,
        }
        return frozenset(need for need, wanted in needed.items() if wanted)


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back.

    Attributes:
        texts: the generated answers, `samples` of them; empty where an answer was scored.
        logprobs: (A,) log P of each token of the scored answer after the prompt and the answer so far, in nats.
        greedy: (A,) whether each of them is the likeliest at its place.
        token_ids: (A,) the scored answer's tokens, where the target knows them.
        vocabulary_mean: (A,) mean of log p under p itself over the vocabulary, at each answer token, in nats.
        vocabulary_std: (A,) its standard deviation under p.
        next_logits: (V,) logits of the token after the prompt.
        flagged: whether a policy corrupted anything of prompt or answer; None where the target cannot tell.
        status: HTTP's answer to an `Ask.request`, 0 where it could not be read; None for a question. `texts` then
            holds every text of the response, whatever its field.
        alternatives: (P, any) the tokens that a response to a request names at each place, chosen or not; an empty
            place parts lists that do not follow each other.
    """

    texts: tuple[str, ...] = ()
    logprobs: tuple[float, ...] = ()
    greedy: tuple[bool, ...] = ()
    token_ids: tuple[int, ...] = ()
    vocabulary_mean: tuple[float, ...] = ()
    vocabulary_std: tuple[float, ...] = ()
    next_logits: tuple[float, ...] = ()
    flagged: bool | None = None
    status: int | None = None
    alternatives: tuple[tuple[str, ...], ...] = ()

    @property
    def text(self) -> str:
        """The generated answer, or the first of several."""
        return self.texts[0]


class Target(Protocol):
    """What is evaluated. `close` it when done."""

    @property
    def protocol(self) -> AnswerProtocol | None:
        """How given answers are treated; None where nothing corrupts anything, or no answer is scored."""
        ...

    def describe(self) -> Mapping[str, object]:
        """What identifies it and decides its answers, as JSON values: replies are cached under it.

        `kind` is "endpoint", "vllm" or "transformers"; `model` its name; `tokenizer_sha256` where it is known;
        `policies` a list of {name, digest, strength} where it applies them itself.
        """
        ...

    def check(self, asks: Sequence[Ask]) -> None:
        """Raise `TargetError` where it cannot do what these need; tried on a few of them, before a run."""
        ...

    def canonical(self, asks: Sequence[Ask]) -> list[Ask]:
        """The asks with what makes no difference here set to its default, such as the draw of an unflagged prompt.

        Two asks with the same canonical form get the same reply.
        """
        ...

    def replies(self, asks: Sequence[Ask]) -> Iterator[tuple[int, Reply]]:
        """Number and reply of each, as they come, in any order. All that can share batches is given in one call.

        Raises:
            TargetError: one cannot be answered; those that came before are good.
        """
        ...

    def close(self) -> None: ...


@runtime_checkable
class ForeseenTarget(Protocol):
    """A target of which something is known before its model is loaded."""

    def foreseen(self) -> Mapping[str, object]:
        """Of `Target.describe`, the digests of weights and tokenizer, as far as they are known."""
        ...


class Asker(Protocol):
    """A target with a run's cache and progress around it: what a suite calls."""

    @property
    def target(self) -> Target: ...

    @property
    def draw(self) -> int:
        """Number of the noise draw of everything that is asked."""
        ...

    def __call__(self, asks: Mapping[str, Ask], title: str = "") -> dict[str, Reply]:
        """The replies under the same keys; what was asked before is read from the run's folder."""
        ...


def digest_of(ask: Ask, identity: str = "") -> str:
    """sha256 in hex of an ask and what identifies the target (see `Target.describe`)."""
    fields = asdict(ask)
    for later in ("request", "policies"):  # as before there were these: replies that are kept stay good
        if fields[later] is None:
            del fields[later]
    if not ask.begun:  # likewise
        del fields["begun"]
    return sha256_of_json([identity, fields], sort_keys=True)


def all_needs(asks: Iterable[Ask]) -> frozenset[Need]:
    """Everything that any of them needs."""
    return frozenset[Need]().union(*(ask.needs for ask in asks))
