"""The words: themes whose people, verbs, things, places and clauses fit each other, and words that fit everywhere.

The themes and lists of the training vocabulary share no verb, noun, name, adjective or adverb with those of the test vocabulary.
"""

from dataclasses import dataclass

from lab.errors import LabError
from lab.world.rewriting.english import Verb, regular_past


@dataclass(frozen=True)
class Theme:
    """people: nouns. adjectives: of every thing here. verbs: each with the things that it fits; () for people as things.

    clauses: (in the present, in the past), with a subject of their own.
    """

    people: tuple[str, ...]
    adjectives: tuple[str, ...]
    places: tuple[str, ...]
    clauses: tuple[tuple[str, str], ...]
    verbs: tuple[tuple[Verb, tuple[str, ...]], ...]


@dataclass(frozen=True)
class Vocabulary:
    """relatives: people who are always somebody's. people, person_adjectives, manners, frequencies, times: fit every theme."""

    names: tuple[str, ...]
    people: tuple[str, ...]
    relatives: tuple[str, ...]
    person_adjectives: tuple[str, ...]
    manners: tuple[str, ...]
    frequencies: tuple[str, ...]
    times: tuple[str, ...]
    themes: tuple[Theme, ...]


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(";"))


def _theme(people: str, adjectives: str, places: str, clauses: str, verbs: str) -> Theme:
    """clauses: "when the bell rings/rang; ...". verbs: a line each, "write wrote written: letter; story", "bake: cake" or
    "greet: @" (people); "-" before the colon where no manner fits. Raises LabError for a line that is not so.
    """
    read = []
    for line in verbs.strip().split("\n"):
        forms, _, things = line.partition(":")
        base, *irregular = forms.removesuffix("-").split()
        if not things.strip() or len(irregular) not in (0, 2):
            raise LabError(f"The line {line.strip()!r} is not of the form 'verb past participle: thing; thing'.")
        past, participle = irregular or [regular_past(base)] * 2
        verb = Verb(base, past, participle, manner=not forms.endswith("-"))
        read.append((verb, () if things.strip() == "@" else _listed(things)))
    told = tuple(_tenses(clause) for clause in _listed(clauses))
    return Theme(tuple(people.split()), tuple(adjectives.split()), _listed(places), told, tuple(read))


def _tenses(clause: str) -> tuple[str, str]:
    """when the bell rings/rang -> (when the bell rings, when the bell rang)"""
    words = [word.split("/") for word in clause.split()]
    return " ".join(word[0] for word in words), " ".join(word[-1] for word in words)


