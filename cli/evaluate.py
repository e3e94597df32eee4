"""`eco evaluate SUITE`: measure what was forgotten, and what that cost. `eco report`: such runs side by side."""

from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from cli.evaluation_options import run_options, run_suite_command
from cli.options import COUNT, PATH, filled
from cli.successive import evaluate_successive
from sources.presets.names import TOFU_SPLITS

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


@evaluate.command("qa")
@click.option("--forget", default=None, type=PATH, help="What was to be forgotten, with answers.  [default: a sample]")
@click.option("--retain", default=None, type=PATH, help="What was to stay, with answers.  [default: a sample]")
@click.option("--max-new-tokens", default=128, show_default=True, type=COUNT, help="Of an answer.")
@run_options
def evaluate_qa(**options: Any) -> None:
    """Your own forget and retain files: probability of the right answers, and ROUGE-L recall of those given.

    The files of eco policy build; lines without an answer are left out.
    """
    from evaluation.qa.suite import QaSuite
    from evaluation.rows import sample_file

    if (options["forget"] is None) != (options["retain"] is None):
        raise click.UsageError("--forget, --retain: give both, or neither for the sample")
    samples = {name: Path(sample_file("attacks", f"{name}.jsonl")) for name in ("forget", "retain")}
    chosen = options | {name: options[name] or sample for name, sample in samples.items()}
    run_suite_command(options, lambda _: filled(QaSuite, chosen))


@evaluate.command("tofu")
@click.option("--data", default=None, help="Folder with TOFU's *_perturbed.jsonl files, or sample.  [default: the hub]")
@click.option("--split", default="forget10", show_default=True, type=click.Choice(TOFU_SPLITS))
@click.option(
    "--subsets",
    multiple=True,
    type=click.Choice(["forget", "retain", "real_authors", "world_facts"]),
    help="Sets to measure; may be given several times.  [default: all]",
)
@click.option("--max-new-tokens", default=200, show_default=True, type=COUNT, help="Of an answer.")
@click.option(
    "--truth-ratio",
    "mean",
    default="geometric",
    show_default=True,
    type=click.Choice(["geometric", "arithmetic"]),
    help="Mean of the wrong answers' probabilities: as in TOFU's code, or as in its paper.",
)
@click.option("--from-logs", default=None, type=PATH, help="TOFU's own eval_log_aggregated.json instead of --target.")
@click.option("--retain-logs", default=None, type=PATH, help="The retain model's, for --from-logs.")
@run_options
def evaluate_tofu(**options: Any) -> None:
    """TOFU: probability, ROUGE-L, truth ratio; model utility and forget quality."""
    if options["from_logs"] is not None:
        from rich.console import Console

        from evaluation.runs.run import RunOptions, show_run
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
        return
    if options["retain_logs"] is not None:
        raise click.UsageError("--retain-logs: goes with --from-logs; with --target give --retain-run")
    from evaluation.rows import sample_file
    from evaluation.tofu.data import folder_sources, hub_sources
    from evaluation.tofu.suite import TofuSuite

    def make(_: object) -> TofuSuite:
        data, split = options["data"], options["split"]
        if data == "sample" and not Path(data).is_dir():
            data = Path(sample_file("tofu", "forget10_perturbed.jsonl")).parent
        sources = hub_sources(split) if data is None else folder_sources(data, split)
        return filled(TofuSuite, options, sources=sources, subsets=options["subsets"] or None)

    run_suite_command(options, make)


@evaluate.command("muse")
@click.option("--corpus", required=True, type=click.Choice(["news", "books"]), help="MUSE-News or MUSE-Books.")
@click.option("--data", default=None, help="Folder of MUSE's form (load_data.py), or sample.  [default: the hub]")
@click.option(
    "--parts",
    multiple=True,
    type=click.Choice(["verbmem_f", "knowmem_f", "privleak", "knowmem_r"]),
    help="May be given several times.  [default: all]",
)
@click.option(
    "--fold",
    default=None,
    type=click.Choice([f"{criterion}:{number}" for criterion in ("scal", "sust") for number in range(1, 5)]),
    help="Which of MUSE's growing or successive forget sets the target has unlearned.  [default: the first]",
)
@click.option("--tokenizer", default=None, help="The target's, to cut texts by.  [default: --target, where a model]")
@click.option("--verbmem-tokens", default=128, show_default=True, type=COUNT, help="Of a continuation.")
@click.option("--knowmem-tokens", default=32, show_default=True, type=COUNT, help="Of an answer.")
@run_options
def evaluate_muse(**options: Any) -> None:
    """MUSE on news or books: verbatim and knowledge memorisation, privacy leakage, utility; of several forget sets."""
    from evaluation.muse.suite import MuseSuite
    from evaluation.rows import sample_file

    data, target = options["data"], options["target"]
    is_model = target is not None and not target.startswith(("http://", "https://"))
    if data == "sample" and not Path(data).is_dir():
        data = str(Path(sample_file("muse", "news")).parent)
    tokenizer = options["tokenizer"] or (target if is_model else None)
    chosen = options | {"data": data, "tokenizer": tokenizer, "parts": options["parts"] or None}
    run_suite_command(options, lambda _: filled(MuseSuite, chosen))


