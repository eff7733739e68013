"""Write a conversation of locomo_dev.jsonl or beam_dev.jsonl as messages that `localmem ingest` reads.

    python3 scripts/conversation_messages.py ../shared/data/locomo_dev.jsonl conv-26 > conv-26.jsonl
    localmem ingest conv-26.jsonl --user conv-26

Only speaker, text, caption and the session's date are written: nothing else of an evaluation file may reach a memory.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def messages(path: Path, conversation: str) -> list[dict[str, str]]:
    """One message a turn: its role, or role user and the speaker's name between two people; the text; the
    session's date, or its own, as its timestamp."""
    for line in path.read_text("utf-8").splitlines():
        record = json.loads(line)
        if record["conv_id"] == conversation:
            day = None
            written = []
            for session in record["sessions"]:
                for turn in session["turns"]:
                    day = session["date"] or turn.get("time") or day
                    written.append(message(turn, day))
            return written
    raise SystemExit(f"{path} has no conversation {conversation!r}")


def message(turn: dict[str, str], day: str | None) -> dict[str, str]:
    speaker, caption = turn["speaker"], turn.get("caption")
    who = {"role": speaker} if speaker in ("user", "assistant") else {"role": "user", "name": speaker}
    text = turn["text"] + (f" [shares {caption}]" if caption else "")
    return {**who, "content": text, **({"timestamp": day} if day else {})}


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    for message in messages(Path(sys.argv[1]), sys.argv[2]):
        print(json.dumps(message, ensure_ascii=False))