_FOOD = _theme(
    "cook waiter baker guest", "fresh delicious", "in the kitchen; at the restaurant; in the dining room",
    "when the bakery opens/opened; because the soldiers are/were hungry; "
    "because the shops are/were closed; when supper begins/began",
    """bake: cake; pie; pizza; loaf
    cook: meal; rice; potato; egg
    eat ate eaten: sandwich; orange; cake; potato; pizza
    drink drank drunk: milk; juice; tea
    serve: soup; meal; tea; pie
    slice: tomato; loaf; cake
    peel: orange; potato; banana
    fry: egg; potato; tomato
    stir: soup; rice; tea
    bring brought brought: meal; sandwich; juice; pizza
    order-: pizza; salad; sandwich""",
)  # fmt: skip
_SCHOOL = _theme(
    "teacher student principal librarian", "long short difficult simple", "at school; in the classroom; in the library",
    "when the lesson starts/started; because the exam is/was near; when the term ends/ended; because the subject is/was new",
    """explain: rule; question; text
    write wrote written: sentence; story; essay; text
    choose chose chosen: question; story; poem
    copy: sentence; word; list
    answer: question
    study: text; chapter; rule
    learn: poem; rule; word
    forget forgot forgotten-: word; rule; list
    understand understood understood-: sentence; rule; question; story
    correct: essay; sentence; list
    rewrite rewrote rewritten: essay; sentence; text""",
)  # fmt: skip
_HOME = _theme(
    "housekeeper servant", "old white", "at home; upstairs; in the house",
    "because the visitors are/were late; when the sun shines/shone; "
    "because the maid is/was ill; when the dishwasher stops/stopped",
    """clean: floor; room; table; window
    sweep swept swept: floor; room; hall
    wash: shirt; plate; dress; cup; window
    wipe: table; plate; window
    mop: floor; room
    dry: cup; plate; shirt
    iron: shirt; dress; tablecloth
    fold: shirt; tablecloth; napkin
    hang hung hung: coat; shirt; dress
    sew sewed sewn: dress; shirt; pillow
    break broke broken-: cup; plate; window; bottle
    close: window; drawer
    open: window; drawer""",
)  # fmt: skip
_FARM = _theme(
    "farmer gardener", "big small", "on the farm; behind the barn; in the garden",
    "when spring comes/came; because the soil is/was wet; because the harvest is/was good; when the rain stops/stopped",
    """grow grew grown-: tree; rose; melon
    dig dug dug: hole; ditch
    plant: tree; rose; bush
    water: tree; rose; bush
    pick: cherry; melon; rose
    feed fed fed: horse; chicken; pig; goat
    drive drove driven: tractor; wagon
    ride rode ridden: horse; donkey
    milk: cow; goat
    trim: tree; bush
    bend bent bent: branch
    load: wagon
    see saw seen-: horse; cow; pig
    sell sold sold: horse; cow; melon; chicken""",
)  # fmt: skip
_WORKSHOP = _theme(
    "carpenter builder painter", "wooden heavy", "in the workshop; in the garage; behind the cottage",
    "because the storm is/was over; when the paint dries/dried; "
    "because the workers are/were away; when the boss leaves/left",
    """build built built: wall; fence; shelf; house; gate
    rebuild rebuilt rebuilt: wall; fence; house; gate
    make made made: shelf; chair; ladder; box
    repair: roof; chair; gate; fence; door
    fix: chair; door; shelf; ladder
    paint: wall; fence; door; gate; house
    measure: wall; door; roof; shelf
    move: chair; box; ladder; shelf
    lift: box; ladder; chair
    lower: box; ladder
    nail: box; shelf""",
)  # fmt: skip
_ROAD = _theme(
    "driver mechanic passenger", "fast new", "at the station; near the airport; in the city",
    "because the road is/was empty; when the signal changes/changed; "
    "because the street is/was narrow; when the snow melts/melted",
    """drive drove driven: bus; taxi; car; van
    ride rode ridden: bicycle; motorcycle; scooter
    take took taken-: bus; taxi; tram
    park: car; van; motorcycle; bus
    push: car; bicycle; scooter
    stop: bus; taxi; car; tram
    follow: bus; taxi; van; tram
    overtake overtook overtaken: bus; tram; bicycle
    leave left left-: car; bicycle; scooter
    catch caught caught-: bus; tram
    start: car; motorcycle; van""",
)  # fmt: skip
_SPORT = _theme(
    "player coach runner athlete", "", "in the stadium; on the field; at the gym",
    "when the whistle blows/blew; because the fans are/were loud; because the grass is/was dry; when the break is/was over",
    """throw threw thrown: ball; stone; dart
    kick: ball; stone
    catch caught caught: ball; dart
    win won won-: race; game; medal; prize
    lose lost lost-: race; game; ball
    lead led led-: team; club
    train: team; club
    watch: game; race; match
    drop-: ball; stone; medal
    plan: game; race; match
    film: game; race; match""",
)  # fmt: skip
_ART = _theme(
    "artist singer musician pianist", "beautiful famous", "on the stage; in the theater; in the studio",
    "when the show begins/began; because the hall is/was full; when the orchestra plays/played; because the crowd is/was noisy",
    """sing sang sung: song; melody; hymn
    draw drew drawn: picture; portrait; flower
    play: piano; guitar; melody; song
    ring rang rung: bell
    record: song; melody; concert
    frame: picture; portrait
    hear heard heard-: song; melody; bell; concert
    admire: picture; portrait; flower
    practice: song; melody
    show showed shown: picture; portrait; film""",
)  # fmt: skip
_MARKET = _theme(
    "customer merchant shopkeeper", "cheap expensive", "at the market; in the store; in the village",
    "because the prices are/were low; when the market opens/opened; "
    "because the goods are/were rare; when business goes/went well",
    """buy bought bought: hat; bag; jacket; lamp; scarf
    sell sold sold: hat; bag; jacket; lamp; scarf
    wear wore worn-: hat; jacket; scarf
    carry: bag; lamp; basket
    borrow: bag; jacket; lamp
    pack: bag; basket; jacket
    polish: bracelet; lamp
    hug: @
    pay paid paid: @
    greet: @""",
)  # fmt: skip
_PEOPLE = _theme(
    "nurse dancer clerk writer", "", "in the park; at the party; in the hotel; on the beach",
    "when the music starts/started; because the news is/was good; when the train arrives/arrived; because the air is/was cold",
    """meet met met-: @
    help: @
    invite: @
    call: @
    thank: @
    visit: @
    kiss-: @
    wake woke woken: @
    forgive forgave forgiven: @
    teach taught taught: @
    see saw seen-: @
    hear heard heard-: @
    leave left left-: @
    trust-: @
    tease: @
    push: @""",
)  # fmt: skip
_BANK = _theme(
    "banker trader tailor", "", "at the bank; in the capital",
    "because the rent is/was high; when the banks close/closed; because the coins are/were gone",
    """spend spent spent: money
    withdraw withdrew withdrawn: money
    count: money
    pay paid paid: bill; fine
    save: money; coin
    collect: money; coin; bill""",
)  # fmt: skip

