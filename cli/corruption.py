"""`eco corruption`: find a corruption without building a policy; and the options of a search, which a build shares."""

from typing import Any

import click

from cli.options import COUNT, PATH, filled, option_group

search_options = option_group(
    click.option(
        "--metric",
        default=None,
        type=click.Choice(["answer_probability", "rouge_l", "truth_ratio", "choice_accuracy", "forget_quality"]),
        help="What the search brings to the retained value; forget_quality: all truth ratios to the retain model's; "
        "a build for it tries add_value_first_n on 8 dimensions of entities where methods, dims and scope are not "
        "given and something knows the names.  "
        "[default: choice_accuracy for multiple choice, else answer_probability]",
    ),
    click.option(
        "--methods",
        multiple=True,
        help="Corruption method to try; may be given several times.  [default: rand_noise_first_n; see --metric]",
    ),
    click.option(
        "--dims",
        multiple=True,
        help="How many dimensions to touch, or all; may be given several times.  "
        "[default: all; for forget_quality 1, 8 and all; see --metric]",
    ),
    click.option(
        "--scope",
        default=None,
        type=click.Choice(["content", "entities"]),
        help="Corrupt all of a flagged text, or the tokens that name what must be forgotten.  "
        "[default: content; see --metric]",
    ),
    click.option(
        "--search-examples",
        default=None,
        type=click.IntRange(min=2),
        help="Examples the metric is measured on.  [default: 48; all for forget_quality]",
    ),
    click.option(
        "--tolerance",
        default=None,
        type=float,
        help="Near enough.  [default: 0.02; 0.003 of probability; of forget_quality where p is about 0.5]",
    ),
    click.option("--min-strength", default=0.01, show_default=True, type=float),
    click.option("--max-strength", default=100.0, show_default=True, type=float),
    click.option("--sweep-points", default=9, show_default=True, type=int, help="Strengths of the first look."),
    click.option(
        "--screen-examples",
        default=20,
        show_default=True,
        type=click.IntRange(min=0),
        help="Examples of the first look; 0: all of them.",
    ),
    click.option("--refine-steps", default=10, show_default=True, type=int, help="Most steps after it."),
    click.option("--vector-steps", default=0, show_default=True, type=int, help="Then one strength per dimension."),
    click.option("--noise-seeds", default=2, show_default=True, type=COUNT, help="Draws to average."),
    click.option("--max-new-tokens", default=None, type=int, help="Of an answer.  [default: the longest reference]"),
    click.option("--budget-evaluations", default=None, type=int, help="Stop after so many corruptions."),
    click.option("--budget-s", default=None, type=float, help="Stop after so many seconds."),
)
#: How models are run.
scorer_options = option_group(
    click.option(
        "--scorer",
        default="transformers",
        show_default=True,
        type=click.Choice(["transformers", "vllm"]),
        help="What runs the model during the search; vllm for large models.",
    ),
    click.option(
        "--dtype", default=None, help="float32, bfloat16 …  [default: float32 on a CPU, else the checkpoint's]"
    ),
    click.option("--tensor-parallel-size", default=1, show_default=True, type=COUNT, help="vllm only."),
)


def search_settings(options: dict[str, Any]) -> Any:
    """`optimizer.SearchOptions` of what `search_options` gave."""
    from optimizer import SearchOptions

    methods, dims, scope = _defaults(options)
    numbers: list[int | None] = []
    for text in options["dims"] or dims:
        if text != "all" and not (text.isdigit() and int(text) > 0):
            raise click.UsageError(f"--dims: {text!r}: expected a number of dimensions from 1, or all")
        numbers.append(None if text == "all" else int(text))
    return filled(
        SearchOptions,
        options,
        examples=options["search_examples"],
        screen_examples=options["screen_examples"] or None,
        methods=options["methods"] or methods,
        dims=tuple(numbers),
        scope=options["scope"] or scope,
    )


def _defaults(options: dict[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...], str]:
    """Methods, dimensions and scope for what is searched."""
    noise = ("rand_noise_first_n",)
    if options["metric"] != "forget_quality" or options.get("strength") is not None:
        return noise, ("all",), "content"
    # Names alone leave the ratios spread as a retain model's are, and without noise no draw moves them together: one
    # recipe, of which no part suits what somebody else has chosen.
    recipe = ("add_value_first_n",), ("8",), "entities"
    chosen = (options["methods"], options["dims"], options["scope"])
    if all(given in ((), None, own) for given, own in zip(chosen, recipe, strict=True)) and _knows_names(options):
        return recipe
    # How they are spread depends on the number of dimensions: one strength may not get there on all of them.
    return noise, ("1", "8", "all"), "content"


def _knows_names(options: dict[str, Any]) -> bool:
    """Whether something will say which tokens are names: a classifier's memory, or a model."""
    if "classifier_kind" not in options:
        return False
    kind = options["classifier_kind"]
    if options["token_classifier"] is None and kind not in ("head", "finetuned"):
        from classifiers import ClassifierError
        from classifiers.prompt_classifier import read_classifier_info

        try:
            kind = read_classifier_info(kind).kind
        except ClassifierError as error:
            raise click.UsageError(f"--classifier: {error}") from error
    return kind == "head" or options["token_classifier"] is not None


@click.group()
def corruption() -> None:
    """Find the corruption that makes a model forget."""


@corruption.command("search")
@click.option("--model", required=True, help="The model to make forget: a hub id or a folder.")
@click.option("--forget", required=True, type=PATH, help="JSON lines: what must be forgotten.")
@click.option("--retain", required=True, type=PATH, help="JSON lines: what must stay.")
@click.option("--out", required=True, type=PATH, help="Folder for spec, trajectory and plot.")
@click.option("--retain-model", default=None, help="A model that never saw the forget set, as the target.")
@search_options
@scorer_options
@click.option("--seed", default=0, show_default=True, type=click.IntRange(min=0))
@click.option("--force", is_flag=True, help="Discard the search in the folder.")
@click.option("--resume", is_flag=True, help="Go on with the search in the folder.")
def corruption_search(**options: Any) -> None:
    """Search the corruption that brings a metric of the model to what a model that never learned scores.

    Writes spec.json, search.jsonl (every evaluation), search.svg and result.json.
    """
    from rich.console import Console

    from optimizer import ScorerOptions, search_files

    console = Console()
    found = search_files(
        options["model"],
        options["forget"],
        options["retain"],
        options["out"],
        search_settings(options),
        filled(ScorerOptions, options),
        retain_model=options["retain_model"],
        resume=options["resume"],
        force=options["force"],
        console=console,
    )
    console.print(str(found), highlight=False, soft_wrap=True)
    result = found.result
    console.print(
        f"{len(result.evaluations)} evaluations, {result.forward_passes} forward passes, {result.seconds:.1f} s; "
        f"written to {options['out']}",
        highlight=False,
        soft_wrap=True,
    )
