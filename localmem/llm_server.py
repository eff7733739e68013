"""A chat model behind an OpenAI-compatible server on this machine: llama-server, Ollama, LM Studio.

Servers differ in what they honour, so nothing is taken on trust: every reply is matched against the grammar here, and
label scores fall back from log-probabilities to a chosen label. Only the standard library, no proxy from the
environment, no redirect followed, and no address off this machine unless code asked for it.
"""

from __future__ import annotations

import http.client
import ipaddress
import json
import math
import re
import socket
import ssl
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

from localmem import gbnf
from localmem.errors import ClosedError, GeneratorError, GeneratorUnavailableError, InvalidInputError
from localmem.types import Prompt

CHARS_PER_TOKEN = 3  # a low estimate for English, so that budgets err on the short side
_SEED = 1
_NOT_SERVING = {401, 403, 429, 502, 503, 504}  # whatever it is asked; 503 is a model that is being loaded
_RESPONSE_BYTES_MAX = 8 * 2**20
_TOP_LOGPROBS = 20
_CHOSEN = 0.9  # probability of the label a server names without saying how sure it is
_UNLISTED_NATS = 1.0  # a label the server does not list is taken to be this much less likely than the least listed
_THINKING = re.compile(r"\A\s*<think>.*?</think>\s*", re.DOTALL)
_FENCED = re.compile(r"\A```[a-z]*\n(.*)\n```\Z", re.DOTALL)


