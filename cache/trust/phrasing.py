"""One form for what is asked in several: "what is the way to" and "how can I" are "how to"; courtesies are taken away.

Works on lower-cased words without punctuation, so that punctuation changes nothing.
"""

import re

from .words import PHRASES, listed

_ASKING = r"(?=(?:if|whether|how|what|why|when|where|who|whom|whose|which)\b)"
# A greeting is taken away only before something to answer: "thanks in Dutch" asks about the word.
_SENTENCE = (
    r"(?=(?:how|what|why|when|where|who|whose|which|is|are|was|were|do|does|did|can|could|should|would|will|may|must|has|have|am|"
    r"i|my|we|please|kindly|tell|explain|show|give|help|list|write|translate|summarize|describe|define|name|find|compare|"
    r"convert|calculate|recommend|suggest|sort|print|create|delete|remove|add|count|replace|draw)\b)"
)
_SOMEBODY = r"(?:you|u|anyone|anybody|someone|somebody)"
_OPENING = re.compile(
    r"(?:(?:hi|hello|hey|greetings|good (?:morning|afternoon|evening)|thanks|ok|okay|so|well|um)"
    rf"(?: there| all| everyone)? {_SENTENCE}"
    rf"|(?:please|kindly) {_SENTENCE}"
    rf"|(?:can|could|would|will) {_SOMEBODY} (?:please |kindly )*(?:help me (?:to )?)?"
    r"(?=(?:tell me|explain|show me|give me|help me|list|translate|summarize|describe|recommend|suggest|provide|define|"
    r"calculate)\b)"
    rf"|(?:can|could|would|will) {_SOMEBODY} (?:please|kindly) "
    r"|(?:i (?:want|need|would like|wish|am trying) to (?:know|learn|understand)|i am (?:wondering|curious)|i wonder"
    rf"|do (?:you|u) (?:happen to )?know|does {_SOMEBODY} know|tell me|let me know|show me|explain(?: to me)?"
    rf"|help me understand|any idea) {_ASKING}"
    r"|at (?=what time\b))+"
)
_TELL_ME = re.compile(r"tell me (?=(?:the|my|our|your)\b)")
_CLOSING = re.compile(
    r"(?: or not| please| thanks| thx| thank you)(?: (?:very|so) much)?(?: in advance)?(?: or not| please)?$"
)
# After these the courtesy is what is asked about.
_SPOKEN = listed(
    """
    say saying word mean means spell spelled pronounce write translate type phrase and or to of with like
    """
)

# "How do you feel" asks how somebody is, not how to do something.
_YOU = r"you(?! (?:feel|work|think|like|look|live|sleep|do|know|differ)\b)"
_ANYONE = rf"(?:i|we|{_YOU}|u|one|someone|somebody|anyone|a person)"
_HOW_TO = re.compile(
    rf"\bhow (?:(?:do|does|can|could|would|should|shall|may) ({_ANYONE})|({_ANYONE}) (?:can|could|should)|to) "
    r"(?:go about |best |actually |possibly )?"
)
_WAY_TO = re.compile(
    r"(?:\bwhat (?:is|are|would be|will be) (?:(?:the|a|an|some|any) )?|\b(?:is|are) there (?:a|an|any|some) |^(?:the |a )?)"
    r"(?:(?:best|right|proper|correct|good|usual|standard|easy|simple) )?(?:way|method)s?(?: for (?:me|us))? (?:to|of|for) "
)
_DO_TO = re.compile(
    rf"\bwhat (?:do|can|could|should|must|would|shall) {_ANYONE} (?:have to |need to )?do (?:in order )?to "
)
_HOW_LONG = re.compile(rf"\b(how long|how often|when) (?:do|should) {_ANYONE} (?!(?:have|need) to )")
_WHERE = re.compile(rf"\bwhere (?:(?:can|could|do) {_ANYONE}|{_ANYONE} (?:can|could))\b")
_COMMAND = re.compile(
    rf"\b(?:what|which) (?:is )?(?:the |a )?command (?:(?:do|can|should|could|would) {_ANYONE} use |is used |will |would "
    r"|can )?(?:to |for |that )?"
)
_MEANING = re.compile(r"\bwhat is (?:(?:the )?meaning of|meant by) (.+)")
_SOME = re.compile(r"\bwhat (is|are) (?:some|a few)(?: of the)? ")
_ANY = re.compile(r"\bthere any ")
_EXACTLY = re.compile(r"\b(what|how|why|where|when|who) exactly ")
# "Why is my phone not charging" as "why isn't my phone charging", where the subject is a few plain words.
_NOT_LATER = re.compile(
    r"^((?:why|how|what|when|where) )?(is|are|was|were|do|does|did|can|could|will|would|should|has|have) "
    r"((?:(?!(?:and|or|who|that|which|in|on|at|of|with|from|to|for|if|when|not|no)\b)[^\W\d_]+ ){1,4})not "
)
_MONTH = re.compile(
    r"\b(in|of|since|until|by|next|last|this|before|after|during|from|early|late|on) may\b|\bmay (?=\d)|(?<=\d )may\b"
)

