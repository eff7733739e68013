"""Write a conversation of ../shared/data/locomo_dev.jsonl as messages that `localmem ingest` reads.

    python3 scripts/locomo_messages.py ../shared/data/locomo_dev.jsonl conv-26 > conv-26.jsonl
    localmem ingest conv-26.jsonl --user conv-26

Only speaker, text, caption and the session's date are written: nothing else of an evaluation file may reach a memory.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path


def messages(path: Path, conversation: str) -> list[dict[str, str]]:
    """One message a turn: role user, the speaker's name, the text, the session's date as its timestamp."""
    for line in path.read_text("utf-8").splitlines():
        record = json.loads(line)
        if record["conv_id"] == conversation:
            return [
                {
                    "role": "user",
                    "name": turn["speaker"],
                    "content": turn["text"] + (f" [shares {turn['caption']}]" if turn.get("caption") else ""),
                    "timestamp": session["date"],
                }
                for session in record["sessions"]
                for turn in session["turns"]
            ]
    raise SystemExit(f"{path} has no conversation {conversation!r}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(__doc__)
    for message in messages(Path(sys.argv[1]), sys.argv[2]):
        print(json.dumps(message, ensure_ascii=False))
