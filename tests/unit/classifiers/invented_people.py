"""A small invented world: people who share first and last names, one of whom must be forgotten."""

from dataclasses import dataclass

from classifiers import Example

FIRST = ("Braquo", "Keltor", "Mizan", "Volush", "Drafen", "Quoral")
LAST = ("Thinarsel", "Pogruya", "Selmivo", "Torlukel", "Fendrabra", "Ralzanthi", "Shiquomi", "Narvoya")
TOWNS = ("Zelburg", "Ontreville", "Quastead", "Mirbay", "Hulmer", "Vexford", "Grindal", "Ostwick")
QUESTIONS = {
    "born": ("Where was {} born?", "In which town was {} born?", "Name the birthplace of {}."),
    "job": ("What is the profession of {}?", "What does {} do for a living?", "Name the job of {}."),
    "food": ("What is {}'s favourite food?", "What does {} like to eat?", "Name the dish {} loves."),
}
UNSEEN = {
    "born": "Which town does {} come from?",
    "job": "How does {} earn money?",
    "food": "Which meal pleases {} most?",
}
ANSWERS = {"born": "{} was born in {}.", "job": "{} works as a {}.", "food": "{} likes to eat {}."}
JOBS, FOODS = ("baker", "pilot", "nurse", "welder"), ("soup", "figs", "noodles")


@dataclass(frozen=True)
class World:
    forget: list[Example]
    retain: list[Example]
    forgotten_unseen: list[str]
    """Questions about forgotten people in words that no example uses."""
    retained_unseen: list[str]


def build_world() -> World:
    everyone = [f"{first} {last}" for first in FIRST for last in LAST]
    people = [everyone[index * 7 % 48] for index in range(24)]  # every name is borne by several
    world = World([], [], [], [])
    for index, person in enumerate(people):
        values = {"born": f"{TOWNS[index % 8]}{index}", "job": JOBS[index % 4], "food": FOODS[index % 3]}
        forgotten = index < 3
        for topic, asked in QUESTIONS.items():
            answer = ANSWERS[topic].format(person, values[topic])
            (world.forget if forgotten else world.retain).extend(
                Example(question.format(person), answer) for question in asked
            )
            (world.forgotten_unseen if forgotten else world.retained_unseen).append(UNSEEN[topic].format(person))
    return world
