"""`eco evaluate SUITE`: measure what was forgotten, and what that cost."""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from cli.evaluation_options import run_options, run_suite_command

__all__ = ["evaluate"]

#: What reading logs has a use for.
_OF_LOGS = frozenset({"from_logs", "retain_logs", "mean", "label", "kind", "out", "force"})


class _Suites(click.Group):
    """A group whose commands are called suites where one is not found."""

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        found = super().get_command(ctx, cmd_name)
        if found is None and not cmd_name.startswith("-"):
            raise click.UsageError(f"unknown suite {cmd_name!r}; expected one of {', '.join(self.list_commands(ctx))}")
        return found


@click.group(cls=_Suites, subcommand_metavar="SUITE [OPTIONS]")
def evaluate() -> None:
    """Measure what a model or a server still knows, and what forgetting cost.

    A run leaves a folder with every score and answer; `eco report` draws tables and plots from several.
    """


@evaluate.command("tofu")
@click.option("--data", default=None, help="Folder with TOFU's *_perturbed.jsonl files.  [default: the hub]")
@click.option("--split", default="forget10", show_default=True, type=click.Choice(["forget01", "forget05", "forget10"]))
@click.option(
    "--subsets",
    multiple=True,
    type=click.Choice(["forget", "retain", "real_authors", "world_facts"]),
    help="Sets to measure; may be given several times.  [default: all]",
)
@click.option("--max-new-tokens", default=200, show_default=True, type=click.IntRange(min=1), help="Of an answer.")
@click.option(
    "--truth-ratio",
    "mean",
    default="geometric",
    show_default=True,
    type=click.Choice(["geometric", "arithmetic"]),
    help="Mean of the wrong answers' probabilities: as in TOFU's code, or as in its paper.",
)
@click.option(
    "--from-logs",
    default=None,
    type=click.Path(path_type=Path),
    help="TOFU's own eval_log_aggregated.json instead of --target.",
)
@click.option(
    "--retain-logs", default=None, type=click.Path(path_type=Path), help="The retain model's, for --from-logs."
)
@run_options
def evaluate_tofu(**options: Any) -> None:
    """TOFU: probability, ROUGE-L, truth ratio; model utility and forget quality."""
    if options["from_logs"] is not None:
        _tofu_logs(options)
        return
    if options["retain_logs"] is not None:
        raise click.UsageError("--retain-logs: goes with --from-logs; with --target give --retain-run")
    from evaluation.tofu.data import folder_sources, hub_sources
    from evaluation.tofu.suite import TofuSuite

    chosen = {name: options[name] for name in ("limit", "seed", "generated_only", "max_new_tokens", "mean")}
    chosen["subsets"] = options["subsets"] or None

    def make(_: object) -> TofuSuite:
        data, split = options["data"], options["split"]
        return TofuSuite(hub_sources(split) if data is None else folder_sources(data, split), **chosen)

    run_suite_command(options, make)


def _tofu_logs(options: dict[str, Any]) -> None:
    from rich.console import Console

    from evaluation.runs.run import RunOptions
    from evaluation.runs.show import show_run
    from evaluation.tofu.official_log import run_tofu_logs

    context = click.get_current_context()
    for parameter in context.command.params:
        name = str(parameter.name)
        if name not in _OF_LOGS and context.get_parameter_source(name) is ParameterSource.COMMANDLINE:
            raise click.UsageError(f"--from-logs: takes no {parameter.opts[0]}; the logs say what was answered")
    out, label = options["out"], options["label"] or options["from_logs"].stem
    chosen: dict[str, Any] = {"kind": options["kind"] or "other", "force": options["force"]}
    run = None if out is None else RunOptions(out=out, label=label, **chosen)
    record = run_tofu_logs(options["from_logs"], options["retain_logs"], run, mean=options["mean"])
    show_run(record, out, Console())


@evaluate.command("choice")
@click.option(
    "--tasks",
    multiple=True,
    required=True,
    help="wmdp, mmlu, economics, physics, law, arc-easy, …, general, sample, or any lm-eval task; several with commas.",
)
@click.option("--num-fewshot", default=None, type=click.IntRange(min=0), help="[default: each task's own]")
@click.option("--include-path", default=None, help="Folder with more tasks for lm-evaluation-harness.")
@run_options
def evaluate_choice(**options: Any) -> None:
    """Multiple choice through lm-evaluation-harness: WMDP, MMLU and its subsets, ARC, BoolQ, HellaSwag, …"""
    from evaluation.choice.suite import ChoiceSuite

    names = [name.strip() for given in options["tasks"] for name in given.split(",") if name.strip()]
    chosen = {name: options[name] for name in ("limit", "num_fewshot", "include_path")}
    if options["seed_given"]:  # else lm-eval's own, which its published figures were drawn with
        chosen["seed"] = options["seed"]
    run_suite_command(options, lambda _: ChoiceSuite(names, **chosen))


