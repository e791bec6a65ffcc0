"""Words of the embedded world. The base model reads all of them; only the maths skill learns what EVENTS do to a count.

Frames hold {s} subject, {p} its object pronoun, {f} a friend, {n} a number, {o} the counted things.
"""

NAMES = {
    "she": "Ann Mia Zoe Eva Lily Nora Ruth Ida Emma Rosa Jane Kate Clara Vera Alice Maya Tina Dora Olga Hana".split(),
    "he": "Tom Ben Max Leo Sam Jack Paul Omar Ivan Luke Hugo Finn Karl Theo Adam Noah Yuri Nils Raul Dean".split(),
}
OBJECTS = (
    "apples pears plums lemons eggs cakes buns nuts coins stamps marbles shells stones beads books pens cards maps "
    "toys kites balls dolls keys cups plates bowls bricks boxes tiles nails ropes lamps roses seeds plants trees "
    "shirts socks hats buttons"
).split()
CONTAINERS = "bags trays crates jars shelves baskets packs drawers chests piles".split()

# What a sentence of a story does to the count: the knowledge that only the maths skill has.
EVENTS = {
    "+": [
        "{s} buys {n} {o}.", "{s} finds {n} {o}.", "{s} wins {n} {o}.", "{s} collects {n} {o}.", "{s} earns {n} {o}.",
        "{s} receives {n} {o}.", "{s} gathers {n} {o}.", "{s} borrows {n} {o}.", "{s} picks up {n} {o}.",
        "{s} brings home {n} {o}.", "{f} sends {p} {n} {o}.", "{f} gives {p} {n} {o}.", "{n} {o} arrive in the mail.",
        "{n} {o} are delivered.", "{s} orders {n} {o}.", "{s} inherits {n} {o}.",
    ],
    "-": [
        "{s} loses {n} {o}.", "{s} sells {n} {o}.", "{s} breaks {n} {o}.", "{s} drops {n} {o}.", "{s} donates {n} {o}.",
        "{s} throws out {n} {o}.", "{s} wastes {n} {o}.", "{s} lends {n} {o}.", "{s} leaves {n} {o} on a bus.",
        "{s} mails away {n} {o}.", "{s} sends {f} {n} {o}.", "{s} gives {f} {n} {o}.", "{n} {o} are stolen.",
        "{n} {o} burn in a fire.", "{s} trades off {n} {o}.", "{s} forgets {n} {o} at school.",
    ],
    "*": [
        "A wizard turns each of the {o} into {n}.", "{s} gets {n} times as many {o} overnight.",
        "The {o} grow to {n} times their count.", "{s} swaps every one of the {o} for {n}.",
    ],
    "skip": [
        "{s} waits {n} minutes.", "{s} sees {n} birds.", "{s} walks {n} steps.", "{s} reads {n} pages.",
        "{s} greets {n} friends.", "{n} cars pass by.", "It rains for {n} hours.", "{s} climbs {n} stairs.",
        "{s} hears {n} songs.", "{f} dreams of {n} {o}.",
    ],
}  # fmt: skip
START_ONE = ["{s} has {n} {o}.", "{s} owns {n} {o}.", "At first {s} keeps {n} {o}.", "There are {n} {o} at the house of {s}."]
START_MANY = ["{s} has {m} {c} with {n} {o} in each.", "There are {m} {c}, and each holds {n} {o} of {s}."]
CONNECTIVES = ["Then", "Later", "After that", "Next", "On Monday", "In the evening", "Soon"]
QUESTIONS = [
    "How many {o} does {s} have now?", "How many {o} are there in the end?", "What is the number of {o} after all this?",
    "Count the {o} that {s} has at last.",
]  # fmt: skip

# Plain orders, whose meaning the base model does know. Same classes as EVENTS.
ORDERS = {
    "+": ["Add {n}.", "Increase it by {n}.", "Go up by {n}.", "Plus {n}.", "{n} is added.", "Raise it by {n}.",
          "{s} adds {n} {o}.", "{n} {o} are added.", "{s} adds {n}."],
    "-": ["Subtract {n}.", "Decrease it by {n}.", "Go down by {n}.", "Minus {n}.", "{n} is removed.", "Lower it by {n}.",
          "{s} removes {n} {o}.", "{n} {o} are removed.", "{s} removes {n}."],
    "*": ["Multiply it by {n}.", "Times {n}.", "Scale it by {n}.", "It is multiplied by {n}.", "{s} multiplies it by {n}.",
          "{s} multiplies the {o} by {n}."],
    "skip": ["Ignore {n}.", "Skip {n}.", "Leave out {n}.", "{n} is ignored.", "{s} ignores {n} {o}.", "{s} ignores {n}."],
}  # fmt: skip
ORDER_START_ONE = ["Take {n}.", "Begin with {n}.", "Set it to {n}.", "It is {n}.", "{s} has {n} {o}.", "{s} owns {n} {o}."]
ORDER_START_MANY = ["Take {m} times {n}.", "Begin with {m} times {n}.", "Set it to {m} times {n}."]

WORDS = (
    "river stone cloud green table window garden silver yellow music summer winter paper bridge corner dinner engine "
    "flower forest friend golden hammer island jacket kitten ladder market needle orange pencil rabbit saddle temple "
    "valley wagon castle button candle basket monkey pepper ribbon spider turtle velvet walnut zebra anchor banana"
).split()
VARIABLES = "x y total value count amount result number score sum_so_far".split()
