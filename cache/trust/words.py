"""Word lists: which words belong to a guarded category, which say nothing, which mean the same. Data, and no rule."""

CONTENT, DROPPED = "content", "dropped"


def listed(words: str) -> frozenset[str]:
    return frozenset(words.split())


def _each(category: str, words: str) -> dict[str, tuple[str, str]]:
    """Each word stands for itself."""
    return {word: (category, word) for word in words.split()}


def _alike(category: str, lines: str) -> dict[str, tuple[str, str]]:
    """The words of one line stand for its first."""
    return {word: (category, line.split()[0]) for line in lines.strip().split("\n") for word in line.split()}


def _compared(adjectives: str) -> str:
    """Comparatives and superlatives."""
    forms = []
    for word in adjectives.split():
        stem = word[:-1] + "i" if word[-1] == "y" else word.removesuffix("e")
        if word in _DOUBLING:
            stem += word[-1]
        forms += [stem + "er", stem + "est"]
    return " ".join(forms)


_DOUBLING = listed("big thin hot fat wet sad red")

# What is left of a question when these are gone asks the same.
_EMPTY = """
a an the do does that really actually basically simply kindly ever anyway
"""

PERSONS = dict.fromkeys(listed("i my mine myself"), "i")
PERSONS |= dict.fromkeys(listed("we our ours ourselves"), "we")
PERSONS |= dict.fromkeys(listed("you your yours yourself yourselves u"), "you")

_UNITS = """
km kilometer kilometers kilometre kilometres kms
mile miles mi
meter meters metre metres
cm centimeter centimeters centimetre centimetres
mm millimeter millimeters millimetre millimetres
inch inches
foot feet ft
yard yards
acre acres
hectare hectares
kg kilo kilos kilogram kilograms kgs
gram grams
mg milligram milligrams
mcg microgram micrograms
lb lbs
ounce ounces oz
ton tons
tonne tonnes
liter liters litre litres
ml milliliter milliliters millilitre millilitres
gallon gallons
pint pints
quart quarts
cup cups
tablespoon tablespoons tbsp
teaspoon teaspoons tsp
bit bits
byte bytes
kb kilobyte kilobytes
mb megabyte megabytes
gb gigabyte gigabytes
tb terabyte terabytes
kib kibibyte kibibytes
mib mebibyte mebibytes
gib gibibyte gibibytes
kbit kilobit kilobits
mbit megabit megabits
gbit gigabit gigabits
tbit terabit terabits
kbps
mbps
gbps
celsius centigrade °c
fahrenheit °f
kelvin
degree degrees °
percent percentage % pct
watt watts
kw kilowatt kilowatts
kwh
volt volts
amp amps ampere amperes
hz hertz
khz
mhz
ghz
calorie calories kcal
joule joules
mph
kmh km/h kph
m/s
ms millisecond milliseconds
µs microsecond microseconds
ns nanosecond nanoseconds
seconds sec secs
minute minutes mins
hour hours hr hrs
dollar dollars usd $ bucks buck
euro euros eur €
pound pounds gbp £ quid
yen jpy ¥
rupee rupees inr ₹
yuan rmb
won krw
franc francs chf
cent cents
bitcoin bitcoins btc
pixel pixels px
dpi
"""

# After a number only: on their own they are something else.
UNITS_AFTER_NUMBERS = {
    "m": "meter", "g": "gram", "l": "liter", "s": "seconds", "h": "hour", "c": "celsius", "f": "fahrenheit", "k": "kelvin",
    "b": "byte", "v": "volt", "w": "watt", "min": "minute", "second": "seconds", "d": "day", "y": "year", "p": "pence",
    "t": "ton",
}  # fmt: skip

_TIMES = """
monday mon mondays
tuesday tue tues tuesdays
wednesday wed wednesdays
thursday thu thurs thursdays
friday fri fridays
saturday saturdays
sunday sundays
weekend weekends
weekday weekdays
january jan
february feb
march
april apr
june jun
july jul
august aug
september sept sep
october oct
november nov
december dec
today todays
tomorrow
yesterday
tonight
now nowadays
currently
current
recent
recently
lately
ago
day days
week weeks
fortnight
month months
quarter quarters
year years
decade decades
century centuries
hourly
daily
weekly
monthly
quarterly
yearly annual annually
morning mornings
noon
afternoon afternoons
evening evenings
night nights
midnight
dawn
dusk
am
pm
spring
summer
autumn fall
winter
christmas
easter
halloween
thanksgiving
ramadan
next
last
previous
past
future
upcoming
already
yet
still
again
always
often
sometimes
rarely
seldom
usually
immediately
instantly
once
twice
ad
bc
"""

_NEGATIONS = "not no never none nothing nobody nowhere neither nor non unless hardly barely"