_OFFICE = _theme(
    "secretary manager lawyer assistant", "urgent confidential", "in the office; at the company; at headquarters",
    "when the phone vibrates/vibrated; because the deadline is/was strict; because the client is/was impatient; "
    "when the director resigns/resigned",
    """send sent sent: letter; email; contract; report
    keep kept kept-: letter; contract; document
    find found found-: letter; document; contract
    sign: contract; letter; document
    type: letter; report; email
    print: email; report; document
    deliver: letter; package; document
    prepare: report; contract; document
    scan: contract; document; letter
    hide hid hidden: letter; document; package
    bind bound bound: report; document""",
)  # fmt: skip
_CRAFTS = _theme(
    "weaver grandmother seamstress", "colorful pretty", "on the balcony; in the attic; near the fireplace",
    "because the holidays approach/approached; when darkness falls/fell; "
    "because the cabin is/was chilly; when the kettle whistles/whistled",
    """weave wove woven: carpet; blanket; shawl
    stitch: sweater; blanket; sock
    wrap: gift; candle; sweater
    tie: ribbon; necktie
    tear tore torn-: ribbon; curtain; sweater
    shake shook shaken: blanket; carpet; curtain
    spin spun spun: wool
    light lit lit: candle; lantern
    undo undid undone: ribbon; necktie
    mend: sock; sweater; curtain
    decorate: candle; gift; lantern""",
)  # fmt: skip
_JOURNEY = _theme(
    "pilot sailor explorer fisherman", "enormous mysterious", "near the coast; in the tropics; in the far north",
    "when the wind turns/turned; because the sky is/was clear; "
    "because the waves are/were gentle; when the fog disappears/disappeared",
    """fly flew flown: plane; helicopter; kite; balloon
    sink sank sunk: ship; raft
    steer: ship; raft; balloon; plane
    seek sought sought: treasure; cave; island
    explore: cave; island; temple
    discover-: cave; island; temple; treasure
    cross: river; valley
    climb: mountain; volcano
    photograph: mountain; island; temple; volcano
    swing swung swung: lantern; rope
    shoot shot shot-: bear; tiger""",
)  # fmt: skip
_MUSEUM = _theme(
    "guard thief tourist detective", "priceless ancient", "at the museum; in the palace; in the gallery",
    "because the alarm is/was silent; when the lights flicker/flickered; because the corridor is/was dark; "
    "when the police investigate/investigated",
    """steal stole stolen: diamond; statue; sculpture; crown
    hide hid hidden: diamond; crown; statue
    find found found-: diamond; crown; sculpture
    strike struck struck: statue; gong
    protect: diamond; statue; sculpture; crown
    touch: statue; sculpture; crown
    restore: statue; sculpture
    inspect: diamond; statue; sculpture
    hold held held: diamond; crown; sculpture
    destroy: statue; sculpture""",
)  # fmt: skip
_RESCUE = _theme(
    "doctor firefighter officer witness", "", "at the hospital; in the ambulance; on the highway",
    "when the siren wails/wailed; because the situation is/was dangerous; because the tunnel is/was blocked; "
    "when the emergency occurs/occurred",
    """fight fought fought: fire; disease; blaze
    examine: @
    rescue: @
    arrest: @
    comfort: @
    warn: @
    find found found-: @
    hide hid hidden: @
    chase: @""",
)  # fmt: skip
_MACHINES = _theme(
    "engineer technician electrician inventor", "modern useful unusual", "in the laboratory; at the factory; in the basement",
    "when the engine fails/failed; because the battery is/was weak; "
    "because the manual is/was unclear; when the voltage falls/fell",
    """wind wound wound: clock; toy
    install: machine; heater; computer; clock
    assemble: machine; computer; toy
    adjust: clock; heater; machine
    connect: computer; heater; cable
    lay laid laid: cable
    operate: heater; computer; machine
    test: machine; computer; cable
    design: machine; clock; toy""",
)  # fmt: skip
_CAFE = _theme(
    "barista butcher chef", "organic spicy", "in the cafe; at the barbecue; on the terrace",
    "because the diners are/were starving; when the timer beeps/beeped; "
    "because the recipe is/was complicated; when the stove smokes/smoked",
    """grind ground ground: coffee; corn; pepper
    roast: turkey; mushroom; chestnut
    chop: mushroom; cucumber; pepper
    taste: turkey; cucumber; curry
    boil: corn; mushroom; chestnut
    season: turkey; cucumber; curry
    reheat: turkey; curry""",
)  # fmt: skip
_SPEECHES = _theme(
    "president journalist professor author", "brief interesting", "at the university; in the auditorium; at the conference",
    "because the audience is/was curious; when the semester finishes/finished; because the topic is/was popular; "
    "when the reporters applaud/applauded",
    """give gave given: speech; lecture
    overhear overheard overheard-: conversation; interview; speech
    interrupt: speech; lecture; conversation
    publish: novel; interview; article
    translate: novel; speech; article
    summarize: lecture; article; speech
    edit: novel; article; interview
    review: novel; article; lecture""",
)  # fmt: skip