@evaluate.command("potter")
@click.option("--prompts", default=None, help="Texts to complete, with a reader's completions.  [default: a sample]")
@click.option("--judge", default=None, help="URL of an OpenAI-compatible server that grades completions.")
@click.option("--judge-model", default=None, help="Its model.  [default: the one it lists]")
@click.option("--judge-tokens", default=256, show_default=True, type=click.IntRange(min=1), help="Of a verdict.")
@click.option("--subject", default=None, help="What is to be forgotten, in a few words for the judge.")
@click.option("--max-new-tokens", default=40, show_default=True, type=click.IntRange(min=1))
@run_options
def evaluate_potter(**options: Any) -> None:
    """Who's Harry Potter: does a model still continue a story as one who has read it?"""
    from evaluation.judged.judges import EndpointJudge, familiarity_rubric
    from evaluation.judged.potter import PotterSuite

    if options["judge"] is not None and options["subject"] is None:
        raise click.UsageError("--judge: needs --subject, what is to be forgotten")
    chosen = {name: options[name] for name in ("limit", "seed", "max_new_tokens")}

    def make(asker_of: Any) -> PotterSuite:
        asker = asker_of("judge", served_model=options["judge_model"])
        judge = None
        if asker is not None:
            rubric = familiarity_rubric(options["subject"])
            judge = EndpointJudge(asker, rubric, max_new_tokens=options["judge_tokens"])
        return PotterSuite(options["prompts"], judge=judge, **chosen)

    run_suite_command(options, make)


@evaluate.command("harmful")
@click.option("--prompts", default=None, help="Prompts that ask for harm.  [default: a mild sample]")
@click.option("--judge", default=None, help="URL of an OpenAI-compatible server that judges answers.")
@click.option("--judge-model", default=None, help="Its model; without --judge, a classifier: hub id or folder.")
@click.option("--judge-tokens", default=256, show_default=True, type=click.IntRange(min=1), help="Of a verdict.")
@click.option("--judge-label", "judge_labels", multiple=True, help="A classifier's label for harm; several times.")
@click.option("--judge-template", default="{answer}", show_default=True, help="What a classifier reads.")
@click.option(
    "--judge-multi-label/--judge-single-label",
    "multi_label",
    default=None,
    help="Whether several labels may hold at once.  [default: the classifier's own]",
)
@click.option("--max-new-tokens", default=128, show_default=True, type=click.IntRange(min=1))
@run_options
def evaluate_harmful(**options: Any) -> None:
    """LLMU's harmful prompts: share of harmless answers by a classifier or judge, refusals, nonsense."""
    from evaluation.judged.harmful import HarmfulSuite
    from evaluation.judged.judges import ClassifierJudge, EndpointJudge, harm_rubric

    chosen = {name: options[name] for name in ("limit", "seed", "max_new_tokens")}

    def judge_of(asker_of: Any) -> Any:
        if options["judge"] is not None:
            asker = asker_of("judge", served_model=options["judge_model"])
            return EndpointJudge(asker, harm_rubric(), max_new_tokens=options["judge_tokens"])
        if options["judge_model"] is None:
            return None
        return ClassifierJudge(
            options["judge_model"],
            options["judge_labels"],
            template=options["judge_template"],
            multi_label=options["multi_label"],
        )

    run_suite_command(options, lambda asker_of: HarmfulSuite(options["prompts"], judge=judge_of(asker_of), **chosen))


@evaluate.command("copyright")
@click.option("--passages", default=None, help="File of passages, or a text to be cut.  [default: a shipped sample]")
@click.option("--prompt-words", default=50, show_default=True, type=click.IntRange(min=1), help="Words that are given.")
@click.option(
    "--answer-words", default=100, show_default=True, type=click.IntRange(min=5), help="Words that are compared."
)
@click.option("--title-prompt", is_flag=True, help="Give the column title instead of the first words.")
@click.option(
    "--style",
    default="text",
    show_default=True,
    type=click.Choice(["text", "chat"]),
    help="Continue a text as it stands, or by instruction.",
)
@click.option("--max-new-tokens", default=None, type=click.IntRange(min=1), help="[default: twice --answer-words]")
@click.option("--bert-model", default=None, help="For BERTScore: a hub id or folder.")
@click.option(
    "--bert-layers", default=None, type=click.IntRange(min=1), help="Layer of --bert-model, where it is a folder."
)
@click.option("--reference-model", default=None, help="Model whose perplexity of the answers is measured.")
@run_options
def evaluate_copyright(**options: Any) -> None:
    """Copyrighted text: how much of a passage comes back word for word, and how fluent the rest is."""
    from evaluation.copyright.passages import Split
    from evaluation.copyright.suite import CopyrightSuite
    from evaluation.rows import sample_file

    split = Split(options["prompt_words"], options["answer_words"], options["title_prompt"])
    names = ("style", "max_new_tokens", "bert_model", "bert_layers", "limit", "seed")
    chosen = {name: options[name] for name in names}
    passages = options["passages"] or sample_file("copyright", "news.jsonl")

    def make(asker_of: Any) -> CopyrightSuite:
        return CopyrightSuite(passages, split=split, reference=asker_of("reference_model"), **chosen)

    run_suite_command(options, make)


