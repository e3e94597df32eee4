"""Published experiments: what `--preset` sets where neither a flag nor the file does, where it was read, and what it
still leaves different.

Each names the repository and file that were read; papers were not, where a source says nothing of one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final


@dataclass(frozen=True)
class Preset:
    """Settings of a job, of its method and of training, under their fields' names."""

    source: str
    settings: Mapping[str, Any]
    departures: tuple[str, ...] = ()
    """What the source does otherwise, one line each."""

    def lines(self, name: str) -> list[str]:
        """What a person is told who asks for it."""
        return [f"--preset {name}: {self.source}", *(f"  differs: {one}" for one in self.departures)]


# chrisliu298/llm-unlearn-eco ------------------------------------------------------------------------------------

_ECO = Preset(
    "chrisliu298/llm-unlearn-eco, scripts/copyright_unlearn_baselines.py and the README's commands (two processes)",
    {
        "learning_rate": 2e-5,
        "epochs": 5,
        "batch_size": 8,  # 4 on each of two GPUs
        "schedule": "cosine",
        "warmup": 0.1,
        "weight_decay": 0.01,
        "context_tokens": 256,
        "prompt_tokens": "all",
        "sample_retain": True,
    },
    (
        "padding is in no loss here; in the script its tokens are targets too, and in the means of KL terms",
        "weights are float32 here (bf16 there: --precision pure-bf16)",
    ),
)
_ECO_SCRUB = Preset(
    _ECO.source,
    _ECO.settings,
    (
        *_ECO.departures,
        "distillation is a softmax over the vocabulary here, over the positions of a batch there (dim=1)",
    ),
)

# locuslab/open-unlearning ----------------------------------------------------------------------------------------

_OPEN_UNLEARNING: Final[Mapping[str, Any]] = {  # configs/experiment/unlearn/tofu/default.yaml, scripts/tofu_unlearn.sh
    "learning_rate": 1e-5,
    "epochs": 10,
    "batch_size": 32,  # 4, accumulated 4 times, on two GPUs
    "schedule": "linear",
    "warmup": 0.1,  # warmup_epochs: 1.0
    "weight_decay": 0.01,
    "context_tokens": 512,
}
_PRECISION = "weights are float32 here (bf16 there: --precision pure-bf16), AdamW is torch's and not paged"


def _open_unlearning(files: str, *departures: str, **settings: Any) -> Preset:
    return Preset(
        f"locuslab/open-unlearning, configs/experiment/unlearn/tofu/default.yaml, {files}",
        {**_OPEN_UNLEARNING, **settings},
        (_PRECISION, "no system prompt here; there the chat template of configs/model has one", *departures),
    )


_LONE_KL = "KL terms, if asked for, are over answers here (--prompt-tokens kl: over prompts too)"

# licong-lin/negative-preference-optimization and others ----------------------------------------------------------

_NPO = Preset(
    "licong-lin/negative-preference-optimization, TOFU/config/forget.yaml (4, accumulated 4 times, on two GPUs)",
    {
        "learning_rate": 1e-5,
        "epochs": 10,
        "batch_size": 32,
        "schedule": "linear",
        "warmup": 0.1,  # steps_per_epoch
        "weight_decay": 0.01,
        "beta": 0.1,
        "seed": 1001,
    },
    ("weights are float32 here (bf16 there: --precision pure-bf16)",),
)


def _simnpo(split: str, beta: float, weight: float) -> Preset:
    return Preset(
        f"OPTML-Group/Unlearn-Simple, TOFU/README.md and config/forget.yaml, {split} (1 x 4 on eight GPUs)",
        {**_NPO.settings, "beta": beta, "forget_weight": weight},
        _NPO.departures,
    )