_ADJECTIVES = """
big small large great high low fast slow quick long short old young new cheap rich poor strong weak hard soft easy
heavy light dark bright hot cold warm cool wet dry thick thin fat deep shallow wide narrow tall near close late
early safe healthy tasty sweet sour spicy clean dirty smart clever simple happy sad busy lazy nice pretty ugly loud
quiet rough smooth sharp tight loose tough rare dense fresh tiny funny scary weird lonely friendly costly steep fine
brave wise
"""
_OTHERS = """
more less fewer most least better best worse worst elder eldest further farther furthest farthest than rather equal
equally maximum minimum max exactly approximately roughly approx almost nearly < > <= >= ≤ ≥ ≈
"""
_COMPARED = _compared(_ADJECTIVES) + " " + _OTHERS

_QUANTIFIERS = """
all
whole entire
every everything everyone everybody
each
any anything
some something
both
either
only just solely merely
many
much
few
little
several multiple various
enough
half
quarter
double
triple
single
couple
dozen
majority
another
other others
and & plus
or
even
also too
"""

_MODALS = """
can could
may might
must
should
shall
will
would
possible
impossible
allowed permitted
forbidden prohibited
required mandatory obligatory compulsory necessary
optional
recommended advisable
supposed
"""

_QUESTIONS = """
howto howto-i howto-you
how
what which
why
when
where
who whom
whose
whether
"""

# Begin a part of a sentence that can stand elsewhere without changing what is asked. The words of a line count as the same.
_PREPOSITIONS = """
in
on
at
within inside
to
from
into
onto
with using via
by
for
through
over
under
above
below beneath underneath
between
among amongst
against
about regarding concerning
across
along
around
behind
beside besides
near
off
out
outside
up
down
per
toward towards
upon
as
versus vs
because
if
"""

_STARTING_IN_A_CATEGORY = """
before
after
since
until till
during
while
"""

STARTERS = listed(_PREPOSITIONS) | listed(_STARTING_IN_A_CATEGORY) | {"without", "except", "than"}

CATEGORY: dict[str, tuple[str, str]] = {
    **_alike("preposition", _PREPOSITIONS),
    **_alike("unit", _UNITS),
    **_alike("time", _TIMES),
    **_alike("time", _STARTING_IN_A_CATEGORY),
    **_each("negation", _NEGATIONS),
    **_alike("negation", "without\nexcept excluding"),
    **_each("comparison", _COMPARED),
    **_alike("quantifier", _QUANTIFIERS),
    **_alike("modality", _MODALS),
    **_alike("instruction", _QUESTIONS),
    **_each(DROPPED, _EMPTY),
    **_alike("past", "was were did"),
    **_alike("being", "is am are be been being"),
    **{word: ("person", person) for word, person in PERSONS.items()},
}
"""The closed classes: word to (category, the word it counts as)."""

_ONES = """
zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen seventeen eighteen
nineteen
"""
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
NUMBERS = {word: value for value, word in enumerate(_ONES.split())}
NUMBERS |= {word: 10 * value for value, word in enumerate(_TENS.split(), 2)}
SCALES = {"hundred": 10**2, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12}
_ORDINALS = """
first second third fourth fifth sixth seventh eighth ninth tenth eleventh twelfth thirteenth fourteenth fifteenth sixteenth
seventeenth eighteenth nineteenth twentieth
"""
ORDINALS = {word: value for value, word in enumerate(_ORDINALS.split(), 1)}

# A lone letter after one of these is a name: vitamin A, World War I.
LABELLED = listed(
    """
    vitamin hepatitis type grade plan class option group section part team level appendix exhibit schedule channel point
    column row size phase series influenza war stage title chapter world variant form block gate platform
    """
)

# Words of one line may stand for each other in every question: checked never to be opposites.
_SYNONYMS = """
delete remove
directory folder dir
find locate
create make
show display
get obtain
start begin
big large
picture photo photograph image pic
buy purchase
fix repair
quick fast
car automobile
movie film
child kid
database db
repository repo
application app
configuration config
information info
television tv
uk britain
javascript js
postgres postgresql
kubernetes k8s
administrator admin
mother mom mum
father dad
finish complete
happen occur
halt stop
reply respond
math mathematics
phone cellphone
facebook fb
"""

SYNONYMS = {
    word: line.split()[0]
    for line in _SYNONYMS.strip().split("\n")
    for word in line.split()
    if word != line.split()[0]
}

