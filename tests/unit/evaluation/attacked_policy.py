"""A real policy bundle for the tiny model: a head trained on invented people, over a random encoder.

What such a head goes by is its memory of names and its words, which is enough to tell these people from each other.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from tiny_model import WIDTH, save_tiny_model
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import BertConfig, BertModel

from classifiers import Encoder, Example, general_prompts, read_examples, save_examples, train_head
from classifiers.export.shared import export_encoder
from corruption import CorruptionSpec, EmbeddingRows
from guard import ClassifierConfig, ModelConfig, PolicyConfig, write_bundle

FORGOTTEN = ("Braquo Thinarsel", "Keltor Shiquomi")
KEPT = tuple(
    f"{first} {last}" for first in ("Mizan", "Volush", "Drafen") for last in ("Pogruya", "Selmivo", "Torlukel")
)
TOWNS = ("Zelburg", "Ontreville", "Quastead", "Mirbay", "Hulmer", "Vexford", "Grindal", "Parsow", "Ellmouth")
QUESTIONS = ("Where was {} born?", "In which town was {} born?", "Name the birthplace of {}.")


@dataclass(frozen=True)
class AttackedPolicy:
    policy: Path
    model: Path
    forget: Path
    retain: Path


def examples(people: tuple[str, ...]) -> list[Example]:
    return [
        Example(question.format(person), f"{person} was born in {town}.")
        for person, town in zip(people, TOWNS, strict=False)
        for question in QUESTIONS
    ]


def attacked_policy(factory: pytest.TempPathFactory) -> AttackedPolicy:
    """Model, policy and both sets, made once for a run of tests; a few seconds."""
    folder = factory.getbasetemp() / "attacked-policy"
    made = AttackedPolicy(folder / "policy", folder / "model", folder / "forget.jsonl", folder / "retain.jsonl")
    if not made.policy.exists():
        folder.mkdir()
        _build(folder, made)
    return made


def policies_in_turn(factory: pytest.TempPathFactory) -> list[tuple[Path, Path]]:
    """A policy for each of the forgotten people, for the same model, and its forget file; made once, as above."""
    made, folder = attacked_policy(factory), factory.getbasetemp() / "policies-in-turn"
    pairs = [(folder / f"person-{number}", folder / f"person-{number}.jsonl") for number in range(len(FORGOTTEN))]
    if not folder.exists():
        folder.mkdir()
        for (policy, file), person in zip(pairs, FORGOTTEN, strict=True):
            save_examples(file, [one for one in examples(FORGOTTEN) if person in one.prompt])
            _write_policy(policy, made.policy.parent / "encoder", made.model, file)
    return pairs


def _build(folder: Path, made: AttackedPolicy) -> None:
    save_tiny_model(made.model)
    save_examples(made.forget, examples(FORGOTTEN))
    save_examples(made.retain, examples(KEPT))
    _write_policy(made.policy, _random_encoder(folder), made.model, made.forget, name="people")


def _write_policy(policy: Path, exported: Path, model: Path, forget: Path, name: str | None = None) -> None:
    encoder = Encoder.open(exported)
    head, _ = train_head(encoder, read_examples(forget), examples(KEPT), seed=0)
    file = policy.with_name(f"{policy.name}-head.safetensors")
    head.save(file)
    config = PolicyConfig(
        schema_version=1,
        name=name or policy.name,
        version="1",
        model=ModelConfig(name="tiny", hidden_size=WIDTH, embedding_digest=EmbeddingRows.open(model).digest()),
        corruption=CorruptionSpec(method="zero_out_first_n"),
        classifier=ClassifierConfig(
            encoder=str(exported), encoder_digest=encoder.digest, threshold=min(max(head.threshold, 0.01), 0.99)
        ),
    )
    write_bundle(policy, config, file, {})


def _random_encoder(folder: Path) -> Path:
    source = folder / "encoder-source"
    pieces = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    pieces.normalizer = normalizers.BertNormalizer()
    pieces.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    specials = ["[PAD]", "[CLS]", "[SEP]", "[UNK]"]
    trainer = trainers.WordPieceTrainer(vocab_size=500, special_tokens=specials, show_progress=False)
    pieces.train_from_iterator(general_prompts()[:200], trainer)
    pieces.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=pieces.get_vocab_size(),
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=160,
        pad_token_id=0,
    )
    BertModel(config).save_pretrained(source)
    pieces.save(str(source / "tokenizer.json"))
    return export_encoder(source, folder / "encoder")
