"""Which text and tasks can a search learn from in minutes? A toy language, its GLUE and its SQuAD.

They stand in for the paper's Wikipedia and books (Sec. 4.1), GLUE and SQuAD (App. C), in the same file formats. The
folder toy/ holds them. Two seconds:

    python studies/toy.py --out toy --seed 0

A document of this language of 250 words keeps to one topic and one mood. What holds inside a few words (names, order)
suits convolutions; agreement behind a distractor, facts that return, topic and mood suit attention. The tasks need word
classes that the corpus teaches; there, and only there, a hint often stands before a word ("sea boat", "truly neat"), or
so small a model would not find them. Training rows use every other word of a list, dev rows all of them.
"""
import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data import run, write_beside  # noqa: E402

# ---- Words and facts ----
TOPICS = [dict(zip(("hint", "role", "thing", "kind", "verb", "place"), map(str.split, row.split("|")))) for row in (
    "farm|farmer shepherd rider herder milker hunter|goat hen cow pig horse lamb duck mule|beast|feed guard|"
    "barn field stable pasture",
    "sea|sailor captain diver pirate rower pilot|boat ship raft canoe barge kayak tanker yacht|vessel|steer load|"
    "harbor bay beach pier",
    "dinner|cook baker waiter butcher grocer taster|cake pie stew soup tart roast pudding salad|meal|bake taste|"
    "kitchen tavern bakery cellar",
    "folk|singer drummer piper fiddler dancer harper|song hymn ballad carol jingle anthem chant aria|tune|sing play|"
    "hall stage theater chapel")]
WORDS = {key: words for key, *words in map(str.split, (
    "number two three four five seven nine", "colour red blue green white black brown",
    "time dawn noon dusk midnight sunrise sunset", "glad happy proud cheerful hopeful",
    "sad angry tired gloomy worried",
    "good lovely splendid pretty clean neat pleasant perfect superb nice bright solid charming",
    "bad horrid terrible shabby dirty grim wretched useless broken poor faulty nasty dreadful"))}
NAMES = [name.split() for name in (
    "Anna Brown she Mrs", "Peter Stone he Mr", "Clara Hill she Mrs", "Thomas Bell he Mr", "Julia Frost she Mrs",
    "Victor Marsh he Mr", "Martha Wood she Mrs", "Henry Clay he Mr", "Helen Lane she Mrs", "Robert King he Mr")]
FACTS = {  # kind of fact: question, statement, answer
    "where": ("Where does {asked} {verb} the {thing}s?", "{who} {verb}s the {thing}s at the {place}.", "the {place}"),
    "when": ("When does {asked} {verb} the {thing}s?", "{who} {verb}s the {thing}s at {time}.", "{time}"),
    "how many": ("How many {thing}s does {asked} {verb}?", "{who} {verb}s {number} {thing}s.", "{number}"),
    "colour": ("What colour are the {thing}s of {asked}?", "{who} {verb}s the {colour} {thing}s.", "{colour}"),
    "who": ("Who {verb}s the {thing}s?", "{first} {last} {verb}s the {thing}s.", "{first} {last}")}
HALF, REST, ALL = slice(0, None, 2), slice(1, None, 2), slice(None)  # views of a list of words

# ---- Sentences and documents ----
def sentence(words):
    """Example: ['the', 'hen', 'is', 'neat'] -> 'The hen is neat.'"""
    text = " ".join(words)
    return text[0].upper() + text[1:] + "."

