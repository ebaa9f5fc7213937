"""Which text and tasks can a search learn from in minutes? A toy language, its GLUE and its SQuAD.

They stand in for the paper's Wikipedia and books (Sec. 4.1), GLUE and SQuAD (App. C), in the same file formats. The
folder toy/ holds them. Two seconds:

    python studies/toy.py --out toy --seed 0

A document of this language of 270 words keeps to one topic, mood and person and to a few of its topic's words. What
holds inside a few words (names, order) suits convolutions; agreement behind a distractor, facts that return, topic and
mood suit attention. The tasks need word classes that the corpus teaches; there, and only there, a hint mostly stands
before a word ("sea boat", "truly neat"), so that so small a model finds topics in 1,000 steps. Scores move in small
steps: words are frequent or rare in the corpus and alike in the tasks, and a wrong row has one fault or more. Training
rows use every other word of a list, dev rows all of them.
"""
import json
import random
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from data import run, write_beside  # noqa: E402

# ---- Words and facts ----
TOPICS = [dict(zip(("hint", "role", "thing", "kind", "verb", "place"), map(str.split, row.split("|")))) for row in (
    "farm|farmer shepherd rider hunter|goat hen cow pig horse duck lamb mule|beast|feed guard|barn field",
    "sea|sailor captain diver pirate|boat ship raft canoe barge yacht kayak tanker|vessel|steer load|harbor pier",
    "dinner|cook baker waiter butcher|cake pie stew soup tart roast salad pudding|meal|bake taste|kitchen tavern",
    "folk|singer drummer piper fiddler|song hymn ballad carol jingle anthem chant aria|tune|sing play|hall stage",
    "war|soldier archer knight scout|sword spear axe shield bow dagger helmet lance|weapon|lift sharpen|camp fort",
    "garden|gardener picker digger florist|rose tulip orchid violet lilac thistle clover fern|flower|plant water|"
    "yard park")]
WORDS = {key: words for key, *words in map(str.split, (
    "number two three five nine", "colour red blue green black", "time dawn noon dusk midnight",
    "glad happy proud cheerful hopeful", "sad angry tired gloomy worried",
    "good lovely fine neat bright splendid clean perfect charming",
    "bad horrid dirty grim broken nasty terrible shabby dreadful"))}
NAMES = [*zip("Anna Peter Clara Thomas Julia Victor Helen Robert".split(), ("she", "he") * 4)]
FACTS = {  # kind of fact: question, statement, answer
    "where": ("Where does {asked} {verb} the {thing}s?", "{who} {verb}s the {thing}s at the {place}.", "the {place}"),
    "when": ("When does {asked} {verb} the {thing}s?", "{who} {verb}s the {thing}s at {time}.", "{time}"),
    "how many": ("How many {thing}s does {asked} {verb}?", "{who} {verb}s {number} {thing}s.", "{number}"),
    "colour": ("What colour are the {thing}s of {asked}?", "{who} {verb}s the {colour} {thing}s.", "{colour}"),
    "who": ("Who {verb}s the {thing}s?", "{first} {verb}s the {thing}s.", "{first}")}
FAULTS = ("determiner", "verb", "object", "order", "topic")  # what makes a sentence wrong
ROWS = {"CoLA": (3000, 500, 100), "QNLI": (4000, 1000, 100), "STS-B": (4000, 1000, 100)}  # of train, dev, test
HALF, REST, ALL = slice(0, None, 2), slice(1, None, 2), slice(None)  # views of a list of words

# ---- Sentences and documents ----
def sentence(words):
    """Example: ['the', 'hen', 'is', 'neat'] -> 'The hen is neat.'"""
    text = " ".join(words)
    return text[0].upper() + text[1:] + "."