# Spellings and contractions without an apostrophe; a value may be several words.
SPELLINGS = {
    "dont": "do not", "doesnt": "does not", "didnt": "did not", "isnt": "is not", "arent": "are not",
    "wasnt": "was not", "werent": "were not", "cant": "can not", "cannot": "can not", "couldnt": "could not",
    "wont": "will not", "wouldnt": "would not", "shouldnt": "should not", "hasnt": "has not", "havent": "have not",
    "mustnt": "must not", "aint": "is not", "whats": "what is", "hows": "how is", "whos": "who is",
    "wheres": "where is", "thats": "that is", "im": "i am", "ive": "i have", "gonna": "going to", "wanna": "want to",
    "gotta": "have to", "pls": "please", "plz": "please", "thx": "thanks", "ur": "your", "u.s": "usa", "u.s.a": "usa",
    "u.k": "uk", "e.g": "for example", "i.e": "that is", "e-mail": "email", "e-mails": "emails", "wi-fi": "wifi",
    "on-line": "online", "p.m": "pm", "a.m": "am", "vs": "versus", "maths": "mathematics", "ppl": "people",
    "colour": "color", "colours": "colors", "favourite": "favorite", "favourites": "favorites",
    "behaviour": "behavior", "neighbour": "neighbor", "neighbours": "neighbors", "honour": "honor", "labour": "labor",
    "flavour": "flavor", "flavours": "flavors", "humour": "humor", "rumour": "rumor", "harbour": "harbor",
    "centre": "center", "centres": "centers", "centred": "centered", "theatre": "theater", "theatres": "theaters",
    "fibre": "fiber", "grey": "gray", "licence": "license", "licences": "licenses", "defence": "defense",
    "offence": "offense", "practise": "practice", "catalogue": "catalog", "dialogue": "dialog",
    "programme": "program", "programmes": "programs", "tyre": "tire", "tyres": "tires", "jewellery": "jewelry",
    "aluminium": "aluminum", "analyse": "analyze", "analysed": "analyzed", "analysing": "analyzing",
    "travelling": "traveling", "travelled": "traveled", "cancelled": "canceled", "cancelling": "canceling",
    "labelled": "labeled", "mould": "mold", "pyjamas": "pajamas", "moustache": "mustache", "plough": "plow",
}  # fmt: skip
_WITH_ISE = """
organ real optim custom initial summar minim maxim recogn normal visual serial capital categor apolog memor standard
synchron util author character critic emphas finan local modern personal priorit special steril symbol verbal
"""
for _stem in _WITH_ISE.split():
    for _ending in ("ise", "ised", "ises", "ising", "isation"):
        SPELLINGS[_stem + _ending] = _stem + _ending.replace("is", "iz", 1)

# Several words that count as one or as others; the longest is taken.
PHRASES = {
    "get rid of": "remove", "log in": "login", "sign in": "login", "log on": "login", "log out": "logout",
    "sign out": "logout", "log off": "logout", "set up": "setup", "look for": "find", "a lot of": "many",
    "lots of": "many", "plenty of": "many", "at least": ">=", "at most": "<=", "no more than": "<=",
    "not more than": "<=", "no less than": ">=", "not less than": ">=", "greater than or equal to": ">=",
    "less than or equal to": "<=", "up to": "<=", "in order to": "to", "so as to": "to",
    "united states of america": "usa", "united states": "usa", "united kingdom": "uk", "by using": "with",
    "by means of": "with", "with the help of": "with", "other than": "except", "apart from": "except",
    "aside from": "except", "except for": "except", "have to": "must", "has to": "must", "had to": "did must",
    "need to": "must", "needs to": "must", "ought to": "should", "able to": "can", "be able to": "can",
    "allowed to": "allowed", "permitted to": "allowed", "per cent": "percent", "a few": "several",
    "a little": "slightly", "search for": "find", "searching for": "find", "looking for": "find",
    "searches for": "find", "looks for": "find", "because of": "because", "would like to": "want to",
    "make money": "earn money", "making money": "earn money", "cell phone": "phone", "cell phones": "phones",
    "mobile phone": "phone", "mobile phones": "phones", "due to": "because", "what kind of": "what type of",
    "what sort of": "what type of", "take place": "happen", "took place": "happened", "as well as": "and",
    "next to": "beside", "close to": "near", "as soon as": "after",
}  # fmt: skip

# What a difference in one of these words is called; that it is one needs no list.
_NAMED = {
    "instruction": """
        explain describe summarize summary translate write rewrite list define compare draw explanation essay poem
        story example sentence paragraph word bullet json xml yaml csv markdown html table briefly brief concise
        concisely detail detailed step outline simple english french german spanish italian dutch portuguese russian
        chinese japanese korean arabic hindi latin greek turkish polish swedish give tell suggest recommend
        calculate generate
    """,
    "direction": "to from into onto toward off out up down through over under above below between behind across versus",
    "comparison": "big large small great high low fast slow long short old young cheap tall",
}
NAMED = {word: category for category, words in _NAMED.items() for word in words.split()}