@evaluate.command("rwku")
@click.option("--data", default=None, help="Folder in RWKU's layout, a table, or sample.  [default: the hub]")
@click.option("--subject", "subjects", multiple=True, help="Who was to be forgotten; several times.  [default: all]")
@click.option(
    "--sets",
    multiple=True,
    type=click.Choice(
        [
            *("forget_level1", "forget_level2", "forget_level3", "neighbor_level1", "neighbor_level2"),
            *("mia_forget", "mia_retain", "utility_general", "utility_reason", "utility_truthfulness"),
            *("utility_factuality", "utility_fluency"),
        ]
    ),
    help="Sets to measure; may be given several times.  [default: all that the data have]",
)
@click.option("--vocabulary", is_flag=True, help="Min-K%++ too, which needs every token's probability; no server.")
@click.option("--no-prefill", is_flag=True, help='Ask with "Answer:" at the end, not as the beginning of the answer.')
@run_options
def evaluate_rwku(**options: Any) -> None:
    """RWKU: what is known of a person by cloze, question and attack; of what is near; and membership and utility."""
    from evaluation.rwku.suite import RwkuSuite

    run_suite_command(options, lambda _: filled(RwkuSuite, options, prefill=not options["no_prefill"]))


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
    chosen = options | {"tasks": names}
    if not options["seed_given"]:  # lm-eval's own, which its published figures were drawn with
        del chosen["seed"]
    run_suite_command(options, lambda _: filled(ChoiceSuite, chosen))


@evaluate.command("potter")
@click.option("--prompts", default=None, help="Texts to complete, with a reader's completions.  [default: a sample]")
@click.option("--judge", default=None, help="URL of an OpenAI-compatible server that grades completions.")
@click.option("--judge-model", default=None, help="Its model.  [default: the one it lists]")
@click.option("--judge-tokens", default=256, show_default=True, type=COUNT, help="Of a verdict.")
@click.option("--subject", default=None, help="What is to be forgotten, in a few words for the judge.")
@click.option("--max-new-tokens", default=40, show_default=True, type=COUNT)
@run_options
def evaluate_potter(**options: Any) -> None:
    """Who's Harry Potter: does a model still continue a story as one who has read it?"""
    from evaluation.judged.judges import EndpointJudge, familiarity_rubric
    from evaluation.judged.potter import PotterSuite

    if options["judge"] is not None and options["subject"] is None:
        raise click.UsageError("--judge: needs --subject, what is to be forgotten")

    def make(asker_of: Any) -> PotterSuite:
        asker = asker_of("judge", served_model=options["judge_model"])
        judge = None
        if asker is not None:
            rubric = familiarity_rubric(options["subject"])
            judge = EndpointJudge(asker, rubric, max_new_tokens=options["judge_tokens"])
        return filled(PotterSuite, options, judge=judge)

    run_suite_command(options, make)


@evaluate.command("harmful")
@click.option("--prompts", default=None, help="Prompts that ask for harm.  [default: a mild sample]")
@click.option("--judge", default=None, help="URL of an OpenAI-compatible server that judges answers.")
@click.option("--judge-model", default=None, help="Its model; without --judge, a classifier: hub id or folder.")
@click.option("--judge-tokens", default=256, show_default=True, type=COUNT, help="Of a verdict.")
@click.option("--judge-label", "judge_labels", multiple=True, help="A classifier's label for harm; several times.")
@click.option("--judge-template", default="{answer}", show_default=True, help="What a classifier reads.")
@click.option(
    "--judge-multi-label/--judge-single-label",
    "multi_label",
    default=None,
    help="Whether several labels may hold at once.  [default: the classifier's own]",
)
@click.option("--max-new-tokens", default=128, show_default=True, type=COUNT)
@run_options
def evaluate_harmful(**options: Any) -> None:
    """LLMU's harmful prompts: share of harmless answers by a classifier or judge, refusals, nonsense."""
    from evaluation.judged.harmful import HarmfulSuite
    from evaluation.judged.judges import ClassifierJudge, EndpointJudge, harm_rubric

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

    run_suite_command(options, lambda asker_of: filled(HarmfulSuite, options, judge=judge_of(asker_of)))