TRAINING = Vocabulary(
    names=tuple(
        "Anna Ben Clara David Emma Frank Grace Henry Ida Jack Kate Leo Maria Nina Oscar Paul Rosa Sam Tina Victor Alice Bob Lucy "
        "Peter Susan Mark Sarah Michael Laura Simon".split()
    ),
    people=tuple("boy girl child woman neighbor".split()),
    relatives=tuple("brother sister uncle niece friend".split()),
    person_adjectives=tuple("tall kind clever tired friendly angry happy intelligent".split()),
    manners=tuple("carefully quickly slowly quietly happily".split()),
    frequencies=("always", "usually"),
    times=("every day", "every morning", "on Mondays", "after lunch", "in the afternoon", "in the summer"),
    themes=(_FOOD, _SCHOOL, _HOME, _FARM, _WORKSHOP, _ROAD, _SPORT, _ART, _MARKET, _PEOPLE, _BANK),
)
TEST = Vocabulary(
    names=tuple(
        "Olivia Daniel Julia Thomas Sophie George Helen Robert Linda William Nancy Edward Karen Brian Diana Kevin".split()
    ),
    people=tuple("man teenager stranger".split()),
    relatives=tuple("cousin aunt nephew daughter roommate".split()),
    person_adjectives=tuple("lonely brave polite busy nervous honest cheerful ambitious".split()),
    manners=tuple("calmly patiently proudly eagerly skillfully".split()),
    frequencies=("often", "regularly"),
    times=("every week", "every evening", "on Fridays", "before dinner", "at night", "in the winter"),
    themes=(_OFFICE, _CRAFTS, _JOURNEY, _MUSEUM, _RESCUE, _MACHINES, _CAFE, _SPEECHES),
)
# Things that are not called anybody's.
UNOWNED = (
    "bus taxi tram race game match cherry rose tree bush hole ditch cave island temple mountain volcano river valley bear tiger "
    "fire blaze disease rule question word chapter statue gong"
).split()
VOCABULARIES = {"train": TRAINING, "calibration": TRAINING, "test": TEST}
