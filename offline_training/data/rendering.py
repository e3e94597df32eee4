"""A question and its answer as one conversation, in the token ids of one model.

The prompt's ids are those a server renders for the same chat request, so what is trained is what is served. The
answer's are all that the model is to produce after them. How a chat template goes on after the prompt, and which
token ends the assistant's turn, is read off its own rendering of the whole conversation.
"""

from collections.abc import Sequence
from typing import Any

from console.errors import first_line
from offline_training.errors import DataError

Ids = tuple[int, ...]

#: Two conversations that share no word: what agrees after both prompts is template.
_PROBES = (("Purple lantern?", "Quixotic zebra"), ("9 copper kites, below", "umbrella jam 42"))


class ConversationRenderer:
    """Renders with the tokenizer's chat template; without one, the prompt, a space, the answer, and `eos_token`.

    Args:
        tokenizer: a transformers tokenizer.
        system_prompt: system message of every conversation.

    Raises:
        DataError: the tokenizer has neither chat template nor `eos_token`, or its template cannot be trained through:
            it rejects the conversation, drops the system message, or its rendering of prompt and answer does not
            begin with that of the prompt.
    """

    def __init__(self, tokenizer: Any, system_prompt: str | None = None) -> None:
        self._tokenizer = tokenizer
        self._system = [] if system_prompt is None else [{"role": "system", "content": system_prompt}]
        eos = tokenizer.eos_token_id
        self._eos: Ids = () if eos is None else (int(eos),)
        self._templated = bool(getattr(tokenizer, "chat_template", None))
        if not self._templated and not self._eos:
            raise DataError("--model: its tokenizer has neither chat template nor eos_token; set one of them")
        if not self._templated and system_prompt is not None:
            raise DataError("--system-prompt: the model has no chat template to put it into; leave it out")
        # How the template ends an assistant's turn (`<|im_end|>` and a newline, say), and its part up to the token at
        # which generation stops; empty where it has none.
        self._closing = self._learned_closing() if self._templated else ""
        self._produced = self._closing[: self._end_of_turn(self._closing)]
        if not self._produced and not self._eos:
            raise DataError(
                "--model: its chat template ends no assistant turn with a token and its tokenizer has no eos_token; "
                "set one of them"
            )

    def prompt_ids(self, prompt: str) -> Ids:
        """Ids of the prompt as a server renders it: as a chat request, or as plain text without a template.

        Raises:
            DataError: the prompt has no tokens, or the chat template rejects it.
        """
        return self._prompt(prompt)[1]

    def answer_ids(self, answer: str) -> Ids:
        """Ids of an answer with the token that ends it, after some prompt.

        Raises:
            DataError: as `conversation`.
        """
        return self.conversation(_PROBES[0][0], answer)[1]

    def conversation(self, prompt: str, answer: str) -> tuple[Ids, Ids]:
        """Ids of the prompt, and of all the model is to produce after it.

        Raises:
            DataError: prompt or answer have no tokens, or the rendering of both does not continue the prompt's.
        """
        text, prompt_ids = self._prompt(prompt)
        if self._templated:
            spoken = self._continued(text, prompt, answer)
            if not spoken.endswith(self._closing):
                raise DataError("the chat template ends this answer's turn unlike others; change the answer")
            spoken = spoken.removesuffix(self._closing) + self._produced
        else:
            spoken = " " + answer
        answer_ids = self._continuation_ids(text, prompt_ids, spoken)
        if not answer_ids:
            raise DataError(f"the answer {answer[:40]!r} has no tokens; give it text")
        return prompt_ids, answer_ids if self._produced else answer_ids + self._eos

    def _prompt(self, prompt: str) -> tuple[str, Ids]:
        text = self._rendered([{"role": "user", "content": prompt}], add_generation_prompt=True)
        ids = self._ids(text)
        if not ids:
            raise DataError(f"the prompt {prompt[:40]!r} has no tokens; give it text")
        return text, ids

    def _rendered(self, messages: Sequence[dict[str, str]], *, add_generation_prompt: bool) -> str:
        if not self._templated:
            return messages[0]["content"]
        try:
            text: str = self._tokenizer.apply_chat_template(
                [*self._system, *messages], tokenize=False, add_generation_prompt=add_generation_prompt
            )
        except Exception as error:  # a template may raise anything
            flag = "--system-prompt" if self._system else "--model"
            raise DataError(f"{flag}: the chat template rejects the conversation ({first_line(error)})") from error
        return text

    def _ids(self, text: str) -> Ids:
        """A template writes its special tokens itself; plain text gets those of the tokenizer."""
        return encode(self._tokenizer, text, special=not self._templated)

    def _continued(self, prompt_text: str, prompt: str, answer: str) -> str:
        """What the rendering of the whole conversation adds to that of the prompt."""
        messages = [{"role": "user", "content": prompt}, {"role": "assistant", "content": answer}]
        whole = self._rendered(messages, add_generation_prompt=False)
        if not whole.startswith(prompt_text):
            same = next(i for i, char in enumerate(prompt_text) if whole[i : i + 1] != char)
            raise DataError(
                "--model: the chat template's rendering of prompt and answer does not begin with that of the prompt: "
                f"{prompt_text[same : same + 20]!r} against {whole[same : same + 20]!r}; change the template so that "
                "an answer follows add_generation_prompt's text"
            )
        return whole[len(prompt_text) :]

    def _learned_closing(self) -> str:
        closings = set()
        for prompt, answer in _PROBES:
            text = self._prompt(prompt)[0]
            for message in self._system:
                if message["content"].strip() not in text:
                    raise DataError("--system-prompt: the chat template drops it; leave it out")
            spoken = self._continued(text, prompt, answer)
            if answer not in spoken:
                raise DataError("--model: the chat template does not render an assistant's content as it is")
            closings.add(spoken[spoken.rindex(answer) + len(answer) :])
        if len(closings) > 1:
            raise DataError("--model: the chat template ends an assistant's turn differently from answer to answer")
        return closings.pop()

    def _end_of_turn(self, closing: str) -> int:
        """Where the closing's first special token ends; 0 where it has none."""
        added = getattr(self._tokenizer, "added_tokens_decoder", {}).values()
        tokens = {str(token) for token in (*self._tokenizer.all_special_tokens, *added)}
        spans = [(closing.index(token), -len(token)) for token in tokens if token and token in closing]
        if not spans:
            return 0
        start, negative_length = min(spans)
        return start - negative_length

    def _continuation_ids(self, prompt_text: str, prompt_ids: Ids, spoken: str) -> Ids:
        """Ids of `spoken` where it follows exactly `prompt_ids`.

        They are what the tokenizer gives for the whole text, unless a token there reaches over the prompt's end.
        Then `spoken` is encoded apart, in a way that does not change the text: some tokenizers put a space before
        any text they see the beginning of.
        """
        whole = self._ids(prompt_text + spoken)
        if whole[: len(prompt_ids)] == prompt_ids:
            return whole[len(prompt_ids) :]
        plain = encode(self._tokenizer, prompt_text, special=False)
        wanted = self._decoded(encode(self._tokenizer, prompt_text + spoken, special=False))
        apart = [encode(self._tokenizer, spoken, special=False)]
        newline = encode(self._tokenizer, "\n", special=False)
        after_newline = encode(self._tokenizer, "\n" + spoken, special=False)
        if newline and after_newline[: len(newline)] == newline:
            apart.append(after_newline[len(newline) :])
        for ids in apart:
            if self._decoded(plain + ids) == wanted:
                return ids
        raise DataError(
            f"no token begins where the prompt ends, before {spoken[:20]!r}; let the prompt, or the chat template's "
            "add_generation_prompt text, not end in white space"
        )

    def _decoded(self, ids: Ids) -> str:
        text: str = self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
        return text


def encode(tokenizer: Any, text: str, *, special: bool) -> Ids:
    """Ids of a text of any length, with or without the tokens the tokenizer puts around it."""
    # verbose: no warning that a book is longer than the model's context.
    return tuple(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])


def leading_special_ids(tokenizer: Any) -> Ids:
    """What the tokenizer puts before any text: usually one beginning-of-sequence token, or nothing."""
    plain, whole = encode(tokenizer, "a", special=False), encode(tokenizer, "a", special=True)
    starts = (start for start in range(len(whole)) if whole[start : start + len(plain)] == plain)
    return whole[: next(starts, 0)]