_PHRASES = {tuple(phrase.split()): meaning.split() for phrase, meaning in PHRASES.items()}
_PHRASE_LENGTHS: dict[str, list[int]] = {}  # by the first word, the longest first
for _phrase in sorted(_PHRASES, key=len, reverse=True):
    _lengths = _PHRASE_LENGTHS.setdefault(_phrase[0], [])
    if len(_phrase) not in _lengths:
        _lengths.append(len(_phrase))


def framed(plain: str) -> str:
    """Without courtesies, and with one form for each way of asking; "howto" or "howto-i" for how to do something."""
    while found := _OPENING.match(plain):
        plain = plain[found.end() :]
    plain = _TELL_ME.sub("what is ", plain, count=1) if plain.startswith("tell me ") else plain
    if found := _CLOSING.search(plain):
        asked = plain[: found.start()].split()
        plain = plain if len(asked) < 3 or asked[-1] in _SPOKEN else " ".join(asked)
    if "how " in plain:
        plain = _HOW_TO.sub(_how_to, plain)
    if "when " in plain or "how " in plain:
        plain = _HOW_LONG.sub(r"\1 should ", plain)
    if "way" in plain or "method" in plain:
        plain = _WAY_TO.sub("howto ", plain)
    if "where " in plain:
        plain = _WHERE.sub("where do", plain)
    if " exactly " in plain:
        plain = _EXACTLY.sub(r"\1 ", plain)
    if "there any " in plain:
        plain = _ANY.sub("there ", plain)
    if " not " in plain:
        plain = _NOT_LATER.sub(r"\1\2 not \3", plain)
    if "what " in plain:
        plain = _SOME.sub(r"what \1 ", _DO_TO.sub("howto ", plain))
        plain = _MEANING.sub(r"what does \1 mean", plain) if " mean" in plain else plain
    if " command" in plain:
        plain = _COMMAND.sub("what command ", plain)
    if "may" in plain:
        plain = _MONTH.sub(r"\1 month-may ", plain)
    return plain


def _how_to(found: re.Match[str]) -> str:
    """Who asks is kept, for "how do you say my name" is not "how do you say your name"."""
    person = found[1] or found[2]
    return "howto-i " if person in ("i", "we") else "howto-you " if person in ("you", "u") else "howto "


def joined(words: list[str]) -> list[str]:
    """With phrases as the words they count as."""
    found: list[str] = []
    place, end = 0, len(words)
    while place < end:
        word = words[place]
        for length in _PHRASE_LENGTHS.get(word, ()):
            meaning = _PHRASES.get(tuple(words[place : place + length]))
            if meaning is not None:
                found += meaning
                place += length
                break
        else:
            found.append(word)
            place += 1
    return found
