"""The generator behind a server, against real HTTP on this machine: good replies and every bad one."""

from __future__ import annotations

import json
import math
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from localmem import llm_server
from localmem.errors import ClosedError, GeneratorError, InvalidInputError, LocalmemError
from localmem.llm_server import ServerGenerator
from localmem.types import Generator, Prompt

PROMPT = Prompt("facts", "1", (("system", "Write facts."), ("user", "my sister Anna lives in secretville")))
LINES = 'root ::= ("- " [^\\n]+ "\\n")+'

Answer = tuple[int, bytes]


class Server:
    """An OpenAI-compatible server whose replies the test sets; it remembers what it was asked."""

    def __init__(self) -> None:
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.answer: Callable[[dict[str, Any]], Answer] = lambda _: said("- fact\n")
        self.models: Answer = (200, json.dumps({"data": [{"id": "tiny"}]}).encode())
        self.headers: dict[str, str] = {}
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append((self.path, {}))
                self._send(*outer.models)

            def do_POST(self) -> None:
                fields = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                outer.asked.append((self.path, fields))
                self._send(*outer.answer(fields))

            def _send(self, status: int, body: bytes) -> None:
                self.send_response(status)
                for name, value in outer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self.httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.thread = threading.Thread(target=self.httpd.serve_forever, kwargs={"poll_interval": 0.01})
        self.thread.start()
        self.url = f"http://127.0.0.1:{self.httpd.server_address[1]}/v1"

    def replies(self, *texts: str, finish: str = "stop") -> None:
        """Give these replies in turn, the last one for ever."""
        left = list(texts)
        self.answer = lambda _: said(left.pop(0) if len(left) > 1 else left[0], finish=finish)

    def chats(self) -> list[dict[str, Any]]:
        return [fields for path, fields in self.asked if path.endswith("/chat/completions")]

    def stop(self) -> None:
        self.httpd.shutdown()
        self.thread.join()
        self.httpd.server_close()


def said(text: str | None, *, finish: str = "stop", top: Sequence[tuple[str, float]] | None = None) -> Answer:
    choice: dict[str, Any] = {"message": {"role": "assistant", "content": text}, "finish_reason": finish}
    if top is not None:
        listed = [{"token": token, "logprob": value} for token, value in top]
        choice["logprobs"] = {"content": [{"token": text, "logprob": 0.0, "top_logprobs": listed}]}
    return 200, json.dumps({"choices": [choice]}).encode()


@pytest.fixture
def server() -> Iterator[Server]:
    running = Server()
    yield running
    running.stop()


@pytest.fixture
def generator(server: Server) -> ServerGenerator:
    return ServerGenerator(server.url, timeout_s=5)


