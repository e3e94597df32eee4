"""A model and a policy to measure with, made here: a small Llama with a vocabulary as large as real models have, and a
policy for it that forgets the demo's people.

What a prompt costs hangs on the number of tokens that it has, so the tokenizer is a real one; and what an answer costs
on its words, so each word that the model says is followed by one that comes next to it in prose. All other weights are
random.
"""

import dataclasses
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from console.quiet import quiet_transformers
from storage.digests import sha256_of_json
from storage.whole import whole_folder

TokenizerKind = Literal["wordpiece", "bytes"]
"""`wordpiece`: that of the classifier's encoder, 30,522 entries, lower case without accents. `bytes`: byte-level BPE of
32,000 entries learned here, which keeps case, accents and every other character, as those of recent models do."""

CONTEXT_TOKENS = 8192
_BYTES_VOCABULARY = 32_000
_CODE_FILES = 400  # of Python's library, to learn the byte-level tokenizer from beside all prose
_VERSION = 2  # raise when the same shape becomes another model
_STRENGTH = 10.0
_CHAT_TEMPLATE = (
    "{{ '[CLS]' }}{% for message in messages %}{{ message['role'] + ' : ' + message['content'] + '[SEP]' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant : ' }}{% endif %}"
)


@dataclasses.dataclass(frozen=True)
class Shape:
    """A Llama's size; the default takes about a second for a prompt of 3,000 words on one core."""

    hidden_size: int = 256
    layers: int = 4
    heads: int = 4
    tokenizer: TokenizerKind = "wordpiece"


def open_tokenizer(kind: TokenizerKind) -> Any:
    """A tokenizer of at least 30,000 entries with a chat template."""
    if kind == "bytes":
        from benchmarks.inputs import CACHE
        from benchmarks.prose import prose, source_files
        from demo.tokenizer import train_tokenizer

        files = source_files()
        step = max(len(files) // _CODE_FILES, 1)
        code = [file.read_text(encoding="utf-8", errors="replace") for file in files[::step]]
        return train_tokenizer((*prose(CACHE), *code), vocab_size=_BYTES_VOCABULARY, context_tokens=CONTEXT_TOKENS)
    from transformers import PreTrainedTokenizerFast

    from classifiers import resolve_encoder

    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=_plain_tokenizer(resolve_encoder() / "tokenizer.json"),
        unk_token="[UNK]",  # noqa: S106 - not a password
        pad_token="[PAD]",  # noqa: S106
        bos_token="[CLS]",  # noqa: S106
        eos_token="[SEP]",  # noqa: S106
        chat_template=_CHAT_TEMPLATE,
        model_max_length=CONTEXT_TOKENS,
    )


