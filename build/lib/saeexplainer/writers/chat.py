"""The writer that is a local chat model: asked through its template, one text an answer."""

from collections.abc import Iterable, Sequence

from saeexplainer.config.parts import ChatWriterSpec
from saeexplainer.models.blocks import check_context
from saeexplainer.models.chat import chat_prompt, open_chat, plain, silence, thought_marks
from saeexplainer.writers.sampling import distinct, sampled


class ChatWriter:
    """Any causal LM whose tokenizer has a chat template."""

    def __init__(self, config: ChatWriterSpec, where: str) -> None:
        """`where` is the setting that messages name. Raises UserError if the source holds no chat model."""
        self.config, self.where = config, where
        self.model, self.tokenizer = open_chat(config.model)
        self._said: list[str] = []  # every answer without its thoughts

    def write(self, descriptions: Sequence[str]) -> dict[str, list[str]]:
        """`config.texts` for each, without those of answers that were nothing but thoughts. Raises UserError if a
        prompt and its text are more than the model reads."""
        prompts = {
            description: chat_prompt(self.tokenizer, self.config.prompt.format(description=description))
            for description in distinct(descriptions)
        }
        longest = max(map(len, prompts.values()), default=0) + self.config.max_new_tokens
        check_context(self.model, longest, f"{self.where}.max_new_tokens with the prompt")
        written = sampled(self.model, self.tokenizer, prompts, self.config, thought_marks(self.tokenizer))
        answers = {description: [plain(text) for text in texts] for description, texts in written.items()}
        self._said += [text for texts in answers.values() for text in texts]
        return {description: [text for text in texts if text] for description, texts in answers.items()}

    def usage(self, descriptions: Iterable[str]) -> None:
        """Texts are generated here."""
        return None

    def notes(self) -> list[str]:
        """How many answers hold no text."""
        return silence(self._said, f"{self.where}.max_new_tokens")
