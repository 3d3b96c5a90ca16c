"""Where a picture looks at each word of its prompt: its cross-attention, the mean of a chain."""

from __future__ import annotations

from contextlib import suppress

from dnp.errors import SettingsError
from dnp.methods.attend_excite import PUBLISHED


class WordMaps:
    """`with WordMaps(model, prompt) as maps`: `maps.step()` after each step of the prompt's chain.

    The network's own numbers stay bit-equal (`dnp/sd/attention.py`). Without
    a prompt, or with a model without attention to words, there are no maps.
    """

    def __init__(self, model, prompt: str | None):
        self.model, self.prompt, self.total, self.steps, self.maps = model, prompt, 0, 0, None
        recommended = getattr(model.config, "attend_excite", {})
        self.level = recommended.get("ae_level", PUBLISHED["ae_level"])
        reads = all(getattr(model, name, None) for name in ("attention", "token_ids"))
        if prompt is not None and reads:
            with suppress(SettingsError):  # a level without attention
                self.maps = model.attention(self.level)

    def __enter__(self) -> WordMaps:
        if self.maps:
            self.maps.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self.maps:
            self.maps.__exit__(*error)

    def step(self) -> None:
        """Adds the map of the step's last forward; under CFG its last row is the prompt's."""
        if self.maps and self.maps.maps:
            self.total = self.total + self.maps.mean()[-1].double().cpu()  # (N, L)
            self.steps += 1

    def of_words(self, size: tuple[int, int] | None) -> dict | None:
        """{"size": (h, w), "words": [(word, h w numbers from 0 to 255)]}, each to its
        own peak.

        A word of several tokens has the map of its last one, which has read all of it.
        """
        if not self.steps:
            return None
        model = self.model
        ids, ends = model.token_ids([self.prompt], model.tokenizer, model.config.text, warn=False)
        tokens = model.tokenizer.convert_ids_to_tokens(ids[0, 1 : ends[0]].tolist())
        words, text = [], ""
        for place, token in enumerate(tokens, 1):
            text += token.removesuffix("</w>")
            if token.endswith("</w>"):
                one = self.total[:, place]
                words.append((text, (255 * one / one.max()).round().int().tolist()))
                text = ""
        sides = model.latent_shape(size)[1:]
        return {"size": [-(-side // 2**self.level) for side in sides], "words": words}
