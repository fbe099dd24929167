"""The base form of an inflected word: "deleting", "deleted" and "deletes" are "delete". Knows only form, not meaning.

Verbs are listed and their forms generated, because a rule that strips -ing from any word makes "plan" of "planing";
an unlisted verb keeps its ending, so that two of its forms differ and the model is asked. Plurals are a rule, with
the words that mean something else in the plural ("goods", "customs", "Windows") left alone.
"""

import re

from .words import listed

VERBS = listed(
    """
    abort absorb accept access accuse achieve acquire act activate adapt add adjust admit adopt advance advise
    affect afford agree aim alert align allocate allow alter amend analyze announce answer append apply appoint
    approve archive argue arrange arrest arrive ask assign assist assume attach attack attend authenticate author automate
    avoid award backup bake balance ban bash bathe become begin behave believe bind bite bleed blend blink block
    blog blow board boil book boost boot borrow bounce branch breathe breed brew bring broadcast browse brush build
    bump burn buy cache calculate call cancel capture carry carve cast catch cause celebrate change charge chase
    cheat check chew choose chop claim clap clean clear click climb clip clone close collapse collect color combine
    come comment commit communicate compare compete compile complain complete compose compress compute concatenate
    conduct configure confirm connect consider construct consume contact contain continue contribute control convert
    convince cook cool copy correct cost cough count cover crack crash crawl create crop cross cry cure customize
    cut cycle damage dance deactivate debug decide declare decline decode decompress decorate decrease decrypt
    deduct deduplicate defend define defrost delay delegate delete deliver deny depart depend deploy deposit describe
    deserve design destroy detach detect determine develop diagnose die dig digest direct disable disagree disappear
    disconnect discover discuss dismiss display dispute dissolve distribute dive divide divorce download drag drain
    draw dream dress drink drive drop dry dump duplicate dye earn eat edit educate elect emit emulate enable encode
    encourage encrypt end enforce enjoy enroll ensure enter erase escape establish estimate evaluate evaporate evict
    evolve exceed exchange exclude execute exercise exist exit expand expect expire explain explode explore export
    express extend extract fail fall fast feed feel fetch fight file fill filter find finish fire fit fix flash
    flatten flip float flood flow flush fly focus fold follow force forbid forget forgive fork format forward freeze
    fry gain generate get give glue go grade graduate grant grate grep grill grind grow guarantee guess guide hack
    handle hang happen harvest hash hate have heal hear heat help hide hike hire hit hold host hunt hurt identify
    ignore imagine implement import improve include increase indent infect influence inform inherit initialize
    inject insert inspect inspire install insult insure integrate interpret interrupt introduce invade invent invert
    invest invite invoke iron isolate issue iterate join judge jump justify keep kick kill kiss knead knit knock
    know label lack land last laugh launch lay lead leak learn lease leave lend let license lie lift like limit link
    list listen live load locate lock log look loop lose love maintain make manage map mark marinate marry match
    matter mean measure meet melt mention merge migrate minimize miss mix mock modify monitor mount move multiply
    mute name need negotiate normalize note notice notify obtain occur offer open operate oppose optimize orbit
    order organize overcome override overwrite owe own pack paint park parse partition pass paste pause pay peel
    perform permit persuade photograph pick pin pipe place plan plant play plot plug point poison polish pop port
    post pour practice pray predict prefer prepare prescribe present preserve press prevent print probe process
    produce program promise promote prompt pronounce propose prosecute protect prove provide prune publish pull pump
    punish purchase purge push put qualify query quit quote raise rank rate reach react read rebase reboot rebuild
    receive recommend recompile record recover recycle redirect redo reduce refer refresh refund refuse regenerate
    register reinstall reject relate relax release reload remember remind remount remove rename render renew rent
    reorder repair repeat replace replicate reply report represent reproduce request require reschedule rescue
    reserve reset resign resize resolve respond restart restore restrict resume retire retrieve return reuse reveal
    reverse revert review revoke rewrite ride ring rinse rise roast roll rotate round run sail save say scale scan
    schedule score scrape scratch scream scroll seal search see seek seem select sell send separate serialize serve
    set settle sew shake share sharpen shave shift shine ship shoot shop show shrink shuffle shut sign simmer
    simplify simulate sing sink sit skip sleep slice slide smell smile smoke sneeze soak sort sound spawn speak
    specify spell spend spill spin split spray spread squash stack stage stain stand start starve stash state stay
    steal steam step stick stop store stream stretch strip structure study style submit subscribe subtract succeed
    sue suffer suggest summarize supply support suppose survive suspend swap swear sweat swim switch synchronize tag
    take talk tap taste teach tear tell terminate test text thank thaw think throw tie tighten tip toggle touch
    trace track trade train transcribe transfer transform translate transmit transport travel treat trigger trim
    trip troubleshoot truncate trust try tune turn type unblock uncompress understand undo unfollow uninstall unlock
    unmount unpack unplug unsubscribe unwrap unzip update upgrade upload use vaccinate validate verify view violate
    visit visualize vomit vote wait wake walk want warn wash waste watch water wear weigh whip win wipe wire wish
    withdraw wonder work worry wrap write yell yield zip zoom
    """
)