class Writer:
    """A writer of toy sentences. view: the part of each list of words that it uses; hints: the share of hints."""

    def __init__(self, seed, view=ALL, hints=0.0):
        self.rng, self.view, self.hints = random.Random(seed), view, hints

    def coin(self, p=0.5):
        """True with probability p."""
        return self.rng.random() < p

    def pick(self, words):
        """A word in view; a list of fewer than four is always in view."""
        return self.rng.choice(words if len(words) < 4 else words[self.view])

    def noun(self, topic, kind, plural, numbered=False, fault=False):
        """E.g. ['many', 'sea', 'boats']; numbered: not 'the'; fault: the determiner shows the other number."""
        determiners = ["these", "many"] if plural != fault else ["this", "every"]
        return [self.rng.choice(determiners if numbered else [*determiners, "the"]),
                *topic["hint"] * self.coin(self.hints), self.pick(topic[kind]) + "s" * plural]

    def distractor(self, topic):
        """[] or e.g. ['near', 'the', 'hens'], to stand between a noun and its verb."""
        words = [self.rng.choice(("near", "behind", "beside")), *self.noun(topic, "thing", self.coin())]
        return words if self.coin(0.3) else []

    def act(self, topic, fault=None, numbered=False):
        """E.g. 'These farmers near the hen feed the goat.'; fault: "verb", "determiner", "order" or None."""
        plural = self.coin()
        words = self.noun(topic, "role", plural, numbered, fault == "determiner") + self.distractor(topic)
        words.append(self.pick(topic["verb"]) + "s" * (plural == (fault == "verb")))
        words += self.noun(topic, "thing", self.coin())
        if fault == "order":
            i = self.rng.randrange(len(words) - 1)
            words[i:i + 2] = words[i + 1], words[i]
        return sentence(words)

    def judge(self, topic, good, subject="thing"):
        """E.g. 'The hens behind this cow are neat and clean.'; good: the mood; subject: a key of TOPICS."""
        plural = self.coin()
        first, second = self.rng.sample(WORDS["good" if good else "bad"][self.view], 2)
        words = [*self.noun(topic, subject, plural), *self.distractor(topic), "are" if plural else "is"]
        if self.coin(self.hints):
            words.append("truly" if good else "sadly")
        return sentence([*words, first, "and", second] if self.coin() else [*words, first])

    def story(self, topic, good):
        """The words of one document: a person, the topic's, the mood's, and how the person is called."""
        first, last, she, title = self.rng.choice(NAMES)
        story = {key: self.pick(words) for key, words in (topic | WORDS).items()}
        role = f"the {story['role']}"
        asked = self.rng.choice((first, role))
        who = self.rng.choice((first, f"{title} {last}", she.title(), role.capitalize()))
        return story | {"first": first, "last": last, "she": she, "asked": asked, "who": who,
                        "adjective": story["good" if good else "bad"], "feeling": story["glad" if good else "sad"]}

    def document(self):
        """A list of sentences on one topic, in one mood, about one person."""
        topic, good = self.rng.choice(TOPICS), self.coin()
        story = self.story(topic, good)
        lines = ["{first} {last} is a {role} at the {place}.".format(**story)]
        for _ in range(self.rng.randint(5, 8)):
            form = self.rng.choices(("act", "judge", "feeling", "kind", "fact"), (4, 5, 4, 2, 7))[0]
            question, statement, answer = fact(self.rng.choice(list(FACTS)), story)
            lines.append({"act": self.act(topic),  # subtle: all are drawn, in this order; the files' bytes rest on it
                          "judge": self.judge(topic, good, self.rng.choice(("thing", "thing", "kind"))),
                          "feeling": self.judge(topic, good)[:-1] + " so {first} is {feeling}.".format(**story),
                          "kind": "The {thing} is a {adjective} {kind}.".format(**story),
                          "fact": statement if self.coin() else f"{question} {sentence([answer])}"}[form])
        return lines

def fact(kind, story):
    """(question, statement, answer) of a kind of fact in a story."""
    return tuple(part.format(**story) for part in FACTS[kind])

# ---- GLUE and SQuAD, in the official columns and JSON ----
MNLI = ("index|promptID|pairID|genre|sentence1_binary_parse|sentence2_binary_parse|sentence1_parse|sentence2_parse|"
        "sentence1|sentence2")
STSB = "index|genre|filename|year|old_index|source1|source2|sentence1|sentence2"
COLUMNS = {  # task: columns of train and dev, of test, of the label
    "CoLA": ("source|label|mark|sentence", "index|sentence", "label"),
    "SST-2": ("sentence|label", "index|sentence", "label"),
    "MRPC": ("Quality|#1 ID|#2 ID|#1 String|#2 String", "index|#1 ID|#2 ID|#1 String|#2 String", "Quality"),
    "STS-B": (STSB + "|score", STSB, "score"),
    "QQP": ("id|qid1|qid2|question1|question2|is_duplicate", "id|question1|question2", "is_duplicate"),
    "MNLI": (MNLI + "|label1|gold_label", MNLI, "gold_label"),  # dev has label1 to label5
    "QNLI": ("index|question|sentence|label", "index|question|sentence", "label"),
    "RTE": ("index|sentence1|sentence2|label", "index|sentence1|sentence2", "label")}
TEXT = "sentence sentence1 sentence2 question question1 question2".split() + ["#1 String", "#2 String"]

