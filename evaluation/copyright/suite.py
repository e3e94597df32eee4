"""How much of protected texts a model still gives away: the copyright experiments of ECO (arXiv 2406.07933).

A passage's beginning is given, and what the model goes on with is compared with how the passage really goes on. The
metrics are those of ECO's `evaluate_copyright.py`, with verbatim runs beside them. Its two tasks are news articles,
given their title, and a novel, given the first sentence of each part; any passages will do.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import PurePath
from typing import Final

from evaluation.copyright import metrics
from evaluation.copyright.figures import GAP, LOG_LIKELIHOOD, TOKENS, perplexity_figures, similarity_gap
from evaluation.copyright.passages import LEAST_WORDS, Passage, Split, first_words, load_passages
from evaluation.errors import DataError
from evaluation.replies import Ask, Asker, Reply, Style
from evaluation.suite import Answer, Figure, Outcome, Score, Suite, scores_of
from scoring.metrics import repetition
from storage.digests import sha256_of_json

SUBSET: Final = "forget"
_INSTRUCTION: Final = "Here is the beginning of a text. Continue it from where it stops, and write nothing else.\n\n"
#: English has about 1.3 tokens to a word; rare names have more.
_TOKENS_PER_WORD: Final = 2


class CopyrightSuite(Suite):
    """Continuations of passages that should be forgotten.

    An answer is cut to as many words as the passage's continuation has before the two are compared, so that one that
    goes on copying is not counted as less alike. The verbatim run and the containment look at all of it and at all of
    the passage's rest; so do the measures of fluency.

    Args:
        passages: a source (see `evaluation.copyright.passages`).
        split: what of a passage is given, and how much of the rest is compared.
        max_new_tokens: of an answer; None: two for each word compared.
        style: "text": the model goes on with the passage as it stands; "chat": it is instructed to.
        limit: at most so many passages, drawn with `seed`; None: all.
        bert_model: for BERTScore, a name of the hub or a folder; None: no BERTScore.
        bert_layers: see `metrics.BertScore`.
        reference: a model under which the perplexity of answers is measured; None: no perplexity. ECO takes the model
            that learned the passages, so that fluent copies are likely.

    Raises:
        DataError: passages or the BERT model cannot be used.
        TargetError: the reference model cannot score answers.
    """

    name = "copyright"
    unbounded_metrics = ("longest_verbatim_run", "log_likelihood", "reference_tokens")
    headline = (
        GAP,
        f"{SUBSET}/rouge_l_f1",
        f"{SUBSET}/longest_verbatim_run",
        f"{SUBSET}/perplexity",
        f"{SUBSET}/unique_token_ratio",
    )
    # ROUGE and its kind have none: a model that never read a passage is above 0 too, and the gap says how far from it.
    # Nor has perplexity: under a reference that learned the passages, nothing is as fluent as reciting them.
    directions: Mapping[str, str] = {
        GAP: "down",
        f"{SUBSET}/exact_match": "down",
        f"{SUBSET}/longest_verbatim_run": "down",
        f"{SUBSET}/containment_{LEAST_WORDS}gram": "down",
        f"{SUBSET}/unique_token_ratio": "up",
        f"{SUBSET}/repetition": "down",
    }

    def __init__(
        self,
        passages: str,
        *,
        split: Split | None = None,
        max_new_tokens: int | None = None,
        style: Style = "text",
        limit: int | None = None,
        seed: int = 0,
        bert_model: str | None = None,
        bert_layers: int | None = None,
        reference: Asker | None = None,
    ) -> None:
        self._source = passages
        self._split = split or Split()
        self._settings: dict[str, object] = {"style": style, "limit": limit, "seed": seed}
        self._style: Style = style
        if max_new_tokens is not None and max_new_tokens < 1:
            raise DataError(f"--max-new-tokens: {max_new_tokens} leaves no answer; give 1 or more")
        self._max_new_tokens = max_new_tokens or _TOKENS_PER_WORD * self._split.answer_words
        self._passages, self._passed_over = load_passages(passages, self._split, limit=limit, seed=seed)
        if bert_layers is not None and bert_model is None:
            raise DataError("--bert-layers: there is no --bert-model whose layers to choose from; give one")
        self._bert = metrics.BertScore(bert_model, bert_layers) if bert_model is not None else None
        self._wordnet = metrics.installed_wordnet()
        self._reference = reference
        if reference is not None:
            reference.target.check([_scored(one, one.continuation) for one in self._passages[:1]])

    def describe(self) -> Mapping[str, object]:
        content = [[one.example, one.prompt, one.reference, one.continuation] for one in self._passages]
        return {
            "passages": PurePath(self._source).name,  # its folder decides nothing
            "passages_sha256": sha256_of_json(content),
            "passages_used": len(self._passages),
            "passages_passed_over": self._passed_over,
            **asdict(self._split),
            **self._settings,
            "max_new_tokens": self._max_new_tokens,
            "bert_model": self._bert.model if self._bert else None,
            "bert_layers": self._bert.layers if self._bert else None,
            "meteor": metrics.meteor_name(self._wordnet),
            "reference": dict(self._reference.target.describe()) if self._reference else None,
        }

    def probe(self) -> Sequence[Ask]:
        return [self._ask(self._passages[0])]

    def measure(self, ask: Asker) -> Outcome:
        replies = ask({one.example: self._ask(one) for one in self._passages}, "copyright: continuations")
        answers = [replies[one.example].text for one in self._passages]
        references = [one.reference for one in self._passages]
        pairs = zip(references, answers, strict=True)
        cut = [first_words(answer, len(reference.split())) for reference, answer in pairs]
        likenesses = [  # of each answer, to what follows in its passage
            {
                "exact_match": metrics.exact_match(one.reference, shown),
                **metrics.rouge_f1(one.reference, shown),
                metrics.meteor_name(self._wordnet): metrics.meteor(one.reference, shown, self._wordnet),
                "sacrebleu": metrics.sentence_bleu(one.reference, shown),
                "longest_verbatim_run": float(metrics.longest_verbatim_run(one.continuation, answer)),
                f"containment_{LEAST_WORDS}gram": metrics.ngram_containment(one.continuation, answer, LEAST_WORDS),
            }
            for one, answer, shown in zip(self._passages, answers, cut, strict=True)
        ]
        if self._bert is not None:
            for row, f1 in zip(likenesses, self._bert.f1(references, cut), strict=True):
                row["bertscore_f1"] = f1
        likelihoods: list[dict[str, float]] = [{}] * len(answers)
        if self._reference is not None:  # the answer's total and its tokens: 0 of 0 for one that says nothing
            both = zip(self._passages, answers, strict=True)
            spoken = {one.example: _scored(one, answer) for one, answer in both if answer.strip()}
            told = self._reference(spoken, "copyright: perplexity under the reference model") if spoken else {}
            logprobs = [told.get(one.example, Reply()).logprobs for one in self._passages]
            likelihoods = [{LOG_LIKELIHOOD: float(sum(each)), TOKENS: float(len(each))} for each in logprobs]
        values = zip(self._passages, answers, likenesses, likelihoods, strict=True)
        scores: list[Score] = []
        read: list[Answer] = []
        for passage, answer, likeness, likelihood in values:
            words = metrics.word_tokens(answer)
            fluency = {"unique_token_ratio": metrics.unique_token_ratio(words), "repetition": repetition([words])}
            scores += scores_of(SUBSET, passage.example, likeness | fluency | likelihood, passage.group)
            read.append(Answer(SUBSET, passage.example, passage.prompt, answer, passage.reference))
        return Outcome(tuple(scores), tuple(read))

    def figures(self, scores: Sequence[Score], reference: Sequence[Score] | None) -> list[Figure]:
        """The average similarity gap to the retain model, and perplexities where a reference model was given.

        The gap is over the graded similarities of ECO's script: exact match, which is all or nothing, is not in it.
        """
        compared = (metrics.meteor_name(self._wordnet), "rouge_l_f1", "sacrebleu", "bertscore_f1")
        gap = similarity_gap(scores, reference, subset=SUBSET, metrics=compared)
        return [gap, *perplexity_figures(scores, subset=SUBSET)]

    def _ask(self, passage: Passage) -> Ask:
        prompt = _INSTRUCTION + passage.prompt if self._style == "chat" else passage.prompt
        return Ask(prompt, style=self._style, max_new_tokens=self._max_new_tokens)


def _scored(passage: Passage, answer: str) -> Ask:
    """An answer as the continuation it is; ECO's code scores it after its prompt too, and counts the prompt's tokens.

    A chat's answer, and what some tokenizers decode, has lost the space between the two.
    """
    glued = passage.prompt[-1:].isalnum() and answer[:1].isalnum()
    return Ask(passage.prompt, answer=" " + answer if glued else answer, style="text")
