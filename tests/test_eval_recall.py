"""The recall harness, run on small files of each form it reads."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any
from xml.etree import ElementTree

import pytest

SCRIPT = Path(__file__).resolve().parents[1] / "scripts" / "eval_recall.py"


@pytest.fixture(scope="module")
def harness() -> ModuleType:
    spec = importlib.util.spec_from_file_location("eval_recall", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["eval_recall"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


def talk() -> dict[str, Any]:
    said = [
        "I keep three goats in Lerwick",
        "My brother repairs clocks",
        "We sold the boat Selkie",
        "Tea without sugar",
    ]
    turns = [{"id": f"t{i}", "speaker": "Mairi", "text": text} for i, text in enumerate(said)]
    turns[3]["caption"] = "a photo of a teapot"
    asked = [("Where does Mairi keep goats?", ["t0"]), ("Which boat was sold?", ["t2"]), ("Does she fly?", [])]
    questions = [{"question": text, "evidence": evidence, "category": 4} for text, evidence in asked]
    return {"conv_id": "c", "sessions": [{"date": "1:56 pm on 8 May, 2023", "turns": turns}], "qa": questions}


def write(folder: Path, name: str, *rows: dict[str, Any]) -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_a_conversation(
    harness: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = tmp_path / "out.json"
    monkeypatch.setattr(
        sys,
        "argv",
        [
            "eval_recall.py",
            str(write(tmp_path, "talk.jsonl", talk())),
            "--json",
            str(report),
            "--ablate",
            "--plot",
            str(tmp_path / "out.svg"),
        ],
    )
    assert harness.main() == 0
    told = json.loads(report.read_text("utf-8"))["talk"]
    assert (told["questions"], told["turns"], told["stores"]) == (2, 4, 1)  # the one without evidence is left out
    assert told["rows"]["fused"]["R@1"] == told["rows"]["fused"]["MRR"] == 1.0
    assert set(told["rows"]) == {"words", "vectors", "fused", *harness.ABLATIONS}
    image = ElementTree.fromstring((tmp_path / "out.svg").read_text("utf-8"))
    assert len(image.findall("{http://www.w3.org/2000/svg}polyline")) == 1
    assert "talk: 2 questions with evidence" in capsys.readouterr().out


def test_what_is_stored(harness: ModuleType, tmp_path: Path) -> None:
    [found] = harness.conversations(write(tmp_path, "talk.jsonl", talk()))
    assert found.turns[3][1] == "Mairi: Tea without sugar [shares a photo of a teapot]"
    assert found.turns[0][2].isoformat() == "2023-05-08T13:56:00+00:00"


def test_preferences_and_dialogues(harness: ModuleType, tmp_path: Path) -> None:
    wishes = [
        {"id": str(i), "topic": topic, "preference": f"I like {topic} {i}", "question": "?"}
        for i, topic in enumerate(("tea", "tea", "boats"))
    ]
    boats, tea = harness.conversations(write(tmp_path, "wishes.jsonl", *wishes))
    assert [turn[0] for turn in tea.turns] == ["0", "1"]
    assert boats.queries[0].evidence == {"2"}
    rows = [
        {"kind": "memory", "id": 7, "event": "Ana danced", "time": "2023-12-25"},
        {
            "kind": "query",
            "dialogue": ["<BOD>", '<Ana>: "Shall I dance?"', "<Bot>: No"],
            "test_turn": [2],
            "relevant": [7],
        },
    ]
    [dialogues] = harness.conversations(write(tmp_path, "dialogues.jsonl", *rows))
    assert dialogues.queries[0].text == '"Shall I dance?"'
    assert dialogues.queries[0].evidence == {"7"}


def test_an_unknown_form(harness: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="not a form this script knows"):
        harness.conversations(write(tmp_path, "x.jsonl", {"a": 1}))


def test_a_tally_by_hand(harness: ModuleType) -> None:
    tally = harness.Tally()
    tally.add(["a", "x", "b", "y", "z", "c"], harness.Query("?", frozenset("bc"), "1"))
    row = tally.row()
    assert (row["R@1"], row["R@5"], row["R@10"], row["all@10"], row["MRR"]) == (
        0.0,
        0.5,
        1.0,
        1.0,
        pytest.approx(1 / 3),
    )
    assert row["nDCG@10"] == pytest.approx((1 / 2 + 1 / 2.807354922) / (1 + 1 / 1.584962501), abs=1e-6)
