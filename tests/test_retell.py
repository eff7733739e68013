"""What a person said of themselves, told of them: word for word, or not at all."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from localmem import retell

PERSON = {"i": "ada", "we": "ada", "me": "ada", "us": "ada", "my": "ada's", "our": "ada's", "mine": "ada's"}
PERSON |= {"ours": "ada's", "myself": "themselves", "ourselves": "themselves"}
CONTRACTED = {"'m": "is", "'ve": "has", "'ll": "will", "'re": "is", "'d": "would"}
IRREGULAR = {"am": "is", "are": "is", "were": "was", "have": "has", "do": "does", "don't": "doesn't", "dont": "doesn't"}
IRREGULAR |= {"haven't": "hasn't", "havent": "hasn't", "aren't": "isn't", "weren't": "wasn't", "go": "goes"}


def likeliest(clause: str, subject: str = "User", before: str = "") -> str:
    """The restated clause in its first wording."""
    return retell.likeliest(retell.restate(clause, subject, before=before))


def bare_words(text: str) -> list[str]:
    """The words of a text without the marks around them; case aside."""
    straight = text.replace("’", "'")
    return [word for token in straight.split() if (word := token.strip(',.;:!?()"“”').lower().casefold())]


def turned(word: str) -> list[tuple[str, ...]]:
    """What may stand for one bare word when it is told of Ada: itself, a person, or a verb of the third person."""
    forms = {word, word + "s", word + "es", word[:-1] + "ies", IRREGULAR.get(word, word), PERSON.get(word, word)}
    options: list[tuple[str, ...]] = [(form,) for form in forms]
    short = {"im": "i'm", "ive": "i've"}.get(word, word)
    head, apostrophe, tail = short.partition("'")
    if head in ("i", "we") and apostrophe + tail in CONTRACTED:
        options.append(("ada", CONTRACTED["'" + tail]))
    return options


def forms_of(text: str) -> set[str]:
    """Every word that may stand for one of the text, and whom it is told of."""
    return {"ada", "ada's"} | {part for word in bare_words(text) for form in turned(word) for part in form}


def is_word_for_word(said: str, told: str) -> bool:
    """Whether each word said stands in what is told, in its order, with nothing beside but "Ada" or "Ada is" before."""
    got = bare_words(told)
    ends = {0} | {n for n in (1, 2) if tuple(got[:n]) in (("ada",), ("ada", "is"))}
    for word in bare_words(said):
        ends = {end + len(form) for end in ends for form in turned(word) if tuple(got[end : end + len(form)]) == form}
    return len(got) in ends


# --- restate ---


@pytest.mark.parametrize(
    ("clause", "wording"),
    [
        ("I teach maths, my wife's a nurse", "User teaches maths, User's wife's a nurse"),
        ("I'm from Lviv and I've got two cats", "User is from Lviv and User has got two cats"),
        ("we don't eat fish", "User doesn't eat fish"),
        ("I also really hate coriander", "User also really hates coriander"),
        ("she carried me and my bike", ""),
        ("it depends", ""),
        ("moved to Utrecht in March", "User moved to Utrecht in March"),
        ("never use emoji with me", "User wants the assistant to never use emoji with User"),
        ("don't remind me of it anymore", "User wants the assistant not to remind User of it anymore"),
        ("you can stop suggesting tofu", "User wants the assistant to stop suggesting tofu"),
        ("write me a poem", "User says write User a poem"),
        ("ich wohne seit März in Linz", "User: ich wohne seit März in Linz"),
    ],
)
def test_restate(clause: str, wording: str) -> None:
    assert likeliest(clause) == wording


def test_she_is_the_relative_named_before() -> None:
    assert likeliest("she works nights", before="my sister Aino is a nurse. ") == "User's sister Aino works nights"


def test_a_named_person_is_the_subject() -> None:
    assert likeliest("I sold my boat", "Piet") == "Piet sold Piet's boat"


@pytest.mark.parametrize(
    ("clause", "choices"),
    [
        ("I put it away", ("put", "puts")),
        ("I'd moved", ("would", "had")),
        ("we'd moved", ("would", "had")),
        ("quit smoking at forty", ("quit", "quits")),
    ],
)
def test_where_grammar_allows_two_there_is_a_choice(clause: str, choices: tuple[str, ...]) -> None:
    assert [place for place in retell.restate(clause) if len(place) > 1] == [choices]


@pytest.mark.parametrize("clause", ["", "   ", "?!…", "😀😀", "\n\n", "a", "((((", "I", "my", "'", "’"])
def test_odd_clauses_give_at_most_their_own_words(clause: str) -> None:
    assert set(bare_words(likeliest(clause, "Ada"))) <= {*bare_words(clause), "ada", "ada's"}


@given(st.text(max_size=60), st.text(max_size=60))
def test_any_clause_has_a_lattice_of_places_with_something_to_choose(clause: str, before: str) -> None:
    assert all(place for place in retell.restate(clause, before=before))


# --- told: what begins with the person ---


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("I am a nurse", "User is a nurse"),
        ("I was born in Oslo", "User was born in Oslo"),
        ("I have two sons", "User has two sons"),
        ("I do yoga", "User does yoga"),
        ("I go to the gym", "User goes to the gym"),
        ("I watch birds", "User watches birds"),
        ("I miss Lisbon", "User misses Lisbon"),
        ("I fix bikes", "User fixes bikes"),
        ("I carry an EpiPen", "User carries an EpiPen"),
        ("I play chess", "User plays chess"),
        ("I can't swim", "User can't swim"),
        ("I don't drink", "User doesn't drink"),
        ("I don’t drink", "User doesn't drink"),
        ("I dont drink", "User doesn't drink"),
        ("I haven't smoked since 2019", "User hasn't smoked since 2019"),
        ("I used to smoke", "User used to smoke"),
        ("I use a Mac", "User uses a Mac"),
        ("I quit the job", "User quit the job"),
        ("I moved to Turku", "User moved to Turku"),
        ("i live in Ghent", "User lives in Ghent"),
        ("I live in Ghent.", "User lives in Ghent."),
        ("we don't eat fish", "User doesn't eat fish"),
        ("I'm from Lviv", "User is from Lviv"),
        ("I’m from Lviv", "User is from Lviv"),
        ("im vegan", "User is vegan"),
        ("ive moved to Turku", "User has moved to Turku"),
        ("I'd rather walk", "User would rather walk"),
        ("I'll be 40 in May", "User will be 40 in May"),
        ("we've got twins", "User has got twins"),
        ("we'll move in spring", "User will move in spring"),
        ("my wife is deaf", "User's wife is deaf"),
        ("Our flat's damp", "User's flat's damp"),
        ("my 3 kids love soup", "User's 3 kids love soup"),
        ("I cut my own hair", "User cut User's own hair"),
        ("I was given one of ours", "User was given one of User's"),
        ("I hate myself for it", "User hates themselves for it"),
        ("I use vim, not emacs", "User uses vim, not emacs"),
        ("I smoke (a pipe)", "User smokes (a pipe)"),
        ("I (still) smoke", "User (still) smokes"),
        ("I who never smoked got ill", "User who never smoked got ill"),
        ("  I live\n in  Ghent ", "User lives in Ghent"),
    ],
)
def test_what_a_person_says_of_themselves(said: str, told: str) -> None:
    assert retell.told(said, "User") == told


@pytest.mark.parametrize(
    "adverb",
    ["also", "always", "never", "usually", "often", "sometimes", "rarely", "still", "really", "no longer", "already"],
)
def test_the_verb_after_an_adverb_is_the_persons(adverb: str) -> None:
    assert retell.told(f"I {adverb} bake bread", "User") == f"User {adverb} bakes bread"
    assert retell.told(f"I also {adverb} bake bread", "User") == f"User also {adverb} bakes bread"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("I'm 74 and have three cats", "User is 74 and has three cats"),
        ("I'm retired but do the books", "User is retired but does the books"),
        ("I have a dog and go to the park", "User has a dog and goes to the park"),
        ("I work nights and have to sleep by day", "User works nights and has to sleep by day"),
        ("I don't eat fish and don't drink", "User doesn't eat fish and doesn't drink"),
        ("I sold the car and bought a bike", "User sold the car and bought a bike"),
        ("I teach and my wife paints", "User teaches and User's wife paints"),
        ("my parents have cats and have dogs", "User's parents have cats and have dogs"),  # "and have" is the parents'
    ],
)
def test_a_joined_verb_is_of_the_same_person(said: str, told: str) -> None:
    assert retell.told(said, "User") == told


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("my sister and I live in Ghent", "User's sister and User live in Ghent"),
        ("my sister and I both live in Ghent", "User's sister and User both live in Ghent"),
        ("my sister Priya and I live in Ghent", "User's sister Priya and User live in Ghent"),
        ("my wife and I are vegan", "User's wife and User are vegan"),
        ("my wife and I have two sons", "User's wife and User have two sons"),
        ("me and my wife live in Ghent", "User and User's wife live in Ghent"),
        ("my wife, who I met in Oslo, paints", "User's wife, who User met in Oslo, paints"),
    ],
)
def test_two_people_keep_the_verb_of_two(said: str, told: str) -> None:
    assert retell.told(said, "User") == told


@pytest.mark.parametrize("subject", ["Ada", "Jean-Luc", "Ana María", "O'Neil", "x+*"])
def test_whoever_said_it_is_the_subject(subject: str) -> None:
    assert retell.told("I sold my boat", subject) == f"{subject} sold {subject}'s boat"
    assert retell.told("know zero javascript", subject) == f"{subject} knows zero javascript"
    assert retell.told("the dog bit me", subject) == f"The dog bit {subject}"


# --- told: what leaves the person out, or comes to them later ---


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("quit the job", "User quit the job"),
        ("moved to Utrecht in March", "User moved to Utrecht in March"),
        ("know zero javascript", "User knows zero javascript"),
        ("run a small cidery", "User runs a small cidery"),
        ("take 20 mg of lisinopril", "User takes 20 mg of lisinopril"),
        ("doing keto since May", "User is doing keto since May"),
        ("Running a small bakery", "User is running a small bakery"),
        ("living in Ghent with my cat", "User is living in Ghent with User's cat"),
        ("trying to lose weight", "User is trying to lose weight"),
        ("am a nurse", "User is a nurse"),
        ("have two dogs", "User has two dogs"),
        ("had my first child in 2010", "User had User's first child in 2010"),
        ("got married in May", "User got married in May"),
        ("don't eat pork", "User doesn't eat pork"),
        ("can't swim", "User can't swim"),
        ("love jazz", "User loves jazz"),
        ("need my car", "User needs User's car"),
        ("work nights", "User works nights"),
        ("lost 5 kg", "User lost 5 kg"),
        ("Lost weight", "User lost weight"),
        ("never eat meat", "User never eats meat"),
        ("always sleep badly", "User always sleeps badly"),
        ("still live in Ghent", "User still lives in Ghent"),
        ("also like jazz", "User also likes jazz"),
        ("just bought a flat", "User just bought a flat"),
    ],
)
def test_a_subject_left_out_is_put_in(said: str, told: str) -> None:
    assert retell.told(said, "User") == told


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("tomorrow I get the keys", "Tomorrow User gets the keys"),
        ("on Fridays I swim", "On Fridays User swims"),
        ("in 2019 we moved to Porto", "In 2019 User moved to Porto"),
        ("since May I've worked nights", "Since May User has worked nights"),
        ("the dog bit me", "The dog bit User"),
        ("the blue one is mine", "The blue one is User's"),
        ("string quartets bore me", "String quartets bore User"),
        ("swimming is my sport", "Swimming is User's sport"),
        ("when I was ten I broke my leg", "When User was ten User broke User's leg"),
        ("on Mondays I bring cake", "On Mondays User brings cake"),
        ("at last I dyed my hair", "At last User dyed User's hair"),
        ("although I'm Dutch I live in Bonn", "Although User is Dutch User lives in Bonn"),
        ("youth work is my job", "Youth work is User's job"),
    ],
)
def test_a_sentence_that_comes_to_the_person_later_is_told_in_its_place(said: str, told: str) -> None:
    assert retell.told(said, "User") == told


@pytest.mark.parametrize(
    "said",
    [
        "allergic to nuts",
        "a nurse from Lviv",
        "three kids, two cats",
        "nurse",
        "know javascript",  # "run time" and "know people" read alike
        "run time is long",
        "work",
        "nights",
        "never",
        "usually",
        "still here",
        "building is old",
        "Building regs matter",
        "everything hurts",
        "king of hearts",
        "ring the bell",
        "bed is broken",
        "red car",
        "mine is blue",
        "me",
        "us",
        "it's my birthday",
        "that's my sister",
        "here I am",
        "what annoys me is noise",
        "why do people hate me",
        "maybe I'll move",
    ],
)
def test_what_is_unsure_or_cannot_stand_alone_is_left_to_a_quotation(said: str) -> None:
    assert retell.told(said, "User") is None


@pytest.mark.parametrize(
    "said",
    [
        "do I still say hello",
        "do I need a visa",
        "did I tell them",
        "can I eat this",
        "should I take the job",
        "would we be late",
        "am I too old",
        "are we late",
        "was I rude",
        "what do I do",
        "does my dog need shots",
        "when can I eat",
        "have I mentioned my cat",
        "is my boss right",
        "when",
    ],
)
def test_a_question_is_no_statement(said: str) -> None:
    assert retell.told(said, "User") is None
    assert retell.told(said, "Ada") is None


@pytest.mark.parametrize(
    "said",
    [
        "we're two dads",
        "I guess we're two dads",
        "we're a band",
        "we're four",
        "we are a family of five",
        "my tall one",
        "my tall one is six",
        "my other one",
        "our second is due in May",
        "my first",
        "my ones",
    ],
)
def test_what_would_be_nonsense_of_one_person_is_left_to_a_quotation(said: str) -> None:
    assert retell.told(said, "User") is None


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("we're moving to Bonn", "User is moving to Bonn"),
        ("we're vegan", "User is vegan"),
        ("we are at war", "User is at war"),
        ("we're not amused", "User is not amused"),
        ("we're still in Ghent", "User is still in Ghent"),
        ("my first marathon was Berlin", "User's first marathon was Berlin"),
        ("my second cousin is a judge", "User's second cousin is a judge"),
    ],
)
def test_what_only_looks_like_it_is_told(said: str, told: str) -> None:
    assert retell.told(said, "User") == told


@pytest.mark.parametrize(
    "said",
    [
        "I love you",
        "I met your mum",
        "I told you I hate olives",
        "I think that you're right",
        "I think you’ve won",
        "I like the word “you”",
        "my cat is older than yours",
        "your advice helped me",
        "you and I live in Ghent",
    ],
)
def test_what_is_said_to_another_is_left_to_a_quotation(said: str) -> None:
    assert retell.told(said, "User") is None
    assert retell.told(said, "Ada") is None


@pytest.mark.parametrize("said", ["I use YouTube", "I'm too young"])
def test_you_inside_a_word_is_nobody(said: str) -> None:
    assert retell.told(said, "User") is not None


# --- told: he, she and they ---

BROTHER = "my brother is a vet. "


@pytest.mark.parametrize(
    ("said", "before", "told"),
    [
        ("he's lived in Oslo for years", BROTHER, "User's brother has lived in Oslo for years"),
        ("he's been ill", BROTHER, "User's brother has been ill"),
        ("he’s moved", BROTHER, "User's brother has moved"),
        ("he's a plumber", BROTHER, "User's brother is a plumber"),
        ("He's working late", BROTHER, "User's brother is working late"),
        ("he lives in Oslo", BROTHER, "User's brother lives in Oslo"),
        ("he was ill", "Our brother Otto is a vet. ", "User's brother Otto was ill"),
        ("his knee hurts", BROTHER, "User's brother's knee hurts"),
        ("he told me to rest", BROTHER, "User's brother told User to rest"),
        ("she works nights", "my best friend Ana-Li came. ", "User's best friend Ana-Li works nights"),
        (
            "she works nights",
            "my dad left. Then my mother-in-law Rosa came. ",
            "User's mother-in-law Rosa works nights",
        ),
        ("they live in Ghent", "the parents are old. ", None),
        ("he lives in Oslo", "the king is dead. ", None),
        ("he lives in Oslo", "a brother of his came. ", None),
        ("he lives in Oslo", "", None),
        ("he'll retire in May", BROTHER, None),
        ("he'd love a dog", BROTHER, None),
    ],
)
def test_he_is_the_relative_named_last(said: str, before: str, told: str | None) -> None:
    assert retell.told(said, "User", before=before) == told


def test_the_relative_is_of_whoever_said_it() -> None:
    assert retell.told("he's lived in Oslo", "Ada", before=BROTHER) == "Ada's brother has lived in Oslo"


# --- told: wishes ---

ORDERS = {"": "to", "always ": "to always", "never ": "to never", "don't ": "not to", "Don’t ": "not to"}
ORDERS |= {"do not ": "not to"}
POLITE_ORDERS = list(itertools.product(["", "please ", "Can you ", "from now on, "], ORDERS))
WISHES = [
    ("call me Jo", "call User Jo"),
    ("answer in German", "answer in German"),
    ("use my first name", "use User's first name"),
    ("write reports with us in mind", "write reports with User in mind"),
    ("Explain code as if I were five", "explain code as if User was five"),
]


@pytest.mark.parametrize(("polite", "order"), POLITE_ORDERS)
@pytest.mark.parametrize(("asked", "wished"), WISHES)
def test_how_the_assistant_should_behave_is_wished(polite: str, order: str, asked: str, wished: str) -> None:
    told = retell.told(polite + order + asked, "User", standing=True)
    assert told == f"User wants the assistant {ORDERS[order]} {wished}"


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("stop suggesting tofu", "User wants the assistant to stop suggesting tofu"),
        ("you can stop suggesting tofu", "User wants the assistant to stop suggesting tofu"),
        ("don't remind me of it anymore", "User wants the assistant not to remind User of it anymore"),
        ("pls keep it short", "User wants the assistant to keep it short"),
        ("keep replies short", "User wants the assistant to keep replies short"),
        ("call me Jo", "User wants the assistant to call User Jo"),
        ("ask me every time", "User wants the assistant to ask User every time"),
        ("please answer in German", "User wants the assistant to answer in German"),
    ],
)
def test_an_order_that_says_so_is_a_wish_whether_it_is_known_or_not(said: str, told: str) -> None:
    assert retell.told(said, "User") == told
    assert retell.told(said, "User", standing=True) == told


@pytest.mark.parametrize("said", ["answer in German", "use metric units", "Use emoji", "ask them about it"])
def test_an_order_of_the_moment_is_no_wish(said: str) -> None:
    assert retell.told(said, "User") is None
    assert retell.told(said, "User", standing=True) == f"User wants the assistant to {said[0].lower()}{said[1:]}"


@pytest.mark.parametrize(
    "said",
    [
        "short answers",
        "no emoji",
        "be brief",
        "skip the intro",
        "call",
        "please",
        "I want short answers",
        "if I ask for code, use Python",
        "you should answer in German",
    ],
)
def test_a_wish_the_rules_cannot_word_is_left_to_a_quotation(said: str) -> None:
    assert retell.told(said, "User", standing=True) is None


@pytest.mark.parametrize("said", [said for said, _ in WISHES] + ["never call me Jo", "please answer in German"])
def test_between_named_people_nothing_is_wished_of_the_assistant(said: str) -> None:
    assert retell.told(said, "Ada", standing=True) is None
    assert "assistant" not in (retell.told(said, "Ada") or "")


# --- told: other languages ---


@pytest.mark.parametrize(
    "said",
    [
        "ich wohne in Linz",
        "ich bin Lehrer",
        "am Freitag fliege ich",
        "nie Fleisch",
        "mein Hund war krank",
        "we hebben een hond",
        "ik woon in Gent",
        "vivo en Madrid con mi madre",
        "me gusta el café",
        "nunca como carne",
        "j'habite à Lyon avec ma femme",
        "je suis végétarien",
        "abito a Roma con mia moglie",
        "moro em Lisboa com a minha mãe",
        "asun Helsingissä",
        "я живу в Москве",
        "私は医者です",
        "אני גר בחיפה",
    ],
)
def test_other_languages_are_left_to_a_quotation(said: str) -> None:
    assert retell.told(said, "User") is None


def test_words_within_another_language_are_no_english() -> None:
    german = "Ich bin Lehrer und wohne mit meiner Frau in Linz. Das ist sehr schön hier, und wir haben einen Garten. "
    assert retell.told("am 40", "User") == "User is 40"
    assert retell.told("am 40", "User", before=german) is None


# --- told: any words ---


@pytest.mark.parametrize("said", ["", " ", "\n\t", "?!…", "((((", "😀😀", "’", "'", "-", "0", "a", "."])
def test_where_nothing_is_said_nothing_is_told(said: str) -> None:
    assert retell.told(said, "User") is None
    assert retell.told(said, "User", standing=True) is None
    assert retell.told(said, "User", before=BROTHER) is None


VOCABULARY = """I i we I'm im I’ve we're we'll I'd my our mine me us myself am are was have don't do go live work
study carry put quit moved know running doing still never also really and but or who that the a one two first in on
since tomorrow Friday 2019 Ghent wife sister dog nurse vegan (still) Oslo, soup; kids! he's they she you your call use
please always stop not"""
known_words = st.lists(st.sampled_from(VOCABULARY.split()), max_size=12).map(" ".join)
odd_words = st.lists(st.one_of(st.sampled_from(VOCABULARY.split()), st.text(max_size=5)), max_size=12).map(" ".join)
any_words = st.one_of(known_words, odd_words)
of_themselves = st.tuples(st.sampled_from(["I", "I'm", "We", "my", "Our", "i've"]), any_words).map(" ".join)
of_others = st.tuples(st.sampled_from(["he's", "She", "they", "their"]), any_words).map(" ".join)
earlier = st.one_of(any_words, st.just("my sister Aino left. "))


@given(st.one_of(any_words, st.text(max_size=80)), st.text(min_size=1, max_size=9), earlier, st.booleans())
def test_any_words_of_anyone_are_survived(said: str, subject: str, before: str, standing: bool) -> None:
    told = retell.told(said, subject, before=before, standing=standing)
    assert told is None or told.strip()


@given(st.one_of(any_words, of_themselves))
def test_told_is_what_was_said_word_for_word(said: str) -> None:
    told = retell.told(said, "Ada")
    assert told is None or is_word_for_word(said, told)


@given(st.one_of(any_words, of_themselves, of_others), earlier, st.booleans())
def test_no_word_is_told_that_was_not_said(said: str, before: str, standing: bool) -> None:
    told = retell.told(said, "Ada", before=before, standing=standing)
    relatives = {form for word in bare_words(before) for form in (word, f"{word}'s")}
    assert told is None or set(bare_words(told)) <= {"is", "has", "are", "have"} | forms_of(said) | relatives


@given(
    st.sampled_from(["please call ", "never use ", "from now on write ", "Don't say ", "can you always add "]),
    any_words,
)
def test_a_wish_is_the_order_word_for_word(order: str, said: str) -> None:
    told = retell.told(order + said, "User", standing=True)
    if told is not None:
        head, verb, wished = told.partition(f" {order.split()[-1]} ")
        assert head.startswith("User wants the assistant ")
        assert verb
        assert is_word_for_word(said.replace("User", "Ada"), wished.replace("User", "Ada"))


@given(st.sampled_from(["I", "I'm", "We", "my", "Our", "i've"]), known_words)
def test_nobody_is_left_in_the_first_person(first: str, said: str) -> None:
    told = retell.told(f"{first} {said}", "Ada")
    if told is not None:
        assert not {*bare_words(told)} & {*PERSON, "i'm", "im", "i've", "ive", "we're", "we'll", "i'd"}


def seconds(text: str, *, read: Callable[[str], object]) -> float:
    begin = time.perf_counter()
    read(text)
    return time.perf_counter() - begin


def readings() -> Iterable[Callable[[str], object]]:
    yield lambda text: retell.told(text, "User")
    yield lambda text: retell.told(text, "User", standing=True)
    yield lambda text: retell.told("he's old", "User", before=text)
    yield lambda text: retell.told(f"I {text}", "User", before=text)
    yield lambda text: retell.restate(text)


@pytest.mark.parametrize(
    "part",
    [
        "I ",
        "I've ",
        "my ",
        "my-",
        "my wife ",
        "my tall ",
        "and I ",
        "we're ",
        "you",
        "so ",
        "please can you ",
        "from now on ",
        "never ",
        "stop ",
        "in 2019 I ",
        "I live in Ghent and have a dog. ",
        "a",
        "(",
        "’",
        " ",
    ],
)
def test_a_hundred_thousand_characters_take_no_quadratic_time(part: str) -> None:
    text = (part * 100_000)[:100_000]
    assert all(seconds(text, read=read) < 2 for read in readings())  # usually 0.1 s; the bound is for a busy machine
