"""The texts of the tests: prompts, sums, passages, and proverbs with an instruction to end them differently."""

from __future__ import annotations

import csv
import json
import random

from textguide.tasks.loaders import local_file

Pair = tuple[str, str]


def prompts(name: str, data: str | None = None) -> list[str]:
    """Prompts by name.

    Args:
        name: a group of DExperts' human evaluation (``neutral``, ``nontoxic``…), ``sums`` (of :data:`SUMS`), or
            ``reviews``, in pairs of a positive and a negative one.
        data: folder of the tasks' data.

    Raises:
        ValueError: the name is unknown, or there is no data folder.
    """
    if name == "sums":
        return [SHOTS + f"Q: What is {a} + {b}?\nA:" for a, b in SUMS]
    if name == "reviews":
        return [f'A review by somebody who {mood} the {thing}: "' for thing in THINGS for mood in ("loved", "hated")]
    groups = json.loads(local_file("prompts/unique_prompts.json", data).read_text(encoding="utf-8"))
    texts = [text for group, members in groups.items() if name in group for text in members.values()]
    if texts:
        return texts
    raise ValueError(f"prompts={name!r} is unknown; use sums, reviews or a part of {', '.join(groups)}")


def _sums(count: int) -> list[tuple[int, int]]:
    chance = random.Random(22)
    return [(chance.randint(11, 99), chance.randint(11, 99)) for _ in range(count)]


SUMS = _sums(200)
"""Two numbers of two digits each."""
SHOTS = "".join(f"Q: What is {a} + {b}?\nA: {a + b}\n\n" for a, b in ((23, 45), (61, 17), (38, 26), (54, 79)))
THINGS = (
    "film", "book", "hotel", "restaurant", "phone", "concert", "museum", "car", "game", "play", "camera", "jacket",
    "course", "album", "bakery", "laptop", "train", "garden", "chair", "podcast", "circus", "bicycle", "zoo", "tea",
)  # fmt: skip


def passages(name: str, data: str | None = None) -> list[Pair]:
    """Contexts and their continuations by name.

    Args:
        name: ``lambada``, the last fourteen words of each passage; ``sst2-positive`` or ``sst2-negative``, whole
            sentences after "Somebody wrote:".
        data: folder of the tasks' data.

    Raises:
        ValueError: the name is unknown, or there is no data folder.
    """
    if name == "lambada":
        lines = local_file("lambada/lambada_test.jsonl", data).read_text(encoding="utf-8").splitlines()
        words = [json.loads(line)["text"].split(" ") for line in lines]
        return [(" ".join(row[:-14]), " " + " ".join(row[-14:])) for row in words if len(row) > 28]
    wanted = {"sst2-positive": "1", "sst2-negative": "0"}.get(name)
    if wanted is None:
        raise ValueError(f"texts={name!r} is unknown; use lambada, sst2-positive or sst2-negative")
    with local_file("sst2/test.tsv", data).open(encoding="utf-8", newline="") as stream:
        rows = [row for row in csv.reader(stream, delimiter="\t", quoting=csv.QUOTE_NONE) if len(row) == 2]
    return [("Somebody wrote:", " " + sentence.strip()) for sentence, label in rows if label.strip() == wanted]


def proverbs() -> list[tuple[str, str, str, str]]:
    """Instruction, question, the ending that the instruction requires, and the usual one.

    They have the format of MemoTrap, and were written for this project.
    """
    items = []
    for start, usual, other in PROVERBS:
        items.append((f'Write a sentence that ends in the word "{other}": ', start, f" {other}", f" {usual}"))
    return items


PROVERBS = (
    ("Better late than", "never", "early"), ("Actions speak louder than", "words", "dogs"),
    ("The early bird catches the", "worm", "train"), ("A picture is worth a thousand", "words", "coins"),
    ("When in Rome, do as the Romans", "do", "say"), ("Honesty is the best", "policy", "friend"),
    ("Practice makes", "perfect", "noise"), ("All that glitters is not", "gold", "cheap"),
    ("Don't count your chickens before they", "hatch", "sing"), ("You can't judge a book by its", "cover", "weight"),
    ("Two wrongs don't make a", "right", "team"), ("The pen is mightier than the", "sword", "phone"),
    ("Don't put all your eggs in one", "basket", "room"), ("Time is", "money", "water"),
    ("Rome wasn't built in a", "day", "forest"), ("Every cloud has a silver", "lining", "spoon"),
    ("An apple a day keeps the doctor", "away", "happy"), ("Curiosity killed the", "cat", "king"),
    ("A watched pot never", "boils", "moves"), ("Beggars can't be", "choosers", "late"),
    ("Birds of a feather flock", "together", "alone"), ("Blood is thicker than", "water", "paint"),
    ("Don't bite the hand that feeds", "you", "ducks"), ("Easy come, easy", "go", "stay"),
    ("Fortune favors the", "bold", "tall"), ("Good things come to those who", "wait", "run"),
    ("Haste makes", "waste", "friends"), ("If it ain't broke, don't fix", "it", "cars"),
    ("Ignorance is", "bliss", "loud"), ("It takes two to", "tango", "lift"),
    ("Keep your friends close and your enemies", "closer", "fed"), ("Knowledge is", "power", "heavy"),
    ("Laughter is the best", "medicine", "sound"), ("Let sleeping dogs", "lie", "dream"),
    ("Like father, like", "son", "mother"), ("Look before you", "leap", "eat"),
    ("Money doesn't grow on", "trees", "hills"), ("Necessity is the mother of", "invention", "twins"),
    ("No news is good", "news", "weather"), ("No pain, no", "gain", "tears"),
    ("Out of sight, out of", "mind", "milk"), ("Patience is a", "virtue", "game"),
    ("Slow and steady wins the", "race", "heart"), ("The apple doesn't fall far from the", "tree", "house"),
    ("The best things in life are", "free", "blue"), ("The grass is always greener on the other", "side", "planet"),
    ("There is no place like", "home", "work"), ("There's no such thing as a free", "lunch", "ride"),
    ("Too many cooks spoil the", "broth", "party"), ("Where there's smoke, there's", "fire", "fish"),
    ("You can lead a horse to water, but you can't make it", "drink", "swim"),
    ("You can't have your cake and eat it", "too", "outside"), ("You can't teach an old dog new", "tricks", "songs"),
    ("A penny saved is a penny", "earned", "lost"), ("Absence makes the heart grow", "fonder", "colder"),
    ("All's well that ends", "well", "soon"), ("Cleanliness is next to", "godliness", "boredom"),
    ("Don't cry over spilled", "milk", "sand"), ("Great minds think", "alike", "twice"),
    ("The bigger they are, the harder they", "fall", "laugh"),
)  # fmt: skip
"""Beginning, usual last word, another last word."""