class ServerGenerator:
    """A model served at ``base_url``, e.g. ``http://127.0.0.1:8080/v1``. Nothing is sent before the first call.

    ``model``: its name there; None takes the only one the server has. The host must be a loopback address or
    ``localhost`` unless ``allow_remote``: what the user said goes to that host. Safe from several
    threads: the server queues.
    """

    def __init__(
        self, base_url: str, *, model: str | None = None, allow_remote: bool = False, timeout_s: float = 120
    ) -> None:
        self._host, self._port, self._path, self._secure = _parts(base_url, allow_remote)
        if timeout_s <= 0:
            raise InvalidInputError(f"timeout_s must be more than 0, not {timeout_s}")
        scheme, shown = "https" if self._secure else "http", f"[{self._host}]" if ":" in self._host else self._host
        self._url = f"{scheme}://{shown}:{self._port}{self._path}"
        self._allow_remote = allow_remote
        self._timeout_s = timeout_s
        self._model = model
        self._extras = True  # fields beyond OpenAI's, until the server refuses them
        self._labels = "unknown"  # then: logprobs, choice
        self._closed = False

    @property
    def id(self) -> str:
        """``server:MODEL``, or the address while the model is not known."""
        return f"server:{self._model or self._url}"

    def fingerprint(self) -> Mapping[str, str]:
        """What is known of the far side. ``labels``: how scores are made (logprobs, choice; unknown before)."""
        return {
            "generator": self.id,
            "server": self._url,
            "model": self._model or "",
            "seed": str(_SEED),
            "labels": self._labels,
        }

    def generate(self, prompt: Prompt, *, grammar: str, tokens_max: int) -> str:
        """The reply, matched against the grammar; one more try when it does not, then GeneratorError.

        A reply cut at ``tokens_max`` is cut to its complete lines.
        """
        if tokens_max < 1:
            raise InvalidInputError(f"tokens_max must be at least 1, not {tokens_max}")
        parsed = gbnf.parse(grammar)
        for attempt in range(2):
            # The same request would get the same reply, so the second one may wander a little.
            fields = {"max_tokens": tokens_max, "seed": _SEED + attempt, "temperature": 0.3 * attempt}
            answer = self._complete(prompt, grammar, fields)
            fitting = _fitting(_content(answer), parsed, cut=answer.get("finish_reason") == "length")
            if fitting is not None:
                return fitting
        raise GeneratorError(
            f"the server at {self._url} twice sent a reply outside the grammar of prompt {prompt.name}; use a server "
            "that enforces grammars (llama-server does) or a more capable model"
        )

    def score_labels(self, prompt: Prompt, labels: Sequence[str]) -> tuple[float, ...]:
        """One log-probability for each label; their exponentials sum to 1. See ``fingerprint()["labels"]``."""
        if not labels or len(set(labels)) != len(labels):
            raise InvalidInputError(f"labels must be one or more different texts, not {list(labels)!r}")
        grammar = "root ::= " + gbnf.choice(labels)
        asked: dict[str, Any] = {"max_tokens": 1, "seed": _SEED, "temperature": 0}
        if self._labels != "choice":
            answer = self._complete(prompt, grammar, {**asked, "logprobs": True, "top_logprobs": _TOP_LOGPROBS})
            scores = _listed_scores(answer, labels)
            if scores is not None:
                self._labels = "logprobs"
                return scores
            if not _has_logprobs(answer):
                self._labels = "choice"
        for attempt in range(2):
            fields = {"max_tokens": 8, "seed": _SEED + attempt, "temperature": 0.3 * attempt}
            chosen = _chosen_label(_content(self._complete(prompt, grammar, fields)), labels)
            if chosen is not None:
                return _near_one_hot(chosen, labels)
        raise GeneratorError(
            f"the server at {self._url} twice named none of the labels {list(labels)} for prompt {prompt.name}; use a "
            "server that enforces grammars (llama-server does) or a more capable model"
        )

    def count_tokens(self, text: str) -> int:
        """An estimate: a server has no common way to ask."""
        return math.ceil(len(text) / CHARS_PER_TOKEN)

    def close(self) -> None:
        """Later calls raise ClosedError. Nothing is held open between calls."""
        self._closed = True

    def _complete(self, prompt: Prompt, grammar: str, fields: Mapping[str, Any]) -> Mapping[str, Any]:
        """The first choice of one chat completion."""
        if self._closed:
            raise ClosedError("the generator was closed with its Memory; open another one")
        request: dict[str, Any] = {
            "model": self._model_name(),
            "messages": [{"role": role, "content": text} for role, text in prompt.turns],
            "stream": False,
            **fields,
        }
        status, body = 400, b""
        if self._extras:
            status, body = self._request("POST", "/chat/completions", {**request, "grammar": grammar})
        if status == 400:  # a strict server: once more without what OpenAI's own does not know
            status, body = self._request("POST", "/chat/completions", request)
            self._extras = self._extras and status != 200
        return self._first_choice(self._parsed(status, body))

    def _model_name(self) -> str:
        if self._model is None:
            answer = self._parsed(*self._request("GET", "/models", None))
            models = answer.get("data") or ()
            names = [str(model["id"]) for model in models if isinstance(model, dict) and model.get("id")]
            if len(names) != 1:
                raise GeneratorUnavailableError(
                    f"the server at {self._url} offers {len(names)} models"
                    + (f" ({', '.join(names[:5])})" if names else "")
                    + f"; name one: generator='{self._url}#MODEL' or ServerGenerator(url, model='MODEL')"
                )
            self._model = names[0]
        return self._model

    def _request(self, method: str, path: str, fields: Mapping[str, Any] | None) -> tuple[int, bytes]:
        """(HTTP status, body). GeneratorError when there is no answer."""
        data = None if fields is None else json.dumps(fields).encode()
        headers = {"Accept": "application/json", "Connection": "close"}
        if data is not None:
            headers["Content-Type"] = "application/json"
        connection = self._connection()
        try:
            connection.request(method, self._path + path, body=data, headers=headers)
            response = connection.getresponse()
            body = response.read(_RESPONSE_BYTES_MAX + 1)
        except TimeoutError as error:
            raise GeneratorError(
                f"the server at {self._url} did not answer within {self._timeout_s:g} s; give it more time "
                "(ServerGenerator(url, timeout_s=…)) or a smaller model"
            ) from error
        except (OSError, http.client.HTTPException) as error:
            raise GeneratorUnavailableError(
                f"the server at {self._url} can't be reached ({type(error).__name__}); start it, or check the address"
            ) from error
        finally:
            connection.close()
        if len(body) > _RESPONSE_BYTES_MAX:
            raise GeneratorError(f"the server at {self._url} sent more than {_RESPONSE_BYTES_MAX} bytes")
        return response.status, body

    def _connection(self) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection
        if self._secure:
            connection = http.client.HTTPSConnection(
                self._host, self._port, timeout=self._timeout_s, context=ssl.create_default_context()
            )
        else:
            connection = http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        if not self._allow_remote:
            _check_resolved(self._host, self._port)
        return connection

    def _parsed(self, status: int, body: bytes) -> dict[str, Any]:
        if 300 <= status < 400:
            raise GeneratorUnavailableError(
                f"the server at {self._url} redirects (HTTP {status}); give the address it points to"
            )
        if status == 404:
            raise GeneratorUnavailableError(
                f"the server at {self._url} does not know the address or the model {self._model!r} (HTTP 404); the "
                "address usually ends in /v1"
            )
        if status != 200:  # the body may repeat what was sent: it is not shown
            kind = GeneratorUnavailableError if status in _NOT_SERVING else GeneratorError
            raise kind(f"the server at {self._url} answered HTTP {status}; its own log says why")
        try:
            answer = json.loads(body)
        except ValueError as error:
            raise GeneratorUnavailableError(
                f"the server at {self._url} sent no JSON; is it OpenAI-compatible?"
            ) from error
        if not isinstance(answer, dict):
            raise GeneratorUnavailableError(
                f"the server at {self._url} sent JSON of another shape; is it OpenAI-compatible?"
            )
        return answer

    def _first_choice(self, answer: Mapping[str, Any]) -> Mapping[str, Any]:
        choices = answer.get("choices")
        first = choices[0] if isinstance(choices, list) and choices else None
        if not isinstance(first, dict) or not isinstance(first.get("message"), dict):
            raise GeneratorError(f"the server at {self._url} sent JSON without a reply; is it OpenAI-compatible?")
        return first