def example(task, w):
    """(texts, label): one row of a GLUE task, by the Writer w."""
    topic, other = w.rng.sample(TOPICS, 2)
    good, yes = w.coin(), w.coin(0.65 if task in ("CoLA", "MRPC", "QQP") else 0.5)
    second, label = topic if yes else other, str(int(yes))
    if task == "CoLA":
        return [w.act(topic, None if yes else w.rng.choice(("verb", "determiner", "order")), numbered=True)], label
    if task == "SST-2":
        return [w.judge(topic, good)], str(int(good))
    if task == "MRPC":  # what counts as a paraphrase here: the same topic
        return [w.act(topic), w.act(second)], label
    if task == "QQP":
        return [fact(w.rng.choice(list(FACTS)), w.story(about, good))[0] for about in (topic, second)], label
    if task == "STS-B":  # topic weighs 3, mood 2
        same = w.coin()
        score = 3 * yes + 2 * same + w.rng.choice((-0.25, 0, 0.25))
        return [w.judge(topic, good), w.judge(second, good == same)], f"{min(5, max(0, score)):.3f}"
    if task == "MNLI":  # neutral: another topic; contradiction: the other mood
        label = w.rng.choice(("entailment", "contradiction", "neutral"))
        about, mood = (other, w.coin()) if label == "neutral" else (topic, good == (label == "entailment"))
        return [w.judge(topic, good), w.judge(about, mood)], label
    label = "entailment" if yes else "not_entailment"
    if task == "RTE":  # a hen is a beast, a boat is none
        return [w.judge(topic, good), "The {kind} is {adjective}.".format(**w.story(second, w.coin()))], label
    asked, told = w.rng.sample(("where", "when", "how many", "colour"), 2)  # QNLI: is the question answered?
    question, off_topic = w.story(topic, good), not yes and w.coin()
    answer = w.story(other, good) if off_topic else question
    return [fact(asked, question)[0], fact(asked if yes or off_topic else told, answer)[1]], label

def table(task, split, rows, w, seen):
    """The text of one TSV file; no row's texts are in the set `seen`, to which they are added."""
    train, test, label_column = COLUMNS[task]
    columns = (test if split == "test" else train).split("|")
    if (task, split) == ("MNLI", "dev"):
        columns[-1:-1] = ["label2", "label3", "label4", "label5"]
    lines = [] if task == "CoLA" and split != "test" else ["\t".join(columns)]
    for number in range(rows):
        texts, label = example(task, w)
        while tuple(texts) in seen:
            texts, label = example(task, w)
        seen.add(tuple(texts))
        cells = dict(zip([column for column in columns if column in TEXT], texts)) | {
            label_column: label, "index": number, "id": number, "source": "toy", "mark": "*" if label == "0" else ""}
        lines.append("\t".join(str(cells.get(column, "")) for column in columns))
    return "\n".join(lines) + "\n"

def squad(version, passages, w):
    """The text of one SQuAD file: 3 questions on each passage; in version 2.0 the last has no answer."""
    articles = []
    for number in range(passages):
        topic, good = w.rng.choice(TOPICS), w.coin()
        story, kinds = w.story(topic, good), w.rng.sample(list(FACTS), 5)
        told, untold = kinds[:3], [kind for kind in kinds[3:] if kind != "who"]
        if "who" in told:  # then no other sentence may give the name
            story["who"] = story["she"].title()
        sentences = [fact(kind, story)[1] for kind in told] + [w.judge(topic, good)]
        w.rng.shuffle(sentences)
        context, questions = " ".join(sentences), []
        for kind in told if version == "1.1" else [*told[:2], untold[0]]:
            question, _, answer = fact(kind, story)
            answers = [{"text": answer, "answer_start": context.index(answer)}] if kind in told else []
            flag = {} if version == "1.1" else {"is_impossible": not answers}
            questions.append({"id": f"{number:05d}-{kind}", "question": question, "answers": answers} | flag)
        articles.append({"title": f"Toy_{number}", "paragraphs": [{"context": context, "qas": questions}]})
    return json.dumps({"version": "1.1" if version == "1.1" else "v2.0", "data": articles}) + "\n"

# ---- All files ----
def files(seed=0):
    """Yield (path in the folder, text) of every toy file."""
    for name, count in (("corpus.txt", 3000), ("held-out.txt", 200)):
        w = Writer(f"{seed} {name}", hints=0.7)
        yield name, "\n\n".join("\n".join(w.document()) for _ in range(count)) + "\n"
    for task in COLUMNS:
        seen, ends = set(), {"_matched": ALL, "_mismatched": REST} if task == "MNLI" else {"": ALL}
        name, rows = f"glue/{task}/train.tsv", 1000 if task in ("SST-2", "MRPC") else 1600
        yield name, table(task, "train", rows, Writer(f"{seed} {name}", HALF), seen)
        for split, rows in (("dev", 400), ("test", 100)):
            for end, view in ends.items():  # mismatched: only words that training rows do not use
                name = f"glue/{task}/{split}{end}.tsv"
                yield name, table(task, split, rows, Writer(f"{seed} {name}", view), seen)
    for version in ("1.1", "2.0"):
        for split, count, view in (("train", 600, HALF), ("dev", 100, ALL)):
            name = f"squad/{split}-v{version}.json"
            yield name, squad(version, count, Writer(f"{seed} {name}", view))

def toy(out: str = "toy", seed: int = 0):
    """Which text and tasks can a search learn from in minutes? Write a toy language, GLUE and SQuAD, in two seconds.

    out: the folder
    seed: of all that is random; the same seed gives the same bytes"""
    for name, text in files(seed):
        write_beside(Path(out) / name, text)

if __name__ == "__main__":
    run(__doc__, toy, usual=toy)
