"""ECO's demonstration without a server: one prompt, a given token mask, one dimension, strength 100.

    python docs/examples/harry_potter.py Qwen/Qwen2.5-0.5B-Instruct
    python docs/examples/harry_potter.py MODEL --question "Who wrote Middlemarch?" --entity Middlemarch

Prints the model's answer to "Who is Harry Potter?" as it is, and with the embeddings of the entity's tokens
corrupted (`rand_noise_first_n`, arXiv 2406.07933). Nothing is hooked into the model: the corrupted rows are the
`inputs_embeds` of one `generate` call, so several threads may do this with one model.
"""

import argparse
from typing import Any

from transformers import AutoModelForCausalLM, AutoTokenizer

from corruption import CorruptionSpec
from guard import ProtectedPrompt
from guard.transformers_adapter import corrupted_prompt, generate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="hub id or folder")
    parser.add_argument("--question", default="Who is Harry Potter?")
    parser.add_argument("--entity", default="Harry Potter", help="the tokens to corrupt")
    parser.add_argument("--strength", type=float, default=100.0)
    options = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(options.model)
    model = AutoModelForCausalLM.from_pretrained(options.model).eval()
    token_ids, mask = masked_question(tokenizer, options.question, options.entity)
    spec = CorruptionSpec(method="rand_noise_first_n", dims=1, strength=options.strength)
    for title, prompt in (
        ("as it is", ProtectedPrompt(token_ids)),
        ("corrupted", corrupted_prompt(model, token_ids, mask, spec, seed=0)),
    ):
        output = generate(model, prompt, max_new_tokens=40, do_sample=False)
        answer = tokenizer.decode(output[0], skip_special_tokens=True).strip()
        print(f"{title}: {answer}")  # noqa: T201


def masked_question(tokenizer: Any, question: str, entity: str) -> tuple[list[int], list[bool]]:
    """Prompt ids (T,) and the mask (T,) of the tokens that overlap the entity."""
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], tokenize=False, add_generation_prompt=True
    )
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    start = text.index(entity)
    end = start + len(entity)
    return encoded["input_ids"], [low < end and high > start for low, high in encoded["offset_mapping"]]


if __name__ == "__main__":
    main()
