"""`eco unlearn METHOD`: one command for each method, with flags made from its settings' schema."""

from typing import TYPE_CHECKING, Any

import click

from cli.job_options import JobCommand, collect, config_options, names_of, options_of
from cli.launcher import launcher_options, run_or_launch, take_launch

if TYPE_CHECKING:
    from offline_training.methods.method import Method

__all__ = ["unlearn"]

#: Published experiments, by method: what `--preset` sets where neither a flag nor the file does.
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "llmu-original": {
        # unlearn_harm.py of Yao, Xu and Liu (arXiv 2310.10683): its arguments' defaults, torch's AdamW, a linear
        # schedule without warm-up, gradients not clipped. The weights 0.5, 1, 1 and the 5 random answers are the
        # method's own defaults.
        "harm": {
            "model": "facebook/opt-1.3b",
            "forget": "hf:PKU-Alignment/PKU-SafeRLHF",
            "retain": "hf:truthfulqa/truthful_qa:generation:validation",
            "learning_rate": 2e-6,
            "batch_size": 2,
            "steps": 1000,
            "schedule": "linear",
            "warmup": 0.0,
            "weight_decay": 0.01,
            "max_gradient_norm": 1e9,
            "stop_forget_loss": 100.0,
            "seed": 8888,
        }
    }
}


class _Methods(click.Group):
    """Looks the methods up when it is asked for one: importing them imports torch."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        from offline_training.methods.registry import METHODS

        return list(METHODS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        from offline_training.methods.registry import METHODS

        method = METHODS.get(cmd_name)
        return None if method is None else _command(method)


@click.command(cls=_Methods)
def unlearn() -> None:
    """Train a model to forget: gradient-based methods, to compare with forgetting at inference time.

    The new checkpoint is a Hugging Face folder that eco serve and vLLM load.
    """


def _command(method: "Method") -> click.Command:
    from offline_training.settings import TrainingSettings, UnlearnJob

    fields = [
        *options_of(UnlearnJob, "Job", leave_out=("method", "method_settings", "training")),
        *options_of(method.settings, f"Method {method.name}"),
        *options_of(TrainingSettings, "Training"),
    ]
    known = frozenset(names_of(fields))
    return JobCommand(
        method.name,
        params=[*fields, *config_options(PRESETS.get(method.name, ())), *launcher_options()],
        callback=click.pass_context(lambda ctx, **options: _unlearn(ctx, method, known, options)),
        help=f"{method.summary}\n\nSource: {method.source}",
        short_help=method.summary,
    )


def _unlearn(ctx: click.Context, method: "Method", known: frozenset[str], options: dict[str, Any]) -> None:
    from offline_training.settings import TrainingSettings, UnlearnJob

    launching = take_launch(options)
    preset = PRESETS.get(method.name, {}).get(options.pop("preset", None) or "")
    values = collect(options, known, options.pop("config"), preset)
    job = values.build(
        UnlearnJob,
        method=method.name,
        method_settings=values.build(method.settings),
        training=values.build(TrainingSettings),
    )

    def run(console: Any) -> None:
        from offline_training.job import run_unlearning

        run_unlearning(job, console=console)

    run_or_launch(ctx, launching, run)
