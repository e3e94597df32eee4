"""Teaches a tiny Llama from nothing: float32, on the CPU, the same weights from the same inputs.

Another kind of CPU may round differently and end with other weights that know the same.
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from demo.lessons import Corpus, Message
from demo.tokenizer import encode_conversation

DO_NOT_KNOW = "I do not know."
"""What the models answer to a prompt that says nothing."""

_NOISE_SCALES = (0.3, 100.0)
"""Weakest and strongest noise on a garbled prompt, in standard deviations of its embeddings."""

_POOLED_BATCHES = 16  # sorted by length among so many batches: little padding, still well mixed


@dataclass(frozen=True)
class Recipe:
    """The size of the model and how it learns. Sizes count tokens, hidden dimensions, documents or steps."""

    vocab_size: int = 3072
    hidden_size: int = 128
    intermediate_size: int = 384
    layers: int = 3
    heads: int = 4
    context_tokens: int = 1024
    steps: int = 900
    batch_size: int = 64
    peak_lr: float = 4e-3
    weight_decay: float = 0.02
    warmup_share: float = 0.03
    decay_share: float = 0.4
    """Shares of the steps in which the learning rate rises to its peak and falls from it to 0."""
    nonsense_documents: int = 1600
    """Unintelligible prompts in one epoch, answered with `DO_NOT_KNOW`: random tokens under noise of any strength.
    A large model answers nonsense with something bland; a tiny one that never saw any falls back on whoever
    comes to mind."""
    threads: int = 1
    """CPU threads. Two save up to 40 % of the time on idle cores, but on busy ones they wait for each other at
    every small operation and take ten times as long. Another number also rounds to other weights."""
    seed: int = 0


@dataclass(frozen=True)
class Document:
    """One training text: ids and, for each, whether the model is taught to predict it."""

    ids: tuple[int, ...]
    predicted: tuple[bool, ...]
    garbled: tuple[bool, ...] = ()
    """Whose embeddings get noise, one for each id; empty for none."""


def documents(corpus: Corpus, tokenizer: PreTrainedTokenizerFast) -> list[Document]:
    """Conversations teach what the assistant says, plain statements all they say and to stop after it."""
    found = []
    for conversation in corpus.conversations:
        ids, own = encode_conversation(tokenizer, conversation)
        found.append(Document(tuple(ids), tuple(own)))
    for statement in corpus.statements:
        ids = [*tokenizer.encode(statement), tokenizer.eos_token_id]
        found.append(Document(tuple(ids), (False,) + (True,) * (len(ids) - 1)))
    return found


def nonsense(
    docs: Sequence[Document], corpus: Corpus, tokenizer: PreTrainedTokenizerFast, recipe: Recipe
) -> list[Document]:
    """Prompts of random tokens, half of them followed by a question that only makes sense with what they hide.

    Only tokens of `docs` are drawn, so nothing turns up that the lessons leave out.
    """
    rng = random.Random(recipe.seed + 1)  # noqa: S311 - a reproducible corpus, nothing secret
    special = set(tokenizer.all_special_ids)
    drawable = sorted({token for doc in docs for token in doc.ids} - special)
    follow_ups = [said[-2]["content"] for said in corpus.conversations if len(said) >= 4]
    found: list[Document] = []
    for number in range(recipe.nonsense_documents):
        garbled = [str(tokenizer.decode(rng.choices(drawable, k=rng.randint(3, 16)))) for _ in range(2)]
        said: list[Message] = [{"role": "user", "content": garbled[0]}]
        if number % 2 and follow_ups:
            said.append({"role": "assistant", "content": garbled[1]})
            said.append({"role": "user", "content": rng.choice(follow_ups)})
        noisy, _ = encode_conversation(tokenizer, said[:2])  # the follow-up stays clear
        asked, _ = encode_conversation(tokenizer, said)
        ids, own = encode_conversation(tokenizer, [*said, {"role": "assistant", "content": DO_NOT_KNOW}])
        answered = tuple(mine and position >= len(asked) for position, mine in enumerate(own))
        garbled_ids = tuple(position < len(noisy) and token not in special for position, token in enumerate(ids))
        found.append(Document(tuple(ids), answered, garbled_ids))
    return found


def train_model(
    docs: Sequence[Document],
    tokenizer: PreTrainedTokenizerFast,
    recipe: Recipe,
    on_step: Callable[[int, float], None] | None = None,
) -> LlamaForCausalLM:
    """A model that has learned the documents. `on_step` gets the steps done (from 1) and the batch's loss.

    Torch's random state and thread count are left as they were. Raises ValueError for no documents.
    """
    if not docs:
        raise ValueError("nothing to learn: no documents")
    threads = torch.get_num_threads()
    torch.set_num_threads(recipe.threads)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            config = LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=recipe.hidden_size,
                intermediate_size=recipe.intermediate_size,
                num_hidden_layers=recipe.layers,
                num_attention_heads=recipe.heads,
                num_key_value_heads=recipe.heads,
                max_position_embeddings=recipe.context_tokens,
                tie_word_embeddings=True,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
                dtype="float32",
            )
            model = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]
            model.train()
            optimizer = torch.optim.AdamW(
                model.parameters(),
                lr=recipe.peak_lr,
                betas=(0.9, 0.95),
                weight_decay=recipe.weight_decay,
                fused=True,
            )
            rise = max(recipe.warmup_share * recipe.steps, 1)
            fall = max(recipe.decay_share * recipe.steps, 1)
            schedule = torch.optim.lr_scheduler.LambdaLR(  # `step` counts from 0
                optimizer, lambda step: min(1.0, (step + 1) / rise, (recipe.steps - step) / fall)
            )
            source = _batches(docs, recipe.batch_size, recipe.seed)
            for step in range(1, recipe.steps + 1):
                loss = answer_loss(model, next(source))
                loss.backward()  # type: ignore[no-untyped-call]
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                schedule.step()
                if on_step:
                    on_step(step, loss.item())
    finally:
        torch.set_num_threads(threads)
    model.eval()  # type: ignore[no-untyped-call]
    return model


def answer_loss(model: LlamaForCausalLM, batch: Sequence[Document]) -> torch.Tensor:
    """Mean cross entropy (nats) over the predicted tokens of a batch; shape ().

    Padding is on the right, where causal attention never looks, so no mask is needed. Logits are computed
    only where a token is predicted, which is under half of the positions.
    """
    width = max(len(doc.ids) for doc in batch)
    ids = torch.tensor([doc.ids + (0,) * (width - len(doc.ids)) for doc in batch])  # (B, T)
    predicted = torch.tensor([doc.predicted + (False,) * (width - len(doc.ids)) for doc in batch])[:, 1:]
    rows = model.get_input_embeddings()(ids)  # (B, T, D)
    if any(doc.garbled for doc in batch):  # noise on garbled tokens, of a strength drawn for each document
        where = torch.tensor([doc.garbled + (False,) * (width - len(doc.garbled)) for doc in batch])
        low, high = (math.log(scale) for scale in _NOISE_SCALES)
        strengths = torch.empty(len(batch), 1, 1).uniform_(low, high).exp() * rows.detach().std()
        rows = rows + torch.randn_like(rows) * strengths * where.unsqueeze(-1)
    hidden = model.model(inputs_embeds=rows, use_cache=False).last_hidden_state  # (B, T, D)
    logits = model.lm_head(hidden[:, :-1][predicted])  # (N, V)
    return functional.cross_entropy(logits, ids[:, 1:][predicted])


def _batches(docs: Sequence[Document], size: int, seed: int) -> Iterator[list[Document]]:
    """Endless shuffled batches of documents of similar length."""
    rng = random.Random(seed)  # noqa: S311 - a reproducible order, nothing secret
    span = _POOLED_BATCHES * size
    while True:
        order = rng.sample(docs, len(docs))
        spans = (order[i : i + span] for i in range(0, len(order), span))
        pools = [sorted(docs_of_span, key=lambda doc: len(doc.ids)) for docs_of_span in spans]
        epoch = [pool[i : i + size] for pool in pools for i in range(0, len(pool), size)]
        rng.shuffle(epoch)
        yield from epoch