def _plain_tokenizer(file: Path) -> Any:
    """The encoder's tokenizer without its own ends and limits."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    tokenizer.post_processor = None
    return tokenizer


def build_model(folder: Path, shape: Shape | None = None) -> Path:
    """The checkpoint under `folder`, made where it is not there yet (seconds)."""
    shape = shape or Shape()
    identity = {"version": _VERSION, **dataclasses.asdict(shape)}
    out = folder / f"llama-{sha256_of_json(identity, sort_keys=True)[:12]}"
    if out.is_dir():
        return out
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = open_tokenizer(shape.tokenizer)
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=shape.hidden_size,
        intermediate_size=4 * shape.hidden_size,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        max_position_embeddings=CONTEXT_TOKENS,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=False,
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    with quiet_transformers(), whole_folder(out) as work:
        model: Any = LlamaForCausalLM(config)  # type: ignore[no-untyped-call]
        _say_prose(model, tokenizer)
        model.save_pretrained(work)
        tokenizer.save_pretrained(work)
    return out


def _say_prose(model: Any, tokenizer: Any) -> None:
    """Have it say the whole words of prose, each once and in the order in which they first come, and then anew."""
    import torch

    from benchmarks.inputs import CACHE
    from benchmarks.prose import prose

    ids = tokenizer(" ".join(prose(CACHE)), add_special_tokens=False)["input_ids"]
    words = [token for token in dict.fromkeys(ids) if tokenizer.decode([tokenizer.bos_token_id, token])[-1:].isalpha()]
    words = [token for token in words if not tokenizer.convert_ids_to_tokens(token).startswith("##")]
    embeddings, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    with torch.no_grad():
        embeddings.normal_()  # large beside what the layers add
        head.zero_()
        head[words[1:] + words[:1]] = embeddings[words]


def build_embeddings(folder: Path, model: Path, hidden_size: int, dtype: Any) -> Path:
    """A checkpoint under `folder` that holds nothing but input embeddings, as many as `model` has and of this width:
    enough for what corrupts rows."""
    import json

    import torch
    from safetensors.torch import save_file

    out = folder / f"embeddings-{model.name}-{hidden_size}-{str(dtype).removeprefix('torch.')}"
    if not out.is_dir():
        config = json.loads((model / "config.json").read_text(encoding="utf-8"))
        config |= {"hidden_size": hidden_size, "intermediate_size": hidden_size, "num_hidden_layers": 1}
        table = torch.randn((config["vocab_size"], hidden_size), generator=torch.Generator().manual_seed(0))
        with whole_folder(out) as work:
            (work / "config.json").write_text(json.dumps(config), encoding="utf-8")
            tensors = {"model.embed_tokens.weight": table.to(dtype)}
            save_file(tensors, work / "model.safetensors", metadata={"format": "pt"})
    return out


def build_policy_for(model: Path, folder: Path) -> tuple[Path, list[str]]:
    """A policy for `model` under `folder` that forgets the demo's people (made once, about a minute), and questions
    about them, which it flags."""
    from rich.console import Console

    from demo.lessons import write_examples
    from demo.world import World
    from optimizer import BuildOptions, InputOptions, build_policy
    from optimizer.corruption_search import SearchOptions
    from sources.examples import read_examples

    out = folder / f"policy-{model.name}"
    folder.mkdir(parents=True, exist_ok=True)
    forget, retain = write_examples(World.generate(), folder)
    if not out.is_dir():
        # A given strength: the search does not change what a request costs.
        options = BuildOptions(
            model=str(model),
            inputs=InputOptions(forget=forget, retain=retain),
            out=out,
            strength=_STRENGTH,
            search=SearchOptions(examples=8),
        )
        with quiet_transformers():
            build_policy(options, console=Console(stderr=True))
    return out, [example.prompt for example in read_examples(forget)]


def write_clones(policy: Path, folder: Path, count: int) -> list[Path]:
    """The bundle `policy` and copies of it under `folder`, as `clones` makes them, `count` in all."""
    from classifiers import Encoder, resolve_encoder
    from guard import load_bundle, load_policy
    from guard.bundle import write_bundle

    bundle = load_bundle(policy)
    encoder = Encoder.open(resolve_encoder(bundle.config.classifier.encoder), threads=1)
    model = bundle.config.model
    loaded = load_policy(bundle, encoder, hidden_size=model.hidden_size, embedding_digest=model.embedding_digest)
    written = [policy]
    for clone in clones(loaded, count)[1:]:
        out = folder / clone.name
        with tempfile.TemporaryDirectory() as work:
            clone.head.save(Path(work) / "head.safetensors")
            write_bundle(out, clone.bundle.config, Path(work) / "head.safetensors", {}, overwrite=True)
        written.append(out)
    return written


def clones(policy: Any, count: int) -> Sequence[Any]:
    """`count` policies: the loaded one, and copies that forget people of other names and a few of the same facts."""
    import random

    from benchmarks.inputs import distinct_words

    names = distinct_words(random.Random(0))  # noqa: S311 - a reproducible choice
    return [policy, *(_clone(policy, number, names) for number in range(1, count))]


def _clone(policy: Any, number: int, names: Any) -> Any:
    head, bundle = policy.head, policy.bundle
    subjects = tuple(
        subject.model_copy(update={"words": tuple(next(names).lower() for _ in subject.words)})
        for subject in head.memory.subjects
    )
    memory = head.memory.model_copy(
        update={"subjects": subjects, "facts": head.memory.facts[:: _every(head.memory.facts)]}
    )
    config = bundle.config.model_copy(update={"name": f"{bundle.config.name}-{number}"})
    return dataclasses.replace(
        policy, head=dataclasses.replace(head, memory=memory), bundle=dataclasses.replace(bundle, config=config)
    )


_CLONED_FACTS = 8  # a policy of ten thousand is a small one


def _every(facts: Sequence[Any]) -> int:
    return max(len(facts) // _CLONED_FACTS, 1)