@evaluate.command("copyright")
@click.option("--passages", default=None, help="File of passages, or a text to be cut.  [default: a shipped sample]")
@click.option("--prompt-words", default=50, show_default=True, type=COUNT, help="Words that are given.")
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
@click.option("--max-new-tokens", default=None, type=COUNT, help="[default: twice --answer-words]")
@click.option("--bert-model", default=None, help="For BERTScore: a hub id or folder.")
@click.option("--bert-layers", default=None, type=COUNT, help="Layer of --bert-model, where it is a folder.")
@click.option("--reference-model", default=None, help="Model whose perplexity of the answers is measured.")
@run_options
def evaluate_copyright(**options: Any) -> None:
    """Copyrighted text: how much of a passage comes back word for word, and how fluent the rest is."""
    from evaluation.copyright.passages import Split
    from evaluation.copyright.suite import CopyrightSuite
    from evaluation.rows import sample_file

    chosen = options | {
        "split": filled(Split, options),
        "passages": options["passages"] or sample_file("copyright", "news.jsonl"),
    }
    run_suite_command(options, lambda asker_of: filled(CopyrightSuite, chosen, reference=asker_of("reference_model")))


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

    chosen = options | {
        "forget": options["forget"] or sample_file("tofu", "forget10_perturbed.jsonl"),
        "holdout": options["holdout"] or (None if options["forget"] else sample_file("leakage", "holdout.jsonl")),
        "parts": options["parts"] or None,
        "vocabulary": not options["no_vocabulary"],
    }
    run_suite_command(options, lambda asker_of: filled(LeakageSuite, chosen, reference=asker_of("reference_model")))


@evaluate.command("attacks")
@click.option("--forget", default=None, help="Questions to flag, with answers.  [default: a shipped sample]")
@click.option("--retain", default=None, help="Questions to let pass.  [default: a shipped sample]")
@click.option("--general", default=None, help="Everyday prompts to let pass.  [default: the built-in ones]")
@click.option(
    "--indirect",
    multiple=True,
    help="Questions that never name the subject, such as multi-hop and by an alias (prompt, kind, forget, answer); may "
    "be given several times.",
)
@click.option("--gate-policy", multiple=True, type=PATH, help="Policy whose guard is attacked.  [default: --policy]")
@click.option("--gate-model", default=None, help="The model it was built for.  [default: --target]")
@click.option(
    "--parts",
    "--part",
    "parts",
    multiple=True,
    type=click.Choice(
        ["gate", "sampling", "indirect", "relearning", "steering", "names", "alternatives", "padding", "encodings"]
    ),
    help="May be given several times.  [default: of the first four those whose options are given]",
)
@click.option("--attacks", multiple=True, help="Attack on the gate; may be given several times.")
@click.option("--samples", default=16, show_default=True, type=COUNT, help="Answers drawn a question.")
@click.option("--temperature", default=1.0, show_default=True, type=click.FloatRange(min=0, min_open=True))
@click.option("--leak-rouge", default=0.75, show_default=True, type=float, help="Recall that counts as a leak.")
@click.option("--relearn-base", default=None, help="Clean model that the attacker fine-tunes on the answers.")
@click.option("--relearn-epochs", "epochs", default=10, show_default=True, type=COUNT)
@click.option("--relearn-learning-rate", "learning_rate", default=1e-4, show_default=True, type=float)
@click.option("--relearn-batch-size", "batch_size", default=8, show_default=True, type=COUNT)
@click.option("--max-new-tokens", default=64, show_default=True, type=COUNT)
@run_options
def evaluate_attacks(**options: Any) -> None:
    """Attacks on the guard: disguised questions, best of N answers, indirect questions, relearning, steered requests.

    The gate alone needs no --target: give --gate-policy and --gate-model. The parts steering, names, alternatives,
    padding and encodings attack a server end to end and need its URL: each asks for the facts of --forget, counts
    what comes back, and does the same with --retain, which a good guard answers. Rows have question and answer, and
    where these do not say it value, statement, subject and candidates (wrong values).
    """
    from evaluation.attacks.indirect import kind_table
    from evaluation.attacks.prompts import DEFAULT_ATTACKS
    from evaluation.attacks.relearning import RelearnSettings
    from evaluation.attacks.served import REQUEST_PARTS, request_table
    from evaluation.attacks.suite import AttackSettings, AttackSuite
    from evaluation.rows import sample_file

    target = options["target"]
    is_model = target is not None and not target.startswith(("http://", "https://"))
    if is_model and (requests := [part for part in options["parts"] if part in REQUEST_PARTS]):
        raise click.UsageError(f"--parts: {requests[0]} sends requests to a server; give its URL as --target")
    own_samples = options["forget"] is None
    indirect_samples = tuple(sample_file("attacks", f"{name}.jsonl") for name in ("indirect", "multi_hop"))
    attacks, relearn = options["attacks"] or DEFAULT_ATTACKS, filled(RelearnSettings, options)
    chosen = options | {
        "forget": options["forget"] or sample_file("attacks", "forget.jsonl"),
        "retain": options["retain"] or sample_file("attacks", "retain.jsonl"),
        "indirect": options["indirect"] or (indirect_samples if own_samples else ()),
        "policy": options["gate_policy"] or options["policies"],
        "model": options["gate_model"] or (target if is_model else None),
        "parts": options["parts"] or (None if target is not None else ("gate",)),
        "settings": filled(AttackSettings, options, attacks=attacks, relearn=relearn),
    }
    record = run_suite_command(
        options, lambda _: filled(AttackSuite, chosen), needs_target=chosen["parts"] != ("gate",)
    )
    from rich.console import Console

    if set(chosen["parts"] or ()) & set(REQUEST_PARTS):
        Console().print(request_table(record.figures))
    if (by_kind := kind_table(record.figures)).rows:
        Console().print(by_kind)