def _soul(file: str, rate: float, weight: float) -> Preset:
    return Preset(
        f"OPTML-Group/SOUL, configs/TOFU/{file}, src/optim/sophia.py (1, accumulated 4 times)",
        {
            "optimizer": "sophia",
            "sophia_rho": 0.04,
            "learning_rate": rate,
            "epochs": 5,
            "batch_size": 4,
            "schedule": "linear",
            "warmup": 0.1,
            "weight_decay": 0.1,
            "retain_weight": weight,
            "seed": 0,
        },
        ("weights are float32 here (bf16 there: --precision pure-bf16)",),
    )


_WMDP = Preset(
    "centerforaisafety/wmdp, rmu/unlearn.py and run_rmu_zephyr.ipynb, as copied in ruidazeng/mu-hazard-evaluation "
    "and sheepjun0330/wmdp-main (its own repository was not read)",
    {
        "model": "HuggingFaceH4/zephyr-7b-beta",
        "hidden_layer": 7,
        "trained_parameters": r"model\.layers\.(5|6|7)\.mlp\.down_proj\.weight",  # parameter 6 of each layer
        "steering_coefficient": 6.5,
        "retain_weight": 1200.0,
        "learning_rate": 5e-5,
        "schedule": "constant",
        "warmup": 0.0,
        "weight_decay": 0.0,  # transformers' AdamW
        "max_gradient_norm": 1e9,  # not clipped
        "batch_size": 4,
        "steps": 150,
        "context_tokens": 512,
        "precision": "pure-bf16",
        "seed": 42,
    },
    (
        "one forget set here; there those of biology and cybersecurity in turn, each with a vector of its own, the "
        "second cut at 768 tokens",
        "long texts are split into windows here, and cut there; padding is in no mean here",
        "give --forget (cais/wmdp-corpora) and --retain (WikiText-2's test split without its empty lines)",
    ),
)
_HARM = Preset(
    "kevinyaobytedance/llm_unlearn, unlearn_harm.py and utils.py",
    {
        "model": "facebook/opt-1.3b",
        "forget": "hf:PKU-Alignment/PKU-SafeRLHF",
        "retain": "hf:truthfulqa/truthful_qa:generation:validation",
        "learning_rate": 2e-6,
        "batch_size": 2,
        "steps": 1000,
        "schedule": "linear",
        "warmup": 0.0,
        "weight_decay": 0.01,  # torch's AdamW
        "max_gradient_norm": 1e9,  # not clipped
        "prompt_tokens": "kl",
        "precision": "fp32",
        "seed": 8888,
    },
    (
        "format, unless --strict: the model's own; there '### Question: …\\n ### Answer: …' without an end token",
        "answers to forget, unless --strict: whole; there without their first token, in a mean that still counts it",
        "random answers, unless --strict: best answers of the retain set, others for each prompt, trained on alone; "
        "there five for all prompts of a batch, of the best, correct and incorrect answers, and the prompt is trained "
        "on from its fourth token on (start_loc counts the keys of the tokenizer's result)",
        "splits, unless --strict: whole sets, shuffled; there 70 % of TruthfulQA, and of PKU-SafeRLHF's split "
        "330k_train the first responses that a pass over those reaches, in order",
        "end: after 1,000 steps; the script's stop rule compares a negative loss with 100 and never applies, and it "
        "ends after whole passes over its normal data, 1,144 steps, of which the last 144 have a learning rate of 0",
        "KL: over prompts and answers here; there over padding and what the last token predicts too, with 1e-12 added "
        "to probabilities",
        "draws: each random answer once before any comes again here, of all of them at each step there",
    ),
)

