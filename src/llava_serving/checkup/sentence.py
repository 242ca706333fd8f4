"""Can the folder's language model talk? The service's self-check, without loading the model."""

import math

from ..errors import StartupError
from ..self_check import LIMIT, SENTENCE
from ..tokenizer import load_sentencepiece
from . import talk
from .diagnosis import Finding, Language


def speak(language: Language) -> Finding:
    """Measures the loss on an ordinary sentence. `good` is None where it cannot be told."""
    try:
        text = load_sentencepiece(language.tokenizer)
    except StartupError:
        return Finding("talks", "not tried: there is no tokenizer.model with it")
    chance = math.log(language.sums[talk.EMBEDDING].first.shape[0])
    loss = talk.loss(language.sums, language.config, [text.bos_id(), *text.encode(SENTENCE)])
    talks = loss < LIMIT * chance
    word = "yes" if talks else "no, as differences do not" if language.is_difference else "no"
    told = f"{word}: loss {loss:.2f} on an ordinary sentence, where guessing gives {chance:.2f}"
    return Finding("talks", told, talks if talks or not language.is_difference else None)
