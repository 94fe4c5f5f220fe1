"""What each objective is, in words and with the paper it comes from."""

_IN_WORDS = {
    "clm": "causal language modelling: every token is predicted from those before it (Radford et "
    "al. 2018)",
    "mlm": "masked language modelling: hidden tokens are predicted from both sides (Devlin et al. "
    "2018)",
    "wwm": "whole-word masking: the hidden tokens of whole words are predicted from both sides "
    "(Devlin et al. 2018, Cui et al. 2019)",
    "spell": "spelling correction: replaced characters are found and put right (Liu et al. 2021)",
    "bidirectional": "hidden tokens are predicted from both sides (Dong et al. 2019)",
    "causal": "every token is predicted from those before it (Dong et al. 2019)",
    "prefix": "a prefix is seen from both sides, and what follows is predicted left to right (Dong "
    "et al. 2019)",
    "infill": "blank infilling: the text of blanks is predicted left to right (Du et al. 2021)",
    "spans": "span corruption: the text behind sentinels is predicted (Raffel et al. 2019)",
    "denoise": "denoising: a text is predicted from its damaged form (Lewis et al. 2019)",
}
_NEXT_SENTENCE = "; and whether two parts follow each other (Devlin et al. 2018)"


def describe_objective(name: str, *, next_sentence: bool = False) -> str:
    """Say what is learnt, and whose idea it is.

    Args:
        name: As in `Objective.name`; another name is its own description.
        next_sentence: Whether next sentences are told from others too.
    """
    return _IN_WORDS.get(name, name) + _NEXT_SENTENCE * next_sentence