PRESETS: Final[dict[str, dict[str, Preset]]] = {
    "ft": {"eco": _ECO},
    "ga": {"eco": _ECO, "open-unlearning": _open_unlearning("trainer/GradAscent.yaml")},
    "gd": {
        "eco": _ECO,
        "open-unlearning": _open_unlearning("trainer/GradDiff.yaml"),
        "soul": _soul("SO_GradDiff.json", 5e-6, 2.0),
    },
    "kl": {"eco": _ECO},
    "rd": {"eco": _ECO},
    "llmu": {"eco": _ECO},
    "scrub": {"eco": _ECO_SCRUB},
    "llmu-original": {"harm": _HARM},
    "npo": {"npo": _NPO},
    "npo-gd": {"npo": _NPO, "open-unlearning": _open_unlearning("trainer/NPO.yaml")},
    "npo-kl": {"npo": Preset(_NPO.source, {**_NPO.settings, "prompt_tokens": "kl"}, _NPO.departures)},
    "simnpo": {
        "forget05": _simnpo("forget05", 2.5, 0.1375),
        "forget10": _simnpo("forget10", 4.5, 0.125),
        "open-unlearning": _open_unlearning("trainer/SimNPO.yaml", _LONE_KL),
    },
    "dpo": {
        "npo": _NPO,
        "open-unlearning": _open_unlearning("experiment/unlearn/tofu/idk.yaml, trainer/DPO.yaml", _LONE_KL),
    },
    "altpo": {
        "altpo": Preset(
            "molereddy/Alternate-Preference-Optimization, README.md, config/unlearn_llama2.yaml, forget.py (forget10)",
            {
                "beta": 0.1,
                "retain_weight": 1.0,
                "learning_rate": 5e-5,
                "epochs": 2,
                "batch_size": 35,  # 5, accumulated 7 times
                "schedule": "linear",
                "warmup": 0.5,  # one epoch
                "weight_decay": 0.01,
                "seed": 0,
            },
            ("weights are float32 here (bf16 there: --precision pure-bf16)",),
        ),
        "open-unlearning": _open_unlearning(
            "trainer/DPO.yaml, community/methods/AltPO/run.sh (the middle of its grids)",
            _LONE_KL,
            learning_rate=2e-5,
            epochs=2,
            warmup=0.5,
            beta=0.1,
            retain_weight=2.0,
        ),
    },
    "idk": {"soul": _soul("SO_PO.json", 1e-5, 5.0)},
    "rmu": {
        "wmdp": _WMDP,
        "open-unlearning": _open_unlearning(
            "trainer/RMU.yaml, which trains all parameters",
            hidden_layer=7,
            steering_coefficient=2.0,
            retain_weight=1.0,
            trained_parameters=".*",
        ),
    },
    "undial": {
        "open-unlearning": _open_unlearning(
            "trainer/UNDIAL.yaml (whose rate the experiment's 1e-5 replaces unless it is given again)",
            "the mean is over answers here, over prompts and padding too there (--prompt-tokens all: over prompts)",
            learning_rate=1e-4,
        )
    },
    "wga": {"open-unlearning": _open_unlearning("trainer/WGA.yaml, community/methods/WGA/run.sh")},
    "satimp": {
        "satimp": Preset(
            "tmlr-group/SatImp, README.md, config/forget_sat.yaml and forget_sat.py (phi-1.5; the README that the "
            "authors wrote for open-unlearning has 1e-5 for Llama-2-7B)",
            {
                "saturation_power": 5.0,
                "importance_power": 0.1,
                "forget_weight": 1.0,
                "retain_weight": 0.1,
                "learning_rate": 2e-5,
                "epochs": 5,
                "batch_size": 16,  # 2, accumulated 8 times
                "schedule": "linear",
                "warmup": 0.2,  # steps_per_epoch
                "weight_decay": 0.0,
                "seed": 42,
            },
            ("weights are float32 here (bf16 there: --precision pure-bf16)",),
        ),
        "open-unlearning": _open_unlearning("community/methods/SatImp/README.md, whose weights these are"),
    },
    "ce-u": {"open-unlearning": _open_unlearning("trainer/CEU.yaml, community/methods/CEU/run.sh")},
    "pdu": {
        "open-unlearning": _open_unlearning(
            "trainer/PDU.yaml, community/methods/PDU/run.sh (TOFU; 4, accumulated 4 times, on eight)",
            "the retain set's weight moves at each step here, at each micro-batch and in each process there",
            batch_size=128,
            retain_weight=100.0,
            retain_bound=0.3,
            dual_rate=5.0,
            dual_warmup_epochs=5,
        )
    },
}
"""Method -> name -> preset."""