_IRREGULAR = """
become became become; begin began begun; bind bound bound; bite bite bitten; bleed bled bled; blow blew blown
break broke broken; breed bred bred; bring brought brought; build built built; buy bought bought
catch caught caught; choose chose chosen; come came come; dig dug dug; draw drew drawn; drink drank drunk
drive drove driven; eat ate eaten; fall fell fallen; feed fed fed; feel felt felt; fight fought fought
find found found; fly flew flown; forbid forbade forbidden; forget forgot forgotten; forgive forgave forgiven
freeze froze frozen; get got gotten; give gave given; go went gone; grow grew grown; hang hung hung; have had had
hear heard heard; hide hid hidden; hold held held; keep kept kept; know knew known; lead led led; lend lent lent
lose lost lost; make made made; mean meant meant; meet met met; overcome overcame overcome
overwrite overwrote overwritten; pay paid paid; rewrite rewrote rewritten; ride rode ridden; ring rang rung
run ran run; say said said; see saw seen; sell sold sold; send sent sent; shake shook shaken; shine shone shone
shoot shot shot; show showed shown; shrink shrank shrunk; sing sang sung; sink sank sunk; sit sat sat
sleep slept slept; speak spoke spoken; spend spent spent; spin spun spun; stand stood stood; steal stole stolen
stick stuck stuck; swear swore sworn; swim swam swum; take took taken; teach taught taught; tear tore torn
tell told told; think thought thought; throw threw thrown; understand understood understood; undo undid undone
wake woke woken; wear wore worn; win won won; withdraw withdrew withdrawn; write wrote written
rebuild rebuilt rebuilt
"""

_LIKE_THEIR_PAST = listed(
    """
    broadcast cast cost cut fit hit hurt let put quit read reset set shut split spread
    """
)

# The last consonant is doubled although the word is longer than one syllable.
_DOUBLED = listed(
    """
    admit begin cancel commit control forbid forget format label occur permit prefer program refer reset submit transfer
    travel unplug unwrap unzip
    """
)

# Forms that are words of their own.
_NOT_VERBS = listed(
    """
    being bit building bound casting clothing dating drawing felt found ground housing landing leaves left lives meaning
    meeting opening painting rating reading rose saw savings scales setting settings shot stories string wedding
    """
)

