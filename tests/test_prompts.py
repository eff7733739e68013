"""Prompt files and the grammar language."""

from __future__ import annotations

from pathlib import Path

import pytest

from localmem import gbnf, prompts
from localmem.errors import InstallationError, InvalidInputError

SHORT = """
version = 1
system = "Answer with facts."
user = "Today is {today}.\\n{message}"
[[examples]]
user = "Today is Monday.\\nI like {braces}."
assistant = "- User likes {braces}"
"""
SHORT_GRAMMAR = """
# facts, one a line; {nothing} is filled in a comment
root ::= ("- " {subject} " " [^\\n]+ "\\n")+
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "short.toml").write_text(SHORT)
    (tmp_path / "short.gbnf").write_text(SHORT_GRAMMAR)
    (tmp_path / "label.toml").write_text('user = "{pair}"\n[labels]\nsame = "A"\nother = "B"\n')
    return tmp_path


class TestPromptFiles:
    def test_examples_come_before_the_question(self, folder: Path) -> None:
        prompt = prompts.render("short", folder=folder, today="Friday", message="Hello")
        assert prompt.name == "short"
        assert prompt.turns == (
            ("system", "Answer with facts."),
            ("user", "Today is Monday.\nI like {braces}."),
            ("assistant", "- User likes {braces}"),
            ("user", "Today is Friday.\nHello"),
        )

    def test_braces_in_a_value_stay_text(self, folder: Path) -> None:
        prompt = prompts.render("short", folder=folder, today="{message}", message="{today} {x} {{}} \\1 %s")
        assert prompt.turns[-1] == ("user", "Today is {message}.\n{today} {x} {{}} \\1 %s")

    def test_missing_and_unknown_values_are_named(self, folder: Path) -> None:
        with pytest.raises(InvalidInputError, match=r"needs values for .'message'"):
            prompts.render("short", folder=folder, today="Friday")
        with pytest.raises(InvalidInputError, match=r"no placeholders .'weather'"):
            prompts.render("short", folder=folder, today="Friday", message="x", weather="rain")

    def test_grammar_literals_are_escaped(self, folder: Path) -> None:
        hostile = 'Ann "]\n | root \\ {0}'
        parsed = gbnf.parse(prompts.grammar("short", folder=folder, subject=hostile))
        assert parsed.matches(f"- {hostile} sings\n")
        assert not parsed.matches("- Ann sings\n")

    def test_several_literals_become_a_choice(self, folder: Path) -> None:
        parsed = gbnf.parse(prompts.grammar("short", folder=folder, subject=["User", "Ann"]))
        assert parsed.matches("- User sings\n- Ann hums\n")
        assert not parsed.matches("- Bob sings\n")
        with pytest.raises(InvalidInputError, match="at least one"):
            prompts.grammar("short", folder=folder, subject=[])

    def test_quoted_placeholder_is_the_same(self, folder: Path) -> None:
        (folder / "quoted.toml").write_text('user = "x"')
        (folder / "quoted.gbnf").write_text('root ::= "{name}" "!"')
        assert gbnf.parse(prompts.grammar("quoted", folder=folder, name="Ann")).matches("Ann!")

    def test_version_follows_the_bytes_of_both_files(
        self, folder: Path, tmp_path_factory: pytest.TempPathFactory
    ) -> None:
        first = prompts.load("short", folder=folder).version
        assert len(first) == 12
        assert int(first, 16) >= 0
        other = tmp_path_factory.mktemp("other")
        (other / "short.toml").write_text(SHORT)
        (other / "short.gbnf").write_text(SHORT_GRAMMAR + "# changed\n")
        assert prompts.load("short", folder=other).version != first
        assert prompts.render("short", folder=folder, today="x", message="y").version == first

    def test_language_file_wins_where_it_exists(self, folder: Path) -> None:
        (folder / "label.de.toml").write_text('user = "deutsch {pair}"')
        assert prompts.render("label", language="de", folder=folder, pair="1").turns[-1][1] == "deutsch 1"
        assert prompts.render("label", language="fr", folder=folder, pair="1").turns[-1][1] == "1"

    def test_labels(self, folder: Path) -> None:
        assert prompts.load("label", folder=folder).labels == {"same": "A", "other": "B"}

    def test_prompt_without_grammar_says_so(self, folder: Path) -> None:
        with pytest.raises(InvalidInputError, match="has no grammar"):
            prompts.grammar("label", folder=folder)

    @pytest.mark.parametrize(
        ("text", "grammar", "said"),
        [
            ("user = ", None, "broken"),
            ("system = 'no user'", None, "user"),
            ("user = 1", None, "user must be text"),
            ("user = 'x'\nexample = 1", None, "unknown keys"),
            ("user = 'x'\n[[examples]]\nuser = 'a'", None, "examples.0."),
            ("user = '{message}'\nsystem = 'about {message}'", None, "outside of user"),
            ("user = '{language}'", None, "can't be placeholders"),
            ("user = 'x'\n[labels]\na = 'A'\nb = 'A'", None, "same symbol"),
            ("user = 'x'", "root := 'a'", "line 1"),
            ("user = 'x'", 'root ::= "- {name}"', "broken"),
            ("user = 'x'", 'line ::= "a"', "no rule named root"),
            ("user = 'x'", "root ::= {folder}", "can't be placeholders"),
        ],
    )
    def test_broken_files_name_themselves(self, tmp_path: Path, text: str, grammar: str | None, said: str) -> None:
        (tmp_path / "bad.toml").write_text(text)
        if grammar is not None:
            (tmp_path / "bad.gbnf").write_text(grammar)
        with pytest.raises(InstallationError, match=said) as caught:
            prompts.load("bad", folder=tmp_path)
        assert "bad.toml" in str(caught.value)

    def test_missing_file_and_odd_names(self, tmp_path: Path) -> None:
        with pytest.raises(InstallationError, match=r"nowhere\.toml is missing"):
            prompts.load("nowhere", folder=tmp_path)
        for name, language in (("../secret", "en"), ("extract", "../en"), ("", "en")):
            with pytest.raises(InvalidInputError, match="a prompt is named"):
                prompts.load(name, language, tmp_path)

    @pytest.mark.parametrize("path", sorted(prompts.FOLDER.glob("*.toml")), ids=lambda path: path.stem)
    def test_every_prompt_of_the_package_loads(self, path: Path) -> None:
        name, _, language = path.stem.partition(".")
        file = prompts.load(name, language or "en")
        assert file.user
        if file.grammar is not None:
            filled = prompts.grammar(name, **dict.fromkeys(file.grammar_placeholders, "x"))
            assert gbnf.parse(filled).rules


class TestGrammar:
    @pytest.mark.parametrize(
        ("source", "yes", "no"),
        [
            ('root ::= "ab"', ["ab"], ["", "a", "abc", "AB"]),
            ("root ::= [a-c^-]", ["a", "c", "^", "-"], ["d", "", "ab"]),
            ("root ::= [^a-c\\n\\]]", ["d", "é", "😀"], ["a", "\n", "]", ""]),
            ("root ::= .", ["x", "\n", "😀"], ["", "xy"]),
            ('root ::= "a" | "b" "c"', ["a", "bc"], ["b", "ac", "abc"]),
            ('root ::= ("a" | "b")* "c"', ["c", "abbac"], ["ab", "cc"]),
            ('root ::= "ab"+ "?"?', ["ab", "abab?"], ["", "abb", "?"]),
            ('root ::= "a"{2}', ["aa"], ["a", "aaa"]),
            ('root ::= "a"{2,}', ["aa", "aaaaa"], ["a"]),
            ('root ::= "a"{,2}', [], []),
            ('root ::= "a"{0,2}', ["", "a", "aa"], ["aaa"]),
            ('root ::= ("a"*)* "b"', ["b", "aaab"], ["a"]),
            ('root ::= a-1 "\\x41\\u00e9\\U0001F600\\t\\"\\\\"\na-1 ::= "x"', ['xAé😀\t"\\'], ["xA"]),
            ('root ::= list # words\nlist ::= "x" ("," list)?', ["x", "x,x,x"], ["x,", ",x"]),
            ('root ::= (\n "a"\n | "b"\n)\n\n# end', ["a", "b"], ["ab"]),
            ('root ::= "a" |\n "b"', ["a", "b"], [""]),
            ('root ::= ("- " [^\\n]+ "\\n")+', ["- a\n- b b\n"], ["- a", "a\n", "- \n"]),
        ],
    )
    def test_matches(self, source: str, yes: list[str], no: list[str]) -> None:
        if source == 'root ::= "a"{,2}':  # llama.cpp asks for the lower bound
            with pytest.raises(InvalidInputError):
                gbnf.parse(source)
            return
        parsed = gbnf.parse(source)
        assert [text for text in yes if not parsed.matches(text)] == []
        assert [text for text in no if parsed.matches(text)] == []

    @pytest.mark.parametrize(
        ("source", "said"),
        [
            ("", "no rule named root"),
            ("root ::= 'a'", "line 1: expected a rule name"),
            ('root ::= "a', "does not end"),
            ("root ::= [a", "does not end"),
            ('root ::= ("a"', r"expected \)"),
            ('root ::= "a")', "end of the line"),
            ('root ::= "a"\n| "b"', "line 2"),
            ('root = "a"', "expected ::="),
            ("root ::= other", "other, which is not defined"),
            ('root ::= "a"\nroot ::= "b"', "defined twice"),
            ('root ::= "\\q"', "unknown escape"),
            ('root ::= "\\x4"', "unknown escape"),
            ('root ::= "\\', "does not end|unknown escape"),
            ("root ::= [z-a]", "must rise"),
            ('root ::= "a"{3,2}', "must rise"),
            ('root ::= "a"{2,9999}', "must rise and stay within"),
            ("root ::= my_rule", "expected a rule name"),
            ('root ::= root "a"', "left-recursive"),
            ('root ::= "a"? other\nother ::= "b"* root', "left-recursive"),
        ],
    )
    def test_faults_are_named(self, source: str, said: str) -> None:
        with pytest.raises(InvalidInputError, match=said):
            gbnf.parse(source)

    @pytest.mark.parametrize("text", ["", "plain", 'a"b\\c', "line\nbreak\ttab\r", "[x]{2}|*", "\x00\x7f", "é 漢 😀"])
    def test_literal_is_exactly_its_text(self, text: str) -> None:
        parsed = gbnf.parse("root ::= " + gbnf.literal(text))
        assert parsed.matches(text)
        assert not parsed.matches(text + "x")

    def test_whole_lines_of_a_cut_reply(self) -> None:
        facts = gbnf.parse('root ::= ("- " [^\\n]+ "\\n")+')
        assert facts.whole_lines("- one\n- two\n- thr") == "- one\n- two\n"
        assert facts.whole_lines("- one") is None
        pairs = gbnf.parse('root ::= pair ("\\n" pair)*\npair ::= "f " [a-z]+ "\\nq " [a-z]+')
        assert pairs.whole_lines("f a\nq a\nf b\nq b\nf c\nq") == "f a\nq a\nf b\nq b"

    def test_hostile_texts_end(self) -> None:
        facts = gbnf.parse('root ::= ("- " [^\\n]+ "\\n")+')
        assert not facts.matches("- a\n" * 10_000)
        nested = gbnf.parse('root ::= "(" root ")" | "x"')
        assert nested.matches("((x))")
        assert not nested.matches("(" * 9_000)
        doubtful = gbnf.parse('root ::= (("a" | "aa")+)+ "b"')
        assert not doubtful.matches("a" * 300)
