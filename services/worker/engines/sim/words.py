"""The words that the sim engine writes and that its tokenizer knows as single tokens.

Token ids follow the order of these lists: change them only by appending to EXTRA.
"""

from __future__ import annotations


def _words(text: str) -> list[str]:
    return text.split()


DETERMINERS = _words("""
the a this that each every our their some another one his her its my your any no both such many most
few several whichever
""")

ADJECTIVES = _words("""
small large old new quiet bright early late green blue red white dark warm cold long short deep
simple common good great little big high low open free full public strong whole clear certain recent
special difficult single personal natural fine right early happy serious ready local human social
general best main easy true wide gentle careful patient useful modern ancient distant narrow heavy
light sharp soft slow fast wild calm bold honest curious brief rich poor hidden golden silver wooden
broken
""")

NOUNS = _words("""
time year people way day man thing woman life child world school state family student group country
problem hand part place case week company system program question work government number night point
home water room mother area money story fact month lot right study book eye job word business issue
side kind head house service friend father power hour game line end member law car city community
name president team minute idea body information back parent face level office door health person
art war history party result change morning reason research girl guy moment air teacher force
education river sea mountain road garden window table letter song bird tree forest field village
town market bridge island ship harbor lamp clock mirror library kitchen engine signal network model
token answer capital sentence paper machine
""")

VERBS = _words("""
is has makes takes finds gives tells asks seems feels leaves calls keeps begins shows hears plays
runs moves lives brings holds writes provides sits stands loses meets includes continues learns
changes leads watches follows stops creates speaks reads allows adds spends grows opens walks wins
offers remembers considers appears buys waits serves sends expects builds stays falls cuts reaches
remains suggests raises passes sells requires reports decides pulls carries crosses covers explains
becomes needs wants uses knows sees
""")

PREPOSITIONS = _words("""
of in to for with on at from by about as into like through after over between out against during
without before under around among near behind beyond across along above below toward inside outside
""")

ADVERBS = _words("""
not also very often however too usually really early never always sometimes together likely simply
generally instead actually again rather almost especially ever quickly probably already below
directly therefore else thus easily eventually exactly certainly normally currently extremely
finally constantly properly soon specifically immediately quite slowly quietly gently still again
nearby
""")

CONJUNCTIONS = _words("""
and but or so because while when where although since until unless if than whether
""")

PRONOUNS = _words("""
it they we you he she who what which there someone everyone nobody something everything
""")

EXTRA = _words("""
i me him them us himself itself are was were be been being have had do does did will would can could
should may might must shall am get got go goes going went come came say said says see saw make made
know knew take took think thought look looked want wanted use used find found give gave tell told
ask asked work worked seem seemed feel felt try tried leave left call called need needed become
became put mean keep let begin show hear play run move live believe hold bring happen write provide
sit stand lose pay meet include continue set learn lead understand watch follow stop create speak
read allow add spend grow open walk win offer remember love consider appear buy wait serve die send
expect build stay fall cut reach kill remain suggest raise pass sell require report decide pull how
why all more other only then now here just even first second last well up down off much once two
three four five six seven eight nine ten hundred thousand million percent hello goodbye world please
thank thanks yes sorry user assistant system explain describe list write short example code function
class return value data file test error server client request response string number true false null
poem tale once upon france paris germany london europe america english french language large
""")

SUFFIXES = _words("""
ing ion tion ment ness able less ful est ity ous ive ate ent ant ance ence ary ory ism ist ize ise
ally ely ably pre con com dis inter trans over under sub str thr ght ough tch sch ould
""")