@evaluate.command("domains")
@click.option(
    "--domain",
    "domains",
    multiple=True,
    type=click.Choice(["mmlu", "hellaswag", "truthfulqa", "simpleqa", "alpaca", "gsm8k", "code", "languages", "all"]),
    help="Prompts of a public benchmark, from the hub; may be given several times.",
)
@click.option("--data", multiple=True, help="Your own: rows with prompt and domain, and part where there is one.")
@click.option("--gate-policy", multiple=True, type=PATH, help="Policy that is looked at.  [default: --policy]")
@click.option("--gate-model", default=None, help="The model it was built for.  [default: --target]")
@run_options
def evaluate_domains(**options: Any) -> None:
    """False positives by domain: what a policy flags of prompts that have nothing to do with it.

    Nothing is generated and no --target is needed. Without --domain and --data a small shipped sample is looked at.
    """
    from evaluation.domains.data import DOMAINS
    from evaluation.domains.suite import DomainsSuite
    from evaluation.rows import sample_file

    named = options["domains"] or options["data"]
    chosen = options | {
        "policy": options["gate_policy"] or options["policies"],
        "model": options["gate_model"] or options["target"],
        "domains": tuple(DOMAINS) if "all" in options["domains"] else options["domains"],
        "data": options["data"] if named else (sample_file("domains", "domains.jsonl"),),
    }
    run_suite_command(options | {"target": None}, lambda _: filled(DomainsSuite, chosen), needs_target=False)


evaluate.add_command(evaluate_successive)


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN…", type=PATH)
@click.option("--out", required=True, type=PATH, help="Folder to write the report to.")
@click.option("--title", default=None, help="Heading of the report.  [default: Forgetting, and what it cost]")
@click.option("--force", is_flag=True, help="Write also into a folder that holds other files; they stay.")
def report(runs: tuple[Path, ...], out: Path, title: str | None, force: bool) -> None:
    """Draw the table and the plots of evaluated runs.

    RUN is a folder that eco evaluate has written. The report is report.html, report.md, table.csv, report.json and
    plots/; the same runs give the same bytes. A folder with an earlier report is replaced.
    """
    from evaluation.report import DEFAULT_TITLE, write_report

    written = write_report(runs, out, title=title or DEFAULT_TITLE, force=force)
    click.echo(f"report of {len(runs)} run{'s' * (len(runs) != 1)} written to {out}; open {written[0]}")