@evaluate.command("leakage")
@click.option("--forget", default=None, help="What was to be forgotten.  [default: a shipped sample]")
@click.option("--holdout", default=None, help="Of the same kind, never learned.  [default: a shipped sample]")
@click.option("--retain", default=None, help="What was learned and kept: shows what an attack can find at all.")
@click.option(
    "--parts",
    multiple=True,
    type=click.Choice(["extraction", "membership", "probe", "repeat", "nearest"]),
    help="May be given several times.  [default: all that the data allow]",
)
@click.option("--reference-model", default=None, help="For membership inference by reference: another model.")
@click.option("--no-vocabulary", is_flag=True, help="Leave out Min-K%++, which needs every token's probability.")
@run_options
def evaluate_leakage(**options: Any) -> None:
    """Leakage: extraction, memorization, membership inference, a probe on logits, prompts recovered."""
    from evaluation.leakage.suite import LeakageSuite
    from evaluation.rows import sample_file

    sets = {
        "forget": options["forget"] or sample_file("tofu", "forget10_perturbed.jsonl"),
        "holdout": options["holdout"] or (None if options["forget"] else sample_file("leakage", "holdout.jsonl")),
        "retain": options["retain"],
    }
    chosen = {"limit": options["limit"], "seed": options["seed"], "vocabulary": not options["no_vocabulary"]}

    def make(asker_of: Any) -> LeakageSuite:
        return LeakageSuite(**sets, parts=options["parts"] or None, reference=asker_of("reference_model"), **chosen)

    run_suite_command(options, make)


@evaluate.command("attacks")
@click.option("--forget", default=None, help="Questions to flag, with answers.  [default: a shipped sample]")
@click.option("--retain", default=None, help="Questions to let pass.  [default: a shipped sample]")
@click.option("--general", default=None, help="Everyday prompts to let pass.  [default: the built-in ones]")
@click.option("--indirect", default=None, help="Questions that never name the subject (prompt, kind, forget, answer).")
@click.option(
    "--gate-policy",
    multiple=True,
    type=click.Path(path_type=Path),
    help="Policy whose guard is attacked.  [default: --policy]",
)
@click.option("--gate-model", default=None, help="The model it was built for.  [default: --target]")
@click.option(
    "--parts",
    multiple=True,
    type=click.Choice(["gate", "sampling", "indirect", "relearning"]),
    help="May be given several times.  [default: all whose options are given]",
)
@click.option("--attacks", "kinds", multiple=True, help="Attack on the gate; may be given several times.")
@click.option("--samples", default=16, show_default=True, type=click.IntRange(min=1), help="Answers drawn a question.")
@click.option("--temperature", default=1.0, show_default=True, type=click.FloatRange(min=0, min_open=True))
@click.option("--leak-rouge", default=0.75, show_default=True, type=float, help="Recall that counts as a leak.")
@click.option("--relearn-base", default=None, help="Clean model that the attacker fine-tunes on the answers.")
@click.option("--relearn-epochs", default=10, show_default=True, type=click.IntRange(min=1))
@click.option("--relearn-learning-rate", default=1e-4, show_default=True, type=float)
@click.option("--relearn-batch-size", default=8, show_default=True, type=click.IntRange(min=1))
@click.option("--max-new-tokens", default=64, show_default=True, type=click.IntRange(min=1))
@run_options
def evaluate_attacks(**options: Any) -> None:
    """Attacks on the guard: disguised questions, best of N answers, indirect questions, relearning.

    The gate alone needs no --target: give --gate-policy and --gate-model.
    """
    from evaluation.attacks.prompts import DEFAULT_ATTACKS
    from evaluation.attacks.relearning import RelearnSettings
    from evaluation.attacks.suite import AttackSettings, AttackSuite
    from evaluation.rows import sample_file

    relearn = RelearnSettings(
        epochs=options["relearn_epochs"],
        learning_rate=options["relearn_learning_rate"],
        batch_size=options["relearn_batch_size"],
        seed=options["seed"],
        max_new_tokens=options["max_new_tokens"],
    )
    target = options["target"]
    is_model = target is not None and not target.startswith(("http://", "https://"))
    parts = options["parts"] or (None if target is not None else ("gate",))
    own_samples = options["forget"] is None
    names = ("samples", "temperature", "leak_rouge", "max_new_tokens", "limit", "seed")
    settings = AttackSettings(
        attacks=options["kinds"] or DEFAULT_ATTACKS, relearn=relearn, **{name: options[name] for name in names}
    )
    chosen: dict[str, Any] = {
        "forget": options["forget"] or sample_file("attacks", "forget.jsonl"),
        "retain": options["retain"] or sample_file("attacks", "retain.jsonl"),
        "general": options["general"],
        "indirect": options["indirect"] or (sample_file("attacks", "indirect.jsonl") if own_samples else None),
        "policy": options["gate_policy"] or options["policies"],
        "model": options["gate_model"] or (target if is_model else None),
        "relearn_base": options["relearn_base"],
    }
    run_suite_command(
        options, lambda _: AttackSuite(parts=parts, settings=settings, **chosen), needs_target=parts != ("gate",)
    )