class Writer:
    """A writer of toy sentences. view: the part of each list of words that it uses; hints: the share of hints; with
    hints, so in the corpus, the i-th word of a list weighs 1/i."""
    def __init__(self, seed, view=ALL, hints=0.0):
        self.rng, self.view, self.hints = random.Random(seed), view, hints

    def coin(self, p=0.5):
        """True with probability p."""
        return self.rng.random() < p

    def pick(self, words):
        """A word in view; a list of fewer than four is always in view."""
        words = words if len(words) < 4 else words[self.view]
        return self.rng.choices(words, [1 / i if self.hints else 1 for i in range(1, len(words) + 1)])[0]

    def faults(self, kinds, more):
        """One or more of the kinds: one at random, each other with probability `more`."""
        return {self.rng.choice(kinds)} | {kind for kind in kinds if self.coin(more)}

    def noun(self, topic, kind, plural, numbered=False, fault=False):
        """E.g. ['many', 'sea', 'boats']; numbered: not 'the'; fault: the determiner shows the other number."""
        determiners = ["these", "many"] if plural != fault else ["this", "every"]
        return [self.rng.choice(determiners if numbered else [*determiners, "the"]),
                *topic["hint"] * self.coin(self.hints), self.pick(topic[kind]) + "s" * plural]

    def distractor(self, topic):
        """[] or e.g. ['near', 'the', 'hens'], to stand between a noun and its verb."""
        return [self.rng.choice(("near", "behind")), *self.noun(topic, "thing", self.coin())] * self.coin(0.3)

    def act(self, topic, faults=(), other=None):
        """E.g. 'These farmers near the hen feed the goat.'; faults: some of FAULTS; "topic" is of the topic `other`."""
        plural = self.coin()
        words = self.noun(topic, "role", plural, True, "determiner" in faults) + self.distractor(topic)
        words.append(self.pick(topic["verb"]) + "s" * (plural == ("verb" in faults)))
        wrong = "object" in faults
        words += self.noun(other if "topic" in faults else topic, "thing", self.coin(), wrong, wrong)
        if "order" in faults:
            i = self.rng.randrange(len(words) - 1)
            words[i:i + 2] = words[i + 1], words[i]
        return sentence(words)

    def judge(self, topic, good, subject="thing", plural=None):
        """E.g. 'The hens behind this cow are neat and clean.'; good: the mood; subject: a key of TOPICS."""
        plural, moods = self.coin() if plural is None else plural, WORDS["good" if good else "bad"]
        first = self.pick(moods)
        second = self.pick([word for word in moods[self.view] if word != first][:3])  # subtle: three are all in view
        words = [*self.noun(topic, subject, plural), *self.distractor(topic), "are" if plural else "is"]
        words += ["truly" if good else "sadly"] * self.coin(self.hints)
        return sentence([*words, first] + ["and", second] * self.coin(0.3))

    def story(self, topic, good, name=None):
        """The words of one document: a person, the topic's, the mood's, and how the person is called."""
        first, she = name or self.rng.choice(NAMES)
        story = {key: self.pick(words) for key, words in (topic | WORDS).items()}
        return story | {"first": first, "asked": self.rng.choice((first, f"the {story['role']}")),
                        "who": self.rng.choice((first, she.title(), f"The {story['role']}")), "she": she,
                        "adjective": story["good" if good else "bad"], "feeling": story["glad" if good else "sad"]}

    def document(self):
        """A list of sentences on one topic, in one mood, about one person; its few words return."""
        topic, good = self.rng.choice(TOPICS), self.coin()
        topic = topic | {key: [self.pick(topic[key]) for _ in range(count)]
                         for key, count in (("role", 2), ("thing", 3), ("verb", 1), ("place", 1))}
        story, lines = self.story(topic, good), []
        for _ in range(self.rng.randint(6, 9)):
            form = self.rng.choices(("act", "judge", "feeling", "kind", "fact"), (4, 5, 2, 1, 6))[0]
            question, statement, answer = fact(self.rng.choice(list(FACTS)), story)
            mood = ("truly " if good else "sadly ") * self.coin(self.hints)
            lines.append({"act": self.act(topic),  # subtle: all are drawn, in this order; the files' bytes rest on it
                          "judge": self.judge(topic, good, self.rng.choice(("thing", "thing", "kind"))),
                          "feeling": "The {role} is {mood}{feeling}.".format(mood=mood, **story),
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
    good, yes = w.coin(), w.coin(0.65 if task in ("MRPC", "QQP") else 0.5)
    second, label = topic if yes else other, str(int(yes))
    if task == "CoLA":
        return [w.act(topic, () if yes else w.faults(FAULTS, 0.35), other)], label
    if task == "SST-2":
        return [w.judge(topic, good)], str(int(good))
    if task == "MRPC":  # what counts as a paraphrase here: the same topic
        return [w.act(topic), w.act(second)], label
    if task == "QQP":
        return [fact(w.rng.choice(list(FACTS)), w.story(about, good))[0] for about in (topic, second)], label
    if task == "STS-B":  # the same topic weighs 2, mood 1.5, number 1
        mood, number, plural = w.coin(), w.coin(), w.coin()
        score = 2 * yes + 1.5 * mood + number + w.rng.uniform(0, 0.5)
        return [w.judge(topic, good, plural=plural),
                w.judge(second, good == mood, plural=plural == number)], f"{score:.3f}"
    if task == "MNLI":  # neutral: another topic; contradiction: the other mood
        label = w.rng.choice(("entailment", "contradiction", "neutral"))
        about, mood = (other, w.coin()) if label == "neutral" else (topic, good == (label == "entailment"))
        return [w.judge(topic, good), w.judge(about, mood)], label
    label = "entailment" if yes else "not_entailment"
    if task == "RTE":  # a hen is a beast, a boat is none
        return [w.judge(topic, good), "The {kind} is {adjective}.".format(**w.story(second, w.coin()))], label
    # QNLI: does the sentence answer the question, about the same things and the same person?
    faults = () if yes else w.faults(("fact", "thing", "person"), 0.25)
    (asked, told), names = w.rng.sample(("where", "when", "how many", "colour"), 2), w.rng.sample(NAMES, 2)
    question, answer = w.story(topic, good, names[0]), w.story(other, good, names[1])
    answer = answer if "thing" in faults else question
    if "person" in faults or yes and w.coin():  # else two names would mean "no"
        question = question | {"asked": names[0][0]}
        answer = answer | {"who": names["person" in faults][0]}
    return [fact(asked, question)[0], fact(told if "fact" in faults else asked, answer)[1]], label

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
    for name, count in (("corpus.txt", 3500), ("held-out.txt", 150)):
        w = Writer(f"{seed} {name}", hints=0.9)
        yield name, "\n\n".join("\n".join(w.document()) for _ in range(count)) + "\n"
    for task in COLUMNS:
        seen, ends = set(), {"_matched": ALL, "_mismatched": REST} if task == "MNLI" else {"": ALL}
        for split, rows in zip(("train", "dev", "test"), ROWS.get(task, (1200, 300, 100))):
            # mismatched: only words that training rows do not use
            for end, view in ({"": HALF} if split == "train" else ends).items():
                name = f"glue/{task}/{split}{end}.tsv"
                yield name, table(task, split, rows, Writer(f"{seed} {name}", view), seen)
    for version in ("1.1", "2.0"):
        for split, count, view in (("train", 200, HALF), ("dev", 100, ALL)):
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