def _parts(base_url: str, allow_remote: bool) -> tuple[str, int, str, bool]:
    """(host, port, path without a slash at the end, whether https). InvalidInputError names what is wrong."""
    cure = "give a URL like http://127.0.0.1:8080/v1"
    try:
        url = urlsplit(base_url)
        port = url.port
    except ValueError as error:
        raise InvalidInputError(f"the generator's URL can't be read ({error}); {cure}") from None
    if url.scheme not in ("http", "https") or not url.hostname:
        raise InvalidInputError(f"the generator's URL has no http(s) host; {cure}")
    if url.username or url.password or url.query or url.fragment:
        raise InvalidInputError(f"the generator's URL holds a user, query or fragment; {cure}")
    if not allow_remote and url.hostname != "localhost" and not _is_loopback(url.hostname):
        raise InvalidInputError(
            f"the generator's host {url.hostname} is not this machine (127.0.0.0/8, ::1 or localhost), and what the "
            "user says would be sent there; pass allow_remote=True in code if that is meant"
        )
    secure = url.scheme == "https"
    return url.hostname, port or (443 if secure else 80), url.path.rstrip("/"), secure


def _is_loopback(host: str) -> bool:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def _check_resolved(host: str, port: int) -> None:
    """A hosts file or resolver may say that localhost is elsewhere: then nothing is sent."""
    try:
        found = {str(place[4][0]) for place in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)}
    except OSError as error:
        raise GeneratorUnavailableError(f"the generator's host {host} does not resolve; use 127.0.0.1") from error
    if not all(_is_loopback(address) for address in found):
        raise GeneratorUnavailableError(f"the generator's host {host} does not resolve to this machine; use 127.0.0.1")


def _content(choice: Mapping[str, Any]) -> str:
    content = choice["message"].get("content")
    return _THINKING.sub("", content) if isinstance(content, str) else ""


def _fitting(text: str, grammar: gbnf.Grammar, *, cut: bool) -> str | None:
    """The reply as the grammar has it: as it is, without surrounding blanks or a code fence, or its complete lines."""
    stripped = text.strip()
    fenced = _FENCED.match(stripped)
    bare = fenced[1] if fenced else stripped
    for candidate in (text, bare, bare + "\n"):
        if grammar.matches(candidate) and not cut:
            return candidate
    return grammar.whole_lines(text) if cut else None


def _has_logprobs(choice: Mapping[str, Any]) -> bool:
    return bool(_first_top(choice))


def _first_top(choice: Mapping[str, Any]) -> Sequence[Mapping[str, Any]]:
    """What the server lists for the first token of the reply, likeliest first; () when it lists nothing."""
    logprobs = choice.get("logprobs")
    content = logprobs.get("content") if isinstance(logprobs, dict) else None
    first = content[0] if isinstance(content, list) and content else None
    listed = first.get("top_logprobs") if isinstance(first, dict) else None
    return [place for place in listed or () if isinstance(place, dict) and _is_number(place.get("logprob"))]


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _listed_scores(choice: Mapping[str, Any], labels: Sequence[str]) -> tuple[float, ...] | None:
    """Log-probabilities over the labels from the listed tokens; None when none of the labels is listed."""
    top = _first_top(choice)
    found: dict[str, list[float]] = {}
    for place in top:
        label = str(place.get("token", "")).strip(" \u2581\u0120\n")  # sentencepiece and byte-level blanks
        if label in labels:
            found.setdefault(label, []).append(float(place["logprob"]))
    if not found:
        return None
    floor = min(float(place["logprob"]) for place in top) - _UNLISTED_NATS
    return _normalised([_log_sum_exp(found.get(label, [floor])) for label in labels])


def _chosen_label(text: str, labels: Sequence[str]) -> str | None:
    """The label the reply is, or begins with before a punctuation mark: "B: both", not "A new note says"."""
    first = re.match(r"\W*(\w+)\s*(?:[^\w\s]|$)", text)
    words = (text.strip(), first[1] if first else "")
    return next((word for word in words if word in labels), None)


def _near_one_hot(chosen: str, labels: Sequence[str]) -> tuple[float, ...]:
    if len(labels) == 1:
        return (0.0,)
    rest = math.log((1 - _CHOSEN) / (len(labels) - 1))
    return tuple(math.log(_CHOSEN) if label == chosen else rest for label in labels)


def _normalised(values: Sequence[float]) -> tuple[float, ...]:
    total = _log_sum_exp(values)
    return tuple(value - total for value in values)


def _log_sum_exp(values: Sequence[float]) -> float:
    highest = max(values)
    return highest + math.log(sum(math.exp(value - highest) for value in values))