class TestAddresses:
    @pytest.mark.parametrize(
        "url", ["http://127.0.0.1:8080/v1", "http://127.9.9.9/v1/", "http://[::1]:1/v1", "https://localhost/v1"]
    )
    def test_this_machine(self, url: str) -> None:
        generator = ServerGenerator(url)
        assert isinstance(generator, Generator)
        assert generator.id.startswith("server:http")

    @pytest.mark.parametrize(
        "url",
        [
            "http://example.org/v1",
            "http://192.168.1.2:11434/v1",
            "http://0.0.0.0:8080/v1",
            "http://localhost.example.org/v1",
            "http://127.0.0.1.example.org/v1",
            "http://2130706433/v1",
            "http://[::]/v1",
            "http://[::ffff:8.8.8.8]/v1",
        ],
    )
    def test_other_machines_only_on_purpose(self, url: str) -> None:
        with pytest.raises(InvalidInputError, match="allow_remote=True"):
            ServerGenerator(url)
        assert ServerGenerator(url, allow_remote=True).fingerprint()["server"].startswith("http://")

    @pytest.mark.parametrize(
        "url",
        ["", "127.0.0.1:8080", "ftp://127.0.0.1/", "http:///v1", "http://127.0.0.1:99999/v1", "http://[::1/v1",
         "http://me:secret@127.0.0.1/v1", "http://127.0.0.1/v1?key=1"],
    )  # fmt: skip
    def test_no_address(self, url: str) -> None:
        with pytest.raises(InvalidInputError, match=r"http://127\.0\.0\.1:8080/v1") as caught:
            ServerGenerator(url)
        assert "secret" not in str(caught.value)

    def test_localhost_that_is_elsewhere_is_not_asked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(
            socket, "getaddrinfo", lambda *_, **__: [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("8.8.8.8", 1))]
        )
        with pytest.raises(GeneratorError, match="does not resolve to this machine"):
            ServerGenerator("http://localhost:1/v1", model="m").generate(PROMPT, grammar=LINES, tokens_max=8)

    def test_proxies_of_the_environment_are_ignored(
        self, server: Server, generator: ServerGenerator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
            monkeypatch.setenv(name, "http://127.0.0.1:9")
        assert generator.generate(PROMPT, grammar=LINES, tokens_max=8) == "- fact\n"

    def test_redirects_are_not_followed(self, server: Server, generator: ServerGenerator) -> None:
        server.headers = {"Location": "http://example.org/"}
        server.answer = lambda _: (307, b"")
        with pytest.raises(GeneratorError, match="redirects"):
            generator.generate(PROMPT, grammar=LINES, tokens_max=8)

    def test_bad_timeout(self) -> None:
        with pytest.raises(InvalidInputError, match="timeout_s"):
            ServerGenerator("http://127.0.0.1:1/v1", timeout_s=0)


class TestReplies:
    def test_what_is_asked(self, server: Server, generator: ServerGenerator) -> None:
        assert generator.generate(PROMPT, grammar=LINES, tokens_max=77) == "- fact\n"
        asked = server.chats()[0]
        assert asked["model"] == "tiny"
        assert asked["messages"] == [{"role": role, "content": text} for role, text in PROMPT.turns]
        assert (asked["temperature"], asked["seed"], asked["max_tokens"], asked["stream"]) == (0, 1, 77, False)
        assert asked["grammar"] == LINES
        assert generator.id == "server:tiny"
        generator.generate(PROMPT, grammar=LINES, tokens_max=8)
        assert [path for path, _ in server.asked].count("/v1/models") == 1

    @pytest.mark.parametrize(
        "text",
        ["- one\n- two\n", "  - one\n- two  ", "```\n- one\n- two\n```", "```text\n- one\n- two\n```\n",
         "<think>\nhm, facts\n</think>\n\n- one\n- two"],
    )  # fmt: skip
    def test_wrappings_are_taken_off(self, server: Server, generator: ServerGenerator, text: str) -> None:
        server.replies(text)
        assert generator.generate(PROMPT, grammar=LINES, tokens_max=8).strip() == "- one\n- two"

    def test_one_more_try(self, server: Server, generator: ServerGenerator) -> None:
        server.replies("Sure! Here are the facts", "- fact\n")
        assert generator.generate(PROMPT, grammar=LINES, tokens_max=8) == "- fact\n"
        first, second = server.chats()
        assert second["seed"] != first["seed"]
        assert second["temperature"] > 0

    @pytest.mark.parametrize("text", ["Sure!", "", None, "- one\nnot a fact\n"])
    def test_then_an_error_without_the_words(
        self, server: Server, generator: ServerGenerator, text: str | None
    ) -> None:
        server.answer = lambda _: said(text)
        with pytest.raises(GeneratorError, match="twice sent a reply outside the grammar of prompt facts") as caught:
            generator.generate(PROMPT, grammar=LINES, tokens_max=8)
        assert "secretville" not in str(caught.value)
        assert "Sure" not in str(caught.value)
        assert len(server.chats()) == 2

    def test_a_cut_reply_keeps_its_complete_lines(self, server: Server, generator: ServerGenerator) -> None:
        server.replies("- one\n- two\n- thr", finish="length")
        assert generator.generate(PROMPT, grammar=LINES, tokens_max=8) == "- one\n- two\n"
        server.replies("- on", finish="length")
        with pytest.raises(GeneratorError):
            generator.generate(PROMPT, grammar=LINES, tokens_max=8)

    def test_a_strict_server_gets_only_what_it_knows(self, server: Server, generator: ServerGenerator) -> None:
        server.answer = lambda fields: (400, b"{}") if "grammar" in fields else said("- fact\n")
        for _ in range(2):
            assert generator.generate(PROMPT, grammar=LINES, tokens_max=8) == "- fact\n"
        assert ["grammar" in fields for fields in server.chats()] == [True, False, False]

    def test_bad_arguments(self, generator: ServerGenerator) -> None:
        with pytest.raises(InvalidInputError, match="grammar line 1"):
            generator.generate(PROMPT, grammar="root ::= ?", tokens_max=8)
        with pytest.raises(InvalidInputError, match="tokens_max"):
            generator.generate(PROMPT, grammar=LINES, tokens_max=0)

    def test_tokens_are_estimated(self, generator: ServerGenerator) -> None:
        assert generator.count_tokens("") == 0
        assert generator.count_tokens("seven letters") == 5

    def test_closed(self, server: Server, generator: ServerGenerator) -> None:
        generator.close()
        with pytest.raises(ClosedError):
            generator.generate(PROMPT, grammar=LINES, tokens_max=8)
        assert server.asked == []


class TestFaults:
    @pytest.mark.parametrize(
        ("answer", "said_in_error"),
        [
            ((500, b"my sister Anna lives in secretville"), "HTTP 500"),
            ((400, b"{}"), "HTTP 400"),
            ((401, b""), "HTTP 401"),
            ((404, b""), "usually ends in /v1"),
            ((200, b"<html>"), "no JSON"),
            ((200, b"\xff\xfe"), "no JSON"),
            ((200, b"[]"), "another shape"),
            ((200, b"{}"), "without a reply"),
            ((200, b'{"choices": []}'), "without a reply"),
            ((200, b'{"choices": [{"text": "secretville"}]}'), "without a reply"),
        ],
    )
    def test_bad_answers(self, server: Server, generator: ServerGenerator, answer: Answer, said_in_error: str) -> None:
        server.answer = lambda _: answer
        for ask in (
            lambda: generator.generate(PROMPT, grammar=LINES, tokens_max=8),
            lambda: generator.score_labels(PROMPT, "AB"),
        ):
            with pytest.raises(GeneratorError, match=said_in_error) as caught:
                ask()
            assert server.url in str(caught.value)
            assert "secretville" not in str(caught.value)

    def test_too_much(self, server: Server, generator: ServerGenerator, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(llm_server, "_RESPONSE_BYTES_MAX", 1_000)
        server.replies("- fact\n" * 1_000)
        with pytest.raises(GeneratorError, match="more than 1000 bytes"):
            generator.generate(PROMPT, grammar=LINES, tokens_max=8)

    def test_nobody_there(self) -> None:
        with socket.socket() as taken:  # bound and not listening: refused
            taken.bind(("127.0.0.1", 0))
            url = f"http://127.0.0.1:{taken.getsockname()[1]}/v1"
            with pytest.raises(GeneratorError, match=r"can't be reached .ConnectionRefusedError.; start it"):
                ServerGenerator(url).generate(PROMPT, grammar=LINES, tokens_max=8)

    def test_no_answer(self) -> None:
        with socket.socket() as silent:
            silent.bind(("127.0.0.1", 0))
            silent.listen()
            url = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
            with pytest.raises(GeneratorError, match=r"did not answer within 0\.2 s"):
                ServerGenerator(url, timeout_s=0.2).generate(PROMPT, grammar=LINES, tokens_max=8)

    def test_not_http(self) -> None:
        with socket.socket() as odd:
            odd.bind(("127.0.0.1", 0))
            odd.listen()

            def talk() -> None:
                connection, _ = odd.accept()
                with connection:
                    connection.recv(10_000)
                    connection.sendall(b"220 mail ready\r\n")

            thread = threading.Thread(target=talk)
            thread.start()
            with pytest.raises(GeneratorError, match="can't be reached"):
                ServerGenerator(f"http://127.0.0.1:{odd.getsockname()[1]}/v1").score_labels(PROMPT, "AB")
            thread.join()

    @pytest.mark.parametrize(
        ("models", "said_in_error"),
        [
            ({"data": []}, "offers 0 models"),
            ({"data": [{"id": "a"}, {"id": "b"}]}, r"offers 2 models \(a, b\).*#MODEL"),
            ({"data": None}, "offers 0 models"),
        ],
    )
    def test_which_model(
        self, server: Server, generator: ServerGenerator, models: dict[str, Any], said_in_error: str
    ) -> None:
        server.models = (200, json.dumps(models).encode())
        with pytest.raises(GeneratorError, match=said_in_error):
            generator.generate(PROMPT, grammar=LINES, tokens_max=8)
        named = ServerGenerator(server.url, model="b")
        assert named.generate(PROMPT, grammar=LINES, tokens_max=8) == "- fact\n"


class TestLabels:
    def test_listed_log_probabilities(self, server: Server, generator: ServerGenerator) -> None:
        server.answer = lambda _: said("A", top=[("A", -0.1), (" B", -2.0), ("\u0120A", -3.0), ("zebra", -4.0)])
        assert generator.fingerprint()["labels"] == "unknown"
        a, b, unlisted = generator.score_labels(PROMPT, ["A", "B", "C"])
        assert math.isclose(math.exp(a) + math.exp(b) + math.exp(unlisted), 1)
        assert a - b == pytest.approx(math.log(math.exp(-0.1) + math.exp(-3)) + 2)
        assert b - unlisted == pytest.approx(3)  # the least listed, and one less
        assert generator.fingerprint()["labels"] == "logprobs"
        asked = server.chats()[0]
        assert (asked["max_tokens"], asked["logprobs"], asked["top_logprobs"]) == (1, True, 20)
        assert asked["grammar"] == 'root ::= ("A" | "B" | "C")'

    def test_without_log_probabilities_a_choice(self, server: Server, generator: ServerGenerator) -> None:
        server.replies("B")
        scores = generator.score_labels(PROMPT, ["A", "B", "C"])
        assert [math.exp(score) for score in scores] == pytest.approx([0.05, 0.9, 0.05])
        assert generator.fingerprint()["labels"] == "choice"
        assert len(server.chats()) == 2
        generator.score_labels(PROMPT, ["A", "B", "C"])
        assert len(server.chats()) == 3  # log-probabilities are not asked for again
        assert generator.score_labels(PROMPT, ["B"]) == (0.0,)

    @pytest.mark.parametrize("text", ["B", " B\n", "**B**", "B: both are true", "<think>A?</think>B"])
    def test_ways_to_say_a_label(self, server: Server, generator: ServerGenerator, text: str) -> None:
        server.replies(text)
        scores = generator.score_labels(PROMPT, ["A", "B"])
        assert scores[1] > scores[0]

    def test_listed_but_none_of_the_labels(self, server: Server, generator: ServerGenerator) -> None:
        def answer(fields: dict[str, Any]) -> Answer:
            return said("The", top=[("The", -0.1)]) if fields.get("logprobs") else said("A")

        server.answer = answer
        assert math.exp(generator.score_labels(PROMPT, ["A", "B"])[0]) == pytest.approx(0.9)
        assert generator.fingerprint()["labels"] == "unknown"

    def test_no_label_named(self, server: Server, generator: ServerGenerator) -> None:
        server.replies("A note about Anna")
        with pytest.raises(GeneratorError, match="none of the labels") as caught:
            generator.score_labels(PROMPT, ["A", "B"])
        assert "Anna" not in str(caught.value)

    def test_bad_labels(self, generator: ServerGenerator) -> None:
        for labels in ([], ["A", "A"]):
            with pytest.raises(InvalidInputError, match="labels"):
                generator.score_labels(PROMPT, labels)


@pytest.mark.model
def test_the_server_of_llama_cpp_python(tmp_path: Path) -> None:
    """A real implementation of the protocol, where its extra is installed."""
    app = pytest.importorskip("llama_cpp.server.app", exc_type=ImportError)
    settings = pytest.importorskip("llama_cpp.server.settings", exc_type=ImportError)
    uvicorn = pytest.importorskip("uvicorn")
    from localmem import artifacts

    try:
        path = artifacts.generator_path()
    except LocalmemError as error:
        pytest.skip(f"no base model: {type(error).__name__}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    application = app.create_app(
        server_settings=settings.ServerSettings(host="127.0.0.1", port=port),
        model_settings=[settings.ModelSettings(model=str(path), n_ctx=1024, logits_all=True, verbose=False)],
    )
    running = uvicorn.Server(uvicorn.Config(application, host="127.0.0.1", port=port, log_level="error"))
    thread = threading.Thread(target=running.run)
    thread.start()
    try:
        while not running.started:
            thread.join(0.05)
        generator = ServerGenerator(f"http://127.0.0.1:{port}/v1")
        scores = generator.score_labels(PROMPT, ["A", "B"])
        assert math.isclose(sum(math.exp(score) for score in scores), 1)
    finally:
        running.should_exit = True
        thread.join()
