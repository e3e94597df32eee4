"""Does a question ask for a person? Reverse queries do: "Which author wrote …?"."""

import re

__all__ = ["asks_for_person"]

_AGENT = (
    r"(?:\w+(?:er|or|ist|ian|eer|ess|ant|smith|wright|man|woman)|person|people|celebrity|figure|individual|star|icon|"
    r"legend|hero|heroine|artist|poet|king|queen|prince|princess|pope|saint|monk|nun|president|chief|head|boss|genius|"
    r"athlete|champion|model|critic|chef|judge|diplomat|monarch|aristocrat|youth|boy|girl|child|son|daughter|"
    r"husband|wife|brother|sister|father|mother|friend|rival|magnate|tycoon|diva|idol|name)s?"
)
_ENGLISH = re.compile(
    r"\b(?:who|whom|whose|who's)\b|\b(?:full|complete|real|first and last) name\b|"
    r"\b(?:which|what(?:'s)?|name|identify|guess|tell me)\s+(?:(?:the|this|that|a|an|of|is|was)\s+)*"
    rf"(?:[\w'’-]+\s+){{0,4}}?{_AGENT}\b",
    re.IGNORECASE,
)
_OTHERS = re.compile(
    r"\b(?:qui|quel(?:le)? \w+(?:eur|rice|iste|ain|aine|ien|ienne)|wer|wem|wessen|welche[rs]? \w+(?:er|in|ist|or)|"
    r"quién|quiénes|qué \w+(?:or|ora|ista)|quem|qual \w+(?:or|ora|ista)|chi|quale \w+(?:ore|rice|ista)|wie|welke|"
    r"kto|który|która|kdo|cine|kim|siapa|vem|hvem|kuka|кто|кого|кому|чей|хто|ποιος|ποια)\b|"
    r"谁|誰|哪位|누구|من هو|من هي|कौन",
    re.IGNORECASE,
)


def asks_for_person(text: str) -> bool:
    """Whether a part of the text asks who somebody is, in the languages most often written. By rule, not perfect."""
    return bool(_ENGLISH.search(text) or _OTHERS.search(text))