_PLURALS = """
children child; men man; women woman; people person; feet foot; teeth tooth; mice mouse; geese goose; lives life
wives wife; knives knife; leaves leaf; wolves wolf; halves half; shelves shelf; thieves thief; loaves loaf
criteria criterion; bacteria bacterium; phenomena phenomenon; analyses analysis; diagnoses diagnosis; crises crisis
theses thesis; indices index; matrices matrix; vertices vertex; caches cache; movies movie; cookies cookie
calories calorie; zombies zombie; viruses virus; buses bus; gases gas; statuses status; lenses lens; heroes hero
potatoes potato; tomatoes tomato; echoes echo; headaches headache; databases database; cases case; phrases phrase
expenses expense; licenses license; houses house; horses horse; noses nose; diseases disease; purchases purchase
purposes purpose; exercises exercise; responses response; courses course; nurses nurse; leases lease
releases release; increases increase; phases phase; bases base; vases vase; causes cause; clauses clause
"""

_SAME_IN_THE_PLURAL = listed(
    """
    news goods premises manners customs arms means glasses windows contents series species physics mathematics
    politics economics aids diabetes rabies measles gas bus plus minus lens bias alias atlas canvas always perhaps
    whereas texas kansas arkansas paris athens brussels wales mars james thomas charles jesus moses sales savings
    settings damages wages odds tropics spirits kubernetes jenkins redis keras pandas pants jeans shorts scissors
    united states securities ios tos dns tls https css js
    """
)


def base_noun(word: str) -> str:
    """The singular, as far as a rule can tell; the word itself where it seems to be none or means another thing."""
    if len(word) < 4 or word[-1] != "s" or word[-2] in "sui'" or word in _SAME_IN_THE_PLURAL:
        return word
    if word.endswith("ies"):
        return word[:-3] + "y" if len(word) > 5 else word[:-1]
    if word.endswith(("ches", "shes", "xes", "sses", "zzes")):
        return word[:-2]
    return word[:-1]


def _forms(verb: str) -> tuple[str, str, str]:
    """Third person, present participle, past of a regular verb."""
    if verb.endswith("ie"):
        return verb + "s", verb[:-2] + "ying", verb + "d"
    if verb.endswith("ee"):
        return verb + "s", verb + "ing", verb + "d"
    if verb.endswith("e"):
        return verb + "s", verb[:-1] + "ing", verb + "d"
    if verb[-1] == "y" and verb[-2] not in "aeou":
        return verb[:-1] + "ies", verb + "ing", verb[:-1] + "ied"
    third = verb + ("es" if verb.endswith(("s", "x", "z", "ch", "sh", "o")) else "s")
    if verb in _DOUBLED or re.fullmatch(r"[^aeiou]*(?:qu)?[aeiou][^aeiouwxy]", verb):
        verb += verb[-1]
    return third, verb + "ing", verb + "ed"


def _listed() -> tuple[dict[str, str], frozenset[str], frozenset[str]]:
    base: dict[str, str] = {}
    past: set[str] = set()
    going: set[str] = set()
    for verb in VERBS:
        third, present, done = _forms(verb)
        base[third] = base[present] = base[done] = verb
        if verb in _DOUBLED:  # American spelling has one consonant in some of them
            base[f"{verb}ing"] = base[f"{verb}ed"] = verb
            past.add(f"{verb}ed")
            going.add(f"{verb}ing")
        past.add(done)
        going.add(present)
    for entry in re.split(r"[;\n]\s*", _IRREGULAR.strip()):
        verb, *pasts = entry.split()
        base.update(dict.fromkeys(pasts, verb))
        past.update(pasts)
    for verb in _LIKE_THEIR_PAST:
        base.pop(_forms(verb)[2], None)
    for word in _NOT_VERBS:
        base.pop(word, None)
    for entry in re.split(r"[;\n]\s*", _PLURALS.strip()):
        plural, singular = entry.split()
        base.setdefault(plural, singular)
    base |= {word: word for word in VERBS}
    return base, frozenset(past & base.keys() - VERBS), frozenset(going & base.keys() - VERBS)


BASE, PAST, GOING = _listed()
"""Form to base form, of listed verbs and irregular plurals; which forms tell of the past; which end in -ing."""
